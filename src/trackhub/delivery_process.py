"""The delivery process: `python -P -m trackhub.delivery_process BACKEND PARENT`, a plain loop over one backend's runs.

Apart from its other side, `host.py`, because the training process never loads what delivers. It is told through its
standard input which runs to deliver, and outlives the training process until everything has arrived.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from trackhub import redaction, settings
from trackhub.backend import Backend
from trackhub.delivery import Delivery
from trackhub.plugins import find_backend, version_of
from trackhub.rundir import RunDirectory

POLL_SECONDS = 1.0
MAX_LINE_CHARACTERS = 1 << 16
ENDS_IDLE_AFTER_SECONDS = 30.0
OUTLIVES_TRAINING_SECONDS = 24 * 3600.0
TERMINATION_GRACE_SECONDS = 20.0
HANGING_AFTER_GRACE_SECONDS = 5.0


class DeliveryServer:
    """One backend, any number of runs, one thread.

    Args:
        backend: The backend's name.
        parent_process_id: The process that started this one.
    """

    def __init__(self, backend: str, parent_process_id: int) -> None:
        self._name = backend
        self._parent = parent_process_id
        self._deliveries: dict[str, Delivery] = {}
        self._options: dict[str, dict[str, Any]] = {}
        self._due: dict[str, float] = {}
        self._input_open = True
        self._input = b""
        self._stop_at: float | None = None
        self._hand_over = False
        self._wake_pipe = os.pipe()

    def watch_signals(self) -> None:
        """Have signals end a pause at once, and be acted on between two pieces of work."""
        for end in self._wake_pipe:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_pipe[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.terminate)
        signal.signal(signal.SIGUSR1, self.hand_over)

    def hand_over(self, *_: object) -> None:
        """On SIGUSR1: somebody else wants to deliver what is in trouble here."""
        self._hand_over = True

    def terminate(self, *_: object) -> None:
        """On SIGTERM: deliver what can be delivered in the grace that is left."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + TERMINATION_GRACE_SECONDS
            _end_if_hanging(TERMINATION_GRACE_SECONDS + HANGING_AFTER_GRACE_SECONDS)

    def serve(self) -> None:
        """Deliver until the training process has gone and all its runs have ended."""
        orphaned_at: float | None = None
        idle_since: float | None = None
        wait = 0.0
        while True:
            self._listen(wait)
            if self._hand_over:
                self._hand_over = False
                for delivery in self._deliveries.values():
                    delivery.hand_over()
            wait = self._pump_all()
            now = time.monotonic()
            if orphaned_at is None and (os.getppid() != self._parent or not self._input_open):
                orphaned_at = now
                # Whoever takes part in the run now has newer options.
                for delivery in self._deliveries.values():
                    delivery.takes_over = False
            if self._deliveries:
                idle_since = None
            elif idle_since is None:
                idle_since = now
            if self._is_over(now, orphaned_at, idle_since):
                break
        self._drop(list(self._deliveries))

    def _is_over(self, now: float, orphaned_at: float | None, idle_since: float | None) -> bool:
        if self._stop_at is not None and now > self._stop_at:
            return True
        if idle_since is None:
            return orphaned_at is not None and now - orphaned_at > OUTLIVES_TRAINING_SECONDS
        # With nothing left to deliver: at once if nobody can ask for more, else after waiting a while for the next run.
        alone = orphaned_at is not None or self._stop_at is not None
        return alone or now - idle_since > ENDS_IDLE_AFTER_SECONDS

    def _pump_all(self) -> float:
        """Do what is due; seconds until something else is."""
        if self._stop_at is None and any(due <= time.monotonic() for due in self._due.values()):
            _end_if_hanging(OUTLIVES_TRAINING_SECONDS)
        next_at = time.monotonic() + POLL_SECONDS
        for path, delivery in list(self._deliveries.items()):
            now = time.monotonic()
            if self._stop_at is not None and now > self._stop_at:
                break
            if self._due[path] <= now:
                again = delivery.pump()
                if again is None:
                    self._drop([path])
                    continue
                self._due[path] = time.monotonic() + again
            next_at = min(next_at, self._due[path])
        return max(next_at - time.monotonic(), 0.0)

    def _drop(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._deliveries.pop(path).release()
            del self._due[path], self._options[path]

    def _listen(self, wait_seconds: float) -> None:
        inputs = [self._wake_pipe[0], *([0] if self._input_open else [])]
        ready = select.select(inputs, [], [], wait_seconds)[0]
        if self._wake_pipe[0] in ready:
            os.read(self._wake_pipe[0], 4096)
        if 0 not in ready:
            return
        received = os.read(0, 1 << 16)
        if not received:
            self._input_open = False
        *lines, self._input = (self._input + received).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, message: dict[str, Any]) -> None:
        if "run" in message:
            self._add(message["run"], message["options"], takes_over=message["takes_over"])
        elif "wake" in message:
            for path, delivery in self._deliveries.items():
                delivery.retry_now()
                self._due[path] = 0.0
        elif "stop" in message:
            self._stop_at = 0.0

    def _add(self, path: str, options: dict[str, Any], *, takes_over: bool) -> None:
        def make_backend() -> Backend:
            # Looked up here, where an error suspends the delivery and is in its report.
            kind = find_backend(self._name)
            settings.learn_secrets(kind.Options, options)
            delivery.version = version_of(self._name, kind)
            return kind(kind.Options.model_validate(options))

        if self._options.get(path) != options:
            if path in self._deliveries:
                self._drop([path])
            delivery = Delivery(
                RunDirectory(Path(path)), self._name, make_backend, hands_over=True, takes_over=takes_over
            )
            self._deliveries[path], self._options[path] = delivery, options
        self._due[path] = 0.0


class _Redacted(io.TextIOBase):
    """A stream into the log that keeps secrets out of it, whoever writes: vendors print, warn and log as they like.

    Args:
        stream: Where the lines go. A line is written when it is whole, for a secret may come in pieces.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""
        self._lock = threading.RLock()

    def writable(self) -> bool:
        """As any stream into a file."""
        return True

    def fileno(self) -> int:
        """Of the log itself."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Take text in."""
        with self._lock:
            whole, newline, self._line = (self._line + text).rpartition("\n")
            if len(self._line) > MAX_LINE_CHARACTERS:
                whole, newline, self._line = whole + newline + self._line, "\n", ""
            if whole or newline:
                self._stream.write(redaction.hide(whole) + newline)
                self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Write the beginning of a line, too."""
        with self._lock:
            self._stream.write(redaction.hide(self._line))
            self._stream.flush()
            self._line = ""


def _end_if_hanging(seconds: float) -> None:
    """Have the process end, its stack in the log, unless this is called again in time.

    A backend that never comes back leaves no other way out: whoever holds the interpreter is not stopped by a signal.
    What it had not written is delivered by the next process, or by `trackhub sync`.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def main(arguments: list[str]) -> None:
    """Be the delivery process.

    Args:
        arguments: The backend's name and the id of the process that started this one.
    """
    # What the training process left open (sockets, devices) is none of ours, and must close when it ends.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    with contextlib.suppress(OSError, ValueError):
        # Each run keeps a few files open, and there may be hundreds of child runs.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Vendors' SDKs load hundreds of thousands of lasting objects and make many short-lived ones: with Python's own
    # thresholds a fifth of an MLflow delivery's CPU time goes into looking for cycles.
    gc.set_threshold(100_000, 50, 50)
    settings.learn_secrets_of_environment()
    sys.stdout, sys.stderr = _Redacted(sys.stdout), _Redacted(sys.stderr)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server = DeliveryServer(arguments[0], int(arguments[1]))
    server.watch_signals()
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
