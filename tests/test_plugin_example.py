"""The example of a plugin works as its users would use it: installed beside trackhub, and chosen by name."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from stage import Stage

from trackhub.plugins import find_backend, version_of

PLUGIN = Path(__file__).parents[1] / "examples" / "trackhub-csv"

pytest.importorskip("trackhub_csv", reason="install it with: pip install --no-deps ./examples/trackhub-csv")

TRAINING = """
import trackhub

with trackhub.init(project="digits", name="sgd", params={"lr": 0.1, "seed": None}, tags={"team": "vision"}) as tracker:
    for step in range(10_000):
        tracker.log_metrics({"loss": 1 / (step + 1), "acc": step}, step=step)
    tracker.log_text("note", "a text", step=1)
    tracker.log_confusion_matrix("cm", ["a", "b"], [[1, 0], [2, 3]])
    with open("weights.bin", "wb") as file:
        file.write(bytes(1000))
    tracker.log_artifact("weights.bin", name="model/weights.bin")
    with tracker.child("fold-0") as fold:
        fold.log_metrics({"loss": 0.5}, step=0)
print(tracker.id, fold.id)
print(tracker.finish())
"""


def test_a_run_goes_to_the_plugin_that_the_environment_names(stage: Stage) -> None:
    said, _ = stage.run(TRAINING, environment={"TRACKHUB_BACKENDS": "csv"})
    ids, *report = said.splitlines()
    run_id, fold_id = ids.split()
    assert report == ["csv: complete (params 1, tags 1, metrics 10,000, artifacts 4)"]
    folder = stage.path / "csv-runs" / run_id
    with (folder / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(int(one["step"]), one["name"], float(one["value"])) for one in lines] == [
        (step, name, value) for step in range(10_000) for name, value in (("loss", 1 / (step + 1)), ("acc", step))
    ]
    assert json.loads((folder / "params.json").read_bytes()) == {"lr": 0.1, "seed": None}
    assert json.loads((folder / "tags.json").read_bytes()) == {"team": "vision"}
    facts = {"name": "sgd", "project": "digits", "parent": None, "status": "finished"}
    assert json.loads((folder / "run.json").read_bytes()) == facts
    files = {path.relative_to(folder / "artifacts").as_posix() for path in (folder / "artifacts").rglob("*.*")}
    assert files == {"model/weights.bin", "text/note-1.txt", "tables/cm.json", "figures/cm.svg"}
    fold = json.loads((stage.path / "csv-runs" / fold_id / "run.json").read_bytes())
    assert fold == {"name": "fold-0", "project": "digits", "parent": run_id, "status": "finished"}


def test_it_is_found_by_its_entry_point_with_its_version() -> None:
    declared = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    kind = find_backend("csv")
    assert declared["entry-points"] == {"trackhub": {"csv": kind.__module__}}
    assert version_of("csv", kind) == f"{declared['name']} {declared['version']}"


def test_its_own_tests_pass(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", PLUGIN / "pyproject.toml"]
    done = subprocess.run(
        [*command, "--rootdir", PLUGIN, "--basetemp", tmp_path / "work", PLUGIN / "tests"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("TRACKHUB_", "PYTEST_"))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
