"""What a journal amounts to (records, points, last step, end), read off its frames' headers without decoding them.

Apart from the reader because it answers for a list of a hundred runs, where decoding every record takes too long. Where
a frame looks odd it leaves the whole question to the reader, which knows what to do with damage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from trackhub.journal import FORMAT_VERSION, JournalReader, segment_name
from trackhub.records import EndStatus, MetricsLogged, RunEnded

_HEADER_BYTES = 24
_FRAME_BYTES = 8
_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<8sI")
_PARAMS, _ROC_CURVE, _END, _NAMES, _VALUES, _STARTED = 3, 14, 15, 16, 17, 18
_METRICS = 2
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
        owner: The last writer that owned the run; 0 for none.
        ended: The status which that owner gave the run, if it has ended it.
        error: The error it gave with it.
        ended_ns: When it did.
    """

    records: int = 0
    points: int = 0
    last_step: int | None = None
    last_time_ns: int = 0
    owner: int = 0
    ended: EndStatus | None = None
    error: str | None = None
    ended_ns: int | None = None


class _OddFrameError(Exception):
    """The short cut does not hold for this journal."""


def skim(journal: Path, since: Mapping[str, Iterable[int]] | None = None) -> Skim:
    """Count what is in a journal.

    Args:
        journal: The run's `journal` directory; may not exist.
        since: A position; only what lies behind it counts. Default: everything. Owner and end are then only known if
            they lie behind it.

    Raises:
        JournalError: A newer trackhub wrote it.
    """
    reader = JournalReader(journal)
    places = {int(writer): tuple(place) for writer, place in (since or {}).items()}
    total = Skim()
    try:
        for writer, numbers in reader.segments().items():
            first, offset = places.get(writer, (numbers[0], _HEADER_BYTES))
            for number in numbers:
                if number >= first:
                    path = journal / segment_name(writer, number)
                    total = _add(total, _skim_segment(path, writer, offset if number == first else _HEADER_BYTES))
        return total
    except _OddFrameError:
        return _read(reader, since or {})
    finally:
        reader.close()


def _add(earlier: Skim, later: Skim) -> Skim:
    newer = later if later.last_time_ns >= earlier.last_time_ns else earlier
    older = earlier if newer is later else later
    # A new owner begins anew; the end of an owner may lie segments behind its beginning.
    ending = later if later.owner or later.ended else earlier
    return Skim(
        records=earlier.records + later.records,
        points=earlier.points + later.points,
        last_step=older.last_step if newer.last_step is None else newer.last_step,
        last_time_ns=newer.last_time_ns,
        owner=later.owner or earlier.owner,
        ended=ending.ended,
        error=ending.error,
        ended_ns=ending.ended_ns,
    )


def _skim_segment(path: Path, writer: int, offset: int) -> Skim:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Skim()
    if len(data) < _HEADER_BYTES or _HEADER.unpack_from(data) != (b"trackhub", FORMAT_VERSION):
        raise _OddFrameError
    unpack, limit = _FRAME.unpack_from, len(data) - _FRAME_BYTES - 1
    records = points = owner = 0
    at, last, last_values = offset, -1, -1
    while at < limit:
        size, _ = unpack(data, at)
        if size == 0:
            break
        tag = data[at + 9]
        if tag == _VALUES:
            # Behind the prefix and the step (32 or 64 bits) come the time and the floats, whose length takes 2 to 5.
            alike = _frames_alike(data, at, size + _FRAME_BYTES)
            points += alike * ((size - 21 if data[at + 15] == _UINT32 else size - 25) >> 3)
            records += alike
            at += (alike - 1) * (size + _FRAME_BYTES)
            last_values = at
        elif data[at + 8] & 0xF0 != 0x90 or not _METRICS <= tag <= _STARTED:
            raise _OddFrameError
        elif _PARAMS <= tag <= _ROC_CURVE:
            records += 1
        elif tag == _STARTED and b"owner" in data[at : at + _FRAME_BYTES + size]:
            owner = writer
        if tag != _NAMES:
            last = at
        at += size + _FRAME_BYTES
    if any(data[at : at + _FRAME_BYTES]) or at > len(data):
        raise _OddFrameError
    return _with_last(Skim(records, points, owner=owner), data, last, last_values)


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


def _with_last(counted: Skim, data: bytes, last: int, last_values: int) -> Skim:
    """Add what the last frames say; that they are whole stands for those before them."""
    if last < 0:
        return counted
    payload = _whole_payload(data, last)
    if payload[1] == _END:
        end = msgspec.msgpack.decode(payload, type=RunEnded)
        counted = replace(counted, ended=end.status, error=end.error, ended_ns=end.time_ns, last_time_ns=end.time_ns)
    else:
        counted = replace(counted, last_time_ns=_time_ns(payload))
    if last_values >= 0:
        counted = replace(counted, last_step=_whole_step(_whole_payload(data, last_values)))
    return counted


def _whole_payload(data: bytes, at: int) -> bytes:
    size, crc = _FRAME.unpack_from(data, at)
    payload = data[at + _FRAME_BYTES : at + _FRAME_BYTES + size]
    if len(payload) != size or zlib.crc32(payload) != crc:
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


def _read(reader: JournalReader, since: Mapping[str, Iterable[int]]) -> Skim:
    """The same by decoding every record."""
    total, position = Skim(), since
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
        for owner in chunk.owners:
            total = replace(total, owner=owner, ended=None, error=None, ended_ns=None)
        for writer, end in chunk.ends.items():
            if writer == total.owner:
                total = replace(total, ended=end.status, error=end.error, ended_ns=end.time_ns)
