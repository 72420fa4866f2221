"""`verify` against real stores: what arrived agrees, and what is changed behind trackhub's back is named, exactly."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from neptune_server import Field, NeptuneServer, neptune_server
from neptune_server import Point as NeptunePoint

from trackhub import OpenedRun, verifying
from trackhub.backend import Backend, RunInfo
from trackhub.backends.mlflow import MlflowBackend
from trackhub.backends.neptune import NeptuneBackend
from trackhub.backends.tensorboard import TensorBoardBackend
from trackhub.backends.tensorboard.file import framed
from trackhub.blobs import describe
from trackhub.records import ArtifactLogged, MetricsLogged, ParamsLogged, TagsSet
from trackhub.testing import samples
from trackhub.testing.conformance import Subject
from trackhub.testing.flaky import FlakyBackend, Script
from trackhub.testing.rehearsal import CREATED_NS, Rehearsal
from trackhub.verifying import Verification, reconcile

pytestmark = pytest.mark.filterwarnings(
    # Of the vendors' packages; none of it is ours to mend.
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
    "ignore:You're hitting",
)

STEPS = 40


class Place(Subject):
    """A backend, and hands that change what it holds without its knowing."""

    keeps_params = keeps_tags = keeps_files = True
    repeated = "shown twice"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = self.rehearse(directory)

    def read(self, directory: Path, opened: OpenedRun) -> Any:
        raise NotImplementedError("these tests read back by the code under test, and tamper by other means")

    def close(self) -> None:
        pass

    def verified(self) -> Verification:
        return reconcile(self.run.run, self.kind(self.run.options))

    def points(self, change: Callable[[list[tuple[int, float, Any]]], None]) -> None:
        """Change the stored points of the metric `loss`, given as (step, value, whatever else is stored)."""
        raise NotImplementedError

    def drop_param(self) -> None:
        raise NotImplementedError

    def drop_file(self) -> None:
        raise NotImplementedError

    def set_running(self) -> None:
        raise NotImplementedError

    def lose(self) -> None:
        raise NotImplementedError


class Mlflow(Place):
    kind = MlflowBackend
    repeated = "extra point"  # its key is the whole point, so that a second one has another time

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"tracking_uri": f"sqlite:///{directory}/mlflow.db"}

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.directory / "mlflow.db")) as database, database:
            yield database

    def points(self, change: Callable[[list[tuple[int, float, Any]]], None]) -> None:
        with self.database() as database:
            rows = database.execute(
                "SELECT step, value, timestamp, run_uuid FROM metrics WHERE key = 'loss'"
            ).fetchall()
            stored = [(step, value, (timestamp, run)) for step, value, timestamp, run in rows]
            change(stored)
            database.execute("DELETE FROM metrics WHERE key = 'loss'")
            seen: set[Any] = set()
            for step, value, (timestamp, run) in stored:
                later = timestamp + ((step, value) in seen)
                seen.add((step, value))
                database.execute(
                    "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
                    "VALUES ('loss', ?, ?, ?, ?, 0)",
                    (value, later, run, step),
                )

    def drop_param(self) -> None:
        with self.database() as database:
            assert database.execute("DELETE FROM params WHERE key = 'lr'").rowcount == 1

    def drop_file(self) -> None:
        (path,) = self.directory.rglob("mlruns/**/out/a.bin")
        path.unlink()

    def set_running(self) -> None:
        with self.database() as database:
            assert database.execute("UPDATE runs SET status = 'RUNNING', end_time = NULL").rowcount == 1

    def lose(self) -> None:
        with self.database() as database:
            for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
                database.execute(f"DELETE FROM {table}")


class TensorBoard(Place):
    kind = TensorBoardBackend
    keeps_tags = keeps_files = False

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"logdir": str(directory / "logs")}

    @property
    def file(self) -> Path:
        return Path(self.run.cursor.state["file"])

    def rewrite(self, change: Callable[[list[Any]], None]) -> None:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event

        # The run was given more params after the first: a second file says the same as this one, and is read first.
        for file in self.file.parent.glob("*tfevents*"):
            events = [Event.FromString(data) for data in RawEventFileLoader(str(file)).Load()]
            change(events)
            file.write_bytes(b"".join(framed(event.SerializeToString()) for event in events))

    def points(self, change: Callable[[list[tuple[int, float, Any]]], None]) -> None:
        def in_events(events: list[Any]) -> None:
            ours = [one for one in events if any(value.tag == "loss" for value in one.summary.value)]
            if len(events) < STEPS:
                return
            stored = [(one.step, one.summary.value[0].simple_value, one.SerializeToString()) for one in ours]
            change(stored)
            events[:] = [one for one in events if one not in ours]
            for step, value, data in stored:
                event = type(events[0]).FromString(data)
                event.step, event.summary.value[0].simple_value = step, value
                events.append(event)

        self.rewrite(in_events)

    def drop_param(self) -> None:
        def in_events(events: list[Any]) -> None:
            from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

            for value in (value for event in events for value in event.summary.value):
                if value.tag == "_hparams_/session_start_info":
                    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    content.session_start_info.hparams.pop("lr", None)
                    value.metadata.plugin_data.content = content.SerializeToString()

        self.rewrite(in_events)

    def set_running(self) -> None:
        def in_events(events: list[Any]) -> None:
            events[:] = [
                one for one in events if not any(v.tag == "_hparams_/session_end_info" for v in one.summary.value)
            ]

        self.rewrite(in_events)

    def lose(self) -> None:
        self.file.unlink()


class Neptune(Place):
    kind = NeptuneBackend

    def __init__(self, directory: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.server: NeptuneServer = self._stack.enter_context(neptune_server())
        super().__init__(directory)

    def close(self) -> None:
        self._stack.close()

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"project": self.server.project, "api_token": self.server.api_token, "timeout_seconds": 60}

    def points(self, change: Callable[[list[tuple[int, float, Any]]], None]) -> None:
        field: Field = self.server.run().fields["metrics/loss"]
        stored = [(int(one.step), one.value, one.time_ms) for one in field.value]
        change(stored)
        field.value = [NeptunePoint(float(step), value, time_ms) for step, value, time_ms in stored]

    def drop_param(self) -> None:
        self.server.run().remove("parameters/lr")

    def drop_file(self) -> None:
        self.server.run().remove("artifacts/out/a.bin")

    def set_running(self) -> None:
        self.server.run().fields["trackhub/status"].value = "running"

    def lose(self) -> None:
        self.server.runs.clear()


class Csv(Place):
    def __init__(self, directory: Path) -> None:
        self.kind = pytest.importorskip(
            "trackhub_csv", reason="pip install --no-deps ./examples/trackhub-csv"
        ).CsvBackend
        super().__init__(directory)

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"directory": directory / "out"}

    @property
    def folder(self) -> Path:
        return self.directory / "out" / self.run.run.manifest.id

    def points(self, change: Callable[[list[tuple[int, float, Any]]], None]) -> None:
        with (self.folder / "metrics.csv").open(newline="") as file:
            head, *lines = csv.reader(file)
        stored = [(int(step), float(value), time_ns) for step, name, value, time_ns in lines if name == "loss"]
        change(stored)
        with (self.folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([head, *(line for line in lines if line[1] != "loss")])
            writer.writerows([step, "loss", value, time_ns] for step, value, time_ns in stored)

    def drop_param(self) -> None:
        path = self.folder / "params.json"
        values = json.loads(path.read_bytes())
        del values["lr"]
        path.write_text(json.dumps(values))

    def drop_file(self) -> None:
        (self.folder / "artifacts/out/a.bin").unlink()

    def set_running(self) -> None:
        path = self.folder / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "status": "running"}))

    def lose(self) -> None:
        shutil.rmtree(self.folder)


@pytest.fixture(params=[Mlflow, TensorBoard, Neptune, Csv], ids=lambda kind: kind.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    one = request.param(tmp_path)
    yield one
    one.close()


def log_everything(run: Rehearsal) -> None:
    """One of everything, and what vendors cannot hold as it is."""
    run.log(
        ParamsLogged(CREATED_NS, {"lr": 0.1, "deep/name": "sgd", "none": None, "list": [1, 2], "big": 2**60}),
        ParamsLogged(CREATED_NS + 1, {"seed": 7, "nan": math.nan, "long": "x" * 20_000, "": "empty", "a=b": True}),
        TagsSet(CREATED_NS + 2, {"team": "vision", "long tag": "y" * 20_000}),
        samples.artifact(run, "out/a.bin", b"\0content\xff"),
        samples.directory(run, "folder", one=b"1", two=b"22"),
    )
    odd = {
        "nan": math.nan,
        "infinite": -math.inf,
        "large": 1e300,
        "train/ü=%": 1.5,
        "": 2.5,
        "deep": 1.0,
        "deep/er": 2.0,
    }
    for step in range(STEPS):
        time_ns = CREATED_NS + step * 10**9 + 123_456
        run.log(MetricsLogged(time_ns, step, {"loss": 1 / (step + 1)}))
        run.log(MetricsLogged(time_ns, step, {**odd, "acc": step / 3}))
    # As after a checkpoint was loaded; and the same to the nanosecond.
    run.log(MetricsLogged(CREATED_NS + 10**12, 5, {"acc": 0.5}), MetricsLogged(CREATED_NS + 10**12, 5, {"acc": 0.5}))
    run.log(*[samples.sample(run, kind) for kind in samples.RICH_KINDS])


def delivered(place: Place) -> Place:
    log_everything(place.run)
    place.run.end()
    place.run.deliver()
    return place


def findings(place: Place) -> list[tuple[str, str, int | None]]:
    return [(one.kind, one.subject, one.step) for one in place.verified().findings]


def test_what_arrived_agrees_whatever_the_vendor_makes_of_it(place: Place) -> None:
    delivered(place)
    found = place.verified()
    assert [str(one) for one in found.findings] == []
    assert found.outcome == "agrees"
    assert found.compared["points"] == STEPS * 9 + 2
    assert found.compared["metrics"] == 9
    if place.keeps_params:
        assert found.compared["params"] == 10
    assert found.compared["items"] >= 3


@pytest.mark.parametrize("place", [Mlflow, Neptune, Csv], indirect=True, ids=lambda kind: kind.__name__)
def test_the_files_of_a_linked_folder_arrive_too(place: Place) -> None:
    """In a directory that is logged in place; of any other, the snapshot has no links."""
    shards, data = place.directory / "shards", place.directory / "data"
    for folder in (shards / "deep", data):
        folder.mkdir(parents=True)
        (folder / "a.bin").write_bytes(b"content")
    (data / "linked").symlink_to(shards)
    place.run.log(ArtifactLogged(CREATED_NS, "data", describe(data, str(data))))
    place.run.end()
    place.run.deliver()
    found = place.verified()
    assert [str(one) for one in found.findings] == []
    assert found.compared["items"] == 2


def test_what_was_changed_behind_its_back_is_named(place: Place) -> None:
    """One delivered run a backend, changed in one way after the other: a run takes some vendors seconds to make."""
    delivered(place)
    originals: list[list[tuple[int, float, Any]]] = []

    def changed(change: Callable[[list[tuple[int, float, Any]]], None]) -> list[tuple[str, str, int | None]]:
        def apply(stored: list[tuple[int, float, Any]]) -> None:
            originals.append(list(stored))
            change(stored)

        place.points(apply)
        found = findings(place)
        place.points(lambda stored: stored.__setitem__(slice(None), originals[-1]))
        return found

    assert changed(lambda stored: stored.pop(7)) == [("missing point", "loss", 7)]
    assert changed(lambda stored: stored.__delitem__(slice(0, 3))) == [("missing point", "loss", i) for i in range(3)]
    assert changed(lambda stored: stored.__setitem__(9, (9, 4.5, stored[9][2]))) == [("different value", "loss", 9)]
    assert changed(lambda stored: stored.append((3, stored[3][1], stored[3][2]))) == [(place.repeated, "loss", 3)]
    assert changed(lambda stored: stored.append((STEPS, 0.5, stored[-1][2]))) == [("extra point", "loss", STEPS)]
    assert changed(lambda stored: (stored.pop(), stored.append((99, 1.5, stored[1][2])))) == [
        ("missing point", "loss", STEPS - 1),
        ("extra point", "loss", 99),
    ]
    assert findings(place) == []
    place.set_running()
    assert findings(place) == [("different status", place.run.run.manifest.id, None)]
    place.drop_param()
    assert ("missing param", "lr", None) in findings(place)
    assert len(findings(place)) == 2
    if place.keeps_files:
        place.drop_file()
        assert next(one for one in findings(place) if one[0] == "missing file")[1].endswith("out/a.bin")
        assert len(findings(place)) == 3
    place.points(list.clear)
    (lost,) = [one for one in place.verified().findings if one.subject == "loss"]
    assert (lost.kind, lost.count) == ("missing metric", STEPS)
    place.lose()
    found = place.verified()
    assert found.outcome == "differs"
    assert [one.kind for one in found.findings] == ["missing run"]


def test_reading_back_changes_nothing(place: Place) -> None:
    delivered(place)
    first = place.verified()
    assert place.verified() == first
    if isinstance(place, Neptune):
        before = place.server.count["executeOperations"]
        place.verified()
        assert place.server.count["executeOperations"] == before


def test_metrics_are_compared_group_by_group(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered(place)
    monkeypatch.setattr(verifying, "POINTS_AT_ONCE", STEPS)
    assert findings(place) == []
    place.points(lambda stored: stored.pop(7))
    assert findings(place) == [("missing point", "loss", 7)]


def test_what_others_write_into_a_joined_run_is_told_and_no_difference(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("theirs", artifact_location=(tmp_path / "mlruns").as_uri())
    theirs = client.create_run(experiment).info.run_id

    class Joined(Mlflow):
        def options(self, directory: Path) -> Mapping[str, Any]:
            return {**super().options(directory), "run_id": theirs}

    place = delivered(Joined(tmp_path))
    client.log_metric(theirs, "foreign", 1.0, step=0)
    client.log_metric(theirs, "loss", 99.0, step=3)
    client.log_param(theirs, "foreign", "1")
    client.log_text(theirs, "foreign", "foreign.txt")
    found = place.verified()
    assert [str(one) for one in found.findings] == []
    told = {text: count for text, count in found.explained.items() if "of others" in text}
    assert told == {
        "metrics of others in the same run": 1,
        "points of others in the same run": 1,
        "params of others in the same run": 1,
        "files of others in the same run": 1,
    }
    place.points(lambda stored: stored.remove(next(one for one in stored if one[0] == 7)))
    assert findings(place) == [("missing point", "loss", 7)], "ours must be there all the same"


def test_what_a_later_attempt_superseded_is_no_difference_and_the_rest_still_is(place: Place) -> None:
    def log(first: int, last: int, value: float) -> None:
        steps = range(first, last)
        place.run.log(*[MetricsLogged(CREATED_NS + step * 10**9 + int(value), step, {"loss": value}) for step in steps])

    log(0, 50, 1.0)
    place.run.end("killed")
    place.run.deliver()
    log(45, 60, 2.0)
    place.run.end()
    place.run.deliver()
    found = place.verified()
    assert (found.outcome, findings(place)) == ("agrees", [])
    assert found.compared["points"] == 60
    still_shown = found.explained["points that a later attempt superseded, still shown"]
    assert still_shown == (5 if isinstance(place, Mlflow) else 0)
    place.points(lambda stored: stored.remove(next(one for one in stored if one[0] == 59)))
    assert findings(place) == [("missing point", "loss", 59)]


def test_what_is_not_delivered_yet_may_be_there_or_not(tmp_path: Path) -> None:
    place = TensorBoard(tmp_path)
    place.run.log(*[samples.metrics(step, loss=float(step)) for step in range(10)])
    place.run.deliver()
    assert place.verified().outcome == "agrees"
    place.run.log(*[samples.metrics(step, loss=float(step)) for step in range(10, 20)])
    found = place.verified()
    assert (found.outcome, found.undelivered, found.explained["points not delivered yet"]) == ("agrees", 10, 10)
    with place.run.cursor_not_saved():
        place.run.deliver()
    assert place.verified().outcome == "agrees"
    place.run.end()
    found = place.verified()
    assert (found.outcome, found.findings) == ("not delivered", [])
    place.run.deliver()
    assert place.verified().outcome == "agrees"


def meanwhile(place: Place, patched: pytest.MonkeyPatch, do: Callable[[], object]) -> Verification:
    """Verify, with something done once when the comparison has begun and nothing has been read from the vendor yet."""
    read_back = place.kind.read_back
    left = [do]

    def first_do(backend: Backend, *arguments: Any) -> Any:
        if left:
            left.pop()()
        return read_back(backend, *arguments)

    with patched.context() as context:
        context.setattr(place.kind, "read_back", first_do)
        return place.verified()


@pytest.mark.parametrize("arrives", [True, False], ids=["arrives", "does not arrive"])
def test_what_is_logged_while_the_run_is_compared_may_be_there_or_not(
    place: Place, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    log_everything(place.run)
    place.run.deliver()

    def go_on() -> None:
        for step in range(STEPS, STEPS + 10):
            time_ns = CREATED_NS + (10**4 + step) * 10**9
            place.run.log(MetricsLogged(time_ns, step, {"loss": 0.5}))
            place.run.log(MetricsLogged(time_ns, step, {"new/ü=%": 1.5, "loss ": 2.5}))
        place.run.log(ParamsLogged(CREATED_NS + 10**13, {"late": 1}), TagsSet(CREATED_NS + 10**13, {"late": "tag"}))
        place.run.log(samples.artifact(place.run, "out/late.bin", b"late"))
        if arrives:
            place.run.deliver()

    found = meanwhile(place, monkeypatch, go_on)
    assert (found.outcome, found.findings) == ("agrees", [])
    assert found.compared["points"] == place.verified().compared["points"] - 30

    # What is there and was logged by nobody is still told, and so is what was lost.
    place.run.deliver()
    place.points(lambda stored: stored.append((STEPS + 3, 9.5, stored[-1][2])))
    place.points(lambda stored: stored.remove(next(one for one in stored if one[0] == 7)))
    more = MetricsLogged(CREATED_NS + 10**14, STEPS + 10, {"loss": 0.25})
    found = meanwhile(place, monkeypatch, lambda: place.run.log(more))
    assert sorted(map(str, found.findings)) == [
        f"extra point: loss at step {STEPS + 3}: found 9.5",
        "missing point: loss at step 7: logged 0.125",
    ]


def test_an_end_that_arrives_while_the_run_is_compared_is_no_difference(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_everything(place.run)
    place.run.deliver()

    def end() -> None:
        place.run.end()
        place.run.deliver()

    found = meanwhile(place, monkeypatch, end)
    assert (found.outcome, found.findings) == ("agrees", [])
    assert place.verified().outcome == "agrees"


def test_what_is_superseded_while_the_run_is_compared_is_no_difference(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(first: int, last: int, value: float) -> None:
        steps = range(first, last)
        place.run.log(*[MetricsLogged(CREATED_NS + step * 10**9 + int(value), step, {"loss": value}) for step in steps])

    log(0, 50, 1.0)
    place.run.deliver()

    def go_on() -> None:
        place.run.begin(resume_step=29)
        log(30, 60, 2.0)
        place.run.deliver()

    found = meanwhile(place, monkeypatch, go_on)
    assert (found.outcome, found.findings) == ("agrees", [])
    found = place.verified()
    assert (found.outcome, found.findings) == ("agrees", [])


def test_what_the_backend_refused_is_no_difference(tmp_path: Path) -> None:
    place = TensorBoard(tmp_path)
    script = Script(is_bad=lambda record: "bad" in getattr(record, "values", ()))
    place.run.kind = FlakyBackend.around(TensorBoardBackend, script)
    place.run.log(*[MetricsLogged(CREATED_NS + step, step, {"loss": 0.5, "bad": 1.0}) for step in range(5)])
    place.run.end()
    assert place.run.deliver().report.rejected == 5
    found = place.verified()
    assert found.findings == []
    assert found.explained["points refused by the backend"] == 5


@pytest.mark.parametrize("processors", [[], ["every:2", "rename:metrics:loss=cost", "exclude:tags:*"]], ids=str)
def test_what_processors_leave_out_or_rename_is_no_difference(tmp_path: Path, processors: list[str]) -> None:
    place = TensorBoard(tmp_path)
    place.run.options = place.run.options.model_copy(update={"processors": processors})
    place.run.log(ParamsLogged(CREATED_NS, {"api_key": "sesame", "lr": 0.1}), TagsSet(CREATED_NS, {"stage": "demo"}))
    place.run.log(*[samples.metrics(step, loss=float(step)) for step in range(10)])
    place.run.end()
    place.run.deliver()
    assert (place.verified().outcome, place.verified().findings) == ("agrees", [])
    # It is what they make of the run that is compared, and not nothing.
    place.run.options = place.run.options.model_copy(update={"processors": ["rename:metrics:loss=other"]})
    assert place.verified().outcome == "differs"


def test_a_note_that_is_missing_from_the_report_is_a_difference(tmp_path: Path) -> None:
    """What a backend leaves out must be told: its own rules are no excuse."""
    place = delivered(Neptune(tmp_path))
    try:
        file = place.run.run.cursor_file("neptune")
        cursor = file.load()
        del cursor.report.notes["step not increasing"]
        file.save(cursor)
        assert findings(place) == [("left out without a report", "step not increasing", None)]
    finally:
        place.close()


def test_damage_in_an_event_file_is_named(tmp_path: Path) -> None:
    place = delivered(TensorBoard(tmp_path))
    content = bytearray(place.file.read_bytes())
    content[[found.start() for found in re.finditer(b"loss", content)][10]] ^= 0xFF
    place.file.write_bytes(content)
    found = place.verified()
    assert found.outcome == "differs"
    assert found.counts["damage"] == 1
    assert found.counts["missing point"] > 0


def test_a_second_writer_in_the_directory_is_seen(tmp_path: Path) -> None:
    place = delivered(TensorBoard(tmp_path))
    shutil.copy(place.file, place.file.with_name("events.out.tfevents.9.copy"))
    found = place.verified()
    assert found.counts["shown twice"] >= STEPS


def test_a_backend_without_read_back_says_so(tmp_path: Path) -> None:
    class Blind(Backend):
        name = "blind"

        def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
            return OpenedRun(remote_id="1")

        def write_metrics(self, points: Any) -> None:
            pass

    class BlindPlace(Place):
        kind = Blind

    place = BlindPlace(tmp_path)
    place.run.log(samples.metrics(0, loss=1.0))
    place.run.end()
    place.run.deliver()
    found = place.verified()
    assert found.outcome == "cannot be read back"
    assert "no read_back()" in found.reason


def test_neptunes_offline_directories_cannot_be_read_back(tmp_path: Path) -> None:
    class Offline(Place):
        kind = NeptuneBackend

        def options(self, directory: Path) -> Mapping[str, Any]:
            return {"mode": "offline", "project": "people/digits"}

    place = Offline(tmp_path)
    place.run.log(samples.metrics(0, loss=1.0))
    place.run.end()
    place.run.deliver()
    assert place.verified().outcome == "cannot be read back"
    assert "neptune sync" in place.verified().reason
