"""A training with MLflow (on PostgreSQL and an object store), TensorBoard and Neptune, and what they have of it.

Apart from the tests because several kinds of fault end with the same question: is everything there, once?
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from neptune_server import NeptuneServer
from real_servers import MlflowOnPostgres
from stage import Stage, scalars

from trackhub.backends.neptune.names import to_custom_run_id


def environment(served: MlflowOnPostgres, neptune: NeptuneServer) -> dict[str, str]:
    """What a training or a sync needs to know."""
    return {
        "TRACKHUB_MLFLOW_TRACKING_URI": served.url,
        "TRACKHUB_NEPTUNE_TIMEOUT_SECONDS": "5",
        "NEPTUNE_PROJECT": neptune.project,
        "NEPTUNE_API_TOKEN": neptune.api_token,
    }


def found_in_all(
    stage: Stage, served: MlflowOnPostgres, neptune: NeptuneServer, key: str
) -> dict[str, list[tuple[int, float]]]:
    """Backend -> steps and values of a metric, as they are there: what is there twice is twice in the list."""
    run = stage.run_directory()
    ((remote_id, _),) = served.remote_runs(run.manifest.id)
    series = neptune.run(custom_id=to_custom_run_id(run.manifest.id)).series(f"metrics/{key}")
    return {
        "mlflow": served.points(remote_id, key),
        "tensorboard": scalars(run)[key],
        "neptune": [(int(point.step), float(point.value)) for point in series],
    }


def statuses(stage: Stage, served: MlflowOnPostgres, neptune: NeptuneServer) -> dict[str, str]:
    """Backend -> how it says the run has ended."""
    run = stage.run_directory()
    ((_, status),) = served.remote_runs(run.manifest.id)
    return {
        "mlflow": status.lower(),
        "tensorboard": str(run.cursor("tensorboard").closed_status),
        "neptune": neptune.run(custom_id=to_custom_run_id(run.manifest.id)).value("trackhub/status"),
    }


def sync(stage: Stage, *arguments: str) -> Any:
    """A `trackhub sync` that has begun."""
    return subprocess.Popen(
        [sys.executable, "-m", "trackhub", "sync", *arguments],
        cwd=stage.path,
        env=stage.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_printed_command(stage: Stage, report: str, **more: str) -> None:
    """Do what a report says."""
    (command,) = re.findall("^deliver the rest with: trackhub (.*)$", report, re.MULTILINE)
    done = subprocess.run(
        f"{sys.executable} -m trackhub {command}",
        shell=True,
        cwd=stage.path,
        env={**stage.environment, **more},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
