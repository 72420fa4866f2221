"""What the tests of the journal share: reading all of it, a record of every kind, and frames made by hand."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from trackhub.journal import Chunk, JournalReader, JournalRecord, JournalWriter, Position, segment_name
from trackhub.records import (
    ArtifactLogged,
    ConfusionMatrixLogged,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RocCurveLogged,
    RunEnded,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)

HEADER_BYTES = 24
HEADER = struct.Struct("<8sIIII")
FILE = StoredFile("blobs/0001-000001.png", 12_345, media_type="image/png")
EVERY_KIND: tuple[JournalRecord, ...] = (
    ParamsLogged(1, {"lr": 0.1, "name": "größe", "n": -3, "big": 2**64 - 1, "deep": [1, {"a": None}], "nan": math.nan}),
    TagsSet(2, {"team": "vision", "": "😀"}),
    MetricsLogged(3, 0, {"loss": 0.5, "train/acc": math.nan}),
    ArtifactLogged(4, "out/model.joblib", StoredFile("/data/m", 7, is_directory=True)),
    ModelLogged(5, "model", FILE, "digits"),
    TextLogged(6, "note", FILE, None),
    MetricsLogged(7, 2**63 - 1, {"loss": math.inf, "train/acc": -0.0}),
    HtmlLogged(8, "page", FILE, -1),
    ImageLogged(9, "cat", FILE, 640, 480, 3),
    FigureLogged(10, "curve", FILE, 4),
    MetricsLogged(-11, -(2**63), {"before 1970": 5e-324}),
    TableLogged(12, "rows", FILE, ["a", "b"], 2, 5),
    HistogramLogged(13, "weights", [0.0, 1.0, math.inf], [3.0, 4.5], 6, 7),
    ConfusionMatrixLogged(14, "cm", ["cat", "dog"], [[1.0, 2.0], [3.0, 4.0]], None),
    RocCurveLogged(15, "roc", [0.0, 1.0], [0.0, 1.0], [math.inf, 0.5], 8),
    MetricsLogged(16, 4294967296, {"train/acc": 1.0, "loss": 2.0}),
    RunEnded(17, "failed", "ValueError: no"),
)


def append(writer: JournalWriter, record: JournalRecord) -> None:
    if isinstance(record, MetricsLogged):
        writer.append_metrics(record.values, record.step, record.time_ns)
    else:
        writer.append(record)


def write(directory: Path, *records: JournalRecord, close: bool = True) -> JournalWriter:
    writer = JournalWriter(directory, "owner", 99, "0.0")
    for record in records:
        append(writer, record)
    if close:
        writer.close()
    return writer


@dataclass
class Found:
    """All that a journal gave, over as many chunks as it took."""

    records: list[JournalRecord] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    position: Position = field(default_factory=dict)
    ends: dict[int, RunEnded] = field(default_factory=dict)
    owners: list[int] = field(default_factory=list)
    chunks: int = 0

    def add(self, chunk: Chunk) -> None:
        self.records += chunk.records
        self.damaged += chunk.damaged
        self.position = chunk.position
        self.ends |= chunk.ends
        self.owners += chunk.owners
        self.chunks += 1


def read_all(directory: Path, position: Position | None = None, **limits: Any) -> Found:
    reader, found = JournalReader(directory), Found(position=position or {})
    try:
        # A reader that does not come to an end would be a failure of its own.
        for _ in range(1_000_000):
            chunk = reader.read(found.position, **limits)
            if chunk.empty:
                return found
            found.add(chunk)
    finally:
        reader.close()
    raise AssertionError("the reader goes round in circles")


def as_text(records: object) -> str:
    """Records as a text in which NaN equals NaN and -0.0 differs from 0.0."""

    def plain(record: object) -> dict[str, Any]:
        return {"kind": type(record).__name__, **msgspec.structs.asdict(record)}  # type: ignore[arg-type]

    return json.dumps(records, default=plain, indent=1, ensure_ascii=False)


def frame(payload: bytes, crc: int | None = None) -> bytes:
    return struct.pack("<II", len(payload), zlib.crc32(payload) if crc is None else crc) + payload


def packed(*fields: object) -> bytes:
    return msgspec.msgpack.encode(list(fields))


def segment(directory: Path, *frames: bytes, writer: int = 1, number: int = 0, version: int = 1) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / segment_name(writer, number)
    path.write_bytes(HEADER.pack(b"trackhub", version, writer, number, 0) + b"".join(frames))
    return path


def frames_of(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each frame of an undamaged segment begins and ends, and the tag of its record."""
    at = HEADER_BYTES
    while at < len(data):
        stop = at + 8 + struct.unpack_from("<I", data, at)[0]
        yield at, stop, data[at + 9]
        at = stop


def run_python(code: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Run code in a process of its own, with this folder on its path; gives what it printed."""
    done = subprocess.run(
        python_command(code, *arguments), capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python_command(code: str, *arguments: object) -> list[str]:
    preamble = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    return [sys.executable, "-c", preamble + code, *map(str, arguments)]
