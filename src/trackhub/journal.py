r"""The journal: append and read the records of one run; this docstring is the grammar of its files.

Apart because everything else leans on it: it is the one thing that must still be right after a SIGKILL.

    journal  = segment*                 files `wWWWW-sSSSSSS.journal`: writer from 1, segment from 0
    segment  = header frame* zero*      little-endian numbers; zeros are room that was reserved and not used
    header   = "trackhub" version:u32 writer:u32 segment:u32 reserved:u32
    frame    = size:u32 crc:u32 payload      size of the payload, never 0; CRC-32 (zlib's) of the payload
    payload  = a MessagePack array: [tag, field, ...]

A payload is one of the records of `records.py`, or one of three that exist on disk only:

    WriterStarted = [18, time_ns, role, process_id, host, version]   the first frame of a writer
    MetricNames   = [16, [name, ...]]
    MetricValues  = [17, names_at:u32, step, time_ns, values:bin]    values: big-endian float64, in the order of the names

`names_at` is the byte position of the `MetricNames` frame in the same segment. Names are thus written once a segment,
and a reader can start at any frame without having read those before it.

Each writer (a process; a forked child is another one) has segments of its own, so processes never share a file. While
it lives it holds a POSIX lock on `wWWWW.lock`; the kernel lets go of it however the process ends, and a forked child
does not inherit it. A frame that fails its CRC with nothing valid behind it is a write that was cut short; one that
valid frames follow is damage, skipped and counted. Rules for change: a tag is never reused, fields are added at the
end with a default, anything else raises the version in the header, and old versions stay readable.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from trackhub.errors import JournalError
from trackhub.records import Deliverable, MetricsLogged, RunEnded

FORMAT_VERSION = 1
MAX_FRAME_BYTES = 64 * 1024 * 1024
FIRST_SEGMENT_BYTES = 256 * 1024
LAST_SEGMENT_BYTES = 8 * 1024 * 1024
MAX_MEMORY_BYTES = 64 * 1024 * 1024
MAX_SERIES_IN_MEMORY = 4096

Role = Literal["owner", "worker"]
Position = dict[str, tuple[int, int]]
"""A place in a journal: writer number -> (segment, byte offset of the next frame). JSON-able."""

_MAGIC = b"trackhub"
_HEADER = struct.Struct("<8sIIII")
_FRAME = struct.Struct("<II")
_FRAME_BYTES = _FRAME.size
_pack_frame = _FRAME.pack
_crc32 = zlib.crc32
_SEGMENT_NAME = re.compile(r"w(\d{4,})-s(\d{6,})\.journal")
_UINT64 = 0xCF


class WriterStarted(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Who wrote the segments of one writer. The owner is the process that holds the run; it alone can end it."""

    time_ns: int
    role: Role
    process_id: int
    host: str
    version: str


class _MetricNames(msgspec.Struct, frozen=True, array_like=True, tag=16):
    names: list[str]


class _MetricValues(msgspec.Struct, frozen=True, array_like=True, tag=17):
    names_at: int
    step: int
    time_ns: int
    values: bytes


JournalRecord = Deliverable | RunEnded
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    # MetricsLogged itself is never on disk: _MetricNames and _MetricValues stand for it.
    JournalRecord | WriterStarted | _MetricNames | _MetricValues  # type: ignore[arg-type]
).decode


def segment_name(writer: int, segment: int) -> str:
    """The file name of a segment."""
    return f"w{writer:04d}-s{segment:06d}.journal"


def _lock_name(writer: int) -> str:
    return f"w{writer:04d}.lock"


class _Series:
    """How to pack one set of metric names, fixed for one segment. `narrow` is for steps that fit 32 bits."""

    __slots__ = ("narrow", "narrow_prefix", "narrow_size", "values_prefix", "wide", "wide_prefix", "wide_size")

    def __init__(self, names_at: int, count: int) -> None:
        size = count * 8
        if size < 1 << 8:
            self.values_prefix = struct.pack(">BB", 0xC4, size)
        elif size < 1 << 16:
            self.values_prefix = struct.pack(">BH", 0xC5, size)
        else:
            self.values_prefix = struct.pack(">BI", 0xC6, size)
        tail = f"BQ{len(self.values_prefix)}s{count}d"
        head = struct.pack(">BBBI", 0x95, 17, 0xCE, names_at)
        narrow, wide = struct.Struct(">8sI" + tail), struct.Struct(">8sq" + tail)
        self.narrow, self.narrow_prefix, self.narrow_size = narrow.pack, head + b"\xce", narrow.size + _FRAME_BYTES
        self.wide, self.wide_prefix, self.wide_size = wide.pack, head + b"\xd3", wide.size + _FRAME_BYTES


class _WriteThrough:
    """Stands in for the memory map on file systems that cannot map a file for writing: same assignment, by pwrite."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __setitem__(self, where: slice, data: bytes) -> None:
        os.pwrite(self._descriptor, data, where.start)

    def close(self) -> None:
        """Nothing to let go of: the descriptor belongs to the segment."""


class _Segment:
    """One segment being written: a mapped file or, while the disk takes nothing, memory that waits for it."""

    def __init__(self, path: Path, writer: int, number: int, size: int) -> None:
        self.path, self.number, self.size = path, number, size
        self.used = _HEADER.size
        self.descriptor: int | None = None
        self.view: mmap.mmap | bytearray | _WriteThrough = bytearray()
        self._header = _HEADER.pack(_MAGIC, FORMAT_VERSION, writer, number, 0)

    def create(self) -> None:
        """Create the file with its room reserved, so that a full disk shows here and never as a SIGBUS later."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
            os.pwrite(descriptor, self._header, 0)
            try:
                self.view = mmap.mmap(descriptor, self.size)
            except OSError:
                self.view = _WriteThrough(descriptor)
        except BaseException:
            os.close(descriptor)
            self.path.unlink(missing_ok=True)
            raise
        self.descriptor = descriptor

    def hold_in_memory(self) -> None:
        """Take frames in memory until the disk can be written again."""
        self.view = bytearray(self.size)
        self.view[: _HEADER.size] = self._header

    def move_to_disk(self) -> None:
        """Write a segment that was held in memory to its file."""
        held = self.view
        assert isinstance(held, bytearray)
        self.create()
        self.view[_HEADER.size : self.used] = bytes(held[_HEADER.size : self.used])

    def close(self, *, sync: bool) -> None:
        """Give back the room that was not used."""
        if not isinstance(self.view, bytearray):
            self.view.close()
        if self.descriptor is not None:
            os.ftruncate(self.descriptor, self.used)
            if sync:
                os.fdatasync(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = None


class JournalWriter:
    """Appends records to a journal; each append is safe from SIGKILL when it returns.

    Safe to call from several threads, and from a signal handler that interrupts an append.

    Args:
        directory: The run's `journal` directory; created if missing.
        role: "owner" for the process that holds the run, "worker" for others (forked children).
        time_ns: When the writer starts.
        version: trackhub's version, for people who read the journal.
        check_names: Called with each new set of metric names before it is written; raises if one is not accepted.

    Raises:
        OSError: The directory or the first segment cannot be created.
    """

    def __init__(
        self,
        directory: Path,
        role: Role,
        time_ns: int,
        version: str = "",
        check_names: Callable[[tuple[str, ...]], None] | None = None,
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.lost_bytes = 0
        self._check_names = check_names
        self._lock = threading.RLock()
        self._sync_lock = threading.Lock()
        self._lock_file, self.writer = _claim_writer_number(directory)
        self._retired: list[_Segment] = []
        self._waiting: list[_Segment] = []
        self._closed = False
        self._synced_position = 0
        self._segment = _Segment(directory / segment_name(self.writer, 0), self.writer, 0, FIRST_SEGMENT_BYTES)
        self._segment.create()
        self._use(self._segment)
        self.append(WriterStarted(time_ns, role, os.getpid(), socket.gethostname(), version))

    def _use(self, segment: _Segment) -> None:
        self._segment = segment
        self._view = segment.view
        self._limit = segment.size
        self._position = segment.used
        self._series: dict[tuple[str, ...], _Series] = {}

    @property
    def position(self) -> tuple[int, int, int]:
        """Writer, segment and offset behind the last record."""
        with self._lock:
            return self.writer, self._segment.number, self._position

    def append_metrics(self, values: Mapping[str, float], step: int, time_ns: int) -> None:
        """Append the metrics of one step: the hot path, about a microsecond and a half for five values.

        Args:
            values: Metric name -> anything that C takes for a float. Names were checked by the caller.
            step: Fits 64 bits, signed.
            time_ns: Nanoseconds since the Unix epoch.

        Raises:
            struct.error, TypeError, OverflowError: A value is no float; nothing was written.
        """
        names = tuple(values)
        narrow = 0 <= step < 4294967296
        with self._lock:
            while True:
                known = self._series
                series = known.get(names)
                if series is None:
                    series = self._define(names)
                    known = self._series
                if narrow:
                    payload = series.narrow(
                        series.narrow_prefix, step, _UINT64, time_ns, series.values_prefix, *values.values()
                    )
                    size = series.narrow_size
                else:
                    payload = series.wide(
                        series.wide_prefix, step, _UINT64, time_ns, series.values_prefix, *values.values()
                    )
                    size = series.wide_size
                frame = _pack_frame(size - _FRAME_BYTES, _crc32(payload)) + payload
                # From here to the return there is no call, and CPython runs signal handlers only at calls and jumps
                # back: a handler that logs too cannot come between reading the position and moving it.
                position = self._position
                end = position + size
                if end <= self._limit and known is self._series:
                    self._view[position:end] = frame
                    self._position = end
                    return
                if known is self._series:
                    self._rotate(size)

    def append(self, record: JournalRecord | WriterStarted) -> None:
        """Append one record that is not metrics.

        Raises:
            ValueError: The record is larger than a frame may be (64 MiB).
        """
        with self._lock:
            self._append_payload(_encode(record))

    def _append_payload(self, payload: bytes) -> int:
        size = len(payload) + _FRAME_BYTES
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a record of {len(payload):,} bytes is over the limit of {MAX_FRAME_BYTES:,} bytes")
        frame = _pack_frame(len(payload), _crc32(payload)) + payload
        while True:
            position = self._position
            end = position + size
            if end <= self._limit:
                self._view[position:end] = frame
                self._position = end
                return position
            self._rotate(size)

    def _define(self, names: tuple[str, ...]) -> _Series:
        if len(self._series) >= MAX_SERIES_IN_MEMORY:
            self._series = {}
        if self._check_names is not None:
            self._check_names(names)
        payload = _encode(_MetricNames(list(names)))
        # The values must follow in the same segment, so make room for both before writing either.
        needed = len(payload) + 2 * _FRAME_BYTES + 32 + 8 * len(names)
        if needed > MAX_FRAME_BYTES:
            raise ValueError(f"{len(names):,} metrics in one call are over the limit of {MAX_FRAME_BYTES:,} bytes")
        if self._position + needed > self._limit:
            self._rotate(needed)
        series = _Series(self._append_payload(payload), len(names))
        self._series[names] = series
        return series

    def _rotate(self, needed: int) -> None:
        """Go on in a new segment with room for `needed` bytes."""
        old = self._segment
        old.used = self._position
        number = old.number + 1
        size = max(min(FIRST_SEGMENT_BYTES * 4**number, LAST_SEGMENT_BYTES), 2 * needed + _HEADER.size)
        fresh = _Segment(self.directory / segment_name(self.writer, number), self.writer, number, size)
        if self._waiting or isinstance(old.view, bytearray):
            fresh.hold_in_memory()
        else:
            try:
                fresh.create()
            except OSError:
                fresh.hold_in_memory()
        if isinstance(old.view, bytearray):
            held = sum(segment.used for segment in self._waiting) + old.used
            if held <= MAX_MEMORY_BYTES:
                self._waiting.append(old)
            else:
                self.lost_bytes += old.used
                fresh.number = old.number
                fresh.path = old.path
        else:
            self._retired.append(old)
        self._use(fresh)

    def sync(self) -> None:
        """Make what was appended survive a power failure too; called off the training thread.

        Raises:
            OSError: The disk takes nothing now; what was appended is kept in memory and tried again at the next call.
        """
        with self._sync_lock:
            self._sync()

    def _sync(self) -> None:
        with self._lock:
            retired, self._retired = self._retired, []
            waiting, current, position = self._waiting, self._segment, self._position
        for segment in retired:
            segment.close(sync=True)
        while waiting:
            waiting[0].move_to_disk()
            waiting.pop(0).close(sync=True)
        if isinstance(current.view, bytearray):
            with self._lock:
                if self._segment is current:
                    current.used = self._position
                    current.move_to_disk()
                    self._view = current.view
        if current.descriptor is not None and position != self._synced_position and not self._closed:
            os.fdatasync(current.descriptor)
            self._synced_position = position

    def close(self) -> None:
        """Close the journal for this writer and let go of its lock. Appending afterwards is a mistake.

        Raises:
            OSError: The disk did not take what was held in memory.
        """
        with self._sync_lock:
            if self._closed:
                return
            try:
                self._sync()
            finally:
                with self._lock:
                    self._closed = True
                    self._limit = 0
                    self._segment.used = self._position
                    self._segment.close(sync=True)
                _release(self._lock_file)

    def abandon_after_fork(self) -> None:
        """In a forked child: let go of the parent's files without touching what is in them."""
        for segment in [*self._retired, self._segment]:
            if segment.descriptor is not None:
                os.close(segment.descriptor)
                segment.descriptor = None
        _forget_locks_after_fork()


# Closing any descriptor of a locked file would let go of this process's POSIX lock, so a process never opens the lock
# file of a writer of its own a second time: it looks here instead.
_held_locks: dict[Path, int] = {}


def _forget_locks_after_fork() -> None:
    for descriptor in _held_locks.values():
        os.close(descriptor)
    _held_locks.clear()


def _claim_writer_number(directory: Path) -> tuple[Path, int]:
    taken = [int(path.name[1:-5]) for path in directory.glob("w*.lock")]
    number = max(taken, default=0)
    while True:
        number += 1
        path = directory / _lock_name(number)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        break
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        locked = True
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            os.close(descriptor)
            raise
        locked = False
    os.write(descriptor, json.dumps({"locked": locked, "pid": os.getpid(), "host": socket.gethostname()}).encode())
    _held_locks[path] = descriptor
    return path, number


def _release(path: Path) -> None:
    descriptor = _held_locks.pop(path, None)
    if descriptor is not None:
        os.close(descriptor)


def writer_is_alive(directory: Path, writer: int) -> bool:
    """Whether the process that writes as this writer still has the journal open."""
    path = directory / _lock_name(writer)
    if path in _held_locks:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except PermissionError:
            return True
        except OSError:
            pass
        return _alive_by_process_id(os.read(descriptor, 4096))
    finally:
        os.close(descriptor)


def _alive_by_process_id(content: bytes) -> bool:
    """For file systems without locks: a process of the same host can be asked for; one of another host cannot."""
    try:
        claim = json.loads(content)
        if claim["locked"]:
            return False
        if claim["host"] != socket.gethostname():
            return True
        os.kill(claim["pid"], 0)
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


@dataclass
class Chunk:
    """What one `JournalReader.read` found.

    Args:
        records: In the order they were written, writer by writer.
        position: Where to go on.
        owners: Writers that began in this chunk as the run's owner.
        ends: Writers whose `RunEnded` was in this chunk.
        damaged: One sentence for each damaged place that was skipped.
        empty: Whether there was nothing to read.
    """

    records: list[JournalRecord] = field(default_factory=list)
    position: Position = field(default_factory=dict)
    owners: list[int] = field(default_factory=list)
    ends: dict[int, RunEnded] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    empty: bool = True



class JournalReader:
    """Reads a journal, also while it is written, from any place.

    Args:
        directory: The run's `journal` directory; may not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._names: dict[tuple[int, int, int], list[str]] = {}
        self._open_file: tuple[int, int, int] | None = None

    def close(self) -> None:
        """Close the segment that was read last."""
        if self._open_file is not None:
            os.close(self._open_file[2])
            self._open_file = None

    def segments(self) -> dict[int, list[int]]:
        """Writer number -> its segment numbers, both in order."""
        found: dict[int, list[int]] = {}
        try:
            entries = os.listdir(self.directory)  # noqa: PTH208 (called often; names are all that is needed)
        except FileNotFoundError:
            return found
        for name in entries:
            if match := _SEGMENT_NAME.fullmatch(name):
                found.setdefault(int(match[1]), []).append(int(match[2]))
        return {writer: sorted(found[writer]) for writer in sorted(found)}

    def last_owner(self) -> tuple[int, RunEnded | None]:
        """The number of the last writer that owned the run (0 for none), and the end it gave the run."""
        segments = self.segments()
        for writer in reversed(segments):
            start = {str(writer): (segments[writer][0], _HEADER.size)}
            if writer not in self.read(start, max_points=1, only=writer).owners:
                continue
            # The end is the last thing an owner writes, so its last segment has it.
            place: Position = {str(writer): (segments[writer][-1], _HEADER.size)}
            while True:
                chunk = self.read(place, only=writer)
                if writer in chunk.ends:
                    return writer, chunk.ends[writer]
                if chunk.empty:
                    return writer, None
                place = chunk.position
        return 0, None

    def read(
        self,
        position: Mapping[str, Iterable[int]],
        *,
        max_points: int = 20_000,
        max_bytes: int = 4 << 20,
        only: int | None = None,
    ) -> Chunk:
        """Read on from a position.

        Args:
            position: What an earlier chunk gave; empty for the beginning.
            max_points: Stop after about so many metric values and other records.
            max_bytes: Stop after about so many bytes of frames.
            only: Read this writer alone.
        """
        chunk = Chunk(position={writer: (place[0], place[1]) for writer, place in _places(position)})
        budget = _Budget(max_points, max_bytes)
        for writer, numbers in self.segments().items():
            if only not in (None, writer):
                continue
            number, offset = chunk.position.get(str(writer), (numbers[0], _HEADER.size))
            while budget.left:
                followed = number + 1 in numbers
                offset, ended = self._read_segment(writer, number, offset, chunk, budget, followed=followed)
                if not (ended and followed):
                    break
                number, offset = number + 1, _HEADER.size
            if chunk.position.get(str(writer)) != (number, offset):
                chunk.position[str(writer)] = (number, offset)
                chunk.empty = False
        return chunk

    def _read_segment(
        self, writer: int, number: int, offset: int, chunk: Chunk, budget: _Budget, *, followed: bool
    ) -> tuple[int, bool]:
        """Read frames from `offset`; give back where it stopped, and whether that was the end of the segment."""
        try:
            descriptor = self._descriptor(writer, number)
        except FileNotFoundError:
            return offset, True
        while budget.left:
            data = os.pread(descriptor, 1 << 18, offset)
            at = 0
            while budget.left:
                if at + _FRAME_BYTES > len(data):
                    break
                size, crc = _FRAME.unpack_from(data, at)
                if size == 0:
                    return offset + at, True
                if size > MAX_FRAME_BYTES:
                    return self._skip_damage(writer, number, offset + at, chunk, followed=followed)
                stop = at + _FRAME_BYTES + size
                if stop > len(data):
                    if len(data) < 1 << 18 or at > 0:
                        break
                    data = os.pread(descriptor, size + _FRAME_BYTES, offset)
                    if len(data) < size + _FRAME_BYTES:
                        break
                payload = data[at + _FRAME_BYTES : stop]
                if _crc32(payload) != crc:
                    return self._skip_damage(writer, number, offset + at, chunk, followed=followed)
                self._take(writer, number, offset + at, payload, chunk, budget)
                at = stop
            if at == 0:
                if len(data) < _FRAME_BYTES and not any(data):
                    return offset, True
                if budget.left:
                    return self._skip_damage(writer, number, offset, chunk, followed=followed)
            offset += at
        return offset, False

    def _descriptor(self, writer: int, number: int) -> int:
        if self._open_file is not None:
            if self._open_file[:2] == (writer, number):
                return self._open_file[2]
            self.close()
        path = self.directory / segment_name(writer, number)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        header = os.pread(descriptor, _HEADER.size, 0)
        if len(header) == _HEADER.size and header[:8] == _MAGIC:
            version = _HEADER.unpack(header)[1]
            if version > FORMAT_VERSION:
                os.close(descriptor)
                raise JournalError(
                    f"{path} was written in format {version}; this trackhub reads up to {FORMAT_VERSION}: upgrade it"
                )
        self._open_file = (writer, number, descriptor)
        return descriptor

    def _take(self, writer: int, number: int, offset: int, payload: bytes, chunk: Chunk, budget: _Budget) -> None:
        budget.spend(1, len(payload))
        try:
            record = _decode(payload)
        except (msgspec.DecodeError, RecursionError) as error:
            chunk.damaged.append(f"{segment_name(writer, number)} at {offset}: not a known record ({error})")
            return
        if isinstance(record, _MetricValues):
            names = self._metric_names(writer, number, record.names_at)
            count = len(record.values) // 8
            if names is None or len(names) != count or len(record.values) % 8:
                chunk.damaged.append(f"{segment_name(writer, number)} at {offset}: the names of these metrics are lost")
                return
            budget.spend(count - 1, 0)
            values = struct.unpack(f">{count}d", record.values)
            chunk.records.append(MetricsLogged(record.time_ns, record.step, dict(zip(names, values, strict=True))))
        elif isinstance(record, _MetricNames):
            self._remember_names(writer, number, offset, record.names)
        elif isinstance(record, WriterStarted):
            if record.role == "owner":
                chunk.owners.append(writer)
        else:
            if isinstance(record, RunEnded):
                chunk.ends[writer] = record
            chunk.records.append(record)

    def _remember_names(self, writer: int, number: int, offset: int, names: list[str]) -> None:
        if len(self._names) >= MAX_SERIES_IN_MEMORY:
            self._names.clear()
        self._names[writer, number, offset] = names

    def _metric_names(self, writer: int, number: int, offset: int) -> list[str] | None:
        names = self._names.get((writer, number, offset))
        if names is not None:
            return names
        descriptor = self._descriptor(writer, number)
        head = os.pread(descriptor, _FRAME_BYTES, offset)
        if len(head) < _FRAME_BYTES:
            return None
        size, crc = _FRAME.unpack(head)
        if not 0 < size <= MAX_FRAME_BYTES:
            return None
        payload = os.pread(descriptor, size, offset + _FRAME_BYTES)
        if _crc32(payload) != crc:
            return None
        try:
            record = _decode(payload)
        except (msgspec.DecodeError, RecursionError):
            return None
        if not isinstance(record, _MetricNames):
            return None
        self._remember_names(writer, number, offset, record.names)
        return record.names

    def _skip_damage(
        self, writer: int, number: int, offset: int, chunk: Chunk, *, followed: bool
    ) -> tuple[int, bool]:
        """A frame is not whole: wait for it if it is being written, else skip to the next valid one."""
        descriptor = self._descriptor(writer, number)
        rest = os.pread(descriptor, LAST_SEGMENT_BYTES + MAX_FRAME_BYTES, offset).rstrip(b"\0")
        for at in range(1, max(len(rest) - _FRAME_BYTES, 0)):
            size, crc = _FRAME.unpack_from(rest, at)
            stop = at + _FRAME_BYTES + size
            # Trailing zeros may belong to the last frame, so its size may reach a little beyond what is left.
            if 0 < size <= MAX_FRAME_BYTES and stop <= len(rest) + 16:
                payload = rest[at + _FRAME_BYTES : stop].ljust(size, b"\0")
                if _crc32(payload) == crc and payload[0] & 0xF0 in (0x90, 0xD0):
                    chunk.damaged.append(f"{segment_name(writer, number)} at {offset}: {at} damaged bytes skipped")
                    return offset + at, False
        if followed or not writer_is_alive(self.directory, writer):
            if rest:
                chunk.damaged.append(
                    f"{segment_name(writer, number)} at {offset}: the last write was cut short ({len(rest)} bytes)"
                )
            return offset + max(len(rest), 1), True
        return offset, False


class _Budget:
    def __init__(self, points: int, size: int) -> None:
        self._points, self._bytes = points, size

    @property
    def left(self) -> bool:
        return self._points > 0 and self._bytes > 0

    def spend(self, points: int, size: int) -> None:
        self._points -= points
        self._bytes -= size


def _places(position: Mapping[str, Iterable[int]]) -> Iterator[tuple[str, tuple[int, int]]]:
    for writer, place in position.items():
        segment, offset = place
        yield writer, (segment, offset)
