"""Neptune passes the conformance suite with the real client, against a server of our own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from neptune_server import NeptuneServer, neptune_server

from trackhub import OpenedRun
from trackhub.backends.neptune import NeptuneBackend
from trackhub.testing import BackendConformance, Point, Shown


@pytest.fixture
def server() -> Iterator[NeptuneServer]:
    with neptune_server() as one:
        yield one


@pytest.mark.filterwarnings("ignore:You're hitting")
class TestNeptune(BackendConformance):
    kind = NeptuneBackend
    vendor_modules = ("neptune",)
    takes_any_step_order = False

    @pytest.fixture(autouse=True)
    def use_server(self, server: NeptuneServer) -> None:
        self.server = server

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"project": self.server.project, "api_token": self.server.api_token, "timeout_seconds": 20}

    def options_that_lead_nowhere(self, directory: Path) -> Mapping[str, Any]:
        options = {**self.options(directory), "timeout_seconds": 3}
        self.server.stop()
        return options

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        [run] = [one for one in self.server.runs.values() if one.short_id == opened.remote_id]
        shown = Shown(
            params=run.values("parameters/"),
            tags=run.values("tags/"),
            status=run.value("trackhub/status"),
            parent=run.fields["trackhub/parent"].value if "trackhub/parent" in run.fields else None,
        )
        for path in run.fields:
            kind, _, name = path.partition("/")
            if kind == "metrics":
                shown.metrics[name] = [Point(int(p.step), p.value, p.time_ms * 1_000_000) for p in run.series(path)]
            elif kind == "artifacts":
                shown.files[name] = run.content(path)
            elif kind not in ("sys", "trackhub", "parameters", "tags"):
                shown.others.add(path)
        return shown
