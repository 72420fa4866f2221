"""A small HTTP proxy in front of a real server, with faults that are switched on and off while it runs.

    with faulty_proxy("http://127.0.0.1:5000") as proxy:
        proxy.fail("refuse")                                    # nobody listens any more
        proxy.fail("black_hole")                                # takes requests, never answers
        proxy.fail("drip")                                      # answers byte by byte
        proxy.fail("status", status=429, headers={"Retry-After": "1"})
        proxy.fail("lose_answer", only="/runs/create", times=1) # the server does it, nobody hears of it
        proxy.fail("late", only="/runs/create", times=1, seconds=3)  # the server does it after the next attempt
        proxy.heal()

What waits in a black hole is dropped when it is healed, and what drips is sent at once.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from ports import free_port

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_DRIP_SECONDS = 0.2
_LATEST_SECONDS = 60.0


@dataclass
class Fault:
    """Something that goes wrong with requests.

    Args:
        kind: See the module.
        only: What the path has in it of requests that it happens to.
        times: How often; None for until it is healed.
        seconds: How long the client is kept waiting before its connection is closed.
    """

    kind: str
    only: str = ""
    times: int | None = None
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0


class FaultyProxy:
    """See the module.

    Args:
        upstream: URL of the real server.
        certificate: Makes it speak TLS; may be replaced while it runs.
    """

    def __init__(self, upstream: str, certificate: ssl.SSLContext | None = None) -> None:
        address = urlsplit(upstream)
        self.upstream = address.hostname or "127.0.0.1", address.port or 80
        self.certificate = certificate
        self.met: Counter[str] = Counter()
        """How often a fault has happened, by its kind and what it happens to: `lose_answer /runs/create`."""
        self.healed = threading.Event()
        self._answered: Counter[str] = Counter()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._port = free_port()
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self._late: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self._port}"

    def fail(self, kind: str, **details: Any) -> None:
        """Have something go wrong from now on, beside what goes wrong already."""
        self.healed.clear()
        self._faults.append(Fault(kind, **details))
        if kind == "refuse":
            self.stop()

    def heal(self) -> None:
        """Have nothing go wrong any more."""
        self._faults.clear()
        self.healed.set()
        if self._listener is None:
            self.start()

    def start(self) -> None:
        """Listen, at the same port as before."""
        self._listener = _Listener(("127.0.0.1", self._port), self)
        self._thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections, and drop those there are."""
        listener, self._listener = self._listener, None
        if listener is not None and self._thread is not None:
            listener.shutdown()
            listener.server_close()
            listener.drop_all()
            self._thread.join()

    def close(self) -> None:
        """Stop, and wait for what comes late."""
        self.healed.set()
        self.stop()
        for thread in self._late:
            thread.join()

    def fault_for(self, path: str) -> Fault | None:
        with self._lock:
            fault = next((one for one in self._faults if one.only in path and one.times != 0), None)
            if fault is not None:
                self.met[f"{fault.kind} {fault.only}".strip()] += 1
                if fault.times is not None:
                    fault.times -= 1
            return fault

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        """What the real server answers."""
        connection = http.client.HTTPConnection(*self.upstream, timeout=60)
        try:
            connection.request(method, path, body, {**headers, "Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def note_answered(self, path: str) -> None:
        """A request has been answered."""
        with self._lock:
            self._answered[path] += 1

    def forward_late(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """Have the real server do something that nobody waits for any more: it has been done at the next attempt."""
        before = self._answered[path]

        def send() -> None:
            until = time.monotonic() + _LATEST_SECONDS
            while self._answered[path] == before and time.monotonic() < until:
                time.sleep(0.02)
            self.forward(method, path, headers, body)

        self._late.append(threading.Thread(target=send))
        self._late[-1].start()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self._open: set[Any] = set()
        super().__init__(address, _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        if self.proxy.certificate is not None:
            try:
                request = self.proxy.certificate.wrap_socket(request, server_side=True)
            except (OSError, ssl.SSLError):
                # The client does not trust us.
                self.proxy.met["certificate"] += 1
                self.shutdown_request(request)
                return
        self._open.add(request)
        super().process_request_thread(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def drop_all(self) -> None:
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _respond(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        request = self.command, self.path, given, body
        fault = proxy.fault_for(self.path)
        match fault.kind if fault is not None else "":
            case "black_hole":
                proxy.healed.wait()
                self.close_connection = True
            case "late":
                proxy.forward_late(*request)
                proxy.healed.wait(fault.seconds)
                self.close_connection = True
            case "lose_answer":
                proxy.forward(*request)
                self.close_connection = True
            case "status":
                self._send(fault.status, fault.headers.items(), fault.body)
            case "drip":
                self._send(*proxy.forward(*request), slowly=True)
            case _:
                self._send(*proxy.forward(*request))
                proxy.note_answered(self.path)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _respond  # noqa: N815

    def _send(self, status: int, headers: Any, body: bytes, *, slowly: bool = False) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in {*_HOP_BY_HOP, "date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = 0
        while slowly and sent < len(body) and not self.server.proxy.healed.wait(_DRIP_SECONDS):
            self.wfile.write(body[sent : sent + 1])
            sent += 1
        self.wfile.write(body[sent:])


@contextlib.contextmanager
def faulty_proxy(upstream: str, certificate: ssl.SSLContext | None = None) -> Iterator[FaultyProxy]:
    """A proxy with no fault yet."""
    proxy = FaultyProxy(upstream, certificate)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
