from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends_for_tests import install_plugins
from typer.testing import CliRunner

import trackhub
from trackhub import lowering
from trackhub.backend import Backend, RunInfo
from trackhub.cli import app, inventory
from trackhub.records import ConfusionMatrixLogged, HistogramLogged, ModelLogged, RocCurveLogged, StoredFile
from trackhub.rundir import RunDirectory
from trackhub.waiting import wait_for_deliveries

COMMAND = str(Path(sys.executable).with_name("trackhub"))
KILLED = """
import os, trackhub
tracker = trackhub.init(run_id="killed-run", mode="offline")
tracker.log_metrics({"loss": 0.5}, step=3)
os.kill(os.getpid(), 9)
"""


COLOUR_VARIABLES = ("CLICOLOR_FORCE", "FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE")
"""By which whoever runs the tests, nox for one, may make typer and rich take a pipe for a terminal."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith(("TRACKHUB_", "MLFLOW_")) or name in COLOUR_VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens at and nobody else gets."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class Said:
    """What one call of the command line came to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return strict(self.out)


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def call(*arguments: str, code: int = 0) -> Said:
    result = CliRunner().invoke(app, list(arguments), prog_name="trackhub")
    said = Said(result.exit_code, result.stdout, result.stderr)
    assert said.code == code, f"{said.code}\n{said.out}\n{said.err}\n{result.exception!r}"
    assert "Traceback" not in said.err
    return said


def offline(**settings: Any) -> trackhub.Tracker:
    return trackhub.init(mode="offline", **settings)


def to_tensorboard(**settings: Any) -> trackhub.Tracker:
    pytest.importorskip("tensorboard")
    return trackhub.init(backends=["tensorboard"], **settings)


def eventually(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} has not happened within {seconds:g} s"
        time.sleep(0.02)


# --- runs


def test_runs_are_listed_with_children_below_their_parents() -> None:
    with offline(project="digits", name="sgd") as parent:
        parent.log_metrics({"loss": 1.0, "acc": 0.5}, step=41)
        with parent.child("fold-0") as child:
            child.log_metrics({"loss": 1.0})
    with offline(name="later") as later:
        pass
    lines = call("runs").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [parent.id, child.id, later.id]
    assert lines[2].startswith(f"  {child.id}")
    assert re.search(rf"^{parent.id} +sgd +digits +finished .* 41 +2 +journal only$", lines[1])
    first, second, _ = call("runs", "--json").json
    assert (first["id"], first["name"], first["last_step"], first["points"]) == (parent.id, "sgd", 41, 2)
    assert second["parent_id"] == parent.id
    assert [one["id"] for one in call("runs", "--last", "1", "--json").json] == [later.id]


def test_a_run_is_running_until_it_ends() -> None:
    with offline() as tracker:
        assert call("runs", "--json").json[0]["status"] == "running"
        assert call("runs", "--json").json[0]["ended"] is None
    assert call("runs", "--json").json[0]["status"] == "finished"
    with pytest.raises(ZeroDivisionError), offline() as failing:
        1 / 0  # noqa: B018
    seen = {one["id"]: one for one in call("runs", "--json").json}
    assert seen[tracker.id]["error"] is None
    assert (seen[failing.id]["status"], seen[failing.id]["error"]) == (
        "failed",
        "ZeroDivisionError: division by zero",
    )


def test_a_run_whose_process_was_killed_is_shown_as_killed() -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert re.search(r"^killed-run .* killed ", call("runs").out, re.MULTILINE)
    one = call("show", "killed-run", "--json").json
    assert (one["status"], one["points"], one["metrics"]["loss"]["last"]) == ("killed", 1, 0.5)


def test_each_backend_is_shown_with_what_it_has_and_lacks(home: Path) -> None:
    with to_tensorboard(name="delivered") as delivered:
        delivered.log_metrics({"loss": 1.0})
    with to_tensorboard(name="waiting", mode="offline") as waiting:
        for step in range(120):
            waiting.log_metrics({"loss": 1.0}, step=step)
    out = call("runs").out
    assert re.search(rf"^{delivered.id} .*tensorboard ✓$", out, re.MULTILINE)
    assert re.search(rf"^{waiting.id} .*tensorboard 120 to go$", out, re.MULTILINE)
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.chdir("/")
        assert call("runs", "--dir", str(home / ".trackhub")).out == out


def test_without_runs_it_says_where_it_looked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = call("runs")
    assert said.out == ""
    assert str(home / ".trackhub") in said.err
    assert "--dir" in said.err
    assert "TRACKHUB_DIR" in said.err
    assert call("runs", "--json").json == []
    for command in (["show", "x"], ["status"], ["sync"], ["cat", "x"]):
        assert str(home / ".trackhub") in call(*command, code=2).err
    monkeypatch.setenv("TRACKHUB_DIR", str(home / "elsewhere"))
    assert "elsewhere (from TRACKHUB_DIR)" in call("runs").err
    (home / "elsewhere").mkdir()
    assert "there are no runs in it" in call("sync").err


def test_one_run_that_cannot_be_read_does_not_hide_the_others(home: Path) -> None:
    with offline() as good, offline() as bad, offline() as newer:
        pass
    (bad.directory / "run.json").write_text("{", encoding="utf-8")
    manifest = json.loads((newer.directory / "run.json").read_text(encoding="utf-8"))
    (newer.directory / "run.json").write_text(json.dumps({**manifest, "format": 99}), encoding="utf-8")
    said = call("runs", "--json", code=1)
    assert [one["id"] for one in said.json] == [good.id]
    assert f"run {bad.id} is left out" in said.err
    assert "newer trackhub" in said.err
    assert "repeat with" in call("sync", code=1).err
    assert f"run {bad.id} cannot be read" in call("show", bad.id, code=2).err


def newer_segment(run: Path) -> None:
    segment = min((run / "journal").glob("*.journal"))
    content = bytearray(segment.read_bytes())
    content[8:12] = (99).to_bytes(4, "little")
    segment.write_bytes(content)


def file_instead_of(folder: str) -> Callable[[Path], None]:
    def replace(run: Path) -> None:
        (run / folder).rename(run.parent.parent / f"aside-{folder}")
        (run / folder).write_bytes(b"")

    return replace


def freed_with(position: Any) -> Callable[[Path], None]:
    amount = {"records": 0, "points": 0, "last_step": None, "last_time_ns": 0}
    freed = {"time_ns": 0, "position": position, "amount": amount}
    return lambda run: void((run / "freed.json").write_text(json.dumps(freed), encoding="utf-8"))


def void(_: object) -> None:
    """For a lambda that is called for what it does."""


def created_at(time_ns: int) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
        (run / "run.json").write_text(json.dumps({**manifest, "created_ns": time_ns}), encoding="utf-8")

    return change


DAMAGES = {
    "a newer segment": newer_segment,
    "a journal that is a file": file_instead_of("journal"),
    "cursors that are a file": file_instead_of("cursors"),
    "a freed.json of no sense": freed_with({"x": [1, 2]}),
    "a time that is none": created_at(-(10**20)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_run_whose_journal_or_cursors_cannot_be_read_stops_no_command_for_the_others(
    damage: Callable[[Path], None],
) -> None:
    with to_tensorboard(mode="offline") as good, to_tensorboard(mode="offline") as bad:
        good.log_metrics({"loss": 1.0})
        bad.log_metrics({"loss": 1.0})
    damage(bad.directory)
    for command in ("runs", "status", "sync", "prune"):
        # What is to be freed does not depend on when the run was begun.
        said = call(command, code=0 if command == "prune" and damage is DAMAGES["a time that is none"] else 1)
        assert bad.id in said.out + said.err, command
    assert [one["id"] for one in call("runs", "--json", code=1).json] == [good.id]
    (standing,) = call("status", "--json", code=1).json
    assert standing["id"] == good.id
    assert standing["complete"]
    call("status", good.id)
    assert bad.id in call("show", bad.id, code=2).err
    assert RunDirectory(bad.directory).journal.exists()


# --- which run is meant


def test_a_run_is_found_by_id_beginning_and_path(home: Path) -> None:
    with offline(run_id="alpha-1"), offline(run_id="alpha-10"), offline(run_id="beta") as beta:
        pass
    for text in ("beta", "b", str(beta.directory), ".trackhub/beta", "./.trackhub/beta/"):
        assert call("show", text, "--json").json["id"] == "beta"
    assert call("show", "alpha-1", "--json").json["id"] == "alpha-1"
    said = call("show", "alpha", code=2)
    assert "alpha-1 " in said.err
    assert "alpha-10" in said.err
    (home / "beta").mkdir()
    assert call("show", "beta", "--json").json["id"] == "beta"


def test_a_run_can_be_named_from_inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with offline(run_id="inside") as tracker:
        tracker.log_metrics({"loss": 1.0})
    monkeypatch.setenv("TRACKHUB_DIR", str(home / ".trackhub"))
    monkeypatch.chdir(tracker.directory / "journal")
    assert call("show", "..", "--json").json["id"] == "inside"
    monkeypatch.chdir(tracker.directory)
    assert [one["id"] for one in call("prune", ".", "--journal-only", "--json").json] == ["inside"]
    assert "inside" in call("prune", ".", "--journal-only", "--whole-runs", "--yes").out
    assert not tracker.directory.exists()


def test_dir_may_be_below_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    with offline(run_id="homely", dir="~/runs"):
        pass
    assert [one["id"] for one in call("runs", "--json", "--dir=~/runs").json] == ["homely"]
    assert not (home / "~").exists()


def test_an_unknown_run_brings_up_those_there_are() -> None:
    with offline(run_id="first-run", name="sgd"), offline(run_id="second-run"):
        pass
    assert "nearest:\n  first-run  sgd\n" in call("show", "frist-run", code=2).err
    recent = call("show", "zzz", code=2).err
    assert recent.index("second-run") < recent.index("first-run")
    assert "called so:\n  first-run  sgd" in call("show", "sgd", code=2).err
    assert "no run directory" in call("show", "./nowhere", code=2).err


# --- show, cat


def test_show_has_everything_a_run_holds(home: Path) -> None:
    (home / "model.bin").write_bytes(b"12345")
    params = {"lr": 0.1, "nan": math.nan, "evil": "\x1b[31m[bold]"}
    run = offline(name="all", params=params, tags={"team": "vision"})

    def train() -> None:
        with run:
            for step in range(300):
                run.log_metrics({"loss": math.exp(-step / 50), "odd": [1.0, math.nan, math.inf][step % 3]}, step=step)
            run.log_artifact("model.bin")
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        train()
    out = call("show", run.id).out
    for part in (run.id, "all", "failed", "RuntimeError: out of luck", "lr", "vision", "model.bin", "5 B", "█", "299"):
        assert part in out
    assert r"\x1b[31m[bold]" in out
    assert "\x1b" not in out
    plain = call("show", run.id, "--json").json
    assert plain["params"] == {"lr": 0.1, "nan": "NaN", "evil": "\x1b[31m[bold]"}
    odd = plain["metrics"]["odd"]
    assert (odd["last"], odd["maximum"], odd["minimum"], odd["count"], odd["nan_count"]) == (
        "Infinity",
        "Infinity",
        1.0,
        300,
        100,
    )
    assert plain["metrics"]["loss"]["series"][-1][0] == 299
    assert plain["values"][0]["name"] == "model.bin"


def test_show_has_the_delivery_report_with_links(home: Path) -> None:
    with to_tensorboard() as tracker:
        tracker.log_metrics({"loss": 1.0})
        (home / "a.txt").write_text("a", encoding="utf-8")
        tracker.log_artifact("a.txt")
    out = call("show", tracker.id).out
    assert "✓ tensorboard: complete" in out
    assert "has no place for artifacts" in out
    assert f"tensorboard --logdir {home / 'runs'}" in out


def test_cat_prints_every_record_as_strict_json() -> None:
    with offline(params={"lr": 0.1}) as tracker:
        tracker.log_metrics({"größe": math.nan, "up": math.inf, "down": -math.inf}, step=1, timestamp=1_700_000_000.5)
        tracker.log_text("note", "hello")
        tracker.log_roc_curve("roc", [0, 1], [0, 1], [math.inf, 0.5])
    lines = [strict(line) for line in call("cat", tracker.id).out.splitlines()]
    assert [line["kind"] for line in lines] == ["params", "metrics", "text", "roc_curve", "end"]
    assert lines[1] == {
        "kind": "metrics",
        "time": "2023-11-14T22:13:20.500000000Z",
        "step": 1,
        "values": {"größe": "NaN", "up": "Infinity", "down": "-Infinity"},
    }
    assert lines[2]["file"]["media_type"] == "text/plain"
    assert lines[3]["thresholds"] == ["Infinity", 0.5]
    assert lines[4]["status"] == "finished"
    for words in (["--kind", "metrics", "--kind", "end"], ["--kind", "metric,end"]):
        chosen = call("cat", tracker.id, *words).out.splitlines()
        assert [strict(line)["kind"] for line in chosen] == ["metrics", "end"]
    assert len(call("cat", tracker.id, "--kind", "roc_curves").out.splitlines()) == 1
    assert "there are: metrics, params" in call("cat", tracker.id, "--kind", "foo", code=2).err
    assert '"NaN", "Infinity"' in " ".join(call("cat", "--help").out.replace("│", " ").split())


def test_cat_survives_a_reader_that_has_seen_enough() -> None:
    with offline() as tracker:
        for step in range(50_000):
            tracker.log_metrics({"loss": 1.0}, step=step)
    with subprocess.Popen([COMMAND, "cat", tracker.id], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert strict(process.stdout.readline().decode())["step"] == 0
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 128 + signal.SIGPIPE


# --- status, sync


def test_status_tells_what_is_not_delivered_and_sync_delivers_it() -> None:
    with to_tensorboard(mode="offline") as waiting:
        waiting.log_metrics({"loss": 1.0})
    said = call("status", code=1)
    assert "tensorboard: 1 record is not delivered yet" in said.out
    assert f"trackhub sync {waiting.id}" in said.out
    assert call("status", waiting.id, "--json", code=1).json[0]["backends"]["tensorboard"]["undelivered"] == 1
    said = call("sync")
    assert "tensorboard: complete (metrics 1)" in said.out
    assert call("status").out == "1 run complete\n"
    assert call("status", waiting.id, "--json").json[0]["complete"] is True
    assert "1 run already complete" in call("sync").out


def test_sync_is_content_with_what_its_wait_has_seen_though_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_and_log_on(*arguments: Any, **more: Any) -> Any:
        arrived = wait_for_deliveries(*arguments, **more)
        tracker.log_metrics({"loss": 2.0})
        return arrived

    with to_tensorboard(mode="offline") as tracker:
        tracker.log_metrics({"loss": 1.0})
        with monkeypatch.context() as patched:
            patched.setattr("trackhub.sync.wait_for_deliveries", wait_and_log_on)
            assert "tensorboard: complete (metrics 1)" in call("sync").out
            (report,) = call("sync", "--json").json
        assert (report["id"], report["complete"], report["command"]) == (tracker.id, True, None)
        assert report["backends"]["tensorboard"]["points"] == 2
        assert call("status", "--json", code=1).json[0]["backends"]["tensorboard"]["undelivered"] == 1
    # What came later, and its end, are yet to be delivered.
    assert call("sync", "--json").json[0]["backends"]["tensorboard"]["points"] == 3
    assert "1 run already complete" in call("sync").out


def test_sync_takes_runs_and_directories_and_backends(home: Path) -> None:
    pytest.importorskip("tensorboard")
    with offline(run_id="one") as one, offline(run_id="two"):
        one.log_metrics({"loss": 1.0})
    with offline(run_id="three", dir="other"):
        pass
    assert "2 runs without a backend (one, two)" in call("sync").out
    assert [report["id"] for report in call("sync", "one", "--to", "tensorboard", "--json").json] == ["one"]
    assert {report["id"] for report in call("sync", ".trackhub", "./other", "--to", "tensorboard", "--json").json} == {
        "two",
        "three",
    }
    assert "3 runs already complete" in call("sync", ".trackhub", "other").out
    assert "there are no runs in it" in call("sync", str(home / "runs/"), code=2).err
    assert "no backend is called 'tensorbord'; did you mean" in call("sync", "one", "--to", "tensorbord", code=2).err


def test_sync_says_what_is_left_and_how_to_repeat_it(closed_port: int) -> None:
    pytest.importorskip("mlflow")
    uri = f"http://somebody:sesame@127.0.0.1:{closed_port}"
    pytest.importorskip("tensorboard")
    with offline(backends=["mlflow", "tensorboard"], mlflow={"tracking_uri": uri}) as tracker:
        tracker.log_metrics({"loss": 1.0})
    said = call("sync", tracker.id, "--patience", "0.1", code=1)
    assert "mlflow: 1 record is not delivered yet" in said.out
    assert "not available" in said.out
    assert "tensorboard: complete" in said.out
    assert f"repeat with: trackhub sync {tracker.id}" in said.err
    listed = call("runs").out
    assert "mlflow unavailable, 1 to go: " in listed
    assert "tensorboard ✓" in listed
    assert "sesame" not in said.out + said.err + listed + call("show", tracker.id).out


def test_a_run_that_cannot_be_delivered_does_not_stop_the_others() -> None:
    with to_tensorboard(mode="offline") as good, to_tensorboard(mode="offline") as bad:
        good.log_metrics({"loss": 1.0})
        bad.log_metrics({"loss": 1.0})
    path = bad.directory / "run.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["backends"]["gone"] = {}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    said = call("sync", code=1)
    assert f"run {bad.id} cannot be delivered to gone: no backend is called 'gone'" in said.err
    standing = {one["id"]: one["backends"] for one in call("runs", "--json").json}
    assert standing[good.id]["tensorboard"]["complete"]
    assert standing[bad.id]["tensorboard"]["complete"]
    assert not standing[bad.id]["gone"]["complete"]


def follow_until_delivered(train: Callable[[], trackhub.Tracker], code: int) -> tuple[trackhub.Tracker, str, str]:
    """Have `trackhub sync --follow` deliver a run that is trained meanwhile, and end it; what it has printed."""
    process = subprocess.Popen([COMMAND, "sync", "--follow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        tracker = train()
        eventually(lambda: RunDirectory(tracker.directory).cursor("tensorboard").closed, "the delivery")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, err
    assert "Traceback" not in err
    return tracker, out, err


def test_sync_follow_delivers_what_comes_until_it_is_told_to_stop(home: Path) -> None:
    pytest.importorskip("tensorboard")

    def train() -> trackhub.Tracker:
        with to_tensorboard(mode="offline") as tracker:
            tracker.log_metrics({"loss": 1.0})
        return tracker

    tracker, out, _ = follow_until_delivered(train, code=0)
    assert "1 run complete" in out
    assert "one directory" in call("sync", tracker.id, "--follow", code=2).err


def test_sync_follow_tells_of_a_run_that_cannot_be_read_and_delivers_the_others() -> None:
    with to_tensorboard(mode="offline") as good, to_tensorboard(mode="offline") as bad:
        good.log_metrics({"loss": 1.0})
        bad.log_metrics({"loss": 1.0})
    newer_segment(bad.directory)
    _, out, err = follow_until_delivered(lambda: good, code=1)
    assert f"run {bad.id} cannot be delivered to tensorboard" in err
    assert "1 run complete" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sync_that_is_interrupted_ends_with_its_deliveries_and_no_traceback(number: int, closed_port: int) -> None:
    pytest.importorskip("mlflow")
    uri = f"http://127.0.0.1:{closed_port}"
    with offline(backends=["mlflow"], mlflow={"tracking_uri": uri}) as tracker:
        tracker.log_metrics({"loss": 1.0})
    process = subprocess.Popen([COMMAND, "sync", "--patience", "600"], stderr=subprocess.PIPE, text=True)
    try:
        cursor_file = RunDirectory(tracker.directory).cursor_file("mlflow")
        eventually(lambda: cursor_file.load().report.error is not None, "the first attempt")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert cursor_file.claim(), "a delivery process was left behind"
    cursor_file.release()


# --- backends, doctor


def test_backends_are_listed_with_what_they_show(home: Path) -> None:
    install_plugins(home / "plugins")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(home / "plugins"), str(Path(__file__).parent)])}
    done = subprocess.run([COMMAND, "backends", "--json"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    entries = {one["name"]: one for one in strict(done.stdout)}
    assert "a_package_that_is_not_there" in entries["broken"]["error"]
    assert entries["tensorboard"]["kinds"]["metrics"] == "native"
    assert entries["tensorboard"]["kinds"]["artifacts"] == "not shown"
    assert entries["mlflow"]["kinds"]["confusion_matrices"] == "lowered"
    assert "tracking_uri" in entries["mlflow"]["options"]
    out = call("backends").out
    assert "shows: params, metrics" in out


def test_a_vendor_package_that_is_missing_is_shown_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = call("backends")
    assert 'not installed: backend "tensorboard" needs' in said.out
    assert 'pip install "trackhub-sdk[tensorboard]"' in said.out


def test_what_a_kind_is_lowered_to_is_what_lowering_does(tmp_path: Path) -> None:
    run = RunInfo("x", "x", "x", 0, tmp_path)
    file = StoredFile("blobs/a.txt", 1)
    examples = [
        ConfusionMatrixLogged(1, "cm", ["a"], [[1.0]]),
        RocCurveLogged(1, "roc", [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]),
        HistogramLogged(1, "h", [0.0, 1.0], [1.0]),
        ModelLogged(1, "m", file),
        *(
            kind(1, "x", file, *more)
            for kind, more in (
                (trackhub.records.TextLogged, ()),
                (trackhub.records.HtmlLogged, ()),
                (trackhub.records.FigureLogged, ()),
                (trackhub.records.ImageLogged, (1, 1)),
                (trackhub.records.TableLogged, ([], 0)),
            )
        ),
    ]
    for record in examples:
        kind = lowering.KINDS[type(record)]
        others = frozenset(lowering.KINDS.values()) - {kind}
        becomes = [lowering.KINDS[type(simpler)] for simpler in lowering.lower(record, others, run)]
        assert tuple(becomes) == inventory.LOWERED_TO[kind]
    assert set(inventory.LOWERED_TO) == {lowering.KINDS[type(record)] for record in examples}


def test_doctor_shows_settings_with_their_sources(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_PROJECT", "digits")
    (home / "trackhub.toml").write_text('mode = "offline"\n', encoding="utf-8")
    plain = call("doctor", "--dir", "somewhere", "--json").json
    sources = {one["name"]: (one["value"], one["source"]) for one in plain["settings"]}
    assert sources["project"] == ("digits", "TRACKHUB_PROJECT")
    assert sources["mode"] == ("offline", str(home / "trackhub.toml"))
    assert sources["dir"][0] == "somewhere"
    assert plain["file"] == str(home / "trackhub.toml")
    assert plain["healthy"] is True
    assert "can be written" in plain["findings"][0]["text"]
    assert not (home / "somewhere").exists()
    monkeypatch.setenv("TRACKHUB_MODE", "sideways")
    assert "TRACKHUB_MODE" in call("doctor", code=1).out
    assert "TRACKHUB_MODE" in call("runs", code=2).err


def test_doctor_asks_the_backends_and_hides_secrets(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TRACKHUB_BACKENDS", "mlflow,tensorboard")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:sesame@127.0.0.1:{closed_port}")
    said = call("doctor", code=1)
    assert "✗ mlflow" in said.out
    assert "cannot be reached" in said.out
    assert "✓ tensorboard" in said.out
    assert "from MLFLOW_TRACKING_URI" in said.out
    assert "sesame" not in said.out + said.err + call("doctor", "--json", code=1).out
    assert "no backend is called 'nope'" in call("doctor", "--backend", "nope", code=1).out


@pytest.mark.parametrize(
    ("rank", "more", "state", "said"),
    [
        ("3", {}, "warning", "rank 3 of 8 (by RANK) records nothing: only rank 0 does (TRACKHUB_RANKS=all"),
        ("0", {}, "ok", "rank 0 of 8 (by RANK): records, and no other rank does"),
        ("3", {"TRACKHUB_RANKS": "all", "TRACKHUB_RUN_ID": "r"}, "ok", "all ranks record, into one run"),
        ("3", {"TRACKHUB_RANKS": "all"}, "problem", "cannot agree on a run: set TRACKHUB_RUN_ID"),
    ],
)
def test_doctor_says_what_a_rank_records(
    rank: str, more: dict[str, str], state: str, said: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "8", **more}.items():
        monkeypatch.setenv(name, value)
    plain = call("doctor", "--json", code=1 if state == "problem" else 0).json
    (found,) = [finding for finding in plain["findings"] if finding["what"] == "rank"]
    assert found["state"] == state
    assert said in found["text"]


def test_doctor_finds_a_directory_that_cannot_be_written(home: Path) -> None:
    (home / "file").write_text("", encoding="utf-8")
    assert "cannot be written" in call("doctor", "--dir", "file/runs", code=1).out


# --- the command itself


def test_the_console_script_and_the_module_are_the_same() -> None:
    with offline(run_id="one"):
        pass
    for arguments in (["--version"], ["runs", "--json"], ["--help"], []):
        texts = []
        for command in ([COMMAND], [sys.executable, "-m", "trackhub"]):
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, "")
            texts.append(done.stdout)
        assert texts[0] == texts[1]
        assert "\x1b" not in texts[0]
    assert call("--version").out == f"trackhub {trackhub.__version__}\n"
    shown = call("--help").out
    assert shown.rstrip() == call().out.rstrip()
    assert "completion" not in shown


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_output_that_is_not_utf_8_gets_what_it_can_show(encoding: str) -> None:
    with to_tensorboard(mode="offline", name="größe ✓") as tracker:
        tracker.log_metrics({"lösung ✓": 1.0})
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for arguments in (["sync"], ["runs"], ["show", tracker.id], ["status", tracker.id], ["doctor"], ["prune"]):
        done = subprocess.run([COMMAND, *arguments], capture_output=True, timeout=60, env=environment, check=False)
        assert (done.returncode, done.stderr.decode(encoding)) == (0, ""), arguments
        assert done.stdout.decode(encoding).strip(), arguments


def test_an_output_that_is_closed_stops_nothing() -> None:
    with to_tensorboard(mode="offline") as tracker:
        tracker.log_metrics({"loss": 1.0})
    for arguments in ("runs", "runs --json", "sync", "doctor"):
        done = subprocess.run(f"exec {COMMAND} {arguments} >&- 2>&-", shell=True, timeout=60, check=False)
        assert done.returncode == 0, arguments
    assert RunDirectory(tracker.directory).cursor("tensorboard").closed


def test_a_terminal_of_any_width_shows_whole_ids(home: Path) -> None:
    with offline(name="a name that is rather long for a table in a narrow terminal") as tracker:
        tracker.log_metrics({"a/metric/with/a/long/name": 1.0})
    for width in (40, 80, 140):
        environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
        for arguments in ("runs", f"show {tracker.id}"):
            done = subprocess.run(
                ["script", "-qec", f"{COMMAND} {arguments}", "/dev/null"],
                env=environment,
                capture_output=True,
                timeout=60,
            )
            assert done.returncode == 0
            assert tracker.id in done.stdout.decode()
            assert "…" not in done.stdout.decode()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, trackhub.cli; print(sorted({'pydantic', 'msgspec', 'mlflow', 'numpy', 'pluggy'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "[]\n"


def test_a_backend_without_overridden_methods_shows_nothing() -> None:
    class Empty(Backend):
        name = "empty"

        def open(self, run: Any, state: Any) -> Any:
            raise NotImplementedError

    assert set(inventory.showing(Empty).values()) == {"not shown"}
