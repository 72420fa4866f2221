"""The progress bar of a wait for deliveries; apart so that rich is only imported where a wait takes long."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from trackhub.rundir import RunDirectory


class DeliveryProgress:
    """Shows on standard error how many of the deliveries that are waited for are done.

    Args:
        total: Number of deliveries waited for.
    """

    def __init__(self, total: int) -> None:
        from rich.console import Console

        self._total = total
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("trackhub: delivering"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID = self._bar.add_task("", total=total)

    def show(self, waiting: Sequence[tuple[RunDirectory, str]]) -> None:
        """Show what is still waited for: run and backend of each delivery."""
        run, backend = waiting[0]
        report = run.cursor(backend).report
        what = f"{backend} ({report.points:,} points so far)"
        if report.error:
            what = f"{backend}: {report.error[:60]}"
        self._bar.update(self._task, completed=self._total - len(waiting), description=what)

    def __enter__(self) -> DeliveryProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
