"""What trackhub promises about its cost, and whether a run of the benchmarks kept it.

Apart from the report because CI fails on this and not on a table: the limits stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Promise:
    """A number that must not be above its limit."""

    text: str
    limit: float
    unit: str
    measured: Callable[[Results], float]


@dataclass(frozen=True)
class Verdict:
    """A promise with what was measured; None where this run did not measure it."""

    promise: Promise
    measured: float | None

    @property
    def kept(self) -> bool | None:
        """Whether the promise was kept; None where it was not measured."""
        return None if self.measured is None else self.measured <= self.promise.limit


def _of(results: Results, contender: str, measurement: str, number: str) -> float:
    """The median over the rounds of one number; KeyError when this run did not measure it."""
    value: float = results["contenders"][contender][measurement]["median"][number]
    return value


def _ratio(measurement: str, number: str, other: str) -> Callable[[Results], float]:
    return lambda r: _of(r, "trackhub", measurement, number) / _of(r, other, measurement, number)


def _plain(measurement: str, number: str) -> Callable[[Results], float]:
    return lambda r: _of(r, "trackhub", measurement, number)


def _beyond_empty(worst: str, empty: str) -> Callable[[Results], float]:
    return lambda r: (_of(r, "trackhub", "calls", worst) - _of(r, "trackhub", "calls", empty)) / 1e3


def _slowdown(results: Results) -> float:
    """Of a step, beyond what the control shows: with no recording at all that is the noise of this machine."""
    noise = _of(results, "nothing", "steps", "slowdown_percent")
    return _of(results, "trackhub", "steps", "slowdown_percent") - max(0.0, noise)


def _kills(results: Results) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = results["contenders"]["trackhub"]["kill"]["runs"]
    return runs


def _most(number: str) -> Callable[[Results], float]:
    return lambda r: max(max(run[number].values()) for run in _kills(r))


def _wrong_states(results: Results) -> float:
    return len([run for run in _kills(results) if run["state"] != "KILLED"])


PROMISES = (
    Promise("median call against plain JSON lines", 0.5, "x", _ratio("calls", "median_us", "jsonlines")),
    Promise("p99 of a call", 20, "us", _plain("calls", "p99_us")),
    Promise("longest of 10,000 calls beyond the empty loop", 5, "ms", _beyond_empty("worst_us", "empty_worst_us")),
    Promise(
        "the same spread over seconds of delivery",
        5,
        "ms",
        _beyond_empty("spread_worst_us", "spread_empty_worst_us"),
    ),
    Promise("a call with 1,000 values", 100, "us", _plain("calls", "wide_median_us")),
    Promise("call in a numpy loop against plain JSON lines there", 1, "x", _ratio("steps", "call_us", "jsonlines")),
    Promise("slowdown of a 10 ms step beyond the control", 1, "%", _slowdown),
    Promise(
        "import over a bare interpreter",
        30,
        "ms",
        lambda r: r["import_ms"]["trackhub"]["median"] - r["import_ms"]["bare"]["median"],
    ),
    Promise("process start to first metric, two backends", 300, "ms", _plain("start", "first_metric_ms")),
    Promise("CPU of all processes against Lightning's list", 0.2, "x", _ratio("cpu", "cpu_seconds", "lightning")),
    Promise("points lost at SIGKILL, worst round and sink", 0, "", _most("lost")),
    Promise("points delivered twice after SIGKILL", 0, "", _most("twice")),
    Promise("rounds that SIGKILL left in another state than KILLED", 0, "", _wrong_states),
)


def judge(results: Results) -> list[Verdict]:
    """Every promise beside what a run measured."""
    verdicts = []
    for promise in PROMISES:
        try:
            measured: float | None = promise.measured(results)
        except KeyError:
            measured = None
        verdicts.append(Verdict(promise, measured))
    return verdicts
