"""The example pipeline, run for real with the same components in four environments, and compiled for a cluster."""

from __future__ import annotations

import http.server
import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from kfp_outputs import history_in, metadata_in, strictly
from stage import records_of, scalars

from trackhub.records import ConfusionMatrixLogged, RocCurveLogged
from trackhub.rundir import RunDirectory, runs_in

# Looked for, not imported: that takes long, and here it is the example's processes that need them.
if missing := [name for name in ("kfp", "sklearn", "mlflow", "tensorboard") if find_spec(name) is None]:
    pytest.skip(f"the example and its readers need {', '.join(missing)}", allow_module_level=True)

EXAMPLE = Path(__file__).parents[1] / "examples" / "kfp_pipeline.py"
EPOCHS = 4
TRIALS = [f"trial-{number}" for number in range(6)]
CURVES = {"train/loss", "val/loss", "val/accuracy"}
ENVIRONMENTS = ["", "kfp", "kfp,mlflow", "kfp,mlflow,tensorboard"]
WITH_KFP = ENVIRONMENTS[1:]
GOOD_ENOUGH = "kfp,mlflow"
WEBHOOK_DOWN = "kfp"

# MLflow, SQLAlchemy, kfp and what they import warn about each other; none of it is ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    # The first test waits for four pipelines.
    pytest.mark.timeout(900),
]


class Webhook:
    """A webhook that remembers what it was told, by the path it was told at."""

    def __init__(self) -> None:
        self.told: dict[str, list[Any]] = {}
        webhook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                assert self.headers["Content-Type"] == "application/json"
                webhook.told.setdefault(self.path, []).append(strictly(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class Ran:
    """What one run of the example has left behind.

    Args:
        work: Its work directory.
        printed: What it printed.
        told: What its webhook was told.
        tracking_uri: Where MLflow is.
    """

    work: Path
    printed: str
    told: list[Any]
    tracking_uri: str

    def task(self, name: str) -> Path:
        (directory,) = (self.work / "pipeline").glob(f"digits-*/{name}")
        return directory

    @property
    def tasks(self) -> list[str]:
        return sorted(file.parent.name for file in (self.work / "pipeline").glob("digits-*/*/executor_output.json"))

    @property
    def runs(self) -> dict[str, RunDirectory]:
        return {run.manifest.name: run for run in runs_in(self.work / "trackhub")}

    def shown(self, name: str) -> Any:
        """What `trackhub show` says of a run."""
        command = [sys.executable, "-m", "trackhub", "show", "--json", str(self.runs[name].path)]
        return strictly(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


def run_example(*arguments: str, **variables: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKHUB_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        env={**inherited, "MLFLOW_DISABLE_TELEMETRY": "true", "TRACKHUB_FINISH_TIMEOUT": "180", **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Ran]]:
    """Backends -> what became of the example with them."""
    sys.path.insert(0, str(Path(__file__).parent / "backends"))
    from mlflow_server import running_server

    root = tmp_path_factory.mktemp("example")
    webhook = Webhook()
    try:
        with running_server(root) as server, socket.socket() as taken:
            # Nobody listens there, and nobody else gets the port.
            taken.bind(("127.0.0.1", 0))
            out_of_reach = f"http://127.0.0.1:{taken.getsockname()[1]}"

            def run(backends: str) -> Ran:
                work = root / (backends.replace(",", "-") or "none")
                threshold = "0" if backends == GOOD_ENOUGH else "1.01"
                url = out_of_reach if backends == WEBHOOK_DOWN else f"{webhook.url}/{work.name}"
                uri, variables = f"sqlite:///{work}/mlflow.db", {}
                if backends == "kfp,mlflow":
                    uri = variables["MLFLOW_TRACKING_URI"] = server
                options = ["--epochs", str(EPOCHS), "--threshold", threshold, "--webhook", url]
                printed = run_example("--backends", backends, "--work-dir", str(work), *options, **variables)
                return Ran(work, printed, webhook.told.get(f"/{work.name}", []), uri)

            with ThreadPoolExecutor(2) as pool:
                yield dict(zip(ENVIRONMENTS, pool.map(run, ENVIRONMENTS), strict=True))
    finally:
        webhook.close()


# --- the same components, wherever it goes


@pytest.mark.parametrize("backends", ENVIRONMENTS)
def test_the_journal_has_everything_whatever_the_backends(ran: Mapping[str, Ran], backends: str) -> None:
    one = ran[backends]
    search = one.shown("search")
    assert search["status"] == "finished"
    assert search["complete"]
    assert search["project"] == "digits"
    assert search["params"] == {"epochs": EPOCHS, "seed": 0}
    assert search["tags"]["kfp.task"] == "search"
    assert search["metrics"]["trial/accuracy"]["count"] == len(TRIALS)
    for name in TRIALS:
        trial = one.runs[name]
        assert trial.manifest.parent_id == one.runs["search"].manifest.id
        shown = one.shown(name) if name == TRIALS[0] else None
        if shown:
            assert shown["params"] == {"hidden_units": 16, "learning_rate": 0.0003}
            assert {curve: shown["metrics"][curve]["count"] for curve in CURVES} == dict.fromkeys(CURVES, EPOCHS)
            losses = [value for _, value in shown["metrics"]["train/loss"]["series"]]
            assert losses == sorted(losses, reverse=True)
            assert losses[0] > losses[-1]
    assert search["metrics"]["best/accuracy"]["maximum"] == search["metrics"]["trial/accuracy"]["maximum"] > 0.9

    records = records_of(one.runs["evaluate"])
    (matrix,) = [record for record in records if isinstance(record, ConfusionMatrixLogged)]
    assert matrix.labels == [str(digit) for digit in range(10)]
    assert sum(map(sum, matrix.matrix)) == 360
    right = sum(row[place] for place, row in enumerate(matrix.matrix))
    assert one.shown("evaluate")["metrics"]["test/accuracy"]["last"] == pytest.approx(right / 360)
    (curve,) = [record for record in records if isinstance(record, RocCurveLogged)]
    assert math.isinf(curve.thresholds[0])
    (page,) = [value for value in one.shown("compare")["values"] if value["kind"] == "html"]
    text = (one.runs["compare"].path / page["path"]).read_text(encoding="utf-8")
    assert all(name in text for name in TRIALS)


@pytest.mark.parametrize("backends", ENVIRONMENTS)
def test_every_task_leaves_an_output_that_kfp_can_read(ran: Mapping[str, Ran], backends: str) -> None:
    one = ran[backends]
    expected = ["compare", "evaluate", "prepare", "search"]
    assert one.tasks == (expected if backends == GOOD_ENOUGH else sorted([*expected, "notify"]))
    for task in one.tasks:
        metadata = metadata_in(one.task(task))
        if not backends:
            # What the pipeline itself passes on is there; of what was logged nothing is.
            assert not any(metadata.values())
    assert (one.task("search") / "model").stat().st_size > 1000


@pytest.mark.parametrize("backends", WITH_KFP)
def test_kfp_shows_metrics_matrix_curve_page_and_files(ran: Mapping[str, Ran], backends: str) -> None:
    one = ran[backends]
    search = metadata_in(one.task("search"))
    assert set(search["metrics"]) == {"trial/accuracy", "best/accuracy"}
    assert len(history_in(one.task("search") / "metrics")) == len(TRIALS)
    assert search["model"]["logged_name"] == "network"
    assert search["trials"]["logged_name"] == "trials.json"
    curves = (one.task("search") / "curves").read_text(encoding="utf-8")
    assert "<svg" in curves
    assert all(name in curves for name in TRIALS)

    evaluated = metadata_in(one.task("evaluate"))
    accuracy = evaluated["metrics"]["test/accuracy"]
    assert accuracy == pytest.approx(one.shown("evaluate")["metrics"]["test/accuracy"]["last"])
    assert sum(sum(row["row"]) for row in evaluated["quality"]["confusionMatrix"]["rows"]) == 360
    points = evaluated["quality"]["confidenceMetrics"]
    thresholds = [point["confidenceThreshold"] for point in points]
    assert thresholds == sorted(thresholds, reverse=True)
    assert (points[0]["recall"], points[-1]["recall"]) == (0, 1)
    assert f"{accuracy:.1%}" in (one.task("compare") / "report").read_text(encoding="utf-8")
    assert "seed" in (one.task("prepare") / "about").read_text(encoding="utf-8")
    assert metadata_in(one.task("prepare"))["digits"]["logged_name"] == "digits.npz"


@pytest.mark.parametrize("backends", ["kfp,mlflow", "kfp,mlflow,tensorboard"])
def test_mlflow_shows_the_trials_as_runs_below_the_search(ran: Mapping[str, Ran], backends: str) -> None:
    from mlflow import MlflowClient

    one = ran[backends]
    client = MlflowClient(one.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    notified = [] if backends == GOOD_ENOUGH else ["notify"]
    assert sorted(runs) == sorted([*TRIALS, *notified, "compare", "evaluate", "prepare", "search"])
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    search = runs["search"]
    assert search.data.tags["kfp.pipeline"] == "digits"
    assert "mlflow.parentRunId" not in search.data.tags
    best = max(runs[name].data.metrics["val/accuracy"] for name in TRIALS)
    assert search.data.metrics["best/accuracy"] == best
    assert runs[search.data.tags["best_trial"]].data.metrics["val/accuracy"] == best
    for name in TRIALS:
        trial = runs[name]
        assert trial.data.tags["mlflow.parentRunId"] == search.info.run_id
        assert set(trial.data.params) == {"hidden_units", "learning_rate"}
        assert set(trial.data.metrics) == CURVES
        history = client.get_metric_history(trial.info.run_id, "val/loss")
        assert [point.step for point in history] == list(range(EPOCHS))
    assert [item.path for item in client.list_artifacts(search.info.run_id, "network")] == ["network/model"]
    kept = {item.path for item in client.list_artifacts(runs["evaluate"].info.run_id)}
    assert {"tables", "figures"} <= kept


def test_tensorboard_has_the_curves_of_every_trial(ran: Mapping[str, Ran]) -> None:
    one = ran["kfp,mlflow,tensorboard"]
    search = scalars(one.runs["search"])
    assert [step for step, _ in search["trial/accuracy"]] == list(range(len(TRIALS)))
    for number, name in enumerate(TRIALS):
        shown = scalars(one.runs[name])
        assert set(shown) == CURVES
        assert [step for step, _ in shown["val/loss"]] == list(range(EPOCHS))
        last = shown["val/accuracy"][-1][1]
        assert last == pytest.approx(search["trial/accuracy"][number][1])
    assert not (ran["kfp"].work / "tensorboard").exists()


# --- the gate


@pytest.mark.parametrize("backends", ["", "kfp,mlflow,tensorboard"])
def test_the_webhook_is_told_once_when_the_network_falls_short(ran: Mapping[str, Ran], backends: str) -> None:
    (message,) = ran[backends].told
    assert message["threshold"] == 1.01
    assert message["accuracy"] == pytest.approx(ran[backends].shown("evaluate")["metrics"]["test/accuracy"]["last"])
    assert message["run"] == ran[backends].runs["notify"].manifest.id
    assert ran[backends].shown("notify")["tags"]["notified"] == "told the webhook (204)"


def test_the_webhook_is_not_told_when_the_network_is_good_enough(ran: Mapping[str, Ran]) -> None:
    assert ran[GOOD_ENOUGH].told == []
    assert "notify" not in ran[GOOD_ENOUGH].runs


def test_a_webhook_that_is_down_does_not_fail_the_pipeline_and_is_seen_everywhere(ran: Mapping[str, Ran]) -> None:
    one = ran[WEBHOOK_DOWN]
    assert "the webhook was NOT told: URLError" in one.printed
    assert "the webhook was NOT told" in (one.task("notify") / "notice").read_text(encoding="utf-8")
    assert one.shown("notify")["tags"]["notified"].startswith("the webhook was NOT told")
    assert "compare" in one.tasks


# --- for a cluster


def test_it_compiles_for_a_cluster_and_kfp_reads_that_back(tmp_path: Path) -> None:
    import yaml
    from kfp import components

    file = tmp_path / "pipeline.yaml"
    options = ["--image", "registry.example.org/digits:1", "--threshold", "0.9", "--backends", "kfp,mlflow"]
    run_example("--compile", str(file), *options)

    loaded = components.load_component_from_file(str(file))
    assert loaded.pipeline_spec.pipeline_info.name == "digits"
    inputs = loaded.pipeline_spec.root.input_definitions.parameters
    assert {name: one.is_optional for name, one in inputs.items()} == dict.fromkeys(
        ("epochs", "seed", "threshold", "webhook"), True
    )
    assert inputs["threshold"].default_value.number_value == 0.9
    assert loaded.pipeline_spec.root.dag.tasks["search"].retry_policy.max_retry_count == 1

    compiled, platform = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    executors = compiled["deploymentSpec"]["executors"]
    assert sorted(executors) == [f"exec-{name}" for name in ("compare", "evaluate", "notify", "prepare", "search")]
    for executor in executors.values():
        container = executor["container"]
        assert container["image"] == "registry.example.org/digits:1"
        variables = {one["name"]: one["value"] for one in container["env"]}
        assert variables == {"TRACKHUB_PROJECT": "digits", "TRACKHUB_BACKENDS": "kfp,mlflow"}
        assert "trackhub-sdk" in json.dumps(container["command"])
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        assert "TRACKHUB_KFP_RUN_ID" in [one["name"] for one in executor["fieldPathAsEnv"]]


def test_the_components_hold_no_vendor_code() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    components = source[source.index("def prepare") : source.index("def make_pipeline")]
    assert not any(vendor in components for vendor in ("mlflow", "tensorboard", "kfp", "neptune", ".metadata"))
