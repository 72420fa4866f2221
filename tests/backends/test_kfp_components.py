"""Whole components: `trackhub.init` and the public API alone, in KFP's own executor, read back from what it wrote."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import pytest
from backends_for_tests import calls_in
from kfp_outputs import history_in, metadata_in
from mlflow_server import running_server
from stage import Stage, delivery_processes, records_of, said, scalars, tell, wait_until

from trackhub.cursor import NoteCount
from trackhub.records import MetricsLogged, RocCurveLogged
from trackhub.rundir import RunDirectory

if find_spec("kfp") is None:
    pytest.skip("what is tested runs in KFP's own executor", allow_module_level=True)

# MLflow, SQLAlchemy, kfp and what they import warn about each other; none of it is ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)

KFP_RUN = "digits-2026-11-21-09-30-00-123456"


class Task:
    """One task of a KFP run. Each attempt is a process in which KFP's executor runs the component, as in a pod.

    Args:
        stage: Where.
        body: The body of the component's function.
        name: The task's name.
        inputs: Parameters: name -> value.
        outputs: Artifacts: name -> the name of KFP's type.
    """

    def __init__(
        self, stage: Stage, body: str, *, name: str = "train", inputs: Mapping[str, Any] | None = None, **outputs: str
    ) -> None:
        self.stage = stage
        self.directory = stage.path / "pipeline" / KFP_RUN / name
        self.directory.mkdir(parents=True)
        self.outputs = outputs or {"metrics": "Metrics"}
        self.inputs = dict(inputs or {})
        parameters = [f"{key}: {type(value).__name__}" for key, value in self.inputs.items()]
        parameters += [f"{key}: Output[{kind}]" for key, kind in self.outputs.items()]
        module = stage.path / f"{name}_component.py"
        module.write_text(
            f"from kfp.dsl import *\n\ndef train({', '.join(parameters)}):\n"
            + textwrap.indent(textwrap.dedent(body), "    "),
            encoding="utf-8",
        )
        arguments = ["--component_module_path", str(module), "--function_to_execute", "train"]
        self._code = (
            "import json, sys\n"
            "from kfp.dsl.executor_main import executor_main\n"
            f"sys.argv[1:] = {arguments!r} + ['--executor_input', json.dumps({self.executor_input!r})]\n"
            "executor_main()\n"
        )

    @property
    def executor_input(self) -> dict[str, Any]:
        artifacts = {
            name: {
                "artifacts": [
                    {
                        "name": name,
                        "type": {"schemaTitle": f"system.{kind}", "schemaVersion": "0.0.1"},
                        "uri": str(self.directory / name),
                        "metadata": {},
                    }
                ]
            }
            for name, kind in self.outputs.items()
        }
        return {
            "inputs": {"parameterValues": self.inputs},
            "outputs": {"outputFile": str(self.directory / "executor_output.json"), "artifacts": artifacts},
        }

    def start(self, backends: str = "kfp", **variables: str) -> Any:
        environment = {"_KFP_RUNTIME": "true", "TRACKHUB_BACKENDS": backends, **variables}
        return self.stage.start(self._code, environment=environment)

    def run(self, backends: str = "kfp", *, exit_code: int = 0, **variables: str) -> tuple[str, str]:
        """Run one attempt to its end; gives back what it printed."""
        environment = {"_KFP_RUNTIME": "true", "TRACKHUB_BACKENDS": backends, **variables}
        return self.stage.run(self._code, exit_code=exit_code, environment=environment)

    @property
    def has_output(self) -> bool:
        return (self.directory / "executor_output.json").exists()

    @property
    def metadata(self) -> dict[str, dict[str, Any]]:
        return metadata_in(self.directory)

    @property
    def history(self) -> list[Any]:
        return history_in(self.directory / "metrics")

    def text(self, name: str) -> str:
        return (self.directory / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tracking URI of an SQLite file; making its tables takes longer than a test."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    return uri


def notes(run: RunDirectory, backend: str = "kfp") -> Mapping[str, NoteCount]:
    return run.cursor(backend).report.notes


def by_name(stage: Stage) -> dict[str, RunDirectory]:
    return {run.manifest.name: run for run in stage.runs()}


def logged_steps(run: RunDirectory) -> list[int]:
    return [record.step for record in records_of(run) if isinstance(record, MetricsLogged)]


# --- values that break a task of KFP's


ODD_VALUES = """
    import math
    import numpy as np
    from sklearn.metrics import roc_curve
    import trackhub

    with trackhub.init(params={"lr": np.float32(0.5), "none": None, "nan": math.nan}) as tracker:
        tracker.log_metrics({"loss": np.float32(0.25), "count": np.int64(3), "gone": None}, step=np.int64(0))
        tracker.log_metrics({"loss": math.nan, "up": math.inf, "down": -np.inf}, step=1)
        tracker.log_metrics({"worst": np.float64("nan")}, step=2)
        fpr, tpr, thresholds = roc_curve([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        assert np.isinf(thresholds[0])
        tracker.log_roc_curve("roc", fpr, tpr, thresholds)
        tracker.log_confusion_matrix("confusion", ["no", "yes"], np.array([[3, 1], [0, 2]]))
    metrics.metadata["own"] = np.float32(1.5)
    metrics.metadata["own_nan"] = float("nan")
"""
OUTPUTS = {"metrics": "Metrics", "quality": "ClassificationMetrics", "page": "HTML"}


def check_odd_values(metadata: Mapping[str, Any], run: RunDirectory) -> None:
    assert metadata["metrics"] == {"loss": 0.25, "count": 3.0, "own": 1.5}
    points = metadata["quality"]["confidenceMetrics"]
    assert [point["confidenceThreshold"] for point in points] == [1.8, 0.8, 0.4, 0.35, 0.1]
    assert metadata["quality"]["confusionMatrix"]["rows"] == [{"row": [3, 1]}, {"row": [0, 2]}]

    # None, NaN, two infinities, another NaN, and the threshold of the ROC curve.
    counted = notes(run)["not finite"]
    assert counted.count == 6
    assert {subject for subject, _ in counted.examples} <= {"gone", "loss", "up", "down", "worst", "roc"}
    (curve,) = [record for record in records_of(run) if isinstance(record, RocCurveLogged)]
    assert curve.thresholds[0] == math.inf
    assert run.end()[0] == "finished"


def test_odd_values_fail_no_task_and_are_counted(stage: Stage) -> None:
    pytest.importorskip("sklearn")
    task = Task(stage, ODD_VALUES, **OUTPUTS)
    task.run()
    check_odd_values(task.metadata, stage.run_directory())
    lines = task.history
    assert lines[0]["metrics"] == {"loss": 0.25, "count": 3.0, "gone": "NaN"}
    assert lines[1]["metrics"] == {"loss": "NaN", "up": "Infinity", "down": "-Infinity"}
    assert "not finite" in task.text("page")


def test_the_same_in_an_executor_of_this_process(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("sklearn")
    from kfp.dsl import utils
    from kfp.dsl.executor import Executor

    for name in list(os.environ):
        if name.startswith(("TRACKHUB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRACKHUB_DIR", str(stage.root))
    monkeypatch.setenv("TRACKHUB_BACKENDS", "kfp")
    task = Task(stage, ODD_VALUES, **OUTPUTS)
    module = utils.load_module("train_component", str(stage.path))
    Executor(executor_input=task.executor_input, function_to_execute=module.train).execute()
    check_odd_values(task.metadata, stage.run_directory())
    # What came after the delivery report is said where it can be.
    assert "metrics/own_nan" in caplog.text


# --- everything is in place when the function returns


STEPS = 'for step in range(20): tracker.log_metrics({"loss": 1 / (step + 1)}, step=step)'
ENDINGS = {
    "nobody finishes": f"tracker = trackhub.init()\n{STEPS}",
    "nobody even holds it": "trackhub.init()\n" + STEPS.replace("tracker", "trackhub.current()"),
    "with": f"with trackhub.init() as tracker:\n    {STEPS}",
    "finish": f"tracker = trackhub.init()\n{STEPS}\nassert tracker.finish()",
    "flush in between": f"tracker = trackhub.init()\n{STEPS}\nassert tracker.flush()",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_that_was_logged_is_shown_however_the_run_ends(stage: Stage, ending: str) -> None:
    body = f'import trackhub\n{ENDINGS[ending]}\nprint("returns")\n'
    task = Task(stage, body, metrics="Metrics", page="HTML", document="Markdown")
    task.run("kfp,lines")
    assert task.metadata["metrics"] == {"loss": 0.05}
    assert [line["step"] for line in task.history] == list(range(20))
    assert "<svg" in task.text("page")
    assert "| loss | 0.05 | 0.05 | 1 | 20 |" in task.text("document")
    run = stage.run_directory()
    assert run.end()[0] == "finished"
    assert stage.is_closed("kfp")
    assert stage.is_closed("lines")
    assert not any("late" in reason for reason in notes(run))


def test_of_several_runs_in_a_component_the_last_is_shown_and_the_others_are_named(stage: Stage) -> None:
    body = """
        import trackhub
        with trackhub.init(name="warm-up") as tracker:
            tracker.log_metrics({"loss": 2.0, "old": 1.0}, step=0)
        tracker = trackhub.init(name="real")
        tracker.log_metrics({"loss": 1.0}, step=0)
    """
    task = Task(stage, body, metrics="Metrics", page="HTML")
    task.run("kfp,lines")
    assert task.metadata["metrics"]["loss"] == 1.0
    assert "real" in task.text("page")
    runs = by_name(stage)
    assert {name: run.end()[0] for name, run in runs.items()} == {"warm-up": "finished", "real": "finished"}
    assert notes(runs["real"])["one of several runs"].count == 1
    stage.wait_closed("lines", run=runs["warm-up"])
    stage.wait_closed("lines", run=runs["real"])


def test_child_runs_are_shown_in_tables_of_their_parent(stage: Stage) -> None:
    body = """
        import trackhub
        tracker = trackhub.init()
        for number in range(3):
            trial = tracker.child(f"trial-{number}", params={"lr": number / 8})
            trial.log_metrics({"loss": 1 / (number + 1)}, step=0)
        tracker.log_metrics({"best": 0.25}, step=0)
    """
    task = Task(stage, body, metrics="Metrics", page="HTML", document="Markdown")
    task.run("kfp,lines")
    assert task.metadata["metrics"] == {"best": 0.25}
    for text in (task.text("page"), task.text("document")):
        assert all(word in text for word in ("trial-0", "trial-1", "trial-2", "0.125"))
    assert {run.end()[0] for run in stage.runs()} == {"finished"}
    opened = [call for call in calls_in(stage.lines) if call["call"] == "open"]
    parent = by_name(stage)["train"].manifest.id
    assert [call["parent"] for call in opened].count(f"remote-{parent}") == 3


# --- outputs that are given


def test_an_output_is_given_as_an_object_or_by_name(stage: Stage) -> None:
    body = """
        import os, trackhub
        by_name = "TRACKHUB_KFP_METRICS" in os.environ
        with trackhub.init(**({} if by_name else {"kfp": {"metrics": after}})) as tracker:
            tracker.log_metrics({"loss": 1.0})
    """
    given = Task(stage, body, name="given", before="Metrics", after="Metrics")
    given.run()
    assert given.metadata == {"before": {}, "after": {"loss": 1.0}}
    named = Task(stage, body, name="named", before="Metrics", after="Metrics")
    named.run(TRACKHUB_KFP_METRICS="before")
    assert named.metadata == {"before": {"loss": 1.0}, "after": {}}


def test_several_outputs_and_none_chosen_is_an_error_that_lists_them_before_there_is_a_run(stage: Stage) -> None:
    task = Task(stage, "import trackhub\ntrackhub.init()\n", before="Metrics", after="Metrics", page="HTML")
    _, errors = task.run(exit_code=1)
    assert "SettingsError" in errors
    assert "before: Output[Metrics], after: Output[Metrics]" in errors
    assert "init(kfp={'metrics': before})" in errors
    assert not stage.root.exists()


# --- who the run is


FIRST_ATTEMPT_FAILS = """
    import os, trackhub
    attempt = int(os.environ["KFP_RETRY_INDEX"])
    tracker = trackhub.init(params={"attempt_of_user": 7}, tags={"team": "vision"})
    for step in range(3 * attempt, 3 * attempt + 3):
        tracker.log_metrics({"loss": 1 / (step + 1)}, step=step)
    extra = trackhub.init(mode="offline")
    extra.finish()
    if attempt == 0:
        raise RuntimeError("the node went away")
"""


def test_a_retry_goes_on_with_the_same_run_in_the_journal_and_in_mlflow(stage: Stage, database: str) -> None:
    from mlflow import MlflowClient

    task = Task(stage, FIRST_ATTEMPT_FAILS)
    pod = {"MLFLOW_TRACKING_URI": database, "TRACKHUB_PROJECT": "digits"}
    task.run("kfp,mlflow", exit_code=1, KFP_RETRY_INDEX="0", KFP_POD_NAME="pod-a", **pod)
    assert not task.has_output
    ids = {run.manifest.id for run in stage.runs()}
    assert len(ids) == 2, "the second run of a component is one of its own"
    task.run("kfp,mlflow", KFP_RETRY_INDEX="1", KFP_POD_NAME="pod-b", **pod)
    assert {run.manifest.id for run in stage.runs()} == ids

    (first, second) = sorted(ids, key=len)
    assert first.startswith(f"kfp-{KFP_RUN}-train-")
    assert second == f"{first}-2"
    run = RunDirectory(stage.root / first)
    assert run.manifest.name == "train"
    assert logged_steps(run) == list(range(6))
    assert run.end()[0] == "finished"
    assert task.metadata["metrics"] == {"loss": 1 / 6}
    assert [line["step"] for line in task.history] == list(range(6))

    stage.wait_closed("mlflow", run=run)
    client = MlflowClient(database)
    (found,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert found.info.run_name == "train"
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [point.step for point in history] == list(range(6))
    expected = {
        "kfp.attempt": "2",
        "kfp.pod": "pod-b",
        "kfp.task": "train",
        "kfp.run_id": KFP_RUN,
        "kfp.pipeline": "digits",
        "team": "vision",
    }
    assert {name: found.data.tags.get(name) for name in expected} == expected


def test_two_tasks_are_two_runs(stage: Stage) -> None:
    body = "import trackhub\ntrackhub.init().log_metrics({'loss': 1.0})\n"
    for name in ("train", "train-2"):
        Task(stage, body, name=name).run()
    assert sorted(by_name(stage)) == ["train", "train-2"]
    assert len(stage.runs()) == 2


LOCAL_PIPELINE = """
    from kfp import dsl, local

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root="pipeline")

    @dsl.component(base_image="python:3.12", install_kfp_package=False)
    def flaky(metrics: dsl.Output[dsl.Metrics]):
        from pathlib import Path
        import trackhub
        tracker = trackhub.init()
        tracker.log_metrics({"loss": 1.0})
        if not Path("tried").exists():
            Path("tried").touch()
            raise RuntimeError("the first time it fails")

    @dsl.component(base_image="python:3.12", install_kfp_package=False)
    def fold(number: int, metrics: dsl.Output[dsl.Metrics]):
        import trackhub
        tracker = trackhub.init(params={"number": number})
        tracker.log_metrics({"score": number / 4})

    @dsl.pipeline(name="folds")
    def pipeline():
        flaky().set_retry(num_retries=1)
        with dsl.ParallelFor([1, 2, 3]) as number:
            task = fold(number=number)
            task.set_env_variable("TRACKHUB_PROJECT", "of the task")

    pipeline()
"""


def test_a_local_pipeline_retries_into_one_run_and_loops_into_several(stage: Stage) -> None:
    # kfp reads the components' source from their file.
    (stage.path / "folds.py").write_text(textwrap.dedent(LOCAL_PIPELINE), encoding="utf-8")
    stage.run("import folds", environment={"TRACKHUB_BACKENDS": "kfp"})
    runs = stage.runs()
    (flaky,) = [run for run in runs if run.manifest.name == "flaky"]
    assert len(logged_steps(flaky)) == 2
    assert flaky.end()[0] == "finished"
    folds = [run for run in runs if run is not flaky]
    assert len(folds) == 3
    assert {run.manifest.project for run in folds} == {"of the task"}
    scores = [metadata_in(file.parent)["metrics"] for file in stage.path.glob("pipeline/**/executor_output.json")]
    shown = sorted(one["score"] for one in scores if "score" in one)
    assert shown == [0.25, 0.5, 0.75]
    assert {"loss": 1.0} in scores


# --- a component that does not return


BREAKS = """
    import os, signal, sys, time, trackhub
    tracker = trackhub.init(params={"lr": 0.5})
    for step in range(50):
        tracker.log_metrics({"loss": 1 / (step + 1)}, step=step)
    tracker.log_text("note", "written just before")
"""


@pytest.mark.parametrize(
    ("last", "exit_code", "status", "error"),
    [
        ('raise ValueError("bad batch")', 1, "failed", "ValueError: bad batch"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM, "killed", "SIGTERM"),
        ("sys.exit(0)", 0, "finished", None),
    ],
    ids=["raises", "SIGTERM", "exits"],
)
def test_where_the_function_does_not_return_kfp_has_nothing_and_the_others_have_everything(
    stage: Stage, database: str, last: str, exit_code: int, status: str, error: str | None
) -> None:
    pytest.importorskip("tensorboard")
    from mlflow import MlflowClient

    task = Task(stage, textwrap.dedent(BREAKS) + last + "\n", metrics="Metrics", page="HTML")
    # The three are one task, by its path: what keeps them apart in the one database is the project.
    variables = {"MLFLOW_TRACKING_URI": database, "TRACKHUB_PROJECT": f"a run that is {status}"}
    task.run("kfp,mlflow,tensorboard", exit_code=exit_code, **variables)

    assert not task.has_output
    stage.wait_closed("mlflow", "tensorboard")
    run = stage.run_directory()
    ended, record = run.end()
    assert (ended, record.error if record else None) == (status, error)
    assert [step for step, _ in scalars(run)["loss"]] == list(range(50))
    client = MlflowClient(database)
    found = client.get_run(run.cursor("mlflow").remote_id)
    assert found.info.status == status.upper()
    assert found.data.params == {"lr": "0.5"}
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == list(range(50))
    assert [item.path for item in client.list_artifacts(found.info.run_id, "text")] == ["text/note.txt"]


def test_sigterm_to_all_of_a_pod_as_argo_sends_it(stage: Stage) -> None:
    body = textwrap.dedent(BREAKS) + 'print("running", flush=True)\ntime.sleep(60)\n'
    task = Task(stage, body)
    module = stage.path / "train_component.py"
    # The command that kfp puts into a pod, below `sh`.
    script = 'python="$0"; "$python" -m kfp.dsl.executor_main "$@"'
    arguments = ["--component_module_path", str(module), "--function_to_execute", "train", "--executor_input"]

    pod = subprocess.Popen(
        ["sh", "-ec", script, sys.executable, *arguments, json.dumps(task.executor_input)],
        cwd=stage.path,
        env={**stage.environment, "_KFP_RUNTIME": "true", "TRACKHUB_BACKENDS": "kfp,lines"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert pod.stdout is not None
        wait_until(lambda: pod.stdout.readline().strip() == "running", "the component to run")
        os.killpg(pod.pid, signal.SIGTERM)
        assert pod.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        pod.stdout.read()
    finally:
        if pod.poll() is None:
            os.killpg(pod.pid, signal.SIGKILL)
            pod.wait()
        pod.stdout.close()
    # `sh` may be gone before the component it has started.
    stage.wait_closed("lines")
    assert stage.run_directory().end()[0] == "killed"
    assert not task.has_output
    written = [call for call in calls_in(stage.lines) if call["call"] == "write_metrics"]
    assert sum(len(call["records"]) for call in written) == 50


def test_after_sigkill_sync_completes_the_others_and_says_that_kfp_cannot_be_shown(stage: Stage) -> None:
    pytest.importorskip("tensorboard")
    body = """
        import sys, trackhub
        tracker = trackhub.init()
        tracker.log_metrics({"loss": 1.0}, step=0)
        tracker.flush()
        print("flushed", flush=True)
        sys.stdin.readline()
        for step in range(1, 500):
            tracker.log_metrics({"loss": 1 / (step + 1)}, step=step)
        print("logged", flush=True)
        sys.stdin.readline()
    """
    task = Task(stage, body)
    process = task.start("kfp,tensorboard")
    wait_until(lambda: said(process) == "flushed", "the component to have flushed")
    for delivering in delivery_processes(process.pid).values():
        os.kill(delivering, signal.SIGKILL)
    tell(process)
    wait_until(lambda: said(process) == "logged", "the component to have logged")
    for one in (process.pid, *delivery_processes(process.pid).values()):
        os.kill(one, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not task.has_output

    run = stage.run_directory()
    command = [sys.executable, "-m", "trackhub", "sync", "--dir", str(stage.root)]
    environment = {**stage.environment, "COLUMNS": "300"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=stage.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step for step, _ in scalars(run)["loss"]] == list(range(500))
    assert run.cursor("tensorboard").closed_status == "killed"
    status = subprocess.run(
        [sys.executable, "-m", "trackhub", "show", str(run.path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for printed in (done.stdout, status.stdout):
        assert "kfp:" in printed, printed
        assert "not shown there; only the training process" in printed


# --- KFP's own MLflow plugin


def test_in_a_run_that_kfp_has_made_nothing_collides_with_what_kfp_logs(stage: Stage) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    inputs = {"optimizer": "adam", "lr": 0.5, "layers": [8, 4]}
    body = """
        import trackhub
        params = {"optimizer": "sgd", "lr": lr, "layers": layers, "schedule": "cosine"}
        tracker = trackhub.init(params=params)
        tracker.log_metrics({"loss": 0.25}, step=0)
        with tracker.child("trial", params={"optimizer": "lion"}) as trial:
            trial.log_metrics({"loss": 0.5}, step=0)
    """
    with running_server(stage.path) as url:
        client = MlflowClient(url)
        experiment = client.create_experiment("KFP")
        made = client.create_run(experiment, run_name="train-task").info.run_id
        task = Task(stage, body, inputs=inputs, metrics="Metrics")
        pod = {"MLFLOW_RUN_ID": made, "MLFLOW_TRACKING_URI": url, "MLFLOW_EXPERIMENT_ID": experiment}
        task.run("kfp,mlflow", **pod)

        for run in stage.runs():
            stage.wait_closed("mlflow", run=run)
        found = client.get_run(made)
        assert found.info.status == "RUNNING", "whoever made it ends it"
        assert found.info.run_name == "train-task"
        assert found.data.params == {"schedule": "cosine"}
        assert found.data.metrics == {"loss": 0.25}
        kept = {name: found.data.tags.get(f"trackhub.param.{name}") for name in inputs}
        assert kept == {"optimizer": "sgd", "lr": "0.5", "layers": "[8, 4]"}
        run = by_name(stage)["train"]
        assert notes(run, "mlflow")["left to others"].count == 3

        # What KFP's plugin does when the task has ended.

        client.log_batch(
            made,
            metrics=[Metric("loss", 0.25, 1, 0)],
            params=[Param(name, json.dumps(value)) for name, value in inputs.items()],
        )
        client.set_terminated(made)
        ended = client.get_run(made)
        assert ended.data.params == {"schedule": "cosine", "optimizer": '"adam"', "lr": "0.5", "layers": "[8, 4]"}

        (trial,) = [one for one in client.search_runs([experiment]) if one.info.run_id != made]
        assert trial.data.tags["mlflow.parentRunId"] == made
        assert trial.info.status == "FINISHED"
        assert trial.data.params == {"optimizer": "lion"}
    assert task.metadata["metrics"] == {"loss": 0.25}
