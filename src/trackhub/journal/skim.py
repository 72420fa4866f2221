"""What a journal amounts to (records, points, last step, end), read off its frames' headers without decoding them.

Apart from the reader because it answers for a list of a hundred runs, where decoding every record takes too long. Where
a frame looks odd it leaves the whole question to the reader, which knows what to do with damage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from trackhub.journal.frames import (
    FORMAT_VERSION,
    FRAME,
    FRAME_BYTES,
    HEADER,
    MAGIC,
    MAX_SEGMENT_BYTES,
    NOT_DECODED,
    MetricNames,
    MetricValues,
    RankStarted,
    WriterResumed,
    WriterStarted,
    crc32,
    segment_name,
)
from trackhub.journal.holders import Holders
from trackhub.journal.locks import writer_is_alive
from trackhub.journal.reader import JournalReader
from trackhub.private import UntrustedFileError, read_file
from trackhub.records import MetricsLogged, ParamsLogged, RocCurveLogged, RunEnded


def _tag(record: msgspec.StructMeta) -> int:
    tag = record.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


_METRICS, _PARAMS, _ROC_CURVE, _END = map(_tag, (MetricsLogged, ParamsLogged, RocCurveLogged, RunEnded))
_NAMES, _VALUES, _STARTED, _RESUMED = map(_tag, (MetricNames, MetricValues, WriterStarted, WriterResumed))
_UINT32 = 0xCE
_UINT64 = 0xCF
_INT64 = 0xD3
_ALIKE = (0, 9, 15, 1, 2, 3)
"""Where frames of metrics of the same size and kind have the same bytes: size, tag, and width of the step."""


@dataclass(frozen=True)
class Skim:
    """What a journal amounts to, from one place on.

    Args:
        records: Number of records that a backend is given.
        points: Number of metric values.
        last_step: Step of the last metrics of the writer that wrote last; None without metrics.
        last_time_ns: Time of the last record of any kind; 0 without one.
        holders: Who holds the run, and the ends they gave it.
    """

    records: int = 0
    points: int = 0
    last_step: int | None = None
    last_time_ns: int = 0
    holders: Holders = field(default_factory=Holders)

    @property
    def error(self) -> str | None:
        """The error that ended it, if one did."""
        return self.holders.end.error if self.holders.end is not None else None

    @property
    def ended_ns(self) -> int | None:
        """When the last one that said so has ended it."""
        return self.holders.end.time_ns if self.holders.end is not None else None


class _OddFrameError(Exception):
    """The short cut does not hold for this journal."""


def skim(
    journal: Path,
    since: Mapping[str, Iterable[int]] | None = None,
    before: Skim | None = None,
    alive: set[int] | None = None,
) -> Skim:
    """Count what is in a journal.

    Args:
        journal: The run's `journal` directory; may not exist.
        since: A position; only what lies behind it counts. Default: everything. Holders and ends are then only known
            if they lie behind it.
        before: What there was up to that position, to be counted too; changed.
        alive: Filled with the writers whose processes still wrote before anything was read; for `Holders.status`.

    Raises:
        JournalError: A newer trackhub wrote it.
    """
    reader = JournalReader(journal)
    segments = reader.segments()
    if alive is not None:
        alive.update(writer for writer in segments if writer_is_alive(journal, writer))
    places = {int(writer): tuple(place) for writer, place in (since or {}).items()}
    total, began, ends = before or Skim(), dict[int, WriterStarted](), dict[int, RunEnded]()
    try:
        for writer, numbers in segments.items():
            first, offset = places.get(writer, (numbers[0], HEADER.size))
            for number in numbers:
                if number >= first:
                    path = journal / segment_name(writer, number)
                    start = offset if number == first else HEADER.size
                    amount, started, end = _skim_segment(path, start)
                    total = _add(total, amount)
                    if started is not None:
                        began[writer] = started
                    if end is not None:
                        ends[writer] = end
        total.holders.add(began, ends)
        return total
    except (_OddFrameError, IndexError, *NOT_DECODED):
        return _read(reader, since or {}, before or Skim(), segments, alive)
    finally:
        reader.close()


def last_step(journal: Path, only: int | None = None) -> int:
    """The step of the metrics that the last writer with any has logged last; -1 if there are none.

    Reads the ends of the journal's writers, not all of it.

    Args:
        journal: The run's `journal` directory.
        only: This writer alone.

    Raises:
        JournalError: A newer trackhub wrote it.
    """
    reader = JournalReader(journal)
    try:
        segments = reader.segments()
        for writer in reversed(segments):
            if only not in (None, writer):
                continue
            for number in reversed(segments[writer]):
                try:
                    found = _skim_segment(journal / segment_name(writer, number), HEADER.size)[0].last_step
                except (_OddFrameError, IndexError, *NOT_DECODED):
                    found = skim(journal).last_step
                if found is not None:
                    return found
    finally:
        reader.close()
    return -1


def _add(earlier: Skim, later: Skim) -> Skim:
    newer = later if later.last_time_ns >= earlier.last_time_ns else earlier
    older = earlier if newer is later else later
    return Skim(
        records=earlier.records + later.records,
        points=earlier.points + later.points,
        last_step=older.last_step if newer.last_step is None else newer.last_step,
        last_time_ns=newer.last_time_ns,
        holders=earlier.holders,
    )


def _skim_segment(path: Path, offset: int) -> tuple[Skim, WriterStarted | None, RunEnded | None]:
    """What one segment amounts to, who began to write it, and the end it gave the run."""
    try:
        data = read_file(path, MAX_SEGMENT_BYTES)
    except FileNotFoundError:
        return Skim(), None, None
    except UntrustedFileError:
        raise _OddFrameError from None
    if len(data) < HEADER.size or HEADER.unpack_from(data)[:2] != (MAGIC, FORMAT_VERSION):
        raise _OddFrameError
    unpack, limit = FRAME.unpack_from, len(data) - FRAME_BYTES - 1
    records = points = 0
    started = None
    at, last, last_values = offset, -1, -1
    while at < limit:
        size, _ = unpack(data, at)
        if size == 0:
            break
        tag = data[at + 9]
        if tag == _VALUES:
            # Behind the prefix and the step (32 or 64 bits) come the time and the floats, whose length takes 2 to 5.
            alike = _frames_alike(data, at, size + FRAME_BYTES)
            points += alike * ((size - 21 if data[at + 15] == _UINT32 else size - 25) >> 3)
            records += alike
            at += (alike - 1) * (size + FRAME_BYTES)
            last_values = at
        elif data[at + 8] & 0xF0 != 0x90 or not _METRICS <= tag <= _RESUMED:
            raise _OddFrameError
        elif _PARAMS <= tag <= _ROC_CURVE:
            records += 1
        elif tag >= _STARTED:
            started = msgspec.msgpack.decode(_whole_payload(data, at), type=WriterStarted | RankStarted | WriterResumed)
        if tag != _NAMES:
            last = at
        at += size + FRAME_BYTES
    if any(data[at : at + FRAME_BYTES]) or at > len(data):
        raise _OddFrameError
    counted, end = _with_last(Skim(records, points), data, last, last_values)
    return counted, started, end


def _frames_alike(data: bytes, at: int, stride: int) -> int:
    """How many frames of metrics lie one behind the other with the same size and the same kind of step.

    One byte of every frame at a time is compared, in ever longer stretches: a training logs the same names for hours.
    """
    count, ahead = 1, 1
    while True:
        start = at + count * stride
        ahead = min(ahead, (len(data) - start) // stride)
        if ahead <= 0:
            return count
        equal = ahead
        for place in _ALIKE:
            column = data[start + place : start + equal * stride : stride]
            equal = len(column) - len(column.lstrip(data[at + place : at + place + 1]))
            if not equal:
                return count
        count += equal
        if equal < ahead:
            return count
        ahead *= 8


def _with_last(counted: Skim, data: bytes, last: int, last_values: int) -> tuple[Skim, RunEnded | None]:
    """Add what the last frames say; that they are whole stands for those before them."""
    if last < 0:
        return counted, None
    end = None
    payload = _whole_payload(data, last)
    if payload[1] == _END:
        end = msgspec.msgpack.decode(payload, type=RunEnded)
        counted = replace(counted, last_time_ns=end.time_ns)
    else:
        counted = replace(counted, last_time_ns=_time_ns(payload))
    if last_values >= 0:
        counted = replace(counted, last_step=_whole_step(_whole_payload(data, last_values)))
    return counted, end


def _whole_payload(data: bytes, at: int) -> bytes:
    size, crc = FRAME.unpack_from(data, at)
    payload = data[at + FRAME_BYTES : at + FRAME_BYTES + size]
    if len(payload) != size or crc32(payload) != crc:
        raise _OddFrameError
    return payload


def _whole_step(payload: bytes) -> int:
    wide = payload[7] != _UINT32
    return int.from_bytes(payload[8 : 16 if wide else 12], "big", signed=wide)


def _time_ns(payload: bytes) -> int:
    at = 2
    if payload[1] == _VALUES:
        at = 12 if payload[7] == _UINT32 else 16
    if payload[at] not in (_UINT64, _INT64):
        raise _OddFrameError
    return int.from_bytes(payload[at + 1 : at + 9], "big", signed=payload[at] == _INT64)


def _read(
    reader: JournalReader,
    since: Mapping[str, Iterable[int]],
    total: Skim,
    known: Collection[int] = (),
    alive: set[int] | None = None,
) -> Skim:
    """The same by decoding every record."""
    position = since
    while True:
        chunk = reader.read(position)
        if chunk.empty:
            return total
        position = chunk.position
        for record in chunk.records:
            if isinstance(record, MetricsLogged):
                total = replace(total, points=total.points + len(record.values), last_step=record.step)
        real = [record for record in chunk.records if not isinstance(record, RunEnded)]
        latest = max((record.time_ns for record in chunk.records), default=0)
        total = replace(total, records=total.records + len(real), last_time_ns=max(latest, total.last_time_ns))
        total.holders.add(chunk.began, chunk.ends)
        if alive is not None:
            # Those that began after the others were asked: they wrote just now.
            alive.update(writer for writer in chunk.began if writer not in known)
