"""What processors have in common that go by names: patterns, and the names in a record.

Apart because a pattern must mean the same to each of them.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from trackhub.lowering import KINDS
from trackhub.records import Deliverable, MetricsLogged, ParamsLogged, Record, TagsSet

_FIELDS: dict[type[Record], str] = {MetricsLogged: "values", ParamsLogged: "params", TagsSet: "tags"}
_KIND_OF: dict[str, type[Record]] = {kind: record for record, kind in KINDS.items()}
_REMEMBERED = 10_000


class Patterns:
    """Patterns with `|` between, one of which a name must match as a whole; upper and lower case differ.

    `*` stands for any text, slashes included, `?` for one character, `[ab]` for one of several.

    Args:
        text: The patterns.

    Raises:
        ValueError: One of them is empty.

    >>> Patterns("train/*|val/loss").match("train/a/b"), Patterns("train/*").match("my/train/a")
    (True, False)
    """

    def __init__(self, text: str) -> None:
        patterns = alternatives(text)
        matches = re.compile("|".join(map(fnmatch.translate, patterns))).match
        # The same few names come with every step.
        self.match = functools.lru_cache(_REMEMBERED)(lambda name: matches(name) is not None)


def alternatives(text: str) -> list[str]:
    """What stands between the `|` of an argument.

    Raises:
        ValueError: Nothing does, in one place.
    """
    parts = [part.strip() for part in text.split("|")]
    if not all(parts):
        raise ValueError("a pattern is missing: write one, or several with | between")
    return parts


def kind_and_rest(argument: str) -> tuple[frozenset[type[Record]] | None, str]:
    """Split `metrics:train/*` into the kind of record that is meant, if one is named, and the rest.

    Args:
        argument: A processor's.

    Returns:
        The kind, for `Processor.handles`, and what comes after it.
    """
    first, colon, rest = argument.partition(":")
    kind = _KIND_OF.get(first.strip())
    return (frozenset([kind]), rest) if colon and kind is not None else (None, argument)


def members(record: Deliverable) -> Mapping[str, Any] | None:
    """The named values of a record that has several; None for one that has a name itself."""
    field = _FIELDS.get(type(record))
    return None if field is None else getattr(record, field)


def with_members(record: Deliverable, values: Mapping[str, Any]) -> Deliverable:
    """The same record with other values."""
    return msgspec.structs.replace(record, **{_FIELDS[type(record)]: values})


def name_of(record: Deliverable) -> str:
    """The name of a record that has one itself."""
    name: str = record.name  # type: ignore[union-attr]
    return name
