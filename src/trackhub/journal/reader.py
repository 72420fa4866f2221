"""Reading a journal, also while it is written, and telling a write in progress from damage.

Apart from the writer because it trusts nothing: every length, offset and payload may be wrong, and no file may cost
more than bounded memory and time.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from trackhub.errors import JournalError
from trackhub.journal.frames import (
    FORMAT_VERSION,
    FRAME,
    FRAME_BYTES,
    HEADER,
    MAGIC,
    MAX_FRAME_BYTES,
    MAX_NAMES_IN_MEMORY,
    MAX_SEGMENT_BYTES,
    MAX_SERIES_IN_MEMORY,
    NOT_DECODED,
    SEGMENT_NAME,
    JournalRecord,
    MetricNames,
    MetricValues,
    Position,
    WriterStarted,
    crc32,
    decode,
    is_modest,
    segment_name,
)
from trackhub.journal.holders import Holders
from trackhub.journal.locks import writer_is_alive
from trackhub.private import UntrustedFileError, open_to_read
from trackhub.records import MetricsLogged, RunEnded

_PAYLOAD_START = re.compile(rb"[\x90-\x9f][\x00-\x7f]")
_READ_BYTES = 1 << 18
_FIRST_SEARCH_BYTES = 1 << 16
_UINT32, _UINT64 = 0xCE, 0xCF
_FAR = 1 << 62
_NOWHERE = (-1, 0)


@dataclass
class Chunk:
    """What one `JournalReader.read` found.

    Args:
        records: In the order they were written, writer by writer.
        position: Where to go on.
        began: Writers that began in this chunk, and who they are.
        ends: Writers whose `RunEnded` was in this chunk.
        parts: Writer and number of its first record in `records`, for each writer that has any.
        damaged: One sentence for each damaged place that was skipped.
        empty: Whether there was nothing to read.
        full: Whether reading stopped because there was enough for one chunk.
    """

    records: list[JournalRecord] = field(default_factory=list)
    position: Position = field(default_factory=dict)
    began: dict[int, WriterStarted] = field(default_factory=dict)
    ends: dict[int, RunEnded] = field(default_factory=dict)
    parts: list[tuple[int, int]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    empty: bool = True
    full: bool = False

    @property
    def owners(self) -> list[int]:
        """Writers that began in this chunk as the run's owner."""
        return [writer for writer, started in self.began.items() if started.role == "owner"]

    def by_writer(self) -> list[tuple[int, list[JournalRecord]]]:
        """The records of each writer that has any, with its number."""
        stops = [*(first for _, first in self.parts), len(self.records)][1:]
        return [(writer, self.records[first:stop]) for (writer, first), stop in zip(self.parts, stops, strict=True)]


class JournalReader:
    """Reads a journal, also while it is written, from any place.

    Args:
        directory: The run's `journal` directory; may not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._names: dict[tuple[int, int, int], list[str]] = {}
        self._names_held = 0
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
            if match := SEGMENT_NAME.fullmatch(name):
                found.setdefault(int(match[1]), []).append(int(match[2]))
        return {writer: sorted(found[writer]) for writer in sorted(found)}

    def holders(self, alive: set[int] | None = None) -> Holders:
        """Who holds the run, and the ends they gave it, without reading what lies between.

        Args:
            alive: Filled with the writers among them whose processes still write.
        """
        found, segments = Holders(), self.segments()
        for writer in segments:
            start = {str(writer): (segments[writer][0], HEADER.size)}
            found.add(self.read(start, max_points=1, only=writer).began, {})
        if alive is not None:
            alive.update(writer for writer in found.writers if writer_is_alive(self.directory, writer))
        for writer in found.writers:
            # The end is the last thing a holder writes, so its last segment has it.
            place: Position = {str(writer): (self.segments().get(writer, segments[writer])[-1], HEADER.size)}
            while not (chunk := self.read(place, only=writer)).empty and writer not in chunk.ends:
                place = chunk.position
            found.add({}, chunk.ends)
        return found

    def last_owner(self) -> tuple[int, RunEnded | None]:
        """The number of the last writer that owned the run (0 for none), and the end it gave the run."""
        found = self.holders()
        return found.owner, found.ends.get(found.owner)

    def read(
        self,
        position: Mapping[str, Iterable[int]],
        *,
        max_points: int = 5_000,
        max_bytes: int = 4 << 20,
        only: int | None = None,
        end: Mapping[str, Iterable[int]] | None = None,
    ) -> Chunk:
        """Read on from a position.

        Args:
            position: What an earlier chunk gave; empty for the beginning.
            max_points: Stop after about so many metric values and other records.
            max_bytes: Stop after about so many bytes of frames.
            only: Read this writer alone.
            end: Read up to this position, though there may be more; default: all there is.
        """
        chunk = Chunk(position=dict(_places(position)))
        budget = _Budget(max_points, max_bytes)
        ends = None if end is None else dict(_places(end))
        self._nameless.clear()
        for writer, numbers in self.segments().items():
            if only not in (None, writer):
                continue
            last, limit = (_FAR, 0) if ends is None else ends.get(str(writer), _NOWHERE)
            numbers = numbers[: bisect_right(numbers, last)]
            place = chunk.position.get(str(writer))
            if not numbers or (place or _NOWHERE) >= (last, limit):
                continue
            number, offset = place or (-1, HEADER.size)
            before = len(chunk.records)
            while budget.left:
                later = bisect_right(numbers, number)
                followed = later < len(numbers)
                if number >= 0:
                    stop = limit if number == last else _FAR
                    offset, ended = self._read_segment(writer, number, offset, stop, chunk, budget, followed=followed)
                    if not (ended and followed):
                        break
                if numbers[later] > number + 1:
                    missing = segment_name(writer, number + 1)
                    chunk.damaged.append(f"{missing} is missing, with {numbers[later] - number - 1} segments in all")
                number, offset = numbers[later], HEADER.size
            if len(chunk.records) > before:
                chunk.parts.append((writer, before))
            if number >= 0 and place != (number, offset):
                chunk.position[str(writer)] = (number, offset)
                chunk.empty = False
        for (writer, number, names_at), count in self._nameless.items():
            name = segment_name(writer, number)
            chunk.damaged.append(f"{name} at {names_at}: metric names damaged, and {count} records of metrics lost")
        chunk.full = not budget.left
        return chunk

    def _read_segment(
        self, writer: int, number: int, offset: int, stop: int, chunk: Chunk, budget: _Budget, *, followed: bool
    ) -> tuple[int, bool]:
        """Read frames from `offset` up to `stop`; give back how far, and whether that was the end of the segment."""
        try:
            descriptor = self._descriptor(writer, number)
        except FileNotFoundError:
            return offset, True
        except UntrustedFileError:
            chunk.damaged.append(f"{segment_name(writer, number)} is no file")
            return offset, True
        began, ended = offset, False
        while budget.left and not ended and offset < stop:
            # A frame's size at least: an end inside of it is that of a damaged cursor.
            data = os.pread(descriptor, min(_READ_BYTES, max(stop - offset, FRAME_BYTES)), offset)
            at = 0
            while budget.points > 0 and budget.bytes > 0 and (payload := _payload_at(data, at)):
                self._take(writer, number, offset + at, payload, chunk, budget)
                before, at = at, at + FRAME_BYTES + len(payload)
                if data[at : at + 4] == data[before : before + 4] and data[at + 8 : at + 16] == payload[:8]:
                    at = self._take_alike(writer, number, data, at, payload, chunk, budget)
            offset += at
            if at > 0:
                continue
            if payload := _payload_in_file(descriptor, offset, data):
                self._take(writer, number, offset, payload, chunk, budget)
                offset += FRAME_BYTES + len(payload)
                continue
            onward = self._pass_over(writer, number, offset, data, chunk, followed=followed)
            if onward is None:
                break
            offset, ended = onward
        if began == HEADER.size and (offset > began or (ended and followed)):
            header = os.pread(descriptor, HEADER.size, 0)
            if header[:8] != MAGIC or header[8:12] == bytes(4):
                chunk.damaged.append(f"{segment_name(writer, number)}: its header is damaged")
        return offset, ended

    def _descriptor(self, writer: int, number: int) -> int:
        if self._open_file is not None:
            if self._open_file[:2] == (writer, number):
                return self._open_file[2]
            self.close()
        path = self.directory / segment_name(writer, number)
        descriptor = open_to_read(path)
        header = os.pread(descriptor, HEADER.size, 0)
        if len(header) == HEADER.size and header[:8] == MAGIC:
            version = HEADER.unpack(header)[1]
            if version > FORMAT_VERSION:
                os.close(descriptor)
                raise JournalError(
                    f"{path} was written in format {version}; this trackhub reads up to {FORMAT_VERSION}: upgrade it"
                )
        self._open_file = (writer, number, descriptor)
        return descriptor

    def _take(self, writer: int, number: int, offset: int, payload: bytes, chunk: Chunk, budget: _Budget) -> None:
        """Take in one record. Done for every step there is, hence the short ways."""
        budget.bytes -= len(payload)
        budget.points -= 1
        if not is_modest(payload):
            chunk.damaged.append(f"{segment_name(writer, number)} at {offset}: holds too much to be a record")
            return
        try:
            record = decode(payload)
        except NOT_DECODED as error:
            chunk.damaged.append(f"{segment_name(writer, number)} at {offset}: not a known record ({error})")
            return
        if type(record) is MetricValues:
            names = self._names.get((writer, number, record.names_at))
            if names is None:
                names = self._read_names(writer, number, record.names_at)
            packed = record.values
            count = len(packed) >> 3
            if names is None or len(names) != count or len(packed) & 7:
                self._nameless[writer, number, record.names_at] += 1
                return
            budget.points -= count - 1
            values = dict(zip(names, _doubles(count).unpack(packed)))  # noqa: B905 (of equal length, as just seen)
            chunk.records.append(MetricsLogged(record.time_ns, record.step, values))
        elif isinstance(record, MetricNames):
            self._remember_names(writer, number, offset, record.names)
        elif isinstance(record, WriterStarted):
            chunk.began[writer] = record
        else:
            if isinstance(record, RunEnded):
                chunk.ends[writer] = record
            chunk.records.append(record)

    def _take_alike(
        self, writer: int, number: int, data: bytes, at: int, payload: bytes, chunk: Chunk, budget: _Budget
    ) -> int:
        """Take in the frames of metrics at `at` that have the names of the one before; give back where they end.

        What `_take` does, in a third of its time: most of a long journal are such stretches. A frame that differs in
        anything but its numbers, or that is damaged, is left to it.
        """
        names = self._names.get((writer, number, int.from_bytes(payload[3:7], "big")))
        if names is None or payload[:3] != b"\x95\x11\xce" or payload[7] != _UINT32:
            return at
        layout, values_prefix = _alike_layout(len(names))
        stride, size, head = layout.size, data[at : at + 4], payload[:8]
        if stride != FRAME_BYTES + len(payload):
            return at
        count = min(-(-budget.points // len(names)), -(-budget.bytes // len(payload)), (len(data) - at) // stride)
        add, began = chunk.records.append, at
        for size_at, crc, head_at, step, mark, time_ns, prefix, *numbers in layout.iter_unpack(
            memoryview(data)[at : at + max(count, 0) * stride]
        ):
            if size_at != size or head_at != head or mark != _UINT64 or prefix != values_prefix:
                break
            if crc32(data[at + FRAME_BYTES : at + stride]).to_bytes(4, "little") != crc:
                break
            add(MetricsLogged(time_ns, step, dict(zip(names, numbers))))  # noqa: B905 (of equal length)
            at += stride
        taken = (at - began) // stride
        budget.points -= taken * len(names)
        budget.bytes -= taken * len(payload)
        return at

    def _remember_names(self, writer: int, number: int, offset: int, names: list[str]) -> None:
        self._names_held += len(names)
        if len(self._names) >= MAX_SERIES_IN_MEMORY or self._names_held > MAX_NAMES_IN_MEMORY:
            self._names.clear()
            self._names_held = len(names)
        self._names[writer, number, offset] = names
        self._names_held += len(names)

    def _read_names(self, writer: int, number: int, offset: int) -> list[str] | None:
        descriptor = self._descriptor(writer, number)
        payload = _payload_in_file(descriptor, offset, os.pread(descriptor, FRAME_BYTES, offset))
        if not payload or not is_modest(payload):
            return None
        try:
            record = decode(payload)
        except NOT_DECODED:
            return None
        if not isinstance(record, MetricNames):
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
        left = min(os.fstat(descriptor).st_size, MAX_SEGMENT_BYTES) - offset
        # Mostly there is one close by; a file that is damaged everywhere would be read whole at every place.
        rest = os.pread(descriptor, min(max(left, 0), _FIRST_SEARCH_BYTES), offset)
        following = _find_frame(rest)
        if following is None and left > _FIRST_SEARCH_BYTES:
            rest = os.pread(descriptor, left, offset)
            following = _find_frame(rest)
        # A frame is written when the one before it is whole, so what there is here now is all there will be.
        if _payload_in_file(descriptor, offset, os.pread(descriptor, FRAME_BYTES, offset)):
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
    if at + FRAME_BYTES > len(data):
        return None
    size, crc = FRAME.unpack_from(data, at)
    stop = at + FRAME_BYTES + size
    if size == 0 or size > MAX_FRAME_BYTES or stop > len(data):
        return None
    payload = data[at + FRAME_BYTES : stop]
    return payload if crc32(payload) == crc else None


def _payload_in_file(descriptor: int, offset: int, data: bytes) -> bytes | None:
    """The same for a frame of any size in a file, given the first bytes of it."""
    if len(data) < FRAME_BYTES:
        return None
    size = FRAME.unpack_from(data)[0]
    if size == 0 or size > MAX_FRAME_BYTES or size + FRAME_BYTES <= len(data):
        return None
    return _payload_at(os.pread(descriptor, size + FRAME_BYTES, offset), 0)


def _find_frame(data: bytes) -> int | None:
    """Where the first whole frame behind the beginning is."""
    # A limit on the work: a hostile file may look like a frame at every byte.
    left = 4 * MAX_FRAME_BYTES
    for match in _PAYLOAD_START.finditer(data, FRAME_BYTES + 1):
        at = match.start() - FRAME_BYTES
        size = FRAME.unpack_from(data, at)[0]
        if size <= min(MAX_FRAME_BYTES, len(data) - at - FRAME_BYTES):
            left -= size
            if left < 0:
                break
            if _payload_at(data, at):
                return at
    return None


class _Budget:
    """How much more fits into a chunk."""

    def __init__(self, points: int, size: int) -> None:
        self.points, self.bytes = points, size

    @property
    def left(self) -> bool:
        return self.points > 0 and self.bytes > 0


@lru_cache(maxsize=64)
def _doubles(count: int) -> struct.Struct:
    return struct.Struct(f">{count}d")


@lru_cache(maxsize=64)
def _alike_layout(count: int) -> tuple[struct.Struct, bytes]:
    """A frame of so many values whose step takes 32 bits, and what stands before the values."""
    size = 8 * count
    if size < 1 << 8:
        prefix = struct.pack(">BB", 0xC4, size)
    elif size < 1 << 16:
        prefix = struct.pack(">BH", 0xC5, size)
    else:
        prefix = struct.pack(">BI", 0xC6, size)
    return struct.Struct(f">4s4s8sIBQ{len(prefix)}s{count}d"), prefix


def _places(position: Mapping[str, Iterable[int]]) -> Iterator[tuple[str, tuple[int, int]]]:
    for writer, place in position.items():
        segment, offset = place
        yield writer, (segment, offset)
