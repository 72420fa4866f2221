"""The backend keeps every promise of trackhub's contract, read back with the standard library alone."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from trackhub_csv import CsvBackend

from trackhub import OpenedRun, RecordRejected
from trackhub.records import ArtifactLogged, ParamsLogged, StoredFile
from trackhub.testing import BackendConformance, Point, Shown


class TestCsv(BackendConformance):
    kind = CsvBackend

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"directory": directory / "out"}

    def options_that_lead_nowhere(self, directory: Path) -> Mapping[str, Any]:
        (directory / "file").touch()
        return {"directory": directory / "file" / "out"}

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        folder = directory / "out" / str(opened.remote_id)
        facts = json.loads((folder / "run.json").read_bytes())
        shown = Shown(status=facts["status"], parent=facts["parent"])
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                point = Point(int(line["step"]), float(line["value"]), int(line["time_ns"]))
                shown.metrics.setdefault(line["name"], []).append(point)
        for values, name in ((shown.params, "params.json"), (shown.tags, "tags.json")):
            if (folder / name).exists():
                values.update(json.loads((folder / name).read_bytes()))
        artifacts = folder / "artifacts"
        for path in artifacts.rglob("*"):
            if path.is_file():
                shown.files[path.relative_to(artifacts).as_posix()] = path.read_bytes()
        return shown


def test_json_is_strict(tmp_path: Path) -> None:
    """Other languages' parsers refuse NaN."""
    subject = TestCsv()
    with subject.rehearse(tmp_path).opened() as (backend, opened):
        backend.write_params([ParamsLogged(1, {"a": math.nan, "b": [1, {"c": -math.inf}]})])
        assert [note[:2] for note in backend.notes.drain()] == [("not finite", "a"), ("not finite", "b")]
        assert subject.read(tmp_path, opened).params == {"a": "nan", "b": [1, {"c": "-inf"}]}


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "", "x" * 300, "a/b"])
def test_artifacts_stay_inside(name: str, tmp_path: Path) -> None:
    """Whatever they are called; what cannot be is rejected, and nothing else."""
    subject = TestCsv()
    run = subject.rehearse(tmp_path)
    (run.run.path / "f").write_bytes(b"content")
    file = StoredFile("f", 7)
    with run.opened() as (backend, opened):
        backend.write_artifacts([ArtifactLogged(1, "a", file)])
        with pytest.raises(RecordRejected):
            backend.write_artifacts([ArtifactLogged(2, name, file)])
        assert subject.read(tmp_path, opened).files == {"a": b"content"}
    assert not list(tmp_path.rglob("outside"))
