"""Training is killed and goes on from a checkpoint: real processes, real servers, one curve at every vendor.

All backends get the same run at once; each is read back with its vendor's own reader.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import running_server
from neptune_server import NeptuneServer, neptune_server
from stage import Stage, scalars, wait_until

from trackhub.delivery import STILL_SHOWN
from trackhub.readout import read_run
from trackhub.rundir import RunDirectory

pytest.importorskip("mlflow")
if find_spec("neptune") is None:
    # Not imported here: the backend must be the first to do so, because the client reads its timeouts then.
    pytest.skip("neptune is not installed", allow_module_level=True)
pytest.importorskip("tensorboard")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You're hitting"),
]

CHECKPOINT, CRASH, END = 40, 60, 80
BACKENDS = ("mlflow", "tensorboard", "neptune")

TRAINING = """
import json, os, sys
import trackhub

given = json.loads(sys.argv[1])
tracker = trackhub.init(
    project="digits", name="sgd", run_id="the-run", params={"lr": 0.1}, resume_step=given.get("resume_step")
)
for step in range(given["first"], given["end"]):
    metrics = {"loss": step + given["attempt"] / 4}
    if step % 5 == 0:
        metrics["validation"] = step + given["attempt"] / 4
    tracker.log_metrics(metrics, step=None if given.get("counted") else step)
if given["delivered"]:
    assert tracker.flush(55), tracker.flush(0)
if given["killed"]:
    os.kill(os.getpid(), 9)
tracker.finish()
"""

REPLAY = """
import pathlib
from trackhub.rundir import RunDirectory
from trackhub.sync import sync

[report] = sync([RunDirectory(pathlib.Path("hub/the-run"))], ["mlflow", "tensorboard"])
assert report, report
"""

Curve = list[tuple[int, float]]


def curve(*attempts: tuple[int, int, int], every: int = 1) -> Curve:
    """The points of stretches of (attempt, first step, end)."""
    return [
        (step, step + attempt / 4) for attempt, first, end in attempts for step in range(first, end) if not step % every
    ]


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


class Lab:
    """The servers, and machines that train."""

    def __init__(self, stage: Stage, mlflow_url: str, neptune: NeptuneServer) -> None:
        self.stage = stage
        self.neptune = neptune
        self.url = mlflow_url
        self.experiment = stage.path.name
        for name in [name for name in stage.environment if name.startswith("NEPTUNE_")]:
            del stage.environment[name]
        stage.environment |= {
            "TRACKHUB_BACKENDS": ",".join(BACKENDS),
            "TRACKHUB_MLFLOW_TRACKING_URI": mlflow_url,
            "TRACKHUB_MLFLOW_EXPERIMENT": self.experiment,
            "TRACKHUB_NEPTUNE_PROJECT": neptune.project,
            "NEPTUNE_API_TOKEN": neptune.api_token,
        }

    def train(
        self, attempt: int, first: int, end: int, *, killed: bool = False, machine: str = "hub", **more: Any
    ) -> Any:
        """Train; gives the run directory once everything has arrived."""
        given = {"attempt": attempt, "first": first, "end": end, "killed": killed, "delivered": True, **more}
        environment = {"TRACKHUB_DIR": str(self.stage.path / machine)}
        code = TRAINING.replace("json.loads(sys.argv[1])", f"json.loads({json.dumps(json.dumps(given))})")
        self.stage.run(code, exit_code=-signal.SIGKILL if killed else 0, environment=environment)
        run = RunDirectory(self.stage.path / machine / "the-run")
        if given["delivered"]:
            self.stage.wait_closed(*BACKENDS, run=run)
        return run

    def in_neptune(self, name: str = "loss") -> Curve:
        [run] = self.neptune.runs.values()
        return [(int(point.step), point.value) for point in run.series(f"metrics/{name}")]

    def in_mlflow(self) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(self.url)
        experiment = client.get_experiment_by_name(self.experiment)
        assert experiment is not None
        [run] = client.search_runs([experiment.experiment_id])
        return client, run

    def history(self, name: str = "loss") -> Curve:
        client, run = self.in_mlflow()
        return sorted((one.step, one.value) for one in client.get_metric_history(run.info.run_id, name))

    def one_curve_by_tags(self, name: str = "loss") -> Curve:
        """What is left of MLflow's points if what the tag says is superseded is left out."""
        client, run = self.in_mlflow()
        entries = json.loads(run.data.tags.get("trackhub.superseded", "[]"))
        return sorted(
            (one.step, one.value)
            for one in client.get_metric_history(run.info.run_id, name)
            if not any(
                one.timestamp < entry["logged_before"]
                and one.step > entry.get("after_step", entry.get("metrics", {}).get(name, one.step))
                for entry in entries
            )
        )


@pytest.fixture
def lab(stage: Stage, mlflow_url: str) -> Iterator[Lab]:
    with neptune_server() as neptune:
        yield Lab(stage, mlflow_url, neptune)


def in_the_ui(logdir: Path, tag: str = "loss") -> Curve:
    """What TensorBoard's pages are drawn from."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer

    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"scalars": 0})
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    found = provider.read_scalars(context.RequestContext(), experiment_id="", plugin_name="scalars", downsample=100_000)
    [run] = found.values()
    return [(datum.step, datum.value) for datum in run[tag]]


@pytest.mark.parametrize("resume_step", [CHECKPOINT, None])
def test_one_curve_after_a_kill_on_the_same_machine(lab: Lab, resume_step: int | None) -> None:
    lab.train(1, 0, CRASH, killed=True)
    before = lab.history()
    assert before == curve((1, 0, CRASH))
    run = lab.train(2, CHECKPOINT + 1, END, resume_step=resume_step)
    wanted = curve((1, 0, CHECKPOINT + 1), (2, CHECKPOINT + 1, END))
    validation = curve((1, 0, CHECKPOINT + 1), (2, CHECKPOINT + 1, END), every=5)
    assert scalars(run)["loss"] == wanted
    assert scalars(run)["validation"] == validation
    assert in_the_ui(lab.stage.path / "runs") == wanted
    assert in_the_ui(lab.stage.path / "runs", "validation") == validation
    assert lab.in_neptune() == wanted
    assert lab.in_neptune("validation") == validation
    # MLflow keeps both, and says which is which.
    assert lab.history() == sorted(before + curve((2, CHECKPOINT + 1, END)))
    assert lab.one_curve_by_tags() == wanted
    assert lab.one_curve_by_tags("validation") == validation
    assert lab.in_mlflow()[1].data.tags["trackhub.attempt"] == "2"
    superseded = len(curve((1, CHECKPOINT + 1, CRASH))) + len(curve((1, CHECKPOINT + 1, CRASH), every=5))
    assert run.cursor("mlflow").report.notes[STILL_SHOWN].count == superseded
    assert STILL_SHOWN not in run.cursor("tensorboard").report.notes
    assert STILL_SHOWN not in run.cursor("neptune").report.notes
    readout = read_run(run.journal)
    assert (readout.attempts, readout.superseded) == (2, superseded)
    assert readout.metrics["loss"].series == wanted
    # Sent to another place as a whole, the run is one curve from the start.
    shutil.rmtree(run.cursors)
    shutil.rmtree(lab.stage.path / "runs")
    lab.stage.run(REPLAY, environment={"TRACKHUB_MLFLOW_EXPERIMENT": lab.experiment + "-replayed"})
    assert scalars(run)["loss"] == wanted
    assert run.cursor("mlflow").report.superseded == superseded
    assert STILL_SHOWN not in run.cursor("mlflow").report.notes
    lab.experiment += "-replayed"
    assert lab.history() == wanted
    assert "trackhub.superseded" not in lab.in_mlflow()[1].data.tags


def test_one_curve_after_a_kill_on_another_machine(lab: Lab) -> None:
    first = lab.train(1, 0, CRASH, killed=True, machine="first")
    files = {path: path.read_bytes() for path in (lab.stage.path / "runs").rglob("*tfevents*")}
    run = lab.train(2, CHECKPOINT + 1, END, machine="second", resume_step=CHECKPOINT)
    wanted = curve((1, 0, CHECKPOINT + 1), (2, CHECKPOINT + 1, END))
    assert run.cursor("mlflow").remote_id == first.cursor("mlflow").remote_id
    assert run.cursor("neptune").remote_id == first.cursor("neptune").remote_id
    assert run.cursor("tensorboard").remote_id == first.cursor("tensorboard").remote_id
    assert {path: path.read_bytes() for path in files} == files, "what the first machine wrote is its own"
    assert scalars(run)["loss"] == wanted
    assert in_the_ui(lab.stage.path / "runs") == wanted
    assert lab.in_neptune() == wanted
    assert lab.history() == sorted(curve((1, 0, CRASH), (2, CHECKPOINT + 1, END)))
    assert lab.one_curve_by_tags() == wanted
    assert STILL_SHOWN in run.cursor("mlflow").report.notes


def test_going_on_where_it_ended_supersedes_nothing(lab: Lab) -> None:
    """On the same machine and then on another, with steps that are counted and not given."""
    lab.train(1, 0, CRASH, killed=True, counted=True)
    run = lab.train(2, CRASH, END, counted=True)
    wanted = curve((1, 0, CRASH), (2, CRASH, END))
    assert [lab.history(), lab.in_neptune(), scalars(run)["loss"]] == [wanted] * 3
    assert not [name for name in BACKENDS if STILL_SHOWN in run.cursor(name).report.notes]
    other = lab.train(3, END, END + 10, counted=True, machine="other", resume_step=END - 1)
    wanted += curve((3, END, END + 10))
    assert [lab.history(), lab.in_neptune(), scalars(other)["loss"]] == [wanted] * 3
    assert in_the_ui(lab.stage.path / "runs") == wanted
    assert "trackhub.superseded" not in lab.in_mlflow()[1].data.tags


def test_two_rewinds_and_one_to_the_very_start(lab: Lab) -> None:
    lab.train(1, 0, CRASH, killed=True)
    lab.train(2, CHECKPOINT + 1, END, killed=True, resume_step=CHECKPOINT)
    run = lab.train(3, 21, 50, killed=True, resume_step=20)
    wanted = curve((1, 0, 21), (3, 21, 50))
    assert [lab.in_neptune(), scalars(run)["loss"], in_the_ui(lab.stage.path / "runs")] == [wanted] * 3
    assert lab.one_curve_by_tags() == wanted
    run = lab.train(4, 0, 30, resume_step=-1)
    wanted = curve((4, 0, 30))
    assert [lab.in_neptune(), scalars(run)["loss"], in_the_ui(lab.stage.path / "runs")] == [wanted] * 3
    assert lab.one_curve_by_tags() == wanted
    assert lab.in_mlflow()[1].data.tags["trackhub.attempt"] == "4"


def test_what_had_not_been_delivered_at_the_kill_is_not_sent(lab: Lab) -> None:
    """The servers are away during the first attempt."""
    lab.neptune.stop()
    stage = lab.stage
    lab.train(1, 0, CRASH, killed=True, delivered=False)
    lab.neptune.start()
    run = lab.train(2, CHECKPOINT + 1, END, resume_step=CHECKPOINT)
    wanted = curve((1, 0, CHECKPOINT + 1), (2, CHECKPOINT + 1, END))
    wait_until(lambda: stage.is_closed("neptune", run), "neptune to be complete")
    assert lab.in_neptune() == wanted
    assert scalars(run)["loss"] == wanted
    assert lab.one_curve_by_tags() == wanted


def test_a_metric_with_another_name_at_the_backend_is_one_curve_too(stage: Stage) -> None:
    train = """
        import os, trackhub
        with trackhub.init(run_id="the-run", backends=["tensorboard"]) as tracker:
            for step in range(FIRST, END):
                tracker.log_metrics({"loss": ATTEMPT * 100 + step, "other": step}, step=step)
            assert tracker.flush(55)
            if ATTEMPT == 1:
                os.kill(os.getpid(), 9)
        """
    stage.environment["TRACKHUB_TENSORBOARD_PROCESSORS"] = "rename:loss=train/loss,every:2:train/*"
    for attempt, first, end in [(1, 0, 6), (2, 3, 8)]:
        code = train.replace("ATTEMPT", str(attempt)).replace("FIRST", str(first)).replace("END", str(end))
        stage.run(code, exit_code=-signal.SIGKILL if attempt == 1 else 0)
    run = stage.run_directory()
    stage.wait_closed("tensorboard", run=run)
    assert scalars(run) == {
        "train/loss": [(0, 100.0), (2, 102.0), (4, 204.0), (6, 206.0)],
        "other": [(step, float(step)) for step in range(8)],
    }
