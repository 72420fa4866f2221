"""Distributed training into one run: real processes, as launchers start them, up to 64 of them into one MLflow run."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from backends.mlflow_server import running_server
from stage import Stage, said, tell

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

ALL = {"TRACKHUB_RANKS": "all", "TRACKHUB_RUN_ID": "shared"}
STARTING_AT_ONCE = 8


def place(rank: int, count: int, **more: str) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), **more}


def start_ranks(stage: Stage, count: int, code: str, environment: Mapping[str, str]) -> list[Any]:
    """Start ranks, the last one first, a few at a time; each says a line when it has begun."""
    started, silent = {}, []
    for rank in reversed(range(count)):
        process = stage.start(code, environment={**environment, **place(rank, count)}, stderr=subprocess.PIPE)
        started[rank] = process
        silent.append(process)
        while len(silent) >= STARTING_AT_ONCE:
            assert said(silent.pop(0)) == "begun"
    for process in silent:
        assert said(process) == "begun"
    return [started[rank] for rank in range(count)]


def run_ranks(stage: Stage, count: int, code: str, environment: Mapping[str, str] = ALL) -> None:
    """Have ranks begin, then all go on at the same time, to a good end."""
    ranks = start_ranks(stage, count, code, environment)
    for process in ranks:
        tell(process)
    for rank, process in enumerate(ranks):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, (rank, errors)
        assert not errors, (rank, errors)


TRAINING = """
import os, sys, trackhub
with trackhub.init(project="p", backends={backends!r}, params={{"lr": 0.1}}, tags={{"team": "a"}}) as tracker:
    print("begun", flush=True)
    sys.stdin.readline()
    rank = int(os.environ["RANK"])
    for step in range({steps}):
        tracker.log_metrics({{"train/loss": rank + step / 1000, "rank": rank}}, step=step)
    tracker.set_tags({{"host": f"host{{rank}}"}})
    tracker.log_text("note", f"from {{rank}}")
assert tracker.finish(), tracker.finish()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("mlflow")
    with running_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def expect_all_ranks_in_mlflow(server: str, experiment: str, run_id: str, count: int, steps: int) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert [run.data.tags["trackhub.run_id"] for run in found] == [run_id]
    (run,) = found
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1"}
    points: Counter[str] = Counter()
    for rank in range(count):
        prefix = f"rank{rank}/" if rank else ""
        loss = client.get_metric_history(run.info.run_id, f"{prefix}train/loss")
        assert [(point.step, point.value) for point in loss] == [(step, rank + step / 1000) for step in range(steps)]
        points["loss"] += len(loss)
        points["rank"] += len(client.get_metric_history(run.info.run_id, f"{prefix}rank"))
        assert run.data.tags[f"{prefix}host"] == f"host{rank}"
    assert points == {"loss": count * steps, "rank": count * steps}
    assert len(run.data.metrics) == 2 * count


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("count", [16, pytest.param(64, marks=pytest.mark.long)])
def test_many_processes_into_one_mlflow_run(stage: Stage, server: str, count: int) -> None:
    experiment, steps = f"ranks-{count}", 100
    environment = {**ALL, "TRACKHUB_RUN_ID": experiment, "TRACKHUB_FINISH_TIMEOUT": "100"}
    environment |= {"TRACKHUB_MLFLOW_TRACKING_URI": server, "TRACKHUB_MLFLOW_EXPERIMENT": experiment}
    run_ranks(stage, count, TRAINING.format(backends=["mlflow"], steps=steps), environment)
    run = stage.run_directory()
    assert len(list(run.journal.glob("*.lock"))) == count
    assert run.end()[0] == "finished"
    assert stage.is_closed("mlflow")
    expect_all_ranks_in_mlflow(server, experiment, experiment, count, steps)
