"""A backend's durable place in a journal, with what the backend asked to remember and what became of the run there.

Apart because it is the one file that a delivery and everybody who looks on share: it is replaced as a whole by an
atomic rename, so a reader sees either the old state or the new one.
"""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from trackhub import stored_json
from trackhub.journal import Chunk, Holders, Position, is_locked, lock_file
from trackhub.private import UntrustedFileError, make_directory, open_file, open_to_read, read_file
from trackhub.records import EndStatus

MAX_EXAMPLES = 5
MAX_CURSOR_BYTES = 64 << 20
"""That of a run with several hundred thousand metrics. What is larger is not read, so it is not saved either."""


class NoteCount(msgspec.Struct):
    """How often one thing was changed or left out, with a few examples of `[subject, detail]`."""

    count: int = 0
    examples: list[tuple[str, str]] = msgspec.field(default_factory=list)

    def add(self, subject: str, detail: str) -> None:
        """Count one more; keep it as an example if it is new and there are few."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES and (subject, detail) not in self.examples:
            self.examples.append((subject, detail))


class BackendReport(msgspec.Struct):
    """What one delivery did with one run.

    Args:
        version: Of the backend and its SDK, e.g. `mlflow 3.17.2`.
        delivered: Kind of record -> number of records the backend has accepted.
        points: Number of metric values the backend has accepted.
        lowered: Kind of record -> number shown as something simpler.
        skipped: Kind of record -> number the backend has no place for.
        notes: Reason -> what was mapped, shortened or left out by the backend.
        rejected: Number of records set aside in `rejected/<backend>.jsonl`.
        damaged: Places in the journal that could not be read.
        superseded: Number of metric values left out because a later attempt has logged them anew.
        error: Why nothing is being delivered now: the last error, if the backend is unavailable.
        error_since_ns: When that began.
        suspended: Why this delivery has given up until the next start: a bug of the backend or of a processor.
        failed_part: Whose bug that is: "backend" or "processor".
        updated_ns: When this was written.
    """

    version: str = ""
    delivered: dict[str, int] = msgspec.field(default_factory=dict)
    points: int = 0
    lowered: dict[str, int] = msgspec.field(default_factory=dict)
    skipped: dict[str, int] = msgspec.field(default_factory=dict)
    notes: dict[str, NoteCount] = msgspec.field(default_factory=dict)
    rejected: int = 0
    rejected_examples: list[str] = msgspec.field(default_factory=list)
    damaged: list[str] = msgspec.field(default_factory=list)
    error: str | None = None
    error_since_ns: int | None = None
    suspended: str | None = None
    failed_part: str = "backend"
    updated_ns: int = 0
    superseded: int = 0


class Cursor(msgspec.Struct):
    """What is in `cursors/<backend>.json`.

    Args:
        position: Where in the journal to go on.
        state: The backend's own, as its `open` and `checkpoint` gave it.
        remote_id: The backend's id of the run, once it is open.
        link: Where a person can look at the run.
        holders: Who holds the run among the writers read so far, and the ends they have given it.
        attempts: How many owners there have been.
        closed_owner: The owner (without one: the rank) for whose end the backend's run has been closed; 0 if it has
            not.
        closed_status: The status the backend's run was closed with.
        highest_step: The highest step of all metrics delivered so far; None for not known.
        highest_before: The highest one when the run's last owner began, or a rank ahead of its owner.
        report: What became of the records.
    """

    position: Position = msgspec.field(default_factory=dict)
    state: dict[str, Any] = msgspec.field(default_factory=dict)
    remote_id: str | None = None
    link: str | None = None
    holders: Holders = msgspec.field(default_factory=Holders)
    attempts: int = 0
    closed_owner: int = 0
    closed_status: EndStatus | None = None
    report: BackendReport = msgspec.field(default_factory=BackendReport)
    highest_step: int | None = None
    highest_before: int | None = None

    @property
    def closed(self) -> bool:
        """Whether the backend's run has been ended for the last owner read."""
        return self.closed_owner > 0 and self.closed_owner == self.holders.chief

    def advance(self, chunk: Chunk) -> None:
        """Remember that a chunk has been delivered."""
        self.position = chunk.position
        self.holders.add(chunk.began, chunk.ends)
        self.attempts += len(chunk.owners)
        self.closed_owner = 0

    def has_passed(self, mark: tuple[int, int, int]) -> bool:
        """Whether everything before a place (writer, segment, offset) has been delivered."""
        writer, segment, offset = mark
        place = self.position.get(str(writer))
        return place is not None and tuple(place) >= (segment, offset)


def _hands_over_here() -> str:
    """Of a process that hands over: the machine and the container whose process ids it is known by."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    return f" hands over at {os.uname().nodename} {space}"


def _is_place(entry: tuple[str, tuple[int, int]]) -> bool:
    """Whether a writer and its place can be those of a journal; a damaged cursor may have any numbers."""
    writer, place = entry
    return writer.isascii() and writer.isdecimal() and len(writer) < 19 and all(0 <= one < 1 << 62 for one in place)


class CursorFile:
    """Loads and saves one cursor, and says which process may deliver.

    Args:
        directory: The run's `cursors` directory; `claim` creates it if it is missing.
        backend: The backend's name.
    """

    def __init__(self, directory: Path, backend: str) -> None:
        self.path = directory / f"{backend}.json"
        self._lock_path = directory / f"{backend}.lock"
        self._lock: int | None = None

    def load(self) -> Cursor:
        """The saved cursor; a fresh one if there is none or it cannot be read (the backends make that harmless)."""
        try:
            cursor = stored_json.decode(read_file(self.path, MAX_CURSOR_BYTES), Cursor)
        except (FileNotFoundError, UntrustedFileError, ValueError, RecursionError):
            return Cursor()
        return cursor if all(map(_is_place, cursor.position.items())) else Cursor()

    def save(self, cursor: Cursor, *, durably: bool = True) -> None:
        """Replace the saved cursor.

        Args:
            cursor: The new one.
            durably: Whether it must survive a power failure.

        Raises:
            OSError: The disk did not take it; the old one stands.
        """
        content = stored_json.encode(cursor)
        if len(content) > MAX_CURSOR_BYTES:
            raise OSError(errno.EFBIG, f"the cursor would take {len(content):,} bytes, which nobody would read")
        fresh = self.path.with_suffix(".new")
        descriptor = open_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            if durably:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(self.path)

    def claim(self, *, hands_over: bool = False) -> bool:
        """Become the one process that delivers this run to this backend; False while another one is.

        Args:
            hands_over: Whether this process lets go on SIGUSR1, which ends others.
        """
        if self._lock is not None:
            return True
        make_directory(self._lock_path.parent, parents=True)
        descriptor = open_file(self._lock_path, os.O_RDWR | os.O_CREAT)
        try:
            # Where there are no locks: two deliveries of one run do no harm beyond work done twice.
            lock_file(descriptor, wait=False)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}{_hands_over_here() if hands_over else ''}".encode(), 0)
        self._lock = descriptor
        return True

    def release(self) -> None:
        """Let another process deliver."""
        if self._lock is not None:
            # Who ends without this is told of by its id.
            with suppress(OSError):
                os.ftruncate(self._lock, 0)
            self.abandon_after_fork()

    def abandon_after_fork(self) -> None:
        """In a forked child: let go of a file that the parent goes on holding."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def is_claimed(self) -> bool:
        """Whether a process, this one included, delivers this run to this backend now."""
        if self._lock is not None:
            return True
        try:
            descriptor = open_to_read(self._lock_path)
        except OSError:
            return False
        try:
            return is_locked(descriptor)
        finally:
            os.close(descriptor)

    @property
    def claimed_ns(self) -> int:
        """When it was last claimed, nanoseconds since the Unix epoch; 0 for never."""
        try:
            return self._lock_path.stat().st_mtime_ns
        except OSError:
            return 0

    def holder(self) -> int | None:
        """The process that wrote its id when it last claimed this cursor, for messages."""
        return self._claimant()[0]

    def ask_to_hand_over(self) -> None:
        """Have a delivery process that makes no progress let go of the run; one that makes progress keeps it."""
        if self.claim():
            self.release()
            return
        # Read only now: whoever was there before may be gone, and its id another's.
        holder, where = self._claimant()
        if holder is not None and holder != os.getpid() and where == _hands_over_here():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(holder, signal.SIGUSR1)

    def _claimant(self) -> tuple[int | None, str]:
        """The process that claimed last and, if it hands over, where it can be told to."""
        with suppress(OSError, ValueError):
            process, space, where = read_file(self._lock_path, 256).decode().partition(" ")
            return int(process), space + where
        return None, ""
