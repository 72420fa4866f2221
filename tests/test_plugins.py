"""Plugins as other packages bring them: real distributions on the path of a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from backends_for_tests import lay_out_distribution
from journal_helpers import run_python

from trackhub.errors import UnknownBackendError
from trackhub.plugins import BUILT_IN, backend_names, find_backend

GOOD = """
import trackhub

class LabOptions(trackhub.BackendOptions):
    url: str = "http://lab"

class LabBackend(trackhub.Backend):
    name = "lab"
    Options = LabOptions

    def open(self, run, state):
        return trackhub.OpenedRun()

@trackhub.hookimpl
def trackhub_backends():
    return [LabBackend]
"""
TRY = """
import sys
from trackhub.plugins import backend_names, find_backend, version_of
print(",".join(backend_names()))
for name in sys.argv[1:]:
    try:
        found = find_backend(name)
        print(f"{name}: {found.__module__}.{found.__qualname__} of {version_of(name, found)}")
        assert find_backend(name) is found
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}".replace("\\n", " "))
print("imported:", ",".join(sorted(m for m in sys.modules if m.startswith("plugin_"))))
"""


def attempt(site: Path, *names: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return run_python(TRY, *names, environment=environment).strip().split("\n")


def test_a_backend_of_another_package_is_found_by_its_name_with_its_version(tmp_path: Path) -> None:
    lay_out_distribution(tmp_path, "lab-plugin", "plugin_lab", GOOD, "lab")
    names, lab, imported = attempt(tmp_path, "lab")
    assert "lab" in names.split(",")
    assert lab == "lab: plugin_lab.LabBackend of lab-plugin 1.5"
    assert imported == "imported: plugin_lab"


def test_a_package_installed_with_pip_is_found(tmp_path: Path) -> None:
    """A wheel made by hand, so that nothing has to be built or fetched."""
    wheel = tmp_path / "lab_plugin-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "lab_plugin-1.5.dist-info"
        archive.writestr("plugin_lab.py", GOOD)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lab-plugin\nVersion: 1.5\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", "[trackhub]\nlab = plugin_lab\n")
        archive.writestr(f"{info}/RECORD", "")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", site, wheel]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode and "No module named pip" in done.stderr:
        pytest.skip("there is no pip here")
    assert done.returncode == 0, done.stderr
    assert attempt(site, "lab")[1] == "lab: plugin_lab.LabBackend of lab-plugin 1.5"


def test_a_strangers_broken_plugin_hurts_nobody_and_is_not_imported(tmp_path: Path) -> None:
    lay_out_distribution(tmp_path, "lab-plugin", "plugin_lab", GOOD, "lab")
    lay_out_distribution(tmp_path, "stranger", "plugin_broken", "raise SystemExit('broken')", "broken")
    names, lab, imported = attempt(tmp_path, "lab")
    assert {"lab", "broken"} <= set(names.split(","))
    assert lab.startswith("lab: plugin_lab.LabBackend")
    assert imported == "imported: plugin_lab"


HOOK = "import trackhub\n@trackhub.hookimpl\ndef trackhub_backends():\n    "
BROKEN = {
    "import plugin_that_is_not_there": "ModuleNotFoundError: No module named 'plugin_that_is_not_there'",
    "def f(:": "SyntaxError",
    "raise RuntimeError('compiled against another NumPy')": "RuntimeError: compiled against another NumPy",
    "import trackhub\n@trackhub.hookimpl\ndef trackhub_backends(extra): return []": "PluginValidationError",
    HOOK + "raise KeyError('x')": "KeyError: 'x'",
    HOOK + "return 3": "TypeError",
    HOOK + "return []": "brings nothing",
    HOOK + "return None": "brings nothing",
    "x = 1": "brings nothing",
    GOOD.replace('name = "lab"', 'name = "labor"'): "brings 'labor'",
    GOOD.replace("(trackhub.Backend)", ""): "brings 'lab'",
    GOOD.replace("return [LabBackend]", "return [LabBackend({})]"): "TypeError|brings 'lab'",
    GOOD.replace("return [LabBackend]", "return ['lab']"): "brings 'lab'",
    GOOD.replace("@trackhub.hookimpl", ""): "brings nothing",
}


@pytest.mark.parametrize("code", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_plugin_that_is_asked_for_is_named_with_its_version_and_what_is_wrong(
    tmp_path: Path, code: str
) -> None:
    lay_out_distribution(tmp_path, "lab-plugin", "plugin_lab", code, "lab")
    said = attempt(tmp_path, "lab", "lab")
    assert said[1] == said[2]
    assert said[1].startswith("lab: SettingsError: the plugin of backend 'lab' (lab-plugin 1.5)")
    assert any(part in said[1] for part in BROKEN[code].split("|"))
    if "brings" in said[1]:
        assert "its hook trackhub_backends() must return a list with a trackhub.Backend subclass" in said[1]
    else:
        assert "Upgrade or uninstall it, or leave the backend out." in said[1]


def test_an_entry_point_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    lay_out_distribution(tmp_path, "lab-plugin", "plugin_lab", GOOD, "lab")
    points = tmp_path / "lab_plugin-1.5.dist-info" / "entry_points.txt"
    points.write_text("[trackhub]\nlab = plugin_lab:no_such_attribute\n")
    assert "(lab-plugin 1.5) cannot be loaded: AttributeError" in attempt(tmp_path, "lab")[1]


def test_two_packages_that_claim_one_name_are_both_named(tmp_path: Path) -> None:
    lay_out_distribution(tmp_path, "lab-plugin", "plugin_lab", GOOD, "lab")
    lay_out_distribution(tmp_path, "other-lab", "plugin_other", GOOD, "lab")
    said = attempt(tmp_path, "lab")[1]
    assert "two packages bring a backend called 'lab'" in said
    assert "lab-plugin (plugin_lab)" in said
    assert "other-lab (plugin_other)" in said
    assert said.endswith("Uninstall one of them.")


def test_one_package_found_twice_on_the_path_is_one_package(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        lay_out_distribution(tmp_path / folder, "lab-plugin", "plugin_lab", GOOD, "lab")
    assert attempt(Path(f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}"), "lab")[1].startswith("lab: plugin_lab")


def test_one_plugin_may_bring_several_backends(tmp_path: Path) -> None:
    code = GOOD.replace("return [LabBackend]", "return [LabBackend, OtherBackend]").replace(
        "@trackhub.hookimpl", "class OtherBackend(LabBackend):\n    name = 'other'\n\n@trackhub.hookimpl"
    )
    lay_out_distribution(tmp_path, "lab-plugin", "plugin_lab", code, "lab", "other")
    _, lab, other, _ = attempt(tmp_path, "lab", "other")
    assert lab.startswith("lab: plugin_lab.LabBackend")
    assert other.startswith("other: plugin_lab.OtherBackend")


@pytest.mark.parametrize(
    ("asked", "near"), [("mlfow", "mlflow"), ("MLflow", "mlflow"), ("MLFLOW", "mlflow"), ("tensorbord", "tensorboard")]
)
def test_an_unknown_name_raises_with_the_nearest_and_all_there_are(asked: str, near: str) -> None:
    with pytest.raises(UnknownBackendError) as raised:
        find_backend(asked)
    assert f"no backend is called {asked!r}; did you mean {near!r}? Installed backends: " in str(raised.value)
    assert ", ".join(backend_names()) in str(raised.value)


@pytest.mark.parametrize("asked", ["xyz", "", "os.path"])
def test_a_name_that_is_near_to_none_gets_no_suggestion(asked: str) -> None:
    with pytest.raises(UnknownBackendError) as raised:
        find_backend(asked)
    assert "did you mean" not in str(raised.value)


def test_built_in_backends_come_through_the_same_door_and_bring_no_vendor_with_them() -> None:
    code = """
import sys
from trackhub.plugins import BUILT_IN, find_backend
for name in BUILT_IN:
    assert find_backend(name).name == name
print([vendor for vendor in ("mlflow", "tensorboard", "tensorflow", "torch", "numpy") if vendor in sys.modules])
"""
    assert run_python(code).strip() == "[]"
    assert set(BUILT_IN) <= set(backend_names())
