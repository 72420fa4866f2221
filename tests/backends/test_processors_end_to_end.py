"""Every built-in processor, from `init` to what the vendors' readers find: a real MLflow server, and TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import running_server
from stage import scalars

import trackhub
from trackhub.delivery import Delivery
from trackhub.plugins import find_backend
from trackhub.report import delivery_report
from trackhub.rundir import RunDirectory
from trackhub.sync import options_for

pytest.importorskip("mlflow")
pytest.importorskip("tensorboard")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)

STEPS = 100
PARAMS = {
    "lr": 0.1,
    "max_tokens": 512,
    "auth": {"token": "sesame-1"},
    "clients": [{"api_key": "sesame-2", "url": "u"}],
    "password": "sesame-3",
}
TAGS = {"hf_token": "sesame-4", "team": "vision"}
CHOSEN = {
    "TRACKHUB_MLFLOW_PROCESSORS": "every:10:train/*,exclude:scratch|grad/*,"
    "rename:train/*=training/*|notes=diary|lr=rate",
    "TRACKHUB_TENSORBOARD_PROCESSORS": "include:metrics:train/*,every:25,redact:!max_tokens|team",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


def files(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    found = []
    for entry in client.list_artifacts(run_id, folder):
        found += files(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return found


def texts_of_tensorboard(path: Path) -> dict[str, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    found = EventAccumulator(str(path)).Reload()
    return {
        tag: "".join(str(tensor_util.make_ndarray(event.tensor_proto).tolist()) for event in found.Tensors(tag))
        for tag in found.Tags()["tensors"]
    }


def train() -> RunDirectory:
    with trackhub.init(backends=["mlflow", "tensorboard"], mode="offline", params=PARAMS, tags=TAGS) as tracker:
        for step in range(STEPS):
            tracker.log_metrics({"train/loss": step / 8, "grad/w": 1.0, "scratch": 2.0}, step=step)
        tracker.log_text("notes", "kept")
        tracker.log_text("scratch", "left out")
        tracker.log_table("per class", [[1, 2]], columns=["a", "b"])
    return RunDirectory(tracker.directory)


def deliver(run: RunDirectory, name: str) -> str:
    """Deliver as a delivery process of `trackhub sync` does, and give back what the report says."""
    kind = find_backend(name)
    options = kind.Options.model_validate(options_for(run, name))
    delivery = Delivery(run, name, lambda: kind(options))
    while delivery.pump() == 0.0:
        pass
    assert delivery.closed
    delivery.release()
    return str(delivery_report(run, "trackhub sync", [name]))


def test_both_have_what_their_processors_left_and_no_secret_is_anywhere(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKHUB_MLFLOW_TRACKING_URI", server)
    with monkeypatch.context() as while_training:
        for variable, chosen in CHOSEN.items():
            while_training.setenv(variable, chosen)
        run = train()
    # They are of the run from then on.
    said = deliver(run, "mlflow")
    deliver(run, "tensorboard")
    remote_id = run.cursor("mlflow").remote_id
    assert remote_id is not None

    client = MlflowClient(server)
    shown = client.get_run(remote_id)
    history = client.get_metric_history(remote_id, "training/loss")
    assert [(point.step, point.value) for point in history] == [(step, step / 8) for step in range(0, STEPS, 10)]
    assert set(shown.data.metrics) == {"training/loss"}
    params = dict(shown.data.params)
    assert (params["rate"], params["max_tokens"], params["auth/token"], params["password"]) == (
        "0.1",
        "512",
        "(redacted)",
        "(redacted)",
    )
    assert "lr" not in params
    assert "(redacted)" in params["clients"]
    assert (shown.data.tags["hf_token"], shown.data.tags["team"]) == ("(redacted)", "vision")
    names = " ".join(files(client, remote_id))
    assert "diary" in names
    assert "notes" not in names
    assert "scratch" not in names
    assert "sesame" not in str(shown.to_dictionary())

    assert scalars(run) == {"train/loss": [(step, step / 8) for step in range(0, STEPS, 25)]}
    written = texts_of_tensorboard(Path(run.cursor("tensorboard").state["file"]).parent)
    assert "(redacted)" in written["params"]
    assert "512" in written["params"]
    assert "vision" not in written["tags"]
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"sesame" in path.read_bytes()] == []

    counted = {name: run.cursor(name).report.notes for name in ("mlflow", "tensorboard")}
    assert counted["mlflow"]["left out by every:10:train/*"].count == STEPS - STEPS // 10
    # Two metrics of each step, and the text.
    assert counted["mlflow"]["left out by exclude:scratch|grad/*"].count == 2 * STEPS + 1
    # Ten points, the param, the text.
    assert counted["mlflow"]["renamed as asked"].count == STEPS // 10 + 2
    assert counted["mlflow"]["redacted"].count == 4
    assert counted["tensorboard"]["left out by include:metrics:train/*"].count == 2 * STEPS
    assert counted["tensorboard"]["left out by every:25"].count == STEPS - STEPS // 25
    assert counted["tensorboard"]["redacted"].count == 5
    assert "mlflow: 4 redacted: " in said
