from __future__ import annotations

import html
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage import Stage, scalars

from trackhub.backend import OpenedRun, Rewind, RunInfo
from trackhub.backends.tensorboard import SHOWN_TEXT_BYTES, TensorBoardBackend, TensorBoardOptions, file
from trackhub.backends.tensorboard.file import crc32c
from trackhub.backends.tensorboard.text import escaped, file_name, markdown_table, run_directory_name
from trackhub.errors import BackendUnavailable, MissingPackageError, RecordRejected, SettingsError, StateLost
from trackhub.plugins import find_backend
from trackhub.records import (
    ConfusionMatrixLogged,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ParamsLogged,
    Record,
    RocCurveLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)
from trackhub.rundir import RunDirectory

pytest.importorskip("tensorboard")
pytestmark = [
    # TensorBoard's readers, not our code: protobuf and NumPy deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

RUN_ID = "20261121-093000-3f9a1c"
SQUARE = [[1.0, 0.0], [0.0, 1.0]]
CREATED_NS = 1_763_717_400_000_000_000


class Bench:
    """A run directory, a log directory, and backends opened on them as the delivery does."""

    def __init__(self, path: Path) -> None:
        self.logdir = path / "runs"
        self.directory = path / "run"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.backend: TensorBoardBackend
        self.opened: OpenedRun

    def info(self, **changes: Any) -> RunInfo:
        facts = {"id": RUN_ID, "name": "sgd", "project": "p", "created_ns": CREATED_NS, "directory": self.directory}
        return RunInfo(**(facts | changes))

    def open(self, state: Any = None, **changes: Any) -> TensorBoardBackend:
        self.disconnect()
        self.backend = TensorBoardBackend(TensorBoardOptions(logdir=str(self.logdir)))
        # What is remembered goes through JSON in between.
        self.opened = self.backend.open(self.info(**changes), json.loads(json.dumps(state or {}, allow_nan=False)))
        return self.backend

    def disconnect(self) -> None:
        if hasattr(self, "backend"):
            self.backend.disconnect()

    @property
    def run(self) -> Path:
        assert self.opened.remote_id is not None
        return self.logdir / self.opened.remote_id

    @property
    def events(self) -> Path:
        return next(path for path in self.run.iterdir() if path.name.endswith(".trackhub"))

    def stored(self, name: str, content: bytes | str, media_type: str) -> StoredFile:
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return StoredFile(name, path.stat().st_size, media_type=media_type)

    def notes(self) -> list[tuple[str, str]]:
        return [(reason, subject) for reason, subject, _ in self.backend.notes.drain()]

    def accumulator(self) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        sizes = dict.fromkeys(("scalars", "tensors", "images", "histograms", "compressedHistograms"), 0)
        return EventAccumulator(str(self.run), size_guidance=sizes).Reload()

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in self.accumulator().Scalars(tag)]

    def texts(self, tag: str) -> list[str]:
        return [event.tensor_proto.string_val[0].decode() for event in self.accumulator().Tensors(tag)]


class Readers:
    """What TensorBoard's own plugins find in a log directory."""

    def __init__(self, logdir: Path) -> None:
        from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
        from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
        from tensorboard.plugins.base_plugin import TBContext

        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
        multiplexer.Reload()
        self.context = TBContext(
            logdir=str(logdir), data_provider=MultiplexerDataProvider(multiplexer, str(logdir)), multiplexer=multiplexer
        )

    def sessions(self) -> dict[str, dict[str, Any]]:
        """Run -> what the HPARAMS page shows of it."""
        from tensorboard.context import RequestContext
        from tensorboard.plugins.hparams import api_pb2, list_session_groups
        from tensorboard.plugins.hparams.backend_context import Context

        request = api_pb2.ListSessionGroupsRequest(
            allowed_statuses=list(api_pb2.Status.values()), start_index=0, slice_size=1000
        )
        answer = list_session_groups.Handler(RequestContext(), Context(self.context), "e", request).run()
        shown = {}
        for group in answer.session_groups:
            (session,) = group.sessions
            params = {key: getattr(value, value.WhichOneof("kind")) for key, value in group.hparams.items()}
            metrics = {metric.name.tag: metric.value for metric in session.metric_values}
            shown[session.name] = {
                "params": params,
                "metrics": metrics,
                "status": api_pb2.Status.Name(session.status),
                "times": (session.start_time_secs, session.end_time_secs),
            }
        return shown

    def param_names(self) -> set[str]:
        from tensorboard.context import RequestContext
        from tensorboard.plugins.hparams import api_pb2, get_experiment
        from tensorboard.plugins.hparams.backend_context import Context

        handler = get_experiment.Handler(RequestContext(), Context(self.context), "e", api_pb2.GetExperimentRequest())
        return {info.name for info in handler.run().hparam_infos}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.disconnect()


def at(seconds: float) -> int:
    return CREATED_NS + round(seconds * 1e9)


def points(first: int, last: int, **values: float) -> list[MetricsLogged]:
    return [
        MetricsLogged(at(step), step, values or {"loss": 1 / (step + 1), "acc": 0.5}) for step in range(first, last)
    ]


def png(size: tuple[int, int] = (3, 2), colour: tuple[int, int, int] = (255, 0, 0), kind: str = "PNG") -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.new("RGB", size, colour).save(target, format=kind)
    return target.getvalue()


# --- Options and the door


def test_is_found_by_its_name() -> None:
    assert find_backend("tensorboard") is TensorBoardBackend


def test_the_log_directory_is_made_absolute_against_the_working_directory(tmp_path: Path) -> None:
    resolved = TensorBoardBackend.resolve(TensorBoardOptions(), tmp_path)
    assert resolved.logdir == str(tmp_path / "runs")
    assert TensorBoardBackend.resolve(resolved, Path("/elsewhere")) == resolved


@pytest.mark.parametrize(
    "url", ["s3://bucket/runs", "gs://bucket/runs", "hdfs://x", "file:///runs", Path("s3://b/runs")]
)
def test_a_remote_log_directory_is_refused(url: str | Path, tmp_path: Path) -> None:
    options = TensorBoardOptions(logdir=url)
    for refuse in (lambda: TensorBoardBackend.check(options), lambda: TensorBoardBackend.resolve(options, tmp_path)):
        with pytest.raises(SettingsError, match="local or mounted path"):
            refuse()


def test_check_passes_where_tensorboard_is_installed() -> None:
    TensorBoardBackend.check(TensorBoardOptions())


@pytest.mark.parametrize("directory_of_that_name", [True, False])
def test_check_names_the_missing_package(
    directory_of_that_name: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if directory_of_that_name:
        (tmp_path / "tensorboard").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    with pytest.raises(MissingPackageError, match=r'pip install "trackhub-sdk\[tensorboard\]"'):
        TensorBoardBackend.check(TensorBoardOptions())


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("raise SystemExit('tensorflow was imported')")
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})
from trackhub.backends.tensorboard import *
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorboard", "google", "numpy", "PIL")]
backend = TensorBoardBackend(TensorBoardOptions(logdir={str(tmp_path)!r}))
TensorBoardBackend.check(backend.options)
assert "tensorboard" not in sys.modules
backend.open(RunInfo("i", "n", "p", 1, Path(".")), {{}})
backend.write_metrics([MetricsLogged(1, 1, {{"a": 1.0}})])
backend.write_params([ParamsLogged(1, {{"a": 1.0}})])
backend.write_histograms([HistogramLogged(1, "h", [0.0, 1.0], [1.0])])
backend.close("finished")
heavy = ("tensorflow", "torch", "numpy", "PIL", "grpc", "absl")
print([name for name in sys.modules if name.split(".")[0] in heavy])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- Where things are


def test_the_run_directory_has_the_name_and_what_makes_it_unique(bench: Bench) -> None:
    bench.open()
    assert bench.opened.remote_id == "sgd-3f9a1c"
    assert bench.opened.link == f"{bench.logdir}  (open with: tensorboard --logdir {bench.logdir})"
    assert [path.name for path in bench.run.iterdir()] == [f"events.out.tfevents.1763717400.{RUN_ID}.trackhub"]


def test_a_run_named_by_its_id_is_not_named_twice(bench: Bench) -> None:
    bench.open(name=RUN_ID)
    assert bench.opened.remote_id == RUN_ID


def test_a_child_lies_in_its_parents_directory(bench: Bench) -> None:
    bench.open()
    bench.backend.write_metrics(points(0, 1))
    parent = bench.opened.remote_id
    bench.backend.disconnect()
    bench.open(name="fold 1", id="20261121-093001-aaaaaa", parent_remote_id=parent)
    bench.backend.write_metrics(points(0, 1))
    assert bench.opened.remote_id == "sgd-3f9a1c/fold_1-aaaaaa"
    assert set(Readers(bench.logdir).context.multiplexer.Runs()) == {"sgd-3f9a1c", "sgd-3f9a1c/fold_1-aaaaaa"}


def test_ids_of_the_users_own_making_are_taken_whole() -> None:
    assert run_directory_name("sgd", "sweep-a-run-1") == "sgd-sweep-a-run-1"


@given(st.text())
def test_any_name_makes_a_safe_file_name(text: str) -> None:
    name = file_name(text)
    assert name
    assert not name.startswith(".")
    assert "/" not in name
    assert "tfevents" not in name
    assert len(name.encode()) <= 120


# --- Scalars


def test_a_records_values_are_one_event(bench: Bench) -> None:
    bench.open().write_metrics(points(0, 3))
    assert bench.scalars("loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert bench.scalars("acc") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert len(list(raw_events(bench.events))) == 1 + 3
    assert [event.wall_time for event in bench.accumulator().Scalars("acc")] == [at(step) / 1e9 for step in range(3)]


def test_what_is_written_is_in_the_file_at_once(bench: Bench) -> None:
    bench.open().write_metrics(points(0, 2))
    assert bench.events.stat().st_size == bench.backend.checkpoint()["size_bytes"]
    assert len(list(raw_events(bench.events))) == 1 + 2


def test_numbers_too_large_for_the_plugin_are_noted(bench: Bench) -> None:
    values = {"big": 1e300, "low": -1e300, "nan": math.nan, "inf": math.inf, "edge": 3.4028234663852886e38}
    bench.open().write_metrics([MetricsLogged(at(0), 0, values)])
    assert bench.scalars("big") == [(0, math.inf)]
    assert bench.scalars("low") == [(0, -math.inf)]
    assert math.isnan(bench.scalars("nan")[0][1])
    assert bench.scalars("inf") == [(0, math.inf)]
    assert bench.scalars("edge") == [(0, 3.4028234663852886e38)]
    assert bench.notes() == [("beyond float32", "big"), ("beyond float32", "low")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1), st.floats(), min_size=1, max_size=8),
    st.integers(-(2**63), 2**63 - 1),
)
def test_any_name_and_value_is_read_back(bench: Bench, values: dict[str, float], step: int) -> None:
    bench.open().write_metrics([MetricsLogged(at(0), step, values)])
    read = bench.accumulator()
    tags = {name: tag or name for name, tag in bench.backend.checkpoint()["tags"]["scalar"].items()}
    bench.backend.disconnect()
    assert set(read.Tags()["scalars"]) == set(tags.values())
    assert len(set(tags.values())) == len(values)
    for name, value in values.items():
        assert tags[name] == (name or tags[name])
        (event,) = read.Scalars(tags[name])
        assert event.step == step
        assert struct.pack("<f", event.value) == float32(value) or math.isnan(value)


def float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def test_names_are_shown_as_they_were_logged(bench: Bench) -> None:
    names = ["train/loss", "/lead", "with space", "ünï/çödé", "50%", "a?b=c&d#e", "日本", "<b>"]
    bench.open().write_metrics(points(0, 1, **dict.fromkeys(names, 1.0)))
    assert sorted(bench.accumulator().Tags()["scalars"]) == sorted(names)
    assert bench.notes() == []


def test_a_name_logged_as_two_kinds_gets_two_tags(bench: Bench) -> None:
    backend = bench.open()
    histogram = HistogramLogged(at(1), "loss", [0.0, 1.0], [2.0], step=1)
    backend.write_metrics(points(0, 1, loss=1.0))
    backend.write_histograms([histogram, histogram])
    backend.write_metrics(points(1, 2, **{"loss (histogram)": 1.0}))
    assert bench.notes() == [("renamed", "loss"), ("renamed", "loss (histogram)")]
    tags = bench.accumulator().Tags()
    assert tags["scalars"] == ["loss", "loss (histogram) (scalar)"]
    assert tags["tensors"] == ["loss (histogram)"]


def test_a_tag_stays_the_same_after_a_restart(bench: Bench) -> None:
    histogram = HistogramLogged(at(1), "loss", [0.0, 1.0], [2.0], step=1)
    backend = bench.open()
    backend.write_metrics(points(0, 1, loss=1.0))
    backend.write_histograms([histogram])
    state = backend.checkpoint()
    backend = bench.open(state)
    backend.write_histograms([histogram])
    backend.write_metrics(points(1, 2, loss=1.0))
    assert bench.notes() == []
    assert bench.accumulator().Tags()["tensors"] == ["loss (histogram)"]
    assert len(bench.accumulator().Tensors("loss (histogram)")) == 2


# --- Exactly once


def everything(bench: Bench) -> list[tuple[str, Record]]:
    """Records of every kind this backend writes, with the method that takes them, in order."""
    table = json.dumps({"columns": ["a", "b"], "data": [[1, "x"], [2.5, None]]})
    records: list[tuple[str, Record]] = [
        ("params", ParamsLogged(at(0), {"lr": 0.1, "layers": [1, 2], "on": True, "none": None, "big": 2**60})),
        ("metrics", MetricsLogged(at(1), 0, {"loss": 1.0, "acc": math.nan})),
        ("metrics", MetricsLogged(at(2), 1, {"loss": 0.5})),
        ("tags", TagsSet(at(2), {"team": "a|b"})),
        ("text", TextLogged(at(3), "note", bench.stored("n.txt", "**hi**", "text/plain"), 1)),
        ("html", HtmlLogged(at(3), "page", bench.stored("p.html", "<p>", "text/html"))),
        ("images", ImageLogged(at(4), "sample", bench.stored("i.png", png(), "image/png"), 3, 2, 4)),
        ("images", ImageLogged(at(4), "photo", bench.stored("i.jpg", png(kind="JPEG"), "image/jpeg"), 3, 2)),
        ("figures", FigureLogged(at(5), "plot", bench.stored("f.png", png((7, 5)), "image/png"), 5)),
        ("figures", FigureLogged(at(5), "plotly", bench.stored("f.html", "<html>", "text/html"), 5)),
        ("figures", FigureLogged(at(5), "drawn", bench.stored("f.svg", "<svg/>", "image/svg+xml"))),
        ("tables", TableLogged(at(6), "rows", bench.stored("t.json", table, "application/json"), ["a", "b"], 2)),
        ("histograms", HistogramLogged(at(7), "weights", [-1.0, 0.0, 2.0], [3.0, 4.0], step=7)),
        ("params", ParamsLogged(at(7), {"lr": 0.2, "late": "x"})),
        ("confusion_matrices", ConfusionMatrixLogged(at(8), "cm", ["cat", "dog"], [[5.0, 1.0], [0.0, 9.5]], 8)),
        ("roc_curves", RocCurveLogged(at(9), "roc", [0.0, 0.2, 1.0], [0.0, 0.8, 1.0], [math.inf, 0.5, 0.1])),
        ("metrics", MetricsLogged(at(10), 2, {"loss": 0.25, "note": 3.0})),
    ]
    return records


def write(backend: TensorBoardBackend, records: list[tuple[str, Record]], size: int = 1) -> None:
    """Deliver in batches of at most `size` neighbours of one kind."""
    while records:
        kind = records[0][0]
        batch = 1
        while batch < min(size, len(records)) and records[batch][0] == kind:
            batch += 1
        getattr(backend, f"write_{kind}")([record for _, record in records[:batch]])
        records = records[batch:]


def raw_events(path: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for raw in RawEventFileLoader(str(path)).Load():
        yield Event.FromString(raw)


@pytest.mark.parametrize("committed", range(18))
def test_a_restart_gives_the_same_bytes_and_no_record_twice(bench: Bench, committed: int) -> None:
    records = everything(bench)
    write(bench.open(), records)
    bench.backend.close("finished")
    whole = bench.events.read_bytes()

    write(bench.open(), records[:committed])
    state = bench.backend.checkpoint()
    write(bench.backend, records[committed:])
    bench.backend.disconnect()  # as if killed here: the state above is all that is remembered

    write(bench.open(state), records[committed:], size=3)
    bench.backend.close("finished")
    assert bench.events.read_bytes() == whole
    assert bench.scalars("loss") == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_batches_do_not_change_the_bytes(bench: Bench) -> None:
    written = []
    for size in (1, 2, 100):
        write(bench.open(), everything(bench), size)
        written.append(bench.events.read_bytes())
        bench.backend.disconnect()
    assert written[0] == written[1] == written[2]


def test_without_a_state_the_file_starts_anew(bench: Bench) -> None:
    write(bench.open(), everything(bench))
    name, whole = bench.events.name, bench.events.read_bytes()
    bench.backend.disconnect()
    bench.open()
    assert len(list(raw_events(bench.events))) == 1
    write(bench.backend, everything(bench))
    assert (bench.events.name, bench.events.read_bytes()) == (name, whole)


def test_a_reader_that_has_read_further_notices_nothing(bench: Bench) -> None:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    bench.open().write_metrics(points(0, 2))
    state = bench.backend.checkpoint()
    bench.backend.write_metrics(points(2, 4))
    reader = RawEventFileLoader(str(bench.events))
    assert len(list(reader.Load())) == 1 + 4
    bench.backend.disconnect()
    bench.open(state)
    assert list(reader.Load()) == []
    bench.backend.write_metrics(points(2, 6))
    assert len(list(reader.Load())) == 2


def test_the_state_of_open_alone_is_enough_to_go_on(bench: Bench) -> None:
    bench.open()
    state = bench.opened.state
    bench.backend.write_metrics(points(0, 2))
    bench.open(state).write_metrics(points(0, 2))
    assert len(bench.scalars("acc")) == 2


def test_another_attempt_appends(bench: Bench) -> None:
    bench.open().write_metrics(points(0, 2))
    state = bench.backend.checkpoint()
    bench.open(state, attempt=2).write_metrics(points(2, 4))
    assert [step for step, _ in bench.scalars("acc")] == [0, 1, 2, 3]


def test_a_run_that_goes_on_under_another_name_stays_where_it_is(bench: Bench) -> None:
    bench.open(name="a").write_metrics(points(0, 2))
    state = bench.backend.checkpoint()
    assert bench.opened.remote_id == "a-3f9a1c"
    bench.open(state, name="b").write_metrics(points(2, 4))
    assert bench.opened.remote_id == "a-3f9a1c"
    assert list(Readers(bench.logdir).context.multiplexer.Runs()) == ["a-3f9a1c"]
    assert [step for step, _ in bench.scalars("acc")] == [0, 1, 2, 3]


@pytest.mark.parametrize("machine", ["hub", "another"])
def test_a_resumed_run_with_another_name_is_shown_once(stage: Stage, machine: str) -> None:
    code = """
        import trackhub
        with trackhub.init(run_id="the-run", name={name!r}, backends=["tensorboard"]) as tracker:
            for step in range(3):
                tracker.log_metrics({{"loss": 1.0}}, step={first} + step)
        """
    stage.run(code.format(name="a", first=0))
    hub = stage.path / machine
    stage.run(code.format(name="b", first=3), environment={"TRACKHUB_DIR": str(hub)})
    run = RunDirectory(hub / "the-run")
    stage.wait_closed("tensorboard", run=run)
    assert list(Readers(stage.path / "runs").context.multiplexer.Runs()) == ["a-the-run"]
    assert scalars(run) == {"loss": [(step, 1.0) for step in range(6)]}
    assert run.cursor("tensorboard").report.points == (6 if machine == "hub" else 3)


@pytest.mark.parametrize("first", ["a", "the-job"])
def test_another_machine_finds_the_run_under_the_name_it_had(bench: Bench, first: str) -> None:
    for run_id in ("job", "x-the-job", "the-job.0a1b2c3d"):  # whose directories are called alike
        bench.open(id=run_id, name="0-the", origin="00000001").write_metrics(points(9, 10))
    bench.open(id="the-job", name=first, origin="0a1b2c3d").write_metrics(points(0, 2))
    there = bench.opened.remote_id
    bench.open(id="the-job", name="b", origin="4e5f6071").write_metrics(points(2, 4))
    assert bench.opened.remote_id == there
    assert [step for step, _ in bench.scalars("acc")] == [0, 1, 2, 3]
    assert len(Readers(bench.logdir).context.multiplexer.Runs()) == 4


def test_a_run_in_another_log_directory_is_called_by_its_name_there(bench: Bench) -> None:
    bench.open(name="a").write_metrics(points(0, 2))
    state = bench.backend.checkpoint()
    bench.logdir = bench.logdir.with_name("elsewhere")
    with pytest.raises(StateLost):
        bench.open(state, name="b")
    bench.open(name="b")
    assert bench.opened.remote_id == "b-3f9a1c"


@pytest.mark.parametrize("inside", [True, False])
def test_a_state_leads_nowhere_outside_of_the_log_directory(bench: Bench, tmp_path: Path, inside: bool) -> None:
    bench.open(name="a").write_metrics(points(0, 2))
    moved = bench.run.rename(tmp_path / "a-3f9a1c")
    [events] = moved.iterdir()
    state = {
        **bench.backend.checkpoint(),
        "file": f"{bench.logdir / '..' if inside else tmp_path}/{moved.name}/{events.name}",
    }
    with pytest.raises(StateLost):
        bench.open(state)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 10)])
def test_a_file_that_has_lost_data_is_not_continued(bench: Bench, damage: Callable[[Path], None]) -> None:
    bench.open().write_metrics(points(0, 2))
    state = bench.backend.checkpoint()
    bench.backend.disconnect()
    damage(bench.events)
    with pytest.raises(StateLost, match="is not the event file that was written before"):
        bench.open(state)


def test_a_file_deleted_while_it_is_written_is_noticed(bench: Bench) -> None:
    bench.open().write_metrics(points(0, 2))
    bench.events.unlink()
    for _ in range(2):
        with pytest.raises(StateLost, match=r"it was deleted|does not exist"):
            bench.backend.write_metrics(points(2, 3))


def test_a_log_directory_that_cannot_be_made_is_unavailable(bench: Bench) -> None:
    bench.logdir.write_text("a file")
    with pytest.raises(BackendUnavailable, match=re.escape(str(bench.logdir))):
        bench.open()


class FullDisk(file.FileIO):
    """Takes so many bytes more, then none."""

    room = 1 << 30

    def write(self, data: Any, /) -> int:
        taken = min(len(data), FullDisk.room)
        if taken == 0:
            raise OSError(28, "No space left on device")
        FullDisk.room -= taken
        return super().write(bytes(data[:taken]))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[FullDisk]:
    """A disk that events are written to, with room for now."""
    monkeypatch.setattr(file, "FileIO", FullDisk)
    monkeypatch.setattr(FullDisk, "room", 1 << 30)
    return FullDisk


@pytest.mark.parametrize("room", [0, 1, 20, 100, 250])
def test_a_full_disk_leaves_no_half_record_and_is_waited_for(bench: Bench, room: int, disk: type[FullDisk]) -> None:
    backend = bench.open()
    backend.write_metrics(points(0, 2))
    good = bench.events.read_bytes()
    disk.room = room
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=r"No space left") as caught:
            backend.write_metrics([MetricsLogged(at(5), 5, {f"m{i}": 1e300 for i in range(20)})])
        assert str(bench.events) in str(caught.value)
        assert bench.events.read_bytes() == good
        assert backend.checkpoint()["size_bytes"] == len(good)
        disk.room = room
    assert bench.notes() == []
    disk.room = 1 << 30
    backend.write_metrics(points(2, 4))
    assert [step for step, _ in bench.scalars("acc")] == [0, 1, 2, 3]


@pytest.mark.parametrize("room", [10, 100, 50_000, 120_000])
def test_a_rewind_that_a_full_disk_cuts_short_is_done_again_as_a_whole(
    bench: Bench, room: int, disk: type[FullDisk]
) -> None:
    backend = bench.open()
    backend.write_metrics(points(0, 3000))
    good = bench.events.read_bytes()
    rewind = Rewind(attempt=2, time_ns=at(3000), metrics={"loss": 99})
    disk.room = room
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=r"No space left"):
            backend.rewind(rewind)
        assert bench.events.read_bytes() == good
        disk.room = room
    disk.room = 1 << 30
    assert backend.rewind(rewind)
    backend.write_metrics(points(100, 102, loss=7.0))
    assert [step for step, _ in bench.scalars("acc")] == list(range(3000))
    assert [step for step, _ in bench.scalars("loss")] == [*range(102)]
    assert bench.scalars("loss")[-2:] == [(100, 7.0), (101, 7.0)]


def test_opening_can_be_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "FileIO", FullDisk)
    monkeypatch.setattr(FullDisk, "room", 5)
    with pytest.raises(BackendUnavailable):
        bench.open()
    FullDisk.room = 1 << 30
    bench.opened = bench.backend.open(bench.info(), {})
    bench.backend.write_metrics(points(0, 1))
    assert len(list(raw_events(bench.events))) == 2


def test_a_failed_end_can_be_written_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "FileIO", FullDisk)
    monkeypatch.setattr(FullDisk, "room", 1 << 30)
    backend = bench.open()
    FullDisk.room = 0
    with pytest.raises(BackendUnavailable):
        backend.close("finished")
    FullDisk.room = 1 << 30
    backend.close("finished")
    assert len(list(raw_events(bench.events))) == 3


@given(st.binary(max_size=300))
def test_checksums_are_those_tensorboard_computes(data: bytes) -> None:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as theirs

    assert crc32c(data) == theirs(data)


# --- HPARAMS


def test_params_metrics_and_status_are_shown_as_hyperparameters(bench: Bench) -> None:
    write(bench.open(), everything(bench)[:3])
    assert Readers(bench.logdir).sessions()["sgd-3f9a1c"]["status"] == "STATUS_UNKNOWN"
    bench.backend.close("finished")
    session = Readers(bench.logdir).sessions()["sgd-3f9a1c"]
    assert session["params"] == {"lr": 0.1, "layers": "[1, 2]", "on": True, "none": "null", "big": str(2**60)}
    assert session["metrics"]["loss"] == 0.5
    assert session["status"] == "STATUS_SUCCESS"
    assert session["times"] == (CREATED_NS / 1e9, at(2) / 1e9)
    assert len(list(bench.run.glob("*tfevents*"))) == 1


@pytest.mark.parametrize("status", ["failed", "killed"])
def test_a_run_that_did_not_finish_is_a_failure(bench: Bench, status: Any) -> None:
    bench.open().close(status)
    assert Readers(bench.logdir).sessions()["sgd-3f9a1c"]["status"] == "STATUS_FAILURE"


def test_params_logged_later_are_shown_in_the_end(bench: Bench) -> None:
    backend = bench.open()
    backend.write_params([ParamsLogged(at(0), {"lr": 0.1, "a": 1})])
    backend.write_params([ParamsLogged(at(1), {"lr": 0.1})])
    assert len(list(bench.run.glob("*tfevents*"))) == 1
    backend.write_metrics(points(0, 2))
    state = backend.checkpoint()
    backend.write_params([ParamsLogged(at(2), {"lr": 0.2, "b": "x"})])
    backend.disconnect()
    backend = bench.open(state)
    backend.write_params([ParamsLogged(at(2), {"lr": 0.2, "b": "x"}), ParamsLogged(at(3), {"c": False})])
    backend.close("finished")
    readers = Readers(bench.logdir)
    session = readers.sessions()["sgd-3f9a1c"]
    assert session["params"] == {"lr": 0.2, "a": 1.0, "b": "x", "c": False}
    assert session["status"] == "STATUS_SUCCESS"
    assert readers.param_names() == {"lr", "a", "b", "c"}
    assert [event.step for event in bench.accumulator().Tensors("params")] == [0, 1, 2, 3]


def test_a_run_that_goes_on_after_its_end_is_running_again(bench: Bench) -> None:
    bench.open().write_params([ParamsLogged(at(0), {"lr": 0.1})])
    bench.backend.close("killed")
    state = bench.backend.checkpoint()
    bench.backend.disconnect()
    bench.open(state, attempt=2)
    assert Readers(bench.logdir).sessions()["sgd-3f9a1c"]["status"] == "STATUS_RUNNING"
    bench.backend.write_metrics(points(0, 1))
    bench.backend.close("finished")
    assert Readers(bench.logdir).sessions()["sgd-3f9a1c"]["status"] == "STATUS_SUCCESS"


def test_one_run_does_not_hide_anothers_params_and_metrics(bench: Bench) -> None:
    for index, key in enumerate(("first", "second")):
        backend = bench.open(name=key, id=f"2026112{index}-093000-3f9a1c")
        backend.write_params([ParamsLogged(at(0), {key: index})])
        backend.write_metrics(points(0, 1, **{f"{key} metric": 1.0}))
        backend.close("finished")
        backend.disconnect()
    readers = Readers(bench.logdir)
    assert readers.param_names() == {"first", "second"}
    sessions = readers.sessions()
    assert [set(sessions[f"{key}-3f9a1c"]["metrics"]) for key in ("first", "second")] == [
        {"first metric"},
        {"second metric"},
    ]


def test_params_that_are_not_finite_are_shown_as_texts_and_noted(bench: Bench) -> None:
    bench.open().write_params([ParamsLogged(at(0), {"a": math.nan, "b": -math.inf})])
    assert Readers(bench.logdir).sessions()["sgd-3f9a1c"]["params"] == {"a": "NaN", "b": "-Infinity"}
    assert bench.notes() == [("not finite", "a"), ("not finite", "b")]


# --- Rich values


def test_params_and_tags_are_also_texts(bench: Bench) -> None:
    write(bench.open(), everything(bench))
    assert "| lr | 0.1 |" in bench.texts("params")[0]
    assert "| late | x |" in bench.texts("params")[1]
    assert bench.texts("tags") == ["| tag | value |\n| --- | --- |\n| team | a&#124;b |"]


def test_texts_images_and_histograms_are_read_back(bench: Bench) -> None:
    write(bench.open(), everything(bench))
    assert bench.texts("note") == ["**hi**"]
    read = bench.accumulator()
    (image,) = read.Images("sample")
    assert (image.encoded_image_string, image.width, image.height, image.step) == (png(), 3, 2, 4)
    assert read.Images("photo")[0].encoded_image_string == png(kind="JPEG")
    assert (read.Images("plot")[0].width, read.Images("plot")[0].height) == (7, 5)


def test_the_plugins_find_what_is_theirs(bench: Bench) -> None:
    from tensorboard.context import RequestContext
    from tensorboard.plugins.histogram.histograms_plugin import HistogramsPlugin
    from tensorboard.plugins.image.images_plugin import ImagesPlugin
    from tensorboard.plugins.text.text_plugin import TextPlugin

    write(bench.open(), everything(bench))
    context = Readers(bench.logdir).context
    run = "sgd-3f9a1c"
    ((_, step, buckets),) = HistogramsPlugin(context).histograms_impl(RequestContext(), "weights", run, "e")[0]
    assert (step, buckets) == (7, [[-1.0, 0.0, 3.0], [0.0, 2.0, 4.0]])
    texts = TextPlugin(context)
    assert set(texts.index_impl(RequestContext(), "e")[run]) >= {"params", "tags", "note", "rows", "page", "cm/table"}
    assert "<td>2.5</td>" in texts.text_impl(RequestContext(), run, "rows", "e", enable_markdown=True)[0]["text"]
    assert set(ImagesPlugin(context)._index_impl(RequestContext(), "e")[run]) == {
        "sample",
        "photo",
        "plot",
        "cm",
        "roc",
    }


def test_what_cannot_be_shown_lies_beside_the_events(bench: Bench) -> None:
    write(bench.open(), everything(bench))
    for tag, content in (("plotly", "<html>"), ("drawn", "<svg/>"), ("page", "<p>")):
        (text,) = bench.texts(tag)
        path = Path(html.unescape(text).split("The file is ")[1])
        assert path.parent == bench.run / "files"
        assert path.read_text() == content
    assert [subject for reason, subject in bench.notes() if reason == "shown as text"] == ["page", "plotly", "drawn"]


def test_copies_do_not_look_like_runs(bench: Bench) -> None:
    backend = bench.open()
    file = bench.stored("x", "<p>", "text/html")
    backend.write_html([HtmlLogged(at(0), "a/tfevents/../b", file), HtmlLogged(at(1), "a/tfevents/../b", file)])
    assert len(list((bench.run / "files").iterdir())) == 2
    assert list(Readers(bench.logdir).context.multiplexer.Runs()) == ["sgd-3f9a1c"]


def test_long_texts_and_tables_are_shortened_and_kept_whole(bench: Bench) -> None:
    backend = bench.open()
    long = "é" * SHOWN_TEXT_BYTES
    backend.write_text([TextLogged(at(0), "long", bench.stored("l.txt", long, "text/plain"))])
    table = json.dumps({"columns": ["a"], "data": [[i] for i in range(201)]})
    backend.write_tables([TableLogged(at(0), "rows", bench.stored("t.json", table, "application/json"), ["a"], 201)])
    rate = [i / 300 for i in range(301)]
    backend.write_roc_curves([RocCurveLogged(at(0), "roc", rate, rate, [math.inf, *rate[1:]])])
    assert bench.notes() == [("shortened", "long"), ("shortened", "rows"), ("shortened", "roc/table")]
    assert bench.texts("long")[0].startswith("é" * (SHOWN_TEXT_BYTES // 2) + "\n\n… 262144 bytes more are in ")
    assert "1 rows more" in bench.texts("rows")[0]
    kept = {path.name.split("-")[0]: path.read_text() for path in (bench.run / "files").iterdir()}
    assert kept["long"] == long
    assert kept["rows"] == table
    assert len(json.loads(kept["roc_table"])["data"]) == 301


@pytest.mark.parametrize("classes", [1, 2, 10, 50, 110, 400])
def test_confusion_matrices_are_drawn(bench: Bench, classes: int) -> None:
    from PIL import Image

    labels = [f"a class with a long name {i}" for i in range(classes)]
    matrix = [[float(i == j) * 1234 + (i * j) % 7 / 4 for j in range(classes)] for i in range(classes)]
    bench.open().write_confusion_matrices([ConfusionMatrixLogged(at(0), "cm", labels, matrix)])
    (shown,) = bench.accumulator().Images("cm")
    image = Image.open(io.BytesIO(shown.encoded_image_string))
    assert image.size == (shown.width, shown.height)
    assert max(image.size) < 2500
    assert len(image.convert("RGB").getcolors(1 << 24)) > 2
    assert bench.texts("cm/table")[0].count("\n") == (classes + 1 if classes < 200 else 103)


def test_labels_that_cannot_be_drawn_are_in_the_table(bench: Bench) -> None:
    backend = bench.open()
    backend.write_confusion_matrices([ConfusionMatrixLogged(at(0), "plain", ["cat", "dog"], SQUARE)])
    assert bench.notes() == []
    backend.write_confusion_matrices([ConfusionMatrixLogged(at(0), "猫犬", ["猫", "a" * 60], SQUARE)])
    assert bench.notes() == [("shortened", "猫犬")]
    assert f"| 猫 | {'a' * 60} |" in bench.texts("猫犬/table")[0]


ONE = StoredFile("gone.png", 1, media_type="image/png")


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("images", ImageLogged(1, "gone", ONE, 1, 1)),
        ("figures", FigureLogged(1, "gone", ONE)),
        ("html", HtmlLogged(1, "gone", ONE)),
        ("figures", FigureLogged(1, "not a png", StoredFile("junk", 4, media_type="image/png"))),
        ("tables", TableLogged(1, "not a table", StoredFile("junk", 4), [], 0)),
        ("histograms", HistogramLogged(1, "edges", [0.0], [1.0])),
        ("histograms", HistogramLogged(1, "infinite", [0.0, math.inf], [1.0])),
        ("confusion_matrices", ConfusionMatrixLogged(1, "ragged", ["a", "b"], [[1.0, 2.0], [1.0]])),
        ("confusion_matrices", ConfusionMatrixLogged(1, "nan", ["a"], [[math.nan]])),
        ("roc_curves", RocCurveLogged(1, "ragged", [0.0], [0.0, 1.0], [1.0])),
        ("roc_curves", RocCurveLogged(1, "nan", [math.nan], [0.0], [1.0])),
        ("roc_curves", RocCurveLogged(1, "nan", [0.0], [math.inf], [1.0])),
    ],
)
def test_what_can_never_be_shown_is_rejected_and_leaves_nothing(bench: Bench, kind: str, record: Any) -> None:
    bench.stored("junk", "junk", "")
    backend = bench.open()
    before = bench.events.read_bytes()
    with pytest.raises(RecordRejected, match=re.escape(record.name)):
        getattr(backend, f"write_{kind}")([record])
    assert bench.events.read_bytes() == before


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" ")), min_size=2, max_size=2))
def test_any_text_survives_a_markdown_table(cells: list[str]) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    shown = markdown_to_safe_html(markdown_table(["column"] * 2, [cells]))
    body = re.findall(r"<td>(.*?)</td>", shown, re.DOTALL)
    assert [" ".join(html.unescape(cell).split()) for cell in body] == [" ".join(cell.split()) for cell in cells]


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" ")))
def test_any_text_survives_markdown(text: str) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    shown = markdown_to_safe_html("x " + escaped(text))
    assert " ".join(html.unescape(shown.removeprefix("<p>").removesuffix("</p>")).split()) == " ".join(
        f"x {text}".split()
    )
