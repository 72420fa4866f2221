r"""The operations a Neptune 1.x client left in one directory: which there are, which are missing, and each in turn.

Apart from what becomes of them because this is about bytes that nobody vouches for: torn and repeated lines, counters
that are ahead of the files, names that lead elsewhere. Nothing here needs Neptune's package; the format is JSON lines.

    <directory>/data-<first version>.log   {"obj": {"type": ..., "path": [...], ...}, "version": 7, "at": 1700000000.5}
    <directory>/last_put_version           the last version the client gave out; written at each operation
    <directory>/last_ack_version           the last version a server took; the client deletes files below it

The client writes the counter through at once but keeps some 8 KiB of lines in memory. So a killed client leaves a
counter that is ahead of the files by exactly the operations that are lost, and usually the first half of a line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from trackhub.importing.neptune.operations import KNOWN, Operation, OtherOperation

MAX_LINE_BYTES = 48 * 1024 * 1024
"""The client keeps a picture to 32 MiB, which base64 makes 43."""

MAX_RANGES = 100_000
"""Gaps in one directory that are told apart; lines that would make more are damage."""

COMPARED_OPERATIONS = 1 << 16
"""How far back an operation with a version that was there before is compared with the earlier one."""

_MAX_SMALL_FILE_BYTES = 1 << 20
_MAX_LENIENT_BYTES = 1 << 20
_MAX_PARTS = 400_000
_LOG_NAME = re.compile(r"data-(\d{1,18})\.log")
_Version = Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
_LINE_START = b'{"obj"'


class _Line(msgspec.Struct):
    obj: Operation
    version: _Version
    at: int | float | None = None


class _OtherLine(msgspec.Struct):
    obj: OtherOperation
    version: _Version
    at: int | float | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_other_line = msgspec.json.Decoder(_OtherLine).decode
_NOT_DECODED = (ValueError, RecursionError)


class Metadata(msgspec.Struct):
    """What is in `metadata.json`, as far as it matters here."""

    containerId: str | None = None  # noqa: N815 (Neptune's name)
    createdAt: str | None = None  # noqa: N815

    @property
    def created(self) -> datetime | None:
        """When the client began to write."""
        try:
            return datetime.fromisoformat(self.createdAt or "")
        except ValueError:
            return None


class Versions:
    """A set of version numbers as ranges: they come in order, with few gaps."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __contains__(self, version: int) -> bool:
        at = bisect_right(self._starts, version) - 1
        return at >= 0 and version <= self._ends[at]

    def add(self, version: int) -> bool:
        """Add a version; False if that would be one gap too many."""
        starts, ends = self._starts, self._ends
        if ends and version == ends[-1] + 1:
            ends[-1] = version
            return True
        at = bisect_right(starts, version)
        if at and version <= ends[at - 1]:
            return True
        joins_left = at > 0 and ends[at - 1] == version - 1
        joins_right = at < len(starts) and starts[at] == version + 1
        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_left:
            ends[at - 1] = version
        elif joins_right:
            starts[at] = version
        elif len(starts) >= MAX_RANGES:
            return False
        else:
            starts.insert(at, version)
            ends.insert(at, version)
        return True

    @property
    def highest(self) -> int:
        """The highest version; 0 for none."""
        return self._ends[-1] if self._ends else 0

    def count(self, up_to: int | None = None) -> int:
        """How many there are, up to a version."""
        return sum(
            max(0, (end if up_to is None else min(end, up_to)) - start + 1)
            for start, end in zip(self._starts, self._ends, strict=True)
        )


@dataclass(frozen=True)
class Entry:
    """One operation.

    Args:
        number: Its place among those of the directory, from 0.
        operation: It.
        at: When the client was told of it, in seconds since the epoch.
    """

    number: int
    operation: Operation | OtherOperation
    at: float | None


@dataclass
class Directory:
    """One process's directory.

    Args:
        path: It, without links.
        metadata: Who wrote it.
        logs: Its log files with the size they had when they were first read: the client may be writing still.
        put: The last version the client gave out; None if that cannot be read.
        acknowledged: The last version a server took.
        versions: Those on disk.
        torn: Lines at the end of a file that were cut off.
        damaged: Other lines that cannot be read.
        repeated: Lines that are there once more. A forked process writes what its parent had in memory.
        conflicting: Operations that have a version another one has, too.
        first_at: When the first operation was, in seconds since the epoch.
        digest: Of everything in the log files and counters.
    """

    path: Path
    metadata: Metadata = field(default_factory=Metadata)
    logs: list[tuple[Path, int]] = field(default_factory=list)
    put: int | None = None
    acknowledged: int = 0
    versions: Versions = field(default_factory=Versions)
    torn: int = 0
    damaged: int = 0
    repeated: int = 0
    conflicting: int = 0
    first_at: float | None = None
    digest: str = ""

    @property
    def given_out(self) -> int:
        """The highest version there ever was, as far as can be told."""
        return max(self.put or 0, self.versions.highest)

    @property
    def lost(self) -> int:
        """Operations that the client had been told of and that neither the disk nor a server got."""
        sent = min(self.acknowledged, self.given_out)
        return (self.given_out - sent) - (self.versions.count() - self.versions.count(sent))

    @property
    def sent_away(self) -> int:
        """Operations that a server acknowledged and that are not on disk any more."""
        sent = min(self.acknowledged, self.given_out)
        return sent - self.versions.count(sent)

    @property
    def sent(self) -> int:
        """Operations on disk that a server acknowledged."""
        return self.versions.count(self.acknowledged)


def is_log_name(name: str) -> bool:
    """Whether this is the name of a log file."""
    return _LOG_NAME.fullmatch(name) is not None


def open_directory(path: Path) -> Directory:
    """Look at a directory without reading its operations.

    Raises:
        OSError: It cannot be read.
    """
    directory = Directory(path)
    for name in os.listdir(path):  # noqa: PTH208
        if is_log_name(name):
            status = (path / name).lstat()
            if stat.S_ISREG(status.st_mode):
                directory.logs.append((path / name, status.st_size))
    directory.logs.sort(key=lambda log: (int(log[0].name[5:-4]), log[0].name))
    directory.put = _counter(path / "last_put_version")
    directory.acknowledged = _counter(path / "last_ack_version") or 0
    try:
        directory.metadata = msgspec.json.decode(_small_file(path / "metadata.json"), type=Metadata)
    except (*_NOT_DECODED, OSError):
        directory.metadata = Metadata()
    return directory


def survey(directory: Directory) -> Iterator[Entry]:
    """Read all operations for the first time, and fill in what can only be counted that way."""
    digest = hashlib.blake2s()
    digest.update(f"{directory.put} {directory.acknowledged}".encode())
    for entry in read(directory, directory, digest):
        if directory.first_at is None and entry.at is not None and math.isfinite(entry.at):
            directory.first_at = entry.at
        yield entry
    directory.digest = digest.hexdigest()


def read(directory: Directory, counted: Directory | None = None, digest: Any = None) -> Iterator[Entry]:
    """The operations in order, each once. The same at each call, whatever the client has written meanwhile.

    Args:
        directory: As `open_directory` gave it.
        counted: Gets the counts.
        digest: Is fed every line.

    Raises:
        OSError: A file cannot be read.
    """
    counted = counted or Directory(directory.path)
    counted.versions = versions = Versions()
    recent: dict[int, int] = {}
    earlier: dict[int, int] = {}
    number = 0
    for path, size in directory.logs:
        for line, whole in _lines(path, size):
            if digest is not None:
                digest.update(line)
            decoded = _decode(line)
            if decoded is None:
                if whole:
                    counted.damaged += 1
                else:
                    counted.torn += 1
                continue
            version, own = decoded.version, hash(line.strip())
            if version in versions:
                before = recent.get(version, earlier.get(version))
                if before is None or before == own:
                    counted.repeated += 1
                    continue
                counted.conflicting += 1
            elif not versions.add(version):
                counted.damaged += 1
                continue
            recent[version] = own
            if len(recent) >= COMPARED_OPERATIONS // 2:
                recent, earlier = {}, recent
            yield Entry(number, decoded.obj, _seconds(decoded.at))
            number += 1


def _seconds(at: float | None) -> float | None:
    """A time as a float; a whole number too large for one is infinite, and counted with the times that do not fit."""
    try:
        return None if at is None else float(at)
    except OverflowError:
        return math.inf


def _decode(line: bytes) -> _Line | _OtherLine | None:
    """The operation in a line; where a write was cut off and another one appended, the last one."""
    decoded = _decode_whole(line)
    if decoded is None:
        start = line.rfind(_LINE_START)
        if start > 0:
            return _decode_whole(line[start:])
    return decoded


def _decode_whole(line: bytes) -> _Line | _OtherLine | None:
    # A long line is one picture; one that is full of small values would be many times as long in memory.
    if len(line) > _MAX_LENIENT_BYTES and sum(map(line.count, (b'"', b"{", b"["))) > _MAX_PARTS:
        return None
    try:
        return _decode_line(line)
    except _NOT_DECODED:
        pass
    try:
        other = _decode_other_line(line)
        if other.obj.type not in KNOWN:
            return other
    except _NOT_DECODED:
        pass
    if len(line) > _MAX_LENIENT_BYTES:
        return None
    # Python's own reader also takes NaN, infinities and lone surrogates, which Python's writer writes.
    try:
        return msgspec.convert(json.loads(line), _Line)
    except (*_NOT_DECODED, OverflowError):
        return None


def _lines(path: Path, size: int) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file up to a size, without their ends, and whether each had one. Too long ones come empty."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=1 << 18) as file:
        left = size
        while left > 0:
            line = file.readline(min(left, MAX_LINE_BYTES + 1))
            if not line:
                return
            left -= len(line)
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                while left > 0 and not line.endswith(b"\n"):
                    line = file.readline(min(left, 1 << 20))
                    left -= len(line)
                    if not line:
                        return
                yield b"", True
            elif line.endswith(b"\n"):
                yield line[:-1], True
            else:
                yield line, False


def _small_file(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_MAX_SMALL_FILE_BYTES)


def _counter(path: Path) -> int | None:
    """The number in a file of the client's; an empty one is 0, as the client reads it."""
    try:
        text = _small_file(path)[:32].strip()
        value = int(text or b"0")
    except (OSError, ValueError):
        return None
    return value if 0 <= value < 1 << 62 else None
