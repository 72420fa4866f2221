"""The neptune backend with the real Neptune client, against a server of our own and on disk."""

from __future__ import annotations

import base64
import csv
import gc
import io
import json
import math
import os
import random
import signal
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from neptune_server import SECRET, NeptuneServer, Point, neptune_server
from neptune_server import Run as ServedRun
from ports import answer_for_unknown_hosts
from stage import Stage, delivery_processes, said, tell, wait_until

from trackhub.backend import RunInfo
from trackhub.backends.neptune import NeptuneBackend, NeptuneOptions
from trackhub.backends.neptune.fields import FILE, FLOATS, Fields
from trackhub.backends.neptune.names import MAX_FILE_PATH_BYTES, MAX_PATH_BYTES, to_custom_run_id, to_path
from trackhub.backends.neptune.series import grow
from trackhub.backends.neptune.values import to_atom
from trackhub.errors import BackendUnavailable, MissingPackageError, RecordRejected, SettingsError, StateLost
from trackhub.records import (
    ArtifactLogged,
    FigureLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ParamsLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)

# The client warns, once and from its own thread, that it is being limited: as an error, that would end the thread.
pytestmark = pytest.mark.filterwarnings("ignore:You're hitting")

patient = settings(max_examples=200, deadline=None)

NOW = 1_790_000_000_123_456_789
MS = NOW // 1_000_000
SECOND = 1_000_000_000
TEXT = st.text(max_size=40) | st.text(st.sampled_from("_xh0123456789abcdef/.="), max_size=40)


class Bench:
    """A server and a place for run directories."""

    def __init__(self, server: NeptuneServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self._opened: list[NeptuneBackend] = []

    def run(self, **changes: Any) -> RunInfo:
        identity = "".join(random.choices(string.ascii_lowercase, k=12))
        directory = self.directory / str(changes.get("id", identity))
        directory.mkdir(exist_ok=True)
        known = {"id": identity, "name": f"run {identity}", "project": "digits", "created_ns": NOW}
        return RunInfo(**{**known, "directory": directory, "working_directory": self.directory, **changes})

    def backend(self, **options: Any) -> NeptuneBackend:
        known = {"project": self.server.project, "api_token": self.server.api_token, "timeout_seconds": 10}
        backend = NeptuneBackend(NeptuneOptions(**{**known, **options}))
        self._opened.append(backend)
        return backend

    def open(self, run: RunInfo | None = None, state: Any = None, **options: Any) -> tuple[NeptuneBackend, ServedRun]:
        backend, run = self.backend(**options), run or self.run()
        backend.open(run, state or {})
        return backend, self.server.run(custom_id=to_custom_run_id(run.id))

    def file(self, name: str, content: bytes | str = b"content", media_type: str = "text/plain") -> StoredFile:
        """A file whose path is absolute, so that it is there for every run."""
        path = self.directory / "blobs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return StoredFile(str(path), path.stat().st_size, media_type=media_type)

    def picture(self, color: str, format_: str = "PNG", size: tuple[int, int] = (8, 8)) -> StoredFile:
        image_module = pytest.importorskip("PIL.Image")
        buffer = io.BytesIO()
        image_module.new("RGB", size, color).save(buffer, format_)
        return self.file(f"{color}.{format_.lower()}", buffer.getvalue(), f"image/{format_.lower()}")

    def close(self) -> None:
        for backend in self._opened:
            backend.disconnect()


@pytest.fixture
def server() -> Iterator[NeptuneServer]:
    with neptune_server() as one:
        yield one


@pytest.fixture
def bench(server: NeptuneServer, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(server, tmp_path)
    yield bench
    server.heal()
    bench.close()


def reasons(backend: NeptuneBackend) -> Counter[str]:
    return Counter(reason for reason, _, _ in backend.notes.drain())


def points(steps: range, key: str = "loss", begin_ns: int = NOW) -> list[MetricsLogged]:
    return [MetricsLogged(begin_ns + step * SECOND, step, {key: step / 7}) for step in steps]


def until_accepted(attempt: Any, seconds: float = 20) -> None:
    """What a delivery does: the same call again, until it works out."""

    def works() -> bool:
        try:
            attempt()
        except BackendUnavailable:
            return False
        return True

    wait_until(works, "the backend to accept a batch", seconds)


# Names


@patient
@given(st.lists(TEXT.map(lambda text: text * 3), unique=True, min_size=2, max_size=8), st.sampled_from([FILE, FLOATS]))
@example(["a", "a/b", "a/b/c", "a_x2f_b", "a/"], FLOATS)
@example(["a/b", "a", "a_x2f_", "a/"], FLOATS)
@example(["//x//y", "x/y", "/x/y"], FLOATS)
@example(["k" * 2000, "k" * 2001], FLOATS)
def test_no_two_names_meet_and_none_is_in_the_way_of_another(names: list[str], kind: str) -> None:
    fields = Fields({})
    paths = [fields.place("metrics", name, kind) for name in names]
    assert None not in paths
    assert len(set(paths)) == len(names)
    for path in map(str, paths):
        assert all(path.split("/"))
        assert len(path.encode()) <= (MAX_FILE_PATH_BYTES if kind == FILE else MAX_PATH_BYTES) + 40
        assert not any(str(other).startswith(f"{path}/") for other in paths)
    # Another process finds the same places, in whatever order it is asked.
    again = Fields({str(path): kind for path in paths})
    assert [again.place("metrics", name, kind) for name in reversed(names)] == list(reversed(paths))


@patient
@given(st.text(st.sampled_from("abz09_-. :é/"), min_size=1, max_size=150))
def test_an_ordinary_name_stays_as_it_is(name: str) -> None:
    if "_x" not in name and all(name.split("/")):
        assert to_path("metrics", name) == f"metrics/{name}"


@patient
@given(st.text(min_size=1, max_size=128))
def test_a_custom_run_id_is_short_enough_for_neptune_and_stable(run_id: str) -> None:
    assert len(to_custom_run_id(run_id)) <= 36
    assert to_custom_run_id(run_id) == to_custom_run_id(run_id)
    assert to_custom_run_id(run_id * 37) != to_custom_run_id(run_id * 38)


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=30),
        st.one_of(st.integers(), st.floats(), st.text(max_size=50), st.booleans(), st.none(), st.lists(st.integers())),
        max_size=12,
    )
)
def test_any_params_arrive_as_what_they_were_made_into(params: dict[str, Any]) -> None:
    with neptune_server() as server, tempfile.TemporaryDirectory() as directory:
        bench = Bench(server, Path(directory))
        backend, served = bench.open()
        for _ in range(2):
            backend.write_params([ParamsLogged(NOW, params)])
        assert reasons(backend)["refused by Neptune"] == 0
        wanted = sorted(repr(to_atom(value).value) for value in params.values())
        assert sorted(map(repr, served.values("parameters/").values())) == wanted
        bench.close()


@patient
@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none(), st.lists(st.floats())))
@example(2**31 - 1)
@example(2**31)
@example(-(2**31))
@example(2**53 + 1)
def test_a_value_is_kept_or_told(value: Any) -> None:
    atom = to_atom(value)
    kept = type(atom.value) is type(value) and (atom.value == value)
    assert kept == (atom.reason == "")
    if isinstance(atom.value, int):
        assert -(2**31) <= atom.value < 2**31
    if isinstance(atom.value, float):
        assert math.isfinite(atom.value)
        assert atom.value == value


@patient
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63), st.integers(0, 50)), max_size=30), st.integers(0, 30))
def test_series_only_grow_and_points_given_again_are_passed_over(given_points: list[Any], cut: int) -> None:
    logged = [(step, time_ms, index) for index, (step, time_ms) in enumerate(given_points)]
    first = grow(None, None, logged[:cut])
    assert all(one < other for one, other in zip(map(float, first.steps), map(float, first.steps[1:]), strict=False))
    assert first.times == sorted(first.times)
    assert len(first.values) + first.refused == len(logged[:cut])
    # Delivered, but not remembered: the same again, and what came since.
    again = grow(first.end, first.end, logged)
    at_once = grow(None, None, logged)
    assert first.values + again.values == at_once.values
    assert again.refused <= at_once.refused


def test_times_keep_their_millisecond() -> None:
    growth = grow(None, None, [(step, MS + step, 0.0) for step in range(5000)])
    assert [int(seconds * 1000) for seconds in growth.times] == [MS + step for step in range(5000)]


# Options


@pytest.mark.parametrize(("vendor", "ours"), [("async", "online"), ("sync", "online"), ("offline", "offline")])
def test_neptunes_own_modes_are_understood(vendor: str, ours: str) -> None:
    assert NeptuneOptions(mode=vendor).mode == ours  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["debug", "read-only", "on"])
def test_modes_that_would_lose_everything_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="online"):
        NeptuneOptions(mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "NEPTUNE_PROJECT"),
        ({"project": "a/b"}, "NEPTUNE_API_TOKEN"),
        ({"project": "a/b", "api_token": "hunter2"}, "Copy it again"),
        ({"project": "a/b", "api_token": base64.b64encode(b'{"api_key": "hunter2"}').decode()}, "Copy it again"),
        ({"mode": "offline", "client": "no such"}, "names no module"),
        ({"mode": "offline", "client": "../neptune"}, "names no module"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_write(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        NeptuneBackend.check(NeptuneOptions(**options))
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_client_that_is_not_installed_is_told_with_its_pip_line() -> None:
    with pytest.raises(MissingPackageError, match="pip install no_such_client"):
        NeptuneBackend.check(NeptuneOptions(mode="offline", client="no_such_client.neptune"))


def test_a_server_is_probed_without_the_client(server: NeptuneServer) -> None:
    options = NeptuneOptions(project=server.project, api_token=server.api_token)  # type: ignore[arg-type]
    assert "answers (200)" in str(NeptuneBackend.probe(options))
    assert SECRET not in str(NeptuneBackend.probe(options))
    server.stop()
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        NeptuneBackend.probe(options)
    assert NeptuneBackend.probe(options.model_copy(update={"mode": "offline"})) is None


def test_nothing_of_the_client_is_imported_before_a_run_is_opened() -> None:
    code = (
        "import sys; from trackhub.plugins import find_backend; kind = find_backend('neptune');"
        "kind.check(kind.Options(mode='offline')); print('neptune' in sys.modules, 'requests' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == (
        "False False\n"
    )


# Runs


def test_a_run_is_created_once_and_found_again(bench: Bench) -> None:
    run = bench.run(id="a" * 60, name="sgd")
    first = bench.backend().open(run, {})
    second = bench.backend().open(run, {})
    third = bench.backend().open(run, first.state)
    served = bench.server.run()
    assert {first.remote_id, second.remote_id, third.remote_id} == {served.short_id}
    assert first.link == f"{bench.server.url}/people/digits/e/{served.short_id}"
    assert served.custom_id == to_custom_run_id(run.id)
    assert served.value("sys/name") == "sgd"
    assert served.value("trackhub/run_id") == run.id
    assert served.value("trackhub/created") == "2026-09-21T14:13:20.123457+00:00"
    assert [path for path in served.paths() if not path.startswith("trackhub/")] == []


@pytest.mark.parametrize(("status", "failed"), [("finished", False), ("failed", True), ("killed", True)])
def test_a_run_ends_with_its_status(bench: Bench, status: Any, failed: bool) -> None:
    run = bench.run()
    backend, served = bench.open(run)
    assert (served.value("trackhub/status"), served.value("sys/failed")) == ("running", False)
    backend.close(status)
    assert (served.value("trackhub/status"), served.value("sys/failed")) == (status, failed)
    bench.open(run)
    assert (served.value("trackhub/status"), served.value("sys/failed")) == ("running", False)


def test_what_people_wrote_in_the_app_stays_when_a_run_goes_on(bench: Bench) -> None:
    run = bench.run()
    state = bench.backend().open(run, {}).state
    bench.server.run().fields["sys/description"].value = "the good one"
    bench.open(run, state)
    assert bench.server.run().value("sys/description") == "the good one"


def test_a_child_names_its_parent(bench: Bench) -> None:
    parent = bench.backend().open(bench.run(), {}).remote_id
    _, served = bench.open(bench.run(parent_remote_id=parent, name="fold 1"))
    assert (served.value("trackhub/parent"), served.value("sys/name")) == (parent, "fold 1")


def test_nothing_is_printed(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    backend, _ = bench.open()
    backend.write_metrics(points(range(3)))
    backend.close("finished")
    backend.disconnect()
    assert capfd.readouterr() == ("", "")


def test_nothing_is_left_running_or_lying_about(bench: Bench) -> None:
    run = bench.run()
    before = {thread for thread in threading.enumerate() if "process_request" not in thread.name}
    backend, _ = bench.open(run)
    backend.write_metrics(points(range(3)))
    backend.disconnect()

    def left() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one not in before and "process_request" not in one.name]

    wait_until(lambda: not left(), "threads to end", 60)
    assert list((run.directory / ".neptune").iterdir()) == []


def test_a_run_that_was_deleted_is_given_again_from_its_start(bench: Bench) -> None:
    run = bench.run()
    state = bench.backend().open(run, {}).state
    bench.server.runs.clear()
    with pytest.raises(StateLost):
        bench.backend().open(run, state)
    assert bench.backend().open(run, {}).remote_id == bench.server.run().short_id


def test_a_run_that_is_deleted_meanwhile_is_given_again_from_its_start(bench: Bench) -> None:
    backend, _ = bench.open()
    bench.server.runs.clear()
    with pytest.raises(BackendUnavailable, match="gone"):
        backend.write_metrics(points(range(3)))

    def again() -> bool:
        try:
            backend.write_metrics(points(range(3)))
        except StateLost:
            return True
        except BackendUnavailable:
            return False
        raise AssertionError("it was accepted")

    wait_until(again, "the loss to be told", 60)


# Values


def test_params_and_tags_are_fields(bench: Bench) -> None:
    run = bench.run()
    backend, served = bench.open(run)
    backend.write_params([ParamsLogged(NOW, {"lr": 0.1, "epochs": 3, "nesterov": True, "optimizer": "sgd"})])
    backend.write_tags([TagsSet(NOW, {"team": "vision"}), TagsSet(NOW, {"team": "audio", "who/is": ""})])
    assert served.values("parameters/") == {"lr": 0.1, "epochs": 3, "nesterov": True, "optimizer": "sgd"}
    assert served.values("tags/") == {"team": "audio", "who/is": ""}
    assert backend.notes.drain() == []


def test_a_param_that_changes_its_type_is_what_it_was_set_to_last(bench: Bench) -> None:
    run = bench.run()
    backend, served = bench.open(run)
    history: list[Any] = [1, 3.7, 2, "text", True, 5, 1.5, False]
    for value in history:
        for _ in range(2):
            backend.write_params([ParamsLogged(NOW, {"p": value, "deep/q": value})])
            found = served.values("parameters/")
            assert found == {"p": value, "deep/q": value}
    # A new process finds the types at the server.
    other, served = bench.open(run)
    other.write_params([ParamsLogged(NOW, {"p": 0.25}), ParamsLogged(NOW, {"p": 0.5})])
    assert served.value("parameters/p") == 0.5
    assert reasons(backend) + reasons(other) == Counter()


def test_what_neptune_cannot_hold_is_changed_and_told(bench: Bench) -> None:
    backend, served = bench.open()
    backend.write_params(
        [ParamsLogged(NOW, {"seed": 2**40, "huge": 2**70, "none": None, "list": [1, "a"], "nan": math.nan})]
    )
    assert served.values("parameters/") == {
        "seed": float(2**40),
        "huge": str(2**70),
        "none": "None",
        "list": '[1, "a"]',
        "nan": "nan",
    }
    assert reasons(backend) == Counter({"changed": 4, "not finite": 1})


def test_a_text_too_long_is_kept_whole(bench: Bench) -> None:
    backend, served = bench.open()
    for _ in range(2):
        backend.write_params([ParamsLogged(NOW, {"p/q": "é" * 16385, "fits": "x" * 16384})])
    stored = served.value("parameters/p/q")
    assert len(stored) == 16384
    assert "trackhub/long_values/parameters/p/q" in stored
    assert served.content("trackhub/long_values/parameters/p/q").decode() == "é" * 16385
    assert reasons(backend) == Counter({"shortened": 2})


def test_a_name_too_long_is_kept_whole(bench: Bench) -> None:
    backend, served = bench.open()
    name = "deep/" * 400
    backend.write_metrics(points(range(3), name))
    (path,) = served.values("metrics/")
    assert len(f"metrics/{path}") <= MAX_PATH_BYTES
    assert list(served.values("trackhub/long_names/").values()) == [name]
    backend.write_artifacts([ArtifactLogged(NOW, "n" * 400, bench.file("f"))])
    assert list(served.values("artifacts/").values()) == [b"content"]
    assert reasons(backend) == Counter({"renamed": 2})


def test_a_name_that_is_both_field_and_namespace_is_in_both_places(bench: Bench) -> None:
    run = bench.run()
    backend, served = bench.open(run)
    backend.write_metrics(
        [MetricsLogged(NOW, 0, {"a": 1.0, "a/b": 2.0}), MetricsLogged(NOW, 0, {"c/d": 3.0, "c": 4.0})]
    )
    assert {path: one[0].value for path, one in served.values("metrics/").items()} == {
        "a": 1.0,
        "a_x2f_b": 2.0,
        "c/d": 3.0,
        "c_x2f_": 4.0,
    }
    assert reasons(backend) == Counter({"renamed": 2})
    other, _ = bench.open(run)
    other.write_metrics([MetricsLogged(NOW, 1, {"c": 5.0, "a/b": 6.0, "c/d": 7.0, "a": 8.0})])
    assert {path: [one.value for one in series] for path, series in served.values("metrics/").items()} == {
        "a": [1.0, 8.0],
        "a_x2f_b": [2.0, 6.0],
        "c/d": [3.0, 7.0],
        "c_x2f_": [4.0, 5.0],
    }


# Series


def test_metrics_are_series_with_steps_and_the_journals_times(bench: Bench) -> None:
    backend, served = bench.open()
    backend.write_metrics(points(range(2500)))
    assert served.series("metrics/loss") == [(step, step / 7, MS + 1000 * step) for step in range(2500)]


def test_a_batch_given_twice_shows_once(bench: Bench) -> None:
    run = bench.run()
    backend, served = bench.open(run)
    for _ in range(2):
        backend.write_metrics(points(range(10)))
    other, _ = bench.open(run)
    other.write_metrics(points(range(12)))
    assert [point.step for point in served.series("metrics/loss")] == list(range(12))
    assert reasons(other) == Counter()
    assert bench.server.count["executeOperations"] > 0


def test_steps_that_do_not_increase_are_left_out_and_counted(bench: Bench) -> None:
    run = bench.run()
    backend, served = bench.open(run)
    backend.write_metrics([MetricsLogged(NOW + i, step, {"a": float(i)}) for i, step in enumerate([0, 2, 2, 1, 3])])
    assert [point[:2] for point in served.series("metrics/a")] == [(0, 0.0), (2, 1.0), (3, 4.0)]
    assert reasons(backend) == Counter({"step not increasing": 2})
    # Another process goes on from an earlier checkpoint: later calls, earlier steps.
    other, _ = bench.open(run)
    other.write_metrics([MetricsLogged(NOW + SECOND * i, i, {"a": 9.0}) for i in range(2, 6)])
    assert [point.step for point in served.series("metrics/a")] == [0, 2, 3, 4, 5]
    assert reasons(other) == Counter({"step not increasing": 2})


def test_a_time_that_goes_backwards_is_held(bench: Bench) -> None:
    backend, served = bench.open()
    backend.write_metrics([MetricsLogged(NOW - i * SECOND, i, {"a": 1.0}) for i in range(3)])
    assert [(point.step, point.time_ms) for point in served.series("metrics/a")] == [(0, MS), (1, MS), (2, MS)]


def test_values_that_are_not_finite_are_left_out_and_counted(bench: Bench) -> None:
    backend, served = bench.open()
    values = [1.0, math.nan, math.inf, -math.inf, 2.0]
    backend.write_metrics(
        [MetricsLogged(NOW, step, {"a": value, "only": math.nan}) for step, value in enumerate(values)]
    )
    assert [point[:2] for point in served.series("metrics/a")] == [(0, 1.0), (4, 2.0)]
    assert reasons(backend) == Counter({"not finite": 8})


def test_points_that_the_server_refuses_are_counted(bench: Bench) -> None:
    run = bench.run()
    backend, served = bench.open(run)
    backend.write_metrics(points(range(3)))
    # Somebody else writes to the same series meanwhile.
    served.fields["metrics/loss"].value.append(Point(100, 1.0, MS))
    backend.write_metrics(points(range(3, 6)))
    notes = backend.notes.drain()
    assert [(reason, "strictly increasing" in detail) for reason, _, detail in notes] == [("refused by Neptune", True)]


def test_texts_with_steps_are_a_series_and_long_ones_are_kept_whole(bench: Bench) -> None:
    run = bench.run()
    backend, served = bench.open(run)
    records = [
        TextLogged(NOW, "sample", bench.file("1", "one"), step=1),
        TextLogged(NOW, "sample", bench.file("2", "ä" * 1001), step=2),
        TextLogged(NOW, "notes", bench.file("n", "hello")),
    ]
    backend.write_text(records)
    other, _ = bench.open(run)
    other.write_text(records)
    assert [(point.step, point.value[:3], len(point.value)) for point in served.series("text/sample")] == [
        (1, "one", 3),
        (2, "äää", 1000),
    ]
    assert served.content("trackhub/long_values/text/sample/step-00000002").decode() == "ä" * 1001
    assert served.content("text/notes") == b"hello"


# Files


def test_files_arrive_whole_under_their_names(bench: Bench) -> None:
    backend, served = bench.open()
    large = os.urandom(6_000_000)
    backend.write_artifacts(
        [
            ArtifactLogged(NOW, "checkpoints/last.pt", bench.file("last.pt", large)),
            ArtifactLogged(NOW, "empty", bench.file("empty", b"")),
            ArtifactLogged(NOW, "é 日.txt", bench.file("u.txt")),
            ArtifactLogged(NOW, "../up", bench.file("up")),
        ]
    )
    assert served.values("artifacts/") == {
        "checkpoints/last.pt": large,
        "empty": b"",
        "é 日.txt": b"content",
        "../up": b"content",
    }
    assert served.fields["artifacts/checkpoints/last.pt"].extension == "pt"
    assert bench.server.count["fileAtomMultipartUploadPart"] >= 1
    assert backend.notes.drain() == []


def test_each_file_of_a_directory_is_a_field(bench: Bench) -> None:
    backend, served = bench.open()
    for name in ("top.txt", "sub/deep/x.txt"):
        bench.file(f"tree/{name}")
    tree = StoredFile(str(bench.directory / "blobs" / "tree"), 14, is_directory=True)
    backend.write_artifacts([ArtifactLogged(NOW, "data/tree", tree)])
    assert served.values("artifacts/") == {"data/tree/top.txt": b"content", "data/tree/sub/deep/x.txt": b"content"}


def test_a_file_that_is_gone_is_rejected(bench: Bench) -> None:
    backend, _ = bench.open()
    with pytest.raises(RecordRejected, match=r"gone\.txt"):
        backend.write_artifacts([ArtifactLogged(NOW, "a", StoredFile("/nowhere/gone.txt", 1))])


def test_pages_figures_and_tables_are_files(bench: Bench) -> None:
    backend, served = bench.open()
    backend.write_html([HtmlLogged(NOW, "report", bench.file("r", "<p>")), HtmlLogged(NOW, "r", bench.file("s"), 7)])
    backend.write_figures([FigureLogged(NOW, "svg", bench.file("f.svg", media_type="image/svg+xml"), step=1)])
    table = {"columns": ["a", "b"], "data": [[1, 'x,"y"'], [None, [1.5, True]]]}
    content = bench.file("t.json", json.dumps(table), "application/json")
    backend.write_tables([TableLogged(NOW, "people", content, ["a", "b"], 2)])
    assert {path: served.fields[path].extension for path in served.paths() if not path.startswith("trackhub/")} == {
        "html/report": "html",
        "html/r/step-00000007": "html",
        "figures/svg/step-00000001": "svg",
        "tables/people": "csv",
    }
    rows = list(csv.reader(io.StringIO(served.content("tables/people").decode())))
    assert rows == [["a", "b"], ["1", 'x,"y"'], ["", "[1.5, true]"]]


def test_images_with_steps_are_series_shown_once(bench: Bench) -> None:
    run = bench.run()
    red, blue = bench.picture("red"), bench.picture("blue", "JPEG")
    first = [ImageLogged(NOW, "val", red, 8, 8, step=1), ImageLogged(NOW, "val", blue, 8, 8, step=2)]
    backend, served = bench.open(run)
    backend.write_images([*first, ImageLogged(NOW, "plain", red, 8, 8)])
    state = backend.checkpoint()
    backend.write_images(first)
    assert reasons(backend) == Counter({"step not increasing": 2})
    # Sent, but neither the answer nor the state were kept: the last state and the same batch again.
    later = [ImageLogged(NOW, "val", red, 8, 8, step=step) for step in (3, 4)]
    backend.write_images(later)
    other, _ = bench.open(run, state)
    other.write_images([*later, ImageLogged(NOW, "val", blue, 8, 8, step=5)])
    # All of it again, without any state.
    third, _ = bench.open(run)
    third.write_images([*first, *later, ImageLogged(NOW, "val", blue, 8, 8, step=5)])
    shown = served.series("images/val")
    assert [point.step for point in shown] == [1, 2, 3, 4, 5]
    contents = [base64.b64decode(point.value["data"]) for point in shown]
    assert contents == [Path(one.path).read_bytes() for one in (red, blue, red, red, blue)]
    assert served.content("images/plain") == Path(red.path).read_bytes()
    assert reasons(other) + reasons(third) == Counter()


# Limits of the server


def test_fields_beyond_the_limit_are_left_out_and_the_others_go_on(bench: Bench) -> None:
    bench.server.max_fields = 40
    backend, served = bench.open()
    record = MetricsLogged(NOW, 0, {f"m{i}": float(i) for i in range(60)})
    with pytest.raises(BackendUnavailable, match="40 fields"):
        backend.write_metrics([record])
    until_accepted(lambda: backend.write_metrics([record]))
    told = reasons(backend)
    kept = served.values("metrics/")
    assert len(kept) + told["too many fields"] == 60
    assert len(kept) > 5
    backend.write_metrics([MetricsLogged(NOW, 1, {"m0": 1.0, "m59": 1.0})])
    assert len(served.series("metrics/m0")) == 2
    backend.close("finished")
    assert served.value("trackhub/status") == "finished"


def test_a_batch_the_server_finds_bad_is_rejected_and_the_next_one_arrives(bench: Bench) -> None:
    backend, served = bench.open()
    bench.server.fail("status", status=413, only="executeOperations", times=1)
    with pytest.raises(RecordRejected, match="413"):
        backend.write_metrics(points(range(3)))
    until_accepted(lambda: backend.write_metrics(points(range(3))))
    assert len(served.series("metrics/loss")) == 3


# Failures


PROMPTLY_SECONDS = 20.0
"""The client alone would wait for a minute, or for ever; how busy this machine is must not matter."""
FAULTS: dict[str, dict[str, Any]] = {
    "busy": {"kind": "status", "status": 429, "headers": {"Retry-After": "2"}},
    "failing": {"kind": "status", "status": 500},
    "not there": {"kind": "status", "status": 503},
    "cut": {"kind": "drop"},
    "silent": {"kind": "hang"},
    "forbidden": {"kind": "status", "status": 403},
    "no credentials": {"kind": "status", "status": 401},
    "quota": {"kind": "status", "status": 402, "body": {"title": "storage is full"}},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_trouble_while_sending_keeps_the_data_until_it_is_over(bench: Bench, fault: str) -> None:
    backend, served = bench.open(timeout_seconds=4)
    backend.write_metrics(points(range(3)))
    bench.server.fail(only="executeOperations", **FAULTS[fault])
    started = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        backend.write_metrics(points(range(3, 6)))
    assert time.monotonic() - started < PROMPTLY_SECONDS
    assert SECRET not in str(caught.value)
    if fault == "busy":
        assert caught.value.retry_after_seconds == 2
    bench.server.heal()
    until_accepted(lambda: backend.write_metrics(points(range(3, 6))))
    assert [point.step for point in served.series("metrics/loss")] == list(range(6))
    assert reasons(backend) == Counter()


@pytest.mark.parametrize("fault", FAULTS)
def test_trouble_while_opening_is_told_in_time(bench: Bench, fault: str) -> None:
    bench.server.fail(only="createExperiment", **FAULTS[fault])
    run = bench.run()
    started = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        bench.backend(timeout_seconds=4).open(run, {})
    assert time.monotonic() - started < PROMPTLY_SECONDS
    if fault == "busy":
        assert caught.value.retry_after_seconds == 2
    bench.server.heal()
    bench.open(run)


def test_an_answer_that_is_lost_after_the_commit_makes_nothing_twice(bench: Bench) -> None:
    bench.server.strict_steps = False
    backend, served = bench.open()
    bench.server.fail("lose_answer", only="executeOperations", times=1)
    with pytest.raises(BackendUnavailable):
        backend.write_metrics(points(range(5)))
    until_accepted(lambda: backend.write_metrics(points(range(8))))
    assert [point.step for point in served.series("metrics/loss")] == list(range(8))
    red = bench.picture("red")
    images = [ImageLogged(NOW, "val", red, 8, 8, step=step) for step in range(4)]
    backend.write_images(images[:2])
    bench.server.fail("lose_answer", only="executeOperations", times=1)
    with pytest.raises(BackendUnavailable):
        backend.write_images(images[2:])
    until_accepted(lambda: backend.write_images(images[2:]))
    assert [point.step for point in served.series("images/val")] == list(range(4))
    assert reasons(backend) == Counter()


@pytest.mark.parametrize("kind", ["drop", "hang", "lose_answer"])
def test_an_upload_that_is_cut_short_is_made_again(bench: Bench, kind: str) -> None:
    backend, served = bench.open(timeout_seconds=4)
    record = ArtifactLogged(NOW, "a.bin", bench.file("a.bin", b"x" * 100_000))
    bench.server.fail(kind, only="fileAtomUpload", times=1)
    with pytest.raises(BackendUnavailable):
        backend.write_artifacts([record])
    bench.server.heal()
    until_accepted(lambda: backend.write_artifacts([record]))
    assert served.content("artifacts/a.bin") == b"x" * 100_000


@pytest.mark.parametrize("websocket", ["silent", "answering"])
def test_a_websocket_whose_close_is_not_answered_holds_nothing_up(bench: Bench, websocket: str) -> None:
    bench.server.websocket = websocket
    backend, served = bench.open()
    wait_until(lambda: bench.server.count["websocket"], "the websocket", 60)
    backend.write_metrics(points(range(3)))
    started = time.monotonic()
    backend.close("finished")
    backend.disconnect()
    assert time.monotonic() - started < PROMPTLY_SECONDS
    assert served.value("trackhub/status") == "finished"


def test_a_server_that_dies_and_comes_back_has_everything_once(bench: Bench) -> None:
    backend, served = bench.open()
    backend.write_metrics(points(range(3)))
    bench.server.stop()
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(BackendUnavailable):
            backend.write_metrics(points(range(3, 6)))
        assert time.monotonic() - started < PROMPTLY_SECONDS
    bench.server.start()
    until_accepted(lambda: backend.write_metrics(points(range(3, 6))))
    assert [point.step for point in served.series("metrics/loss")] == list(range(6))


def test_connections_made_anew_leave_no_sockets_behind(bench: Bench) -> None:
    backend, _ = bench.open()
    port = urlsplit(bench.server.url).port

    def sockets() -> int:
        """That somebody holds open, with the server at the other end."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(line[2].endswith(f":{port:04X}") and line[9] != "0" for line in lines)

    held = []
    # Whoever counts on the collector holds a few more after each outage.
    gc.disable()
    try:
        for begin in range(3, 27, 3):
            bench.server.stop()
            with pytest.raises(BackendUnavailable):
                backend.write_metrics(points(range(begin, begin + 3)))
            bench.server.start()
            until_accepted(lambda begin=begin: backend.write_metrics(points(range(begin, begin + 3))))
            looks = []
            for _ in range(10):
                looks.append(sockets())
                time.sleep(0.05)
            # Without those that are only there for a moment.
            held.append(min(looks))
    finally:
        gc.enable()
    assert min(held[4:]) <= max(held[:4]), held


def test_letting_go_of_a_dead_server_takes_no_time(bench: Bench) -> None:
    backend, _ = bench.open()
    bench.server.stop()
    started = time.monotonic()
    with pytest.raises(BackendUnavailable):
        backend.close("finished")
    backend.disconnect()
    assert time.monotonic() - started < PROMPTLY_SECONDS


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ({"api_address": "http://nowhere.invalid", "api_key": SECRET}, "host name"),
        ({"api_address": "http://127.0.0.1:1", "api_key": SECRET}, "cannot be reached"),
    ],
)
def test_an_address_where_nobody_is_keeps_the_data_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: Any, told: str
) -> None:
    answer_for_unknown_hosts(monkeypatch)
    with neptune_server() as server:
        text = base64.b64encode(json.dumps(token).encode()).decode()
        bench = Bench(server, tmp_path)
        with pytest.raises(BackendUnavailable) as caught:
            bench.backend(api_token=text, timeout_seconds=5).open(bench.run(), {})
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)
    assert text not in str(caught.value)


def test_a_project_that_is_not_there_is_told(bench: Bench) -> None:
    with pytest.raises(BackendUnavailable, match="no such project"):
        bench.backend(project="people/nothing").open(bench.run(), {})


# Offline


def operations(run: RunInfo) -> list[dict[str, Any]]:
    """All operations on disk, of the one directory there is."""
    (directory,) = (run.directory / ".neptune" / "offline").iterdir()
    logs = sorted(directory.glob("data-*.log"), key=lambda path: int(path.stem.partition("-")[2]))
    return [json.loads(line)["obj"] for path in logs for line in path.read_text().splitlines()]


def steps_on_disk(run: RunInfo, path: str) -> list[float]:
    return [
        entry["step"]
        for operation in operations(run)
        if operation["type"] == "LogFloats" and "/".join(operation["path"]) == path
        for entry in operation["values"]
    ]


def neptune_sync(server: NeptuneServer, run_directory: Path) -> None:
    """What the command `neptune sync` does, in a process of its own."""
    code = (
        "import warnings; warnings.simplefilter('ignore'); import sys; from neptune.cli.commands import sync; "
        "sync(['--path', sys.argv[1], '--project', sys.argv[2], '--offline-only'])"
    )
    environment = {
        **os.environ,
        "NEPTUNE_API_TOKEN": server.api_token,
        "OAUTHLIB_INSECURE_TRANSPORT": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-c", code, str(run_directory), server.project]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_offline_run_says_where_it_is_and_which_run_it_is(bench: Bench) -> None:
    run = bench.run(parent_remote_id="parent")
    opened = bench.backend(mode="offline").open(run, {})
    (directory,) = (run.directory / ".neptune" / "offline").iterdir()
    assert opened.remote_id == run.id
    assert opened.link == (
        f"{directory} (send with: neptune sync --path {run.directory} --project people/digits --offline-only)"
    )
    sidecar = json.loads((run.directory / ".neptune" / "trackhub.json").read_text())
    assert sidecar == {
        "run_id": run.id,
        "custom_run_id": run.id,
        "name": run.name,
        "project": "people/digits",
        "parent": "parent",
        "directory": directory.name,
    }
    assert bench.server.count == Counter()


def test_an_offline_run_is_sent_by_neptunes_own_command(bench: Bench) -> None:
    run = bench.run(name="on the train")
    backend = bench.backend(mode="offline")
    backend.open(run, {})
    source = bench.file("model.pt", os.urandom(100_000))
    red = bench.picture("red")
    backend.write_params([ParamsLogged(NOW, {"lr": 0.1, "a": 1, "a/b": "x"})])
    backend.write_tags([TagsSet(NOW, {"team": "vision"})])
    for _ in range(2):
        backend.write_metrics(points(range(250)))
    content = Path(source.path).read_bytes()
    backend.write_artifacts([ArtifactLogged(NOW, "deep/model.pt", source)])
    backend.write_images([ImageLogged(NOW, "val", red, 8, 8, step=1)])
    backend.write_text([TextLogged(NOW, "note", bench.file("t", "hello"), step=1)])
    # Copied at the call.
    Path(source.path).unlink()
    Path(red.path).unlink()
    backend.close("failed")
    backend.disconnect()
    neptune_sync(bench.server, run.directory)
    served = bench.server.run()
    assert served.values("parameters/") == {"lr": 0.1, "a": 1, "a_x2f_b": "x"}
    assert served.values("tags/") == {"team": "vision"}
    assert served.series("metrics/loss") == [(step, step / 7, MS + 1000 * step) for step in range(250)]
    assert served.content("artifacts/deep/model.pt") == content
    assert [point.step for point in served.series("images/val")] == [1]
    assert [point.value for point in served.series("text/note")] == ["hello"]
    assert (served.value("sys/name"), served.value("sys/failed")) == ("on the train", True)
    assert (served.value("trackhub/run_id"), served.value("trackhub/status")) == (run.id, "failed")


def test_an_offline_run_that_goes_on_is_written_anew_into_one_directory(bench: Bench) -> None:
    run = bench.run()
    first = bench.backend(mode="offline")
    state = first.open(run, {}).state
    first.write_metrics(points(range(5)))
    again = bench.backend(mode="offline")
    with pytest.raises(StateLost):
        again.open(run, state)
    again.open(run, {})
    again.write_metrics(points(range(8)))
    assert steps_on_disk(run, "metrics/loss") == list(range(8))


def test_what_comes_after_a_directory_was_sent_is_not_sent_twice(bench: Bench) -> None:
    run = bench.run()
    first = bench.backend(mode="offline")
    state = first.open(run, {}).state
    first.write_metrics(points(range(5)))
    first.disconnect()
    neptune_sync(bench.server, run.directory)
    again = bench.backend(mode="offline")
    again.open(run, state)
    again.write_metrics(points(range(5, 8)))
    assert steps_on_disk(run, "metrics/loss") == [5, 6, 7]
    assert reasons(again) == Counter({"continued": 1})


def test_a_disk_that_refuses_an_offline_run_has_it_written_anew(bench: Bench) -> None:
    run = bench.run()
    backend = bench.backend(mode="offline")
    backend.open(run, {})
    backend.write_metrics(points(range(3)))
    (directory,) = (run.directory / ".neptune" / "offline").iterdir()
    # Uploads are copied into a folder; with a file in its place that is an error of the disk.
    (directory / "upload_path").rmdir()
    (directory / "upload_path").write_text("")
    with pytest.raises(BackendUnavailable, match="NotADirectoryError"):
        backend.write_artifacts([ArtifactLogged(NOW, "a", bench.file("a"))])
    with pytest.raises(StateLost):
        backend.write_artifacts([ArtifactLogged(NOW, "a", bench.file("a"))])


# Whole processes


@pytest.fixture
def served_stage(stage: Stage, server: NeptuneServer) -> Stage:
    for name in [name for name in stage.environment if name.startswith("NEPTUNE_")]:
        del stage.environment[name]
    stage.environment |= {
        "TRACKHUB_BACKENDS": "neptune",
        "TRACKHUB_NEPTUNE_TIMEOUT_SECONDS": "5",
        "NEPTUNE_PROJECT": server.project,
        "NEPTUNE_API_TOKEN": server.api_token,
    }
    return stage


TRAINING = """
    import sys, trackhub
    with trackhub.init(project="digits", name="sgd", params={"lr": 0.1}, finish_timeout=float(sys.argv[1])) as tracker:
        print("ready", flush=True)
        for step in range(int(sys.argv[2])):
            tracker.log_metrics({"loss": step / 7, "accuracy": step / 9}, step=step)
            if step % 50 == 0:
                print(step, flush=True)
                sys.stdin.readline()
        tracker.log_text("note", "the end")
"""


def train(stage: Stage, steps: int, finish_timeout: float = 30) -> Any:
    return stage.start(TRAINING.replace("sys.argv[1]", str(finish_timeout)).replace("sys.argv[2]", str(steps)))


def go_on(process: Any) -> None:
    """Let it train to its end."""
    process.stdin.write("\n" * 1000)
    process.stdin.close()
    process.stdout.read()
    process.wait(60)


def is_whole(served: ServedRun, steps: int) -> bool:
    for key, part in (("loss", 7), ("accuracy", 9)):
        found = [point[:2] for point in served.series(f"metrics/{key}")]
        assert found == [(step, step / part) for step in range(steps)], found[:5]
    return served.value("trackhub/status") == "finished" and served.content("text/note") == b"the end"


def test_a_run_arrives_and_its_token_is_nowhere_else(served_stage: Stage, server: NeptuneServer) -> None:
    training = train(served_stage, 500)
    go_on(training)
    served_stage.wait_closed("neptune")
    # Until then it tidies up.
    wait_until(lambda: not delivery_processes(training.pid), "the delivery process to end")
    assert is_whole(server.run(), 500)
    run = served_stage.run_directory()
    assert run.cursor("neptune").report.notes == {}
    assert server.run().custom_id == run.path.name
    for path in served_stage.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert server.api_token.encode() not in content, path
    assert not (served_stage.path / ".neptune").exists()


def test_delivery_processes_that_are_killed_leave_everything_once(served_stage: Stage, server: NeptuneServer) -> None:
    server.strict_steps = False
    process = train(served_stage, 1000)
    said(process)
    killed: set[int] = set()
    for _ in range(20):
        said(process)
        count = server.count["executeOperations"]
        tell(process)
        wait_until(lambda: server.runs, "the run to be created")
        if len(killed) < 4:
            wait_until(lambda before=count: server.count["executeOperations"] > before, "something to arrive")
            for pid in delivery_processes(process.pid, "neptune").values():
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    go_on(process)
    served_stage.wait_closed("neptune")
    assert len(killed) >= 2
    assert is_whole(server.run(), 1000)


def test_a_server_that_is_down_at_the_start_gets_everything_later(served_stage: Stage, server: NeptuneServer) -> None:
    server.stop()
    go_on(train(served_stage, 100, finish_timeout=1))
    run = served_stage.run_directory()
    wait_until(lambda: run.cursor("neptune").report.error, "the trouble to be told")
    assert "cannot be reached" in str(run.cursor("neptune").report.error)
    server.start()
    served_stage.wait_closed("neptune")
    assert is_whole(server.run(), 100)


def test_a_server_that_goes_away_meanwhile_gets_everything_later(served_stage: Stage, server: NeptuneServer) -> None:
    process = train(served_stage, 400)
    said(process)
    for stop in range(8):
        said(process)
        if stop == 3:
            wait_until(lambda: server.runs and "metrics/loss" in server.run().fields, "the first points to arrive")
            server.stop()
        if stop == 5:
            wait_until(lambda: served_stage.run_directory().cursor("neptune").report.error, "the trouble to be told")
            server.start()
        tell(process)
    go_on(process)
    served_stage.wait_closed("neptune")
    assert is_whole(server.run(), 400)


def test_an_offline_run_whose_delivery_is_killed_is_on_disk_once(served_stage: Stage, server: NeptuneServer) -> None:
    served_stage.environment["NEPTUNE_MODE"] = "offline"
    process = train(served_stage, 400)
    said(process)
    seen: set[str] = set()

    def begun() -> str | None:
        """A directory with points in it, of a delivery process that was not killed yet."""
        if not delivery_processes(process.pid, "neptune"):
            return None
        for log in served_stage.run_directory().path.glob(".neptune/offline/*/data-1.log"):
            if log.parent.name not in seen and "LogFloats" in log.read_text():
                return log.parent.name
        return None

    for stop in range(8):
        said(process)
        if stop in (2, 5):
            seen.add(wait_until(begun, "points on disk"))
            (pid,) = delivery_processes(process.pid, "neptune").values()
            os.kill(pid, signal.SIGKILL)
        tell(process)
    go_on(process)
    served_stage.wait_closed("neptune")
    neptune_sync(server, served_stage.run_directory().path)
    assert is_whole(server.run(), 400)


@pytest.mark.parametrize("kind", ["stop", "abort"])
def test_a_signal_from_the_app_ends_a_connection_and_nothing_else(
    kind: str, served_stage: Stage, server: NeptuneServer
) -> None:
    server.websocket = "answering"
    process = train(served_stage, 400)
    said(process)
    for stop in range(8):
        said(process)
        if stop == 3:
            wait_until(lambda: server.websockets and "metrics/loss" in server.run().fields, "a websocket")
            server.signal(kind)
            wait_until(lambda: not server.websockets, "the client to obey")
        tell(process)
    go_on(process)
    served_stage.wait_closed("neptune")
    assert server.count["websocket"] >= 2
    assert is_whole(server.run(), 400)


def test_a_child_run_is_delivered_after_its_parent(served_stage: Stage, server: NeptuneServer) -> None:
    served_stage.run(
        """
        import trackhub
        with trackhub.init(project="digits", name="search") as tracker:
            with tracker.child("trial 1", params={"lr": 0.5}) as child:
                child.log_metrics({"loss": 1.0})
                child.log_confusion_matrix("cm", ["a", "b"], [[1, 2], [3, 4]])
        """
    )
    for run in served_stage.runs():
        served_stage.wait_closed("neptune", run=run)
    parent = server.run(name="search")
    child = server.run(name="trial 1")
    assert child.value("trackhub/parent") == parent.short_id
    assert child.values("parameters/") == {"lr": 0.5}
    assert {path.partition("/")[0] for path in child.paths()} >= {"tables", "figures"}


# Another client


def test_another_client_of_the_same_api_delivers_as_well(bench: Bench) -> None:
    pytest.importorskip("minfx")
    run = bench.run()
    code = """
import json, sys
from pathlib import Path
from trackhub.backend import RunInfo
from trackhub.backends.neptune import NeptuneBackend, NeptuneOptions
from trackhub.records import ArtifactLogged, MetricsLogged, ParamsLogged, StoredFile
project, token, directory = sys.argv[1:]
run = RunInfo("minfx-run", "sgd", "digits", 1, Path(directory))
for last in (5, 8):
    backend = NeptuneBackend(NeptuneOptions(project=project, api_token=token, client="minfx"))
    backend.open(run, {})
    backend.write_params([ParamsLogged(1, {"lr": 0.1})])
    backend.write_metrics([MetricsLogged(step * 10**9, step, {"loss": 1.0}) for step in range(last)])
    backend.write_artifacts([ArtifactLogged(1, "code", StoredFile(__import__("os").__file__, 1))])
    backend.close("finished")
    backend.disconnect()
print([note for note in backend.notes.drain()])
"""
    command = [sys.executable, "-W", "ignore", "-c", code, bench.server.project, bench.server.api_token]
    done = subprocess.run([*command, str(run.directory)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    served = bench.server.run()
    assert served.value("parameters/lr") == 0.1
    assert [point.step for point in served.series("metrics/loss")] == list(range(8))
