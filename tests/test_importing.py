"""Importing as a whole: once and again, killed in the middle, from the command line, and on to other trackers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from importing_helpers import QUIET, count_of, end_of, imported, neptune, only, points_of, records
from stage import records_of, wait_until
from typer.testing import CliRunner

import trackhub
from trackhub.cli import app
from trackhub.errors import MissingPackageError, SettingsError
from trackhub.importing import read_note
from trackhub.importing.writing import NOTE_NAME
from trackhub.records import ParamsLogged
from trackhub.rundir import RunDirectory, runs_in
from trackhub.sync import sync

pytestmark = [
    # TensorBoard's and MLflow's code, not ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith(("TRACKHUB_", "MLFLOW_")) or name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_source(place: Path, points: int, name: str = "run__5f1c__1__abcdefgh", put: int | None = None) -> Path:
    """A directory as Neptune's client writes it, with a param, a series and a picture's worth of files."""
    source = place / ".neptune" / "offline" / name
    (source / "upload_path").mkdir(parents=True, exist_ok=True)
    operations: list[dict[str, Any]] = [{"type": "AssignFloat", "path": ["lr"], "value": 0.5}]
    for at in range(points):
        point = {"value": at / 7, "step": at, "ts": 1700000000.25 + at}
        operations.append({"type": "LogFloats", "path": ["train", "loss"], "values": [point]})
    with (source / "data-1.log").open("w") as file:
        for version, operation in enumerate(operations, 1):
            file.write(json.dumps({"obj": operation, "version": version, "at": 1700000000.5 + version}) + "\n")
    (source / "last_put_version").write_text(str(len(operations) if put is None else put))
    (source / "last_ack_version").touch()
    return source


def snapshot(run: RunDirectory) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


# --- once and again


def test_the_second_import_finds_the_run_and_changes_nothing(tmp_path: Path) -> None:
    write_source(tmp_path, 10)
    first = only(imported("neptune", tmp_path, tmp_path / "hub"))
    before = snapshot(first.run)
    second = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert (first.state, second.state, second.run.path) == ("imported", "already here", first.run.path)
    assert second.complete
    assert second.note == first.note
    assert snapshot(first.run) == before
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["neptune-5f1c"]


def test_a_source_that_has_grown_is_refused_until_it_is_asked_for_again(tmp_path: Path) -> None:
    write_source(tmp_path, 10)
    first = only(imported("neptune", tmp_path, tmp_path / "hub"))
    write_source(tmp_path, 15)
    before = snapshot(first.run)
    second = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert (second.state, second.complete) == ("refused", False)
    assert "has changed since it was imported: --again reads it anew" in second.problem
    assert snapshot(first.run) == before
    third = only(imported("neptune", tmp_path, tmp_path / "hub", again=True))
    assert (third.state, third.complete, len(points_of(third)["train/loss"])) == ("replaced", True, 15)
    assert only(imported("neptune", tmp_path, tmp_path / "hub")).state == "already here"
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["neptune-5f1c"]


def test_another_processes_directory_that_turns_up_later_is_a_change(tmp_path: Path) -> None:
    write_source(tmp_path, 3)
    imported("neptune", tmp_path, tmp_path / "hub")
    write_source(tmp_path, 5, name="run__5f1c__2__zyxwvuts")
    assert only(imported("neptune", tmp_path, tmp_path / "hub")).state == "refused"
    one = only(imported("neptune", tmp_path, tmp_path / "hub", again=True))
    assert len(points_of(one)["train/loss"]) == 8


def test_a_run_that_went_on_here_is_never_replaced(tmp_path: Path) -> None:
    write_source(tmp_path, 3)
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    with trackhub.init(run_id=one.run.path.name, dir=tmp_path / "hub", mode="offline") as tracker:
        tracker.log_params({"added": 1})
    refused = only(imported("neptune", tmp_path, tmp_path / "hub", again=True))
    assert refused.state == "refused"
    assert "has records that did not come by import" in refused.problem
    assert {name for record in records(one, ParamsLogged) for name in record.params} == {"lr", "added"}


def test_a_run_that_is_being_delivered_is_not_replaced(tmp_path: Path) -> None:
    write_source(tmp_path, 3)
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    claim = "import sys; from trackhub.cursor import CursorFile; from pathlib import Path\n"
    claim += f"file = CursorFile(Path({str(one.run.cursors)!r}), 'mlflow'); file.claim(); file.save(file.load())\n"
    claim += "print('claimed', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", claim], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        assert only(imported("neptune", tmp_path, tmp_path / "hub", again=True)).state == "refused"
    assert only(imported("neptune", tmp_path, tmp_path / "hub", again=True)).state == "replaced"


def test_a_run_that_is_no_import_is_left_alone(tmp_path: Path) -> None:
    write_source(tmp_path, 3)
    with trackhub.init(run_id="neptune-5f1c", dir=tmp_path / "hub", mode="offline"):
        pass
    for again in (False, True):
        one = only(imported("neptune", tmp_path, tmp_path / "hub", again=again))
        assert (one.state, one.note) == ("refused", None)
        assert "was not made by an import: move it away" in one.problem


def test_an_import_that_is_killed_leaves_no_run_and_is_repeated(tmp_path: Path) -> None:
    write_source(tmp_path, 60_000)
    hub = tmp_path / "hub"
    code = (
        "from pathlib import Path; from trackhub.importing import import_runs\n"
        f"import_runs('neptune', Path({str(tmp_path)!r}), Path({str(hub)!r}), 'p')"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    # A segment that is full: the import is in the middle.
    wait_until(lambda: list(hub.glob(".importing-*/*/journal/*-s000001.journal")), "the import to be under way")
    os.kill(process.pid, signal.SIGSTOP)
    assert process.poll() is None
    # While another one is at work its part is left alone.
    (aside,) = hub.glob(".importing-*")
    assert only(imported("neptune", write_source(tmp_path / "other", 1, "run__77__1__abcdefgh"), hub)).complete
    assert aside.is_dir()
    process.kill()
    process.wait()
    assert [run.path.name for run in runs_in(hub)] == ["neptune-77"]
    one = only(imported("neptune", tmp_path / ".neptune", hub))
    assert one.state == "imported"
    points = points_of(one)["train/loss"]
    assert [step for step, _, _ in points] == list(range(60_000))
    assert sorted(path.name for path in hub.iterdir()) == ["neptune-5f1c", "neptune-77"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path, 3)
    (tmp_path / "hub").write_text("a file where the runs should be")
    with pytest.raises(OSError, match="hub"):
        imported("neptune", source, tmp_path / "hub")


def test_the_journal_holds_what_the_note_says(tmp_path: Path) -> None:
    write_source(tmp_path, 10, put=25)
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert read_note(one.run) == one.note
    assert one.note is not None
    assert one.note.counts == {"params": 1, "metrics": 10, "points": 10}
    assert len(records_of(one.run)) == 12  # with the end
    stored = json.loads((one.run.path / NOTE_NAME).read_text())
    assert stored["findings"][0] == {
        "reason": "operations lost: the client had counted them, but they never reached the disk",
        "count": 14,
        "missing": True,
        "examples": ["run__5f1c__1__abcdefgh"],
    }


def test_a_missing_package_is_said_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "trackhub-sdk\[tensorboard\]"'):
        imported("tensorboard", tmp_path, tmp_path / "hub")


# --- on to other trackers


def lost_run(directory: Path) -> Path:
    """A run of Neptune's real client that was killed; without the client, one like it."""
    if importlib.util.find_spec("neptune") is None:
        write_source(directory, 500, put=600)
        return directory
    code = f"""
    import neptune, os
    run = neptune.init_run({QUIET}, name="lost", tags=["a", "b"])
    run["lr"] = 0.5
    for at in range(500):
        run["train/loss"].append(at / 7, step=2 * at, timestamp=1700000000.25 + at)
    os.kill(os.getpid(), 9)
    """
    neptune(directory, code, exit_code=-9)
    return directory


def test_an_imported_run_goes_to_mlflow_with_its_numbers_steps_and_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    one = only(imported("neptune", lost_run(tmp_path / "work"), tmp_path / "hub"))
    assert count_of(one, "operations lost") > 0
    assert all(sync([one.run], ["mlflow"]))
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(str(one.run.cursor("mlflow").remote_id))
    assert (run.info.run_name, run.info.status, run.data.params["lr"]) == (one.name, "KILLED", "0.5")
    assert run.info.start_time == one.run.manifest.created_ns // 10**6
    history = client.get_metric_history(run.info.run_id, "train/loss")
    ours = [(step, time_ns // 10**6, value) for step, time_ns, value in points_of(one)["train/loss"]]
    assert len(ours) > 100
    assert sorted((point.step, point.timestamp, point.value) for point in history) == ours


def test_an_imported_run_goes_to_tensorboard_with_its_numbers_steps_and_times(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    one = only(imported("neptune", lost_run(tmp_path / "work"), tmp_path / "hub"))
    assert all(sync([one.run], ["tensorboard"]))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = Path(one.run.cursor("tensorboard").state["file"]).parent
    found = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload().Scalars("train/loss")
    ours = points_of(one)["train/loss"]
    assert [(point.step, point.wall_time) for point in found] == [(step, ns / 10**9) for step, ns, _ in ours]
    assert [point.value for point in found] == pytest.approx([value for _, _, value in ours], rel=1e-7)
    assert end_of(one).status == "killed"


# --- the command line


def call(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["import", *arguments], prog_name="trackhub")
    assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


def test_the_command_says_what_it_made_and_how_to_go_on(tmp_path: Path) -> None:
    write_source(tmp_path, 10)
    result = call("neptune", ".neptune")
    assert result.stdout.splitlines() == [
        "neptune-5f1c  finished",
        "  ✓ imported: params 1, points 10, metrics 10",
        "  deliver with: trackhub sync neptune-5f1c --to BACKEND",
    ]
    assert call("neptune", ".neptune").stdout.splitlines()[1] == "  ✓ already here: params 1, points 10, metrics 10"
    run = RunDirectory(tmp_path / ".trackhub" / "neptune-5f1c")
    assert (run.manifest.project, run.manifest.backends) == ("default", {})


def test_the_command_takes_names_places_and_says_what_is_missing(tmp_path: Path) -> None:
    write_source(tmp_path, 10, put=25)
    result = call(
        "neptune", ".neptune/offline", "--dir", "hub", "--project", "digits", "--name", "old one", "--json", code=1
    )
    (one,) = json.loads(result.stdout)
    assert (one["name"], one["state"], one["status"], one["complete"]) == ("old one", "imported", "killed", False)
    assert [(finding["count"], finding["missing"]) for finding in one["findings"]] == [(14, True)]
    assert RunDirectory(tmp_path / "hub" / "neptune-5f1c").manifest.project == "digits"
    again = call("neptune", ".neptune", "--dir", "hub", code=1)
    assert "operations lost: the client had counted them, but they never reached the disk: 14" in again.stdout
    write_source(tmp_path, 12)
    refused = call("neptune", ".neptune", "--dir", "hub", code=1)
    assert "has changed since it was imported" in refused.stdout
    assert "replaced: params 1, points 12" in call("neptune", ".neptune", "--dir", "hub", "--again").stdout


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    assert "no format is called 'comet' (there are: neptune, tensorboard)" in call("comet", ".", code=2).stderr
    assert "'nowhere' is no directory" in call("neptune", "nowhere", code=2).stderr
    assert "no run of Neptune's found" in call("neptune", ".", code=2).stderr
    assert not (tmp_path / ".trackhub").exists()


def test_a_text_of_the_source_cannot_steer_the_terminal(tmp_path: Path) -> None:
    source = write_source(tmp_path, 1)
    line = {"obj": {"type": "AssignString", "path": ["sys", "name"], "value": "\x1b[2Jgone"}, "version": 3, "at": 1.0}
    unknown = {"obj": {"type": "\x1b]0;title\x07", "path": ["\x1b[31m"]}, "version": 4, "at": 1.0}
    with (source / "data-1.log").open("a") as file:
        file.write(json.dumps(line) + "\n" + json.dumps(unknown) + "\n")
    result = call("neptune", ".neptune", code=1)
    assert "\x1b" not in result.stdout + result.stderr
    assert "_[2Jgone" in result.stdout


def test_importing_many_points_takes_little_memory(tmp_path: Path) -> None:
    write_source(tmp_path, 200_000)
    size = next(tmp_path.rglob("data-1.log")).stat().st_size
    code = (
        "from pathlib import Path; from trackhub.importing import import_runs\n"
        "def peak():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(status.split('VmHWM:')[1].split()[0]) * 1024\n"
        "before = peak()\n"
        f"report = import_runs('neptune', Path({str(tmp_path)!r}), Path({str(tmp_path / 'hub')!r}), 'p')\n"
        "assert report.runs[0].note.counts['points'] == 200_000\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    print(f"{size:,} bytes on disk took {grown:,} bytes of memory")
    assert size > 32 << 20
    # What is mapped of a journal counts, too: two segments of 8 MiB.
    assert 0 < grown < 24 << 20


def test_several_runs_are_imported_and_one_name_is_refused(tmp_path: Path) -> None:
    for at in range(3):
        write_source(tmp_path, at + 1, name=f"run__{at}{at}__1__abcdefgh")
    seen: list[str] = []
    report = imported("neptune", tmp_path, tmp_path / "hub", on_run=lambda one: seen.append(one.run.path.name))
    assert seen == [one.run.path.name for one in report.runs] == ["neptune-00", "neptune-11", "neptune-22"]
    with pytest.raises(SettingsError, match="holds 3 runs"):
        imported("neptune", tmp_path, tmp_path / "hub", name="one")
