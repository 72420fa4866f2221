"""Giving things other names at one backend."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from trackhub.backend import hookimpl
from trackhub.processor import Processor
from trackhub.processors.naming import alternatives, kind_and_rest, members, name_of, with_members
from trackhub.records import Deliverable, Record

_REMEMBERED = 10_000


class Rename(Processor):
    """`rename:OLD=NEW|OLD=NEW`: what is called OLD is called NEW at the backend; the first that fits counts.

    A `*` in OLD stands for any text, slashes included, and the `*` in NEW for the same: `rename:train/*=training/*`.
    With a kind in front it goes for that kind alone: `rename:metrics:loss=train/loss`.

    Where two metrics of one step (or two params, or tags, of one call) would get one name, they keep their own. Where
    things that were logged apart get one name, they are shown as one. Both is counted in the report.
    """

    name = "rename"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self.handles, pairs = kind_and_rest(argument)
        self._pairs = [_Pair(pair) for pair in alternatives(pairs)]
        # The same few names come with every step.
        self._new_name = functools.lru_cache(_REMEMBERED)(self._find_new_name)
        self._may_be_new = functools.lru_cache(_REMEMBERED)(self._find_whether_new)
        self._first_of: dict[tuple[type[Record], str], str] = {}

    def process(self, record: Deliverable) -> Deliverable | None:
        """Give the record, or each value in it, its new name."""
        values = members(record)
        if values is None:
            old = name_of(record)
            new = self._new_name(old)
            self._note(type(record), old, new)
            return record if new == old else msgspec.structs.replace(record, name=new)
        new_names = self._new_names(values)
        for old, new in new_names.items():
            self._note(type(record), old, new)
        if all(old == new for old, new in new_names.items()):
            return record
        return with_members(record, {new_names[old]: value for old, value in values.items()})

    def _new_names(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Old name -> new name, such that no two become one."""
        new_names = {old: self._new_name(old) for old in values}
        while len(set(new_names.values())) < len(new_names):
            claims = Counter(new_names.values())
            for old, new in new_names.items():
                # To keep its own name may be to take it from another: that is seen in the next round.
                if claims[new] > 1 and new != old:
                    self.notes.add("not renamed, the name is taken", old, f"{new!r}")
                    new_names[old] = old
        return new_names

    def _find_new_name(self, name: str) -> str:
        return next((new for pair in self._pairs if (new := pair.renamed(name)) is not None), name)

    def _find_whether_new(self, name: str) -> bool:
        return any(pair.gives(name) for pair in self._pairs)

    def _note(self, kind: type[Record], old: str, new: str) -> None:
        if new != old:
            self.notes.add("renamed as asked", old, f"to {new!r}")
        elif not self._may_be_new(new):
            return
        # Remembered for the report alone: what becomes of a record must not depend on those before it.
        first = self._first_of.setdefault((kind, new), old)
        if first != old:
            self.notes.add("logged apart and shown as one", new, f"{old!r} and {first!r}")


class _Pair:
    def __init__(self, text: str) -> None:
        self._old, equals, self._new = (part.strip() for part in text.partition("="))
        if not (equals and self._old and self._new):
            raise ValueError(f"{text!r} is not OLD=NEW: write what it is called, = and what it shall be called")
        if self._old.count("*") != self._new.count("*"):
            raise ValueError(f"{text!r} needs as many * on the right as on the left, or several would get one name")

    def renamed(self, name: str) -> str | None:
        """The new name; None if this pair is not about that name."""
        taken = _texts_of_stars(self._old, name)
        return None if taken is None else _filled(self._new, taken)

    def gives(self, name: str) -> bool:
        """Whether the name may be what something is renamed to."""
        return _texts_of_stars(self._new, name) is not None


def _texts_of_stars(pattern: str, name: str) -> list[str] | None:
    """What each `*` stands for, the shortest text that fits; None if the name does not match.

    By hand and not as a regular expression, for names may be long and several `*` would be tried in every combination.
    """
    first, *parts = pattern.split("*")
    if not parts:
        return [] if name == pattern else None
    last = parts.pop()
    end = len(name) - len(last)
    if not (name.startswith(first) and name.endswith(last)) or end < len(first):
        return None
    texts, at = [], len(first)
    for part in parts:
        found = name.find(part, at, end)
        if found < 0:
            return None
        texts.append(name[at:found])
        at = found + len(part)
    return [*texts, name[at:end]]


def _filled(pattern: str, texts: Iterable[str]) -> str:
    first, *parts = pattern.split("*")
    return first + "".join(text + part for text, part in zip(texts, parts, strict=True))


@hookimpl
def trackhub_processors() -> list[type[Processor]]:
    """The one of this module."""
    return [Rename]
