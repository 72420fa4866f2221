"""Which points of a series can still be appended to it.

Apart from the backend because it decides what shows once and what is left out: Neptune's series only grow, in step and
in time, and a batch may be given again after a crash.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class End(NamedTuple):
    """The last point of a series."""

    step: float
    time_ms: int


@dataclass
class Growth:
    """What is to be appended to one series, and what is not.

    Args:
        steps: Of the points to append.
        refused: How many points are not newer than their predecessors: these are lost to Neptune.
    """

    end: End | None
    values: list[Any] = field(default_factory=list)
    steps: list[int | float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    refused: int = 0


def grow(end: End | None, stored: End | None, points: Iterable[tuple[int, int, Any]]) -> Growth:
    """Sort out points.

    Args:
        end: Where the series ends now; None if it is empty.
        stored: Where it ended when it was found at the server: up to there, points of that time or earlier have been
            delivered before, and are passed over without a word.
        points: `(step, time_ms, value)`, in the order they were logged.
    """
    growth = Growth(end)
    for step, time_ms, value in points:
        # The server's steps are floats, in which large neighbours are equal.
        as_float = float(step)
        last = growth.end
        if last is not None and as_float <= last.step:
            if stored is None or as_float > stored.step or time_ms > stored.time_ms:
                growth.refused += 1
            continue
        time_ms = max(time_ms, last.time_ms) if last is not None else time_ms
        growth.end = End(as_float, time_ms)
        growth.values.append(value)
        growth.steps.append(step if abs(step) <= 2**53 else as_float)
        growth.times.append(_seconds(time_ms))
    return growth


def _seconds(time_ms: int) -> float:
    """Seconds that the client, which cuts off what is below a millisecond, turns into `time_ms` again."""
    seconds = time_ms / 1000
    return seconds if int(seconds * 1000) == time_ms else (time_ms + 0.5) / 1000
