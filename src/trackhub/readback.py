"""What a vendor holds of a run, as `Backend.read_back` gives it, and what should be there by the backend's own rules.

Apart from the contract because a backend need not have it, and because it has two sides that must be told apart: what
is found is the vendor's, in the vendor's names; what should be found is a rule of the backend for something logged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from trackhub.records import Deliverable, EndStatus, RunStatus

KindOfName = Literal["metric", "param", "tag", "item"]


class Point(NamedTuple):
    """One value of a metric; the time is None where the vendor does not keep it."""

    step: int
    value: float
    time_ns: int | None = None


class Item(NamedTuple):
    """Anything else that is there: a file, a picture, a text.

    Args:
        path: Where it is, in the vendor's words; one for each.
        size_bytes: Its size; None where the vendor does not tell.
        sha256: Of its content, in hexadecimal; None where that would have to be transferred.
    """

    path: str
    size_bytes: int | None = None
    sha256: str | None = None


class ReadBack(ABC):
    """One run as it is at the vendor now. Subclass it; nothing that it does may change anything there.

    The first methods tell what is found. The others tell what should be found of something that was logged, wherever
    that is not the same: another name, a shortened text, a 32-bit number. Their defaults are for a vendor that keeps
    everything as it was logged.
    """

    status: RunStatus | None = None
    """How the run stands; None where the vendor does not tell."""

    params: Mapping[str, Any] | None = None
    """Name -> value; None where they cannot be read."""

    tags: Mapping[str, str] | None = None
    """Name -> text; None where they cannot be read."""

    is_shared: bool = False
    """Whether others write into the same run, so that what is there beside ours is no surprise."""

    first_param_stands: bool = False
    """Whether of a param that was logged twice the first value is kept, not the last."""

    equal_points_collapse: bool = False
    """Whether points that are equal in name, step, value and time are one for the vendor."""

    @abstractmethod
    def metric_names(self) -> Iterable[str]:
        """The metrics that are there."""

    @abstractmethod
    def points(self, names: Collection[str]) -> Iterator[tuple[str, Point]]:
        """The points of some metrics, one by one: there may be millions.

        Args:
            names: Of metrics that are there. Points of different metrics may come in any order.
        """

    def items(self) -> Iterable[Item] | None:
        """Everything that is there beside metrics, params and tags; None where it cannot be listed."""
        return None

    def problems(self) -> Iterable[str]:
        """What is wrong with the vendor's data as such, a sentence each; asked after all else was read."""
        return ()

    def close(self) -> None:
        """Let go of connections and files. Always called last."""

    def metric_name(self, name: str) -> str:
        """What the vendor calls a metric."""
        return name

    def metric_points(self, name: str, logged: Iterable[Point]) -> Iterator[Point | str]:
        """What is kept of the points of a metric.

        Args:
            name: The metric, as it was logged.
            logged: All its points, in the order of the journal.

        Returns:
            For each point the one that should be found; for one that is left out on purpose, the reason that stands in
            the delivery report: "not finite".
        """
        yield from logged

    def param(self, name: str, value: Any) -> tuple[str, Any] | None:
        """The name and the value a param should have; None for one that should not be there."""
        return name, value

    def tag(self, name: str, text: str) -> tuple[str, str] | None:
        """The name and the text a tag should have; None for one that should not be there."""
        return name, text

    def items_for(self, record: Deliverable) -> list[Item] | None:
        """What should be there for a record of a kind that the backend shows; None if that cannot be told."""
        return None

    def end_status(self, status: EndStatus) -> RunStatus:
        """What the vendor makes of the status a run ended with."""
        return status

    def adds(self, kind: KindOfName, name: str) -> bool:
        """Whether the vendor or the backend adds this by itself, so that it is in no journal."""
        return False
