"""The vocabulary: every kind of record that a run consists of, as frozen plain data.

Apart from everything else because all layers speak it: the tracker makes records, the journal stores them,
deliveries batch them and backends read them. Names are past participles, so that they never clash with a
vendor's `Metric` or `Artifact`.

Each struct is stored as a MessagePack array whose first element is its tag. A tag is never reused, and a field
is only ever added at the end with a default: that keeps every journal ever written readable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

PlainValue = str | int | float | bool | list[Any] | dict[str, Any] | None
"""What a param may be once it is stored: JSON's types, with NaN and infinities allowed."""

RunStatus = Literal["running", "finished", "failed", "killed"]
EndStatus = Literal["finished", "failed", "killed"]


class StoredFile(msgspec.Struct, frozen=True, array_like=True):
    """Where the content of a record lies.

    Args:
        path: Relative to the run directory for a snapshot; absolute for a file logged with `copy=False`.
        size_bytes: Size of the file, or of all files below the directory.
        is_directory: Whether `path` is a directory.
        media_type: RFC 6838 media type, e.g. `image/png`.
    """

    path: str
    size_bytes: int
    is_directory: bool = False
    media_type: str = "application/octet-stream"


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a directory that was logged; those of a linked folder, too, as its size counts them."""
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            yield Path(parent, name)


class Record(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """What all records have: the time of the call, in nanoseconds since the Unix epoch."""

    time_ns: int


class MetricsLogged(Record, frozen=True, tag=2):
    """The metrics of one step. Values are float64; NaN and infinities are kept."""

    step: int
    values: dict[str, float]


class ParamsLogged(Record, frozen=True, tag=3):
    """Params, flattened: nested names are joined with `/`."""

    params: dict[str, PlainValue]


class TagsSet(Record, frozen=True, tag=4):
    """Tags of the run. A later value replaces an earlier one."""

    tags: dict[str, str]


class ArtifactLogged(Record, frozen=True, tag=5):
    """A file or directory. `name` is its path in the run's artifacts, with `/` between the parts."""

    name: str
    file: StoredFile


class ModelLogged(Record, frozen=True, tag=6):
    """A model, as a file or directory; registered as `register_as` where a backend has a registry."""

    name: str
    file: StoredFile
    register_as: str | None = None


class TextLogged(Record, frozen=True, tag=7):
    """A UTF-8 text."""

    name: str
    file: StoredFile
    step: int | None = None


class HtmlLogged(Record, frozen=True, tag=8):
    """A UTF-8 HTML page or fragment."""

    name: str
    file: StoredFile
    step: int | None = None


class ImageLogged(Record, frozen=True, tag=9):
    """A picture, encoded as PNG or JPEG (see `file.media_type`). Width and height in pixels."""

    name: str
    file: StoredFile
    width: int
    height: int
    step: int | None = None


class FigureLogged(Record, frozen=True, tag=10):
    """A figure: `image/png` (matplotlib), `text/html` (plotly, complete page) or `image/svg+xml` (drawn by us)."""

    name: str
    file: StoredFile
    step: int | None = None


class TableLogged(Record, frozen=True, tag=11):
    """A table, stored as the JSON object `{"columns": [...], "data": [[row], ...]}`."""

    name: str
    file: StoredFile
    columns: list[str]
    row_count: int
    step: int | None = None


class HistogramLogged(Record, frozen=True, tag=12):
    """A histogram: `counts[i]` values lie between `edges[i]` and `edges[i + 1]` (one more edge than counts).

    `left_out` values were NaN or infinite and are in no bin.
    """

    name: str
    edges: list[float]
    counts: list[float]
    step: int | None = None
    left_out: int = 0


class ConfusionMatrixLogged(Record, frozen=True, tag=13):
    """A confusion matrix: `matrix[actual][predicted]`, square, in the order of `labels`."""

    name: str
    labels: list[str]
    matrix: list[list[float]]
    step: int | None = None


class RocCurveLogged(Record, frozen=True, tag=14):
    """A ROC curve: false and true positive rates at each threshold. The first threshold may be infinite."""

    name: str
    fpr: list[float]
    tpr: list[float]
    thresholds: list[float]
    step: int | None = None


class RunEnded(Record, frozen=True, tag=15):
    """The run's end, written by `finish()`. A run whose process vanished has none."""

    status: EndStatus
    error: str | None = None


StepValueLogged = TextLogged | HtmlLogged | ImageLogged | FigureLogged | TableLogged
"""Rich values that live in a file of their own."""

Deliverable = (
    MetricsLogged
    | ParamsLogged
    | TagsSet
    | ArtifactLogged
    | ModelLogged
    | TextLogged
    | HtmlLogged
    | ImageLogged
    | FigureLogged
    | TableLogged
    | HistogramLogged
    | ConfusionMatrixLogged
    | RocCurveLogged
)
"""Every kind that a backend may be given."""
