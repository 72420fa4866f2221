"""One training loop goes to four backends at once, and each of them holds the same numbers.

Apart from the tests of the backends because only side by side do they show that none of them changes what was logged.
What arrived is read with each vendor's own reader; the csv backend is a package of its own, `examples/trackhub-csv`.
"""

from __future__ import annotations

import csv
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow_server import running_server
from neptune_server import NeptuneServer, neptune_server
from stage import Stage

from trackhub.rundir import RunDirectory

for package in ("mlflow", "neptune", "tensorboard"):
    if find_spec(package) is None:
        # Not imported here: neptune reads its timeouts when it is, and the backend must be the first to do so.
        pytest.skip(f"{package} is not installed", allow_module_level=True)
pytest.importorskip("trackhub_csv", reason="install it with: pip install --no-deps ./examples/trackhub-csv")

STEPS = 10_000
EVERY = 100

TRAINING = f"""
import time, trackhub

times = []
with trackhub.init(project="digits", name="sgd", params={{"lr": 0.1}}, finish_timeout=100) as tracker:
    for step in range({STEPS}):
        before = time.time_ns()
        tracker.log_metrics(
            {{"train/loss": 7 / (step + 3), "train/accuracy": 1 - 1 / (step + 1), "lr": 0.1 * 0.9997**step}}, step=step
        )
        times.append((step, before, time.time_ns()))
        if step % {EVERY} == {EVERY - 1}:
            tracker.log_metrics({{"val/loss": 11 / (step + 5), "weights/größte": -1e-30 * step}}, step=step)
print(tracker.finish())
with open("times.txt", "w") as file:
    file.writelines(f"{{step}} {{before}} {{after}}\\n" for step, before, after in times)
"""

EVERY_STEP = {
    "train/loss": lambda step: 7 / (step + 3),
    "train/accuracy": lambda step: 1 - 1 / (step + 1),
    "lr": lambda step: 0.1 * 0.9997**step,
}
NOW_AND_THEN = {"val/loss": lambda step: 11 / (step + 5), "weights/größte": lambda step: -1e-30 * step}


class Point(NamedTuple):
    """One value, with the time as the vendor holds it."""

    step: int
    value: float
    time_ns: int


Series = dict[str, list[Point]]


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def neptune() -> Iterator[NeptuneServer]:
    with neptune_server() as server:
        yield server


@pytest.mark.filterwarnings("default")  # vendors' packages, imported here to read back, warn
def test_four_backends_hold_the_same_numbers(stage: Stage, mlflow_url: str, neptune: NeptuneServer) -> None:
    environment = {
        "TRACKHUB_BACKENDS": "mlflow,tensorboard,neptune,csv",
        "MLFLOW_TRACKING_URI": mlflow_url,
        "NEPTUNE_PROJECT": neptune.project,
        "NEPTUNE_API_TOKEN": neptune.api_token,
        "NEPTUNE_MODE": "async",
    }
    # Some seconds; the limit is for machines that have much else to do.
    training = stage.start(TRAINING, environment=environment)
    said, _ = training.communicate(timeout=110)
    assert training.returncode == 0, said
    counted = f"metrics {STEPS + STEPS // EVERY:,}"
    report = dict(line.split(": ", 1) for line in said.splitlines())
    assert {name: line.split(" (")[0] for name, line in report.items()} == dict.fromkeys(
        ("mlflow", "tensorboard", "neptune", "csv"), "complete"
    ), said
    assert all(counted in line for line in report.values()), said

    run = stage.run_directory()
    # The one that holds every time to the nanosecond; the others are measured by it, and it by the training itself.
    exact = in_csv(stage.path / "csv-runs" / run.path.name / "metrics.csv")
    expected = {
        **{name: [(step, value(step)) for step in range(STEPS)] for name, value in EVERY_STEP.items()},
        **{name: [(s, value(s)) for s in range(EVERY - 1, STEPS, EVERY)] for name, value in NOW_AND_THEN.items()},
    }
    assert numbers(exact) == expected
    calls = [tuple(map(int, line.split())) for line in (stage.path / "times.txt").read_text().splitlines()]
    for name in EVERY_STEP:
        for point, (step, before, after) in zip(exact[name], calls, strict=True):
            assert point.step == step
            assert before <= point.time_ns <= after

    assert in_mlflow(run, mlflow_url) == to_the_millisecond(exact)
    assert in_neptune(neptune) == to_the_millisecond(exact)
    assert fetched_from_neptune(neptune, stage.path, set(exact)) == to_the_millisecond(exact)

    found = in_tensorboard(run)
    assert numbers(found) == {name: [(s, single(v)) for s, v in points] for name, points in expected.items()}
    for name, points in exact.items():
        for point, ours in zip(found[name], points, strict=True):
            # Seconds as a double: in these years, neighbours are 238 ns apart.
            assert abs(point.time_ns - ours.time_ns) <= 120


def in_csv(path: Path) -> Series:
    found: Series = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            point = Point(int(line["step"]), float(line["value"]), int(line["time_ns"]))
            found.setdefault(line["name"], []).append(point)
    return found


def in_mlflow(run: RunDirectory, url: str) -> Series:
    """What MLflow's client is told by its server, metric by metric."""
    from mlflow import MlflowClient

    client, remote_id = MlflowClient(url), str(run.cursor("mlflow").remote_id)
    return {
        name: sorted(
            Point(one.step, one.value, one.timestamp * 10**6) for one in client.get_metric_history(remote_id, name)
        )
        for name in client.get_run(remote_id).data.metrics
    }


def in_neptune(server: NeptuneServer) -> Series:
    """What the Neptune server has stored."""
    return {
        path.removeprefix("metrics/"): [
            Point(int(one.step), one.value, one.time_ms * 10**6) for one in server.run().series(path)
        ]
        for path in server.run().paths()
        if path.startswith("metrics/")
    }


FETCHING = """
import json, sys, neptune

run = neptune.init_run(with_id=sys.argv[1], mode="read-only")
fetched = {}
for name in sys.argv[2:]:
    table = run["metrics"][name].fetch_values(progress_bar=False)
    times = [round(time.timestamp() * 1000) for time in table["timestamp"]]
    fetched[name] = list(zip(table["step"].tolist(), table["value"].tolist(), times))
run.stop()
with open("fetched.json", "w") as file:
    json.dump(fetched, file)
"""


def fetched_from_neptune(server: NeptuneServer, directory: Path, names: set[str]) -> Series:
    """What Neptune's client fetches, page by page; in a process of its own, for it keeps threads."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("NEPTUNE_")}
    done = subprocess.run(
        [sys.executable, "-c", FETCHING, server.run().short_id, *names],
        cwd=directory,
        env={
            **own,
            "NEPTUNE_PROJECT": server.project,
            "NEPTUNE_API_TOKEN": server.api_token,
            "OAUTHLIB_INSECURE_TRANSPORT": "1",  # the server speaks http, on the loopback interface
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    fetched = json.loads((directory / "fetched.json").read_text(encoding="utf-8"))
    return {
        name: [Point(int(step), value, time_ms * 10**6) for step, value, time_ms in points]
        for name, points in fetched.items()
    }


def in_tensorboard(run: RunDirectory) -> Series:
    """What TensorBoard's reader finds, all of it rather than a sample."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(run.cursor("tensorboard").state["file"]).parent
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        name: [Point(one.step, one.value, round(Fraction(one.wall_time) * 10**9)) for one in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def numbers(series: Series) -> dict[str, list[tuple[int, float]]]:
    return {name: [(point.step, point.value) for point in points] for name, points in series.items()}


def to_the_millisecond(series: Series) -> Series:
    return {
        name: [point._replace(time_ns=point.time_ns // 10**6 * 10**6) for point in points]
        for name, points in series.items()
    }


def single(value: float) -> float:
    """The 32-bit float that is kept of a value."""
    kept: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return kept
