"""The examples of plugins work as their users would use them: installed beside trackhub, and chosen by name."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from stage import Stage

from trackhub.plugins import find_backend, version_of

EXAMPLES = Path(__file__).parents[1] / "examples"


def needing(name: str, *modules: str) -> Any:
    """A plugin's name, for tests that skip where it or its vendor's package is not installed."""
    missing = [one for one in (f"trackhub_{name}", *modules) if importlib.util.find_spec(one) is None]
    reason = f"no {' and no '.join(missing)}: pip install {' '.join(modules)} ./examples/trackhub-{name}"
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=reason))


CSV = needing("csv")
WANDB = needing("wandb", "wandb")

TRAINING = """
import trackhub

with trackhub.init(project="digits", name="sgd", params={"lr": 0.1, "seed": None}, tags={"team": "vision"}) as tracker:
    for step in range(STEPS):
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


@pytest.mark.parametrize("name", [CSV])
def test_a_run_goes_to_the_plugin_that_the_environment_names(name: str, stage: Stage) -> None:
    said, _ = stage.run(TRAINING.replace("STEPS", "10_000"), environment={"TRACKHUB_BACKENDS": name})
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
    assert files == {"model/weights.bin", "text/note-step-1.txt", "tables/cm.json", "figures/cm.svg"}
    fold = json.loads((stage.path / "csv-runs" / fold_id / "run.json").read_bytes())
    assert fold == {"name": "fold-0", "project": "digits", "parent": run_id, "status": "finished"}


@pytest.mark.parametrize("name", [CSV])
def test_a_run_of_two_attempts_under_an_id_of_ones_own_is_verified(name: str, stage: Stage) -> None:
    attempt = """
    import trackhub
    with trackhub.init(run_id="mine", backends=["BACKEND", "tensorboard"], resume_step=RESUME) as tracker:
        for step in range(FIRST, 30):
            tracker.log_metrics({"loss": 1 / (step + 1)}, step=step)
    """.replace("BACKEND", name)
    stage.run(attempt.replace("RESUME", "None").replace("FIRST", "0"))
    stage.run(attempt.replace("RESUME", "9").replace("FIRST", "10"))
    verify = [sys.executable, "-m", "trackhub", "verify", "mine"]
    done = subprocess.run(verify, env=stage.environment, cwd=stage.path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all is there, and no more") == 2
    assert done.stdout.count("points 30") == 2


@pytest.mark.parametrize("name", [WANDB])
def test_a_run_goes_to_a_large_vendor_by_the_same_door(name: str, stage: Stage) -> None:
    """Every number is in the run's file; the training process and its delivery leave nothing of wandb running."""
    environment = {"TRACKHUB_BACKENDS": name, "TRACKHUB_WANDB_DIRECTORY": "out"}
    said, _ = stage.run(TRAINING.replace("STEPS", "1000"), environment=environment)
    ids, *report = said.splitlines()
    run_id, fold_id = ids.split()
    assert [line.partition(" (")[0] for line in report] == ["wandb: complete"], said
    assert "metrics 1,000" in report[0]
    read = {one: read_by_its_tests(stage.path / "out", one) for one in (run_id, fold_id)}
    metrics, params, tags, files, others, status, parent = read[run_id]
    assert {name: [(step, value) for step, value, _ in points] for name, points in metrics.items()} == {
        "loss": [(step, 1 / (step + 1)) for step in range(1000)],
        "acc": [(step, step) for step in range(1000)],
    }
    assert (params, tags, status, parent) == ({"lr": 0.1, "seed": None}, {"team": "vision"}, "finished", None)
    assert files == ["model/weights.bin"]
    assert others == ["figures/cm", "tables/cm", "text/note"]
    metrics, *_, status, parent = read[fold_id]
    assert [(step, value) for step, value, _ in metrics["loss"]] == [(0, 0.5)]
    assert (status, parent) == ("finished", run_id)


READING = """
import json, sys
from pathlib import Path
from test_wandb import read_back

shown = read_back(Path(sys.argv[1]), sys.argv[2])
json.dump([shown.metrics, shown.params, shown.tags, [*shown.files], sorted(shown.others), shown.status, shown.parent],
          sys.stdout)
"""


def read_by_its_tests(directory: Path, run_id: str) -> list[Any]:
    """A run in wandb's files; read in another process, for the vendor's package stays out of this one."""
    done = subprocess.run(
        [sys.executable, "-c", READING, directory, run_id],
        cwd=EXAMPLES / "trackhub-wandb" / "tests",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", [CSV, WANDB])
def test_it_is_found_by_its_entry_point_with_its_version(name: str) -> None:
    declared = tomllib.loads((EXAMPLES / f"trackhub-{name}" / "pyproject.toml").read_text())["project"]
    kind = find_backend(name)
    assert declared["entry-points"] == {"trackhub": {name: kind.__module__.partition(".")[0]}}
    assert version_of(name, kind) == f"{declared['name']} {declared['version']}"


@pytest.mark.parametrize("name", [CSV, WANDB])
def test_its_own_tests_pass(name: str, tmp_path: Path) -> None:
    plugin = EXAMPLES / f"trackhub-{name}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", plugin / "pyproject.toml"]
    done = subprocess.run(
        [*command, "--rootdir", plugin, "--basetemp", tmp_path / "work", plugin / "tests"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith(("TRACKHUB_", "PYTEST_", "WANDB_"))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
