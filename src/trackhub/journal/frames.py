"""The journal's format in code: sizes, headers, and how records become payloads and come back.

Apart because writer and reader must agree on it, and on nothing else.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Annotated, Literal

import msgspec

from trackhub.records import Deliverable, RunEnded

FORMAT_VERSION = 1
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_PARTS = 1_000_000
"""Texts, lists and mappings in one record; one more than the names of metrics in one call."""

LAST_SEGMENT_BYTES = 8 * 1024 * 1024
MAX_SEGMENT_BYTES = 2 * MAX_FRAME_BYTES + LAST_SEGMENT_BYTES
"""No writer makes a larger one; what lies behind is not looked at."""

MAX_SERIES_IN_MEMORY = 4096
MAX_NAMES_IN_MEMORY = 250_000

Role = Literal["owner", "worker", "rank"]
Position = dict[str, tuple[int, int]]
"""A place in a journal: writer number -> (segment, byte offset of the next frame). JSON-able."""

MAGIC = b"trackhub"
HEADER = struct.Struct("<8sIIII")
FRAME = struct.Struct("<II")
FRAME_BYTES = FRAME.size
pack_frame = FRAME.pack
crc32 = zlib.crc32
SEGMENT_NAME = re.compile(r"w(\d{4,})-s(\d{6,})\.journal")
NOT_DECODED = (ValueError, RecursionError)  # below ValueError: msgspec's errors, and UnicodeDecodeError, which is none


class WriterStarted(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Who wrote the segments of one writer.

    The owner is the process that holds the run, and can end it. A rank is a process that a launcher started beside the
    owner; it holds the run too (see holders.py). A worker, such as a forked child, only writes.
    """

    time_ns: int
    role: Role
    process_id: int
    host: str
    version: str


class RankStarted(WriterStarted, frozen=True, array_like=True, tag=19):
    """The same for a process that is one of several which a launcher started.

    Args:
        rank: Its rank; that of the owner is 0.
        rank_count: How many ranks there are.
    """

    rank: int
    rank_count: int


class WriterResumed(WriterStarted, frozen=True, array_like=True, tag=20):
    """The same for an owner that goes on from a checkpoint.

    Args:
        resume_step: The checkpoint's step: what the run was given before with a later one is superseded.
    """

    resume_step: int


class MetricNames(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Names of metrics, written once a segment."""

    names: list[str]


class MetricValues(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """The values of one step, in the order of the names that stand at `names_at`."""

    names_at: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    step: int
    time_ns: int
    values: bytes


_SCALARS = re.compile(
    rb"(?:[\x00-\x7f\xc0\xc2\xc3\xe0-\xff]|[\xcc\xd0].|[\xcd\xd1].{2}|[\xca\xce\xd2].{4}|[\xcb\xcf\xd3].{8})*", re.S
)
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_COUNT_BYTES = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


def is_modest(payload: bytes) -> bool:
    """Whether a payload holds no more texts, lists and mappings than a record may.

    In memory each of them takes fifty times the byte that it may take here, so a record can be small enough on disk and
    still be too large to be read. What cannot be told is left to the decoder.
    """
    if len(payload) <= MAX_PARTS:
        return True
    at, stop, parts = 0, len(payload), 0
    while True:
        # Numbers are most of what is large, and are passed over in one go.
        at = _SCALARS.match(payload, at).end()  # type: ignore[union-attr]
        if at >= stop:
            return True
        parts += 1
        if parts > MAX_PARTS:
            return False
        kind = payload[at]
        if kind < 0xA0:
            at += 1
        elif kind < 0xC0:
            at += 1 + (kind & 0x1F)
        elif (size := _LENGTH_BYTES.get(kind)) is not None:
            at += 1 + size + int.from_bytes(payload[at + 1 : at + 1 + size], "big")
        elif (size := _COUNT_BYTES.get(kind)) is not None:
            at += 1 + size
        else:
            return True


JournalRecord = Deliverable | RunEnded
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(
    # MetricsLogged itself is never on disk: MetricNames and MetricValues stand for it.
    JournalRecord | WriterStarted | RankStarted | WriterResumed | MetricNames | MetricValues
).decode


def segment_name(writer: int, segment: int) -> str:
    """The file name of a segment."""
    return f"w{writer:04d}-s{segment:06d}.journal"
