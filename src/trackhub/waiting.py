"""Waiting for deliveries, with a progress bar where it takes long; what `flush` and `finish` and `sync` have in common.

Apart from the tracker because a wait needs nothing but run directories: it reads the cursors the deliveries save.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trackhub import active
from trackhub.cursor import Cursor
from trackhub.host import Host
from trackhub.journal import JournalReader, writer_is_alive
from trackhub.rundir import RunDirectory

POLL_SECONDS = 0.02
LAST_POLL_SECONDS = 1.0
START_SECONDS = 30.0
"""How long a delivery process may take to load a vendor's SDK and to claim a run, on a machine that is busy."""
PAUSES_A_POLL = 4
"""A pause lasts so many times what the look before it took: with 100,000 metrics a cursor has megabytes, and who waits
must not take the processor from the delivery that is waited for."""
PROGRESS_AFTER_SECONDS = 1.0

Mark = tuple[int, int, int]
"""A place in a journal: writer, segment, offset."""


@dataclass(frozen=True)
class Awaited:
    """One delivery that is waited for.

    Args:
        run: The run.
        backend: The backend's name.
        marks: The places in the journal that must have been delivered; None for all there is, and the run's end unless
            it is still being written.
        end: With marks: whether the run must have been ended at the backend, too, unless another process holds it.
    """

    run: RunDirectory
    backend: str
    marks: tuple[Mark, ...] | None = None
    end: bool = False


def wait_for_deliveries(
    host: Host,
    deliveries: Iterable[Awaited],
    timeout_seconds: float,
    patience_seconds: float = float("inf"),
    termination_timeout_seconds: float = float("inf"),
) -> list[Awaited]:
    """Wait until deliveries are complete, have given up, or the time is over.

    Args:
        host: Has been given the runs, unless other processes deliver them.
        deliveries: What to wait for.
        timeout_seconds: How long to wait at most.
        patience_seconds: How long a backend may be unavailable, or its process end before it has delivered anything,
            before it is given up for now.
        termination_timeout_seconds: How long to wait at most after SIGTERM, be it before or during the wait.

    Returns:
        Those that are complete. Asked again, one might not be: another process may have written more since.
    """
    waiting = list(deliveries)
    if not waiting:
        return []
    wait = _Wait(host, patience_seconds)
    host.wake()
    total = len(waiting)
    with contextlib.ExitStack() as stack:
        progress = None
        while True:
            looked = time.monotonic()
            waiting = [one for one in waiting if not wait.is_over_for(one)]
            now = time.monotonic()
            elapsed = now - wait.began
            pause = max(POLL_SECONDS, PAUSES_A_POLL * (now - looked))
            left = timeout_seconds - elapsed
            if (terminated := active.seconds_since_termination()) is not None:
                left = min(left, termination_timeout_seconds - terminated)
            if not waiting or left <= 0:
                return wait.complete
            host.keep_alive()
            host.advance(to_the_end=True)
            if progress is None and elapsed > PROGRESS_AFTER_SECONDS and sys.stderr is not None and sys.stderr.isatty():
                from trackhub.progress import DeliveryProgress

                progress = stack.enter_context(DeliveryProgress(total))
            if progress is not None:
                progress.show([(one.run, one.backend) for one in waiting])
            # Dozens of ranks may wait for one delivery, which yields to them: the longer it takes, the less often each
            # looks.
            time.sleep(min(max(pause, min(elapsed / 20, LAST_POLL_SECONDS)), left))


def backends_complete(run: RunDirectory, complete: Iterable[Awaited]) -> list[str]:
    """The backends of a run among what `wait_for_deliveries` gave back."""
    return [one.backend for one in complete if one.run is run]


def has_given_up(host: Host, run: RunDirectory, backend: str, cursor: Cursor) -> bool:
    """Whether the delivery was suspended, and not before the host was last told to have the run delivered."""
    return cursor.report.suspended is not None and _is_of_now(host, run, backend, cursor)


def _is_of_now(host: Host, run: RunDirectory, backend: str, cursor: Cursor) -> bool:
    """Whether the report is of the delivery that goes on now, not of an earlier one that is about to begin again."""
    return cursor.report.updated_ns >= host.given_ns(run, backend)


class _Wait:
    """One wait: what it has found so far, and what it puts up with.

    Args:
        host: Whose deliveries are waited for.
        patience_seconds: How long a backend may be unavailable.
    """

    def __init__(self, host: Host, patience_seconds: float) -> None:
        self.began = time.monotonic()
        self.complete: list[Awaited] = []
        self._host = host
        self._began_ns = time.time_ns()
        self._patience_seconds = patience_seconds
        self._last_saved: dict[tuple[Path, str], tuple[int, float]] = {}

    def is_over_for(self, one: Awaited) -> bool:
        """Whether there is nothing more to wait for."""
        cursor = one.run.cursor(one.backend)
        if _is_complete(one, cursor):
            self.complete.append(one)
            if cursor.closed:
                self._host.forget(one.run, one.backend)
            return True
        if has_given_up(self._host, one.run, one.backend, cursor) or not one.run.exists:
            return True
        return self._is_unavailable(one, cursor) or self._ends_again_and_again(one, cursor)

    def _is_unavailable(self, one: Awaited, cursor: Cursor) -> bool:
        """Whether the delivery has said for too long that its backend is not available."""
        since_ns = cursor.report.error_since_ns
        if since_ns is None or not _is_of_now(self._host, one.run, one.backend, cursor):
            return False
        return max(since_ns, self._began_ns) < time.time_ns() - self._patience_seconds * 1e9

    def _ends_again_and_again(self, one: Awaited, cursor: Cursor) -> bool:
        """Whether nobody is at work, and has saved anything for too long: what ends at each start tells no trouble."""
        now, place = time.monotonic(), (one.run.path, one.backend)
        saved_ns, since = self._last_saved.get(place, (cursor.report.updated_ns, self.began))
        if cursor.report.updated_ns != saved_ns:
            since = now
        self._last_saved[place] = cursor.report.updated_ns, since
        return now - since > max(self._patience_seconds, START_SECONDS) and not (
            one.run.cursor_file(one.backend).is_claimed
        )


def _is_complete(one: Awaited, cursor: Cursor) -> bool:
    def is_held() -> bool:
        return cursor.holders.status(lambda writer: writer_is_alive(one.run.journal, writer)) is None

    if one.marks is not None:
        # The end is waited for by the last process that holds the run.
        return all(map(cursor.has_passed, one.marks)) and (cursor.closed or not one.end or is_held())
    if not cursor.closed and not is_held():
        return False
    # Cheap on purpose, as this is asked many times a second: whether there is one more record, not how many.
    reader = JournalReader(one.run.journal)
    try:
        if not reader.read(cursor.position, max_points=1).empty:
            return False
    finally:
        reader.close()
    return cursor.closed or is_held()
