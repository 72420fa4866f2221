"""Reads the directories that a Neptune 1.x client leaves on disk, offline and asynchronous, without Neptune's package.

One format, one folder: which directories are one run, and what becomes of each operation. Names stay what they were;
the fields below `sys/` become tags, other fields params, float series metrics, text series texts, picture series
images, files artifacts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trackhub import plain
from trackhub.blobs import BlobStore
from trackhub.errors import RunNotFoundError
from trackhub.importing.neptune import log, operations
from trackhub.importing.neptune.files import Files
from trackhub.importing.neptune.mapping import OperationMapper, path_of
from trackhub.importing.source import (
    Found,
    ReadOptions,
    SourceRun,
    clean_name,
    run_id,
    time_ns_of,
)
from trackhub.journal import JournalRecord
from trackhub.records import EndStatus

_CONTAINERS = ("run", "project", "model", "model_version")
_DEEPEST = 4
_NAME, _FAILED = "sys/name", "sys/failed"

_Place = tuple[int, int]


def find(path: Path, options: ReadOptions) -> Found:
    """The runs below a `.neptune` directory, one of its folders, or one run's directory.

    Args:
        path: It, without links.
        options: What else the person said.

    Raises:
        RunNotFoundError: There is none.
        OSError: Something cannot be read.
    """
    found = Found()
    groups: dict[str, list[log.Directory]] = {}
    for place in _directories(path, 0):
        directory = log.open_directory(place)
        kind, identity = _identity(directory)
        if kind != "run":
            found.left_out.append(f"{place} is of a {kind.replace('_', ' ')}, not of a run: left out")
        else:
            groups.setdefault(identity, []).append(directory)
    if not groups and not found.left_out:
        raise RunNotFoundError(
            f"no run of Neptune's found below {path}: there is no directory with data-*.log files, as a 1.x client "
            "leaves them in .neptune/offline and .neptune/async"
        )
    runs = [NeptuneRun(identity, directories, options) for identity, directories in groups.items()]
    found.runs.extend(sorted(runs, key=lambda run: (run.created_ns, run.id)))
    return found


def _directories(path: Path, depth: int) -> Iterator[Path]:
    """Directories with log files, without following links."""
    entries = sorted(path.iterdir())
    if any(log.is_log_name(entry.name) for entry in entries):
        yield path
    elif depth < _DEEPEST:
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                yield from _directories(entry, depth + 1)


def _identity(directory: log.Directory) -> tuple[str, str]:
    """What a directory is of, and its id: from its name, which `neptune sync` keeps current, or from what it holds."""
    name = directory.path.name
    if name.startswith("exec-"):  # the layout of clients before 1.0
        name = directory.path.parent.name
    parts = name.split("__")
    if len(parts) > 1 and parts[0] in _CONTAINERS:
        return parts[0], parts[1]
    return "run", directory.metadata.containerId or name


class NeptuneRun(SourceRun):
    """A run, put together from the directories of all its processes.

    Args:
        identity: Neptune's id of the run.
        directories: Those of its processes.
        options: What else the person said.
    """

    def __init__(self, identity: str, directories: list[log.Directory], options: ReadOptions) -> None:
        super().__init__()
        self.id = run_id("neptune", identity)
        self.name = self.id
        self._options = options
        self._failed: bool | None = None
        self._emptied: dict[str, _Place] = {}
        self._text_counts: Counter[str] = Counter()
        self._last_at = -math.inf
        # In the order of their beginning: what a later process said stands.
        self._directories = sorted(
            self._without_copies(directories), key=lambda one: (str(one.metadata.createdAt or "~"), one.path.name)
        )
        for index, directory in enumerate(self._directories):
            self._survey(index, directory)
        self.path = directories[0].path if len(directories) == 1 else directories[0].path.parent
        self.created_ns = min((ns for one in self._directories if (ns := _began_ns(one)) is not None), default=0)
        digest = "".join(sorted(f"{one.path.name} {one.digest}\n" for one in self._directories))
        self.fingerprint = hashlib.blake2s(digest.encode(errors="surrogateescape")).hexdigest()
        self._count_what_is_missing()

    def records(self, blobs: BlobStore, scratch: Path) -> Iterator[JournalRecord]:
        """The run's records, directory by directory, each in its own order."""
        mapper = OperationMapper(self.findings, blobs, scratch, self.created_ns, self._text_counts)
        for index, directory in enumerate(self._directories):
            mapper.enter(Files(directory.path, self._options.files_from, self.findings))
            for entry in log.read(directory):
                path = path_of(entry.operation)
                if (index, entry.number) >= self._emptied.get(path, (0, 0)):
                    yield from mapper.records_of(entry)
                elif not isinstance(entry.operation, operations.Emptying | operations.OtherOperation):
                    self.findings.changed("operations on fields that were emptied or deleted later", path)
        yield from mapper.rest()

    def end(self) -> tuple[EndStatus, int]:
        """Failed if the client said so; killed if it did not get to write everything; else finished."""
        ended_ns = time_ns_of(self._last_at, self.created_ns)
        if self._failed:
            return "failed", ended_ns
        killed = any(directory.lost or directory.torn for directory in self._directories)
        return "killed" if killed else "finished", ended_ns

    def _without_copies(self, directories: list[log.Directory]) -> list[log.Directory]:
        """One directory of each name, the longest: the names are random, so a second one was copied."""
        chosen: dict[str, log.Directory] = {}
        for one in sorted(directories, key=lambda one: (-sum(size for _, size in one.logs), str(one.path))):
            if one.path.name in chosen:
                self.findings.changed("directories that are copies of another one, left out", clean_name(str(one.path)))
            else:
                chosen[one.path.name] = one
        return list(chosen.values())

    def _survey(self, index: int, directory: log.Directory) -> None:
        for entry in log.survey(directory):
            operation, path = entry.operation, path_of(entry.operation)
            if entry.at is not None and math.isfinite(entry.at):
                self._last_at = max(self._last_at, entry.at)
            if isinstance(operation, operations.LogStrings):
                self._text_counts[path] += len(operation.values)
            elif isinstance(operation, operations.Emptying) or _replaces_files(operation):
                self._emptied[path] = (index, entry.number)
            elif isinstance(operation, operations.AssignString) and path == _NAME and operation.value:
                self.name = clean_name(operation.value)
            elif isinstance(operation, operations.AssignBool) and path == _FAILED:
                self._failed = operation.value

    def _count_what_is_missing(self) -> None:
        for one in self._directories:
            name = one.path.name
            add, change = self.findings.missing, self.findings.changed
            add("operations lost: the client had counted them, but they never reached the disk", name, one.lost)
            add("operations that a server got and the client then deleted here", name, one.sent_away)
            add("last lines cut off", name, one.torn)
            add("damaged lines", name, one.damaged)
            # It is written before the operation reaches the disk, so it can be behind by the one being written.
            if one.put is None or one.put < one.versions.highest - 1:
                add("counters that cannot be read or are behind, so that more operations may be lost", name)
            change("operations that a server got, too", name, one.sent)
            change("lines that were there twice", name, one.repeated)
            change("operations with a version that another one has, all imported", name, one.conflicting)


def _replaces_files(operation: operations.Operation | operations.OtherOperation) -> bool:
    return isinstance(operation, operations.UploadFileSet) and operation.reset not in ("False", False)


def _began_ns(directory: log.Directory) -> int | None:
    created = directory.metadata.created
    if created is not None:
        try:
            return plain.time_ns_of(created)
        except ValueError:
            pass
    return None if directory.first_at is None else time_ns_of(directory.first_at, 0)
