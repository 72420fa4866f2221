"""One record of every kind, with its files: what the suite logs when any will do.

Apart from the tests because a new kind of record needs its example here and nowhere else.
"""

from __future__ import annotations

import base64
import json

from trackhub.lowering import KINDS
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
    RocCurveLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)
from trackhub.testing.rehearsal import CREATED_NS, Rehearsal

NAME = "sample"
RICH_KINDS = [kind for kind in KINDS.values() if kind not in ("metrics", "params", "tags", "artifacts")]

_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEUlEQVR42mP4z8DA8B+MgBgAHfAD/a4/4jgAAAAASUVORK5CYII="
)


def metrics(step: int, **values: float) -> MetricsLogged:
    """The metrics of one step, logged a second after those of the step before."""
    return MetricsLogged(CREATED_NS + step * 10**9, step, values)


def artifact(run: Rehearsal, name: str = f"{NAME}.bin", content: bytes = b"\0content\xff") -> ArtifactLogged:
    """A file."""
    return ArtifactLogged(CREATED_NS, name, stored(run, f"{name.replace('/', '_')}", content))


def directory(run: Rehearsal, name: str, **files: bytes) -> ArtifactLogged:
    """A directory with these files."""
    for file, content in files.items():
        stored(run, f"{name}/{file}", content)
    size_bytes = sum(map(len, files.values()))
    return ArtifactLogged(CREATED_NS, name, StoredFile(f"blobs/{name}", size_bytes, is_directory=True))


def stored(run: Rehearsal, name: str, content: bytes, media_type: str = "application/octet-stream") -> StoredFile:
    """A file in the run directory."""
    path = run.run.blobs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return StoredFile(f"blobs/{name}", len(content), media_type=media_type)


def sample(run: Rehearsal, kind: str) -> Deliverable:
    """A record of one kind; those that have a name are called `NAME`."""
    now, step = CREATED_NS + 10**9, 3
    matrix, rates = [[5.0, 1.0], [0.0, 4.0]], [0.0, 0.5, 1.0]
    match kind:
        case "params":
            return ParamsLogged(now, {"lr": 0.1, "optimizer/name": "sgd"})
        case "metrics":
            return metrics(step, loss=0.5)
        case "tags":
            return TagsSet(now, {"team": "vision"})
        case "artifacts":
            return artifact(run)
        case "models":
            return ModelLogged(now, NAME, stored(run, "model.joblib", b"model"))
        case "text":
            return TextLogged(now, NAME, stored(run, "t.txt", b"a sample text", "text/plain"), step)
        case "html":
            return HtmlLogged(now, NAME, stored(run, "p.html", b"<p>a page</p>", "text/html"), step)
        case "images":
            return ImageLogged(now, NAME, stored(run, "i.png", _PNG, "image/png"), 2, 2, step)
        case "figures":
            return FigureLogged(now, NAME, stored(run, "f.png", _PNG, "image/png"), step)
        case "tables":
            content = json.dumps({"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}).encode()
            return TableLogged(now, NAME, stored(run, "t.json", content, "application/json"), ["a", "b"], 2, step)
        case "histograms":
            return HistogramLogged(now, NAME, [0.0, 1.0, 2.0], [3.0, 4.0], step)
        case "confusion_matrices":
            return ConfusionMatrixLogged(now, NAME, ["sample cat", "sample dog"], matrix, step)
        case "roc_curves":
            return RocCurveLogged(now, NAME, rates, rates, [float("inf"), 0.5, 0.0], step)
    raise AssertionError(f"no example of {kind}: add one")
