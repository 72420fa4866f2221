"""Showing a kind of record as a simpler one, for backends that have no place for it.

Apart from the delivery because it is plain rules: a confusion matrix becomes a table and a figure, those become file
artifacts. What a backend supports is read off its class.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import re
from pathlib import PurePosixPath

from trackhub import drawing, values
from trackhub.backend import Backend, RunInfo
from trackhub.private import make_directory, write_file
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
    Record,
    RocCurveLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)

KINDS: dict[type[Record], str] = {
    ParamsLogged: "params",
    MetricsLogged: "metrics",
    TagsSet: "tags",
    ArtifactLogged: "artifacts",
    ModelLogged: "models",
    TextLogged: "text",
    HtmlLogged: "html",
    ImageLogged: "images",
    FigureLogged: "figures",
    TableLogged: "tables",
    HistogramLogged: "histograms",
    ConfusionMatrixLogged: "confusion_matrices",
    RocCurveLogged: "roc_curves",
}
"""Record -> the name of its kind; the backend's method is `write_<kind>`."""


def supported_kinds(backend: type[Backend]) -> frozenset[str]:
    """The kinds a backend shows by itself: those whose method it overrides."""
    return frozenset(
        kind for kind in KINDS.values() if getattr(backend, f"write_{kind}") is not getattr(Backend, f"write_{kind}")
    )


def lower(record: Deliverable, supported: frozenset[str], run: RunInfo) -> list[Deliverable]:
    """The records that stand for this one with a backend that supports these kinds; none where nothing fits.

    Args:
        record: Of a kind that may be unsupported.
        supported: What `supported_kinds` gave.
        run: Its directory takes the files that have to be made.

    Raises:
        OSError: A file could not be made.
    """
    if KINDS[type(record)] in supported:
        return [record]
    return [final for simpler in _simpler(record, run) for final in lower(simpler, supported, run)]


def _simpler(record: Deliverable, run: RunInfo) -> list[Deliverable]:
    match record:
        case ConfusionMatrixLogged(labels=labels, matrix=matrix):
            table = drawing.confusion_matrix_table(labels, matrix)
            return [_table(record, run, *table), _figure(record, run, drawing.confusion_matrix_svg(labels, matrix))]
        case RocCurveLogged(fpr=fpr, tpr=tpr, thresholds=thresholds):
            table = drawing.roc_curve_table(fpr, tpr, thresholds)
            return [_table(record, run, *table), _figure(record, run, drawing.roc_curve_svg(fpr, tpr))]
        case HistogramLogged(edges=edges, counts=counts):
            return [_table(record, run, *drawing.histogram_table(edges, counts))]
        case ModelLogged(name=name, file=file):
            inner = name if file.is_directory else f"{name}/{PurePosixPath(file.path).name}"
            return [ArtifactLogged(record.time_ns, inner, file)]
        case TextLogged() | HtmlLogged() | ImageLogged() | FigureLogged() | TableLogged():
            suffix = _suffix(record.file)
            path = _path(record.name.removesuffix(suffix), record.step)
            return [ArtifactLogged(record.time_ns, f"{KINDS[type(record)]}/{path}{suffix}", record.file)]
    return []


def _path(name: str, step: int | None) -> str:
    """A path below a folder that only this name and step have.

    Names may have `..` or empty parts, which paths among artifacts may not, and may look as if they ended in a step. A
    path from which another name or step would be read gets a hash of the name.
    """
    path = "/".join("_" if part in ("", ".", "..") else part for part in name.strip("/").split("/"))
    if step is not None:
        path = f"{path}-step-{step}"
    if _read_path(path) == (name, step):
        return path
    return f"{path}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _read_path(path: str) -> tuple[str, int | None] | None:
    """The name and step that a path seems to have; None where it ends in what seems to be a hash."""
    if re.search("~[0-9a-f]{8}$", path):
        return None
    stepped = re.fullmatch("(.*?)-step-(-?[0-9]{1,19})", path, re.DOTALL)
    return (stepped[1], int(stepped[2])) if stepped else (path, None)


def _suffix(file: StoredFile) -> str:
    return PurePosixPath(file.path).suffix or mimetypes.guess_extension(file.media_type) or ""


def _table(
    record: ConfusionMatrixLogged | RocCurveLogged | HistogramLogged,
    run: RunInfo,
    columns: list[str],
    rows: list[list[str | float]],
) -> TableLogged:
    table = values.encode_table(rows, record.name, columns)
    file = _derive(run, table.data, "json", table.media_type)
    return TableLogged(record.time_ns, record.name, file, columns, len(rows), record.step)


def _figure(record: ConfusionMatrixLogged | RocCurveLogged, run: RunInfo, svg: str) -> FigureLogged:
    file = _derive(run, svg.encode(), "svg", "image/svg+xml")
    return FigureLogged(record.time_ns, record.name, file, record.step)


def _derive(run: RunInfo, content: bytes, suffix: str, media_type: str) -> StoredFile:
    """Store a file made from a record; the same record gives the same file, whichever delivery makes it first."""
    folder = run.directory / "blobs" / "derived"
    make_directory(folder, parents=True)
    path = folder / f"{hashlib.sha256(content).hexdigest()[:24]}.{suffix}"
    if not path.exists():
        fresh = path.with_suffix(f".{os.getpid()}")
        write_file(fresh, content)
        fresh.replace(path)
    return StoredFile(str(path.relative_to(run.directory)), len(content), media_type=media_type)
