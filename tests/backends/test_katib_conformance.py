"""Katib passes the conformance suite; read back as Katib's own collector reads a trial's output."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from test_katib import collected

from trackhub import OpenedRun
from trackhub.backends.katib import KatibBackend
from trackhub.testing import BackendConformance, Point, Shown


class TestKatib(BackendConformance):
    kind = KatibBackend
    shows_params = shows_tags = shows_files = shows_children = tells_status = keeps_steps = False
    shows_once = False  # what was printed cannot be taken back; the collector takes the same value at the same time

    @pytest.fixture(autouse=True)
    def print_to_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
        self.output = tmp_path / "output"
        with self.output.open("w") as file:
            monkeypatch.setattr("sys.__stdout__", file)
            yield

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        shown = Shown()
        for step, (when, name, value) in enumerate(collected(self.output.read_text())):
            time_ns = datetime.fromisoformat(when).timestamp() * 10**9
            shown.metrics.setdefault(name, []).append(Point(step, float(value), round(time_ns)))
        return shown
