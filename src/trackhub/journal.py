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
    MetricValues  = [17, names_at, step, time_ns, values:bin]    values: big-endian float64, in the order of the names

In `MetricValues`, `names_at` is a MessagePack uint32, `step` a uint32 or an int64 and `time_ns` a uint64 (an int64
before 1970), however small they are, so that the number of values follows from the size of the frame.

`names_at` is the byte position of the `MetricNames` frame in the same segment. Names are thus written once a segment,
and a reader can start at any frame without having read those before it.

Each writer (a process; a forked child is another one) has segments of its own, so processes never share a file. While
it lives it holds a lock on `wWWWW.lock`: an open file description lock, which the kernel lets go of however the process
ends, and which reading or copying the lock file does not end (a POSIX lock, where there is no other); a forked child
closes it. A segment is complete once one with a higher number exists. A frame that fails its CRC with nothing valid
behind it is a write that was cut short; one that valid frames follow is damage, skipped and counted, and so is a
segment that is missing between others. Rules for change: a tag is never reused, fields are added at the end with a
default, anything else raises the version in the header, and old versions stay readable.
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
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from trackhub.errors import JournalError, RunFinishedError
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
_WRITER_FILE = re.compile(r"w(\d{4,})(?:\.lock|-s\d{6,}\.journal)")
_PAYLOAD_START = re.compile(rb"[\x90-\x9f][\x00-\x7f]")
_UINT64, _INT64 = 0xCF, 0xD3
_READ_BYTES = 1 << 18
_NOT_DECODED = (ValueError, RecursionError)  # below ValueError: msgspec's errors, and UnicodeDecodeError, which is none
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_WHOLE_FILE = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


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
    names_at: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    step: int
    time_ns: int
    values: bytes


JournalRecord = Deliverable | RunEnded
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    # MetricsLogged itself is never on disk: _MetricNames and _MetricValues stand for it.
    JournalRecord | WriterStarted | _MetricNames | _MetricValues
).decode


def segment_name(writer: int, segment: int) -> str:
    """The file name of a segment."""
    return f"w{writer:04d}-s{segment:06d}.journal"


def _lock_name(writer: int) -> str:
    return f"w{writer:04d}.lock"


class _Series:
    """How to pack one set of metric names, fixed for one segment. `narrow` is for steps that fit 32 bits."""

    __slots__ = (
        "early", "narrow", "narrow_prefix", "narrow_size", "values_prefix", "wide", "wide_prefix", "wide_size"
    )  # fmt: skip

    def __init__(self, names_at: int, count: int) -> None:
        size = count * 8
        if size < 1 << 8:
            self.values_prefix = struct.pack(">BB", 0xC4, size)
        elif size < 1 << 16:
            self.values_prefix = struct.pack(">BH", 0xC5, size)
        else:
            self.values_prefix = struct.pack(">BI", 0xC6, size)
        tail = f"{len(self.values_prefix)}s{count}d"
        head = struct.pack(">BBBI", 0x95, 17, 0xCE, names_at)
        narrow, wide = struct.Struct(">8sIBQ" + tail), struct.Struct(">8sqBQ" + tail)
        self.narrow, self.narrow_prefix, self.narrow_size = narrow.pack, head + b"\xce", narrow.size + _FRAME_BYTES
        self.wide, self.wide_prefix, self.wide_size = wide.pack, head + b"\xd3", wide.size + _FRAME_BYTES
        self.early = ">8sqBq" + tail


class _Segment:
    """One segment being written: a mapped file; memory that waits for a disk which takes nothing; or, on file systems
    that cannot map a file for writing, memory that is written out at once."""

    def __init__(self, directory: Path, writer: int, number: int, size: int) -> None:
        self.path, self.number, self.size = directory / segment_name(writer, number), number, size
        self.used = _HEADER.size
        self.written = _HEADER.size
        self.descriptor: int | None = None
        self.map: mmap.mmap | None = None
        self.view: mmap.mmap | bytearray = bytearray()
        self._header = _HEADER.pack(_MAGIC, FORMAT_VERSION, writer, number, 0)

    def create(self) -> None:
        """Create the file with its room reserved, so that a full disk shows here and never as a SIGBUS later.

        It gets its name when that has worked, so that a reader never holds a file which is then given up.
        """
        self.map = None
        new = f"{self.path}.new"
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
            os.pwrite(descriptor, self._header, 0)
            with suppress(OSError):
                self.map = mmap.mmap(descriptor, self.size)
            os.rename(new, self.path)  # noqa: PTH104
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                os.unlink(new)  # noqa: PTH108
            raise
        self.descriptor = descriptor

    def open(self, *, in_memory: bool) -> None:
        """Be ready for frames: in a new file if it can be had, else in memory."""
        if not in_memory:
            with suppress(OSError):
                self.create()
        self.view = self.map if self.map is not None and self.descriptor is not None else bytearray(self.size)

    @property
    def waits(self) -> bool:
        """Whether it holds frames that are in memory alone."""
        return isinstance(self.view, bytearray) and (self.descriptor is None or self.written < self.used)

    def write_out(self, end: int) -> None:
        """Write the frames before `end` that are in memory alone; again from the same place if that fails."""
        assert self.descriptor is not None
        while self.written < end:
            start = self.written
            self.written = start + os.pwrite(self.descriptor, self.view[start:end], start)

    def move_to_disk(self) -> None:
        """Write a segment that was held in memory to its file."""
        if self.descriptor is None:
            self.create()
        if self.map is not None:
            self.map[_HEADER.size : self.used] = self.view[_HEADER.size : self.used]
            self.view = self.map
        else:
            self.write_out(self.used)

    def complete(self) -> None:
        """Give back the room that was not used, and make the rest durable."""
        if self.descriptor is not None:
            if self.map is None:
                self.write_out(self.used)
            else:
                self.map.close()
            os.ftruncate(self.descriptor, self.used)
            os.fdatasync(self.descriptor)

    def abandon(self) -> None:
        """Close the file as it is."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class JournalWriter:
    """Appends records to a journal; each append is safe from SIGKILL when it returns.

    Safe to call from several threads, and from a signal handler that interrupts an append. CPython runs signal handlers
    at calls and jumps back only, so what must not be interrupted is written without them, and says so.

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
        self._retired: list[_Segment] = []
        self._waiting: list[_Segment] = []
        self._ended = False
        self._closed = False
        self._synced = (-1, 0)
        self._next_number = 1
        self._lock_descriptor, self.writer = _claim_writer_number(directory)
        self._segment = _Segment(directory, self.writer, 0, FIRST_SEGMENT_BYTES)
        try:
            self._segment.create()
            self._segment.open(in_memory=True)
        except BaseException:
            _release(self._lock_descriptor)
            raise
        self._view = self._segment.view
        self._through = self._segment.map is None
        self._limit = self._segment.size
        self._position = self._segment.used
        self._series: dict[tuple[str, ...], _Series] = {}
        self.append(WriterStarted(time_ns, role, os.getpid(), socket.gethostname(), version))

    @property
    def position(self) -> tuple[int, int, int]:
        """Writer, segment and offset behind the last record."""
        with self._lock:
            return self.writer, self._segment.number, self._position

    def append_metrics(self, values: Mapping[str, float], step: int, time_ns: int) -> None:
        """Append the metrics of one step: the hot path, about a microsecond and a half for five values.

        Args:
            values: Metric name -> anything that C takes for a float. Names were checked by the caller. Without any,
                nothing is written.
            step: Fits 64 bits, signed.
            time_ns: Nanoseconds since the Unix epoch; fits 64 bits, signed.

        Raises:
            struct.error, TypeError, OverflowError: A value is no float; nothing was written.
            RunFinishedError: The run has ended.
        """
        names = tuple(values)
        narrow = 0 <= step < 4294967296
        with self._lock:
            while True:
                known = self._series
                series = known.get(names)
                if series is None:
                    if not names:
                        return
                    self._define(names)
                    continue
                try:
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
                except struct.error:
                    if time_ns >= 0:
                        raise
                    payload = struct.pack(
                        series.early, series.wide_prefix, step, _INT64, time_ns, series.values_prefix, *values.values()
                    )
                    size = series.wide_size
                frame = _pack_frame(size - _FRAME_BYTES, _crc32(payload)) + payload
                # No call from here to the new position: a handler that logs too must not come between. The series holds
                # for the segment it was made for.
                position = self._position
                end = position + size
                if end <= self._limit and known is self._series:
                    self._view[position:end] = frame
                    self._position = end
                    if self._through:
                        self._write_through()
                    return
                if known is self._series:
                    self._rotate(size)

    def append(self, record: JournalRecord | WriterStarted) -> None:
        """Append one record that is not metrics. After `RunEnded` the journal takes no more.

        Raises:
            ValueError: The record is larger than a frame may be (64 MiB).
            RunFinishedError: The run has ended.
        """
        with self._lock:
            self._append_payload(_encode(record))
            if isinstance(record, RunEnded):
                self._ended = True
                self._limit = 0

    def _append_payload(self, payload: bytes) -> int:
        size = len(payload) + _FRAME_BYTES
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a record of {len(payload):,} bytes is over the limit of {MAX_FRAME_BYTES:,} bytes")
        frame = _pack_frame(len(payload), _crc32(payload)) + payload
        while True:
            position = self._position  # No call from here to the new position.
            end = position + size
            if end <= self._limit:
                self._view[position:end] = frame
                self._position = end
                if self._through:
                    self._write_through()
                return position
            self._rotate(size)

    def _define(self, names: tuple[str, ...]) -> None:
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
        # Should a signal handler rotate now, the names end up with the series of a segment that is no longer written.
        known = self._series
        known[names] = _Series(self._append_payload(payload), len(names))

    def _rotate(self, needed: int) -> None:
        """Go on in a new segment with room for `needed` bytes.

        A signal handler that logs may come between anywhere, and rotate too: then its segment stands and this one stays
        empty. So may one that raises: then the next append rotates.
        """
        if self._ended or self._closed:
            raise RunFinishedError("the run has ended: its journal takes no more records")
        # No call before the old segment is closed: readers take it for complete as soon as they see the next one.
        old, number = self._segment, self._next_number
        old.used = self._position
        self._limit = 0
        self._next_number = number + 1
        try:
            size = max(min(FIRST_SEGMENT_BYTES * 4 ** min(number, 8), LAST_SEGMENT_BYTES), 2 * needed + _HEADER.size)
            fresh = _Segment(self.directory, self.writer, number, size)
            if old.waits and old.descriptor is not None:
                with suppress(OSError):
                    old.write_out(old.used)
            fresh.open(in_memory=bool(self._waiting) or old.waits)
        except BaseException:
            # A number without a file would look like a segment that is missing.
            if self._next_number == number + 1 and not (self.directory / segment_name(self.writer, number)).exists():
                self._next_number = number
            raise
        waits = old.waits
        lost = waits and sum(segment.used for segment in self._waiting) + old.used > MAX_MEMORY_BYTES
        through, series = fresh.descriptor is not None and fresh.map is None, dict[tuple[str, ...], _Series]()
        if self._segment is old:  # No call from here on.
            if lost:
                self.lost_bytes += old.used
            elif waits:
                self._waiting = [*self._waiting, old]
            else:
                self._retired = [*self._retired, old]
            self._segment, self._view, self._through, self._series = fresh, fresh.view, through, series
            self._position, self._limit = fresh.used, fresh.size
        elif fresh.descriptor is not None:
            self._retired = [*self._retired, fresh]

    def _write_through(self) -> None:
        segment, end = self._segment, self._position
        # What the disk does not take waits for sync().
        with suppress(OSError):
            segment.write_out(end)

    def sync(self) -> None:
        """Make what was appended survive a power failure too; called off the training thread.

        Raises:
            OSError: The disk takes nothing now; what was appended is kept in memory and tried again at the next call.
        """
        with self._sync_lock:
            if not self._closed:
                self._sync()

    def _sync(self) -> None:
        while self._retired:
            self._retired[0].complete()
            # Under the lock: the append that a handler has come between may still be writing this segment out.
            with self._lock:
                self._retired[0].abandon()
                self._retired = self._retired[1:]
        while self._waiting:
            self._waiting[0].move_to_disk()
            self._waiting[0].complete()
            with self._lock:
                self._waiting[0].abandon()
                self._waiting = self._waiting[1:]
        with self._lock:
            current = self._segment
            current.used = self._position
            if current.waits:
                self._bring_to_disk(current)
            position, descriptor = (current.number, self._position), current.descriptor
        if descriptor is not None and position != self._synced:
            os.fdatasync(descriptor)
            if position[0] != self._synced[0]:
                _sync_directory(self.directory)
            self._synced = position

    def _bring_to_disk(self, current: _Segment) -> None:
        """Have the segment that is being written, and was held in memory, written to its file from now on."""
        if current.descriptor is None:
            current.create()
        fresh = current.map
        if fresh is None:
            self._through = self._segment is current
            current.write_out(current.used)
        elif self._segment is current:  # No call from here on.
            end = self._position
            fresh[_HEADER.size : end] = self._view[_HEADER.size : end]
            self._view = current.view = fresh

    def close(self) -> None:
        """Close the journal for this writer and let go of its lock.

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
                    try:
                        self._segment.complete()
                    finally:
                        self._segment.abandon()
                        _release(self._lock_descriptor)

    def abandon_after_fork(self) -> None:
        """In a forked child: let go of the parent's files without touching what is in them."""
        for segment in [*self._retired, *self._waiting, self._segment]:
            segment.abandon()
        # A fork in a signal handler may have interrupted an append. The parent goes on with it; the child's goes here.
        self._view = bytearray(self._limit)
        self._through = False
        self._ended = True


def _sync_directory(directory: Path) -> None:
    """Make the names of new files survive a power failure, where the file system offers that."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Lock files this process holds: descriptor -> device and inode. Where only POSIX locks are to be had, closing any other
# descriptor of a locked file would let go of the lock, so a process looks here before it opens one.
_held_locks: dict[int, tuple[int, int]] = {}


def _forget_locks_after_fork() -> None:
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=_forget_locks_after_fork)


def _claim_writer_number(directory: Path) -> tuple[int, int]:
    """Take the next free writer number; gives the descriptor of its lock file, and the number."""
    taken = [int(match[1]) for name in os.listdir(directory) if (match := _WRITER_FILE.fullmatch(name))]  # noqa: PTH208
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
        claim = {"locked": _lock_file(descriptor), "pid": os.getpid(), "host": socket.gethostname()}
        os.write(descriptor, json.dumps(claim).encode())
        status = os.fstat(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    _held_locks[descriptor] = status.st_dev, status.st_ino
    return descriptor, number


def _lock_file(descriptor: int) -> bool:
    """Lock a file until the descriptor is closed; False where the file system has no locks."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, _WHOLE_FILE)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    else:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _release(descriptor: int) -> None:
    if _held_locks.pop(descriptor, None) is not None:
        os.close(descriptor)


def writer_is_alive(directory: Path, writer: int) -> bool:
    """Whether the process that writes as this writer still has the journal open."""
    path = directory / _lock_name(writer)
    try:
        status = path.stat()
        if (status.st_dev, status.st_ino) in _held_locks.values():
            return True
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
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
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ProcessLookupError):
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
        self._nameless: Counter[tuple[int, int, int]] = Counter()
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
        max_points: int = 5_000,
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
        self._nameless.clear()
        for writer, numbers in self.segments().items():
            if only not in (None, writer):
                continue
            place = chunk.position.get(str(writer))
            number, offset = place or (-1, _HEADER.size)
            while budget.left:
                later = bisect_right(numbers, number)
                followed = later < len(numbers)
                if number >= 0:
                    offset, ended = self._read_segment(writer, number, offset, chunk, budget, followed=followed)
                    if not (ended and followed):
                        break
                if numbers[later] > number + 1:
                    missing = segment_name(writer, number + 1)
                    chunk.damaged.append(f"{missing} is missing, with {numbers[later] - number - 1} segments in all")
                number, offset = numbers[later], _HEADER.size
            if number >= 0 and place != (number, offset):
                chunk.position[str(writer)] = (number, offset)
                chunk.empty = False
        for (writer, number, names_at), count in self._nameless.items():
            name = segment_name(writer, number)
            chunk.damaged.append(f"{name} at {names_at}: metric names damaged, and {count} records of metrics lost")
        return chunk

    def _read_segment(
        self, writer: int, number: int, offset: int, chunk: Chunk, budget: _Budget, *, followed: bool
    ) -> tuple[int, bool]:
        """Read frames from `offset`; give back where it stopped, and whether that was the end of the segment."""
        try:
            descriptor = self._descriptor(writer, number)
        except FileNotFoundError:
            return offset, True
        began, ended = offset, False
        while budget.left and not ended:
            data = os.pread(descriptor, _READ_BYTES, offset)
            at = 0
            while budget.left and (payload := _payload_at(data, at)):
                self._take(writer, number, offset + at, payload, chunk, budget)
                at += _FRAME_BYTES + len(payload)
            offset += at
            if at > 0:
                continue
            if payload := _payload_in_file(descriptor, offset, data):
                self._take(writer, number, offset, payload, chunk, budget)
                offset += _FRAME_BYTES + len(payload)
                continue
            onward = self._pass_over(writer, number, offset, data, chunk, followed=followed)
            if onward is None:
                break
            offset, ended = onward
        if began == _HEADER.size and (offset > began or (ended and followed)):
            header = os.pread(descriptor, _HEADER.size, 0)
            if header[:8] != _MAGIC or header[8:12] == bytes(4):
                chunk.damaged.append(f"{segment_name(writer, number)}: its header is damaged")
        return offset, ended

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
        except _NOT_DECODED as error:
            chunk.damaged.append(f"{segment_name(writer, number)} at {offset}: not a known record ({error})")
            return
        if isinstance(record, _MetricValues):
            names = self._metric_names(writer, number, record.names_at)
            count = len(record.values) // 8
            if names is None or len(names) != count or len(record.values) % 8:
                self._nameless[writer, number, record.names_at] += 1
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
        payload = _payload_in_file(descriptor, offset, os.pread(descriptor, _FRAME_BYTES, offset))
        if not payload:
            return None
        try:
            record = _decode(payload)
        except _NOT_DECODED:
            return None
        if not isinstance(record, _MetricNames):
            return None
        self._remember_names(writer, number, offset, record.names)
        return record.names

    def _pass_over(
        self, writer: int, number: int, offset: int, data: bytes, chunk: Chunk, *, followed: bool
    ) -> tuple[int, bool] | None:
        """There is no whole frame at `offset`: it is the end, being written, or damaged.

        Gives where to go on, and whether the segment has ended; None to look again later.
        """
        complete = followed or not writer_is_alive(self.directory, writer)
        if not complete and not data.strip(b"\0"):
            return None
        descriptor = self._descriptor(writer, number)
        # Read anew: the writer may have gone on, and then ended.
        rest = os.pread(descriptor, min(os.fstat(descriptor).st_size, LAST_SEGMENT_BYTES + MAX_FRAME_BYTES), offset)
        following = _find_frame(rest)
        # A frame is written when the one before it is whole, so what there is here now is all there will be.
        if _payload_in_file(descriptor, offset, os.pread(descriptor, _FRAME_BYTES, offset)):
            return offset, False
        name = segment_name(writer, number)
        if following:
            chunk.damaged.append(f"{name} at {offset}: {following} damaged bytes skipped")
            return offset + following, False
        if not complete:
            return None
        tail = len(rest.rstrip(b"\0"))
        if tail:
            chunk.damaged.append(f"{name} at {offset}: the last write was cut short ({tail} bytes)")
        return offset + tail, True


def _payload_at(data: bytes, at: int) -> bytes | None:
    """The payload of the frame at `at`, if the frame is whole."""
    if at + _FRAME_BYTES > len(data):
        return None
    size, crc = _FRAME.unpack_from(data, at)
    stop = at + _FRAME_BYTES + size
    if size == 0 or size > MAX_FRAME_BYTES or stop > len(data):
        return None
    payload = data[at + _FRAME_BYTES : stop]
    return payload if _crc32(payload) == crc else None


def _payload_in_file(descriptor: int, offset: int, data: bytes) -> bytes | None:
    """The same for a frame of any size in a file, given the first bytes of it."""
    if len(data) < _FRAME_BYTES:
        return None
    size = _FRAME.unpack_from(data)[0]
    if size == 0 or size > MAX_FRAME_BYTES or size + _FRAME_BYTES <= len(data):
        return None
    return _payload_at(os.pread(descriptor, size + _FRAME_BYTES, offset), 0)


def _find_frame(data: bytes) -> int | None:
    """Where the first whole frame behind the beginning is."""
    # A limit on the work: a hostile file may look like a frame at every byte.
    left = 4 * MAX_FRAME_BYTES
    for match in _PAYLOAD_START.finditer(data, _FRAME_BYTES + 1):
        at = match.start() - _FRAME_BYTES
        size = _FRAME.unpack_from(data, at)[0]
        if size <= min(MAX_FRAME_BYTES, len(data) - at - _FRAME_BYTES):
            left -= size
            if left < 0:
                break
            if _payload_at(data, at):
                return at
    return None


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
