"""One loop, both backends, real delivery processes: the vendors' own readers give back what was logged."""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

import trackhub
from trackhub.journal import JournalReader
from trackhub.records import MetricsLogged

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow, SQLAlchemy and what they import warn about each other
]
np = pytest.importorskip("numpy")
mlflow = pytest.importorskip("mlflow")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

STEPS = 400
PARAMS = {"lr": 0.1, "layers": [64, 32], "optimizer": {"name": "adam", "betas": [0.9, 0.999]}, "resume": None}
NAMES = ["train/loss", "train/accuracy", "gradient norm", "lr", "Größe"]


def float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0] if math.isfinite(value) else value


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with everything in it, delivered to both."""
    folder = tmp_path_factory.mktemp("round-trip")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    source = folder / "config.yaml"
    source.write_text("a: 1\n")
    tree = folder / "checkpoint"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "weights.bin").write_bytes(bytes(range(256)))
    picture = np.arange(12 * 7 * 3, dtype=np.uint8).reshape(12, 7, 3)
    random = np.random.default_rng(7)
    values = random.standard_normal((STEPS, len(NAMES)))
    values[5, 0] = math.nan
    samples = random.standard_normal(1000)
    with trackhub.init(
        project="round-trip",
        name="everything",
        params=PARAMS,
        tags={"team": "vision"},
        backends=["mlflow", "tensorboard"],
        dir=folder / "trackhub",
        finish_timeout=240,
        mlflow={"tracking_uri": uri},
        tensorboard={"logdir": folder / "runs"},
    ) as tracker:
        for step, row in enumerate(values):
            tracker.log_metrics(dict(zip(NAMES, row, strict=True)), step=step, timestamp=1_700_000_000.25 + step)
        tracker.log_artifact(source)
        source.write_text("changed afterwards\n")
        tracker.log_artifact(tree, name="checkpoints/last")
        tracker.log_model(source, name="model", register_as="round-trip-model")
        tracker.log_text("note", "all is well", step=3)
        tracker.log_html("page", "<p>hello</p>")
        tracker.log_image("picture", picture, step=2)
        tracker.log_table("people", [{"name": "Ada", "age": 36}, {"name": "Grace", "age": 85}])
        tracker.log_histogram("samples", samples, step=9, bins=16)
        tracker.log_confusion_matrix("confusion", ["cat", "dog"], [[5, 1], [2, 8]])
        tracker.log_roc_curve("roc", [0, 0.5, 1], [0, 0.9, 1], [math.inf, 0.5, 0.1])
        child = tracker.child("fold 1", params={"fold": 1})
        child.log_metrics({"loss": 0.5})
        child.finish()
    report = tracker.finish()
    assert report.complete, str(report)
    return {
        "tracker": tracker,
        "child": child,
        "report": report,
        "uri": uri,
        "values": values,
        "picture": picture,
        "runs": folder / "runs",
        "folder": folder,
    }


@pytest.fixture(scope="module")
def client(logged: dict[str, Any]) -> Any:
    return mlflow.MlflowClient(tracking_uri=logged["uri"])


@pytest.fixture(scope="module")
def run_id(logged: dict[str, Any]) -> str:
    return logged["tracker"].remote_id("mlflow", timeout=1)


@pytest.fixture(scope="module")
def events(logged: dict[str, Any]) -> Any:
    folder = logged["runs"] / logged["tracker"].remote_id("tensorboard", timeout=1)
    sizes = dict.fromkeys(
        ("scalars", "tensors", "images", "histograms", "compressedHistograms", "audio", "graph", "meta_graph"), 0
    )
    accumulator = event_accumulator.EventAccumulator(str(folder), size_guidance=sizes)
    accumulator.Reload()
    return accumulator


def download(client: Any, run_id: str, path: str, target: Path) -> Path:
    return Path(client.download_artifacts(run_id, path, str(target)))


def test_the_journal_holds_every_value_time_and_step(logged: dict[str, Any]) -> None:
    reader = JournalReader(logged["tracker"].directory / "journal")
    metrics = [record for record in reader.read({}).records if isinstance(record, MetricsLogged)]
    reader.close()
    assert [record.step for record in metrics] == list(range(STEPS))
    assert [record.time_ns for record in metrics] == [1_700_000_000_250_000_000 + step * 10**9 for step in range(STEPS)]
    assert [list(record.values) for record in metrics] == [NAMES] * STEPS
    np.testing.assert_array_equal(np.array([list(record.values.values()) for record in metrics]), logged["values"])


@pytest.mark.parametrize("column", range(len(NAMES)))
def test_mlflow_has_every_point_of_a_metric(logged: dict[str, Any], client: Any, run_id: str, column: int) -> None:
    from trackhub.backends.mlflow.names import to_mlflow_key

    history = client.get_metric_history(run_id, to_mlflow_key(NAMES[column]))
    points = sorted((metric.step, metric.timestamp, metric.value) for metric in history)
    assert [point[0] for point in points] == list(range(STEPS))
    assert [point[1] for point in points] == [1_700_000_000_250 + step * 1000 for step in range(STEPS)]
    np.testing.assert_array_equal([point[2] for point in points], logged["values"][:, column])


@pytest.mark.parametrize("column", range(len(NAMES)))
def test_tensorboard_has_every_point_of_a_metric_once(logged: dict[str, Any], events: Any, column: int) -> None:
    points = events.Scalars(NAMES[column])
    assert [point.step for point in points] == list(range(STEPS))
    assert [point.wall_time for point in points] == [1_700_000_000.25 + step for step in range(STEPS)]
    np.testing.assert_array_equal(
        [point.value for point in points], [float32(value) for value in logged["values"][:, column]]
    )


def test_mlflow_has_params_tags_name_status_and_nesting(logged: dict[str, Any], client: Any, run_id: str) -> None:
    run = client.get_run(run_id)
    assert run.data.params == {
        "lr": "0.1",
        "layers": "[64, 32]",
        "optimizer/name": "adam",
        "optimizer/betas": "[0.9, 0.999]",
        "resume": "None",
    }
    assert run.data.tags["team"] == "vision"
    assert run.data.tags["trackhub.run_id"] == logged["tracker"].id
    assert (run.info.run_name, run.info.status) == ("everything", "FINISHED")
    nested = client.get_run(logged["child"].remote_id("mlflow", timeout=1))
    assert nested.data.tags["mlflow.parentRunId"] == run_id
    assert (nested.data.params, nested.data.metrics, nested.info.status) == ({"fold": "1"}, {"loss": 0.5}, "FINISHED")


def test_mlflow_has_files_as_they_were_at_the_call(client: Any, run_id: str, tmp_path: Path) -> None:
    assert download(client, run_id, "config.yaml", tmp_path).read_text() == "a: 1\n"
    assert (download(client, run_id, "checkpoints/last", tmp_path) / "deep/weights.bin").read_bytes() == bytes(
        range(256)
    )
    assert download(client, run_id, "text/note", tmp_path).is_dir()
    assert download(client, run_id, "html/page.html", tmp_path).read_text() == "<p>hello</p>"


def test_mlflow_has_the_picture_and_the_table_where_its_pages_look(
    logged: dict[str, Any], client: Any, run_id: str, tmp_path: Path
) -> None:
    from PIL import Image

    images = [item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")]
    assert len(images) == 1
    shown = Image.open(download(client, run_id, images[0], tmp_path))
    np.testing.assert_array_equal(np.asarray(shown), logged["picture"])
    table = json.loads(download(client, run_id, "tables/people.json", tmp_path).read_text())
    assert table == {"columns": ["name", "age"], "data": [["Ada", 36], ["Grace", 85]]}
    listed = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert {"path": "tables/people.json", "type": "table"} in listed


def test_mlflow_has_the_registered_model(client: Any, run_id: str) -> None:
    [version] = client.search_model_versions("name='round-trip-model'")
    assert version.run_id == run_id


def test_tensorboard_has_text_picture_histogram_and_matrix(logged: dict[str, Any], events: Any) -> None:
    from PIL import Image

    texts = {tag: events.Tensors(tag)[0] for tag in events.Tags()["tensors"]}
    assert texts["note"].step == 3
    assert b"all is well" in texts["note"].tensor_proto.string_val[0]
    assert b"Ada" in texts["people"].tensor_proto.string_val[0]
    [picture] = events.Images("picture")
    assert picture.step == 2
    shown = Image.open(io.BytesIO(picture.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(shown), logged["picture"])
    samples = texts["samples"]
    buckets = np.frombuffer(samples.tensor_proto.tensor_content).reshape(-1, 3)
    assert (samples.step, len(buckets), buckets[:, 2].sum()) == (9, 16, 1000)
    assert {"confusion", "roc"} <= set(events.Tags()["images"])


def test_nothing_is_left_over_in_the_report(logged: dict[str, Any]) -> None:
    for standing in logged["report"].standings:
        assert standing.undelivered == 0
        assert standing.cursor.report.rejected == 0
        assert standing.cursor.report.error is None
