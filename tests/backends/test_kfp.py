from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trackhub.backend import OpenedRun, Rewind, RunInfo
from trackhub.backends.kfp import KfpBackend, KfpOptions, before_output
from trackhub.backends.kfp.classification import MOST_CURVE_POINTS, finite_thresholds
from trackhub.backends.kfp.context import KfpContext, detect
from trackhub.backends.kfp.executor import find_executor
from trackhub.backends.kfp.outputs import strict
from trackhub.backends.kfp.page import MOST_CURVES, thinned
from trackhub.backends.kfp.series import MOST_STRETCHES, Series
from trackhub.errors import BackendUnavailable, RecordRejected, SettingsError, StateLost
from trackhub.records import (
    ArtifactLogged,
    ConfusionMatrixLogged,
    FigureLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RocCurveLogged,
    StepValueLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)
from trackhub.rundir import check_run_id
from trackhub.settings import backend_options, full_options, storable_options

pytest.importorskip("kfp", reason="what is tested is how KFP's own executor reads it")

from kfp import dsl
from kfp.dsl.executor import Executor

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:kfp"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:kfp"),
]

CREATED_NS = 1_763_717_400_000_000_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
TYPES = {
    "metrics": "Metrics",
    "classes": "ClassificationMetrics",
    "model": "Model",
    "dataset": "Dataset",
    "artifact": "Artifact",
    "page": "HTML",
    "document": "Markdown",
}


def strictly(text: str) -> Any:
    """Parse as KFP's server does: NaN and infinities are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


class Component:
    """One task: its outputs, and KFP's executor run in this process."""

    def __init__(self, root: Path, **types: str) -> None:
        self.root = root / "pipe-2026-11-21-09-30-00-123456" / "train"
        self.root.mkdir(parents=True)
        self.types = types or {"metrics": "Metrics"}

    @property
    def input(self) -> dict[str, Any]:
        artifacts = {
            name: {
                "artifacts": [
                    {
                        "name": name,
                        "type": {"schemaTitle": f"system.{kind}", "schemaVersion": "0.0.1"},
                        "uri": str(self.root / name),
                        "metadata": {},
                    }
                ]
            }
            for name, kind in self.types.items()
        }
        outputs = {"outputFile": str(self.root / "executor_output.json"), "artifacts": artifacts}
        return {"inputs": {}, "outputs": outputs}

    def run(self, body: Callable[[SimpleNamespace], None]) -> Mapping[str, Mapping[str, Any]]:
        """Run a component whose function is `body`, given its outputs, and give back the metadata KFP wrote."""

        def train(**outputs: Any) -> None:
            body(SimpleNamespace(**outputs))

        # KFP reads the signature, which a component's author would have written out.
        names = ", ".join(self.types)
        scope: dict[str, Any] = {"train": train}
        exec(f"def component({names}): train({', '.join(f'{name}={name}' for name in self.types)})", scope)
        scope["component"].__annotations__ = {name: dsl.Output[getattr(dsl, kind)] for name, kind in self.types.items()}
        written = Executor(executor_input=self.input, function_to_execute=scope["component"]).execute()
        assert written is not None
        return self.metadata

    @property
    def metadata(self) -> Mapping[str, Mapping[str, Any]]:
        output = strictly((self.root / "executor_output.json").read_text())
        return {name: one["artifacts"][0]["metadata"] for name, one in output["artifacts"].items()}

    def lines(self, name: str = "metrics") -> list[Any]:
        return [strictly(line) for line in (self.root / name).read_text().splitlines()]

    def text(self, name: str) -> str:
        return (self.root / name).read_text()


class Bench:
    """A run directory, and backends opened on it as the delivery does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True)
        self.opened: OpenedRun

    def info(self, **changes: Any) -> RunInfo:
        facts = {
            "id": f"run-{self.directory.parent.name}",
            "name": "sgd",
            "project": "p",
            "created_ns": CREATED_NS,
            "directory": self.directory,
        }
        return RunInfo(**(facts | changes))

    def open(self, state: Any = None, options: Mapping[str, Any] | None = None, **changes: Any) -> KfpBackend:
        made = KfpBackend.resolve(KfpOptions(**(options or {})), Path.cwd())
        KfpBackend.check(made)
        backend = KfpBackend(made)
        # What is remembered goes through JSON in between.
        self.opened = backend.open(self.info(**changes), json.loads(json.dumps(state or {}, allow_nan=False)))
        return backend

    def stored(self, name: str, content: bytes | str, media_type: str = "application/octet-stream") -> StoredFile:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return StoredFile(name, path.stat().st_size, media_type=media_type)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run")


@pytest.fixture
def component(tmp_path: Path) -> Component:
    return Component(tmp_path, **TYPES)


def metrics(step: int, **values: float) -> MetricsLogged:
    return MetricsLogged(CREATED_NS + step, step, values)


def notes(backend: KfpBackend) -> list[tuple[str, str]]:
    return [(reason, subject) for reason, subject, _ in backend.notes.drain()]


# --- metrics


def test_the_last_finite_value_of_each_metric_is_in_the_metadata(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=2.0, acc=0.5, bad=math.nan), metrics(1, loss=1.0, acc=math.inf)])
        assert sorted(notes(backend)) == [("not finite", "acc"), ("not finite", "bad")]
        backend.close("finished")

    assert component.run(body)["metrics"] == {"loss": 1.0, "acc": 0.5}


def test_every_step_is_a_line_of_strict_json_beside_the_metrics(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=2.0, x=math.nan)])
        backend.write_metrics([metrics(1, x=math.inf), metrics(2, x=-math.inf, loss=0.1)])

    component.run(body)
    lines = component.lines()
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["timestamp"] == CREATED_NS / 1e9
    assert [line["metrics"] for line in lines] == [
        {"loss": 2.0, "x": "NaN"},
        {"x": "Infinity"},
        {"x": "-Infinity", "loss": 0.1},
    ]
    assert math.isnan(float(lines[0]["metrics"]["x"]))


def test_keys_that_kfp_reads_itself_are_renamed_and_never_collide(component: Component, bench: Bench) -> None:
    def body(outputs: Any) -> None:
        outputs.metrics.metadata["display_name"] = "theirs"
        backend = bench.open()
        backend.write_metrics([metrics(0, display_name=1.0, _kfp_workspace=2.0), metrics(1, display_name_=3.0)])
        assert notes(backend) == [
            ("renamed", "display_name"),
            ("renamed", "_kfp_workspace"),
            ("renamed", "display_name_"),
        ]

    shown = component.run(body)["metrics"]
    assert shown == {"display_name": "theirs", "display_name_": 1.0, "_kfp_workspace_": 2.0, "display_name__": 3.0}


def test_without_an_output_for_metrics_that_is_said_once(tmp_path: Path, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=1.0)])
        backend.write_metrics([metrics(1, loss=1.0)])
        assert notes(backend) == [("without an output", "metrics")]

    assert Component(tmp_path, data="Dataset").run(body)["data"] == {}


def test_several_outputs_for_metrics_are_refused_at_the_door_with_their_names(tmp_path: Path, bench: Bench) -> None:
    def body(outputs: Any) -> None:
        with pytest.raises(SettingsError, match=r"first: Output\[Metrics\], second: Output\[Metrics\]"):
            bench.open()
        backend = bench.open(options={"metrics": outputs.second})
        backend.write_metrics([metrics(0, loss=1.0)])

    shown = Component(tmp_path, first="Metrics", second="Metrics").run(body)
    assert shown == {"first": {}, "second": {"loss": 1.0}}


def test_of_several_outputs_the_one_called_metrics_takes_what_has_no_other_name(tmp_path: Path, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([MetricsLogged(CREATED_NS, 3, {"loss": 1.0, "test/loss": 2.0})])

    component = Component(tmp_path, test="Metrics", metrics="Metrics")
    assert component.run(body) == {"test": {"test/loss": 2.0}, "metrics": {"loss": 1.0}}
    assert [line["metrics"] for line in component.lines("test")] == [{"test/loss": 2.0}]
    assert [line["metrics"] for line in component.lines("metrics")] == [{"loss": 1.0}]


def test_a_mapping_sorts_metrics_by_the_first_part_of_their_names(tmp_path: Path, bench: Bench) -> None:
    def body(outputs: Any) -> None:
        backend = bench.open(options={"metrics": {"train": outputs.one, "test": "two"}})
        backend.write_metrics([MetricsLogged(CREATED_NS, 0, {"train/loss": 1.0, "test/loss": 2.0, "other": 3.0})])
        assert notes(backend) == [("without an output", "other")]

    shown = Component(tmp_path, one="Metrics", two="Metrics").run(body)
    assert shown == {"one": {"train/loss": 1.0}, "two": {"test/loss": 2.0}}


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.tuples(st.integers(-(2**53), 2**53), st.floats(width=64)), min_size=1, max_size=300),
    cut=st.integers(1, 50),
)
def test_a_series_knows_its_extremes_however_it_is_cut(values: list[tuple[int, float]], cut: int) -> None:
    series = Series()
    for at in range(0, len(values), cut):
        for step, value in values[at : at + cut]:
            series.steps.append(step)
            series.values.append(value)
        series.settle()
    finite = [value for _, value in values if math.isfinite(value)]
    assert series.count == len(finite)
    assert series.not_finite == len(values) - len(finite)
    if finite:
        assert (series.least, series.greatest, series.last) == (min(finite), max(finite), finite[-1])
        points = [value for _, value in series.points()]
        assert (min(points), max(points), points[-1]) == (min(finite), max(finite), finite[-1])


def test_a_series_stays_small_and_keeps_every_peak_in_its_place() -> None:
    series = Series()
    for at in range(0, 300_000, 777):
        for step in range(at, min(at + 777, 300_000)):
            series.steps.append(step)
            series.values.append(100.0 if step == 12_345 else float(step % 7))
        series.settle()
    points = series.points()
    assert len(points) <= 2 * MOST_STRETCHES + 3
    assert (12_345, 100.0) in points
    assert (12_345, 100.0) in thinned(points, 100)
    assert len(thinned(points, 100)) <= 100
    assert (points[0], points[-1]) == ((0, 0.0), (299_999, float(299_999 % 7)))
    steps = [step for step, _ in points]
    assert steps == sorted(steps)
    assert max(after - before for before, after in pairwise(steps)) < 3_000


# --- classification


def test_matrix_and_curve_are_written_as_kfp_reads_them(component: Component, bench: Bench) -> None:
    np = pytest.importorskip("numpy", reason="the curve is scikit-learn's")
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="the curve is scikit-learn's")
    truth = np.array([0, 0, 1, 1, 0, 1])
    scores = np.array([0.1, 0.4, 0.35, 0.8, 0.2, 0.9])
    fpr, tpr, thresholds = sklearn_metrics.roc_curve(truth, scores)
    assert math.isinf(thresholds[0])

    def body(_: Any) -> None:
        backend = bench.open()
        matrix = [[3.0, 0.0], [1.0, 2.5]]
        backend.write_confusion_matrices([ConfusionMatrixLogged(CREATED_NS, "confusion", ["no", "yes"], matrix)])
        curve = RocCurveLogged(CREATED_NS, "roc", fpr.tolist(), tpr.tolist(), thresholds.tolist())
        backend.write_roc_curves([curve])
        backend.write_roc_curves([curve])
        assert set(notes(backend)) == {("not finite", "roc")}

    shown = component.run(body)["classes"]
    assert shown["confusionMatrix"] == {
        "annotationSpecs": [{"displayName": "no"}, {"displayName": "yes"}],
        "rows": [{"row": [3, 0]}, {"row": [1, 2.5]}],
    }
    points = shown["confidenceMetrics"]
    assert [point["falsePositiveRate"] for point in points] == fpr.tolist()
    assert [point["recall"] for point in points] == tpr.tolist()
    assert [point["confidenceThreshold"] for point in points[1:]] == thresholds.tolist()[1:]
    assert points[0]["confidenceThreshold"] == 1.9


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_thresholds_become_finite_and_keep_their_order(thresholds: list[float]) -> None:
    thresholds = sorted(thresholds, reverse=True)
    made = finite_thresholds(thresholds)
    assert all(map(math.isfinite, made))
    assert made == sorted(made, reverse=True)
    assert [one for one in thresholds if math.isfinite(one)] == [
        made[index] for index, one in enumerate(thresholds) if math.isfinite(one)
    ]


def test_an_artifact_holds_the_last_matrix_unless_another_has_its_name(tmp_path: Path, bench: Bench) -> None:
    def matrix(name: str, value: float) -> ConfusionMatrixLogged:
        return ConfusionMatrixLogged(CREATED_NS, name, ["a"], [[value]])

    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_confusion_matrices([matrix("fold 1", 1), matrix("fold 2", 2)])
        assert notes(backend) == [("replaced", "fold 1")]
        backend.write_confusion_matrices([matrix("final", 3), matrix("fold 3", 4)])
        assert notes(backend) == [("replaced", "fold 2"), ("without an output", "fold 3")]

    shown = Component(tmp_path, final="ClassificationMetrics").run(body)
    assert shown["final"]["confusionMatrix"]["rows"] == [{"row": [3]}]


def test_a_long_curve_is_thinned_and_keeps_its_shape(component: Component, bench: Bench) -> None:
    count = 50_000
    rates = [index / count for index in range(count + 1)]

    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_roc_curves(
            [RocCurveLogged(CREATED_NS, "roc", rates, [rate**0.5 for rate in rates], [1 - rate for rate in rates])]
        )
        assert notes(backend) == [("shortened", "roc")]

    points = component.run(body)["classes"]["confidenceMetrics"]
    assert len(points) <= MOST_CURVE_POINTS
    area = sum(
        (after["falsePositiveRate"] - before["falsePositiveRate"]) * (after["recall"] + before["recall"]) / 2
        for before, after in pairwise(points)
    )
    assert area == pytest.approx(2 / 3, abs=1e-3)


# --- files


def test_files_go_to_the_output_of_their_name_and_then_to_that_of_their_type(
    component: Component, bench: Bench
) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_artifacts(
            [
                ArtifactLogged(CREATED_NS, "data/dataset.csv", bench.stored("blobs/1/dataset.csv", "a,b\n")),
                ArtifactLogged(CREATED_NS, "weights.png", bench.stored("blobs/2/weights.png", PNG)),
            ]
        )
        backend.write_models([ModelLogged(CREATED_NS, "best", bench.stored("blobs/3/m.joblib", b"mm"), "prod")])
        assert notes(backend) == []

    shown = component.run(body)
    assert component.text("dataset") == "a,b\n"
    assert (component.root / "artifact").read_bytes() == PNG
    assert (component.root / "model").read_bytes() == b"mm"
    assert shown["dataset"]["file_name"] == "dataset.csv"
    assert shown["model"] == {
        "logged_name": "best",
        "file_name": "m.joblib",
        "size_bytes": 2,
        "is_directory": False,
        "registered_as": "prod",
    }


def test_a_directory_is_copied_whole_and_a_later_one_takes_its_place(component: Component, bench: Bench) -> None:
    def model(folder: str, file: str) -> ModelLogged:
        bench.stored(f"{folder}/{file}", b"x")
        return ModelLogged(CREATED_NS, "model", StoredFile(folder, 1, is_directory=True))

    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_models([model("blobs/a", "old")])
        backend.write_models([model("blobs/b", "deep/new")])
        assert notes(backend) == []

    assert component.run(body)["model"]["is_directory"] is True
    found = [str(path.relative_to(component.root)) for path in sorted((component.root / "model").rglob("*"))]
    assert found == ["model/deep", "model/deep/new"]


def test_what_the_component_wrote_itself_is_never_written_over(component: Component, bench: Bench) -> None:
    def body(outputs: Any) -> None:
        Path(outputs.artifact.path).write_text("mine")
        Path(outputs.page.path).write_text("<p>mine")
        backend = bench.open()
        backend.write_artifacts([ArtifactLogged(CREATED_NS, "x", bench.stored("x", "other content"))])
        backend.write_metrics([metrics(0, loss=1.0), metrics(1, loss=1.0)])
        backend.write_models([ModelLogged(CREATED_NS, "model", bench.stored("m", "a model"))])
        backend.close("finished")
        assert notes(backend) == [("without an output", "x"), ("without an output", "page")]
        Path(outputs.model.path).write_text("written after")

    shown = component.run(body)
    assert component.text("artifact") == "mine"
    assert component.text("page") == "<p>mine"
    assert component.text("model") == "written after"
    assert shown["artifact"] == {}


def test_a_component_may_log_the_file_it_wrote_to_the_output(component: Component, bench: Bench) -> None:
    def body(outputs: Any) -> None:
        Path(outputs.dataset.path).write_text("rows")
        backend = bench.open()
        backend.write_artifacts([ArtifactLogged(CREATED_NS, "dataset", bench.stored("dataset", "rows"))])
        assert notes(backend) == []

    assert component.run(body)["dataset"]["size_bytes"] == 4


def test_several_outputs_of_a_type_without_the_name_are_listed(tmp_path: Path, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        file = bench.stored("m", b"m")
        with pytest.raises(RecordRejected, match=r"first: Output\[Model\], second: Output\[Model\]"):
            backend.write_models([ModelLogged(CREATED_NS, "best", file)])
        backend.write_models([ModelLogged(CREATED_NS, "second", file)])

    shown = Component(tmp_path, first="Model", second="Model").run(body)
    assert shown["first"] == {}
    assert shown["second"]["logged_name"] == "second"


def test_without_an_output_files_are_left_out_and_counted(tmp_path: Path, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        file = bench.stored("f", PNG, "image/png")
        backend.write_artifacts([ArtifactLogged(CREATED_NS, "a.bin", file)])
        backend.write_models([ModelLogged(CREATED_NS, "m", file)])
        backend.write_html([HtmlLogged(CREATED_NS, "h", file)])
        backend.write_text([TextLogged(CREATED_NS, "t", file)])
        backend.write_tables([TableLogged(CREATED_NS, "rows", file, ["a"], 1)])
        backend.write_images([ImageLogged(CREATED_NS, "i", file, 1, 1)])
        backend.write_figures([FigureLogged(CREATED_NS, "f", file)])
        backend.write_roc_curves([RocCurveLogged(CREATED_NS, "roc", [0, 1], [0, 1], [1, 0])])
        backend.write_params([ParamsLogged(CREATED_NS, {"lr": 0.1}), ParamsLogged(CREATED_NS, {"wd": 0.1})])
        backend.write_tags([TagsSet(CREATED_NS, {"kfp.task": "train"})])
        assert notes(backend) == [
            ("without an output", name) for name in ("a.bin", "m", "h", "t", "rows", "i", "f", "roc", "params")
        ]

    assert Component(tmp_path, metrics="Metrics").run(body) == {"metrics": {}}


def test_a_file_that_is_gone_is_rejected(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        with pytest.raises(RecordRejected, match="gone"):
            backend.write_models([ModelLogged(CREATED_NS, "model", StoredFile("nowhere", 1))])

    assert component.run(body)["model"] == {}


def test_a_disk_that_refuses_means_not_now_and_nothing_is_shown_twice(component: Component, bench: Bench) -> None:
    def body(outputs: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=3.0)])
        path = Path(outputs.metrics.path)
        moved = path.rename(path.with_name("moved"))
        path.mkdir()
        with pytest.raises(BackendUnavailable, match="cannot write"):
            backend.write_metrics([metrics(1, loss=2.0)])
        path.rmdir()
        moved.rename(path)
        backend.write_metrics([metrics(1, loss=2.0)])

    assert component.run(body)["metrics"] == {"loss": 2.0}
    assert [line["step"] for line in component.lines()] == [0, 1]


# --- the page and the document


def test_the_logged_page_is_the_output(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=1.0), metrics(1, loss=2.0)])
        backend.write_html([HtmlLogged(CREATED_NS, "report", bench.stored("r.html", "<h1>mine</h1>"))])
        backend.close("finished")

    component.run(body)
    assert component.text("page") == "<h1>mine</h1>"


def test_without_a_logged_page_the_curves_are_the_page(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        points = [
            MetricsLogged(CREATED_NS, step, {"train/loss": math.cos(step / 50), "train/lr": 0.1, "val/<b>": step % 3})
            for step in range(500)
        ]
        backend.write_metrics([*points, MetricsLogged(CREATED_NS, 500, {"train/loss": math.nan, "once": 7.0})])
        backend.write_params([ParamsLogged(CREATED_NS, {"note": "<script>alert(1)</script>", "lr": 0.1})])
        backend.write_images([ImageLogged(CREATED_NS, "sample", bench.stored("i.png", PNG, "image/png"), 1, 1, 3)])
        backend.write_figures([FigureLogged(CREATED_NS, "fig", bench.stored("f.svg", "<svg/>", "image/svg+xml"))])
        backend.close("failed")

    component.run(body)
    page = component.text("page")
    assert "failed" in page
    assert "<script" not in page
    assert "http" not in page
    assert "val/&lt;b&gt;" in page
    assert "1 not finite (step 500)" in page
    assert "data:image/png;base64,iVBOR" in page
    assert "data:image/svg+xml;base64," in page
    drawings = [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(drawings) == 3, "a metric with one value has no curve"
    for drawing in drawings:
        left, top, width, height = map(float, drawing.attrib["viewBox"].split())
        (curve,) = [path for path in drawing.iter("path") if path.attrib.get("stroke-linejoin")]
        points = [tuple(map(float, pair.split())) for pair in curve.attrib["d"].removeprefix("M").split("L")]
        assert len(points) == 500
        assert all(left <= x <= width and top <= y <= height for x, y in points)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=30))
@example([1.6e308, 1.6e308])
@example([-1.7e308, 1.7e308])
@example([0.0, 5e-324])
@example([1.0, 1.0 + 2**-52])
def test_any_finite_values_can_be_drawn(values: list[float]) -> None:
    from trackhub.backends.kfp.page import _curve

    series = Series()
    series.steps, series.values = list(range(len(values))), list(values)
    series.settle()
    drawn = re.findall(r"<svg.*?</svg>", _curve("x", series, 100), re.DOTALL)[0]
    assert "nan" not in drawn
    assert "inf" not in drawn
    ElementTree.fromstring(drawn)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
@example([2**53])
@example([2**53, 2**53 + 1])
@example([-(2**63)])
@example([2**63 - 1])
@example([-(2**63), 2**63 - 1])
def test_curves_at_any_steps_can_be_drawn(steps: list[int]) -> None:
    from trackhub.backends.kfp.page import _curve

    series = Series()
    # Two values at each: one alone is no curve.
    series.steps, series.values = steps * 2, [float(at) for at in range(len(steps) * 2)]
    series.settle()
    drawing = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", _curve("x", series, 100), re.DOTALL)[0])
    left, _, width, _ = map(float, drawing.attrib["viewBox"].split())
    (curve,) = [path for path in drawing.iter("path") if path.attrib.get("stroke-linejoin")]
    across = [float(pair.split()[0]) for pair in curve.attrib["d"].removeprefix("M").split("L")]
    assert all(left <= x <= width for x in across)


def test_a_run_whose_values_all_lie_at_one_large_step_is_closed(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(2**53, loss=2.0), metrics(2**53, loss=1.0)])
        backend.close("finished")

    component.run(body)
    assert component.text("page").count("<svg") == 1


def test_a_page_of_many_metrics_is_bounded(component: Component, bench: Bench) -> None:
    names = [f"group{index % 40}/metric{index}" for index in range(MOST_CURVES + 100)]

    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics(
            [MetricsLogged(CREATED_NS, step, {name: float(step * step % 97) for name in names}) for step in range(200)]
        )
        backend.close("finished")
        found = notes(backend)
        assert sum(reason == "shortened" for reason, _ in found) == 101

    component.run(body)
    assert component.text("page").count("<svg") == MOST_CURVES
    assert (component.root / "page").stat().st_size < 3 * 2**20


def test_texts_and_tables_are_one_document_and_a_single_text_is_as_it_is(component: Component, bench: Bench) -> None:
    table = json.dumps({"columns": ["a|b", "c"], "data": [["x_y", None], [1, 0.5]]})

    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_text([TextLogged(CREATED_NS, "note", bench.stored("1.txt", "# *hello*"))])
        backend.close("finished")
        assert component.text("document") == "# *hello*"
        backend.write_tables([TableLogged(CREATED_NS, "rows", bench.stored("t.json", table), ["a|b", "c"], 2, 4)])
        backend.close("finished")

    component.run(body)
    assert component.text("document") == (
        "## note\n\n# *hello*\n\n## rows (step 4)\n\n| a&#124;b | c |\n| --- | --- |\n| x&#95;y |  |\n| 1 | 0.5 |\n\n"
    )


def test_a_table_with_the_name_of_a_file_output_is_its_file(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        file = bench.stored("t.json", '{"columns":["a"],"data":[[1]]}')
        backend.write_tables([TableLogged(CREATED_NS, "dataset", file, ["a"], 1)])

    component.run(body)
    assert strictly(component.text("dataset")) == {"columns": ["a"], "data": [[1]]}


def test_without_texts_the_document_is_a_summary(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=2.0), metrics(1, loss=1.0)])
        backend.write_params([ParamsLogged(CREATED_NS, {"optimizer": "adam", "betas": [0.9, 0.99]})])
        backend.close("finished")

    component.run(body)
    text = component.text("document")
    assert "| loss | 1 | 1 | 2 | 2 |" in text
    assert "| optimizer | adam |" in text


def test_child_runs_are_a_table_of_their_parent_and_fill_no_output(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, best=1.0)])
        for index in range(3):
            child = bench.open(id=f"child-{index}", name=f"trial {index}", parent_remote_id=bench.info().id)
            child.write_params([ParamsLogged(CREATED_NS, {"lr": 0.1**index, "same": 1})])
            child.write_metrics([metrics(0, loss=1.5), metrics(1, loss=float(index))])
            child.write_models([ModelLogged(CREATED_NS, "model", bench.stored("m", b"m"))])
            child.close("finished")
            assert notes(child) == [("without an output", "model")]
        backend.close("finished")

    shown = component.run(body)
    assert shown["metrics"] == {"best": 1.0}
    assert shown["model"] == {}
    assert len(component.lines()) == 1
    assert "| trial 1 | finished | 0.1 | 1 |" in component.text("document")
    assert "trial 2" in component.text("page")
    assert "<th>same</th>" not in component.text("page")


# --- finding the outputs


def test_objects_may_be_given_and_need_not_be_those_of_kfp(tmp_path: Path, bench: Bench) -> None:
    given = SimpleNamespace(metadata={}, path=str(tmp_path / "m"))
    backend = bench.open(options={"metrics": given})
    backend.write_metrics([metrics(0, loss=1.0)])
    backend.close("finished")
    assert given.metadata == {"loss": 1.0}
    assert strictly((tmp_path / "m").read_text())["metrics"] == {"loss": 1.0}


def test_an_artifact_without_a_path_takes_metadata_alone(bench: Bench) -> None:
    given = dsl.Metrics()
    backend = bench.open(options={"metrics": given})
    backend.write_metrics([metrics(0, loss=1.0)])
    assert given.metadata == {"loss": 1.0}


def test_what_is_given_wins_over_what_is_found(component: Component, bench: Bench, tmp_path: Path) -> None:
    own = dsl.Metrics(uri=str(tmp_path / "own"))

    def body(_: Any) -> None:
        backend = bench.open(options={"metrics": own})
        backend.write_metrics([metrics(0, loss=1.0)])

    assert component.run(body)["metrics"] == {}
    assert own.metadata == {"loss": 1.0}


def test_outside_of_a_component_the_backend_is_refused_at_the_door() -> None:
    with pytest.raises(SettingsError, match="none is running in this process"):
        KfpBackend.check(KfpOptions())
    with pytest.raises(SettingsError, match="none is running in this process"):
        KfpBackend.check(KfpOptions(metrics="metrics"))


def test_options_that_cannot_be_filled_are_refused_with_the_reason(component: Component, bench: Bench) -> None:
    def refused(**arguments: Any) -> str:
        with pytest.raises(SettingsError) as caught:
            backend_options("kfp", KfpOptions, arguments, {}, None)
        return str(caught.value)

    assert "must be the component's Output[Metrics] itself" in refused(metrics=3)
    assert "is an Output[Dataset], not an Output[Metrics]" in refused(metrics=dsl.Dataset())
    assert "no option 'metric'" in refused(metric=dsl.Metrics())
    assert "at least one" in refused(html={})

    def body(_: Any) -> None:
        with pytest.raises(
            SettingsError, match=r"no output called 'nope'; its outputs are: metrics: Output\[Metrics\]"
        ):
            bench.open(options={"metrics": "nope"})

    component.run(body)


def test_live_objects_are_neither_stored_nor_sent(component: Component) -> None:
    def body(outputs: Any) -> None:
        options = KfpBackend.resolve(KfpOptions(metrics=outputs.metrics, html={"a": outputs.page}), Path.cwd())
        assert storable_options(options) == {}
        assert full_options(options) == {}
        assert options.metrics is outputs.metrics

    component.run(body)


def test_an_output_can_be_chosen_by_a_variable(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_KFP_METRICS", "second")

    def body(_: Any) -> None:
        options, _ = backend_options("kfp", KfpOptions, {}, {}, None)
        backend = KfpBackend(options)
        backend.open(bench.info(), {})
        backend.write_metrics([metrics(0, loss=1.0)])

    shown = Component(tmp_path, first="Metrics", second="Metrics").run(body)
    assert shown == {"first": {}, "second": {"loss": 1.0}}


def test_the_component_is_found_from_another_thread_once_the_options_remember_it(
    component: Component, bench: Bench
) -> None:
    def body(_: Any) -> None:
        # The component may run in any thread; the delivery runs in another.
        made = KfpBackend.resolve(KfpOptions(), Path.cwd())

        def deliver() -> None:
            backend = KfpBackend(made)
            backend.open(bench.info(), {})
            backend.write_metrics([metrics(0, loss=1.0)])

        thread = threading.Thread(target=deliver)
        thread.start()
        thread.join()

    outcome: list[Any] = []
    runner = threading.Thread(target=lambda: outcome.append(component.run(body)))
    runner.start()
    runner.join()
    assert outcome[0]["metrics"] == {"loss": 1.0}


def test_outputs_that_the_function_returns_or_writes_by_path_are_left_alone(tmp_path: Path, bench: Bench) -> None:
    component = Component(tmp_path, data="Dataset", Output="Dataset")

    def train(data: dsl.OutputPath("Dataset")) -> dsl.Dataset:  # type: ignore[valid-type]
        backend = bench.open()
        backend.write_artifacts([ArtifactLogged(CREATED_NS, "data", bench.stored("x", "logged"))])
        assert notes(backend) == [("without an output", "data")]
        return "returned"

    train.__annotations__ = {"data": dsl.OutputPath("Dataset"), "return": dsl.Dataset}
    Executor(executor_input=component.input, function_to_execute=train).execute()
    assert not (component.root / "data").exists()
    assert component.text("Output") == "returned"


def test_nothing_of_the_users_frames_is_kept_alive_by_the_search(component: Component) -> None:
    import gc
    import weakref

    class Big:
        pass

    def body(_: Any) -> None:
        big = Big()
        seen = weakref.ref(big)
        assert find_executor() is not None
        del big
        gc.collect()
        assert seen() is None

    component.run(body)


# --- before the output is written


def test_callbacks_run_once_after_the_function_and_before_the_output(component: Component) -> None:
    calls: list[str] = []

    def body(outputs: Any) -> None:
        def callback() -> None:
            calls.append("callback")
            assert not (component.root / "executor_output.json").exists()
            outputs.metrics.metadata["from"] = 1.0

        assert before_output(callback)
        assert before_output(callback)
        assert before_output(lambda: calls.append("late"), late=True)
        assert before_output(lambda: calls.append("second"))
        calls.append("function")

    assert component.run(body)["metrics"] == {"from": 1.0}
    assert calls == ["function", "callback", "second", "late"]


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3), KeyboardInterrupt()])
def test_the_output_is_written_whatever_a_callback_raises(
    component: Component, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    def body(outputs: Any) -> None:
        outputs.metrics.log_metric("loss", 1.0)
        assert before_output(fail)

    if isinstance(error, Exception):
        component.run(body)
        assert "before the KFP component's output was written" in caplog.text
    else:
        with pytest.raises(type(error)):
            component.run(body)
    assert component.metadata["metrics"] == {"loss": 1.0}


def test_outside_of_a_component_there_is_nothing_to_come_before() -> None:
    assert before_output(lambda: None) is False
    assert find_executor() is None


def test_everything_is_in_place_when_nobody_ends_the_run(component: Component, bench: Bench) -> None:
    def body(outputs: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=2.0), metrics(1, loss=1.0)])
        # The metadata may be replaced by the component itself.
        outputs.metrics.metadata = {"theirs": 1.0}

    assert component.run(body)["metrics"] == {"theirs": 1.0, "loss": 1.0}
    assert "<svg" in component.text("page")
    assert "| loss | 1 |" in component.text("document")


def test_a_child_that_arrives_after_its_parent_has_ended_is_shown(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        child = bench.open(id="late-child", name="late trial", parent_remote_id=bench.info().id)
        backend.close("finished")
        child.write_metrics([metrics(0, loss=1.0)])

    component.run(body)
    assert "late trial" in component.text("page")


def test_numpy_and_not_finite_values_that_the_component_logged_itself_do_not_fail_the_task(
    component: Component, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    np = pytest.importorskip("numpy", reason="NumPy's scalars are what is tested")

    def body(outputs: Any) -> None:
        outputs.metrics.log_metric("float32", np.float32(0.5))
        outputs.metrics.log_metric("int64", np.int64(3))
        outputs.metrics.log_metric("nan", math.nan)
        outputs.metrics.log_metric("none", None)
        outputs.metrics.log_metric("numpy nan", np.float64("nan"))
        outputs.classes.log_roc_curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([np.inf, 0.5]))
        outputs.model.metadata["shape"] = np.array([2, 3])
        bench.open()

    shown = component.run(body)
    assert shown["metrics"] == {"float32": 0.5, "int64": 3}
    assert shown["classes"]["confidenceMetrics"][0] == {
        "confidenceThreshold": 1.5,
        "recall": 0.0,
        "falsePositiveRate": 0.0,
    }
    assert shown["model"] == {"shape": [2, 3]}
    assert "metrics/nan" in caplog.text


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_metadata_become_strict_json(value: Any) -> None:
    left_out: list[str] = []
    made = strict({"x": value}, left_out.append)
    again = strictly(json.dumps(made, allow_nan=False))
    assert again == made
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        assert made == {}
        assert left_out == ["x"]


# --- again, after a break


def test_another_process_is_given_everything_again(component: Component, bench: Bench, tmp_path: Path) -> None:
    states: list[Any] = []

    def first(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=2.0)])
        backend.write_models([ModelLogged(CREATED_NS, "model", bench.stored("m", b"old"))])
        backend.close("killed")
        states.append(backend.checkpoint())

    component.run(first)

    def second(_: Any) -> None:
        with pytest.raises(StateLost):
            bench.open(states[0])
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=2.0), metrics(1, loss=1.0)])
        backend.write_models([ModelLogged(CREATED_NS, "model", bench.stored("m", b"new"))])
        backend.close("finished")
        assert notes(backend) == []

    assert component.run(second)["metrics"] == {"loss": 1.0}
    assert [line["step"] for line in component.lines()] == [0, 1]
    assert component.text("model") == "new", "what an earlier attempt wrote is ours to replace"


def test_opened_again_in_the_same_process_it_goes_on_where_it_was(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=2.0)])
        backend.close("finished")
        state = backend.checkpoint()
        backend.disconnect()
        again = bench.open(state)
        again.write_metrics([metrics(1, loss=1.0)])
        again.close("finished")

    assert component.run(body)["metrics"] == {"loss": 1.0}
    assert [line["step"] for line in component.lines()] == [0, 1]
    assert "| loss | 1 | 1 | 2 | 2 |" in component.text("document")


def test_what_was_never_confirmed_is_not_shown_twice(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(0, loss=2.0)])
        state = backend.checkpoint()
        backend.write_metrics([metrics(1, loss=1.0)])
        backend.disconnect()
        with pytest.raises(StateLost):
            bench.open(state)
        again = bench.open({})
        again.write_metrics([metrics(0, loss=2.0), metrics(1, loss=1.0)])
        again.close("finished")

    component.run(body)
    assert [line["step"] for line in component.lines()] == [0, 1]
    assert "| loss | 1 | 1 | 2 | 2 |" in component.text("document")


def test_a_rewind_knows_the_steps_of_values_that_are_not_finite(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        backend = bench.open()
        backend.write_metrics([metrics(step, loss=1.0) for step in range(41)])
        backend.write_metrics([metrics(41, loss=math.nan), metrics(42, loss=math.inf)])
        assert backend.rewind(Rewind(2, 0, after_step=42))
        with pytest.raises(StateLost):
            backend.rewind(Rewind(2, 0, after_step=40))
        again = bench.open()
        again.write_metrics([metrics(step, loss=1.0) for step in range(41)])
        assert again.rewind(Rewind(2, 0, after_step=40))
        again.write_metrics([metrics(41, loss=0.5)])
        again.close("finished")

    component.run(body)
    assert [line["step"] for line in component.lines()] == list(range(42))


def test_a_rewind_takes_back_whatever_has_a_step(component: Component, bench: Bench) -> None:
    def records_of(step: int, text: str) -> dict[str, StepValueLogged | ConfusionMatrixLogged | RocCurveLogged]:
        at = CREATED_NS, "x"
        picture = bench.stored(f"{text}.png", PNG, "image/png")
        table = bench.stored(f"{text}.json", '{"columns": ["a"], "data": [[1]]}', "application/json")
        return {
            "text": TextLogged(*at, bench.stored(f"{text}.txt", text, "text/plain"), step),
            "html": HtmlLogged(*at, bench.stored(f"{text}.html", text, "text/html"), step),
            "images": ImageLogged(*at, picture, 1, 1, step),
            "figures": FigureLogged(*at, picture, step),
            "tables": TableLogged(*at, table, ["a"], 1, step),
            "confusion_matrices": ConfusionMatrixLogged(*at, ["a"], [[1.0]], step),
            "roc_curves": RocCurveLogged(*at, [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], step),
        }

    def body(_: Any) -> None:
        for kind, late in records_of(60, "late").items():
            backend = bench.open()
            getattr(backend, f"write_{kind}")([records_of(40, "early")[kind]])
            assert backend.rewind(Rewind(2, 0, after_step=40)), kind
            getattr(backend, f"write_{kind}")([late])
            assert backend.rewind(Rewind(2, 0, metrics={"loss": 40})), kind
            with pytest.raises(StateLost):
                backend.rewind(Rewind(2, 0, after_step=40))
        again = bench.open()
        again.write_text([records_of(40, "early")["text"]])
        again.close("finished")

    component.run(body)
    assert "early" in component.text("document")
    assert "late" not in component.text("document")


def test_what_is_superseded_and_does_not_come_again_is_in_no_output(component: Component, bench: Bench) -> None:
    def body(outputs: Any) -> None:
        outputs.metrics.metadata["mine"] = 1
        backend = bench.open()
        backend.write_metrics([metrics(60, loss=1.0)])
        picture = bench.stored("i.png", PNG, "image/png")
        backend.write_images([ImageLogged(CREATED_NS, "artifact", picture, 1, 1, 60)])
        backend.write_html(
            [HtmlLogged(CREATED_NS, "page", bench.stored("p.html", "<p>page of step 60</p>", "text/html"), 60)]
        )
        backend.write_confusion_matrices([ConfusionMatrixLogged(CREATED_NS, "classes", ["a"], [[1.0]], 60)])
        with pytest.raises(StateLost):
            backend.rewind(Rewind(2, 0, after_step=40))
        again = bench.open()
        again.write_params([ParamsLogged(CREATED_NS, {"lr": 0.1})])
        again.close("finished")

    found = component.run(body)
    assert (found["metrics"], found["artifact"], found["classes"]) == ({"mine": 1}, {}, {})
    assert not (component.root / "metrics").exists()
    assert not (component.root / "artifact").exists()
    assert "page of step 60" not in component.text("page")


def test_a_second_run_in_the_same_component_is_said(component: Component, bench: Bench) -> None:
    def body(_: Any) -> None:
        bench.open().write_metrics([metrics(0, loss=2.0)])
        second = bench.open(id="second")
        assert notes(second) == [("one of several runs", "sgd")]

    component.run(body)


def test_ten_thousand_steps_are_shown_in_little_time(component: Component, bench: Bench) -> None:
    points = [metrics(step, **{f"m{k}": math.sin(step / 500 + k) for k in range(5)}) for step in range(10_000)]
    seconds: dict[int, list[float]] = {1_000: [], 10_000: []}

    def body(_: Any) -> None:
        for _ in range(5):
            for count, taken in seconds.items():
                backend = bench.open()
                start = time.process_time()
                backend.write_metrics(points[:count])
                backend.close("finished")
                taken.append(time.process_time() - start)

    component.run(body)
    # In proportion, or in less: a page has only so many points.
    assert min(seconds[10_000]) < 20 * min(seconds[1_000])


# --- the context


RUN = "3f9a1c1e-0b5e-4a57-9f7d-0c8f2f1f7a11"
TASK = "8b7c2d9a-1111-4222-8333-944455566677"


def executor_with(path: str, artifacts: Mapping[str, str] | None = None, **inputs: Any) -> Any:
    def train() -> None: ...

    given = {
        "inputs": {"parameterValues": inputs},
        "outputs": {
            "outputFile": path,
            "artifacts": {name: {"artifacts": [{"name": name, "uri": uri}]} for name, uri in (artifacts or {}).items()},
        },
    }
    return SimpleNamespace(executor_input=given, func=train)


def context(path: str, environment: Mapping[str, str] | None = None, **rest: Any) -> KfpContext:
    found = detect(environment or {}, executor_with(path, **rest))
    assert found is not None
    if found.run_id is not None:
        assert check_run_id(found.run_id) == found.run_id
    return found


def cluster(task: str = "train", own: str = TASK, run: str = RUN) -> str:
    return f"/kfp/outputs/v2/artifacts/my-pipe/{run}/{task}/{own}/output_metadata.json"


def test_a_pod_says_pipeline_run_task_and_attempt() -> None:
    environment = {
        "_KFP_RUNTIME": "true",
        "KFP_POD_NAME": "pipe-x2b-123",
        "KFP_POD_UID": "uid",
        "KFP_RETRY_INDEX": "1",
        "TRACKHUB_KFP_RUN_ID": RUN,
    }
    found = context(cluster(), environment)
    assert (found.name, found.pipeline, found.kfp_run_id, found.pod, found.attempt) == (
        "train",
        "my-pipe",
        RUN,
        "pipe-x2b-123",
        2,
    )
    assert found.tags == {
        "kfp.pipeline": "my-pipe",
        "kfp.run_id": RUN,
        "kfp.task": "train",
        "kfp.pod": "pipe-x2b-123",
        "kfp.pod_uid": "uid",
        "kfp.attempt": "2",
    }
    assert found.run_id is not None
    assert found.run_id.startswith(f"kfp-{RUN}-train-")


def test_a_retry_is_the_same_run_and_every_other_task_is_another() -> None:
    first = context(cluster(), {"KFP_POD_NAME": "a", "KFP_RETRY_INDEX": "0"})
    retry = context(cluster(), {"KFP_POD_NAME": "b", "KFP_RETRY_INDEX": "1"})
    assert first.run_id == retry.run_id
    assert first.run_id == context(cluster(), {"TRACKHUB_KFP_RUN_ID": RUN}).run_id
    others = [
        cluster(task="train-2"),
        cluster(own="8b7c2d9a-1111-4222-8333-944455566678"),
        cluster(run="3f9a1c1e-0b5e-4a57-9f7d-0c8f2f1f7a12"),
    ]
    assert len({first.run_id, *(context(path).run_id for path in others)}) == 4


def test_before_the_output_file_said_it_the_artifacts_do() -> None:
    old = "/tmp/kfp_outputs/output_metadata.json"
    artifacts = {"metrics": f"minio://mlpipeline/v2/artifacts/my-pipe/{RUN}/train/metrics"}
    found = context(old, artifacts=artifacts, fold=1)
    assert (found.name, found.kfp_run_id) == ("train", RUN)
    assert found.run_id == context(old, artifacts=artifacts, fold=1).run_id
    assert found.run_id != context(old, artifacts=artifacts, fold=2).run_id, "two iterations of a loop"


def test_where_nothing_tells_the_run_every_attempt_is_one() -> None:
    found = context("/tmp/kfp_outputs/output_metadata.json", {"KFP_POD_NAME": "p"})
    assert (found.name, found.run_id) == ("train", None)
    with_variable = context("/tmp/kfp_outputs/output_metadata.json", {"TRACKHUB_KFP_RUN_ID": RUN})
    assert with_variable.run_id is not None


def test_locally_the_folder_says_it_also_inside_of_a_loop() -> None:
    found = context("/w/local_outputs/my-pipe-2026-11-21-10-58-37-973879/show-2/executor_output.json")
    assert (found.name, found.pipeline, found.kfp_run_id, found.attempt) == (
        "show-2",
        "my-pipe",
        "my-pipe-2026-11-21-10-58-37-973879",
        None,
    )
    loop = "/w/my-pipe-2026-11-21-10-58-37-973879/for-loop-2-iteration-{}/show/executor_output.json"
    first, second = context(loop.format(0)), context(loop.format(1))
    assert first.name == "for-loop-2-iteration-0/show"
    assert first.run_id != second.run_id


def test_outside_of_kfp_there_is_no_context_and_below_a_component_only_the_pod() -> None:
    assert detect({}) is None
    found = detect({"_KFP_RUNTIME": "true", "KFP_POD_NAME": "p"})
    assert found == KfpContext(None, None, pod="p", tags={"kfp.pod": "p"})


@given(st.text(min_size=1), st.text(min_size=1, max_size=300))
def test_ids_can_always_name_a_run(run: str, task: str) -> None:
    path = f"/x/{task.replace('/', '')}-2026-11-21-10-58-37-973879/{task.replace('/', '_')}/executor_output.json"
    context(path, {"TRACKHUB_KFP_RUN_ID": run})


# --- as it really runs


COMPONENT = """
import json
from kfp import dsl, local

local.init(local.SubprocessRunner(use_venv=False), pipeline_root="root", raise_on_error=True)

@dsl.component(install_kfp_package=False)
def train(run_directory: str, metrics: dsl.Output[dsl.Metrics], page: dsl.Output[dsl.HTML]):
    import math, os
    from pathlib import Path
    from trackhub.backend import RunInfo
    from trackhub.backends.kfp import KfpBackend, KfpOptions
    from trackhub.backends.kfp.context import detect
    from trackhub.records import MetricsLogged
    context = detect(os.environ)
    options = KfpBackend.resolve(KfpOptions(), Path.cwd())
    KfpBackend.check(options)
    backend = KfpBackend(options)
    backend.open(RunInfo(context.run_id, context.name, "p", 1, Path(run_directory)), {})
    backend.write_metrics([MetricsLogged(1, step, {"loss": 1 / (step + 1), "bad": math.nan}) for step in range(10)])

@dsl.pipeline(name="pipe")
def pipe(run_directory: str):
    train(run_directory=run_directory)

pipe(run_directory="run")
"""


def test_a_local_pipeline_shows_what_was_logged(tmp_path: Path) -> None:
    (tmp_path / "pipe.py").write_text(COMPONENT)
    done = subprocess.run([sys.executable, "pipe.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = (tmp_path / "root").rglob("executor_output.json")
    output = strictly(written.read_text())
    assert output["artifacts"]["metrics"]["artifacts"][0]["metadata"] == {"loss": 0.1}
    assert (written.parent / "metrics").read_text().count("\n") == 10
    page = (written.parent / "page").read_text()
    assert "<svg" in page
    assert "<h1>train</h1>" in page


def test_a_pod_without_the_dependencies_of_kfp_is_enough(tmp_path: Path, component: Component) -> None:
    # As kfp starts a component in a pod: `python -m kfp.dsl.executor_main`, with nothing but kfp itself.
    (tmp_path / "component.py").write_text(
        "from kfp.dsl import *\n"
        "def train(metrics: Output[Metrics], classes: Output[ClassificationMetrics], model: Output[Model],\n"
        "          dataset: Output[Dataset], artifact: Output[Artifact], page: Output[HTML],\n"
        "          document: Output[Markdown]):\n"
        "    from pathlib import Path\n"
        "    from trackhub.backend import RunInfo\n"
        "    from trackhub.backends.kfp import KfpBackend, KfpOptions\n"
        "    from trackhub.records import MetricsLogged\n"
        "    KfpBackend.check(KfpOptions())\n"
        "    backend = KfpBackend(KfpOptions())\n"
        f"    backend.open(RunInfo('r', 'pod', 'p', 1, Path({str(tmp_path)!r})), {{}})\n"
        "    backend.write_metrics([MetricsLogged(1, step, {'loss': 0.5}) for step in range(3)])\n"
    )
    (tmp_path / "pod.py").write_text(
        "import sys\n"
        "class NotIn:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('yaml', 'kubernetes', 'kfp_server_api', 'click', 'docstring_parser') or "
        "name.startswith(('google.', 'kfp.compiler', 'kfp.client')):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, NotIn())\n"
        "from kfp.dsl.executor_main import executor_main\n"
        "executor_main()\n"
    )
    arguments = ["--component_module_path", str(tmp_path / "component.py"), "--function_to_execute", "train"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "pod.py"), *arguments, "--executor_input", json.dumps(component.input)],
        capture_output=True,
        text=True,
        timeout=120,
        # As in a pod; kfp then imports nothing that needs its dependencies.
        env={"_KFP_RUNTIME": "true", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert component.metadata["metrics"] == {"loss": 0.5}
    assert "<svg" in component.text("page")
