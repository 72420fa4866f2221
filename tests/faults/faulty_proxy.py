"""A proxy on the loopback interface that lets HTTP through to a server, or does it harm while it runs.

    with faulty_proxy(server_url) as proxy:
        proxy.url                        # stays the same, whatever happens to the server behind it
        proxy.set("refused")             # nobody listens
        proxy.set("unavailable")         # 503, with Retry-After: 1
        proxy.set("broken")              # 500, and a page of HTML
        proxy.set("silent")              # takes connections and never answers
        proxy.set("lost")                # passes requests on, and closes the connection instead of answering
        proxy.set("open")                # all is well again
        proxy.server_url = another_url

Every change cuts the connections there are. It counts what it has done in `proxy.count`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

MODES = ("refused", "unavailable", "broken", "silent", "lost")
_PAGE = b"<html><body><h1>Something went wrong</h1></body></html>"
_ANSWERS = {
    "unavailable": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n",
    "broken": b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/html\r\nConnection: close\r\n"
    + f"Content-Length: {len(_PAGE)}\r\n\r\n".encode()
    + _PAGE,
}


class FaultyProxy:
    """See the module.

    Args:
        server_url: The server to pass requests on to.
    """

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self.count: Counter[str] = Counter()
        self._mode = "open"
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._port = 0
        self._listen()
        self.url = f"http://127.0.0.1:{self._port}"

    def set(self, mode: str) -> None:
        """Be well or do harm from now on."""
        assert mode in {"open", *MODES}, mode
        self._mode = mode
        if mode == "refused":
            self._stop_listening()
        elif self._listener is None:
            self._listen()
        self._cut_all()

    def close(self) -> None:
        """End everything."""
        self._stop_listening()
        self._cut_all()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=64)
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # Wakes the thread that waits in `accept`.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _cut_all(self) -> None:
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            _cut(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(client)
            threading.Thread(target=self._serve, args=(client, self._mode), daemon=True).start()

    def _serve(self, client: socket.socket, mode: str) -> None:
        self.count[mode] += 1
        server = None
        try:
            if mode == "silent":
                while client.recv(1 << 16):
                    pass
            elif mode in _ANSWERS:
                _read_request(client)
                client.sendall(_ANSWERS[mode])
                client.shutdown(socket.SHUT_WR)
                # A reset would take the answer away again.
                while client.recv(1 << 16):
                    pass
            else:
                parts = urlsplit(self.server_url)
                server = socket.create_connection((parts.hostname, parts.port), 10)
                server.settimeout(None)
                with self._lock:
                    self._connections.add(server)
                threading.Thread(target=_pump, args=(client, server), daemon=True).start()
                if mode == "lost":
                    server.recv(1)
                else:
                    _pump(server, client)
        except OSError:
            pass
        finally:
            for connection in (client, server):
                if connection is not None:
                    with self._lock:
                        self._connections.discard(connection)
                    _cut(connection)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _read_request(client: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(1 << 16)
        if not more:
            return
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = int(lengths[0]) - len(body) if lengths else 0
    while left > 0 and (more := client.recv(1 << 16)):
        left -= len(more)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextlib.contextmanager
def faulty_proxy(server_url: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(server_url)
    try:
        yield proxy
    finally:
        proxy.close()
