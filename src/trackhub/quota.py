"""`TRACKHUB_MAX_BYTES`: what the runs of a `TRACKHUB_DIR` may take on disk, files before scalars.

Apart from the tracker because a limit is for a directory and not for a run. Copies of files that all backends have are
removed first; then new files and rich values are refused, counted and named. Params and metrics are recorded all the
same: they are small, and nothing else has them. The directory is measured in the background, and before something is
refused; nothing of this is done where metrics are logged.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trackhub.cursor import NoteCount
from trackhub.errors import TrackhubError
from trackhub.prune import free_blobs, remove, size_on_disk
from trackhub.room_note import RoomNote, room_notes, save_room_note
from trackhub.rundir import RunDirectory, runs_in

MEASURE_SECONDS = 10.0
BUSY_SHARE = 0.02
"""How much of the time measuring may take: a large directory is measured less often."""

BLOCK_BYTES = 4096
"""A file takes whole blocks."""

Mark = tuple[int, int, int]

_log = logging.getLogger("trackhub")


@dataclass(frozen=True)
class _Blob:
    """A snapshot that this process has taken, and the place in the journal behind its record."""

    run: RunDirectory
    writer: str
    mark: Mark
    path: Path
    kind: str


class Quota:
    """The limit of one `TRACKHUB_DIR`, as this process keeps it. Threads may use it at the same time.

    Args:
        root: The directory.
        max_bytes: What its runs may take.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._used_bytes = 0
        self._due = 0.0
        self._blobs: deque[_Blob] = deque()
        self._notes: dict[tuple[Path, str], RoomNote] = {}
        self._warned = False
        self._troubled: set[Path] = set()
        self._lock = threading.RLock()

    def admits(self, run: RunDirectory, writer: str, kind: str, name: str, size_bytes: int) -> bool:
        """Whether a file may be recorded; if not, that is counted and said.

        Args:
            run: The run it belongs to.
            writer: The writer that would record it.
            kind: The kind of record.
            name: Its name.
            size_bytes: Its size.
        """
        size_bytes = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        with self._lock:
            if self._used_bytes + size_bytes > self.max_bytes or time.monotonic() >= self._due:
                self._make_room(size_bytes)
            if self._used_bytes + size_bytes <= self.max_bytes:
                self._used_bytes += size_bytes
                return True
            note = self._note(run, writer)
            count = note.refused.setdefault(kind, NoteCount())
            count.add(name, f"{size_bytes:,} bytes")
            save_room_note(run.path, writer, note)
        if count.count == 1:
            _log.warning(
                "trackhub: run %s: %r is not recorded: %s takes %d bytes, and TRACKHUB_MAX_BYTES is %d. More %s that "
                "do not fit are counted, and shown by finish() and trackhub status; params and metrics go on. "
                "trackhub prune makes room.",
                run.path.name,
                name,
                self.root,
                self._used_bytes,
                self.max_bytes,
                kind.replace("_", " "),
            )
        return False

    def took(self, run: RunDirectory, writer: str, kind: str, path: Path, mark: Mark) -> None:
        """A file was recorded: it can be removed here once all backends have it.

        Args:
            run: The run it belongs to.
            writer: The writer that has recorded it.
            kind: The kind of record.
            path: The snapshot.
            mark: The place in the journal behind the record.
        """
        with self._lock:
            self._blobs.append(_Blob(run, writer, mark, path, kind))

    def look(self, run: RunDirectory, writer: str) -> None:
        """Measure if it is time; called every second off the training thread, for each run that is written."""
        with self._lock:
            if time.monotonic() < self._due:
                return
            self._make_room(0)
            over = self._used_bytes > self.max_bytes
            if over:
                note = self._note(run, writer)
                note.over_bytes = max(note.over_bytes, self._used_bytes)
                save_room_note(run.path, writer, note)
            if over and not self._warned:
                _log.warning(
                    "trackhub: %s takes %d bytes, more than TRACKHUB_MAX_BYTES (%d), and no copy of a file can be "
                    "removed. Params and metrics go on being recorded; trackhub prune, or more room, ends this.",
                    self.root,
                    self._used_bytes,
                    self.max_bytes,
                )
            self._warned = over

    def _make_room(self, size_bytes: int) -> None:
        """Measure and, if what is asked for does not fit, remove copies of files that all backends have."""
        began = time.monotonic()
        with self._passing_over(self.root):
            self._used_bytes = size_on_disk(self.root)
        if self._used_bytes + size_bytes > self.max_bytes:
            self._free_own()
        if self._used_bytes + size_bytes > self.max_bytes:
            self._free_of_ended_runs()
        took = time.monotonic() - began
        self._due = time.monotonic() + max(MEASURE_SECONDS, took / BUSY_SHARE)

    def _free_own(self) -> None:
        """Remove snapshots of the runs of this process, the oldest first, until it is enough."""
        kept: deque[_Blob] = deque()
        delivered: dict[Path, bool] = {}
        while self._blobs and self._used_bytes > self.max_bytes // 2:
            blob = self._blobs.popleft()
            freed = None
            with self._passing_over(blob.run.path):
                # In one run they are delivered in the order they were logged.
                if delivered.get(blob.run.path, True):
                    delivered[blob.run.path] = False
                    delivered[blob.run.path] = _is_delivered(blob)
                if delivered[blob.run.path]:
                    freed = remove(blob.path)
            if freed is None:
                kept.append(blob)
                continue
            self._used_bytes -= freed
            note = self._note(blob.run, blob.writer)
            note.freed_files += 1
            note.freed_bytes += freed
        self._blobs.extendleft(reversed(kept))
        for (path, writer), note in self._notes.items():
            save_room_note(path, writer, note)

    def _free_of_ended_runs(self) -> None:
        runs: list[RunDirectory] = []
        with self._passing_over(self.root):
            runs += runs_in(self.root, lambda run, error: self._tell_once(run.path, error))
        for run in runs:
            if self._used_bytes <= self.max_bytes // 2:
                return
            with self._passing_over(run.path):
                self._free_if_ended(run)

    def _free_if_ended(self, run: RunDirectory) -> None:
        files = sum(1 for _ in run.blobs.glob("*"))
        if not files or not (freed := free_blobs(run)):
            return
        self._used_bytes -= freed
        earlier = sum(note.freed_files for note in room_notes(run.path))
        note = RoomNote(self.max_bytes, freed_files=files, freed_bytes=freed)
        save_room_note(run.path, f"ended-{earlier + files}-{os.getpid()}", note)

    @contextmanager
    def _passing_over(self, path: Path) -> Iterator[None]:
        """Go on after trouble with the directory or with one run of it: whoever logs here is not to blame for it."""
        try:
            yield
        except (OSError, TrackhubError) as error:
            self._tell_once(path, error)

    def _tell_once(self, path: Path, error: Exception) -> None:
        if path not in self._troubled:
            self._troubled.add(path)
            _log.warning(
                "trackhub: TRACKHUB_MAX_BYTES: %s cannot be looked at (%s: %s), so nothing is removed there.",
                path,
                type(error).__name__,
                error,
            )

    def _note(self, run: RunDirectory, writer: str) -> RoomNote:
        return self._notes.setdefault((run.path, writer), RoomNote(self.max_bytes))


def _is_delivered(blob: _Blob) -> bool:
    """Whether every backend has a snapshot and needs it no more, and one of them shows it."""
    run = blob.run
    cursors = [run.cursor(name) for name in run.deliverable]
    if not cursors or not all(cursor.has_passed(blob.mark) for cursor in cursors):
        return False
    # What fills objects of a training process may read a file again until it has ended the run there; a copy that
    # `trackhub replay` makes starts over from its first record if it has to.
    others = [run.cursor(name) for name in run.manifest.in_process]
    others += [copy.cursor(name) for copy in run.copies for name in copy.deliverable]
    if not all(cursor.closed and cursor.has_passed(blob.mark) for cursor in others):
        return False
    return not any(cursor.report.rejected for cursor in cursors) and not all(
        blob.kind in cursor.report.skipped for cursor in cursors
    )


@functools.cache
def quota_of(root: Path, max_bytes: int, _process_id: int) -> Quota:
    """The quota of a directory: one for all runs of a process, and a new one in a forked child.

    Args:
        root: The `TRACKHUB_DIR`.
        max_bytes: The limit.
        _process_id: Of this process.
    """
    return Quota(root, max_bytes)
