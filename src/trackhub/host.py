"""Where deliveries run: a process of its own for each backend, started as a command and looked after from here.

Apart from the delivery because it knows processes and nothing of backends. The training side keeps the processes
alive and tells them, through a pipe, which runs to deliver; secrets go the same way and are written nowhere. The other
side is `delivery_process.py`, which outlives the training process until everything has arrived. What has to be
delivered in the training process itself (`inline.py`) is looked after by the same thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trackhub.errors import TrackhubError
from trackhub.private import open_file
from trackhub.rundir import RunDirectory
from trackhub.settings import delivery_environment

if TYPE_CHECKING:
    from trackhub.inline import InlineDelivery

SYNC_INTERVAL_SECONDS = 1.0
STAND_BY_SECONDS = 10.0
STAND_BY_TURN_SECONDS = 2.0
"""How much longer each further process of a machine waits, so that one takes over and the others see it."""
NICENESS = 19
FIRST_RESTART_SECONDS = 0.5
LAST_RESTART_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""A process that lived this long is started again at once, however often others have died before."""

_log = logging.getLogger("trackhub")


class DeliveryProcess:
    """The training side of one backend's delivery process. Threads may use it at the same time.

    Args:
        backend: The backend's name.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.process_id: int | None = None
        self._pipe: int | None = None
        self._unsent = b""
        self._runs: dict[Path, dict[str, Any]] = {}
        self._given_ns: dict[Path, int] = {}
        self._deaths = 0
        self._started_at = 0.0
        self._start_at = 0.0
        # A signal handler may finish runs in the middle of anything here.
        self._lock = threading.RLock()

    def deliver(self, run: RunDirectory, options: Mapping[str, Any], *, takes_over: bool = False) -> None:
        """Have a run delivered; starts the process if there is none.

        Args:
            run: The run.
            options: The backend's options.
            takes_over: Whether a delivery of an earlier process has to let go of the run if it makes no progress.
        """
        path = run.path.absolute()
        with self._lock:
            self._runs[path] = {"run": str(path), "options": dict(options), "takes_over": takes_over}
            self._given_ns[path] = time.time_ns()
            if self._has_ended():
                self._start_if_due()
            else:
                self._send(self._runs[path])

    def given_ns(self, run: RunDirectory) -> int:
        """When this process was last told to have that run delivered; 0 for never."""
        return self._given_ns.get(run.path.absolute(), 0)

    def forget(self, run: RunDirectory) -> None:
        """A run is complete: it need not be delivered again if the process has to be started anew."""
        with self._lock:
            self._runs.pop(run.path.absolute(), None)

    def wake(self) -> None:
        """Have the process look at once, without waiting out a backoff."""
        with self._lock:
            if self._pipe is not None:
                self._send({"wake": True})

    def stop(self) -> None:
        """Have the process let go of its runs and end."""
        with self._lock:
            self._runs.clear()
            if self._pipe is not None:
                self._send({"stop": True})
            self._close_pipe()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the process to end; False if it has not by then."""
        until = time.monotonic() + timeout_seconds
        while True:
            with self._lock:
                if self._has_ended():
                    return True
            if time.monotonic() > until:
                return False
            time.sleep(0.02)

    def keep_alive(self) -> None:
        """Start the process anew if it has died while runs were left to deliver; called now and then."""
        with self._lock:
            self._flush()
            if self._has_ended() and self._runs and time.monotonic() >= self._start_at:
                self._runs = {path: message for path, message in self._runs.items() if self._is_needed_for(path)}
                self._start_if_due()

    def _is_needed_for(self, path: Path) -> bool:
        """Whether a process that has ended has left something of a run that another one could do."""
        run = RunDirectory(path)
        try:
            cursor = run.cursor(self.backend)
            gave_up = cursor.report.suspended is not None and cursor.report.updated_ns >= self._given_ns[path]
            return not gave_up and not run.is_settled(cursor)
        except (OSError, TrackhubError):
            # For the delivery to tell.
            return True

    def close_after_fork(self) -> None:
        """In a forked child: let go of the parent's pipe, which must close when the parent ends."""
        self._close_pipe()

    def _has_ended(self) -> bool:
        """Whether there is no process; one that has ended is collected, so that no zombie stays."""
        if self.process_id is None:
            return True
        status = None
        try:
            collected, status = os.waitpid(self.process_id, os.WNOHANG)
            ended = collected != 0
        except ChildProcessError:
            # Somebody else collected our child; ask for the process itself.
            ended = not _process_exists(self.process_id)
        if ended:
            self.process_id = None
            self._close_pipe()
            if status != 0:
                self._note_failure()
        return ended

    def _note_failure(self) -> None:
        """Start again at once after the first failure, and ever later if it goes on like that."""
        now = time.monotonic()
        self._deaths = 1 if now - self._started_at > HEALTHY_SECONDS else self._deaths + 1
        pause = FIRST_RESTART_SECONDS * 2 ** min(self._deaths - 2, 16) if self._deaths > 1 else 0.0
        self._start_at = now + min(pause, LAST_RESTART_SECONDS)

    def _start_if_due(self) -> None:
        if time.monotonic() < self._start_at:
            return
        self._runs = {path: message for path, message in self._runs.items() if RunDirectory(path).exists}
        if not self._runs:
            return
        self._started_at = time.monotonic()
        try:
            self._start(RunDirectory(next(iter(self._runs))).log)
        except OSError as error:
            if self._deaths == 0:
                _log.warning(
                    "trackhub: the delivery process of %s cannot be started (%s); trying again", self.backend, error
                )
            self._close_pipe()
            self._note_failure()

    def _start(self, log: Path) -> None:
        # -P: a file called mlflow.py in the working directory is the user's, not the vendor's.
        arguments = [sys.executable, "-P", "-m", "trackhub.delivery_process", self.backend, str(os.getpid())]
        environment = delivery_environment()
        # Warnings turned into errors are meant for the training's code, not for the vendor's.
        environment.pop("PYTHONWARNINGS", None)
        environment.pop("PYTHONINSPECT", None)
        with contextlib.ExitStack() as descriptors:
            reader, self._pipe = os.pipe()
            descriptors.callback(os.close, reader)
            os.set_blocking(self._pipe, False)
            # Told before it begins: if this process is killed right after, the other one still knows what to deliver.
            for message in self._runs.values():
                self._send(message)
            output = _open_log(log)
            descriptors.callback(os.close, output)
            # posix_spawn does not copy the training process, however large it is.
            self.process_id = os.posix_spawn(
                sys.executable,
                arguments,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reader, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                ],
                setsid=True,
                # What the training process ignores or blocks is its own affair.
                setsigmask=(),
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        _yield_to_training(self.process_id)

    def _send(self, message: Mapping[str, Any]) -> None:
        self._unsent += json.dumps(message).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        while self._unsent and self._pipe is not None:
            try:
                sent = os.write(self._pipe, self._unsent)
            except BlockingIOError:
                return
            except BrokenPipeError:
                # It has died, and is told all of this again when it is started anew.
                self._close_pipe()
                return
            self._unsent = self._unsent[sent:]

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        self._unsent = b""


class _StandBy:
    """A run that another process has delivered, for as long as one does.

    Args:
        run: The run.
        backend: The backend's name.
        options: Its options.
        patience_seconds: How long nobody may deliver before this process does.
    """

    def __init__(self, run: RunDirectory, backend: str, options: Mapping[str, Any], patience_seconds: float) -> None:
        self.run, self.backend, self.options = run, backend, options
        self.given_ns = time.time_ns()
        self._patience_seconds = patience_seconds
        self._cursor_file = run.cursor_file(backend)
        self._alone_since: float | None = None
        self._look_at = 0.0

    def is_needed(self) -> bool:
        """Whether nobody has delivered the run for so long that it is for this process to do."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + SYNC_INTERVAL_SECONDS / 2
        if self._cursor_file.is_claimed:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        return self._alone_since is not None and now - self._alone_since >= self._patience_seconds


class Host:
    """All deliveries of this process, and the thread that looks after them and syncs journals to disk."""

    def __init__(self) -> None:
        self._processes: dict[str, DeliveryProcess] = {}
        self._inline: dict[tuple[Path, str], InlineDelivery] = {}
        self._standing_by: dict[tuple[Path, str], _StandBy] = {}
        self._syncs: dict[object, Callable[[], None]] = {}
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._delivering_threads: set[int] = set()
        self._put_off: dict[int, Callable[[], None]] = {}
        self._troubled: set[object] = set()

    def watch(self, key: object, sync: Callable[[], None]) -> None:
        """Call `sync` every second from now on, off the training thread."""
        with self._lock:
            self._syncs[key] = sync
            if self._thread is None:
                thread = threading.Thread(target=self._look_after, name="trackhub", daemon=True)
                # At the interpreter's end, and where threads have run out, there is none: only fsync then waits.
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread

    def unwatch(self, key: object) -> None:
        """Stop calling what `watch` was given for this key."""
        with self._lock:
            self._syncs.pop(key, None)
            self._troubled.discard(key)

    def given_ns(self, run: RunDirectory, backend: str) -> int:
        """When `deliver` was last called for a run and a backend; 0 for never."""
        if inline := self._inline.get((run.path.absolute(), backend)):
            return inline.given_ns
        if standing_by := self._standing_by.get((run.path.absolute(), backend)):
            return standing_by.given_ns
        process = self._processes.get(backend)
        return process.given_ns(run) if process else 0

    def deliver(
        self, run: RunDirectory, backends: Mapping[str, Mapping[str, Any]], *, takes_over: bool = False
    ) -> None:
        """Have a run delivered to these backends, with these options.

        Args:
            run: The run.
            backends: Backend -> its options.
            takes_over: Whether a delivery of an earlier process has to let go of the run if it makes no progress.
        """
        for name, options in backends.items():
            with self._lock:
                process = self._processes.setdefault(name, DeliveryProcess(name))
            process.deliver(run, options, takes_over=takes_over)

    def deliver_here(self, run: RunDirectory, backend: str, make_delivery: Callable[[], InlineDelivery]) -> None:
        """Have a run delivered in this process, now and then and whenever somebody waits.

        Args:
            run: The run.
            backend: The backend's name.
            make_delivery: Makes the delivery, unless the run is being delivered to that backend already.
        """
        place = run.path.absolute(), backend
        with self._lock:
            if place not in self._inline:
                self._inline[place] = make_delivery()

    def stand_by(self, run: RunDirectory, backend: str, options: Mapping[str, Any], turn: int = 0) -> None:
        """Have a run delivered that another process has begun, if and when nobody delivers it for some seconds.

        Args:
            run: The run.
            backend: The backend's name.
            options: Its options.
            turn: Which of the machine's processes this is: the first takes over first.
        """
        place = run.path.absolute(), backend
        patience_seconds = STAND_BY_SECONDS + turn * STAND_BY_TURN_SECONDS
        with self._lock:
            process = self._processes.get(backend)
            if place not in self._standing_by and not (process and process.given_ns(run)):
                self._standing_by[place] = _StandBy(run, backend, options, patience_seconds)

    def wake(self) -> None:
        """Have all deliveries look at once, and those of this process deliver all they can."""
        for process in list(self._processes.values()):
            process.wake()
        for inline in list(self._inline.values()):
            inline.want()
        self.advance(to_the_end=True)

    def advance(self, *, to_the_end: bool) -> None:
        """Deliver what is due in this process.

        Args:
            to_the_end: Whether all of it; else a part of each run.
        """
        thread = threading.get_ident()
        outermost = thread not in self._delivering_threads
        self._delivering_threads.add(thread)
        try:
            for place, inline in list(self._inline.items()):
                inline.advance(to_the_end=to_the_end)
                if inline.ended:
                    self._inline.pop(place, None)
        finally:
            if outermost:
                self._delivering_threads.discard(thread)
                if callback := self._put_off.pop(thread, None):
                    callback()

    @property
    def delivers_below(self) -> bool:
        """Whether what this thread does comes in the middle of a delivery in it, as a signal handler may."""
        return threading.get_ident() in self._delivering_threads

    def after_delivery(self, callback: Callable[[], None]) -> None:
        """Call something as soon as the delivery in this thread, in whose middle this comes, is done with its work."""
        self._put_off[threading.get_ident()] = callback

    def forget(self, run: RunDirectory, backend: str) -> None:
        """A run is complete at a backend."""
        with self._lock:
            self._standing_by.pop((run.path.absolute(), backend), None)
        if process := self._processes.get(backend):
            process.forget(run)

    def keep_alive(self) -> None:
        """Start anew what has died; the thread does this every second, and whoever waits may do it more often."""
        for place, one in list(self._standing_by.items()):
            if one.is_needed() and self._standing_by.pop(place, None) is not None:
                self.deliver(one.run, {one.backend: one.options})
        for process in list(self._processes.values()):
            process.keep_alive()

    def stop(self, timeout_seconds: float) -> None:
        """End all delivery processes; what they have not delivered stays in the journals."""
        with self._lock:
            self._standing_by.clear()
            processes, self._processes = list(self._processes.values()), {}
            inlines, self._inline = list(self._inline.values()), {}
        for process in processes:
            process.stop()
        until = time.monotonic() + timeout_seconds
        for inline in inlines:
            inline.stop(until - time.monotonic())
        for process in processes:
            if not process.wait(until - time.monotonic()) and process.process_id is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.process_id, signal.SIGKILL)
                process.wait(timeout_seconds)

    def close_after_fork(self) -> None:
        """In a forked child: let go of what belongs to the parent's host."""
        for process in self._processes.values():
            process.close_after_fork()
        for inline in self._inline.values():
            inline.abandon_after_fork()

    def _look_after(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(SYNC_INTERVAL_SECONDS)
            for key, sync in list(self._syncs.items()):
                self._attempt(key, f"run {key} cannot be written to disk now", sync)
            self._attempt("processes", "delivery processes cannot be looked after", self.keep_alive)
            self._attempt("inline", "nothing can be delivered in this process", lambda: self.advance(to_the_end=False))

    def _attempt(self, key: object, told: str, part: Callable[[], None]) -> None:
        """Do a part of what the thread is for; what it raises is told until it works again, and stops no other part."""
        try:
            part()
            self._troubled.discard(key)
        # Whatever it is: there is nobody else in this thread to take it, and all runs of the process depend on it.
        except BaseException as error:  # noqa: BLE001
            if key not in self._troubled:
                self._troubled.add(key)
                _log.warning(
                    "trackhub: %s (%s: %s). What was logged is kept; this is tried again, and training goes on.",
                    told,
                    type(error).__name__,
                    error,
                    # A disk that fails is no bug, of which people would want to see the place.
                    exc_info=None if isinstance(error, OSError) else error,
                )


_host = Host()


def host() -> Host:
    """This process's host."""
    return _host


def _start_afresh_in_child() -> None:
    global _host
    _host.close_after_fork()
    _host = Host()


os.register_at_fork(after_in_child=_start_afresh_in_child)


def _open_log(log: Path) -> int:
    """Where the process says what it has to say; nowhere, if that cannot be written."""
    try:
        return open_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _yield_to_training(process_id: int) -> None:
    """Have a process run only where nothing else wants to, from its very start.

    A session of its own is a scheduling group of its own (see sched(7), autogroup), and a nice value counts only inside
    one: so the group needs one too, where the kernel has them.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process_id, NICENESS)
    with contextlib.suppress(OSError):
        Path(f"/proc/{process_id}/autogroup").write_text(str(NICENESS))


def _process_exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
