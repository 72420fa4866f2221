"""Reads TensorBoard's event files: scalars, images, texts, histograms, audio, hyperparameters, in old and new forms.

One format, one folder: which directories are runs, and what becomes of each value. As in TensorBoard, every directory
with event files is a run of its own and its path below the log directory is its name; tags are the names of metrics and
values.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trackhub.blobs import BlobStore
from trackhub.errors import MissingPackageError, RunNotFoundError
from trackhub.importing.source import (
    Found,
    ReadOptions,
    SourceRun,
    clean_name,
    run_id,
    time_ns_of,
)
from trackhub.importing.tensorboard.eventfile import Damage, read_events
from trackhub.importing.tensorboard.mapping import SESSION_END, SESSION_START, EventMapper, hparams_of
from trackhub.journal import JournalRecord
from trackhub.records import EndStatus

_MAX_RESTARTS = 100_000
_SUCCESS, _FAILURE = 1, 2


def find(path: Path, options: ReadOptions) -> Found:  # noqa: ARG001 (event files name no other files)
    """The runs below a log directory.

    Args:
        path: It, without links.
        options: What else the person said.

    Raises:
        MissingPackageError: tensorboard is not installed.
        RunNotFoundError: There is no event file.
        OSError: Something cannot be read.
    """
    spec = importlib.util.find_spec("tensorboard")
    if spec is None or spec.origin is None:  # a mere directory `tensorboard/` full of logs has no origin
        raise MissingPackageError(
            'reading event files needs the package tensorboard: pip install "trackhub-sdk[tensorboard]"'
        )
    found = Found()
    for parent, folders, names in os.walk(path, onerror=_raise):
        folders.sort()
        found.left_out += [
            f"{Path(parent, name)} is a link, which is not followed: import what it leads to by its own path"
            for name in folders
            if Path(parent, name).is_symlink()
        ]
        files = [Path(parent, name) for name in sorted(names) if "tfevents" in name]
        files = [file for file in files if file.is_file() and not file.is_symlink()]
        if files:
            name = Path(parent).relative_to(path).as_posix()
            run = TensorBoardRun(Path(parent), path.name if name == "." else name, files)
            if run.event_count:
                found.runs.append(run)
            else:
                found.left_out.append(f"{parent} has event files, but no event in them can be read")
    if not found.runs and not found.left_out:
        raise RunNotFoundError(f"no event file found below {path}: their names have 'tfevents' in them")
    return found


def _raise(error: OSError) -> None:
    raise error


class TensorBoardRun(SourceRun):
    """A directory with event files.

    Args:
        path: It.
        name: Its path below the log directory.
        files: The event files in the order TensorBoard reads them, by name.
    """

    def __init__(self, path: Path, name: str, files: list[Path]) -> None:
        super().__init__()
        self.path = path
        self.name = clean_name(name)
        self._files = [(file, file.stat().st_size) for file in files]
        self._restarts: list[tuple[int, int]] = []
        self._session_start: Any = None
        self._session_end: Any = None
        self._last_time: float | None = None
        self._survey()

    def records(self, blobs: BlobStore, scratch: Path) -> Iterator[JournalRecord]:  # noqa: ARG002
        """The run's records, event by event."""
        mapper = EventMapper(self.findings, blobs, self.created_ns)
        number = 0
        for file, size in self._files:
            for event, _ in read_events(file, size, Damage()):
                yield from mapper.records_of(event, superseded=self._is_superseded(number, event.step))
                number += 1

    def end(self) -> tuple[EndStatus, int]:
        """As the hyperparameters' page has it; else killed if a file was cut off, else finished."""
        ended_ns = time_ns_of(self._last_time, self.created_ns)
        if self._session_end is not None and self._session_end.status in (_SUCCESS, _FAILURE):
            if self._session_end.end_time_secs > 0:
                ended_ns = time_ns_of(self._session_end.end_time_secs, ended_ns)
            return "finished" if self._session_end.status == _SUCCESS else "failed", ended_ns
        return "killed" if self._torn or self._session_start is not None else "finished", ended_ns

    def _survey(self) -> None:
        """Read all once for what must be known before the first record."""
        digest = hashlib.blake2s()
        first: tuple[float, bytes] | None = None
        self.event_count, self._torn = 0, False
        for file, size in self._files:
            damage, beginning = Damage(), True
            digest.update(f"{file.name}\n".encode(errors="surrogateescape"))
            for event, data in read_events(file, size, damage, digest):
                if beginning:
                    # By time, for the backend of ours may put a file before the first one later.
                    first = min(first, (event.wall_time, data)) if first else (event.wall_time, data)
                    beginning = False
                if self._last_time is None or event.wall_time > self._last_time:
                    self._last_time = event.wall_time
                self._survey_event(self.event_count, event)
                self.event_count += 1
            self._count_damage(file, damage)
        self.created_ns = time_ns_of(first[0] if first else None, 0)
        if self._session_start is not None and self._session_start.start_time_secs > 0:
            self.created_ns = time_ns_of(self._session_start.start_time_secs, self.created_ns)
        self.fingerprint = digest.hexdigest()
        identity = hashlib.blake2s(self.name.encode() + b"\n" + (first[1] if first else b""), digest_size=10)
        self.id = run_id("tensorboard", identity.hexdigest())
        lowest = 1 << 63
        for at in range(len(self._restarts) - 1, -1, -1):
            lowest = min(lowest, self._restarts[at][1])
            self._restarts[at] = self._restarts[at][0], lowest

    def _survey_event(self, number: int, event: Any) -> None:
        if event.HasField("session_log") and event.session_log.status == event.session_log.START:
            if len(self._restarts) < _MAX_RESTARTS:
                self._restarts.append((number, event.step))
        elif event.HasField("summary"):
            for value in event.summary.value:
                if value.tag == SESSION_START and self._session_start is None:
                    self._session_start = hparams_of(value, "session_start_info")
                elif value.tag == SESSION_END and self._session_end is None:
                    self._session_end = hparams_of(value, "session_end_info")

    def _is_superseded(self, number: int, step: int) -> bool:
        """Whether a later restart of the writer began at or before this step, as TensorBoard has it."""
        at = bisect_right(self._restarts, number, key=lambda restart: restart[0])
        return at < len(self._restarts) and self._restarts[at][1] <= step

    def _count_damage(self, file: Path, damage: Damage) -> None:
        add, name = self.findings.missing, clean_name(file.name)
        self._torn = self._torn or damage.torn
        add("files whose last record is cut off", name, damage.torn)
        add("damaged records", name, damage.records)
        add("bytes passed over to find the next whole record", name, damage.skipped_bytes)
        add("events beyond what is read (64 MiB, 200,000 parts)", name, damage.too_large)
