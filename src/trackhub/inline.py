"""Delivery in the training process itself, for a backend whose objects live there.

Apart from the host because it is about when the training process may be kept busy: a little now and then in the
background, and all that is left when somebody waits for it.
"""

from __future__ import annotations

import threading
import time

from trackhub.backend import Backend, BackendOptions
from trackhub.delivery import Delivery
from trackhub.plugins import version_of
from trackhub.rundir import RunDirectory

BUSY_SHARE = 0.1
"""How much of the time the background may take at most, while a run logs faster than it is shown."""


class InlineDelivery:
    """One run on its way to one backend of this process. Threads may use it at the same time; one of them delivers.

    Args:
        run: The run.
        name: The backend's name.
        kind: The backend.
        options: Its options: these very objects, for they hold what is filled.
    """

    def __init__(self, run: RunDirectory, name: str, kind: type[Backend], options: BackendOptions) -> None:
        def make_backend() -> Backend:
            self._delivery.version = version_of(name, kind)
            return kind(options)

        self.given_ns = time.time_ns()
        self.ended = False
        self._delivery = Delivery(run, name, make_backend, lasting=False)
        self._lock = threading.Lock()
        self._due = 0.0
        self._wanted = False
        # From now on others can tell that somebody delivers.
        self._delivery.claim()

    def want(self) -> None:
        """Somebody waits: what is left is due now, whatever came of the last attempt."""
        self._delivery.retry_now()
        self._wanted = True

    def advance(self, *, to_the_end: bool) -> None:
        """Deliver if it is due, and unless it is being done already: in another thread, or below a signal handler.

        Args:
            to_the_end: Whether to deliver all there is; else a part of it.
        """
        if self.ended or not (self._wanted or time.monotonic() >= self._due):
            return
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._wanted = False
            started = time.monotonic()
            again = self._delivery.pump()
            while again == 0.0 and to_the_end:
                again = self._delivery.pump()
            if again is None:
                self.ended = True
                self._delivery.release()
                return
            now = time.monotonic()
            self._due = now + max(again, (now - started) / BUSY_SHARE)
        finally:
            self._lock.release()

    def stop(self, timeout_seconds: float) -> None:
        """Let go of the run as it stands.

        Args:
            timeout_seconds: How long to wait for another thread that delivers.
        """
        if self._lock.acquire(timeout=max(timeout_seconds, 0.0)):
            self.ended = True
            self._delivery.release()
            self._lock.release()

    def abandon_after_fork(self) -> None:
        """In a forked child: let go of the parent's files without touching what is in them."""
        self.ended = True
        self._delivery.abandon_after_fork()
