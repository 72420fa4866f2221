"""Keeping what has certain names, or all but that."""

from __future__ import annotations

from abc import abstractmethod

from trackhub.backend import hookimpl
from trackhub.processor import Processor
from trackhub.processors.naming import Patterns, kind_and_rest, members, name_of, with_members
from trackhub.records import Deliverable


class _Selection(Processor):
    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self.handles, patterns = kind_and_rest(argument)
        self._patterns = Patterns(patterns)

    @abstractmethod
    def keeps(self, name: str) -> bool:
        """Whether what has this name goes to the backend."""

    def process(self, record: Deliverable) -> Deliverable | None:
        """Keep what has the right name; of metrics, params and tags, each value goes by its own."""
        values = members(record)
        if values is None:
            return record if self._keeps(name_of(record)) else None
        kept = {name: value for name, value in values.items() if self._keeps(name)}
        if len(kept) == len(values):
            return record
        return with_members(record, kept) if kept else None

    def _keeps(self, name: str) -> bool:
        kept = self.keeps(name)
        if not kept:
            self.notes.add(f"left out by {self}", name)
        return kept


class Include(_Selection):
    """`include:PATTERN|PATTERN`: only what has a name that matches goes to the backend.

    It goes for everything: `include:train/*` leaves out params and tags, too. With a kind in front it goes for that
    kind alone: `include:metrics:train/*|val/*`.
    """

    name = "include"

    def keeps(self, name: str) -> bool:
        """Whether the name matches."""
        return self._patterns.match(name)


class Exclude(_Selection):
    """`exclude:PATTERN|PATTERN`: what has a name that matches does not go to the backend.

    With a kind in front it goes for that kind alone: `exclude:images:*` leaves out all pictures.
    """

    name = "exclude"

    def keeps(self, name: str) -> bool:
        """Whether the name does not match."""
        return not self._patterns.match(name)


@hookimpl
def trackhub_processors() -> list[type[Processor]]:
    """The two of this module."""
    return [Include, Exclude]
