"""Processes that are killed at random moments: nothing that a call returned for is lost, nothing arrives twice."""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from stage import Stage, delivery_processes, records_of, scalars, wait_until

from trackhub.records import MetricsLogged, TextLogged
from trackhub.rundir import RunDirectory
from trackhub.sync import sync

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

SEEDS = range(4)
MORE_SEEDS = range(100, 140)

# Which calls have returned it writes where a SIGKILL does not wipe it out.
TRAINING = """
import os, struct, sys, time, trackhub
mark = os.open("returned", os.O_RDWR | os.O_CREAT)
tracker = trackhub.init(backends=sys.argv[1].split(","), params={"lr": 0.1})
step = 0
while True:
    tracker.log_metrics({"x": step, "y": -step}, step=step)
    if step % 100 == 0:
        tracker.log_text("note", str(step), step=step)
    step += 1
    os.pwrite(mark, struct.pack("<q", step), 0)
    if step % 20 == 0:
        time.sleep(0.005)
"""


def returned(stage: Stage) -> int:
    """How many calls of log_metrics have returned."""
    path = stage.path / "returned"
    content = path.read_bytes() if path.exists() else b""
    return int(struct.unpack("<q", content)[0]) if len(content) == 8 else 0


def start_training(stage: Stage, backends: str) -> Any:
    (stage.path / "train.py").write_text(TRAINING, encoding="utf-8")
    process = stage.start(f"import sys; sys.argv[1:] = [{backends!r}]; exec(open('train.py').read())")
    wait_until(lambda: returned(stage) > 0, "the training to begin")
    return process


def expect_all(stage: Stage, run: RunDirectory, calls: int) -> int:
    """What the journal has is at least what was returned for, and TensorBoard has exactly that, once."""
    steps = [record.step for record in records_of(run) if isinstance(record, MetricsLogged)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= calls
    found = scalars(run)
    assert found["x"] == [(step, float(step)) for step in steps]
    assert found["y"] == [(step, -float(step)) for step in steps]
    report = run.cursor("tensorboard").report
    assert report.delivered["metrics"] == len(steps)
    assert report.delivered["text"] == len([record for record in records_of(run) if isinstance(record, TextLogged)])
    assert (report.rejected, report.damaged[1:]) == (0, [])
    return len(steps)


def seeded() -> Any:
    seeds = [*SEEDS, *(pytest.param(seed, marks=pytest.mark.long) for seed in MORE_SEEDS)]
    return pytest.mark.parametrize("seed", seeds)


@seeded()
def test_when_training_is_killed_every_returned_call_arrives_and_the_run_is_killed(stage: Stage, seed: int) -> None:
    chance = random.Random(seed)
    process = start_training(stage, "tensorboard")
    time.sleep(chance.uniform(0, 1.5))
    process.kill()
    process.wait()
    calls = returned(stage)
    stage.wait_closed("tensorboard")
    run = stage.run_directory()
    assert run.end()[0] == run.cursor("tensorboard").closed_status == "killed"
    expect_all(stage, run, calls)
    wait_until(lambda: not delivery_processes(process.pid), "the delivery process to end", 60)


@seeded()
def test_when_the_whole_tree_is_killed_sync_completes_the_run(
    stage: Stage, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    process = start_training(stage, "tensorboard")
    time.sleep(chance.uniform(0, 1.5))
    victims = [process.pid, *delivery_processes(process.pid).values()]
    chance.shuffle(victims)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not delivery_processes(process.pid), "the delivery process to be gone", 60)
    calls = returned(stage)
    run = stage.run_directory()
    monkeypatch.setenv("TRACKHUB_TENSORBOARD_LOGDIR", str(stage.path / "runs"))
    (report,) = sync([run])
    assert report, str(report)
    assert run.cursor("tensorboard").closed_status == "killed"
    delivered = expect_all(stage, run, calls)
    (report,) = sync([run])
    assert report
    assert expect_all(stage, run, calls) == delivered


@seeded()
def test_when_delivery_processes_are_killed_training_does_not_notice_and_nothing_comes_twice(
    stage: Stage, seed: int
) -> None:
    chance = random.Random(seed)
    process = start_training(stage, "tensorboard,lines")
    for _ in range(2):
        alive = wait_until(lambda: delivery_processes(process.pid, "tensorboard"), "a delivery process")
        time.sleep(chance.uniform(0, 0.8))
        os.kill(alive["tensorboard"], signal.SIGKILL)
        before = returned(stage)
        wait_until(
            lambda dead=alive: delivery_processes(process.pid, "tensorboard") not in ({}, dead), "another one to go on"
        )
        wait_until(lambda calls=before: returned(stage) > calls, "the training to go on")
        assert process.poll() is None
    process.kill()
    process.wait()
    calls = returned(stage)
    stage.wait_closed("tensorboard", "lines")
    expect_all(stage, stage.run_directory(), calls)


def test_a_delivery_process_that_is_killed_after_the_training_leaves_the_rest_to_sync(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_training(stage, "unavailable,tensorboard")
    wait_until(lambda: stage.run_directory().cursor("unavailable").report.error, "the delivery to be in trouble")
    process.kill()
    process.wait()
    stage.wait_closed("tensorboard")
    os.kill(delivery_processes(process.pid)["unavailable"], signal.SIGKILL)
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(stage.plugins))
    (stage.path / "unavailable.jsonl").touch()
    (report,) = sync(stage.runs())
    assert report
    assert stage.run_directory().cursor("unavailable").closed_status == "killed"


def test_a_killed_parent_of_live_children_ends_them_too(stage: Stage) -> None:
    process = stage.start(
        """
        import os, signal, trackhub
        parent = trackhub.init(backends=["lines"])
        for number in range(5):
            parent.child(str(number)).log_metrics({"x": number})
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    process.wait(30)
    runs = stage.runs()
    assert len(runs) == 6
    for run in runs:
        stage.wait_closed("lines", run=run)
        assert run.cursor("lines").closed_status == "killed"


MLFLOW = [pytest.param("sqlite", id="sqlite"), pytest.param("server", marks=pytest.mark.long, id="server")]


@pytest.mark.parametrize("store", MLFLOW)
@pytest.mark.parametrize("whole_tree", [False, True], ids=["training", "tree"])
def test_killed_training_is_complete_and_killed_in_mlflow(
    stage: Stage, store: str, whole_tree: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("mlflow")
    if store == "server":
        monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "backends"))
        from mlflow_server import running_server

        context = running_server(stage.path)
        uri = context.__enter__()
        request.addfinalizer(lambda: context.__exit__(None, None, None))
    else:
        uri = f"sqlite:///{stage.path}/mlflow.db"
    stage.environment["TRACKHUB_MLFLOW_TRACKING_URI"] = uri
    process = start_training(stage, "mlflow")
    run = stage.run_directory()
    if whole_tree:
        wait_until(lambda: run.cursor("mlflow").position, "something to have arrived")
        os.kill(delivery_processes(process.pid)["mlflow"], signal.SIGKILL)
    process.kill()
    process.wait()
    calls = returned(stage)
    if whole_tree:
        for pid in delivery_processes(process.pid).values():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not delivery_processes(process.pid), "the delivery process to be gone", 60)
        for name, value in stage.environment.items():
            monkeypatch.setenv(name, value)
        (report,) = sync([run])
        assert report, str(report)
    stage.wait_closed("mlflow")
    out, _ = stage.run(
        f"""
        import sys, warnings
        from mlflow import MlflowClient
        client = MlflowClient(tracking_uri={uri!r})
        experiments = client.search_experiments()
        runs = client.search_runs([experiment.experiment_id for experiment in experiments])
        for one in runs:
            history = client.get_metric_history(one.info.run_id, "x")
            steps = sorted((metric.step, metric.value) for metric in history)
            print(one.info.run_id, one.info.status, len(steps), steps == [(n, float(n)) for n in range(len(steps))])
        """
    )
    (line,) = [line for line in out.splitlines() if line.count(" ") == 3]  # one run, however often it was begun
    remote_id, status, count, exact = line.split()
    assert remote_id == run.cursor("mlflow").remote_id
    assert (status, exact) == ("KILLED", "True")
    assert int(count) >= calls


def test_training_killed_the_moment_its_delivery_process_begins_is_still_delivered(stage: Stage) -> None:
    process = stage.start(
        """
        import os, signal, trackhub
        spawn = os.posix_spawn
        def spawn_and_die(*arguments, **more):
            spawn(*arguments, **more)
            os.kill(os.getpid(), signal.SIGKILL)
        os.posix_spawn = spawn_and_die
        trackhub.init(backends=["lines"], params={"lr": 0.1})
        """
    )
    process.wait(30)
    stage.wait_closed("lines")
    assert stage.run_directory().cursor("lines").closed_status == "killed"
