"""Loading the client and telling it what it takes from the environment alone.

Apart from the connection because it concerns the whole process: the client reads its timeouts when it is imported,
where it buffers when a run is opened, and it writes to standard output unless it is told not to.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from trackhub.backends.neptune.errors import without_secrets

_log = logging.getLogger("trackhub.neptune")


def load_client(name: str, timeout_seconds: int) -> Any:
    """Import the client's module.

    Args:
        name: It.
        timeout_seconds: How long one of its requests may take.
    """
    settings = {
        # One attempt: the delivery backs off by itself, and a batch the client sends again might show twice.
        "NEPTUNE_RETRIES_TIMEOUT": "1",
        "NEPTUNE_REQUEST_TIMEOUT": str(timeout_seconds),
        "NEPTUNE_SYNC_AFTER_STOP_TIMEOUT": "1",
    }
    with variables(settings), warnings.catch_warnings():
        # It imports packages that warn of each other; where warnings are errors, it could not be imported at all.
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
    for logger in loggers(name):
        # What it prints there is in the delivery report.
        logger.handlers = [one for one in logger.handlers if isinstance(one, ErrorLog)]
        logger.propagate = False
    _tell_deaths_briefly()
    return module


def _tell_deaths_briefly() -> None:
    """Spare people a page of traceback whenever the client's thread gives up: why it did is in the delivery report."""
    before = threading.excepthook
    if getattr(before, "is_ours", False):
        return

    def tell(death: threading.ExceptHookArgs) -> None:
        if death.thread is not None and death.thread.name.startswith("Neptune"):
            _log.info("%s ended: %s", death.thread.name, death.exc_type.__name__)
        else:
            before(death)

    tell.is_ours = True  # type: ignore[attr-defined]
    threading.excepthook = tell


def file_type(client: str) -> Any:
    """The client's class of what is uploaded, which is not among its top-level names."""
    package = importlib.import_module(client).init_run.__module__.partition(".metadata_containers")[0]
    return importlib.import_module(f"{package}.types").File


def image_count(run: Any, path: str) -> int:
    """How many images a series has: the client tells no more of them."""
    attribute = run.get_attribute(path)
    values = attribute._backend.get_image_series_values(
        attribute._container_id, attribute._container_type, attribute._path, 0, 1
    )
    return int(values.totalItemCount)


@contextlib.contextmanager
def variables(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables of the client, for as long as it reads them: it takes these in no other way."""
    before = {name: os.environ.get(name) for name in settings}  # noqa: TID251
    os.environ.update(settings)  # noqa: TID251
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # noqa: TID251
            else:
                os.environ[name] = value  # noqa: TID251


def allow_plain_http() -> None:
    """Let the client log in at a server without TLS. Its token names the address, so whoever gave it wants that."""
    os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"  # noqa: TID251


def loggers(client: str) -> list[logging.Logger]:
    """Those the client writes to; successors of Neptune's own have kept its name or taken theirs."""
    root = client.partition(".")[0]
    return [logging.getLogger(name + ending) for name in {"neptune", root} for ending in ("", "_no_prefix")]


class ErrorLog(logging.Handler):
    """What one run's client says of operations the server has refused, and why its thread died.

    The client raises neither: the first is only logged, the second ends a thread.

    Args:
        client: The client's module.
        secrets: Texts that no message may have in it.
    """

    def __init__(self, client: str, secrets: tuple[str, ...]) -> None:
        super().__init__(logging.WARNING)
        self._client = client
        self._secrets = secrets
        self._refused: list[str] = []
        self._guard = threading.Lock()
        self.thread_ids: frozenset[int | None] = frozenset()
        self.death: BaseException | None = None

    def attach(self) -> None:
        """Begin to listen."""
        for logger in loggers(self._client):
            logger.addHandler(self)

    def detach(self) -> None:
        """Stop listening."""
        for logger in loggers(self._client):
            logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, if it is of this run's thread."""
        message = without_secrets(record.getMessage(), self._secrets)
        if record.thread not in self.thread_ids:
            return
        _log.info("%s", message)
        if record.levelno < logging.ERROR:
            return
        if (reason := sys.exc_info()[1]) is not None:
            self.death = reason
        else:
            with self._guard:
                self._refused.append(message.partition(": ")[2] or message)

    def take_refused(self) -> list[str]:
        """What was refused since the last call."""
        with self._guard:
            taken, self._refused = self._refused, []
        return taken
