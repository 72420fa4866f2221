"""Every fault of the training process and of the delivery process, at the places in the code that matter.

What each call had returned for is in the journal, every backend has exactly what is in the journal, and the run ends.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fault_points import Point, has_happened, set_fault
from real_servers import MlflowOnPostgres
from stage import Stage, records_of, said, scalars, staged, tell, wait_until

from trackhub.records import ArtifactLogged, MetricsLogged

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

STEPS = 6000
"""More than the first segment holds."""

TRAINING = """
import os, struct, sys, trackhub
mark = os.open("returned", os.O_RDWR | os.O_CREAT)
counts = [0, 0]
def note():
    os.pwrite(mark, struct.pack("<2q", *counts), 0)
with open("weights", "wb") as file:
    file.write(b"w" * 1_000_000)
tracker = trackhub.init(backends=os.environ["BACKENDS"], params={"lr": 0.1})
with tracker:
    for step in range(int(os.environ["STEPS"])):
        tracker.log_metrics({"x": step, "y": -step}, step=step)
        counts[0] += 1
        note()
        if step % 2000 == 100:
            tracker.log_artifact("weights", f"weights-{step}")
            counts[1] += 1
            note()
    if "WAITS" in os.environ:
        print("logged", flush=True)
        sys.stdin.readline()
    if "ENDS_WITHOUT_FINISH" in os.environ:
        sys.exit(0)
    print(bool(tracker.finish(timeout=60)), flush=True)
"""

WHILE_TRAINING = {
    "appending": Point("trackhub.journal.writer:JournalWriter.append_metrics", "pack", 2 * 1500),
    "rotating": Point("trackhub.journal.writer:_Segment.create", "rename", 2),
    "rotated": Point("trackhub.journal.writer:_Segment.create", "return", 2),
    "copying-a-blob": Point("trackhub.blobs:_copy_file", "copy_file_range", 2),
    "between-blob-and-record": Point("trackhub.blobs:BlobStore.snapshot", "return", 2),
}
"""Places in the training process. The first segment is created before the training begins, the second while it goes."""

TRAINING_FAULTS = {
    "SIGKILL": ("killed", -signal.SIGKILL),
    "SIGTERM": ("killed", -signal.SIGTERM),
    "SIGINT": ("killed", -signal.SIGINT),
    "exit": ("killed", 9),
    "exception": ("failed", 1),
    "SIGSTOP": ("finished", 0),
}
"""Fault -> how the run ends, and the training's exit code."""


def returned(stage: Stage) -> tuple[int, int]:
    """How many calls of log_metrics and log_artifact have returned."""
    path = stage.path / "returned"
    metrics, artifacts = struct.unpack("<2q", path.read_bytes()) if path.exists() else (0, 0)
    return metrics, artifacts


def start(stage: Stage, **environment: str) -> Any:
    (stage.path / "train.py").write_text(TRAINING, encoding="utf-8")
    stage.environment |= {"STEPS": str(STEPS), **environment}
    with (stage.path / "stderr").open("w") as errors:
        return stage.start("exec(open('train.py').read())", stderr=errors)


def stopped(process_id: int) -> bool:
    state = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return state == "T"


def expect_exactly_what_was_logged(stage: Stage, status: str, calls: tuple[int, int], most: int = 1) -> None:
    """The journal has what was returned for, and at most the record that was being written; TensorBoard the same."""
    run = stage.run_directory()
    records = records_of(run)
    steps = [record.step for record in records if isinstance(record, MetricsLogged)]
    artifacts = [record for record in records if isinstance(record, ArtifactLogged)]
    assert steps == list(range(len(steps)))
    assert calls[0] <= len(steps) <= calls[0] + most
    assert calls[1] <= len(artifacts) <= calls[1] + most
    found = scalars(run)
    assert found["x"] == [(step, float(step)) for step in steps]
    assert found["y"] == [(step, -float(step)) for step in steps]
    for record in artifacts:
        assert (run.path / record.file.path).stat().st_size == record.file.size_bytes == 1_000_000
    cursor = run.cursor("tensorboard")
    assert (run.end()[0], cursor.closed_status) == (status, status)
    assert cursor.report.delivered["metrics"] == len(steps)
    assert (cursor.report.rejected, cursor.report.damaged[1:]) == (0, [])


def in_training(place: str, fault: str, directory: Path) -> None:
    status, exit_code = TRAINING_FAULTS[fault]
    with staged(directory) as stage:
        set_fault(stage, WHILE_TRAINING[place], fault, "training")
        process = start(stage, BACKENDS="tensorboard")
        if fault == "SIGSTOP":
            wait_until(lambda: has_happened(stage) and stopped(process.pid), "the training to stop")
            before = returned(stage)
            stage_cursor = stage.run_directory().cursor_file("tensorboard")
            wait_until(lambda: stage_cursor.load().report.delivered.get("metrics", 0) >= before[0], "all to arrive")
            assert returned(stage) == before
            # It lives, so the run is not ended.
            assert not stage_cursor.load().closed
            os.kill(process.pid, signal.SIGCONT)
        process.communicate(timeout=120)
        assert has_happened(stage) == process.pid
        assert process.returncode == exit_code
        stage.wait_closed("tensorboard")
        calls = returned(stage)
        expect_exactly_what_was_logged(stage, status, calls)
        if fault == "SIGSTOP":
            assert calls == (STEPS, 3)


def without_finish(directory: Path) -> None:
    with staged(directory) as stage:
        process = start(stage, BACKENDS="tensorboard", ENDS_WITHOUT_FINISH="1")
        process.communicate(timeout=120)
        assert process.returncode == 0
        stage.wait_closed("tensorboard")
        expect_exactly_what_was_logged(stage, "finished", (STEPS, 3), 0)


WHILE_DELIVERING = {
    "creating-the-run": Point("trackhub.backends.mlflow:MlflowBackend._create", "call"),
    "created-the-run": Point("trackhub.backends.mlflow:MlflowBackend._create", "return"),
    "sending": Point("trackhub.backends.mlflow:MlflowBackend._send_metrics", "return", 2),
    "uploading": Point("trackhub.backends.mlflow.artifacts:RunArtifacts._put_file", "return", 2),
    "between-send-and-cursor": Point("trackhub.delivery:Delivery._commit", "call", 1),
    "writing-the-cursor": Point("trackhub.cursor:CursorFile.save", "fdatasync", 2),
    "ending-the-run": Point("trackhub.backends.mlflow:MlflowBackend.close", "return"),
}
"""Places in the delivery process of MLflow."""

DELIVERY_FAULTS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP", "exit", "exception", "both")
DELIVERY_STEPS = 2500


def in_delivery(place: str, fault: str, served: MlflowOnPostgres, directory: Path) -> None:
    with staged(directory) as stage:
        set_fault(stage, WHILE_DELIVERING[place], fault, "delivery")
        process = start(
            stage,
            BACKENDS="mlflow",
            STEPS=str(DELIVERY_STEPS),
            TRACKHUB_MLFLOW_TRACKING_URI=served.url,
            **({"WAITS": "1"} if place != "ending-the-run" else {}),
        )
        delivery = wait_until(lambda: has_happened(stage), "the fault to happen")
        status = "finished"
        if fault == "both":
            process.communicate(timeout=60)
            status = "finished" if place == "ending-the-run" else "killed"
        else:
            if fault == "SIGSTOP":
                wait_until(lambda: stopped(delivery), "the delivery to stop")
                # The training goes on, and comes to its end.
                wait_until(lambda: returned(stage)[0] == DELIVERY_STEPS, "the training to go on")
                os.kill(delivery, signal.SIGCONT)
            if place != "ending-the-run":
                assert said(process) == "logged"
                tell(process)
            # An exception is taken for a bug of the backend, whose delivery then waits for somebody to look.
            assert said(process) == str(fault != "exception")
            assert process.wait(60) == 0
        if fault in ("both", "exception"):
            done = subprocess.run(
                [sys.executable, "-m", "trackhub", "sync"],
                cwd=stage.path,
                env=stage.environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        stage.wait_closed("mlflow")
        run = stage.run_directory()
        ((remote_id, remote_status),) = served.remote_runs(run.manifest.id)
        assert (remote_id, remote_status) == (run.cursor("mlflow").remote_id, status.upper())
        steps = [record.step for record in records_of(run) if isinstance(record, MetricsLogged)]
        calls = returned(stage)
        assert calls[0] <= len(steps) <= calls[0] + 1
        assert fault == "both" or calls == (DELIVERY_STEPS, 2)
        assert served.points(remote_id, "x") == [(step, float(step)) for step in steps]
        assert served.points(remote_id, "y") == [(step, -float(step)) for step in steps]
        objects = served.objects(remote_id)
        artifacts = [record.name for record in records_of(run) if isinstance(record, ArtifactLogged)]
        assert len(artifacts) >= calls[1]
        assert {name: len(content) for name, content in objects.items()} == dict.fromkeys(artifacts, 1_000_000)
        report = run.cursor("mlflow").report
        assert (report.delivered["metrics"], report.delivered["artifacts"]) == (len(steps), len(artifacts))
        assert report.rejected == 0


SHORT_TRAINING = {
    ("appending", "SIGKILL"),
    ("appending", "exception"),
    ("appending", "SIGSTOP"),
    ("rotating", "SIGKILL"),
    ("rotating", "SIGTERM"),
    ("rotated", "exit"),
    ("rotating", "exception"),
    ("copying-a-blob", "SIGINT"),
    ("copying-a-blob", "SIGKILL"),
    ("between-blob-and-record", "SIGKILL"),
    ("between-blob-and-record", "SIGTERM"),
}
SHORT_DELIVERY = {
    ("creating-the-run", "both"),
    ("created-the-run", "SIGKILL"),
    ("sending", "SIGSTOP"),
    ("uploading", "exit"),
    ("between-send-and-cursor", "SIGKILL"),
    ("between-send-and-cursor", "exception"),
    ("writing-the-cursor", "SIGKILL"),
    ("ending-the-run", "SIGTERM"),
    ("ending-the-run", "SIGINT"),
}
"""Every place and every fault at least once; the long form has all pairs."""

IN_TRAINING: dict[str, Callable[[Path], None]] = {
    "ends-without-finish": without_finish,
    **{f"{place}-{fault}": partial(in_training, place, fault) for place in WHILE_TRAINING for fault in TRAINING_FAULTS},
}
IN_DELIVERY: dict[str, Callable[[MlflowOnPostgres, Path], None]] = {
    f"{place}-{fault}": partial(in_delivery, place, fault) for place in WHILE_DELIVERING for fault in DELIVERY_FAULTS
}
SHORT = {"ends-without-finish", *map("-".join, SHORT_TRAINING), *map("-".join, SHORT_DELIVERY)}


def cases(names: dict[str, Any]) -> Any:
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long]) for name in names]
    )


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], None]]:
    """Goes through the cases that were chosen, a few at a time: most of each is waiting."""
    here = [item for item in request.session.items if item.path == request.path]
    chosen = [item.callspec.params["name"] for item in here]
    served = request.getfixturevalue("mlflow_on_postgres") if set(chosen) & IN_DELIVERY.keys() else None
    with ThreadPoolExecutor(3) as pool:
        futures: dict[str, Future[None]] = {}
        for name in chosen:
            directory = tmp_path_factory.mktemp(name)
            if name in IN_TRAINING:
                futures[name] = pool.submit(IN_TRAINING[name], directory)
            else:
                futures[name] = pool.submit(IN_DELIVERY[name], served, directory)
        yield lambda name: futures[name].result()


@cases(IN_TRAINING)
def test_a_fault_of_the_training_costs_at_most_the_record_being_written(
    name: str, results: Callable[[str], None]
) -> None:
    results(name)


@cases(IN_DELIVERY)
def test_a_fault_of_the_delivery_costs_and_doubles_nothing(name: str, results: Callable[[str], None]) -> None:
    results(name)
