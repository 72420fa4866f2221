"""A run that stays open as seen from the backend, over any number of connections.

Apart from the connection, which is of no use after its first failure: here a new one is opened with the next batch, and
what the run has in it is learned again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, TypeVar

from trackhub.backend import Notes, RunInfo
from trackhub.backends.neptune import offline
from trackhub.backends.neptune.client import allow_plain_http, load_client
from trackhub.backends.neptune.connection import Connection, await_latecomers
from trackhub.backends.neptune.errors import field_limit, secrets_of
from trackhub.backends.neptune.fields import MAX_FIELDS, Fields
from trackhub.backends.neptune.names import digest, to_custom_run_id
from trackhub.backends.neptune.options import NeptuneOptions, address_of
from trackhub.errors import BackendUnavailable, RecordRejected, StateLost

T = TypeVar("T")

_ENTRYPOINT = "source_code/entrypoint"
_LONGEST_NAME = 1000


class Session:
    """One run at the server, or in an offline directory.

    Args:
        options: Of the backend.
        run: The run.
        notes: Of the backend.
        remote_id: Neptune's id of the run, if it is known.
    """

    def __init__(self, options: NeptuneOptions, run: RunInfo, notes: Notes, remote_id: str = "") -> None:
        self.offline = options.mode == "offline"
        self.remote_id = remote_id
        self.link: str | None = None
        self.fields = Fields({})
        self.opened = 0
        self._options = options
        self._run = run
        self._notes = notes
        self._token = options.api_token.get_secret_value().strip() if options.api_token is not None else None
        self._connection: Connection | None = None
        self._max_fields = MAX_FIELDS
        self._told: set[tuple[str, str]] = set()

    def ensure(self) -> None:
        """Connect, if there is no connection.

        Raises:
            BackendUnavailable: It did not work out.
            StateLost: The run that was there is gone, or its offline directory was cut short.
        """
        if self._connection is not None:
            return
        if self.offline and self.opened:
            raise StateLost("writing the offline directory was cut short; it is written anew")
        self._connect()

    def send(self, doing: str, call: Callable[[Any], None], size_bytes: int = 0) -> None:
        """Have the server, or the disk, take something.

        Args:
            doing: What it is, for messages.
            call: Gives it to the client's run.
            size_bytes: Of the files in it.
        """
        self.ensure()
        for message in self._guarded(doing, lambda connection: connection.send(doing, call, size_bytes)):
            self._notes.add("refused by Neptune", doing, message)

    def ask(self, doing: str, question: Callable[[Any], T], questions: int = 1) -> T:
        """What the client's run answers; `questions` requests may be needed for it."""
        return self._guarded(doing, lambda connection: connection.ask(doing, question, questions))

    def place(self, prefix: str, name: str, kind: str = "") -> str | None:
        """The field for something; None if the run can have no more fields, which is noted."""
        self.ensure()
        path = self.fields.place(prefix, name, kind)
        if path == f"{prefix}/{name}" or (prefix, name) in self._told:
            return path
        self._told.add((prefix, name))
        if path is None:
            self._notes.add("too many fields", name[:200], f"left out: a Neptune run has {self._max_fields} at most")
            return None
        self._notes.add("renamed", name[:200], f"the field is called {path!r} in Neptune")
        if digest(name) in path:
            self.send("keep a long name", lambda run: run[f"trackhub/long_names/{digest(name)}"].assign(name[:16000]))
        return path

    def disconnect(self) -> None:
        """Stop the client, or leave it behind if it cannot be stopped."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.stop()
            if not self.offline:
                offline.remove(self._run.directory, "async")

    def _connect(self) -> None:
        run, directory = self._run, self._run.directory
        arguments: dict[str, Any] = {"name": run.name[:_LONGEST_NAME]}
        if not self.offline:
            await_latecomers(directory)
            # What an earlier client could not send is in the journal, too: `neptune sync` must not send it again.
            offline.remove(directory, "async")
            arguments |= {"project": self._options.project, "api_token": self._token}
            if self.remote_id:
                arguments["with_id"] = self.remote_id
            else:
                arguments["custom_run_id"] = to_custom_run_id(run.id)
            if (address_of(self._options) or "").startswith("http://"):
                allow_plain_http()
        data_directory = offline.data_directory(directory)
        data_directory.mkdir(mode=0o700, exist_ok=True)
        client = load_client(self._options.client, self._options.timeout_seconds)
        self._connection = Connection(
            client,
            self._options.client,
            "offline" if self.offline else "async",
            directory,
            data_directory,
            self._options.timeout_seconds,
            secrets_of(self._token),
            arguments,
        )
        self.opened += 1
        self._learn()

    def _learn(self) -> None:
        """Find out what the run has in it, and write down who it is."""
        self.fields = Fields(self.ask("read the run", structure_of), self._max_fields)
        if not self.offline:
            self.remote_id = self.ask("read the run", lambda run: str(run["sys/id"].fetch()))
            self.link = self.ask("read the run", lambda run: str(run.get_url()))
        self.send("open the run", self._introduce)

    def _introduce(self, client_run: Any) -> None:
        run = self._run
        if client_run.exists(_ENTRYPOINT):
            # The client takes the delivery's script for the training's.
            client_run.pop(_ENTRYPOINT)
        client_run["trackhub/run_id"] = run.id
        client_run["trackhub/version"] = version("trackhub-sdk")
        client_run["trackhub/project"] = run.project
        client_run["trackhub/created"] = datetime.fromtimestamp(run.created_ns / 1e9, UTC).isoformat()
        client_run["trackhub/status"] = "running"
        client_run["sys/failed"] = False
        if run.parent_remote_id is not None:
            client_run["trackhub/parent"] = run.parent_remote_id

    def _guarded(self, doing: str, step: Callable[[Connection], T]) -> T:
        connection = self._connection
        assert connection is not None
        try:
            return step(connection)
        except (BackendUnavailable, RecordRejected):
            self._connection = None
            limit = field_limit(connection.cause)
            if limit is None:
                raise
            # With this known, new fields are left out and the others go on.
            self._max_fields = min(self._max_fields, limit)
            raise BackendUnavailable(f"Neptune could not {doing}: a run there has {limit} fields at most") from None


def structure_of(run: Any) -> dict[str, str]:
    """Path -> type of all fields of the client's run."""
    found: dict[str, str] = {}

    def walk(node: dict[str, Any], above: str) -> None:
        for name, one in node.items():
            if isinstance(one, dict):
                walk(one, f"{above}{name}/")
            else:
                found[f"{above}{name}"] = type(one).__name__

    with suppress(AttributeError):
        walk(run.get_structure(), "")
    return found
