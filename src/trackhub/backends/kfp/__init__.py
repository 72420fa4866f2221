"""Shows a run in Kubeflow Pipelines, by filling the `Output[...]` objects of the component that runs.

One vendor, one package: what becomes of each kind of record. It must live in the training process, because so do the
objects, and it needs nothing of kfp but them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from trackhub.backend import Backend, OpenedRun, Rewind, RunInfo, hookimpl
from trackhub.backends.kfp import classification
from trackhub.backends.kfp.contents import PLACES, forget, known_contents, new_contents, others
from trackhub.backends.kfp.executor import before_output
from trackhub.backends.kfp.history import History, Line, encoded
from trackhub.backends.kfp.options import KfpOptions
from trackhub.backends.kfp.outputs import Output, Outputs, chosen_outputs, outputs_of_executor, strict
from trackhub.backends.kfp.page import draw_page
from trackhub.backends.kfp.placing import NO_OUTPUT, Placing
from trackhub.backends.kfp.series import Series
from trackhub.backends.kfp.summary import render, write_document
from trackhub.errors import BackendUnavailable, SettingsError, StateLost
from trackhub.records import (
    ArtifactLogged,
    ConfusionMatrixLogged,
    EndStatus,
    FigureLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RocCurveLogged,
    StepValueLogged,
    TableLogged,
    TagsSet,
    TextLogged,
)

__all__ = ["KfpBackend", "KfpOptions", "before_output"]

RESERVED = ("display_name", "store_session_info", "_kfp_workspace")
"""Keys of metadata that KFP reads itself."""

_NOT_FINITE = "not finite"
_log = logging.getLogger("trackhub")


class KfpBackend(Backend):
    """Fills the live outputs of a component.

    The objects are in memory and are written by KFP when the component's function returns. What a process has put into
    them is lost with it, so another process that goes on with the run is given everything again (`StateLost`).
    """

    name = "kfp"
    Options = KfpOptions
    distributions = ("kfp",)
    needs_training_process = True

    @classmethod
    def resolve(cls, options: KfpOptions, working_directory: Path) -> KfpOptions:  # noqa: ARG003
        """Give back options that remember the component that runs."""
        return options.with_executor()

    @classmethod
    def check(cls, options: KfpOptions) -> None:
        """Refuse to run where there is nothing to fill, or where it is not clear what to fill.

        Raises:
            SettingsError: No component is running and no object was given; an output has no such name; there are
                several Output[Metrics] and none was chosen.
        """
        if options.executor is None and not options.holds_live:
            raise SettingsError(
                "backend 'kfp' fills the outputs of a Kubeflow Pipelines component, and none is running in this "
                "process (a process that a component starts has none either): call trackhub.init in the component's "
                "function, pass its outputs with init(kfp={'metrics': metrics}), or leave 'kfp' out of the backends"
            )
        chosen_outputs(options.given, outputs_of_executor(options.executor)).check()

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Find the outputs.

        Raises:
            StateLost: What was shown before was in the memory of a process that has ended, or was never confirmed.
        """
        options: KfpOptions = self.options
        self._run = run
        self._executor = options.executor
        chosen = chosen_outputs(options.given, outputs_of_executor(self._executor))
        # A child run shows in the tables of its parent: one task has one set of outputs.
        self._is_child = run.parent_remote_id is not None
        self._outputs = Outputs(()) if self._is_child else chosen
        self._has_page = bool(chosen.of("html", "markdown"))
        identities = tuple(id(output.live) for output in self._outputs.all)
        if "token" in state:
            known = known_contents(run.id, state["token"], state["revision"], identities)
            if known is None:
                PLACES.remember(state["files"])
                raise StateLost("what the component's outputs were given before is not in this process")
            self._contents = known
        else:
            self._contents = new_contents(run, identities)
            for other in others(self._contents):
                detail = f"the component's outputs show one run, the last one; {other.run.name!r} came before"
                self.notes.add("one of several runs", run.name, detail)
        self._contents.status = "running"
        self._placing = Placing(self._contents, self._outputs, self.notes)
        if self._executor is not None and not self._is_child:
            before_output(self._show_at_the_end, late=True, executor=self._executor)
        return OpenedRun(remote_id=run.id, state=dict(state))

    def checkpoint(self) -> Mapping[str, Any]:
        """By what a later `open` in this process finds again what was shown."""
        contents = self._contents
        marks = PLACES.marks_of(output.path for output in self._outputs.all)
        return {"token": contents.token, "revision": contents.revision, "files": marks}

    def close(self, status: EndStatus) -> None:
        """Write what is made of all that was logged: the page and the document."""
        self._contents.status = status
        self._contents.touch()
        self._show()

    def rewind(self, rewind: Rewind) -> bool:
        """Have all be given again if something is superseded: what was given is in memory, and summed up.

        Raises:
            StateLost: It is; what is superseded will not be given again.
        """
        contents = self._contents
        found = rewind.after_step is not None and contents.highest_step > rewind.after_step
        for name, series in contents.series.items():
            found = found or (series.highest_step is not None and rewind.supersedes(name, series.highest_step))
        if found:
            self._placing.take_back()
            raise StateLost("a later attempt went on from an earlier step")
        return True

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Metrics: the last finite value of each; all of them, step by step, as JSON lines at the artifact's path."""
        if not self._is_child:
            self._append_history(points)
        elif not self._has_page:
            self._placing.say_once(
                "metrics of a child run", "the component has no Output[HTML] or Output[Markdown] for them"
            )
        contents = self._contents
        touched: dict[str, Series] = {}
        # A loop logs the same metrics at every step: taken together, they are columns.
        for names, group in groupby(points, key=lambda point: tuple(point.values)):
            rows = list(group)
            steps = [point.step for point in rows]
            columns = zip(*(point.values.values() for point in rows), strict=True)
            for name, column in zip(names, columns, strict=True):
                series = touched[name] = contents.series.setdefault(name, Series(self._is_child))
                series.steps += steps
                series.values += column
        for name, series in touched.items():
            for _ in range(series.settle()):
                self.notes.add(_NOT_FINITE, name, "KFP takes finite numbers only; the last of them is shown")
            place = self._place_of(name)
            if place is not None and series.count:
                contents.last.setdefault(place[0], {})[place[1]] = series.last
        contents.touch()
        self._set_metrics()

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Params: on the page or in the document. Metrics artifacts hold numbers alone."""
        for record in params:
            self._contents.params.update(record.params)
        self._contents.touch()
        self._say_if_not_shown("params")

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Tags: on the page or in the document."""
        for record in tags:
            self._contents.tags.update(record.tags)
        self._contents.touch()
        if any(not name.startswith("kfp.") for record in tags for name in record.tags):
            self._say_if_not_shown("tags")

    def write_artifacts(self, artifacts: Sequence[ArtifactLogged]) -> None:
        """Files and directories: copied to an output's path."""
        for record in _last_of_each(artifacts):
            self._placing.copy(record, "artifact", "dataset", named=("model", "html", "markdown"))

    def write_models(self, models: Sequence[ModelLogged]) -> None:
        """Models: copied to an output's path."""
        for record in _last_of_each(models):
            self._placing.copy(record, "model", named=("artifact", "dataset"))

    def write_html(self, pages: Sequence[HtmlLogged]) -> None:
        """HTML pages: copied to an output's path."""
        self._note_steps(pages)
        for record in _last_of_each(pages):
            self._placing.copy(record, "html", named=("artifact", "dataset"))

    def write_figures(self, figures: Sequence[FigureLogged]) -> None:
        """Figures: those that are pages as HTML, the others on the page."""
        self._note_steps(figures)
        for record in _last_of_each(figures):
            if record.file.media_type == "text/html":
                self._placing.copy(record, "html", named=("artifact", "dataset"))
            else:
                self._add_picture(record)

    def write_images(self, images: Sequence[ImageLogged]) -> None:
        """Pictures: the last of each name, on the page."""
        self._note_steps(images)
        for record in _last_of_each(images):
            self._add_picture(record)

    def write_text(self, texts: Sequence[TextLogged]) -> None:
        """Texts: in the markdown document, which holds all of them and all tables."""
        self._note_steps(texts)
        for record in _last_of_each(texts):
            self._add_section(record)

    def write_tables(self, tables: Sequence[TableLogged]) -> None:
        """Tables: in the markdown document; as a JSON file where a file output has the name."""
        self._note_steps(tables)
        for record in _last_of_each(tables):
            self._add_section(record)

    def write_confusion_matrices(self, matrices: Sequence[ConfusionMatrixLogged]) -> None:
        """Confusion matrices: an artifact holds one, the last that was logged for it."""
        self._note_steps(matrices)
        for record in matrices:
            self._classify(record, "confusionMatrix", classification.confusion_matrix(record.labels, record.matrix))

    def write_roc_curves(self, curves: Sequence[RocCurveLogged]) -> None:
        """ROC curves: an artifact holds one, the last that was logged for it. Infinite thresholds are made finite."""
        self._note_steps(curves)
        for record in curves:
            shown = classification.roc_curve(record.fpr, record.tpr, record.thresholds)
            if self._classify(record, "confidenceMetrics", shown):
                if not all(map(math.isfinite, record.thresholds)):
                    self.notes.add(_NOT_FINITE, record.name, "an infinite threshold is shown as one beyond all others")
                if len(shown) < len(record.fpr):
                    self.notes.add("shortened", record.name, f"{len(shown)} of {len(record.fpr)} points are shown")

    # --- metrics

    def _append_history(self, points: Sequence[MetricsLogged]) -> None:
        outputs = self._outputs.of("metrics")
        if not outputs:
            self._placing.say_once("metrics", "the component has no Output[Metrics]")
        files: list[tuple[History, bytes]] = []
        for output in outputs:
            history = self._contents.history_of(output)
            if history is None:
                continue
            lines = [Line(point.step, point.time_ns / 1e9, point.values) for point in points]
            if self._outputs.sorts_metrics:
                for line in lines:
                    line.metrics = {name: one for name, one in line.metrics.items() if self._is_at(name, output)}
                lines = [line for line in lines if line.metrics]
            files.append((history, encoded(lines)))
        sizes = [history.size_bytes for history, _ in files]
        try:
            for history, content in files:
                history.append(content)
        except BackendUnavailable:
            for (history, _), size_bytes in zip(files, sizes, strict=True):
                history.cut(size_bytes)
            raise

    def _is_at(self, name: str, output: Output) -> bool:
        place = self._place_of(name)
        return place is not None and place[0] == output.name

    def _place_of(self, name: str) -> tuple[str, str] | None:
        """The output that takes a metric, and the metric's key there."""
        places = self._contents.metrics
        if name in places:
            return places[name]
        output = self._outputs.take_metric(name)
        place = None
        if output is not None:
            key = name
            # A name with the ending may be a metric's own.
            while key in RESERVED or ((key != name or name[-1:] == "_") and (output.name, key) in places.values()):
                key += "_"
            if key != name:
                self.notes.add("renamed", name, f"KFP keeps that key for itself; it is shown as {key!r}")
            place = output.name, key
        elif self._outputs.of("metrics"):
            listed = ", ".join(map(str, self._outputs.of("metrics")))
            self.notes.add(NO_OUTPUT, name, f"no output is called like the first part of its name: {listed}")
        places[name] = place
        return place

    def _set_metrics(self) -> None:
        for output in self._outputs.of("metrics"):
            output.metadata.update(self._contents.last.get(output.name, {}))

    # --- everything else

    def _note_steps(self, records: Sequence[StepValueLogged | ConfusionMatrixLogged | RocCurveLogged]) -> None:
        """Remember how far they go, for `rewind`."""
        steps = [record.step for record in records if record.step is not None]
        self._contents.highest_step = max([self._contents.highest_step, *steps])

    def _add_picture(self, record: ImageLogged | FigureLogged) -> None:
        output, _ = self._outputs.take(record.name, named=("artifact", "dataset"))
        if output is not None:
            self._placing.copy(record, named=("artifact", "dataset"))
        elif self._outputs.of("html"):
            self._contents.pictures[record.name] = record
            self._contents.touch()
        else:
            self._placing.leave_out(record.name, "Output[HTML]")

    def _add_section(self, record: TextLogged | TableLogged) -> None:
        output, matched = self._outputs.take(record.name, "markdown", named=("artifact", "dataset", "html"))
        if output is None:
            self._placing.leave_out(record.name, "Output[Markdown]")
        elif not matched:
            self._contents.texts[record.name] = record
            self._contents.touch()
        elif output.role != "markdown":
            self._placing.copy(record, named=("artifact", "dataset", "html"))
        elif self._placing.claim(output, record.name, matched=True):
            content = render(self._contents, record, self.notes.add)
            self._placing.write(output, record.name, content)
            self._contents.touch()

    def _classify(self, record: ConfusionMatrixLogged | RocCurveLogged, key: str, shown: Any) -> bool:
        output, matched = self._outputs.take(record.name, "classification_metrics")
        if output is None:
            self._placing.leave_out(record.name, "Output[ClassificationMetrics]")
            return False
        if not self._placing.claim(output, record.name, matched=matched, what=key):
            return False
        output.metadata[key] = shown
        self._contents.touch()
        return True

    def _say_if_not_shown(self, what: str) -> None:
        if not self._has_page:
            self._placing.say_once(what, "the component has no Output[HTML] or Output[Markdown] to show them in")

    # --- the end

    def _show(self) -> None:
        """Bring the outputs up to what has been logged so far."""
        contents = self._contents
        if not self._is_child:
            self._placing.write_made("html", "page", lambda: draw_page(contents, self.notes.add))
            self._placing.write_made("markdown", "document", lambda: write_document(contents, self.notes.add))
            contents.changed = False
        self._set_metrics()
        self._placing.correct()
        for output in self._outputs.all:
            self._make_strict(output.name, output.metadata)

    def _show_at_the_end(self) -> None:
        """The component's function has returned, and KFP is about to write its output."""
        if not self._contents.is_current:
            return
        if self._contents.changed:
            self._show()
        forget(self._contents)
        for name, live in getattr(self._executor, "output_artifacts", {}).items():
            if isinstance(live.metadata, dict):
                self._make_strict(name, live.metadata)
        # Too late for the delivery report.
        for reason, subject, detail in self.notes.drain():
            _log.warning("trackhub: kfp: %s: %s: %s", reason, subject, detail)

    def _make_strict(self, name: str, metadata: dict[str, Any]) -> None:
        """Take out of metadata what would fail the task, whoever put it there: KFP itself only notices at the end."""
        for _ in range(classification.repair(metadata.get("confidenceMetrics"))):
            self.notes.add(_NOT_FINITE, name, "an infinite threshold is shown as one beyond all others")
        plain = strict(
            metadata, lambda place: self.notes.add(_NOT_FINITE, f"{name}/{place}", "left out or shown as text")
        )
        metadata.clear()
        metadata.update(plain)


def _last_of_each(records: Sequence[Any]) -> list[Any]:
    """The records without those that a later one of the same name replaces: the model of each epoch is copied once."""
    last = {record.name: record for record in reversed(records)}
    latest = {record.name: record for record in records}
    return [latest[name] for name in reversed(last)]


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backend of this module."""
    return [KfpBackend]
