"""What a run holds, read from its journal: params, tags, a summary and a sampled series of each metric, and files.

Apart from the command line so that scripts and tests get it as plain dataclasses. The journal is streamed: memory
grows with the number of different names, not with the number of steps.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

from trackhub.attempts import Attempts
from trackhub.journal import JournalReader
from trackhub.records import (
    ArtifactLogged,
    ConfusionMatrixLogged,
    Deliverable,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    PlainValue,
    Record,
    RocCurveLogged,
    RunEnded,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)

MAX_SAMPLES = 192
"""A series is thinned to every third point each time it reaches this (odd: what alternates goes on alternating)."""

MAX_SERIES = 10_000
"""Metrics beyond this many have a summary but no series."""

MAX_VALUES = 10_000
"""Artifacts and rich values beyond this many names are only counted."""

CHUNK_POINTS = 5_000
"""How much is read at once; two such chunks are in memory at a time."""

_FileRecord = ArtifactLogged | ModelLogged | TextLogged | HtmlLogged | ImageLogged | FigureLogged | TableLogged


@dataclass
class MetricSummary:
    """One metric over the whole run.

    Args:
        count: Number of values.
        last: The value with the latest time.
        minimum: The smallest value; NaN only if there is no other.
        maximum: The largest value; NaN only if there is no other.
        nan_count: How many values are NaN.
        series: Up to `MAX_SAMPLES + 1` pairs of step and value, evenly taken, ordered by step; the last one is there.
    """

    name: str
    count: int = 0
    last: float = float("nan")
    last_step: int = 0
    last_time_ns: int = -(1 << 63)
    minimum: float = float("nan")
    minimum_step: int = 0
    maximum: float = float("nan")
    maximum_step: int = 0
    nan_count: int = 0
    series: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class ValueSummary:
    """An artifact, a model, or a rich value with all its steps.

    Args:
        kind: "artifact", "model", "text", "image" and so on.
        count: How often it was logged.
        steps: The first and last step in the order of logging, if it was logged with steps.
        size_bytes: Size of all its files together.
        path: Where the last one lies, relative to the run directory or absolute; None for one that needs no file.
        detail: What else is worth knowing of the last one, for people.
    """

    kind: str
    name: str
    count: int = 0
    steps: tuple[int, int] | None = None
    size_bytes: int = 0
    path: str | None = None
    detail: str = ""


@dataclass
class Readout:
    """All a run holds.

    Args:
        params: With a param logged twice, the later value.
        tags: Likewise.
        metrics: By name, in the order they first appeared.
        values: Artifacts and rich values, in the order they first appeared.
        values_left_out: How many were logged under names beyond `MAX_VALUES`.
        attempts: How many processes have held the run, one after the other.
        superseded: How many values of metrics are not among them, because a later attempt has logged them anew.
        damaged: A sentence for each place of the journal that could not be read.
    """

    params: dict[str, PlainValue] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, MetricSummary] = field(default_factory=dict)
    values: list[ValueSummary] = field(default_factory=list)
    values_left_out: int = 0
    attempts: int = 1
    superseded: int = 0
    damaged: list[str] = field(default_factory=list)


def read_run(journal: Path) -> Readout:
    """Read a whole journal once.

    Args:
        journal: The run's `journal` directory.

    Raises:
        JournalError: A newer trackhub wrote it.
    """
    readout = Readout()
    series: dict[str, _Series] = {}
    values: dict[tuple[str, str], ValueSummary] = {}
    reader = JournalReader(journal)
    attempts = Attempts(journal)
    try:
        chunk = reader.read({}, max_points=CHUNK_POINTS)
        while not chunk.empty:
            readout.damaged.extend(chunk.damaged)
            parts = attempts.kept_of(chunk)
            readout.superseded += sum(part.values_left_out for _, part in parts)
            for record in (record for _, part in parts for record in part.kept):
                match record:
                    case MetricsLogged():
                        _take_metrics(record, series)
                    case ParamsLogged():
                        readout.params.update(record.params)
                    case TagsSet():
                        readout.tags.update(record.tags)
                    case RunEnded():
                        pass
                    case _:
                        _take_value(record, values, readout)
            chunk = reader.read(chunk.position, max_points=CHUNK_POINTS)
        readout.attempts = max(attempts.look(), 1)
    finally:
        reader.close()
        attempts.close()
    readout.metrics = {name: one.summary() for name, one in series.items()}
    readout.values = list(values.values())
    return readout


class _Series:
    """Gathers one metric in fixed space: what is asked for in the end, and every n-th point."""

    __slots__ = ("_every", "_one", "_sampled", "_steps", "_values")

    def __init__(self, name: str, *, sampled: bool) -> None:
        self._one = MetricSummary(name)
        self._sampled = sampled
        self._every = 1
        self._steps = array("q")
        self._values = array("d")

    def add(self, step: int, value: float, time_ns: int) -> None:
        one = self._one
        if time_ns >= one.last_time_ns:
            one.last, one.last_step, one.last_time_ns = value, step, time_ns
        if value != value:
            one.nan_count += 1
        else:
            # The negated comparisons are true for the NaN that both begin as.
            if not value >= one.minimum:
                one.minimum, one.minimum_step = value, step
            if not value <= one.maximum:
                one.maximum, one.maximum_step = value, step
        if self._sampled and one.count % self._every == 0:
            self._steps.append(step)
            self._values.append(value)
            if len(self._steps) == MAX_SAMPLES:
                self._steps, self._values = self._steps[::3], self._values[::3]
                self._every *= 3
        one.count += 1

    def summary(self) -> MetricSummary:
        one = self._one
        one.series = list(zip(self._steps, self._values, strict=True))
        if self._sampled and (not one.series or one.series[-1][0] != one.last_step):
            one.series.append((one.last_step, one.last))
        # Several writers (ranks, a resumed run) are read one after the other.
        one.series.sort(key=lambda point: point[0])
        return one


def _take_metrics(record: MetricsLogged, series: dict[str, _Series]) -> None:
    step, time_ns = record.step, record.time_ns
    for name, value in record.values.items():
        one = series.get(name)
        if one is None:
            one = series[name] = _Series(name, sampled=len(series) < MAX_SERIES)
        one.add(step, value, time_ns)


def _take_value(record: Deliverable, values: dict[tuple[str, str], ValueSummary], readout: Readout) -> None:
    assert not isinstance(record, (MetricsLogged, ParamsLogged, TagsSet))
    kind = WORDS[type(record)]
    one = values.get((kind, record.name))
    if one is None:
        if len(values) >= MAX_VALUES:
            readout.values_left_out += 1
            return
        one = values[kind, record.name] = ValueSummary(kind, record.name)
    one.count += 1
    step = getattr(record, "step", None)
    if step is not None:
        one.steps = (step if one.steps is None else one.steps[0], step)
    if isinstance(record, _FileRecord):
        one.size_bytes += record.file.size_bytes
        one.path = record.file.path
    one.detail = _detail(record)


WORDS: dict[type[Record], str] = {
    MetricsLogged: "metrics",
    ParamsLogged: "params",
    TagsSet: "tags",
    ArtifactLogged: "artifact",
    ModelLogged: "model",
    TextLogged: "text",
    HtmlLogged: "html",
    ImageLogged: "image",
    FigureLogged: "figure",
    TableLogged: "table",
    HistogramLogged: "histogram",
    ConfusionMatrixLogged: "confusion matrix",
    RocCurveLogged: "ROC curve",
    RunEnded: "end",
}
"""What to call each kind of record."""


def _detail(record: Deliverable) -> str:
    match record:
        case ArtifactLogged(file=StoredFile(is_directory=True)):
            return "directory"
        case ModelLogged(register_as=str(name)):
            return f"registered as {name}"
        case ImageLogged(width=width, height=height):
            return f"{width} × {height} pixels"  # noqa: RUF001
        case FigureLogged(file=file):
            return file.media_type
        case TableLogged(row_count=rows, columns=columns):
            return f"{rows:,} rows, {len(columns):,} columns"
        case HistogramLogged(counts=counts):
            return f"{len(counts):,} bins"
        case ConfusionMatrixLogged(labels=labels):
            return f"{len(labels):,} classes"
        case RocCurveLogged(fpr=rates):
            return f"{len(rates):,} thresholds"
    return ""
