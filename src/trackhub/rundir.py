"""The run directory: where a run's files lie, who the run is, and where it stands.

Apart from the tracker because deliveries and the command line work on a run directory alone, long after the training
process has gone.

    <TRACKHUB_DIR>/<run id>/
        run.json                 identity and options, without secrets
        journal/                 see journal/__init__.py
        blobs/                   snapshots of files and rich values, taken at the call
        cursors/<backend>.json   see cursor.py
        rejected/<backend>.jsonl records the backend refused, one a line with the reason
        delivery.log             what the delivery processes had to say
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from trackhub.cursor import Cursor, CursorFile
from trackhub.errors import JournalError, SettingsError
from trackhub.journal import JournalReader, writer_is_alive
from trackhub.records import RunEnded, RunStatus
from trackhub.skim import skim

FORMAT_VERSION = 1
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Manifest(msgspec.Struct, frozen=True):
    """What is in `run.json`.

    Args:
        backends: Backend name -> its options as plain values, without secrets.
        in_process: Those among them that only the training process can deliver to.
        parent_id: The run this one is a child of.
        working_directory: Where the training process was started.
        version: Of the trackhub that created the run.
        reserved_params: Names of params that the place where the run takes place logs by itself.
    """

    id: str
    name: str
    project: str
    created_ns: int
    backends: dict[str, dict[str, Any]]
    parent_id: str | None = None
    working_directory: str = "."
    version: str = ""
    format: int = FORMAT_VERSION
    in_process: list[str] = []
    reserved_params: list[str] = []


def new_run_id() -> str:
    """A run id that sorts by time and that nobody else has: `20261121-093000-3f9a1c04b2`, UTC."""
    # Long enough for a job array whose thousands of processes start within one second.
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + secrets.token_hex(5)


def check_run_id(run_id: str) -> str:
    """Give back a run id that can name a directory and nothing else.

    Raises:
        SettingsError: It cannot.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise SettingsError(
            f"run_id {run_id!r} cannot name a run: use up to 128 letters, digits, '.', '_' and '-', not starting with "
            "'.' or '-' (or leave it out and one is made)"
        )
    return run_id


class RunDirectory:
    """One run on disk.

    Args:
        path: `<TRACKHUB_DIR>/<run id>`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal"
        self.blobs = path / "blobs"
        self.cursors = path / "cursors"
        self.rejected = path / "rejected"
        self.log = path / "delivery.log"
        self._manifest: Manifest | None = None

    @classmethod
    def create(cls, root: Path, manifest: Manifest) -> RunDirectory:
        """Make the directory of a run, or find that of a run that is gone on with.

        Raises:
            OSError: It cannot be written.
        """
        run = cls(root / manifest.id)
        run.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (run.blobs, run.cursors):
            folder.mkdir(mode=0o700, exist_ok=True)
        fresh = run.path / f"run.json.{os.getpid()}"
        with fresh.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
            file.flush()
            # A run is nothing without this file, so it must not be the one that a power failure empties.
            os.fsync(file.fileno())
        fresh.replace(run.path / "run.json")
        run._manifest = manifest
        return run

    @property
    def exists(self) -> bool:
        """Whether there is a run here."""
        return (self.path / "run.json").is_file()

    @property
    def manifest(self) -> Manifest:
        """The run's identity.

        Raises:
            JournalError: `run.json` cannot be read, or a newer trackhub wrote it.
        """
        if self._manifest is None:
            try:
                manifest = msgspec.json.decode((self.path / "run.json").read_bytes(), type=Manifest)
            except (OSError, ValueError, RecursionError) as error:
                raise JournalError(f"{self.path} is no run directory that can be read: {error}") from error
            if manifest.format > FORMAT_VERSION:
                raise JournalError(
                    f"{self.path} was written by a newer trackhub ({manifest.version}): upgrade this one"
                )
            self._manifest = manifest
        return self._manifest

    def cursor_file(self, backend: str) -> CursorFile:
        """The cursor of one backend."""
        return CursorFile(self.cursors, backend)

    def cursor(self, backend: str) -> Cursor:
        """Where one backend stands."""
        return self.cursor_file(backend).load()

    @property
    def backends(self) -> list[str]:
        """The backends this run was given to: those chosen at the start, and those it was sent to later."""
        later = sorted(path.stem for path in self.cursors.glob("*.json"))
        chosen = list(self.manifest.backends)
        return chosen + [name for name in later if name not in chosen]

    @property
    def deliverable(self) -> list[str]:
        """The backends of this run that any process can deliver to."""
        return [name for name in self.backends if name not in self.manifest.in_process]

    def end(self) -> tuple[RunStatus, RunEnded | None]:
        """The run's status, and the record that ended it; a run whose process vanished is "killed"."""
        reader = JournalReader(self.journal)
        try:
            owner, ended = reader.last_owner()
        finally:
            reader.close()
        if ended is not None:
            return ended.status, ended
        if owner and writer_is_alive(self.journal, owner):
            return "running", None
        return "killed", None

    def remaining(self, cursor: Cursor) -> int:
        """How many records lie behind a cursor."""
        return skim(self.journal, cursor.position).records


def runs_in(
    root: Path, on_unreadable: Callable[[RunDirectory, Exception], None] | None = None
) -> Iterator[RunDirectory]:
    """The runs under a `TRACKHUB_DIR`, oldest first.

    Args:
        root: The directory; may not exist.
        on_unreadable: Told of a run that is left out: its `run.json` cannot be read, or is of a newer trackhub.
    """
    found = [RunDirectory(path) for path in root.iterdir()] if root.is_dir() else []
    readable = []
    for run in found:
        try:
            if run.exists:
                readable.append((run.manifest.created_ns, run.path.name, run))
        except (JournalError, PermissionError) as error:
            if on_unreadable is not None:
                on_unreadable(run, error)
    yield from (run for _, _, run in sorted(readable, key=lambda entry: entry[:2]))
