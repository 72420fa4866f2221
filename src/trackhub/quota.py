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
from dataclasses import dataclass
from pathlib import Path

from trackhub.cursor import NoteCount
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
            # In one run they are delivered in the order they were logged.
            if delivered.get(blob.run.path, True):
                delivered[blob.run.path] = _is_delivered(blob)
            if not delivered[blob.run.path]:
                kept.append(blob)
                continue
            freed = remove(blob.path)
            self._used_bytes -= freed
            note = self._note(blob.run, blob.writer)
            note.freed_files += 1
            note.freed_bytes += freed
        self._blobs.extendleft(reversed(kept))
        for (path, writer), note in self._notes.items():
            save_room_note(path, writer, note)

    def _free_of_ended_runs(self) -> None:
        for run in runs_in(self.root):
            if self._used_bytes <= self.max_bytes // 2:
                return
            files = sum(1 for _ in run.blobs.glob("*"))
            if not files or not (freed := free_blobs(run)):
                continue
            self._used_bytes -= freed
            earlier = sum(note.freed_files for note in room_notes(run.path))
            note = RoomNote(self.max_bytes, freed_files=files, freed_bytes=freed)
            save_room_note(run.path, f"ended-{earlier + files}-{os.getpid()}", note)

    def _note(self, run: RunDirectory, writer: str) -> RoomNote:
        return self._notes.setdefault((run.path, writer), RoomNote(self.max_bytes))


def _is_delivered(blob: _Blob) -> bool:
    """Whether every backend has a snapshot, and one of them shows it."""
    backends = blob.run.deliverable
    cursors = [blob.run.cursor(name) for name in backends]
    if not cursors or not all(cursor.has_passed(blob.mark) for cursor in cursors):
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
