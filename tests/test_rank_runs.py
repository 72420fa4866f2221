"""Distributed training into one run: real processes, as launchers start them, up to 64 of them into one MLflow run."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from backends.mlflow_server import running_server
from backends_for_tests import calls_in
from stage import Stage, delivery_processes, records_of, said, scalars, tell, wait_until

from trackhub.records import ParamsLogged, TagsSet
from trackhub.rundir import RunDirectory

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
        _, errors = process.communicate(timeout=200)
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
    environment = {**ALL, "TRACKHUB_RUN_ID": experiment, "TRACKHUB_FINISH_TIMEOUT": "180"}
    environment |= {"TRACKHUB_MLFLOW_TRACKING_URI": server, "TRACKHUB_MLFLOW_EXPERIMENT": experiment}
    run_ranks(stage, count, TRAINING.format(backends=["mlflow"], steps=steps), environment)
    run = stage.run_directory()
    assert len(list(run.journal.glob("*.lock"))) == count
    assert run.end()[0] == "finished"
    assert stage.is_closed("mlflow")
    expect_all_ranks_in_mlflow(server, experiment, experiment, count, steps)


# --- how it ends, and who delivers


def test_one_process_delivers_for_all_and_what_all_say_is_said_once(stage: Stage) -> None:
    code = TRAINING.format(backends=["lines"], steps=20)
    ranks = [stage.start(code, environment={**ALL, **place(0, 4)}, stderr=subprocess.PIPE)]
    wait_until(lambda: stage.runs() and stage.run_directory().cursor_file("lines").is_claimed, "rank 0 to deliver")
    ranks += [stage.start(code, environment={**ALL, **place(rank, 4)}, stderr=subprocess.PIPE) for rank in (1, 2, 3)]
    for process in ranks:
        assert said(process) == "begun"
    for process in ranks:
        tell(process)
    for process in ranks:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert process is ranks[0] or not delivery_processes(process.pid)
    run = stage.run_directory()
    calls = calls_in(stage.lines)
    assert [call["call"] for call in calls].count("open") == 1
    assert [call["status"] for call in calls if call["call"] == "close"] == ["finished"]
    records = records_of(run)
    assert [record.params for record in records if isinstance(record, ParamsLogged)] == [{"lr": 0.1}]
    tags = [record.tags for record in records if isinstance(record, TagsSet)]
    assert {"team": "a"} in tags
    assert {"rank3/host": "host3"} in tags
    assert run.manifest.id == run.manifest.name == "shared"


def test_the_run_goes_on_until_the_last_rank_has_ended(stage: Stage) -> None:
    ranks = start_ranks(stage, 3, TRAINING.format(backends=["lines"], steps=5), ALL)
    run = stage.run_directory()
    tell(ranks[0])
    # Its finish() waits for what it has logged, not for the others.
    _, errors = ranks[0].communicate(timeout=60)
    assert (ranks[0].returncode, errors) == (0, "")
    assert run.end() == ("running", None)
    assert not run.cursor("lines").closed
    tell(ranks[2])
    ranks[2].communicate(timeout=60)
    assert run.end() == ("running", None)
    tell(ranks[1])
    _, errors = ranks[1].communicate(timeout=60)
    # The last one waits until the run has ended at the backend, too.
    assert (ranks[1].returncode, errors) == (0, "")
    assert run.cursor("lines").closed_status == "finished"
    assert [call["status"] for call in calls_in(stage.lines) if call["call"] == "close"] == ["finished"]


def test_what_a_rank_reports_is_its_own_however_much_the_others_log_meanwhile(stage: Stage) -> None:
    code = """
        import os, sys, threading, trackhub
        with trackhub.init(backends=["lines"]) as tracker:
            print("begun", flush=True)
            if os.environ["RANK"] == "0":
                sys.stdin.readline()
                for step in range(10):
                    tracker.log_metrics({"x": 1.0}, step=step)
                    report = tracker.flush()
                    assert report, report
            else:
                told = threading.Event()
                threading.Thread(target=lambda: sys.stdin.readline() and told.set(), daemon=True).start()
                while not told.wait(0.0005):
                    tracker.log_metrics({"x": 1.0})
        report = tracker.finish()
        assert report, report
        """
    ranks = start_ranks(stage, 2, code, ALL)
    for process in ranks:
        tell(process)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    assert stage.run_directory().end()[0] == "finished"


@pytest.mark.parametrize(("how", "status"), [("raise ValueError('bad shard')", "failed"), ("os.abort()", "killed")])
def test_a_rank_that_fails_or_vanishes_ends_the_run_as_that(stage: Stage, how: str, status: str) -> None:
    code = f"""
        import os, sys, trackhub
        with trackhub.init(backends=["lines"]) as tracker:
            tracker.log_metrics({{"x": 1.0}})
            print("begun", flush=True)
            sys.stdin.readline()
            if os.environ["RANK"] == "2":
                {how}
        """
    ranks = start_ranks(stage, 3, code, ALL)
    for process in ranks:
        tell(process)
    for process in ranks:
        process.communicate(timeout=60)
    assert [process.returncode == 0 for process in ranks] == [True, True, False]
    stage.wait_closed("lines")
    run = stage.run_directory()
    found, ended = run.end()
    assert found == run.cursor("lines").closed_status == status
    assert status != "failed" or (ended is not None and ended.error == "ValueError: bad shard")
    assert run.cursor("lines").report.points == 3


def test_all_ranks_and_all_deliveries_killed_then_sync(stage: Stage) -> None:
    ranks = start_ranks(stage, 4, TRAINING.format(backends=["tensorboard"], steps=1), ALL)
    deliveries = wait_until(lambda: delivery_processes(ranks[0].pid), "rank 0 to deliver")
    for process in [*deliveries.values(), *(process.pid for process in ranks)]:
        os.kill(process, signal.SIGKILL)
    for process in ranks:
        process.wait()
    run = stage.run_directory()
    subprocess.run(
        [sys.executable, "-m", "trackhub", "sync"], env=stage.environment, cwd=stage.path, check=True, timeout=60
    )
    assert run.end()[0] == run.cursor("tensorboard").closed_status == "killed"


def test_a_second_attempt_goes_on_with_the_run_and_its_end_counts(stage: Stage) -> None:
    code = """
        import os, sys, trackhub
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        with trackhub.init(backends=["tensorboard"]) as tracker:
            print("begun", flush=True)
            sys.stdin.readline()
            tracker.log_metrics({"x": attempt}, step=attempt)
            if attempt == 0:
                raise RuntimeError("first attempt")
        """
    for attempt, count in enumerate([3, 2]):
        ranks = start_ranks(stage, count, code, {**ALL, "TORCHELASTIC_RESTART_COUNT": str(attempt)})
        for process in ranks:
            tell(process)
        for process in ranks:
            process.communicate(timeout=60)
    stage.wait_closed("tensorboard")
    run = stage.run_directory()
    assert run.end()[0] == run.cursor("tensorboard").closed_status == "finished"
    assert run.cursor("tensorboard").attempts == 2
    assert scalars(run) == {
        "x": [(0, 0.0), (1, 1.0)],
        "rank1/x": [(0, 0.0), (1, 1.0)],
        "rank2/x": [(0, 0.0)],
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning")
def test_ranks_that_are_back_and_delivered_before_rank_0_supersede_what_they_log_anew(
    stage: Stage, server: str
) -> None:
    from mlflow.tracking import MlflowClient

    code = """
        import os, sys, trackhub
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        with trackhub.init(backends=["tensorboard", "mlflow"]) as tracker:
            for step in [range(11), range(5, 9)][attempt]:
                tracker.log_metrics({"x": attempt}, step=step)
            if attempt == 0 or os.environ["RANK"] == "0":
                assert tracker.flush()
            print("logged", flush=True)
            sys.stdin.readline()
            if attempt == 0:
                raise RuntimeError("first attempt")
        """
    environment = {**ALL, "TRACKHUB_MLFLOW_TRACKING_URI": server, "TRACKHUB_MLFLOW_EXPERIMENT": "ahead"}
    for attempt in (0, 1):
        ranks = []
        for rank in [(0, 1, 2), (2, 1, 0)][attempt]:
            more = {**environment, **place(rank, 3), "TORCHELASTIC_RESTART_COUNT": str(attempt)}
            ranks.append(stage.start(code, environment=more, stderr=subprocess.PIPE))
            assert said(ranks[-1]) == "logged"
            if attempt and rank:
                # By nobody whom rank 0 has started.
                subprocess.run(
                    [sys.executable, "-m", "trackhub", "sync"],
                    env={**stage.environment, **environment},
                    cwd=stage.path,
                    check=True,
                    timeout=60,
                    capture_output=True,
                )
                given = [stage.run_directory().cursor(name).report.points for name in ("tensorboard", "mlflow")]
                assert given == [3 * 11 + 4 * (3 - rank)] * 2
        for process in ranks:
            tell(process)
        for process in ranks:
            process.communicate(timeout=60)
        assert [process.returncode for process in ranks] == [1 - attempt] * 3
        stage.wait_closed("tensorboard", "mlflow")
    wanted = [(step, float(step >= 5)) for step in range(9)]
    names = ("x", "rank1/x", "rank2/x")
    assert scalars(stage.run_directory()) == dict.fromkeys(names, wanted)
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("ahead")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    [entry] = json.loads(run.data.tags["trackhub.superseded"])
    assert run.data.tags["trackhub.attempt"] == "2"
    for name in names:
        history = client.get_metric_history(run.info.run_id, name)
        left = [
            (point.step, point.value)
            for point in history
            if point.timestamp >= entry["logged_before"] or point.step <= entry["metrics"][name]
        ]
        assert (len(history), sorted(left)) == (15, wanted)


def test_a_rank_takes_over_when_nobody_delivers_any_more(stage: Stage) -> None:
    ranks = start_ranks(stage, 2, TRAINING.format(backends=["lines"], steps=20), ALL)
    delivery = wait_until(lambda: delivery_processes(ranks[0].pid).get("lines"), "rank 0 to deliver")
    for process in (ranks[0].pid, delivery):
        os.kill(process, signal.SIGKILL)
    ranks[0].wait()
    tell(ranks[1])
    ranks[1].communicate(timeout=60)
    assert ranks[1].returncode == 0
    run = stage.run_directory()
    assert run.cursor("lines").closed_status == run.end()[0] == "killed"
    assert run.cursor("lines").report.points == 2 * 20


def test_ranks_without_a_shared_file_system_make_one_remote_run(stage: Stage, server: str) -> None:
    """Each has its own directory with the same run id; what all of them deliver is one run of the server."""
    from mlflow.tracking import MlflowClient

    steps = 30
    code = TRAINING.format(backends=["mlflow"], steps=steps)
    environment = {**ALL, "TRACKHUB_MLFLOW_TRACKING_URI": server, "TRACKHUB_MLFLOW_EXPERIMENT": "apart"}
    environment["TRACKHUB_FINISH_TIMEOUT"] = "180"
    ranks = []
    for rank in range(3):
        own = {**environment, **place(rank, 3), "LOCAL_RANK": "0", "TRACKHUB_DIR": str(stage.path / f"node{rank}")}
        ranks.append(stage.start(code, environment=own, stderr=subprocess.PIPE))
    for process in ranks:
        assert said(process) == "begun"
    for process in ranks:
        tell(process)
    for process in ranks:
        _, errors = process.communicate(timeout=200)
        assert (process.returncode, errors) == (0, "")
    assert [RunDirectory(stage.path / f"node{rank}" / "shared").end()[0] for rank in range(3)] == ["finished"] * 3
    assert len(MlflowClient(server).search_experiments(filter_string="name = 'apart'")) == 1
    expect_all_ranks_in_mlflow(server, "apart", "shared", 3, steps)


def test_what_a_rank_starts_joins_it_and_does_not_end_it(stage: Stage) -> None:
    stage.run(
        """
        import os, subprocess, sys, trackhub
        with trackhub.init() as tracker:
            code = 'import trackhub; trackhub.init().log_metrics({"below": 1.0}, step=0)'
            subprocess.run([sys.executable, "-c", code], check=True)
            if os.fork() == 0:
                trackhub.current().log_metrics({"forked": 1.0}, step=0)
                sys.exit(0)
            assert os.wait()[1] == 0
            from trackhub.rundir import RunDirectory
            assert RunDirectory(tracker.directory).end()[0] == "running"
            tracker.log_metrics({"x": 1.0}, step=0)
        """,
        environment={**ALL, **place(3, 4)},
    )
    run = stage.run_directory()
    assert run.end()[0] == "finished"
    names = [set(record.values) for record in records_of(run) if hasattr(record, "values")]
    assert sorted(names, key=sorted) == [{"rank3/below"}, {"rank3/forked"}, {"rank3/x"}]


def test_children_of_a_rank_are_runs_of_their_own(stage: Stage) -> None:
    code = """
        import os, sys, trackhub
        with trackhub.init(backends=["lines"]) as tracker:
            print("begun", flush=True)
            sys.stdin.readline()
            with tracker.child("fold", params={"k": 1}) as fold:
                fold.log_metrics({"x": 1.0}, step=0)
        assert tracker.finish(), tracker.finish()
        """
    run_ranks(stage, 2, code)
    assert sorted(run.manifest.name for run in stage.runs()) == ["fold", "rank1/fold", "shared"]
    for run in stage.runs():
        assert run.end()[0] == "finished"
        assert stage.is_closed("lines", run)


# --- torchrun itself


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("which", ["zero", "all"])
def test_torchrun_starts_two_and_starts_them_again(stage: Stage, which: str) -> None:
    """With nothing set but what torchrun sets; its first attempt fails on rank 1."""
    script = stage.path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, pathlib, time, trackhub
            logged = pathlib.Path("rank0-has-logged")
            attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
            with trackhub.init(backends=["tensorboard"]) as tracker:
                tracker.log_metrics({"x": attempt}, step=attempt)
                if attempt == 0:
                    if os.environ["RANK"] == "1":
                        # It ends the other one, too.
                        while not logged.exists():
                            time.sleep(0.02)
                        raise RuntimeError("first attempt")
                    logged.touch()
                    time.sleep(600)
            """
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "--max-restarts", "1", str(script)],
        cwd=stage.path,
        env={**stage.environment, "TRACKHUB_RANKS": which, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    run = stage.run_directory()
    stage.wait_closed("tensorboard")
    assert run.end()[0] == "finished"
    assert run.cursor("tensorboard").attempts == 2
    names = ["x"] if which == "zero" else ["x", "rank1/x"]
    found = scalars(run)
    assert sorted(found) == sorted(names)
    assert found[names[-1]] == [(0, 0.0), (1, 1.0)]
    assert found["x"][-1] == (1, 1.0)
