"""KFP passes the conformance suite, in a component that has an output of every type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kfp", reason="what is tested is filled into KFP's own objects")

from kfp import dsl

from trackhub import OpenedRun
from trackhub.backends.kfp import KfpBackend
from trackhub.testing import BackendConformance, Point, Shown

ROLES = {
    "metrics": dsl.Metrics, "classification_metrics": dsl.ClassificationMetrics, "model": dsl.Model,
    "dataset": dsl.Dataset, "artifact": dsl.Artifact, "html": dsl.HTML, "markdown": dsl.Markdown,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning:kfp", "ignore::DeprecationWarning:kfp")
class TestKfp(BackendConformance):
    kind = KfpBackend
    vendor_modules = ("kfp",)
    shows_params = shows_tags = False  # on a page for people, drawn when the run ends
    shows_files = False  # an output holds one file, under its own name
    shows_children = tells_status = False

    @pytest.fixture(autouse=True)
    def component(self, tmp_path: Path) -> None:
        self.live = {role: kind(role, str(tmp_path / role), {}) for role, kind in ROLES.items()}

    def options(self, directory: Path) -> Mapping[str, Any]:
        return self.live

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        shown = Shown()
        history = directory / "metrics"
        for line in map(json.loads, history.read_text().splitlines() if history.exists() else []):
            for name, value in line["metrics"].items():
                point = Point(line["step"], float(value), round(line["timestamp"] * 10**9))
                shown.metrics.setdefault(name, []).append(point)
        for role, live in self.live.items():
            path = directory / role
            content = path.read_text(errors="replace") if path.is_file() and role != "metrics" else ""
            if "sample" in content or "sample" in json.dumps(live.metadata):
                shown.others.add(f"sample in {role}")
            if role not in ("metrics", "html", "markdown") and (content or live.metadata):
                shown.others.add(f"{role}: {content} {live.metadata}")
        return shown
