from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import trackhub

PUBLIC_NAMES = {
    "Backend",
    "BackendError",
    "BackendOptions",
    "BackendUnavailable",
    "CannotReadBack",
    "DeliveryReport",
    "JournalError",
    "MissingPackageError",
    "NoActiveRunError",
    "OpenedRun",
    "Processor",
    "RecordRejected",
    "Rewind",
    "RunFinishedError",
    "RunInfo",
    "SettingsError",
    "StateLost",
    "Tracker",
    "TrackhubError",
    "UnknownBackendError",
    "VendorVariable",
    "__version__",
    "current",
    "hookimpl",
    "init",
}

TRACKER_NAMES = {
    "child",
    "directory",
    "finish",
    "finished",
    "flush",
    "id",
    "links",
    "log_artifact",
    "log_confusion_matrix",
    "log_figure",
    "log_histogram",
    "log_html",
    "log_image",
    "log_metrics",
    "log_model",
    "log_params",
    "log_roc_curve",
    "log_table",
    "log_text",
    "name",
    "project",
    "remote_id",
    "set_tags",
}


def test_the_public_names_are_frozen() -> None:
    assert set(trackhub.__all__) == PUBLIC_NAMES
    assert list(trackhub.__all__) == sorted(trackhub.__all__)
    assert set(dir(trackhub)) == PUBLIC_NAMES


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(trackhub, name) is not None


@pytest.mark.parametrize("name", sorted(TRACKER_NAMES))
def test_what_users_call_on_a_tracker_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(inspect.getattr_static(trackhub.Tracker, name))


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Run'"):
        trackhub.Run  # noqa: B018


def test_import_loads_nothing_but_the_package_itself() -> None:
    program = "import sys; before = set(sys.modules); import trackhub; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {"trackhub"}


def test_every_error_is_in_the_tree_that_its_module_draws() -> None:
    errors = importlib.import_module("trackhub.errors")
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    for name in defined:
        assert name in str(errors.__doc__)


def test_every_module_says_what_it_is() -> None:
    root = Path(str(trackhub.__file__)).parent
    for module in pkgutil.walk_packages([str(root)], "trackhub."):
        if module.name == "trackhub.__main__":
            continue
        assert importlib.import_module(module.name).__doc__, module.name
