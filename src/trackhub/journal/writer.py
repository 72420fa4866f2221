"""Appending to a journal: the one part of trackhub that runs on the training thread at every step.

Apart from the reader because it is written for speed and for being interrupted anywhere: by a signal, a fork, a kill, a
full disk.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from operator import attrgetter
from pathlib import Path

from trackhub.errors import RunFinishedError
from trackhub.journal.frames import (
    FORMAT_VERSION,
    FRAME_BYTES,
    HEADER,
    LAST_SEGMENT_BYTES,
    MAGIC,
    MAX_FRAME_BYTES,
    MAX_PARTS,
    MAX_SERIES_IN_MEMORY,
    JournalRecord,
    MetricNames,
    RankStarted,
    Role,
    WriterResumed,
    WriterStarted,
    crc32,
    encode,
    is_modest,
    pack_frame,
    segment_name,
)
from trackhub.journal.locks import claim_writer_number, release
from trackhub.private import make_directory, open_file
from trackhub.records import RunEnded

FIRST_SEGMENT_BYTES = 256 * 1024
MAX_MEMORY_BYTES = 64 * 1024 * 1024
_UINT64, _INT64 = 0xCF, 0xD3


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
        self.narrow, self.narrow_prefix, self.narrow_size = narrow.pack, head + b"\xce", narrow.size + FRAME_BYTES
        self.wide, self.wide_prefix, self.wide_size = wide.pack, head + b"\xd3", wide.size + FRAME_BYTES
        self.early = ">8sqBq" + tail


class _Segment:
    """One segment being written: a mapped file; memory that waits for a disk which takes nothing; or, on file systems
    that cannot map a file for writing, memory that is written out at once."""

    def __init__(self, directory: Path, writer: int, number: int, size: int) -> None:
        self.path, self.number, self.size = directory / segment_name(writer, number), number, size
        self.used = HEADER.size
        self.written = HEADER.size
        self.descriptor: int | None = None
        self.map: mmap.mmap | None = None
        self.view: mmap.mmap | bytearray = bytearray()
        self._header = HEADER.pack(MAGIC, FORMAT_VERSION, writer, number, 0)

    def create(self) -> None:
        """Create the file with its room reserved, so that a full disk shows here and never as a SIGBUS later.

        It gets its name when that has worked, so that a reader never holds a file which is then given up.
        """
        self.map = None
        new = f"{self.path}.new"
        # Never the same file as one that is being made: a handler may come between, and make that segment too.
        with suppress(FileNotFoundError):
            os.unlink(new)  # noqa: PTH108
        descriptor = open_file(new, os.O_RDWR | os.O_CREAT | os.O_EXCL)
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
            self.map[HEADER.size : self.used] = self.view[HEADER.size : self.used]
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
        role: "owner" for the process that holds the run, "rank" for those that a launcher started beside it, "worker"
            for others (forked children).
        time_ns: When the writer starts.
        version: trackhub's version, for people who read the journal.
        check_names: Called with each new set of metric names before it is written; raises if one is not accepted.
        rank: The process's rank, where a launcher started several.
        rank_count: How many of them there are.
        resume_step: The step after which this writer supersedes what was written before; None for no such thing. Not
            for one of several ranks.

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
        rank: int = 0,
        rank_count: int = 1,
        resume_step: int | None = None,
    ) -> None:
        make_directory(directory, parents=True)
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
        self._numbers_being_made: list[int] = []
        self._lock_descriptor, self.writer = claim_writer_number(directory)
        self._segment = _Segment(directory, self.writer, 0, FIRST_SEGMENT_BYTES)
        try:
            self._segment.create()
            self._segment.open(in_memory=True)
        except BaseException:
            release(self._lock_descriptor)
            raise
        self._view = self._segment.view
        self._through = self._segment.map is None
        self._limit = self._segment.size
        self._position = self._segment.used
        self._series: dict[tuple[str, ...], _Series] = {}
        who = (time_ns, role, os.getpid(), socket.gethostname(), version)
        if rank_count > 1:
            self.append(RankStarted(*who, rank, rank_count))
        elif resume_step is not None:
            self.append(WriterResumed(*who, resume_step))
        else:
            self.append(WriterStarted(*who))

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
                frame = pack_frame(size - FRAME_BYTES, crc32(payload)) + payload
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
            self._append_payload(encode(record))
            if isinstance(record, RunEnded):
                self._ended = True
                self._limit = 0

    def _append_payload(self, payload: bytes) -> int:
        size = len(payload) + FRAME_BYTES
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a record of {len(payload):,} bytes is over the limit of {MAX_FRAME_BYTES:,} bytes")
        if not is_modest(payload):
            raise ValueError(f"a record of more than {MAX_PARTS:,} texts, lists and mappings is over the limit")
        frame = pack_frame(len(payload), crc32(payload)) + payload
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
        payload = encode(MetricNames(list(names)))
        # The values must follow in the same segment, so make room for both before writing either.
        needed = len(payload) + 2 * FRAME_BYTES + 32 + 8 * len(names)
        if needed > MAX_FRAME_BYTES or len(names) >= MAX_PARTS:
            raise ValueError(f"{len(names):,} metrics in one call are over the limit of {MAX_FRAME_BYTES:,} bytes")
        if self._position + needed > self._limit:
            # Twice that at least, for many names: with room for a step or two, a segment would be mostly names.
            self._rotate(max(needed, min(2 * needed, LAST_SEGMENT_BYTES * 4)))
        # Should a signal handler rotate now, the names end up with the series of a segment that is no longer written.
        known = self._series
        known[names] = _Series(self._append_payload(payload), len(names))

    def _rotate(self, needed: int) -> None:
        """Go on in a new segment with room for `needed` bytes.

        A signal handler that logs may come between anywhere, and rotate too: then its segment stands and this one stays
        empty. So may one that raises: then the next append rotates. So who needs the room looks whether it is there.
        """
        if self._ended or self._closed:
            raise RunFinishedError("the run has ended: its journal takes no more records")
        # No call before the old segment is closed: readers take it for complete as soon as they see the next one.
        old, number, interrupted = self._segment, self._next_number, self._numbers_being_made
        old.used = self._position
        self._limit = 0
        self._next_number = number + 1
        self._numbers_being_made = [*interrupted, number]
        try:
            # Those which this handler interrupted may come to theirs late or never, and readers would miss a segment.
            for lower in interrupted:
                self._make_empty(lower)
            size = max(min(FIRST_SEGMENT_BYTES * 4 ** min(number, 8), LAST_SEGMENT_BYTES), 2 * needed + HEADER.size)
            fresh = _Segment(self.directory, self.writer, number, size)
            if old.waits and old.descriptor is not None:
                with suppress(OSError):
                    old.write_out(old.used)
            fresh.open(in_memory=bool(self._waiting) or old.waits)
            waits = old.waits
            lost = waits and sum(segment.used for segment in self._waiting) + old.used > MAX_MEMORY_BYTES
            # By a handler that then came to no segment of its own. Readers may have seen it, and hold the empty one.
            made_empty = fresh.descriptor is None and self._has_file(number)
            through, series = fresh.descriptor is not None and fresh.map is None, dict[tuple[str, ...], _Series]()
        except BaseException:
            made = self._has_file(number)
            if self._next_number == number + 1 and not made:  # No call from here on.
                self._next_number = number
            self._numbers_being_made = interrupted
            raise
        self._numbers_being_made = interrupted  # No call from here on.
        # Not where a later one was made, even if its maker then failed: readers take this one for complete.
        if self._segment is old and self._next_number == number + 1 and not made_empty:
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

    def _make_empty(self, number: int) -> None:
        if self._has_file(number):
            return
        empty = _Segment(self.directory, self.writer, number, HEADER.size)
        empty.open(in_memory=bool(self._waiting))
        if empty.descriptor is None:
            self._waiting = [*self._waiting, empty]
        else:
            self._retired = [*self._retired, empty]

    def _has_file(self, number: int) -> bool:
        return (self.directory / segment_name(self.writer, number)).exists()

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
        # First of all into files: what is in memory alone ends with the process, and to make files durable takes time.
        self._write_what_waits()
        while self._retired:
            self._retired[0].complete()
            # Under the lock: the append that a handler has come between may still be writing this segment out.
            with self._lock:
                self._retired[0].abandon()
                self._retired = self._retired[1:]
        with self._lock:
            current = self._segment
            position, descriptor = (current.number, self._position), current.descriptor
        if descriptor is not None and position != self._synced:
            os.fdatasync(descriptor)
            if position[0] != self._synced[0]:
                _sync_directory(self.directory)
            self._synced = position

    def _write_what_waits(self) -> None:
        """Write to files what is in memory alone, in order, for readers take a segment for complete when they see the
        next one."""
        while True:
            while self._waiting:
                segment = min(self._waiting, key=attrgetter("number"))
                segment.move_to_disk()
                with self._lock:
                    self._waiting.remove(segment)
                    self._retired = [*self._retired, segment]
            with self._lock:
                current = self._segment
                current.used = self._position
                # Looked at after that: should a handler rotate now, this one waits too.
                if not self._waiting:
                    if current.waits:
                        self._bring_to_disk(current)
                    return

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
            fresh[HEADER.size : end] = self._view[HEADER.size : end]
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
                with self._lock, ExitStack() as whatever_happens:
                    self._closed = True
                    self._limit = 0
                    self._segment.used = self._position
                    whatever_happens.callback(release, self._lock_descriptor)
                    whatever_happens.callback(self._segment.abandon)
                    whatever_happens.callback(self._segment.complete)
                    self._write_what_waits()

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
