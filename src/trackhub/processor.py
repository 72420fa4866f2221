"""The contract of a processor: a filter between the journal and one backend.

Apart from the backend's contract because a processor knows no vendor, and its author need not know that contract. What
calls it is in `processing.py`; those that come with trackhub are in `processors/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from trackhub.backend import Notes
from trackhub.records import Deliverable, Record


class Processor(ABC):
    """A filter between the journal and one backend, chosen as `name` or `name:argument`.

    Subclass it, and override `process`. What is changed or left out is reported with
    `self.notes.add(reason, subject, detail)`, and counted in the delivery report; where a processor says nothing, the
    delivery does.

    A delivery that is begun again, after a crash or as `trackhub sync`, gives the same records again, or only those
    that were left: what becomes of a record must follow from that record and the argument alone, and not from the time,
    from chance, or from the records before it.

    An exception suspends the delivery, with the processor's name and version in the report; the data stays.

    Args:
        argument: What was written after the colon; empty for nothing. Refuse what cannot be meant with a `ValueError`
            that says what can: it is raised in `trackhub.init`. The argument is kept in the run directory, so no
            secret may be in it.
    """

    name: ClassVar[str]
    """What users write in `processors=[...]`."""

    handles: frozenset[type[Record]] | None = None
    """The kinds of record that `process` is given; None for all. The others pass as they are, at no cost."""

    def __init__(self, argument: str = "") -> None:
        self.argument = argument
        self.notes = Notes()

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @abstractmethod
    def process(self, record: Deliverable) -> Deliverable | None:
        """The record that the backend gets in place of this one: the same, another of its kind, or None for none.

        Args:
            record: As it was logged, or as the processor before this one gave it. Records are frozen, and what is in
                them must not be changed: make a new one with `msgspec.structs.replace`.
        """
