from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from journal_helpers import as_text, read_all, run_python

import trackhub
from trackhub import Tracker
from trackhub.errors import NoActiveRunError, RunFinishedError, SettingsError, UnknownBackendError
from trackhub.records import MetricsLogged, ParamsLogged, TagsSet
from trackhub.rundir import RunDirectory


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("TRACKHUB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield
    # A run that a failed test has left behind must not be in force in the next one.
    while True:
        try:
            trackhub.current().finish(timeout=0)
        except NoActiveRunError:
            return


def offline(**arguments: Any) -> Tracker:
    return trackhub.init(mode="offline", **arguments)


def nothing_was_written() -> bool:
    return not any(path.name != "trackhub.toml" for path in Path.cwd().iterdir())


def records_of(tracker: Tracker) -> list[object]:
    return list(read_all(tracker.directory / "journal").records)


# --- the strict door: what is wrong raises here, names the fix, and leaves nothing behind


def refused(error: type[Exception], **arguments: Any) -> str:
    with pytest.raises(error) as raised:
        trackhub.init(**arguments)
    with pytest.raises(NoActiveRunError):
        trackhub.current()
    assert nothing_was_written()
    return str(raised.value)


def test_an_unknown_backend_is_refused_with_the_nearest_name() -> None:
    assert "no backend is called 'mlfow'; did you mean 'mlflow'?" in refused(UnknownBackendError, backends=["mlfow"])


def test_an_unknown_backend_is_refused_in_every_mode() -> None:
    for mode in ("online", "offline", "disabled"):
        refused(UnknownBackendError, backends="mlflow,tensorbord", mode=mode)


def test_a_stray_keyword_is_refused_with_how_options_are_given() -> None:
    message = refused(TypeError, projet="x")
    assert "init() has no argument 'projet'" in message
    assert "projet={...}" in message


def test_options_for_a_backend_that_is_not_installed_are_refused_with_those_that_are() -> None:
    message = refused(UnknownBackendError, mlflw={"tracking_uri": "x"})
    assert "options for a backend 'mlflw' that is not installed" in message
    assert "mlflow" in message.partition("(installed: ")[2]


def test_options_for_a_backend_that_is_not_chosen_this_time_are_accepted() -> None:
    with offline(mlflow={"tracking_uri": "x"}) as tracker:
        assert json.loads((tracker.directory / "run.json").read_text())["backends"] == {}


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    message = refused(SettingsError, backends=["mlflow"], mlflow={"tracking_url": "x"})
    assert "init(mlflow={...}): backend 'mlflow' has no option 'tracking_url'; did you mean 'tracking_uri'?" in message


def test_a_bad_option_from_the_environment_is_refused_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_MLFLOW_REQUEST_TIMEOUT_SECONDS", "soon")
    message = refused(SettingsError, backends=["mlflow"])
    assert "request_timeout_seconds (from TRACKHUB_MLFLOW_REQUEST_TIMEOUT_SECONDS) = 'soon' is not accepted" in message


def test_a_bad_mode_from_the_environment_is_refused_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_MODE", "onlin")
    message = refused(SettingsError)
    assert "mode (from TRACKHUB_MODE) = 'onlin' is not accepted" in message
    assert "'online', 'offline' or 'disabled'" in message


@pytest.mark.parametrize("run_id", ["../outside", "..", "/tmp/x", "a/b", "", " ", "a\nb", "x" * 200])
def test_a_run_id_that_would_leave_its_directory_is_refused(run_id: str) -> None:
    if run_id:
        assert "cannot name a run: use up to 128 letters" in refused(SettingsError, run_id=run_id, mode="offline")
    else:
        with offline(run_id=run_id) as tracker:
            assert tracker.directory.parent == Path.cwd() / ".trackhub"
            assert tracker.id


def test_a_run_id_from_the_environment_is_no_way_out_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_RUN_ID", "../../etc")
    refused(SettingsError, mode="offline")


@pytest.mark.parametrize(
    "arguments", [{"params": 3}, {"params": {"a": {"": 1}}}, {"tags": ["a"]}, {"tags": {"a": {}}}, {"tags": {"": "x"}}]
)
def test_params_and_tags_that_cannot_be_logged_leave_no_run_behind(arguments: dict[str, Any]) -> None:
    refused((TypeError, ValueError), mode="offline", **arguments)  # type: ignore[arg-type]


def test_a_name_that_is_no_unicode_is_refused_with_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "name 'a\\udc80' is not valid Unicode" in refused(SettingsError, name="a\udc80")
    monkeypatch.setitem(os.environb, b"TRACKHUB_NAME", b"caf\xe9")
    assert "(from TRACKHUB_NAME)" in refused(SettingsError, mode="offline")


def test_every_refusal_is_one_error_that_callers_can_catch() -> None:
    for arguments in ({"backends": ["x"]}, {"mode": "x"}, {"run_id": "/"}, {"finish_timeout": "x"}, {"project": ""}):
        with pytest.raises(SettingsError) as raised:
            trackhub.init(**arguments)  # type: ignore[arg-type]
        assert isinstance(raised.value, (ValueError, trackhub.TrackhubError))


def test_a_package_that_is_missing_is_refused_online_with_the_pip_line() -> None:
    code = """
import sys, trackhub
sys.modules["mlflow"] = None
import importlib.util, importlib.metadata
class Blind:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow" or name.startswith("mlflow."): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blind())
try:
    trackhub.init(backends=["mlflow"], dir=sys.argv[1])
except trackhub.MissingPackageError as error:
    print(error)
"""
    assert "pip install" in run_python(code, Path.cwd() / "runs")
    assert nothing_was_written()


def test_a_directory_that_cannot_be_written_raises_at_once() -> None:
    Path("file").touch()
    with pytest.raises(OSError, match="file"):
        offline(dir="file/runs")


def test_a_working_directory_that_is_gone_is_said_with_what_to_do(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    try:
        gone.rmdir()
        with pytest.raises(FileNotFoundError, match=r"working directory .* deleted.*os\.chdir"):
            offline(dir=tmp_path / "runs")
    finally:
        os.chdir(tmp_path)
    assert nothing_was_written()


# --- precedence


def test_arguments_win_over_variables_over_the_file_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    def project() -> str:
        with offline() as tracker:
            return tracker.project

    assert project() == "default"
    Path("trackhub.toml").write_text('project = "file"\n')
    assert project() == "file"
    monkeypatch.setenv("TRACKHUB_PROJECT", "variable")
    assert project() == "variable"
    with offline(project="argument") as tracker:
        assert tracker.project == "argument"


def test_an_option_of_the_vendors_own_variable_gives_way_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def tracking_uri(**arguments: Any) -> object:
        with offline(backends="mlflow", **arguments) as tracker:
            return tracker.directory and RunDirectory(tracker.directory).manifest.backends["mlflow"]["tracking_uri"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://vendor")
    assert tracking_uri() == "http://vendor"
    monkeypatch.setenv("TRACKHUB_MLFLOW_TRACKING_URI", "http://ours")
    assert tracking_uri() == "http://ours"
    assert tracking_uri(mlflow={"tracking_uri": "http://argument"}) == "http://argument"


def test_relative_places_are_those_of_the_process_that_started_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path.cwd()
    (root / "elsewhere").mkdir()
    with offline(dir="runs", backends="tensorboard", tensorboard={"logdir": "logs"}) as tracker:
        monkeypatch.chdir(root / "elsewhere")
        tracker.log_metrics({"a": 1.0})
    manifest = RunDirectory(tracker.directory).manifest
    assert tracker.directory == root / "runs" / tracker.id
    assert manifest.working_directory == str(root)
    assert manifest.backends["tensorboard"]["logdir"] == str(root / "logs")
    assert list((root / "elsewhere").iterdir()) == []


def test_a_working_directory_that_is_not_utf8_comes_back_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(os.fsdecode(os.fsencode(Path.cwd()) + b"/caf\xe9"))
    root.mkdir()
    monkeypatch.chdir(root)
    with offline(backends="tensorboard", tensorboard={"logdir": "logs"}) as tracker:
        tracker.log_metrics({"a": 1.0})
        child = tracker.child("c")
    for run in (RunDirectory(root / ".trackhub" / one.id) for one in (tracker, child)):
        assert run.info(None, 1).working_directory == root
        assert run.manifest.backends["tensorboard"]["logdir"] == str(root / "logs")
        assert run.end()[0] == "finished"


# --- modes


def test_offline_starts_no_process() -> None:
    code = """
import os, trackhub
from stage import delivery_processes
with trackhub.init(mode="offline", backends=["mlflow", "tensorboard"]) as tracker:
    tracker.log_metrics({"loss": 0.5})
    print(delivery_processes(os.getpid()))
"""
    assert run_python(code).strip() == "{}"


def test_offline_writes_the_journal_alone() -> None:
    with offline(params={"lr": 0.1}, tags={"team": "vision"}, backends=["mlflow", "tensorboard"]) as tracker:
        tracker.log_metrics({"loss": 0.5}, step=3)
    params, tags, metrics, end = records_of(tracker)
    assert isinstance(params, ParamsLogged)
    assert params.params == {"lr": 0.1}
    assert isinstance(tags, TagsSet)
    assert tags.tags == {"team": "vision"}
    assert isinstance(metrics, MetricsLogged)
    assert (metrics.step, metrics.values) == (3, {"loss": 0.5})
    assert '"status": "finished"' in as_text(end)
    assert {path.name for path in Path.cwd().iterdir()} == {".trackhub"}
    assert not list((tracker.directory / "cursors").iterdir())


def test_disabled_takes_every_call_and_writes_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with trackhub.init(mode="disabled", backends=["mlflow"], params={"a": 1}, tags={"b": 2}) as tracker:
        assert trackhub.current() is tracker
        tracker.log_metrics({"loss": "not even a number"}, step="x")  # type: ignore[arg-type]
        tracker.log_params(3)  # type: ignore[arg-type]
        tracker.set_tags({})
        tracker.log_artifact("nowhere")
        tracker.log_model("nowhere")
        tracker.log_text("t", "x")
        tracker.log_html("t", "x")
        tracker.log_image("t", 1)
        tracker.log_figure("t", 1)
        tracker.log_table("t", 1)
        tracker.log_histogram("t", [])
        tracker.log_confusion_matrix("t", [], [])
        tracker.log_roc_curve("t", [], [], [])
        with tracker.child("fold") as child:
            child.log_metrics({"a": 1.0})
        assert tracker.flush(timeout=0)
        assert tracker.links == {}
    assert tracker.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- identity


def test_a_run_that_is_not_named_gets_its_id_for_a_name_and_a_directory_of_its_own() -> None:
    with offline() as first, offline() as second:
        assert first.id != second.id
        assert first.name == first.id
        assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]+", first.id)
        assert first.directory == Path.cwd() / ".trackhub" / first.id


def test_nobody_else_can_look_into_a_run() -> None:
    with offline() as tracker:
        tracker.log_text("note", "private")
        for path in (tracker.directory, tracker.directory / "journal", tracker.directory / "blobs"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for path in (tracker.directory / "journal").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_going_on_with_a_run_keeps_who_it_is_and_adds_what_is_new() -> None:
    with offline(run_id="r", project="p", name="first", backends="mlflow", mlflow={"experiment": "e"}) as tracker:
        tracker.log_metrics({"a": 1.0}, step=0)
    created = RunDirectory(tracker.directory).manifest.created_ns
    with offline(run_id="r", backends="tensorboard") as tracker:
        tracker.log_metrics({"a": 2.0}, step=1)
    manifest = RunDirectory(tracker.directory).manifest
    assert (manifest.project, manifest.name, manifest.created_ns) == ("p", "first", created)
    assert list(manifest.backends) == ["mlflow", "tensorboard"]
    assert manifest.backends["mlflow"]["experiment"] == "e"
    assert [record.values["a"] for record in records_of(tracker) if isinstance(record, MetricsLogged)] == [1.0, 2.0]
    assert read_all(tracker.directory / "journal").owners == [1, 2]


SECRETS = ("s3cr3t-token", "s3cr3t-password", "s3cr3t-query")
PLUGIN = """
import trackhub
from pydantic import SecretStr

class LabOptions(trackhub.BackendOptions):
    token: SecretStr | None = None
    url: str | None = None
    headers: dict[str, SecretStr] = {}

class LabBackend(trackhub.Backend):
    name = "lab"
    Options = LabOptions
    def open(self, run, state):
        return trackhub.OpenedRun()

@trackhub.hookimpl
def trackhub_backends():
    return [LabBackend]
"""


def test_no_secret_and_no_credentials_of_a_url_are_anywhere_in_the_run_directory(tmp_path: Path) -> None:
    (tmp_path / "plugin_lab.py").write_text(PLUGIN)
    metadata = tmp_path / "lab-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[trackhub]\nlab = plugin_lab\n")
    code = """
import sys, trackhub
with trackhub.init(
    dir=sys.argv[1], run_id="run", backends=["lab"], finish_timeout=20,
    lab={"url": "https://ann:s3cr3t-password@host/?token=s3cr3t-query", "headers": {"X": "s3cr3t-token"}},
) as tracker:
    tracker.log_metrics({"a": 1.0})
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TRACKHUB_LAB_TOKEN": "s3cr3t-token"}
    run_python(code, tmp_path / "runs", environment=environment)
    manifest = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    assert manifest["backends"] == {"lab": {"url": "https://host/?"}}
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [secret for secret in SECRETS if secret.encode() in content], path


# --- in force


def test_the_last_run_that_was_started_and_not_finished_is_in_force() -> None:
    with pytest.raises(NoActiveRunError, match=r"call trackhub\.init\(\.\.\.\) before trackhub\.current\(\)"):
        trackhub.current()
    with offline() as outer:
        with offline() as inner:
            assert trackhub.current() is inner
        assert trackhub.current() is outer
    with pytest.raises(NoActiveRunError):
        trackhub.current()


def test_a_finished_run_takes_no_more() -> None:
    with offline() as tracker:
        pass
    with pytest.raises(RunFinishedError, match="has finished"):
        tracker.log_metrics({"a": 1.0})
    with pytest.raises(RunFinishedError):
        tracker.set_tags({"a": "b"})


def test_metrics_may_be_of_any_time_that_a_timestamp_can_say() -> None:
    with offline() as tracker:
        tracker.log_metrics({"a": 1.0}, step=0, timestamp=-1.5)
        tracker.log_metrics({"a": 1.0}, step=-5, timestamp=0)
    times = [record.time_ns for record in records_of(tracker) if isinstance(record, MetricsLogged)]
    assert times == [-1_500_000_000, 0]


def test_importing_trackhub_reads_nothing_and_starts_nothing() -> None:
    code = """
import sys, threading
before = set(sys.modules)
import trackhub
print(sorted(m for m in set(sys.modules) - before if m.split(".")[0] in ("pydantic", "pluggy", "msgspec", "rich")))
print(threading.active_count())
"""
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.split() == ["[]", "1"]
