"""MLflow passes the conformance suite against a real server; read back with MLflow's own client."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import running_server
from ports import free_port

from trackhub import OpenedRun
from trackhub.backends.mlflow import MlflowBackend
from trackhub.testing import BackendConformance, Point, Shown

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("server")) as url:
        yield url


# MLflow, SQLAlchemy and what they import warn about each other; none of it is ours to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
class TestMlflow(BackendConformance):
    kind = MlflowBackend
    takes_back = False
    vendor_modules = ("mlflow", "sqlalchemy")

    @pytest.fixture(autouse=True)
    def use_server(self, server: str) -> None:
        self.url = server

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"tracking_uri": self.url}

    def options_that_lead_nowhere(self, directory: Path) -> Mapping[str, Any]:
        return {"tracking_uri": f"http://127.0.0.1:{free_port()}"}

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        from mlflow import MlflowClient

        client, remote_id = MlflowClient(self.url), str(opened.remote_id)
        run = client.get_run(remote_id)
        shown = Shown(
            params=run.data.params,
            tags={k: v for k, v in run.data.tags.items() if not k.startswith(("mlflow.", "trackhub."))},
            status={"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}[
                run.info.status
            ],
            parent=run.data.tags.get("mlflow.parentRunId"),
        )
        few = len(run.data.metrics) < 1000
        for name, value in run.data.metrics.items():
            # One request a metric; where there are thousands, what the run itself says must do.
            points = client.get_metric_history(remote_id, name) if few else []
            shown.metrics[name] = [Point(one.step, one.value, one.timestamp * 1_000_000) for one in points] or [
                Point(1, value)
            ]
        local = Path(client.download_artifacts(remote_id, "", tempfile.mkdtemp(dir=directory)))
        for path in sorted(local.rglob("*")):
            if path.is_file():
                shown.files[path.relative_to(local).as_posix()] = path.read_bytes()
        return shown
