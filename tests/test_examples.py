from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"


def run_digits(directory: Path, *arguments: str) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKHUB_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--epochs", "2", *arguments],
        cwd=directory,
        env={**variables, "TRACKHUB_FINISH_TIMEOUT": "180"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.filterwarnings("default")  # MLflow, imported here to read back, warns
def test_digits_trains_delivers_to_both_backends_and_says_where_to_look(tmp_path: Path) -> None:
    for package in ("sklearn", "mlflow", "tensorboard"):
        pytest.importorskip(package)
    printed = run_digits(tmp_path)

    assert "everything is delivered" in printed
    assert f"tensorboard --logdir {tmp_path}/runs" in printed
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in printed
    assert re.search(r"trackhub show \d{8}-\d{6}-[0-9a-f]{6}", printed)

    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer/lr"] == "0.05"
    steps = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in steps] == list(range(90))
    assert run.data.metrics["val/accuracy"] > 0.85
    assert {"figures", "images", "model", "tables", "text"} <= {
        item.path for item in client.list_artifacts(run.info.run_id)
    }

    [directory] = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    shown = events.Scalars("train/loss")
    assert [event.step for event in shown] == list(range(90))
    assert [event.value for event in shown] == pytest.approx([point.value for point in steps], rel=1e-6)


def test_digits_runs_without_any_backend(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run_digits(tmp_path, "--backends", "")
    [run] = (tmp_path / ".trackhub").iterdir()
    assert (run / "run.json").is_file()
    assert not (tmp_path / "runs").exists()


def test_digits_says_what_to_install_where_scikit_learn_is_missing(tmp_path: Path) -> None:
    # A package of that name that cannot be imported stands for none.
    (tmp_path / "joblib.py").write_text("raise ModuleNotFoundError('no joblib', name='joblib')\n")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "python -m pip install scikit-learn" in done.stderr
