"""The events of one TensorBoard event file, as far as they can be read.

Apart from what becomes of them because it is about bytes that nobody vouches for. TensorBoard's own reader reads as
many bytes as a length field says and stops at the first damage; this one bounds what it reads, passes over damage and
says so.

    file   = record*
    record = length:u64 crc(length):u32 event crc(event):u32      little-endian; CRC-32C, masked
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trackhub.backends.tensorboard.file import crc32c

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""A larger event is left out."""

MAX_EVENT_PARTS = 200_000
"""Fields in one event: each takes many times its bytes in memory."""

_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
_SMALL_BYTES = 1 << 20
_SEARCHED_BYTES = 16 * 1024 * 1024
_SEARCHED_FIRST_BYTES = 1024
_MAX_TRIED = 100_000

# Field numbers in an event's protocol buffers: of messages, and of plain bytes.
_Message = dict[int, Any]
_BYTES = None
_SHAPE: _Message = {2: {}}
_TENSOR: _Message = {2: _SHAPE, **dict.fromkeys((4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17), _BYTES)}
_METADATA: _Message = {1: {2: _BYTES}, 2: _BYTES, 3: _BYTES}
_VALUE: _Message = {
    1: _BYTES,
    3: _BYTES,
    4: {4: _BYTES},
    5: {6: _BYTES, 7: _BYTES},
    6: {4: _BYTES, 5: _BYTES},
    8: _TENSOR,
    9: _METADATA,
}
_EVENT: _Message = {3: _BYTES, 4: _BYTES, 5: {1: _VALUE}, 6: {3: _BYTES}, 8: {2: _BYTES}, 9: _BYTES}


@dataclass
class Damage:
    """What of a file could not be read.

    Args:
        torn: Whether its last record was cut off.
        records: Records with a wrong checksum, or that are no events.
        too_large: Records beyond the limits.
        skipped_bytes: Bytes passed over to the next whole record.
    """

    torn: bool = False
    records: int = 0
    too_large: int = 0
    skipped_bytes: int = 0


def read_events(path: Path, size: int, damage: Damage, digest: Any = None) -> Iterator[tuple[Any, bytes]]:
    """The events of a file, parsed and as bytes.

    Args:
        path: The file.
        size: How much of it to read: it may be written still.
        damage: Gets what could not be read.
        digest: Is fed every event.

    Raises:
        OSError: It cannot be read.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    for data in _payloads(path, size, damage):
        if digest is not None:
            digest.update(data)
        if len(data) > _SMALL_BYTES and not _is_modest(data):
            damage.too_large += 1
            continue
        try:
            event = Event.FromString(data)
        except DecodeError:
            damage.records += 1
            continue
        yield event, data


def _payloads(path: Path, size: int, damage: Damage) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=1 << 18) as file:
        at = 0
        while at < size:
            head = file.read(min(_HEAD.size, size - at))
            length = _length(head)
            if length is None:
                if len(head) < _HEAD.size:
                    damage.torn = True
                    return
                found = _next_record(file, at + 1, size)
                damage.records += 1
                damage.skipped_bytes += (size if found is None else found) - at
                if found is None:
                    return
                at = found
                file.seek(at)
                continue
            end = at + _HEAD.size + length + _TAIL.size
            if end > size:
                damage.torn = True
                return
            if length > MAX_EVENT_BYTES:
                damage.too_large += 1
                file.seek(end)
            else:
                data, tail = file.read(length), file.read(_TAIL.size)
                if len(tail) < _TAIL.size:  # the file has become shorter
                    damage.torn = True
                    return
                if _masked(data) == _TAIL.unpack(tail)[0]:
                    yield data
                else:
                    damage.records += 1
            at = end


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _length(head: bytes) -> int | None:
    """The length a record's head says; None if its checksum says otherwise."""
    if len(head) < _HEAD.size:
        return None
    length, crc = _HEAD.unpack(head)
    return int(length) if _masked(head[:8]) == crc else None


def _next_record(file: BinaryIO, start: int, size: int) -> int | None:
    """Where the next record begins whose head is right; None if there is none near."""
    file.seek(start)
    left = min(size - start, _SEARCHED_BYTES)
    data = b""
    at = tried = 0
    # Most often the next record is near, and there may be as much damage as there are records.
    while more := file.read(min(max(len(data), _SEARCHED_FIRST_BYTES), left - len(data))):
        data += more
        past_heads = len(data) - _HEAD.size + 1
        # A length that is within bounds ends with four zero bytes.
        while (zeros := data.find(b"\0\0\0\0", at + 4, past_heads + 7)) >= 0 and tried < _MAX_TRIED:
            at = zeros - 4
            if _length(data[at : at + _HEAD.size]) is not None:
                return start + at
            at, tried = at + 1, tried + 1
        at = max(at, past_heads)
    return None


def _is_modest(data: bytes) -> bool:
    """Whether a large event is large because of its content, and not because of countless tiny parts."""
    left = MAX_EVENT_PARTS
    waiting: list[tuple[int, int, _Message]] = [(0, len(data), _EVENT)]
    try:
        while waiting:
            at, end, message = waiting.pop()
            while at < end:
                left -= 1
                if left < 0:
                    return False
                key, at = _varint(data, at)
                kind, number = key & 7, key >> 3
                if kind == 0:
                    _, at = _varint(data, at)
                elif kind in (1, 5):
                    at += 8 if kind == 1 else 4
                elif kind == 2:
                    length, at = _varint(data, at)
                    inner = message.get(number, {})
                    if inner is not _BYTES:
                        waiting.append((at, min(at + length, end), inner))
                    at += length
                else:
                    return False
    except IndexError:
        return False
    return True


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128 or shift > 63:
            return value, at
        shift += 7
