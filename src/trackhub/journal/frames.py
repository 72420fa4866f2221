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
LAST_SEGMENT_BYTES = 8 * 1024 * 1024
MAX_SERIES_IN_MEMORY = 4096
MAX_NAMES_IN_MEMORY = 250_000

Role = Literal["owner", "worker"]
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
    """Who wrote the segments of one writer. The owner is the process that holds the run; it alone can end it."""

    time_ns: int
    role: Role
    process_id: int
    host: str
    version: str


class MetricNames(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Names of metrics, written once a segment."""

    names: list[str]


class MetricValues(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """The values of one step, in the order of the names that stand at `names_at`."""

    names_at: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    step: int
    time_ns: int
    values: bytes


JournalRecord = Deliverable | RunEnded
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(
    # MetricsLogged itself is never on disk: MetricNames and MetricValues stand for it.
    JournalRecord | WriterStarted | MetricNames | MetricValues
).decode


def segment_name(writer: int, segment: int) -> str:
    """The file name of a segment."""
    return f"w{writer:04d}-s{segment:06d}.journal"
