"""`trackhub verify` on the command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage import Stage, said, tell, wait_until
from typer.testing import CliRunner, Result

from trackhub import plugins
from trackhub.backend import Backend, OpenedRun, RunInfo
from trackhub.backends.tensorboard import TensorBoardBackend
from trackhub.cli import app
from trackhub.delivery import Delivery
from trackhub.records import ParamsLogged, RunEnded
from trackhub.rundir import Manifest, RunDirectory
from trackhub.testing import samples
from trackhub.testing.conformance import Subject
from trackhub.testing.rehearsal import CREATED_NS, Rehearsal

pytest.importorskip("tensorboard")

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

STEPS = 30


class Blind(Backend):
    """Shows metrics to nobody."""

    name = "blind"

    def open(self, run: RunInfo, state: Any) -> OpenedRun:
        return OpenedRun(remote_id="1")

    def write_metrics(self, points: Any) -> None:
        pass


class TensorBoard(Subject):
    kind = TensorBoardBackend

    def options(self, directory: Path) -> dict[str, Any]:
        return {"logdir": str(directory / "runs")}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    monkeypatch.setattr(plugins, "_loaded", {"blind": Blind})
    monkeypatch.chdir(tmp_path)
    one = TensorBoard().rehearse(tmp_path)
    one.log(ParamsLogged(CREATED_NS, {"lr": 0.1}), *[samples.metrics(step, loss=step / 7) for step in range(STEPS)])
    return one


def verify(run: Rehearsal, *arguments: str) -> Result:
    root = str(run.run.path.parent)
    return CliRunner().invoke(app, ["verify", run.run.manifest.id, "--dir", root, *arguments])


def finish(run: Rehearsal) -> None:
    run.end()
    run.deliver()


def lose_a_point(run: Rehearsal) -> None:
    """Cut the event of the last step and the run's end off the event file."""
    path = Path(run.cursor.state["file"])
    content = path.read_bytes()
    at = content.rindex(b"loss")
    while content[at : at + 1] != b"\x09":  # the event begins with its wall time
        at -= 1
    path.write_bytes(content[: at - 12])


def test_a_run_that_arrived_whole(run: Rehearsal) -> None:
    finish(run)
    said = verify(run)
    assert said.exit_code == 0
    assert "tensorboard: all is there, and no more" in said.stdout
    assert f"points {STEPS}" in said.stdout


def test_a_point_that_was_lost_is_named(run: Rehearsal) -> None:
    finish(run)
    lose_a_point(run)
    said = verify(run)
    assert said.exit_code == 1
    assert "not as it was logged" in said.stdout
    assert f"missing point: loss at step {STEPS - 1}: logged 4.142857" in said.stdout
    (plain,) = json.loads(verify(run, "--json").stdout)
    assert plain["outcome"] == "differs"
    assert plain["counts"] == {"missing point": 1, "different status": 1}
    assert [(one["kind"], one["step"]) for one in plain["findings"]] == [
        ("missing point", STEPS - 1),
        ("different status", None),
    ]


def test_many_differences_are_counted_and_the_first_are_shown(run: Rehearsal) -> None:
    finish(run)
    with run.opened() as (backend, _):
        # As somebody else would who begins the same run anew.
        backend.write_metrics([samples.metrics(step, loss=-1.0) for step in range(STEPS)])
    said = verify(run)
    assert said.exit_code == 1
    # Twenty lines; the param, its text and the end are not there either.
    assert said.stdout.count("different value: loss at step") == 18
    assert f"in all: missing param 1, missing file 1, different value {STEPS}, different status 1" in said.stdout


def test_a_run_that_is_gone(run: Rehearsal) -> None:
    finish(run)
    Path(run.cursor.state["file"]).unlink()
    said = verify(run)
    assert said.exit_code == 1
    assert "missing run" in said.stdout


def test_what_is_not_delivered_is_no_success(run: Rehearsal) -> None:
    said = verify(run, "--at", "tensorboard")
    assert said.exit_code == 1
    assert "nothing has been delivered there yet" in said.stdout
    run.deliver()
    assert verify(run).exit_code == 0, "of a run that goes on, what is delivered is there"
    run.end()
    said = verify(run)
    assert said.exit_code == 1
    assert "the end of the run is not delivered yet" in said.stdout


def test_a_backend_that_cannot_be_read_back_is_no_failure_of_the_run(run: Rehearsal) -> None:
    finish(run)
    delivery = Delivery(run.run, "blind", lambda: Blind(Blind.Options()))
    while delivery.pump() == 0.0:
        pass
    delivery.release()
    said = verify(run)
    assert said.exit_code == 3
    assert "tensorboard: all is there, and no more" in said.stdout
    assert "blind: cannot be read back: backend 'blind' has no read_back()" in said.stdout
    lose_a_point(run)
    assert verify(run).exit_code == 1, "a difference is stronger"
    assert verify(run, "--at", "blind").exit_code == 3


def test_a_backend_of_the_training_process_cannot_be_read_back(run: Rehearsal) -> None:
    finish(run)
    said = verify(run, "--at", "katib")
    assert said.exit_code == 3
    assert "the training process itself fills it" in said.stdout


def test_a_backend_that_is_not_installed_keeps_no_other_from_being_compared(run: Rehearsal) -> None:
    finish(run)
    run.run.cursor_file("gone").save(run.cursor)
    said = verify(run)
    assert said.exit_code == 3
    assert "tensorboard: all is there, and no more" in said.stdout
    assert "gone: could not be compared: no backend is called 'gone'" in said.stdout


def test_a_run_without_backends(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, Manifest("alone", "alone", "p", CREATED_NS, {}))
    said = CliRunner().invoke(app, ["verify", str(run.path)])
    assert said.exit_code == 3
    assert "given to no backend" in said.stderr


def test_child_runs_are_compared_too(run: Rehearsal, tmp_path: Path) -> None:
    run.deliver()
    child = TensorBoard().rehearse(tmp_path, "kid", parent=run)
    child.log(samples.metrics(0, inner=1.0), RunEnded(CREATED_NS + 1, "finished"))
    child.deliver()
    finish(run)
    assert verify(run).exit_code == 0
    Path(child.cursor.state["file"]).unlink()
    said = verify(run)
    assert said.exit_code == 1
    assert said.stdout.index("all is there") < said.stdout.index("missing run")


LOGGING = """
import sys, threading, time, trackhub
told = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), told.set()), daemon=True).start()
tracker = trackhub.init(backends=["tensorboard"])
step = 0
while not told.is_set():
    tracker.log_metrics({"x": step / 7, f"x{step // 1000}": step}, step=step)
    if step % 500 == 0:
        tracker.log_params({f"p{step}": step})
        tracker.log_text("note", str(step), step=step)
    if step == 100:
        print("logging", flush=True)
    step += 1
    time.sleep(0.0005)
tracker.finish(timeout=60)
print(step, flush=True)
"""


def test_a_run_that_logs_all_the_time_is_compared_while_it_does(stage: Stage) -> None:
    process = stage.start(LOGGING)
    said(process)
    found = stage.run_directory()
    wait_until(lambda: found.cursor("tensorboard").report.points > 100, "the delivery to begin")
    for _ in range(5):
        (plain,) = json.loads(call(found, "--json", exit_code=0).stdout)
        assert (plain["outcome"], plain["findings"]) == ("agrees", [])
        assert plain["compared"]["points"] > 100
    tell(process)
    steps = int(said(process))
    (plain,) = json.loads(call(found, "--json", exit_code=0).stdout)
    assert (plain["outcome"], plain["compared"]["points"], plain["undelivered"]) == ("agrees", 2 * steps, 0)


def call(run: RunDirectory, *arguments: str, exit_code: int) -> Result:
    result = CliRunner().invoke(app, ["verify", str(run.path), *arguments])
    assert result.exit_code == exit_code, result.output
    return result
