from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from backends_for_tests import LinesBackend, MetricsOnlyBackend
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trackhub import RunInfo
from trackhub.backend import Backend
from trackhub.lowering import KINDS, lower, supported_kinds
from trackhub.plain import artifact_name
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

MATRIX = ConfusionMatrixLogged(5, "val/cm", ["cat", "dog"], [[3.0, 1.0], [0.0, 4.0]], 7)
ROC = RocCurveLogged(5, "roc", [0.0, 0.5, 1.0], [0.0, 0.9, 1.0], [float("inf"), 0.5, 0.1])
HISTOGRAM = HistogramLogged(5, "weights", [0.0, 1.0, 2.0], [5.0, 3.0], 2)
EVERYTHING = frozenset(KINDS.values())
FILES_ONLY = frozenset({"artifacts"})


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    return RunInfo("id", "name", "project", 1, tmp_path)


def file(name: str) -> StoredFile:
    return StoredFile(f"blobs/0001-000001{name}", 3)


def test_what_a_backend_supports_is_read_off_its_class() -> None:
    assert supported_kinds(LinesBackend) == {"params", "metrics", "tags", "artifacts"}
    assert supported_kinds(MetricsOnlyBackend) == {"metrics"}
    assert supported_kinds(Backend) == frozenset()


def test_every_kind_has_a_method_of_the_contract() -> None:
    assert {f"write_{kind}" for kind in KINDS.values()} == {name for name in vars(Backend) if name.startswith("write_")}


@pytest.mark.parametrize("record", [MATRIX, ROC, HISTOGRAM], ids=lambda record: KINDS[type(record)])
def test_what_is_supported_stays_as_it_is(record: Deliverable, info: RunInfo) -> None:
    assert lower(record, EVERYTHING, info) == [record]


def test_a_confusion_matrix_becomes_a_table_and_a_figure(info: RunInfo) -> None:
    table, figure = lower(MATRIX, frozenset({"tables", "figures"}), info)
    assert isinstance(table, TableLogged)
    assert isinstance(figure, FigureLogged)
    assert (table.name, table.step, table.time_ns) == ("val/cm", 7, 5)
    assert (figure.name, figure.step, figure.time_ns) == ("val/cm", 7, 5)
    content = json.loads(info.path_of(table.file).read_bytes())
    assert content["data"] == [["cat", "cat", 3], ["cat", "dog", 1], ["dog", "cat", 0], ["dog", "dog", 4]]
    assert content["columns"] == table.columns
    assert table.row_count == 4
    assert table.file.size_bytes == info.path_of(table.file).stat().st_size
    assert ElementTree.parse(info.path_of(figure.file)).getroot().tag.endswith("svg")


def test_a_roc_curve_becomes_a_table_that_keeps_its_infinite_threshold(info: RunInfo) -> None:
    table, _ = lower(ROC, frozenset({"tables", "figures"}), info)
    assert isinstance(table, TableLogged)
    assert json.loads(info.path_of(table.file).read_bytes())["data"][0] == ["Infinity", 0, 0]


def test_a_histogram_becomes_a_table(info: RunInfo) -> None:
    (table,) = lower(HISTOGRAM, frozenset({"tables"}), info)
    assert isinstance(table, TableLogged)
    assert json.loads(info.path_of(table.file).read_bytes())["data"] == [[0, 1, 5], [1, 2, 3]]


def test_with_tables_alone_a_confusion_matrix_keeps_its_figure_out(info: RunInfo) -> None:
    assert [type(record) for record in lower(MATRIX, frozenset({"tables"}), info)] == [TableLogged]


def test_with_files_alone_everything_that_is_a_file_becomes_one(info: RunInfo) -> None:
    names = [
        record.name
        for logged in (
            MATRIX,
            ROC,
            HISTOGRAM,
            TextLogged(1, "notes", file(".txt")),
            HtmlLogged(1, "page.html", file(".html"), 3),
            ImageLogged(1, "sample", file(".png"), 8, 8, 12),
            FigureLogged(1, "loss", file(".html")),
            TableLogged(1, "rows", file(".json"), ["a"], 1),
            ModelLogged(1, "model", StoredFile("blobs/0001-000001/model.pkl", 3)),
            ModelLogged(1, "net", StoredFile("blobs/0001-000001/net", 3, is_directory=True), "registered"),
        )
        for record in lower(logged, FILES_ONLY, info)
        if isinstance(record, ArtifactLogged)
    ]
    assert names == [
        "tables/val/cm-step-7.json",
        "figures/val/cm-step-7.svg",
        "tables/roc.json",
        "figures/roc.svg",
        "tables/weights-step-2.json",
        "text/notes.txt",
        "html/page-step-3.html",
        "images/sample-step-12.png",
        "figures/loss.html",
        "tables/rows.json",
        "model/model.pkl",
        "net",
    ]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/absolute", "a//b", "./x", "..", "x/../..", "a\\..\\b", "/"])
def test_no_name_leads_out_of_the_runs_artifacts(name: str, info: RunInfo) -> None:
    (artifact,) = lower(TextLogged(1, name, file(".txt")), FILES_ONLY, info)
    assert isinstance(artifact, ArtifactLogged)
    assert artifact.name.startswith("text/")
    assert artifact_name(artifact.name) == artifact.name


NAMES = st.text(st.sampled_from("a_-/.0123~é"), max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logged=st.lists(st.tuples(NAMES, st.none() | st.integers(-12, 12)), unique=True, min_size=2, max_size=40))
@example(logged=[("eval", 10), ("eval-step-10", None)])
@example(logged=[("a//b", None), ("a/_/b", None), ("/a/_/b", None)])
@example(logged=[("e", -3), ("e-", 3), ("e--3", None)])
@example(logged=[("e", 3), ("e-03", None)])
def test_no_two_names_and_steps_share_an_artifact(logged: list[tuple[str, int | None]], info: RunInfo) -> None:
    artifacts = [lower(TextLogged(1, name, file(".txt"), step), FILES_ONLY, info)[0].name for name, step in logged]
    assert len(set(artifacts)) == len(logged)
    assert [artifact_name(artifact) for artifact in artifacts] == artifacts


@pytest.mark.parametrize(
    "record", [ParamsLogged(1, {}), MetricsLogged(1, 0, {"a": 1.0}), TagsSet(1, {}), ArtifactLogged(1, "x", file(""))]
)
def test_where_nothing_fits_nothing_is_given(record: Deliverable, info: RunInfo) -> None:
    assert lower(record, frozenset(), info) == []


def test_the_same_record_gives_the_same_files_however_often_it_is_lowered(info: RunInfo) -> None:
    first = lower(MATRIX, FILES_ONLY, info)
    written = sorted(path.stat().st_mtime_ns for path in (info.directory / "blobs" / "derived").iterdir())
    assert lower(MATRIX, FILES_ONLY, info) == first
    assert sorted(path.stat().st_mtime_ns for path in (info.directory / "blobs" / "derived").iterdir()) == written
