"""Waiting for deliveries, with a progress bar where it takes long; what `flush` and `finish` and `sync` have in common.

Apart from the tracker because a wait needs nothing but run directories: it reads the cursors the deliveries save.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable

from trackhub.host import host
from trackhub.rundir import RunDirectory

POLL_SECONDS = 0.02
PROGRESS_AFTER_SECONDS = 1.0


def wait_for_deliveries(
    deliveries: Iterable[tuple[RunDirectory, str]],
    timeout_seconds: float,
    mark: tuple[int, int, int] | None = None,
    patience_seconds: float = float("inf"),
) -> None:
    """Wait until deliveries are complete, have given up, or the time is over.

    A run that is still being written counts as complete when all that is there has arrived.

    Args:
        deliveries: Runs, each with the name of a backend.
        timeout_seconds: How long to wait at most.
        mark: A place in the journal that each delivery must have passed; None for the end of the run.
        patience_seconds: How long a backend may be unavailable before it is given up for now.
    """
    waiting = list(deliveries)
    if not waiting:
        return
    host().wake()
    total = len(waiting)
    started, started_ns = time.monotonic(), time.time_ns()
    with contextlib.ExitStack() as stack:
        progress = None
        while True:
            out_of_patience_ns = time.time_ns() - patience_seconds * 1e9
            waiting = [
                (run, backend)
                for run, backend in waiting
                if not _is_done(run, backend, mark)
                and not _is_unavailable_since(run, backend, started_ns, out_of_patience_ns)
            ]
            elapsed = time.monotonic() - started
            if not waiting or elapsed >= timeout_seconds:
                return
            host().keep_alive()
            if progress is None and elapsed > PROGRESS_AFTER_SECONDS and sys.stderr.isatty():
                from trackhub.progress import DeliveryProgress

                progress = stack.enter_context(DeliveryProgress(total))
            if progress is not None:
                progress.show(waiting)
            time.sleep(max(min(POLL_SECONDS, timeout_seconds - elapsed), 0.0))


def _is_done(run: RunDirectory, backend: str, mark: tuple[int, int, int] | None) -> bool:
    cursor = run.cursor(backend)
    if cursor.report.suspended:
        return True
    if mark is not None:
        return cursor.has_passed(mark)
    if cursor.closed and not run.remaining(cursor):
        host().forget(run, backend)
        return True
    return cursor.owner > 0 and run.end()[0] == "running" and not run.remaining(cursor)


def _is_unavailable_since(run: RunDirectory, backend: str, started_ns: int, moment_ns: float) -> bool:
    report = run.cursor(backend).report
    since_ns = report.error_since_ns
    return since_ns is not None and max(since_ns, started_ns) < moment_ns
