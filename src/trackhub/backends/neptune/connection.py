"""One run of the client, held at arm's length: nothing it does can take longer than it is given.

Apart from the backend because the client waits for ever in many places: for a server that is away, for a websocket that
is not closed. Each of its calls runs in a daemon thread; a client that is late is cut off, and a new one is opened. The
few private names of the client that are used here (1.x is final) are looked up with a default, so that another client
does without, a little later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from trackhub.backends.neptune.client import ErrorLog, variables
from trackhub.backends.neptune.errors import Attempt, run_is_gone, translated
from trackhub.errors import BackendUnavailable, RecordRejected, StateLost

T = TypeVar("T")

_POLL_SECONDS = 0.02
_STOP_SECONDS = 2.0
_SLOWEST_UPLOAD_BYTES_PER_SECOND = 100_000
_FLUSH_SECONDS = 0.5
"""How soon the client looks by itself whether there is something to send, should it miss that it was told."""
LATECOMER_SECONDS = 300.0
_QUIET = {
    "source_files": [],
    "git_ref": False,
    "capture_stdout": False,
    "capture_stderr": False,
    "capture_hardware_metrics": False,
    "capture_traceback": False,
    "fail_on_exception": False,
}
_SENDERS = ("NeptuneAsyncOpProcessor", "trackhub-neptune")
"""Threads whose requests carry data, unlike pings."""
_bounded: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Session -> the adapter that bounds its requests. The client shares a session between runs and connections, and an
adapter that is replaced keeps its sockets open until it is collected."""
_latecomers: dict[Path, list[tuple[threading.Thread, float]]] = {}
"""Run directory -> threads of clients that were cut off and may still have a request under way, and since when."""


class _Late(Exception):
    """A call of the client took too long."""


class _Lost(Exception):
    """The client cannot reach the server."""


class _Call(threading.Thread, Generic[T]):
    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(name="trackhub-neptune", daemon=True)
        self._call = call
        self.ended = threading.Event()
        self.attempt = Attempt()
        self.result: T

    def run(self) -> None:
        with self.attempt:
            self.result = self._call()
        self.ended.set()


def within(seconds: float, call: Callable[[], T], is_lost: Callable[[], bool] = lambda: False) -> T:
    """What a call gives, if it gives it in time.

    Raises:
        _Late: It does not.
        _Lost: `is_lost` said so first.
    """
    thread = _Call(call)
    thread.start()
    until = time.monotonic() + seconds
    while not thread.ended.wait(_POLL_SECONDS):
        if is_lost():
            raise _Lost
        if time.monotonic() > until:
            raise _Late
    if thread.attempt.error is not None:
        raise thread.attempt.error
    return thread.result


def await_latecomers(directory: Path) -> None:
    """Let what an earlier client of this run still has under way come to its end first.

    Raises:
        BackendUnavailable: It has not, and may still send something.
    """
    now = time.monotonic()
    left = [one for one in _latecomers.pop(directory, []) if one[0].is_alive() and now - one[1] < LATECOMER_SECONDS]
    if left:
        _latecomers[directory] = left
        raise BackendUnavailable("the Neptune client is still waiting for the server's answer to an earlier request")


class Connection:
    """An open run.

    Args:
        client: The client's module.
        client_name: Its name.
        mode: "async" or "offline".
        directory: The run directory.
        data_directory: Where the client keeps its own files.
        timeout_seconds: How long a step may take.
        secrets: Texts that no message may have in it.
        arguments: More for `init_run`.

    Raises:
        BackendUnavailable: It could not be opened, or not in time.
        StateLost: The run that `with_id` names is not there.
    """

    def __init__(
        self,
        client: Any,
        client_name: str,
        mode: str,
        directory: Path,
        data_directory: Path,
        timeout_seconds: float,
        secrets: tuple[str, ...],
        arguments: dict[str, Any],
    ) -> None:
        self._offline = mode == "offline"
        self._directory = directory
        self._timeout_seconds = timeout_seconds
        self._secrets = secrets
        self._log = ErrorLog(client_name, secrets)
        self._late = False
        self._stopping: _Call[None] | None = None
        self.cause: BaseException | None = None
        self._busy: list[float | None] = []
        self._adapter: Any = None
        self.run: Any = None
        attempt = Attempt()
        with variables({"NEPTUNE_DATA_DIRECTORY": str(data_directory)}), attempt:
            self.run = within(timeout_seconds, lambda: self._open(client, mode, arguments))
        if attempt.error is not None:
            self._late = True
            if "with_id" in arguments and run_is_gone(attempt.error):
                raise StateLost("the run is gone from the Neptune server") from None
            raise self._translated(attempt.error, "open the run") from None
        self._consumers = _consumers(self.run)
        self._log.thread_ids = frozenset(consumer.ident for consumer in self._consumers)
        self._log.attach()
        self._bound_requests()

    def _open(self, client: Any, mode: str, arguments: dict[str, Any]) -> Any:
        run = client.init_run(mode=mode, flush_period=_FLUSH_SECONDS, **_QUIET, **arguments)
        if self._late:
            # Nobody waits for it any more.
            run.stop(seconds=0)
        return run

    def send(self, doing: str, call: Callable[[Any], None], size_bytes: int = 0) -> list[str]:
        """Have the client take something in, and wait until the server, or the disk, has it.

        Args:
            doing: What it is, for messages: "send metrics".
            call: Does it, with the client's run.
            size_bytes: Of the files in it.

        Returns:
            What the server has refused of it.

        Raises:
            BackendUnavailable: It was not accepted in time. The connection is of no use any more.
            RecordRejected: It never will be. The connection is of no use any more either.
        """

        def to_the_end() -> None:
            call(self.run)
            self.run.wait(disk_only=self._offline)

        seconds = self._timeout_seconds + size_bytes / _SLOWEST_UPLOAD_BYTES_PER_SECOND
        self._do(doing, to_the_end, seconds)
        return self._log.take_refused()

    def ask(self, doing: str, question: Callable[[Any], T], questions: int = 1) -> T:
        """What the client answers.

        Raises:
            BackendUnavailable: Nothing, in time. The connection is of no use any more.
        """
        return self._do(doing, lambda: question(self.run), self._timeout_seconds + questions)

    def _do(self, doing: str, call: Callable[[], T], seconds: float) -> T:
        attempt = Attempt()
        self._busy.clear()
        with attempt:
            return within(seconds, call, self._is_lost)
        assert attempt.error is not None
        self.cause = self._log.death or attempt.error
        error = self._translated(self.cause, doing)
        self.cut()
        raise error from None

    def _is_lost(self) -> bool:
        # Told to come back later, the client would sleep and send again by itself.
        return bool(self._busy) or any(getattr(one, "last_backoff_time", 0) for one in self._consumers)

    def _translated(self, error: BaseException, doing: str) -> BackendUnavailable | RecordRejected:
        if isinstance(error, _Late):
            return BackendUnavailable(f"Neptune could not {doing}: it did not answer in time")
        if isinstance(error, _Lost):
            if self._busy:
                return BackendUnavailable(
                    f"Neptune could not {doing}: it asks to be left alone for a while", self._busy[-1]
                )
            return BackendUnavailable(f"Neptune could not {doing}: the connection is lost")
        found = translated(error, doing, self._secrets)
        assert isinstance(found, BackendUnavailable | RecordRejected)
        return found

    def cut(self) -> None:
        """Keep the client from sending anything more, as far as it can be kept from it, and let go of it."""
        for consumer in self._consumers:
            consumer.interrupt()
            _latecomers.setdefault(self._directory, []).append((consumer, time.monotonic()))
        _Call(self._let_go).start()
        self._begin_to_stop(0)

    def _let_go(self) -> None:
        """Wake our own thread, which waits for interrupted ones."""
        for consumer in self._consumers:
            consumer.join(LATECOMER_SECONDS)
            waiting = getattr(getattr(consumer, "_processor", None), "_waiting_cond", None)
            if waiting is not None:
                with waiting:
                    waiting.notify_all()

    def stop(self) -> None:
        """End the connection; what does not end in time is left behind."""
        self._begin_to_stop(1)
        assert self._stopping is not None
        self._stopping.ended.wait(_STOP_SECONDS)

    def _begin_to_stop(self, seconds: int) -> None:
        self._log.detach()
        if self._stopping is None:
            self._stopping = _Call(lambda: self._stop_client(seconds))
            self._stopping.start()

    def _stop_client(self, seconds: int) -> None:
        try:
            self.run.stop(seconds=seconds)
        finally:
            adapter, self._adapter = self._adapter, None
            if adapter is not None:
                adapter.let_go()

    def _bound_requests(self) -> None:
        """Give the requests of the client this run's timeout (uploads have none), and hear how long it is to wait."""
        session = getattr(getattr(getattr(self.run, "_backend", None), "_http_client", None), "session", None)
        if session is None:
            return
        adapter = _bounded.get(session)
        if adapter is None:
            adapter = _bounded[session] = _bounded_adapter()
            for scheme in ("http://", "https://"):
                with suppress(AttributeError):
                    session.mount(scheme, adapter)
        adapter.take(self._timeout_seconds)
        self._adapter, self._busy = adapter, adapter.busy


def _bounded_adapter() -> Any:
    from requests.adapters import HTTPAdapter

    class Bounded(HTTPAdapter):  # type: ignore[misc]
        """With one timeout for all, and an ear for how long the server asks to be left alone."""

        def __init__(self) -> None:
            super().__init__()
            self.timeout_seconds = 0.0
            self.busy: list[float | None] = []
            self._runs = 0
            self._lock = threading.Lock()

        def take(self, timeout_seconds: float) -> None:
            """A run makes use of it."""
            with self._lock:
                self._runs += 1
                self.timeout_seconds = timeout_seconds

        def let_go(self) -> None:
            """A run does so no more; with the last one, no connection is kept."""
            with self._lock:
                self._runs -= 1
                if self._runs:
                    return
                # To clear the manager only lets go of its pools, which are closed when they are collected.
                for key in list(self.poolmanager.pools.keys()):
                    if (pool := self.poolmanager.pools.get(key)) is not None:
                        pool.close()
                self.close()

        def send(self, request: Any, *arguments: Any, **named: Any) -> Any:
            named["timeout"] = self.timeout_seconds
            response = super().send(request, *arguments, **named)
            if response.status_code == 429 and threading.current_thread().name in _SENDERS:
                asked = response.headers.get("Retry-After", "").strip()
                self.busy.append(float(asked) if asked.isdecimal() else None)
            return response

    return Bounded()


def _consumers(run: Any) -> list[Any]:
    """The threads of the client that send what was logged; none offline."""
    processor = getattr(run, "_op_processor", None)
    # `minfx` sends to several servers at once.
    parts = getattr(processor, "_processors", None) or [processor]
    found = [getattr(part, "_consumer", None) for part in parts]
    return [one for one in found if isinstance(one, threading.Thread) and hasattr(one, "interrupt")]
