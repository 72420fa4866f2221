"""Keeping one step of metrics in so many."""

from __future__ import annotations

from trackhub.backend import hookimpl
from trackhub.processor import Processor
from trackhub.processors.naming import Patterns, with_members
from trackhub.records import Deliverable, MetricsLogged


class Every(Processor):
    """`every:N`: of metrics, only the steps that N divides go to the backend; everything else goes as it is.

    `every:N:PATTERN|PATTERN` thins out the metrics with a name that matches, and leaves the others whole.

    It goes by the number of the step, so that a delivery that is begun again gives the same. The last step is therefore
    kept only if N divides it: what is logged once an epoch, or at the end, is best left out of the patterns.
    """

    name = "every"
    handles = frozenset([MetricsLogged])

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        number, colon, patterns = argument.partition(":")
        try:
            self._every = int(number)
        except ValueError:
            raise ValueError("it needs a whole number: every:10 keeps the steps 0, 10, 20 and so on") from None
        if self._every < 1:
            raise ValueError(f"the number must be 1 or more, not {self._every}")
        self._patterns = Patterns(patterns) if colon else None

    def process(self, record: Deliverable) -> Deliverable | None:
        """Leave out what is of a step between."""
        assert isinstance(record, MetricsLogged)
        if record.step % self._every == 0:
            return record
        kept = {}
        for name, value in record.values.items():
            if self._patterns is None or self._patterns.match(name):
                self.notes.add(f"left out by {self}", name)
            else:
                kept[name] = value
        if len(kept) == len(record.values):
            return record
        return with_members(record, kept) if kept else None


@hookimpl
def trackhub_processors() -> list[type[Processor]]:
    """The one of this module."""
    return [Every]
