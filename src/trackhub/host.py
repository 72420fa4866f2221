"""Where deliveries run: a process of its own for each backend, started as a command and looked after from here.

Apart from the delivery because it knows processes and nothing of backends. The training side keeps the processes
alive and tells them, through a pipe, which runs to deliver; secrets go the same way and are written nowhere. The other
side, `python -m trackhub.host`, is the delivery process: a plain loop over its runs that outlives the training process
until everything has arrived.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trackhub.rundir import RunDirectory
from trackhub.settings import delivery_environment

if TYPE_CHECKING:
    from trackhub.delivery import Delivery

SYNC_INTERVAL_SECONDS = 1.0
IDLE_POLL_SECONDS = 1.0
LONGEST_RESTART_SECONDS = 30.0
OUTLIVES_TRAINING_SECONDS = 24 * 3600.0
TERMINATION_GRACE_SECONDS = 20.0
NICENESS = 10

_log = logging.getLogger("trackhub")


class DeliveryProcess:
    """The training side of one backend's delivery process.

    Args:
        backend: The backend's name.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.process_id: int | None = None
        self._pipe: int | None = None
        self._unsent = b""
        self._runs: dict[Path, dict[str, Any]] = {}
        self._starts = 0
        self._start_again_at = 0.0
        self._lock = threading.Lock()

    def deliver(self, run: RunDirectory, options: Mapping[str, Any]) -> None:
        """Have a run delivered; starts the process if there is none."""
        path = run.path.absolute()
        with self._lock:
            self._runs[path] = dict(options)
            if self.process_id is None:
                self._start(run.log)
            else:
                self._send(_run_message(path, self._runs[path]))

    def forget(self, run: RunDirectory) -> None:
        """A run is complete: it need not be delivered again if the process has to be started anew."""
        with self._lock:
            self._runs.pop(run.path.absolute(), None)

    def wake(self) -> None:
        """Have the process look at once, without waiting out a backoff."""
        with self._lock:
            self._send({"wake": True})

    def stop(self) -> None:
        """Have the process let go of its runs and end."""
        with self._lock:
            self._send({"stop": True})
            self._close_pipe()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the process to end; False if it has not by then."""
        until = time.monotonic() + timeout_seconds
        while not self._has_ended():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def keep_alive(self) -> None:
        """Start the process anew if it has died while runs were left to deliver; called now and then."""
        with self._lock:
            self._flush()
            if not self._runs or not self._has_ended():
                return
            now = time.monotonic()
            if self._start_again_at == 0.0:
                pause = min(0.5 * 2 ** min(self._starts - 1, 10), LONGEST_RESTART_SECONDS)
                self._start_again_at = now + (pause if self._starts > 1 else 0.0)
            if now >= self._start_again_at:
                self._start(RunDirectory(next(iter(self._runs))).log)

    def _has_ended(self) -> bool:
        if self.process_id is None:
            return True
        try:
            ended = os.waitpid(self.process_id, os.WNOHANG)[0] != 0
        except ChildProcessError:
            # Somebody else collected our child; ask for the process itself.
            ended = not _process_exists(self.process_id)
        if ended:
            self.process_id = None
            self._close_pipe()
        return ended

    def _start(self, log: Path) -> None:
        reader, writer = os.pipe()
        # -P: a file called mlflow.py in the working directory is the user's, not the vendor's.
        arguments = [sys.executable, "-P", "-m", "trackhub.host", self.backend, str(os.getpid())]
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # posix_spawn does not copy the training process, however large it is.
            self.process_id = os.posix_spawn(
                sys.executable,
                arguments,
                delivery_environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reader, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                ],
                setsid=True,
            )
        finally:
            os.close(reader)
            os.close(output)
        os.set_blocking(writer, False)
        self._pipe = writer
        self._starts += 1
        self._start_again_at = 0.0
        self._unsent = b""
        for path, options in self._runs.items():
            self._send(_run_message(path, options))

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
                self._close_pipe()
                return
            self._unsent = self._unsent[sent:]

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


class Host:
    """All delivery processes of this process, and the thread that looks after them and syncs journals to disk."""

    def __init__(self) -> None:
        self._processes: dict[str, DeliveryProcess] = {}
        self._syncs: dict[object, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._troubled: set[object] = set()

    def watch(self, key: object, sync: Callable[[], None]) -> None:
        """Call `sync` every second from now on, off the training thread."""
        with self._lock:
            self._syncs[key] = sync
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_after, name="trackhub", daemon=True)
                self._thread.start()

    def unwatch(self, key: object) -> None:
        """Stop calling what `watch` was given for this key."""
        with self._lock:
            self._syncs.pop(key, None)
            self._troubled.discard(key)

    def deliver(self, run: RunDirectory, backends: Mapping[str, Mapping[str, Any]]) -> None:
        """Have a run delivered to these backends, with these options."""
        for name, options in backends.items():
            with self._lock:
                process = self._processes.setdefault(name, DeliveryProcess(name))
            process.deliver(run, options)

    def wake(self) -> None:
        """Have all deliveries look at once."""
        for process in list(self._processes.values()):
            process.wake()

    def forget(self, run: RunDirectory, backend: str) -> None:
        """A run is complete at a backend."""
        if process := self._processes.get(backend):
            process.forget(run)

    def keep_alive(self) -> None:
        """Start anew what has died; the thread does this every second, and whoever waits may do it more often."""
        for process in list(self._processes.values()):
            process.keep_alive()

    def stop(self, timeout_seconds: float) -> None:
        """End all delivery processes; what they have not delivered stays in the journals."""
        for process in self._processes.values():
            process.stop()
        for process in self._processes.values():
            if not process.wait(timeout_seconds) and process.process_id is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.process_id, signal.SIGKILL)
                process.wait(timeout_seconds)
        self._processes.clear()

    def _look_after(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(SYNC_INTERVAL_SECONDS)
            for key, sync in list(self._syncs.items()):
                try:
                    sync()
                    self._troubled.discard(key)
                except OSError as error:
                    if key not in self._troubled:
                        self._troubled.add(key)
                        _log.warning(
                            "trackhub: run %s: the journal cannot be written (%s). Records are kept in memory and "
                            "written as soon as the disk takes them; training goes on.",
                            key,
                            error,
                        )
            self.keep_alive()


_host = Host()


def host() -> Host:
    """This process's host."""
    return _host


def _start_afresh_in_child() -> None:
    global _host
    _host = Host()


os.register_at_fork(after_in_child=_start_afresh_in_child)


def _run_message(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"run": str(path), "options": options}


def _process_exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Server:
    """The delivery process: one backend, any number of runs, one thread."""

    def __init__(self, backend: str, parent_process_id: int) -> None:
        # Imported here: the training process hosts without ever loading what delivers.
        from trackhub.plugins import find_backend, version_of

        self._name = backend
        self._backend = find_backend(backend)
        self._version = version_of(backend, self._backend)
        self._parent = parent_process_id
        self._deliveries: dict[str, Delivery] = {}
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

    def serve(self) -> None:
        """Deliver until the training process has gone and all its runs have ended."""
        orphaned_since: float | None = None
        wait = 0.0
        while True:
            self._listen(wait)
            if self._hand_over:
                self._hand_over = False
                self._drop(lambda delivery: bool(delivery.troubled))
            wait = IDLE_POLL_SECONDS
            for delivery in list(self._deliveries.values()):
                again = delivery.pump()
                wait = min(wait, IDLE_POLL_SECONDS if again is None else again)
            self._drop(lambda delivery: delivery.closed or not delivery.run.exists)
            now = time.monotonic()
            if orphaned_since is None and (os.getppid() != self._parent or not self._input_open):
                orphaned_since = now
            waiting = any(not delivery.suspended for delivery in self._deliveries.values())
            if orphaned_since is not None and (not waiting or now - orphaned_since > OUTLIVES_TRAINING_SECONDS):
                break
            if self._stop_at is not None and (now > self._stop_at or not waiting):
                break
        self._drop(lambda _: True)

    def _drop(self, which: Callable[[Delivery], bool]) -> None:
        for path, delivery in list(self._deliveries.items()):
            if which(delivery):
                delivery.release()
                del self._deliveries[path]

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
            self._add(message["run"], message["options"])
        elif "wake" in message:
            for delivery in self._deliveries.values():
                delivery.retry_now()
        elif "stop" in message:
            self._stop_at = 0.0

    def _add(self, path: str, options: dict[str, Any]) -> None:
        from trackhub.delivery import Delivery

        if path in self._deliveries:
            self._deliveries[path].release()
        backend = self._backend
        self._deliveries[path] = Delivery(
            RunDirectory(Path(path)),
            self._name,
            lambda: backend(backend.Options.model_validate(options)),
            self._version,
        )


def main(arguments: list[str]) -> None:
    """Be the delivery process.

    Args:
        arguments: The backend's name and the id of the process that started this one.
    """
    # What the training process left open (sockets, devices) is none of ours, and must close when it ends.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server = _Server(arguments[0], int(arguments[1]))
    server.watch_signals()
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
