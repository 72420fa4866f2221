"""The backend keeps every promise of trackhub's contract, read back with the standard library alone."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from trackhub_csv import CsvBackend, CsvOptions

from trackhub import OpenedRun, RecordRejected, RunInfo
from trackhub.records import ArtifactLogged, MetricsLogged, ParamsLogged, StoredFile, TagsSet
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


def points(steps: range, began_ns: int, **values: float) -> list[MetricsLogged]:
    return [MetricsLogged(began_ns + step, step, values) for step in steps]


def values_of(shown: Shown, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in shown.metrics[name]]


def test_a_rewind_that_was_not_remembered_leaves_nothing_twice(tmp_path: Path) -> None:
    """Also when the file has become longer than it was before."""
    run = TestCsv().rehearse(tmp_path)
    first_ns = run.run.manifest.created_ns
    second_ns = first_ns + 10**12
    run.log(*points(range(11), first_ns, loss=1.0))
    run.deliver()
    run.begin(None, second_ns)
    run.log(*points(range(20, 21), second_ns, val=3.0), *points(range(5, 30), second_ns, loss=2.0))
    with run.cursor_not_saved():
        run.deliver()
    run.deliver()
    assert values_of(run.shown(), "val") == [(20, 3.0)]
    assert sorted(values_of(run.shown(), "loss")) == [(step, 1.0 if step < 5 else 2.0) for step in range(30)]


def test_a_rewind_passes_over_what_was_torn(tmp_path: Path) -> None:
    subject = TestCsv()
    run = subject.rehearse(tmp_path)
    first_ns = run.run.manifest.created_ns
    run.log(*points(range(11), first_ns, loss=1.0))
    run.deliver()
    with (tmp_path / "out" / run.run.manifest.id / "metrics.csv").open("a", newline="") as file:
        file.write("30,val,3.0,1\r\n31")
    run.begin(None, first_ns + 10**12)
    run.log(*points(range(5, 7), first_ns + 10**12, loss=2.0))
    run.deliver()
    assert set(run.shown().metrics) == {"loss"}
    assert values_of(run.shown(), "loss") == [(step, 1.0 if step < 5 else 2.0) for step in range(7)]


@contextmanager
def machine(directory: Path, origin: str) -> Iterator[tuple[CsvBackend, RunInfo]]:
    """The backend as one of several machines opens it for the same run."""
    own = directory / origin
    own.mkdir()
    run = RunInfo(id="shared", name="shared", project="p", created_ns=1, directory=own, origin=origin)
    backend = CsvBackend(CsvOptions(directory=directory / "out"))
    try:
        backend.open(run, {})
        yield backend, run
    finally:
        backend.disconnect()


def test_machines_that_write_one_run_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """Neither params and tags nor files, although nothing is locked."""
    count = 100
    content = {"a": b"a" * 100_000, "b": b"b" * 50_000}

    def work(backend: CsvBackend, run: RunInfo) -> None:
        (run.directory / "f").write_bytes(content[run.origin])
        file = StoredFile("f", len(content[run.origin]))
        for at in range(count):
            name = f"{run.origin}{at}"
            backend.write_params([ParamsLogged(1, {name: at})])
            backend.write_tags([TagsSet(1, {name: str(at)})])
            backend.write_artifacts([ArtifactLogged(1, name, file)])
        backend.close("finished")

    with machine(tmp_path, "a") as first, machine(tmp_path, "b") as second, ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, *first), threads.submit(work, *second)]:
            done.result()
        for backend, run in (first, second):
            shown = backend.read_back(run, {})
            assert shown.params == {f"{run.origin}{at}": at for at in range(count)}
            assert shown.tags == {f"{run.origin}{at}": str(at) for at in range(count)}
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "shared" / "artifacts").iterdir()}
    assert found == {f"{origin}{at}": content[origin] for origin in "ab" for at in range(count)}
    assert not list((tmp_path / "out").rglob("*.new"))
