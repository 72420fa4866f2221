"""A backend that keeps everything in memory, for tests that look into it.

Apart from the other backends because no vendor is behind it: what it shows is gone with the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from trackhub.backend import Backend, OpenedRun, Rewind, RunInfo, hookimpl
from trackhub.errors import RecordRejected
from trackhub.records import (
    ArtifactLogged,
    ConfusionMatrixLogged,
    EndStatus,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    Record,
    RocCurveLogged,
    RunStatus,
    TableLogged,
    TagsSet,
    TextLogged,
)
from trackhub.testing.shown import Point, Shown


class MemoryRun:
    """What one run has been given.

    Args:
        info: The run, as the backend was told of it.
    """

    def __init__(self, info: RunInfo) -> None:
        self.info = info
        self.status: RunStatus = "running"
        self._records: dict[bytes, Record] = {}
        self._points: set[bytes] = set()

    @property
    def records(self) -> list[Record]:
        """The records, in the order they were logged."""
        return list(self._records.values())

    def add(self, records: Sequence[Record]) -> None:
        """Keep records; one that is there already, to the nanosecond and in all it says, is kept once."""
        for record in records:
            if isinstance(record, MetricsLogged):
                # Point by point: of a record that comes again, a part may have been taken back.
                fresh = {name: one for name, one in record.values.items() if _point(record, name) not in self._points}
                self._points.update(_point(record, name) for name in fresh)
                if not fresh and record.values:
                    continue
                record = MetricsLogged(record.time_ns, record.step, fresh)
            self._records.setdefault(msgspec.msgpack.encode(record), record)

    def rewind(self, rewind: Rewind) -> None:
        """Forget what is superseded."""
        kept: dict[bytes, Record] = {}
        for key, record in self._records.items():
            step = getattr(record, "step", None)
            if isinstance(record, MetricsLogged):
                values = {name: one for name, one in record.values.items() if not rewind.supersedes(name, record.step)}
                if len(values) == len(record.values):
                    kept[key] = record
                elif values:
                    rest = MetricsLogged(record.time_ns, record.step, values)
                    kept[msgspec.msgpack.encode(rest)] = rest
            elif step is None or rewind.after_step is None or step <= rewind.after_step:
                kept[key] = record
        self._records = kept
        metrics = [record for record in kept.values() if isinstance(record, MetricsLogged)]
        self._points = {_point(record, name) for record in metrics for name in record.values}

    def shown(self) -> Shown:
        """The run as plain dicts and lists. The contents of files are read from the run directory."""
        shown = Shown(status=self.status, parent=self.info.parent_remote_id)
        for record in self.records:
            match record:
                case MetricsLogged(time_ns=time_ns, step=step, values=values):
                    for name, value in values.items():
                        shown.metrics.setdefault(name, []).append(Point(step, value, time_ns))
                case ParamsLogged(params=params):
                    shown.params |= params
                case TagsSet(tags=tags):
                    shown.tags |= tags
                case ArtifactLogged(name=name, file=file) | ModelLogged(name=name, file=file):
                    path = self.info.path_of(file)
                    if file.is_directory:
                        inside = [one for one in sorted(path.rglob("*")) if one.is_file()]
                        shown.files |= {
                            f"{name}/{one.relative_to(path).as_posix()}": one.read_bytes() for one in inside
                        }
                    else:
                        shown.files[name] = path.read_bytes()
                case _:
                    shown.others.add(getattr(record, "name", ""))
        return shown


def _point(record: MetricsLogged, name: str) -> bytes:
    return msgspec.msgpack.encode((record.time_ns, record.step, name, record.values[name]))


class MemoryBackend(Backend):
    """Keeps runs in this process: `MemoryBackend.runs[tracker.id]`. Shows every kind of record."""

    name = "memory"
    keeps_order = True
    # A delivery process has a memory of its own, which the test could not look into.
    needs_training_process = True

    runs: ClassVar[dict[str, MemoryRun]] = {}
    """Run id -> what the run has been given. Clear it between tests if that matters."""

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Make a place for the run, or find it again."""
        self._run = self.runs.setdefault(run.id, MemoryRun(run))
        self._run.status = "running"
        return OpenedRun(remote_id=run.id, state=dict(state))

    def close(self, status: EndStatus) -> None:
        """Keep how the run ended."""
        self._run.status = status

    def rewind(self, rewind: Rewind) -> bool:
        """Forget what is superseded."""
        self._run.rewind(rewind)
        return True

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            file = getattr(record, "file", None)
            if file is not None and not self._run.info.path_of(file).exists():
                raise RecordRejected(f"the file of {getattr(record, 'name', '')!r} is gone: {file.path}")
        self._run.add(records)

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Metrics."""
        self._take(points)

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Params."""
        self._take(params)

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Tags."""
        self._take(tags)

    def write_artifacts(self, artifacts: Sequence[ArtifactLogged]) -> None:
        """Files and directories; they stay in the run directory."""
        self._take(artifacts)

    def write_models(self, models: Sequence[ModelLogged]) -> None:
        """Models; they stay in the run directory."""
        self._take(models)

    def write_text(self, texts: Sequence[TextLogged]) -> None:
        """Texts."""
        self._take(texts)

    def write_html(self, pages: Sequence[HtmlLogged]) -> None:
        """HTML pages."""
        self._take(pages)

    def write_images(self, images: Sequence[ImageLogged]) -> None:
        """Pictures."""
        self._take(images)

    def write_figures(self, figures: Sequence[FigureLogged]) -> None:
        """Figures."""
        self._take(figures)

    def write_tables(self, tables: Sequence[TableLogged]) -> None:
        """Tables."""
        self._take(tables)

    def write_histograms(self, histograms: Sequence[HistogramLogged]) -> None:
        """Histograms."""
        self._take(histograms)

    def write_confusion_matrices(self, matrices: Sequence[ConfusionMatrixLogged]) -> None:
        """Confusion matrices."""
        self._take(matrices)

    def write_roc_curves(self, curves: Sequence[RocCurveLogged]) -> None:
        """ROC curves."""
        self._take(curves)


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backend of this module."""
    return [MemoryBackend]
