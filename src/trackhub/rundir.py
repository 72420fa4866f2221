"""The run directory: where a run's files lie, who the run is, and where it stands.

Apart from the tracker because deliveries and the command line work on a run directory alone, long after the training
process has gone.

    <TRACKHUB_DIR>/<run id>/
        run.json                 identity and options, without secrets
        freed.json               what the journal amounted to, once it was freed (see prune.py)
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

from trackhub import stored_json
from trackhub.backend import RunInfo
from trackhub.cursor import Cursor, CursorFile
from trackhub.errors import JournalError, SettingsError
from trackhub.journal import Holders, JournalReader, Position, a_writer_is_alive
from trackhub.journal.skim import Skim, skim
from trackhub.private import UntrustedFileError, make_directory, open_file, read_file
from trackhub.records import RunEnded, RunStatus, StoredFile

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
REPLAYS = "replays"
"""The folder of the copies that `trackhub replay` makes of a run."""
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
        copy_of: The run that this one is a copy of, made by `trackhub replay`.
        copy_mark: Tells whether a copy was made with the same secrets; too short to tell anything else of them.
        origin: What tells this directory from those of the same run on other machines; empty where the run's id alone
            does, because it was made up here.
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
    copy_of: str | None = None
    copy_mark: str = ""
    origin: str = ""


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


def check_run_name(name: object) -> str:
    """Give back a name that a run can have.

    Raises:
        TypeError: It is no text.
        ValueError: It is not valid Unicode, so that nothing can store it.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a run must be a str, not {type(name).__name__}")
    if not _is_unicode(name):
        raise ValueError(
            f"name {name!r} is not valid Unicode (bytes that are no UTF-8, perhaps from a file name or a variable): "
            "write it in UTF-8"
        )
    return name


class Freed(msgspec.Struct, frozen=True):
    """What is in `freed.json`: what a journal amounted to before its segments were removed.

    Args:
        time_ns: When that was.
        position: How far it was freed; what lies behind was written later.
        amount: What there was up to there.
    """

    time_ns: int
    position: Position
    amount: Skim


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
    def create(cls, root: Path, manifest: Manifest, *, joins: bool = False) -> RunDirectory:
        """Make the directory of a run, or find that of a run that is gone on with.

        Args:
            root: The directory that holds the run directories.
            manifest: Who the run is.
            joins: Whether the manifest only counts if there is none: another process says who the run is.

        Raises:
            OSError: It cannot be written.
        """
        run = cls(root / manifest.id)
        # First: what cannot be stored leaves no directory behind.
        content = stored_json.encode(manifest, indent=2)
        make_directory(run.path, parents=True)
        for folder in (run.blobs, run.cursors):
            if not run._is_originals(folder, manifest):
                make_directory(folder)
        if joins and run.exists:
            return run
        # Processes on several machines may have the same number.
        fresh = run.path / f"run.json.{os.getpid()}.{secrets.token_hex(4)}"
        with os.fdopen(open_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(content)
            file.flush()
            # A run is nothing without this file, so it must not be the one that a power failure empties.
            os.fsync(file.fileno())
        if joins and _named_if_free(fresh, run.path / "run.json"):
            return run
        fresh.replace(run.path / "run.json")
        run._manifest = manifest
        return run

    @property
    def exists(self) -> bool:
        """Whether there is a run here; so it is taken where that cannot be told, as with a file server that is away."""
        try:
            return (self.path / "run.json").is_file()
        except OSError:
            return True

    @property
    def manifest(self) -> Manifest:
        """The run's identity.

        Raises:
            JournalError: `run.json` cannot be read, or a newer trackhub wrote it.
        """
        if self._manifest is None:
            try:
                manifest = stored_json.decode(read_file(self.path / "run.json", MAX_MANIFEST_BYTES), Manifest)
            except (OSError, ValueError, RecursionError) as error:
                raise JournalError(f"{self.path} is no run directory that can be read: {error}") from error
            if manifest.format > FORMAT_VERSION:
                raise JournalError(
                    f"{self.path} was written by a newer trackhub ({manifest.version}): upgrade this one"
                )
            self._check(manifest)
            self._manifest = manifest
        return self._manifest

    def _check(self, manifest: Manifest) -> None:
        """Refuse a run directory that leads out of itself: who made it need not be who reads it."""
        for what, names in {
            "run id": [one for one in (manifest.id, manifest.parent_id, manifest.copy_of) if one is not None],
            "backend": [*manifest.backends, *manifest.in_process],
        }.items():
            for name in names:
                if not _RUN_ID.fullmatch(name):
                    raise JournalError(f"{self.path} is no run directory to be trusted: {name[:100]!r} names no {what}")
        if not _is_unicode(manifest.name + manifest.project + manifest.version):
            raise JournalError(
                f"{self.path} is no run directory to be trusted: its name or project is no valid Unicode"
            )
        for folder in (self.journal, self.blobs, self.cursors, self.rejected):
            if folder.is_symlink() and not self._is_originals(folder, manifest):
                raise JournalError(
                    f"{self.path} is no run directory to be trusted: its {folder.name} is a link, and none is followed"
                )

    def _original(self, manifest: Manifest) -> Path | None:
        """The directory whose journal and blobs this one uses, if it is a copy (see replaying.py)."""
        # <original or a parent of it>/replays/<backend>-<number>/<this>
        above = self.path.absolute().parents
        return above[3] / manifest.copy_of if manifest.copy_of is not None and len(above) > 3 else None

    def _is_originals(self, folder: Path, manifest: Manifest) -> bool:
        original = self._original(manifest)
        if original is None or (original / folder.name).is_symlink():
            return False
        return folder.resolve() == (original / folder.name).resolve()

    @property
    def copies(self) -> list[RunDirectory]:
        """The copies of this run that `trackhub replay` has made; they use its journal and its blobs."""
        found: list[RunDirectory] = []
        place, seen = self, set[Path]()
        while place.exists and place.path not in seen:
            seen.add(place.path)
            copies = [RunDirectory(path.parent) for path in sorted((place.path / REPLAYS).glob("*/*/run.json"))]
            found.extend(copy for copy in copies if copy.manifest.copy_of == self.manifest.id)
            if place.manifest.parent_id is None:
                break
            place = RunDirectory(place.path.parent / place.manifest.parent_id)
        return found

    def lies_inside(self, file: StoredFile) -> bool:
        """Whether a record's file may be read: a snapshot in this directory, or what its owner logged in place.

        A record written by a stranger may name any file of the person who delivers it.
        """
        if Path(file.path).is_absolute():
            # Logged with copy=False; the run's own user could read it anyway.
            return (self.path / "run.json").stat().st_uid == os.geteuid()
        own = (self._original(self.manifest) or self.path).resolve()
        path = self.path / file.path
        if ".." in Path(file.path).parts or not path.resolve().is_relative_to(own):
            return False
        # A snapshot has no links in it: what they led to was copied.
        return not any(
            Path(folder, name).is_symlink() for folder, names, files in os.walk(path) for name in (*names, *files)
        )

    def info(self, parent_remote_id: str | None, attempt: int) -> RunInfo:
        """What a backend is told of the run.

        Args:
            parent_remote_id: What it calls the run's parent.
            attempt: How often the run was begun, as far as this backend was told.
        """
        manifest = self.manifest
        return RunInfo(
            id=manifest.id,
            name=manifest.name,
            project=manifest.project,
            created_ns=manifest.created_ns,
            directory=self.path.absolute(),
            parent_remote_id=parent_remote_id,
            attempt=attempt,
            working_directory=Path(manifest.working_directory),
            reserved_params=frozenset(manifest.reserved_params),
            origin=manifest.origin,
        )

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

    @property
    def freed(self) -> Freed | None:
        """What was freed of the journal; None if it is all there."""
        try:
            return msgspec.json.decode(read_file(self.path / "freed.json", MAX_MANIFEST_BYTES), type=Freed)
        except (FileNotFoundError, UntrustedFileError, ValueError, RecursionError):
            return None

    def note_freed(self, freed: Freed) -> None:
        """Write down what is about to be freed.

        Raises:
            OSError: It cannot be written; nothing may be freed then.
        """
        fresh = self.path / "freed.json.new"
        with os.fdopen(open_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(msgspec.json.encode(freed))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path / "freed.json")

    def amount(self, alive: set[int] | None = None) -> Skim:
        """What the journal amounts to, with what was freed of it.

        Args:
            alive: Filled with the writers whose processes still write.
        """
        freed = self.freed
        if freed is None:
            return skim(self.journal, alive=alive)
        return skim(self.journal, freed.position, freed.amount, alive)

    def end(self) -> tuple[RunStatus, RunEnded | None]:
        """The run's status, and the record that ended it; a run whose process vanished is "killed"."""
        reader, alive = JournalReader(self.journal), set[int]()
        try:
            holders = reader.holders(alive)
        finally:
            reader.close()
        if not holders.chief and (freed := self.freed) is not None:
            holders = freed.amount.holders
        status = holders.status(alive.__contains__)
        if status is None:
            return self.status_without_end(holders), None
        return status, holders.end

    @property
    def is_being_written(self) -> bool:
        """Whether a process has the journal open: the run's owner, a rank, or a worker that was forked from one."""
        return a_writer_is_alive(self.journal)

    def is_settled(self, cursor: Cursor) -> bool:
        """Whether the backend of a cursor has everything, and nothing more can come."""
        return cursor.closed and not self.is_being_written and not self.remaining(cursor)

    def status_without_end(self, holders: Holders) -> RunStatus:
        """The status of a run that `Holders.status` knows no end of: nobody has begun it, or somebody just now."""
        return "running" if holders.chief or self.is_being_written else "killed"

    def remaining(self, cursor: Cursor) -> int:
        """How many records lie behind a cursor."""
        return skim(self.journal, cursor.position).records


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named_if_free(fresh: Path, name: Path) -> bool:
    """Give a file its name unless that is taken, and remove it then; False where the file system cannot do that."""
    try:
        os.link(fresh, name)
    except FileExistsError:
        pass
    except OSError:
        return False
    fresh.unlink()
    return True


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
