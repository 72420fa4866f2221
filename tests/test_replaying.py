"""Copies of runs: whole, apart from what was delivered before, and made once however often they are asked for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from base64 import b64encode
from importlib.util import find_spec
from pathlib import Path

import pytest
from stage import Stage, delivery_processes, scalars, wait_until

from trackhub import plugins
from trackhub.errors import SettingsError
from trackhub.replaying import given_options, prepare_copy
from trackhub.rundir import RunDirectory
from trackhub.sync import sync
from trackhub.verifying import verify

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

COMMAND = str(Path(sys.executable).with_name("trackhub"))
TRAINING = """
import trackhub
with trackhub.init(run_id="mine", mode="offline", backends=BACKENDS, params={"lr": 0.1}) as tracker:
    for step in range(STEPS):
        tracker.log_metrics({"x": step}, step=step)
    child = tracker.child("kid")
    child.log_metrics({"y": 1.0}, step=0)
    child.child("grandkid").log_metrics({"z": 2.0}, step=0)
"""


@pytest.fixture(autouse=True)
def environment_of_the_stage(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(stage.path)
    monkeypatch.syspath_prepend(str(stage.plugins))
    monkeypatch.setattr(plugins, "_loaded", {})


def recorded(stage: Stage, backends: str = "[]", steps: int = 50) -> RunDirectory:
    stage.run(TRAINING.replace("BACKENDS", backends).replace("STEPS", str(steps)))
    return RunDirectory(stage.root / "mine")


def replay(stage: Stage, *arguments: str, code: int = 0) -> str:
    ended = subprocess.run(
        [COMMAND, "replay", "mine", "--to", "tensorboard", *arguments],
        env=stage.environment,
        cwd=stage.path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == code, (ended.stdout, ended.stderr)
    return ended.stdout + ended.stderr


def places(stage: Stage, logdir: str) -> list[str]:
    """The runs TensorBoard would show in a log directory."""
    root = stage.path / logdir
    return sorted(path.parent.relative_to(root).as_posix() for path in root.rglob("*tfevents*"))


def test_a_copy_has_all_of_the_run_and_of_its_children(stage: Stage) -> None:
    run = recorded(stage)
    assert "the copy is complete" in replay(stage, "--option", "logdir=other")
    copy = RunDirectory(run.path / "replays" / "tensorboard-1" / "mine")
    assert scalars(copy) == {"x": [(step, float(step)) for step in range(50)]}
    top, kid, grandkid = places(stage, "other")
    assert top == "mine"
    assert kid.startswith("mine/kid-")
    assert grandkid.startswith(f"{kid}/grandkid-")
    assert not (stage.path / "runs").exists(), "the option is stronger than TRACKHUB_TENSORBOARD_LOGDIR"
    for one in copy.path.parent.iterdir():
        assert verify(RunDirectory(one), "tensorboard")
    assert run.backends == [], "the run itself was given to nobody"


def test_the_same_command_makes_no_second_copy_and_again_makes_one(stage: Stage) -> None:
    recorded(stage)
    replay(stage, "--option", "logdir=other")
    before = places(stage, "other")
    content = {path: path.read_bytes() for path in (stage.path / "other").rglob("*tfevents*")}
    assert "was made before" in replay(stage, "--option", "logdir=other")
    assert places(stage, "other") == before
    assert {path: path.read_bytes() for path in content} == content
    replay(stage, "--option", "logdir=other", "--again")
    more = set(places(stage, "other")) - set(before)
    assert "mine-copy2" in more
    assert len(more) == 3
    assert {path: path.read_bytes() for path in content} == content


def test_a_copy_at_a_place_that_has_the_run_is_beside_it(stage: Stage) -> None:
    run = recorded(stage, backends='["tensorboard"]')
    assert all(sync([run]))
    (live,) = (stage.path / "runs" / "mine").glob("*tfevents*")
    before = live.read_bytes()
    cursor = run.cursor_file("tensorboard").path.read_bytes()
    replay(stage)
    assert {"mine", "mine-copy2"} <= set(places(stage, "runs"))
    assert live.read_bytes() == before
    assert run.cursor_file("tensorboard").path.read_bytes() == cursor
    assert verify(run, "tensorboard")


def test_a_copy_at_another_place_can_keep_the_id(stage: Stage) -> None:
    run = recorded(stage, backends='["tensorboard"]')
    assert all(sync([run]))
    replay(stage, "--option", "logdir=other", "--same-id")
    assert places(stage, "other") == places(stage, "runs")
    for path in (stage.path / "runs").rglob("*tfevents*"):
        other = stage.path / "other" / path.relative_to(stage.path / "runs")
        assert other.read_bytes() == path.read_bytes(), "a delivered replay equals live delivery"


def test_a_copy_that_was_killed_is_gone_on_with_and_shows_everything_once(stage: Stage) -> None:
    steps = 120_000
    run = recorded(stage, steps=steps)
    command = [COMMAND, "replay", "mine", "--to", "tensorboard", "--option", "logdir=other"]
    process = subprocess.Popen(
        command, env=stage.environment, cwd=stage.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    copy = RunDirectory(run.path / "replays" / "tensorboard-1" / "mine")
    try:
        wait_until(lambda: copy.cursor("tensorboard").report.points, "the first points to be delivered")
    finally:
        pids = [process.pid, *delivery_processes(process.pid).values()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    assert copy.cursor("tensorboard").report.points < steps, "it was killed too late to show anything"
    replay(stage, "--option", "logdir=other")
    assert scalars(copy) == {"x": [(step, float(step)) for step in range(steps)]}
    assert [path.name for path in (run.path / "replays").iterdir() if path.is_dir()] == ["tensorboard-1"]
    assert verify(copy, "tensorboard")


def test_a_copy_whose_laying_out_was_cut_short_is_laid_out_to_its_end(stage: Stage) -> None:
    run = recorded(stage)
    given = {"logdir": str(stage.path / "other")}
    first = prepare_copy(run, "tensorboard", given)
    # The run itself comes last, so this is what a kill in between leaves.
    (first.runs[0].path / "run.json").unlink()
    second = prepare_copy(run, "tensorboard", given)
    assert [one.path for one in second.runs] == [one.path for one in first.runs]
    assert all(one.exists for one in second.runs)
    assert not second.was_complete
    for path in (run.path / "replays").rglob("*"):
        if path.is_dir() and not path.is_symlink():
            assert path.stat().st_mode & 0o777 == 0o700, f"{path} can be read by others"


def test_what_the_run_logs_later_comes_to_the_copy_too(stage: Stage) -> None:
    run = recorded(stage)
    replay(stage, "--option", "logdir=other")
    stage.run(
        """
        import trackhub
        with trackhub.init(run_id="mine", mode="offline") as tracker:
            tracker.log_metrics({"x": 50.0}, step=50)
            tracker.child("late").log_metrics({"late": 1.0}, step=0)
        """
    )
    replay(stage, "--option", "logdir=other")
    copy = RunDirectory(run.path / "replays" / "tensorboard-1" / "mine")
    assert scalars(copy) == {"x": [(step, float(step)) for step in range(51)]}
    assert any("/late-" in place for place in places(stage, "other"))


def test_sync_completes_a_copy_at_its_own_place(stage: Stage) -> None:
    """The environment names another one, which is for the run, not for the copy."""
    run = recorded(stage)
    copy = prepare_copy(run, "tensorboard", {"logdir": str(stage.path / "other")})
    assert all(sync(copy.runs))
    assert "mine" in places(stage, "other")
    assert not (stage.path / "runs").exists()


def test_a_copy_is_not_gone_on_with_at_another_server_whose_address_is_in_a_secret(stage: Stage) -> None:
    if find_spec("neptune") is None:
        pytest.skip("neptune is not installed")
    run = recorded(stage)
    tokens = [b64encode(f'{{"api_address": "http://127.0.0.1:{port}"}}'.encode()).decode() for port in (1, 2)]
    first, second = ({"project": "people/digits", "api_token": token} for token in tokens)
    copy = prepare_copy(run, "neptune", first)
    assert prepare_copy(run, "neptune", first).runs[0].path == copy.runs[0].path
    with pytest.raises(SettingsError, match="--again"):
        prepare_copy(run, "neptune", second)
    other = prepare_copy(run, "neptune", second, again=True)
    assert other.runs[0].path != copy.runs[0].path
    for path in run.path.rglob("*"):
        if path.is_file():
            assert not any(token.encode() in path.read_bytes() for token in tokens), path


def test_what_cannot_be_is_refused_before_anything_is_written(stage: Stage) -> None:
    run = recorded(stage)
    for backend, given in (("nowhere", {}), ("inline", {}), ("tensorboard", {"logdirr": "x"}), ("kfp", {})):
        with pytest.raises(SettingsError):
            prepare_copy(run, backend, given)
    assert not (run.path / "replays").exists()
    assert "NAME=VALUE" in replay(stage, "--option", "logdir", code=2)
    with pytest.raises(SettingsError):
        given_options(["=x"])
