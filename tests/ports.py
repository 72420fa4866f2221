"""Addresses for tests: ports for servers that they start, and host names that nobody knows."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest

_PORTS = range(20_000, 32_000)
"""Below those that the system gives to connections, and to whoever asks for any port."""


def free_port() -> int:
    """A port that stays free while a server takes its seconds to start, or has been stopped for a while."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def answer_for_unknown_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no name server asked for names that are reserved for this: it might take its time."""
    known = socket.getaddrinfo

    def ask(host: Any, *arguments: Any, **named: Any) -> Any:
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
