"""The MLflow backend against real MLflow: an SQLite store, and a real `mlflow server`."""

from __future__ import annotations

import contextlib
import json
import math
import random
import string
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow_server import answering, black_hole, running_server
from ports import answer_for_unknown_hosts, free_port

from trackhub.backend import OpenedRun, RunInfo
from trackhub.backends.mlflow import MlflowBackend, MlflowOptions
from trackhub.backends.mlflow.names import (
    from_mlflow_key,
    is_shortened,
    to_artifact_path,
    to_image_key,
    to_mlflow_key,
    to_model_name,
)
from trackhub.errors import BackendUnavailable, MissingPackageError, RecordRejected, SettingsError
from trackhub.records import (
    ArtifactLogged,
    FigureLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)

# MLflow, SQLAlchemy and what they import warn about each other; none of it is ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)

patient = settings(max_examples=200, deadline=None)

NOW = 1_790_000_000_123_456_789
TEXT = st.text(st.characters(codec="utf-8"), max_size=40) | st.text(
    st.sampled_from("_xh0123456789abcdef/.= :"), max_size=40
)


class Bench:
    """A place where MLflow runs are written and read back."""

    def __init__(self, uri: str, directory: Path) -> None:
        from mlflow import MlflowClient

        self.uri = uri
        self.directory = directory
        self._client: Callable[[], Any] = lambda: MlflowClient(uri)
        self._opened: list[MlflowBackend] = []

    @property
    def client(self) -> Any:
        return self._client()

    def run(self, **changes: Any) -> RunInfo:
        identity = "".join(random.choices(string.ascii_lowercase, k=12))
        known = {"id": identity, "name": f"run {identity}", "project": f"project {identity}", "created_ns": NOW}
        return RunInfo(**{**known, "directory": self.directory, "working_directory": self.directory, **changes})

    def backend(self, **options: Any) -> MlflowBackend:
        backend = MlflowBackend(MlflowOptions(**{"tracking_uri": self.uri, "request_timeout_seconds": 10, **options}))
        self._opened.append(backend)
        return backend

    def open(self, run: RunInfo | None = None, **options: Any) -> tuple[MlflowBackend, str]:
        backend = self.backend(**options)
        remote_id = backend.open(run or self.run(), {}).remote_id
        assert remote_id is not None
        return backend, remote_id

    def file(self, name: str, content: bytes | str = b"content", media_type: str = "text/plain") -> StoredFile:
        path = self.directory / "blobs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return StoredFile(f"blobs/{name}", path.stat().st_size, media_type=media_type)

    def artifacts(self, remote_id: str, folder: str | None = None) -> Iterator[str]:
        for entry in self.client.list_artifacts(remote_id, folder):
            if entry.is_dir:
                yield from self.artifacts(remote_id, entry.path)
            else:
                yield entry.path

    def read(self, remote_id: str, path: str) -> bytes:
        return Path(self.client.download_artifacts(remote_id, path, tempfile.mkdtemp(dir=self.directory))).read_bytes()

    def close(self) -> None:
        for backend in self._opened:
            backend.disconnect()


@pytest.fixture(scope="module")
def written_locally(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a database that the backend made, in a process that works elsewhere."""
    directory = tmp_path_factory.mktemp("server")
    (directory / "elsewhere").mkdir()
    with contextlib.chdir(directory / "elsewhere"):
        bench = Bench(f"sqlite:///{directory}/server.db", directory)
        for experiment in ("local", "Default"):
            backend, _ = bench.open(bench.run(id=f"local{experiment}"), experiment=experiment)
            backend.write_artifacts([ArtifactLogged(NOW, "a/b.txt", bench.file("f"))])
        bench.close()
    return directory


@pytest.fixture(scope="module")
def served(written_locally: Path) -> Iterator[str]:
    with running_server(written_locally) as url:
        yield url


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/mlflow.db"


@pytest.fixture(params=["sqlite", "server"])
def bench(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(database if request.param == "sqlite" else request.getfixturevalue("served"), tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def local(database: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(database, tmp_path)
    yield bench
    bench.close()


def reasons(backend: MlflowBackend) -> list[tuple[str, str]]:
    return [(reason, subject) for reason, subject, _ in backend.notes.drain()]


# Names


@patient
@given(TEXT)
@example("_x3d_=")
@example("=x3d_")
@example("_x3=")
@example("_x_")
@example("_xh0123456789abcdef_")
@example("../..//a/./")
def test_a_key_can_be_read_back(key: str) -> None:
    mapped = to_mlflow_key(key)
    assert is_shortened(mapped) or from_mlflow_key(mapped) == key


@patient
@given(TEXT.map(lambda text: text * 9))
def test_mlflow_takes_every_mapped_key_and_path(name: str) -> None:
    from mlflow.utils.uri import validate_path_is_safe
    from mlflow.utils.validation import _validate_metric, _validate_tag

    _validate_metric(to_mlflow_key(name), 1.0, 0, 0)
    _validate_tag(to_mlflow_key(name), "")
    path = to_artifact_path(name)
    assert validate_path_is_safe(path) == path
    assert all(0 < len(part.encode()) <= 255 for part in path.split("/"))
    assert len(to_image_key(name)) <= 150
    assert not {"/", ":"} & set(to_model_name(name))


@patient
@given(st.lists(TEXT.map(lambda text: text * 9), unique=True, min_size=2, max_size=6))
def test_no_two_names_meet(names: list[str]) -> None:
    for mapping in (to_mlflow_key, to_artifact_path, to_image_key, to_model_name):
        assert len({mapping(name) for name in names}) == len(names)


@patient
@given(
    st.text(st.sampled_from("abz09_-. :é"), min_size=1, max_size=250).filter(
        lambda key: "_x" not in key and key[0] != "."
    )
)
def test_a_legal_key_stays_as_it_is(key: str) -> None:
    assert to_mlflow_key(key) == key


def test_a_shortened_key_cannot_be_forged() -> None:
    shortened = to_mlflow_key("k" * 300)
    assert len(shortened) == 250
    assert to_mlflow_key(shortened) != shortened
    assert to_mlflow_key("_x3d" + "k" * 300) != to_mlflow_key(from_mlflow_key(to_mlflow_key("_x3d" + "k" * 300)))


# Options


@pytest.mark.parametrize(
    ("given_uri", "resolved"),
    [
        (None, "sqlite:////data/here/mlflow.db"),
        ("sqlite:///a/../b.db?timeout=3", "sqlite:////data/here/b.db?timeout=3"),
        ("sqlite+pysqlite:///b.db", "sqlite+pysqlite:////data/here/b.db"),
        ("sqlite:////abs/b.db", "sqlite:////abs/b.db"),
        ("http://host:5000/prefix", "http://host:5000/prefix"),
        ("postgresql+psycopg2://u:p@host/db", "postgresql+psycopg2://u:p@host/db"),
        ("databricks", "databricks"),
    ],
)
def test_a_relative_sqlite_file_is_made_absolute(given_uri: str | None, resolved: str) -> None:
    options = MlflowBackend.resolve(MlflowOptions(tracking_uri=given_uri), Path("/data/here"))
    assert options.tracking_uri == resolved
    assert MlflowBackend.resolve(options, Path("/elsewhere")) == options


@pytest.mark.parametrize(
    "uri", ["./mlruns", "/abs/mlruns", "file:///abs/mlruns", "ftp://host", "sqlite://", "sqlite:///:memory:"]
)
def test_a_uri_that_mlflow_cannot_serve_is_refused_with_what_to_write(uri: str) -> None:
    with pytest.raises(SettingsError, match="sqlite://"):
        MlflowBackend.resolve(MlflowOptions(tracking_uri=uri), Path("/work"))


def test_a_refused_uri_is_shown_without_its_password() -> None:
    with pytest.raises(SettingsError) as caught:
        MlflowBackend.check(MlflowOptions(tracking_uri="oracle://me:hunter2@host/db"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", [None, "sqlite:///b.db", "http://host:5000", "https://me:secret@host/prefix"])
def test_what_works_with_what_is_installed_is_accepted(uri: str | None) -> None:
    MlflowBackend.check(MlflowOptions(tracking_uri=uri))


def test_a_missing_database_driver_is_told_with_its_pip_line() -> None:
    with pytest.raises(MissingPackageError, match="pip install mysql_nonesuch") as caught:
        MlflowBackend.check(MlflowOptions(tracking_uri="mysql+mysql_nonesuch://me:hunter2@host/db"))
    assert "hunter2" not in str(caught.value)


# Runs


def test_a_run_is_created_once(bench: Bench) -> None:
    run = bench.run()
    first, first_id = bench.open(run)
    _, second_id = bench.open(run)
    third = bench.backend().open(run, {"run_id": first_id})
    assert {second_id, third.remote_id} == {first_id}
    stored = bench.client.get_run(first_id)
    assert (stored.info.run_name, stored.info.start_time, stored.info.status) == (run.name, NOW // 1_000_000, "RUNNING")
    assert stored.data.tags["trackhub.run_id"] == run.id
    assert stored.data.tags["trackhub.version"]
    assert bench.client.get_experiment(stored.info.experiment_id).name == run.project
    first.close("failed")
    assert bench.client.get_run(first_id).info.status == "FAILED"


@pytest.mark.parametrize(("status", "shown"), [("finished", "FINISHED"), ("failed", "FAILED"), ("killed", "KILLED")])
def test_a_run_ends_when_its_last_record_was_written(local: Bench, status: Any, shown: str) -> None:
    backend, remote_id = local.open()
    backend.write_metrics([MetricsLogged(NOW + 60_000_000_000, 0, {"a": 1.0})])
    backend.close(status)
    info = local.client.get_run(remote_id).info
    assert (info.status, info.end_time) == (shown, NOW // 1_000_000 + 60_000)


@pytest.mark.parametrize("deliveries", [2, 4])
def test_deliveries_that_begin_together_settle_on_one_run(deliveries: int, bench: Bench) -> None:
    """As of two directories with one run's id, on two machines that were started at the same moment."""
    for _ in range(5):
        run = bench.run()
        bench.client.create_experiment(run.project)
        backends = [bench.backend() for _ in range(deliveries)]
        start = threading.Barrier(deliveries)

        def begin(backend: MlflowBackend, run: RunInfo = run, start: threading.Barrier = start) -> str | None:
            start.wait()
            return backend.open(run, {}).remote_id

        with ThreadPoolExecutor(deliveries) as pool:
            used = set(pool.map(begin, backends))
        experiment = bench.client.get_experiment_by_name(run.project)
        assert used == {one.info.run_id for one in bench.client.search_runs([experiment.experiment_id])}
        assert len(used) == 1


def test_a_run_that_another_machine_writes_to_is_left_alone(bench: Bench) -> None:
    run = bench.run()
    backend, remote_id = bench.open(run)
    experiment_id = bench.client.get_run(remote_id).info.experiment_id
    written = {}
    for what in ("param", "metric", "tag", "artifact", "table", "nothing"):
        made = bench.client.create_run(experiment_id, tags={"trackhub.run_id": run.id, "mlflow.user": "them"})
        written[what] = made.info.run_id
    bench.client.log_param(written["param"], "a", 1)
    bench.client.log_metric(written["metric"], "a", 1)
    bench.client.set_tag(written["tag"], "a", "b")
    bench.client.set_tag(written["table"], "mlflow.loggedArtifacts", "[]")
    bench.client.log_text(written["artifact"], "content", "a.txt")
    backend.close("finished")
    left = {one.info.run_id for one in bench.client.search_runs([experiment_id])}
    assert left == {remote_id, *written.values()} - {written["nothing"]}
    told = {subject: reason for reason, subject in reasons(backend)}
    assert told == {at: "deleted" if what == "nothing" else "a second run" for what, at in written.items()}


def test_a_second_run_that_was_deleted_holds_nothing_up(bench: Bench) -> None:
    run = bench.run()
    backend, remote_id = bench.open(run)
    experiment_id = bench.client.get_run(remote_id).info.experiment_id
    second = bench.client.create_run(experiment_id, 1, {"trackhub.run_id": run.id})
    backend.close("finished")
    assert bench.client.get_run(second.info.run_id).info.lifecycle_stage == "deleted"
    _, found = bench.open(run)
    assert found == remote_id
    elsewhere = bench.run()
    late = bench.client.create_run(experiment_id, 1, {"trackhub.run_id": elsewhere.id, "trackhub.unused": "yes"})
    bench.client.delete_run(late.info.run_id)
    _, fresh = bench.open(elsewhere, experiment_id=experiment_id)
    assert fresh != late.info.run_id


def test_what_mlflow_has_taken_is_not_sent_again_after_a_failure_and_requests_get_smaller(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each metric that is stored already it may look through the whole run, which then takes too long for ever."""
    backend, remote_id = bench.open()
    send, slow = backend._client.log_batch, {"after": 2}
    sizes: list[int] = []
    taken: list[tuple[str, int]] = []

    def log_batch(run_id: str, metrics: list[Any], synchronous: bool) -> None:
        sizes.append(len(metrics))
        if slow["after"] == 0:
            # It does what it was asked for, but the answer is lost.
            send(run_id, metrics=metrics, synchronous=synchronous)
            raise requests.exceptions.ReadTimeout("read timed out")
        slow["after"] -= 1
        send(run_id, metrics=metrics, synchronous=synchronous)
        taken.extend((metric.key, metric.step) for metric in metrics)

    monkeypatch.setattr(backend._client, "log_batch", log_batch)
    points = [
        MetricsLogged(NOW + step * 10**9, step, {"a": step, "b": math.inf if step == 3 else -step, "c": math.nan})
        for step in range(1000)
    ]
    for length in (900, 950, 1000):
        with pytest.raises(BackendUnavailable, match="in time"):
            backend.write_metrics(points[:length])
    assert sizes == [1000, 1000, 700, 500, 250]
    slow["after"] = 10**9
    backend.write_metrics(points)
    assert sizes[5:] == [125, 250, 500, 127]
    assert len(taken) - len(set(taken)) <= 2, "only the point that a request had ended in is sent again"
    assert list(reasons(backend)) == [("infinite", "b")]
    for key in "abc":
        history = bench.client.get_metric_history(remote_id, key)
        assert [metric.step for metric in history] == list(range(1000))


def test_points_that_are_others_than_before_the_failure_are_all_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, remote_id = bench.open()
    send = backend._client.log_batch
    points = [MetricsLogged(NOW + step * 10**9, step, {"a": step}) for step in range(1500)]

    def fails_at_the_second(*arguments: Any, metrics: list[Any], **more: Any) -> None:
        if metrics[0].step:
            raise requests.exceptions.ReadTimeout("read timed out")
        send(*arguments, metrics=metrics, **more)

    monkeypatch.setattr(backend._client, "log_batch", fails_at_the_second)
    with pytest.raises(BackendUnavailable):
        backend.write_metrics(points)
    monkeypatch.setattr(backend._client, "log_batch", send)
    others = [points[0], *(MetricsLogged(one.time_ns, one.step, {"a": 0.5}) for one in points[1:3])]
    backend.write_metrics(others)
    backend.write_metrics(points)
    history = bench.client.get_metric_history(remote_id, "a")
    assert sorted((metric.step, metric.value) for metric in history) == sorted(
        [*((step, float(step)) for step in range(1500)), (1, 0.5), (2, 0.5)]
    )


def test_at_its_end_nobody_asks_for_the_metrics_of_a_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would all come at once, which takes a kilobyte of memory each."""
    backend, remote_id = bench.open()
    backend.write_metrics([MetricsLogged(NOW, 1, {"loss": 1.0})])
    client, seen = backend._client, []
    search, get = client.search_runs, client.get_run
    monkeypatch.setattr(client, "search_runs", lambda *arguments: seen.extend(found := search(*arguments)) or found)
    monkeypatch.setattr(client, "get_run", lambda name: seen.append(found := get(name)) or found)
    backend.close("finished")
    assert [run.info.run_id for run in seen if run.data.metrics] == []
    assert bench.client.get_run(remote_id).data.metrics == {"loss": 1.0}


def test_a_run_whose_maker_died_before_it_was_claimed_is_used(local: Bench) -> None:
    run = local.run()
    experiment_id = local.client.create_experiment(run.project)
    made = [local.client.create_run(experiment_id, NOW + at, {"trackhub.run_id": run.id}) for at in (1, 0)]
    _, found = local.open(run)
    assert found == made[1].info.run_id


def test_of_a_deleted_run_and_an_active_one_the_active_one_is_used(bench: Bench) -> None:
    run = bench.run()
    _, remote_id = bench.open(run)
    experiment_id = bench.client.get_run(remote_id).info.experiment_id
    later = bench.client.create_run(experiment_id, NOW // 1_000_000 + 1, {"trackhub.run_id": run.id})
    bench.client.delete_run(later.info.run_id)
    _, found = bench.open(run)
    assert found == remote_id


def test_a_run_that_goes_on_is_running_again(bench: Bench) -> None:
    run = bench.run()
    backend, remote_id = bench.open(run)
    backend.close("killed")
    bench.open(run)
    assert bench.client.get_run(remote_id).info.status == "RUNNING"


def test_nothing_is_printed(bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not bench.uri.startswith("http"):
        bench.uri = f"sqlite:///{tmp_path}/new.db"
    backend, _ = bench.open()
    backend.write_models([ModelLogged(NOW, "m", bench.file("m"), register_as=f"quiet {time.time_ns()}")])
    backend.close("finished")
    assert capfd.readouterr() == ("", "")


def test_a_joined_run_keeps_its_status_and_name(bench: Bench) -> None:
    client = bench.client
    theirs = client.create_run(client.create_experiment(f"theirs {time.time_ns()}"), run_name="theirs")
    backend, remote_id = bench.open(run_id=theirs.info.run_id)
    backend.write_params([ParamsLogged(NOW, {"a": 1})])
    backend.close("finished")
    stored = client.get_run(remote_id)
    assert remote_id == theirs.info.run_id
    assert (stored.info.status, stored.info.run_name, stored.data.params) == ("RUNNING", "theirs", {"a": "1"})

    _, child_id = bench.open(bench.run(parent_remote_id=remote_id), run_id=theirs.info.run_id)
    child = client.get_run(child_id)
    assert child_id != remote_id
    assert child.data.tags["mlflow.parentRunId"] == remote_id
    assert child.info.experiment_id == theirs.info.experiment_id


def test_the_experiment_may_be_chosen_by_name_or_id(local: Bench) -> None:
    name = f"chosen {time.time_ns()}"
    _, by_name = local.open(experiment=name)
    experiment_id = local.client.get_run(by_name).info.experiment_id
    _, by_id = local.open(experiment_id=experiment_id)
    assert local.client.get_run(by_id).info.experiment_id == experiment_id
    assert local.client.get_experiment(experiment_id).name == name


def test_a_deleted_experiment_or_run_keeps_the_data_waiting(bench: Bench) -> None:
    run = bench.run()
    backend, remote_id = bench.open(run)
    bench.client.delete_run(remote_id)
    with pytest.raises(BackendUnavailable, match="restore"):
        backend.write_metrics([MetricsLogged(NOW, 0, {"a": 1.0})])
    with pytest.raises(BackendUnavailable, match=f"mlflow runs restore --run-id {remote_id}"):
        bench.open(run)
    bench.client.delete_experiment(bench.client.get_run(remote_id).info.experiment_id)
    with pytest.raises(BackendUnavailable, match="mlflow experiments restore"):
        bench.open(run)


def test_an_experiment_created_meanwhile_is_used(local: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    run = local.run()
    theirs = local.client.create_experiment(run.project)
    answers = iter([None])
    real = MlflowClient.get_experiment_by_name
    # The moment between looking and creating cannot be hit by timing.
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda self, name: next(answers, real(self, name)))
    _, remote_id = local.open(run)
    assert local.client.get_run(remote_id).info.experiment_id == theirs


# Metrics, params, tags


def test_metrics_come_back_as_they_were_logged(bench: Bench) -> None:
    backend, remote_id = bench.open()
    points = [MetricsLogged(NOW + i * 1_000_000, i - 3, {"loss": i / 7, "odd=key/": math.nan}) for i in range(700)]
    backend.write_metrics(points)
    backend.write_metrics(points)
    assert reasons(backend) == [("renamed", "odd=key/")]
    history = bench.client.get_metric_history(remote_id, "loss")
    assert sorted((m.step, m.value, m.timestamp) for m in history) == [
        (p.step, p.values["loss"], p.time_ns // 1_000_000) for p in points
    ]
    odd = bench.client.get_metric_history(remote_id, to_mlflow_key("odd=key/"))
    assert len(odd) == 700
    assert all(math.isnan(m.value) for m in odd)


def test_infinities_are_counted(bench: Bench) -> None:
    backend, remote_id = bench.open()
    backend.write_metrics([MetricsLogged(NOW, 2**40, {"up": math.inf, "down": -math.inf})])
    assert reasons(backend) == [("infinite", "up"), ("infinite", "down")]
    metrics = bench.client.get_run(remote_id).data.metrics
    assert metrics == {"up": pytest.approx(1.797e308, rel=1e-3), "down": pytest.approx(-1.797e308, rel=1e-3)}


def test_more_than_a_request_may_hold_is_split(bench: Bench) -> None:
    backend, remote_id = bench.open()
    backend.write_metrics([MetricsLogged(NOW, 0, {f"{'日' * 240} {i}": float(i) for i in range(1001)})])
    backend.write_params([ParamsLogged(NOW, {f"p{i}": "日" * 6000 for i in range(230)})])
    backend.write_tags([TagsSet(NOW, {f"t{i}": "\x01" * 7000 for i in range(230)})])
    stored = bench.client.get_run(remote_id).data
    assert (len(stored.metrics), len(stored.params), set(stored.params.values())) == (1001, 230, {"日" * 6000})
    assert len([key for key in stored.tags if key.startswith("t") and key[1:].isdigit()]) == 230


def test_params_are_written_as_mlflow_writes_them(bench: Bench) -> None:
    backend, remote_id = bench.open()
    backend.write_params(
        [ParamsLogged(NOW, {"i": 1, "f": 0.1, "b": True, "n": None, "l": [1, "a"], "e": "", "z": "\0"})]
    )
    assert bench.client.get_run(remote_id).data.params == {
        "i": "1", "f": "0.1", "b": "True", "n": "None", "l": "[1, 'a']", "e": "", "z": "\\x00",
    }  # fmt: skip
    assert reasons(backend) == [("changed", "z")]


def test_the_first_value_of_a_param_stands_and_a_change_is_told(bench: Bench) -> None:
    run = bench.run()
    backend, remote_id = bench.open(run)
    backend.write_params(
        [ParamsLogged(NOW, {"lr": 0.1, "same": 1}), ParamsLogged(NOW, {"lr": 0.2, "same": 1, "new": 2})]
    )
    assert reasons(backend) == [("param changed", "lr")]
    again, _ = bench.open(run)
    again.write_params([ParamsLogged(NOW, {"lr": 0.3, "other": 4})])
    assert reasons(again) == [("param changed", "lr")]
    stored = bench.client.get_run(remote_id).data
    assert stored.params == {"lr": "0.1", "same": "1", "new": "2", "other": "4"}
    assert stored.tags["trackhub.changed_param.lr"] == "0.3"


def test_a_param_set_meanwhile_by_someone_else_costs_no_neighbour(bench: Bench) -> None:
    backend, remote_id = bench.open()
    bench.client.log_param(remote_id, "theirs", "1")
    bench.client.log_param(remote_id, "optimizer", '"adam"')
    backend.write_params([ParamsLogged(NOW, {"a": 1, "theirs": 2, "optimizer": "adam", "b": 2})])
    stored = bench.client.get_run(remote_id).data
    assert stored.params == {"a": "1", "theirs": "1", "optimizer": '"adam"', "b": "2"}
    assert reasons(backend) == [("param changed", "theirs")]


def test_what_is_sent_again_is_told_once(served: str, tmp_path: Path) -> None:
    bench = Bench(served, tmp_path)
    run = bench.run(reserved_params=frozenset({"theirs"}))
    theirs = bench.client.create_run(bench.client.create_experiment(run.project))
    backend, remote_id = bench.open(run, run_id=theirs.info.run_id)
    backend.write_params([ParamsLogged(NOW, {"lr": 0.1})])
    metrics = [MetricsLogged(NOW, 0, {"up": math.inf})]
    params = [ParamsLogged(NOW, {"lr": 0.2, "theirs": 3})]
    bench.client.delete_run(remote_id)
    for write in (lambda: backend.write_metrics(metrics), lambda: backend.write_params(params)):
        with pytest.raises(BackendUnavailable, match="deleted"):
            write()
    bench.client.restore_run(remote_id)
    backend.write_metrics(metrics)
    backend.write_params(params)
    assert reasons(backend) == [("infinite", "up"), ("param changed", "lr"), ("left to others", "theirs")]
    bench.close()


def test_params_that_kubeflow_wrote_as_json_are_the_same(local: Bench) -> None:
    client = local.client
    theirs = client.create_run("0").info.run_id
    for key, value in {"optimizer": '"adam"', "flag": "true", "units": "[1, 2]", "rate": "0.1"}.items():
        client.log_param(theirs, key, value)
    backend, _ = local.open(run_id=theirs)
    backend.write_params([ParamsLogged(NOW, {"optimizer": "adam", "flag": True, "units": [1, 2], "rate": 0.2})])
    assert reasons(backend) == [("param changed", "rate")]


def test_values_too_long_are_kept_whole(bench: Bench) -> None:
    run = bench.run()
    backend, remote_id = bench.open(run)
    for _ in range(2):
        backend.write_params([ParamsLogged(NOW, {"p/q": "é" * 6001})])
        backend.write_tags([TagsSet(NOW, {"t": "é" * 8001})])
        assert reasons(backend)[-1] == ("shortened", "t")
    stored = bench.client.get_run(remote_id).data
    assert (len(stored.params["p/q"]), len(stored.tags["t"])) == (6000, 8000)
    assert "trackhub/params/p/q.txt" in stored.params["p/q"]
    assert bench.read(remote_id, "trackhub/params/p/q.txt").decode() == "é" * 6001
    assert bench.read(remote_id, "trackhub/tags/t.txt").decode() == "é" * 8001
    backend.write_params([ParamsLogged(NOW, {"p/q": "é" * 6000 + "!"})])
    assert reasons(backend) == [("param changed", "p/q")]
    assert bench.read(remote_id, "trackhub/params/p/q.txt").decode() == "é" * 6001


def test_a_key_too_long_is_kept_whole(local: Bench) -> None:
    backend, remote_id = local.open()
    key = "deep/" * 100
    backend.write_metrics([MetricsLogged(NOW, 0, {key: 1.0}), MetricsLogged(NOW, 1, {key: 2.0})])
    assert len(reasons(backend)) == 1
    assert list(local.client.get_run(remote_id).data.metrics) == [to_mlflow_key(key)]
    (path,) = local.artifacts(remote_id, "trackhub/long_keys")
    assert local.read(remote_id, path).decode() == key


def test_a_later_tag_replaces_an_earlier_one_but_not_ours(bench: Bench) -> None:
    run = bench.run()
    backend, remote_id = bench.open(run)
    backend.write_tags(
        [TagsSet(NOW, {"a": "1", "trackhub.run_id": "x"}), TagsSet(NOW, {"a": "2", "mlflow.note.content": "n"})]
    )
    tags = bench.client.get_run(remote_id).data.tags
    assert (tags["a"], tags["mlflow.note.content"], tags["trackhub.run_id"]) == ("2", "n", run.id)


# Files


def test_artifacts_keep_their_place_and_never_leave_the_run(bench: Bench) -> None:
    backend, remote_id = bench.open()
    file = bench.file("abc.bin")
    legal = ["plain.txt", "a/b/epoch=3 (1) @+~!.ckpt", "é 日.txt"]
    odd = [
        "../up",
        "/abs",
        "a//b",
        "50%41?.txt#x",
        "back\\slash",
        "c:d",
        "x/",
        ".artifact.uploading.x",
        "n" * 300,
        "e\u0301",
    ]
    backend.write_artifacts([ArtifactLogged(NOW, name, file) for name in [*legal, *odd]])
    assert reasons(backend) == [("renamed", name[:200]) for name in odd]
    assert set(bench.artifacts(remote_id)) == {*legal, *map(to_artifact_path, odd)}
    assert {bench.read(remote_id, to_artifact_path(name)) for name in [*legal, *odd]} == {b"content"}


def test_a_directory_is_uploaded_with_all_that_is_in_it(bench: Bench) -> None:
    backend, remote_id = bench.open()
    for name in ("top.txt", "sub/deep/x?.txt", "sub/y.txt"):
        bench.file(f"tree/{name}")
    backend.write_artifacts([ArtifactLogged(NOW, "data/tree", StoredFile("blobs/tree", 21, is_directory=True))])
    expected = {"data/tree/top.txt", "data/tree/sub/deep/x_x3f_.txt", "data/tree/sub/y.txt"}
    assert set(bench.artifacts(remote_id)) == expected


def test_a_file_that_is_gone_is_rejected(local: Bench) -> None:
    backend, _ = local.open()
    with pytest.raises(RecordRejected, match=r"gone\.txt"):
        backend.write_artifacts([ArtifactLogged(NOW, "a", StoredFile("/nowhere/gone.txt", 1))])


def test_a_path_that_is_both_file_and_directory_is_rejected(bench: Bench) -> None:
    backend, _ = bench.open()
    file = bench.file("f")
    backend.write_artifacts([ArtifactLogged(NOW, "a/b", file)])
    for name in ("a", "a/b/c"):
        with pytest.raises(RecordRejected, match="both a file and a directory"):
            backend.write_artifacts([ArtifactLogged(NOW, name, file)])


def test_texts_pages_and_figures_are_files_by_kind_and_step(local: Bench) -> None:
    backend, remote_id = local.open()
    file = local.file("v")
    backend.write_text([TextLogged(NOW, "notes", file), TextLogged(NOW, "sample", file, step=7)])
    backend.write_html([HtmlLogged(NOW, "report.html", file)])
    for media_type in ("image/png", "text/html", "image/svg+xml"):
        backend.write_figures([FigureLogged(NOW, "roc", local.file("f", media_type=media_type), step=-2)])
    assert set(local.artifacts(remote_id)) == {
        "text/notes.txt",
        "text/sample/step-00000007.txt",
        "html/report.html",
        "figures/roc/step--0000002.png",
        "figures/roc/step--0000002.html",
        "figures/roc/step--0000002.svg",
    }


def test_no_two_names_share_a_path(bench: Bench) -> None:
    """Whichever comes first has the plain one, also for a delivery that goes on after a restart, and for `verify`."""
    run = bench.run()
    logged = [("notes", None), ("notes.txt", None), ("e", 1), ("e/step-00000001", None), ("r.txt", None), ("r", None)]
    texts = [
        TextLogged(NOW, name, bench.file(f"text {at}", f"{name} {step}"), step)
        for at, (name, step) in enumerate(logged)
    ]
    first = bench.backend()
    opened = first.open(run, {})
    first.write_text([texts[0], *texts[2:5]])
    state = first.checkpoint() or opened.state
    again = bench.backend()
    again.open(run, state)
    again.write_text(texts)
    assert reasons(again) == [("renamed", f"text/{name}") for name in ("notes.txt", "e/step-00000001", "r")]
    remote_id = str(opened.remote_id)
    stored = {path: bench.read(remote_id, path).decode() for path in bench.artifacts(remote_id)}
    assert sorted(stored.values()) == sorted(f"{name} {step}" for name, step in logged)
    plain = {"text/notes.txt": "notes None", "text/e/step-00000001.txt": "e 1", "text/r.txt": "r.txt None"}
    assert plain.items() <= stored.items()
    reader = bench.backend()
    there = reader.read_back(run, again.checkpoint() or state)
    wanted = {item.path: text.name for text in texts for item in there.items_for(text) or ()}
    assert wanted == {path: content.rpartition(" ")[0] for path, content in stored.items()}


def test_images_are_in_the_image_grid_once(bench: Bench) -> None:
    image_module = pytest.importorskip("PIL.Image")
    path = bench.directory / "i.png"
    image_module.new("RGB", (512, 64), "red").save(path)
    file = StoredFile("i.png", path.stat().st_size, media_type="image/png")
    backend, remote_id = bench.open()
    records = [ImageLogged(NOW, "val/a=b", file, 512, 64, step=3), ImageLogged(NOW, "plain", file, 512, 64)]
    for _ in range(2):
        backend.write_images(records)
    assert reasons(backend) == [("renamed", "val/a=b")]
    files = sorted(bench.artifacts(remote_id))
    # What MLflow's own UI takes apart: key, step and timestamp with + between them.
    taken_apart = [file.removeprefix("images/").split("+") for file in files]
    assert [(p[0], p[1], p[2], p[3], p[4], p[6:]) for p in taken_apart] == [
        ("plain", "step", "0", "timestamp", str(NOW // 1_000_000), ["compressed.webp"]),
        ("plain", "step", "0", "timestamp", str(NOW // 1_000_000), []),
        ("val~a_x3d_b", "step", "3", "timestamp", str(NOW // 1_000_000), ["compressed.webp"]),
        ("val~a_x3d_b", "step", "3", "timestamp", str(NOW // 1_000_000), []),
    ]
    assert bench.client.get_run(remote_id).data.tags["mlflow.loggedImages"] == "True"
    assert bench.read(remote_id, files[1]) == path.read_bytes()


def test_a_jpeg_is_in_the_image_grid_too(local: Bench) -> None:
    image_module = pytest.importorskip("PIL.Image")
    path = local.directory / "i.jpg"
    image_module.new("RGB", (8, 8), "red").save(path)
    backend, remote_id = local.open()
    file = StoredFile("i.jpg", path.stat().st_size, media_type="image/jpeg")
    backend.write_images([ImageLogged(NOW, "i", file, 8, 8, step=1)])
    assert [Path(name).suffix for name in sorted(local.artifacts(remote_id))] == [".webp", ".png"]


def png(side: int, *chunks: tuple[bytes, bytes], depth: int = 1, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    lines = zlib.compress(bytes(side * (1 + (side * depth + 7) // 8)), 1)
    parts = [(b"IHDR", header), (b"IDAT", lines), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(png(14_000), id="more pixels than Pillow opens"),
        pytest.param(png(10_000), id="so many pixels that Pillow warns, which is an error here"),
        pytest.param(png(8, (b"fdAT", b"\0\0\0\1odd")), id="a chunk of an animation in a still picture"),
        pytest.param(png(8, (b"cHRM", b"odd")), id="a chunk that is too short"),
        pytest.param(png(8, colour=3), id="a palette picture without a palette"),
        pytest.param(png(8)[:-30], id="cut short"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_picture_that_cannot_be_made_smaller_is_in_the_image_grid_as_it_is(content: bytes, local: Bench) -> None:
    backend, remote_id = local.open()
    backend.write_images([ImageLogged(NOW, "i", local.file("i.png", content, "image/png"), 8, 8, step=1)])
    whole, grid = sorted(local.artifacts(remote_id), key=len)
    assert (whole + "+compressed.webp").replace(".png+", "+") == grid
    assert {local.read(remote_id, path) for path in (whole, grid)} == {content}


def test_tables_are_found_by_mlflow_as_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.run()
    backend, remote_id = bench.open(run)
    file = bench.file("t.json", json.dumps({"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}), "application/json")
    table = TableLogged(NOW, "eval/cases", file, ["a", "b"], 2)
    backend.write_tables([table, TableLogged(NOW, "by step", file, ["a", "b"], 2, step=1)])
    again, _ = bench.open(run)
    again.write_tables([table])
    listed = json.loads(bench.client.get_run(remote_id).data.tags["mlflow.loggedArtifacts"])
    assert listed == [
        {"path": "tables/eval/cases.json", "type": "table"},
        {"path": "tables/by step/step-00000001.json", "type": "table"},
    ]
    experiment_id = bench.client.get_run(remote_id).info.experiment_id
    if bench.uri.startswith("http"):  # Once is enough: it imports pandas.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", bench.uri)
        frame = bench.client.load_table(experiment_id, "tables/eval/cases.json", [remote_id])
        assert frame.to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}


def test_tables_beyond_what_the_tag_can_list_are_counted(local: Bench) -> None:
    backend, remote_id = local.open()
    file = local.file("t.json", '{"columns": [], "data": []}', "application/json")
    backend.write_tables([TableLogged(NOW, "t" * 100, file, [], 0, step=step) for step in range(60)])
    told = reasons(backend)
    listed = json.loads(local.client.get_run(remote_id).data.tags["mlflow.loggedArtifacts"])
    assert len(told) + len(listed) == 60
    assert {reason for reason, _ in told} == {"not listed"}
    assert len(list(local.artifacts(remote_id))) == 60


def test_a_plain_file_can_be_registered_as_a_model_once(bench: Bench) -> None:
    backend, remote_id = bench.open()
    name = f"zoo/digits {time.time_ns()}"
    record = ModelLogged(NOW, "models/digits", bench.file("model.joblib"), register_as=name)
    backend.write_models([record])
    backend.write_models([record])
    backend.write_models([ModelLogged(NOW + 1, "models/digits", bench.file("model.joblib"), register_as=name)])
    versions = bench.client.search_model_versions(f"name = '{to_model_name(name)}'")
    assert sorted(int(v.version) for v in versions) == [1, 2]
    source = bench.client.get_model_version_download_uri(to_model_name(name), "1")
    assert source.endswith(f"{remote_id}/artifacts/models/digits")
    assert list(bench.artifacts(remote_id)) == ["models/digits/model.joblib"]


def test_a_model_of_one_file_that_is_called_like_it_can_be_found(bench: Bench) -> None:
    backend, remote_id = bench.open()
    backend.write_models([ModelLogged(NOW, "nets/model", bench.file("model"))])
    assert list(bench.artifacts(remote_id)) == ["nets/model/model.bin"]
    assert bench.read(remote_id, "nets/model/model.bin") == b"content"
    assert reasons(backend) == [("renamed", "nets/model")]


def test_a_local_run_is_shown_by_a_server_with_its_artifacts(
    served: str, written_locally: Path, tmp_path: Path
) -> None:
    shown = Bench(served, tmp_path)
    for experiment in ("local", "Default"):
        experiment_id = shown.client.get_experiment_by_name(experiment).experiment_id
        (run,) = shown.client.search_runs([experiment_id], "tags.`trackhub.run_id` LIKE 'local%'")
        assert list(shown.artifacts(run.info.run_id)) == ["a/b.txt"]
        assert shown.read(run.info.run_id, "a/b.txt") == b"content"
    assert list((written_locally / "elsewhere").iterdir()) == []


# Links


def test_the_link_leads_to_the_run(bench: Bench) -> None:
    opened = bench.backend().open(bench.run(), {})
    assert isinstance(opened, OpenedRun)
    experiment_id = bench.client.get_run(opened.remote_id).info.experiment_id
    if bench.uri.startswith("http"):
        assert opened.link == f"{bench.uri}/#/experiments/{experiment_id}/runs/{opened.remote_id}"
    else:
        assert (
            opened.link == f"{bench.uri} (open with: mlflow ui --backend-store-uri {bench.uri}), run {opened.remote_id}"
        )


def test_a_link_has_no_credentials_in_it(served: str, tmp_path: Path) -> None:
    bench = Bench(served.replace("http://", "http://me:hunter2@"), tmp_path)
    link = bench.backend().open(bench.run(), {}).link
    assert link is not None
    assert link.startswith(f"{served}/#/")


# Failures


def fails_with(bench: Bench, timeout_seconds: int = 1) -> BackendUnavailable:
    with pytest.raises(BackendUnavailable) as caught:
        bench.backend(request_timeout_seconds=timeout_seconds).open(bench.run(), {})
    return caught.value


def test_a_closed_port_is_told_at_once(tmp_path: Path) -> None:
    bench = Bench(f"http://me:hunter2@127.0.0.1:{free_port()}", tmp_path)
    started = time.monotonic()
    error = fails_with(bench, 60)
    assert time.monotonic() - started < 20
    assert "cannot be reached" in str(error)
    assert "hunter2" not in str(error)


def test_a_server_that_never_answers_costs_one_timeout(tmp_path: Path) -> None:
    started = time.monotonic()
    with black_hole() as url:
        assert "in time" in str(fails_with(Bench(url, tmp_path), 5))
    assert 5 <= time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"no", "credentials"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "credentials"),
        (404, b"<html>not here</html>", "no MLflow server"),
        (200, b"<html>log in</html>", "JSON"),
        (500, b'{"error_code": "INTERNAL_ERROR"}', "failing"),
        (502, b"<html>", "failing"),
    ],
)
def test_a_server_in_trouble_keeps_the_data_waiting(status: int, body: bytes, said: str, tmp_path: Path) -> None:
    with answering(status, body) as url:
        assert said in str(fails_with(Bench(url, tmp_path)))


def test_a_server_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    with answering(429, b"{}", {"Retry-After": "17"}) as url:
        assert fails_with(Bench(url, tmp_path)).retry_after_seconds == 17


def test_a_host_name_nobody_knows_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_for_unknown_hosts(monkeypatch)
    assert "host name" in str(fails_with(Bench("http://nowhere.invalid", tmp_path)))


def test_an_untrusted_certificate_is_told(tmp_path: Path, served: str) -> None:
    assert "certificate" in str(fails_with(Bench(served.replace("http://", "https://"), tmp_path)))


def test_a_request_the_server_finds_too_large_is_rejected(served: str, tmp_path: Path) -> None:
    bench = Bench(served, tmp_path)
    backend, _ = bench.open()
    from mlflow import MlflowClient

    with answering(413, b"<html>too large</html>") as url:
        backend._client = MlflowClient(url)
        # It is asked whether the run is gone before that, and this server says the same to everything.
        backend._run_is_deleted = lambda: False  # type: ignore[method-assign]
        with pytest.raises(RecordRejected):
            backend.write_metrics([MetricsLogged(NOW, 0, {"a": 1.0})])


@pytest.mark.parametrize("hole", [False, True])
def test_an_upload_that_fails_is_bounded_too(
    hole: bool, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(served, tmp_path)
    backend, _ = bench.open(request_timeout_seconds=10)
    record = ArtifactLogged(NOW, "a.bin", bench.file("a.bin", b"x" * 3_000_000))
    backend.write_artifacts([record])
    with black_hole() as url:
        # The run's artifacts are moved to a dead host, as when a server goes away between two records.
        from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
        from mlflow.tracking._tracking_service import utils

        dead = url if hole else f"http://127.0.0.1:{free_port()}"
        utils._artifact_repos_cache[backend._run_id] = MlflowArtifactsRepository(
            "mlflow-artifacts:/1/x/artifacts", dead
        )
        # MLflow reads it anew with each request.
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        started = time.monotonic()
        with pytest.raises(BackendUnavailable):
            backend.write_artifacts([record])
        # It would try again for minutes by itself.
        assert time.monotonic() - started < 20


def test_a_database_that_cannot_be_used_keeps_the_data_waiting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    fails = Bench(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path)
    with pytest.raises(BackendUnavailable):
        fails.backend().open(fails.run(), {})
    (tmp_path / "torn.db").write_text("not a database, but long enough to be taken for one at first sight" * 20)
    fails = Bench(f"sqlite:///{tmp_path}/torn.db", tmp_path)
    with pytest.raises(BackendUnavailable):
        fails.backend().open(fails.run(), {})
