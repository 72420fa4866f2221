"""Completing runs: what `trackhub sync` decides before and after the delivery itself.

Apart from `sync.py` because this is for many runs at once, some of which are complete and some of which cannot be
delivered at all: neither may keep the others waiting.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

from trackhub.cli.finding import sync_command
from trackhub.cli.overview import Overview, overviews
from trackhub.report import DeliveryReport
from trackhub.rundir import Manifest, RunDirectory


@dataclass
class Completion:
    """What came of completing runs.

    Args:
        reports: Each run that was worked on, with how it stood when the wait was over.
        already: Number of runs that were complete before.
        without_backends: Runs that no backend was chosen for.
        refused: A sentence for each delivery that could not be begun, and each run that could not be read.
    """

    reports: list[tuple[Manifest, DeliveryReport]] = field(default_factory=list)
    already: int = 0
    without_backends: list[Manifest] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to deliver."""
        return not self.refused and all(report.complete for _, report in self.reports)


def complete(
    runs: Sequence[RunDirectory], to: Sequence[str] | None, timeout_seconds: float, patience_seconds: float
) -> Completion:
    """Deliver what is left of runs, and wait for it.

    Args:
        runs: The runs.
        to: Backends to deliver to; default: those each run was given to.
        timeout_seconds: How long to wait at most.
        patience_seconds: How long a backend may be unavailable before it is given up for now.

    Raises:
        SettingsError: There is no backend called as `to` says.
    """
    result = Completion()
    unfinished: list[Overview] = []

    def leave_out(run: RunDirectory, error: Exception) -> None:
        result.refused.append(f"run {run.path.name} is left out: {error}")

    for one in overviews(runs, leave_out, to):
        if not one.standings:
            result.without_backends.append(one.manifest)
        elif one.complete:
            result.already += 1
        else:
            unfinished.append(one)
    if not unfinished:
        return result
    # Imported late: looking whether there is anything to do needs none of it.
    from trackhub.sync import sync, with_families

    chosen = [one.run for one in unfinished]
    before = with_families(chosen)
    reports = sync(chosen, to, timeout_seconds, patience_seconds, result.refused.append)
    # Child runs may have begun since.
    family = {run.manifest.id: run for run in (*with_families(chosen), *before)}
    for report in reports:
        # Not read again: a run that goes on would never be complete, whatever the wait has seen arrive.
        run = family[report.run_id]
        result.reports.append((run.manifest, replace(report, command=sync_command(run))))
    return result


class Stop:
    """Whether a signal has asked to stop; the second signal stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """What the signals do."""
        if self.asked:
            _interrupt(number, _frame)
        self.asked = True


@contextmanager
def stopping_politely() -> Iterator[Stop]:
    """Have SIGTERM and SIGINT ask to stop, the first time."""
    stop = Stop()
    with _signals(stop.on_signal):
        yield stop


@contextmanager
def terminating_cleanly() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does, so that delivery processes are ended with it."""
    with _signals(_interrupt, signal.SIGTERM):
        yield


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _signals(handler: object, *numbers: int) -> Iterator[None]:
    earlier = {}
    try:
        for number in numbers or (signal.SIGTERM, signal.SIGINT):
            earlier[number] = signal.signal(number, handler)  # type: ignore[arg-type]
        yield
    finally:
        for number, action in earlier.items():
            signal.signal(number, action)
