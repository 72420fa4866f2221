"""One metric's curve in bounded memory: its last value, and the extremes of stretches that grow as the run does.

Apart from the page because the numbers are gathered while the run goes on, and drawn at its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_STRETCHES = 500
"""A curve is kept as at most so many stretches of equally many values, two points each."""
MOST_WAITING = 16_384
"""Values that are kept as they are until there are more, or the curve is asked for."""


class Series:
    """The values of one metric, in the order they were logged.

    `steps` and `values` take new values; `settle` is called after some have been added, and empties them.
    `highest_step` is also of values that are not finite: the history has them.

    Args:
        without_curve: To keep the last value and the extremes alone.
    """

    def __init__(self, without_curve: bool = False) -> None:
        self._without_curve = without_curve
        self.steps: list[int] = []
        self.values: list[float] = []
        self.count = 0
        self.first: tuple[int, float] | None = None
        self.last = math.nan
        self.last_step = 0
        self.highest_step: int | None = None
        self.least = math.inf
        self.greatest = -math.inf
        self.not_finite = 0
        self.not_finite_steps: tuple[int, int] | None = None
        self._stretch = 1
        self._points: list[tuple[int, float, int, float]] = []
        self._rest: tuple[list[int], list[float]] = [], []

    def settle(self) -> int:
        """Take in what was added.

        Returns:
            How many of the new values are NaN or infinite; they are counted and in no curve.
        """
        left_out = 0
        if self.steps:
            self.highest_step = max(self.steps if self.highest_step is None else (self.highest_step, *self.steps))
        if not all(map(math.isfinite, self.values)):
            left_out = self._leave_out()
        if self.values:
            self.first = self.first or (self.steps[0], self.values[0])
            self.count += len(self.values)
            self.last, self.last_step = self.values[-1], self.steps[-1]
            self.least = min(self.least, min(self.values))
            self.greatest = max(self.greatest, max(self.values))
            if not self._without_curve:
                self._rest[0].extend(self.steps)
                self._rest[1].extend(self.values)
                if len(self._rest[0]) >= MOST_WAITING:
                    self._put_away()
            self.steps, self.values = [], []
        return left_out

    def points(self) -> list[tuple[int, float]]:
        """The curve: at most two points a stretch, of (step, value)."""
        self._put_away()
        points: list[tuple[int, float]] = []
        rest = [_extremes(*self._rest)] if self._rest[1] else []
        for first, low, second, high in self._points + rest:
            points.append((first, low))
            if (first, low) != (second, high):
                points.append((second, high))
        # A curve begins and ends where its metric does, be that an extreme or not.
        if points and self.first is not None and points[0] != self.first:
            points.insert(0, self.first)
        if points and points[-1] != (self.last_step, self.last):
            points.append((self.last_step, self.last))
        return points

    def _leave_out(self) -> int:
        bad = [step for step, value in zip(self.steps, self.values, strict=True) if not math.isfinite(value)]
        first = self.not_finite_steps[0] if self.not_finite_steps else bad[0]
        self.not_finite_steps = (min(first, *bad), max(self.not_finite_steps[1] if self.not_finite_steps else 0, *bad))
        self.not_finite += len(bad)
        good = [pair for pair in zip(self.steps, self.values, strict=True) if math.isfinite(pair[1])]
        self.steps = [step for step, _ in good]
        self.values = [value for _, value in good]
        return len(bad)

    def _put_away(self) -> None:
        """Put whole stretches away; what is less than one waits for more."""
        steps, values = self._rest
        while len(self._points) + len(values) // self._stretch > MOST_STRETCHES:
            self._stretch *= 2
            self._points = [_merged(self._points[at : at + 2]) for at in range(0, len(self._points), 2)]
        size = self._stretch
        whole = len(values) - len(values) % size
        if size == 1:
            self._points += [(step, value, step, value) for step, value in zip(steps, values, strict=True)]
        else:
            for at in range(0, whole, size):
                self._points.append(_extremes(steps[at : at + size], values[at : at + size]))
        del steps[:whole], values[:whole]


def _extremes(steps: Sequence[int], values: Sequence[float]) -> tuple[int, float, int, float]:
    """The smallest and the greatest value with their steps, in the order they came."""
    low, high = min(values), max(values)
    first, second = values.index(low), values.index(high)
    if first > second:
        first, second = second, first
    return steps[first], values[first], steps[second], values[second]


def _merged(points: Sequence[tuple[int, float, int, float]]) -> tuple[int, float, int, float]:
    steps = [step for first, _, second, _ in points for step in (first, second)]
    return _extremes(steps, [value for _, low, _, high in points for value in (low, high)])
