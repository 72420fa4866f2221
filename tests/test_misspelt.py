from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trackhub
from trackhub import misspelt
from trackhub.cli.doctor import diagnose
from trackhub.errors import SettingsError


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TRACKHUB_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(misspelt, "_told", set())
    monkeypatch.chdir(tmp_path)


def warnings_of_init(caplog: pytest.LogCaptureFixture, backends: str = "") -> list[str]:
    with caplog.at_level(logging.WARNING, "trackhub"), trackhub.init(mode="offline", backends=backends):
        pass
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("table", "hint"), [("tensorbord", r"did you mean \[tensorboard\]\?"), ("zzz", r"installed: .*katib, .*mlflow")]
)
@pytest.mark.parametrize("file", ["trackhub.toml", "pyproject.toml"])
def test_a_table_for_no_backend_is_refused_with_the_nearest_name(file: str, table: str, hint: str) -> None:
    Path(file).write_text(f"[{'tool.trackhub.' if file == 'pyproject.toml' else ''}{table}]\nlogdir = 'x'\n")
    with pytest.raises(SettingsError, match=hint) as raised:
        trackhub.init(mode="offline")
    assert f"the table [{table}]" in str(raised.value)
    assert not Path(".trackhub").exists()
    (finding,) = diagnose({}).findings
    assert (finding.state, finding.text) == ("problem", str(raised.value))


def test_a_table_of_a_backend_that_is_not_chosen_is_no_mistake() -> None:
    Path("trackhub.toml").write_text("[mlflow]\nexperiment = 'x'\n[memory]\n")
    trackhub.init(mode="offline").finish()


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("TRACKHUB_BACKEND", "TRACKHUB_BACKENDS"),
        ("TRACKHUB_FINISHTIMEOUT", "TRACKHUB_FINISH_TIMEOUT"),
        ("TRACKHUB_TENSORBOARD_LOG_DIR", "TRACKHUB_TENSORBOARD_LOGDIR"),
        ("TRACKHUB_TENSORBORD_LOGDIR", "TRACKHUB_TENSORBOARD_LOGDIR"),
    ],
)
def test_a_misspelt_variable_is_warned_of_once_and_found_by_the_doctor(
    variable: str, nearest: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv(variable, "a secret")
    said = f"the variable {variable} is ignored: there is no such setting; did you mean {nearest}?"
    assert warnings_of_init(caplog, "tensorboard") == [f"trackhub: {said}"]
    caplog.clear()
    assert warnings_of_init(caplog, "tensorboard") == []
    diagnosis = diagnose({}, ["tensorboard"])
    assert [(one.state, one.text) for one in diagnosis.findings if one.what == "variables"] == [("warning", said)]
    assert diagnosis.healthy


@pytest.mark.parametrize(
    "variable",
    [
        "TRACKHUB_PROJECT",
        "TRACKHUB_TENSORBOARD_LOGDIR",
        "TRACKHUB_TENSORBOARD_PROCESSORS",
        # Of a backend that is not chosen; it is not imported for this.
        "TRACKHUB_MLFLOW_ANYTHING",
        "TRACKHUB_TEST_PATIENCE",
        "TRACKHUB_LONG_TESTS",
        # What Kubernetes sets for services called trackhub and trackhub-ui.
        "TRACKHUB_SERVICE_HOST",
        "TRACKHUB_PORT",
        "TRACKHUB_PORT_80_TCP_ADDR",
        "TRACKHUB_UI_SERVICE_PORT_HTTP",
    ],
)
def test_what_somebody_reads_is_not_warned_of(
    variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, "exclude:x")
    assert warnings_of_init(caplog, "tensorboard") == []


def test_an_empty_variable_is_one_that_is_not_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRACKHUB_BACKEND", "")
    assert warnings_of_init(caplog) == []


def test_no_backend_is_imported_to_look_for_misspelt_names() -> None:
    code = (
        "import sys, trackhub\n"
        "trackhub.init(mode='offline').finish()\n"
        "print([name for name in sys.modules if name.startswith('trackhub.backends.')])"
    )
    environment = {**os.environ, "TRACKHUB_MLFLOW_TRACKING": "x", "TRACKHUB_BACKEND": "mlflow"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    assert "did you mean TRACKHUB_BACKENDS?" in done.stderr
