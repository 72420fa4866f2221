"""The backend keeps every promise of trackhub's contract with the real SDK, offline; read back from the run's files.

The reader is of the test's own: wandb has none for Python. Of wandb are the messages, as its package defines them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from trackhub_wandb import WandbBackend
from trackhub_wandb.past import order_of

from trackhub import BackendUnavailable, OpenedRun, RecordRejected
from trackhub.records import (
    ArtifactLogged,
    HistogramLogged,
    ImageLogged,
    ParamsLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)
from trackhub.testing import BackendConformance, Point, Shown, samples
from trackhub.testing.rehearsal import Rehearsal

STATUS = {0: "finished", 1: "failed", 137: "killed"}
MEDIA = ("image-file", "html-file", "table-file", "histogram")


class TestWandb(BackendConformance):
    kind = WandbBackend
    vendor_modules = ("wandb",)

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"directory": directory / "out", "timeout_seconds": 20}

    def options_that_lead_nowhere(self, directory: Path) -> Mapping[str, Any]:
        (directory / "file").touch()
        return {"directory": directory / "file" / "out"}

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        return read_back(directory / "out", str(opened.remote_id))


@pytest.fixture
def run(tmp_path: Path) -> Rehearsal:
    return TestWandb().rehearse(tmp_path)


def service() -> int:
    """The process id of the one `wandb-core` that this process has."""
    children: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        # A thread that ends meanwhile has none.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children += (task / "children").read_text().split()
    [found] = [child for child in children if Path(f"/proc/{child}/exe").resolve().name == "wandb-core"]
    return int(found)


def test_when_its_process_is_killed_everything_is_there_once(run: Rehearsal) -> None:
    """Between two batches and in the middle of one: the delivery tries again, with a new process."""
    logged = [samples.metrics(step, loss=step / 7) for step in range(3_000)]
    with run.opened() as (backend, opened):
        backend.write_metrics(logged[:1000])
        os.kill(service(), signal.SIGKILL)
        until_taken(lambda: backend.write_metrics(logged[1000:2000]))
        backend.write_params([ParamsLogged(1, {"lr": 0.1})])
        killer = threading.Timer(0.05, os.kill, (service(), signal.SIGKILL))
        killer.start()
        until_taken(lambda: backend.write_metrics(logged[2000:]))
        killer.join()
        until_taken(lambda: backend.write_tags([TagsSet(2, {"team": "vision"})]))
        shown = run.shown(opened)
    assert [point[:2] for point in shown.metrics["loss"]] == [(step, step / 7) for step in range(3_000)]
    assert shown.params == {"lr": 0.1}
    assert shown.tags == {"team": "vision"}


def until_taken(write: Callable[[], None]) -> None:
    """What a delivery does."""
    for _ in range(5):
        try:
            write()
        except BackendUnavailable:
            continue
        return
    pytest.fail("never taken")


@pytest.mark.parametrize("what", ["write", "close"])
def test_when_its_process_hangs_the_call_comes_back(what: str, tmp_path: Path) -> None:
    """And the process that hung is gone, not left behind."""
    subject = TestWandb()
    run = subject.rehearse(tmp_path)
    logged = [samples.metrics(step, loss=0.5) for step in range(50)]
    with run.opened() as (backend, opened):
        hung = service()
        patient, backend.options = backend.options, backend.options.model_copy(update={"timeout_seconds": 2})
        os.kill(hung, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match=r"did not answer in 2 s|is gone"):
            backend.write_metrics(logged) if what == "write" else backend.close("finished")
        assert time.monotonic() - began < 15
        backend.options = patient
        assert not Path(f"/proc/{hung}").exists()
        backend.write_metrics(logged)
        backend.close("finished")
        shown = run.shown(opened)
    assert len(shown.metrics["loss"]) == 50
    assert shown.status == "finished"


def test_two_runs_share_a_process_and_do_not_end_each_other(tmp_path: Path) -> None:
    """As a parent and its children, which one delivery process may have open at once."""
    subject = TestWandb()
    parent = subject.rehearse(tmp_path, "parent")
    child = subject.rehearse(tmp_path, "child")
    with parent.opened() as (one, opened):
        shared = service()
        with child.opened() as (other, other_opened):
            assert service() == shared
            other.write_metrics([samples.metrics(0, loss=1.0)])
            one.write_metrics([samples.metrics(0, loss=2.0)])
            other.close("failed")
        one.write_metrics([samples.metrics(1, loss=3.0)])
        assert service() == shared
        assert parent.shown(opened).status == "running"
        assert child.shown(other_opened).status == "failed"
    assert [point[:2] for point in parent.shown(opened).metrics["loss"]] == [(0, 2.0), (1, 3.0)]
    assert not Path(f"/proc/{shared}").exists()


def test_nothing_of_the_delivering_process_is_in_the_run(run: Rehearsal) -> None:
    """Neither its output, nor its machine, its packages, or the repository that it happens to be in."""
    with run.opened() as (backend, opened):
        print("said by the delivery")
        backend.write_metrics([samples.metrics(0, loss=0.5)])
        backend.close("finished")
        folder = Path(str(opened.link))
    [path] = folder.glob("*.wandb")
    kinds = {record.WhichOneof("record_type") for record in records(path)}
    assert kinds == {"header", "run", "telemetry", "metric", "config", "history", "summary", "exit"}
    [told] = [record.run for record in records(path) if record.HasField("run")]
    assert (told.host, told.git.remote_url, told.git.commit) == ("", "", "")
    assert not [one for one in (folder / "files").rglob("*") if one.is_file()]


def test_charts_are_drawn_over_the_steps_that_were_logged(run: Rehearsal) -> None:
    """W&B's own step is the number of the row, for it may not go backwards."""
    with run.opened() as (backend, opened):
        backend.write_metrics([samples.metrics(7, loss=0.5), samples.metrics(3, loss=0.25)])
        [path] = Path(str(opened.link)).glob("*.wandb")
    [metric] = [record.metric for record in records(path) if record.HasField("metric") and record.metric.glob_name]
    assert (metric.glob_name, metric.step_metric) == ("*", "trackhub/step")
    assert [point[:2] for point in run.shown(opened).metrics["loss"]] == [(7, 0.5), (3, 0.25)]


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "", "x" * 300, "a\0b"])
def test_files_stay_inside(name: str, run: Rehearsal, tmp_path: Path) -> None:
    """Whatever they are called; what cannot be is rejected, and nothing else."""
    with run.opened() as (backend, opened):
        backend.write_artifacts([samples.artifact(run, "a.bin", b"content")])
        file = samples.stored(run, "f", b"content")
        with pytest.raises(RecordRejected):
            backend.write_artifacts([ArtifactLogged(2, name, file)])
        backend.write_artifacts([samples.artifact(run, "b/c.bin", b"more")])
        assert run.shown(opened).files == {"a.bin": b"content", "b/c.bin": b"more"}
    assert not list(tmp_path.rglob("outside"))


def test_the_files_of_a_linked_folder_are_there_too(run: Rehearsal, tmp_path: Path) -> None:
    """In a directory that is logged in place; of any other, the snapshot has no links."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.bin").write_bytes(b"content")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "shards")
    with run.opened() as (backend, opened):
        file = StoredFile(str(tmp_path / "data"), 7, is_directory=True)
        backend.write_artifacts([ArtifactLogged(2, "data", file)])
        assert run.shown(opened).files == {"data/linked/a.bin": b"content"}


def test_the_neighbours_of_what_is_rejected_are_shown_once(run: Rehearsal) -> None:
    """A rejected batch comes again in halves."""
    texts = [TextLogged(at, f"t{at}", samples.stored(run, f"t{at}", b"a text"), at) for at in range(4)]
    gone = TextLogged(9, "gone", StoredFile("/no/such/file", 1), 9)
    run.log(samples.metrics(0, loss=0.5), *texts[:3], gone, texts[3])
    run.end()
    report = run.deliver().report
    assert report.rejected == 1
    assert report.delivered["text"] == 4
    rows = [
        item.nested_key[0]
        for path in Path(str(run.cursor.link)).parent.glob("offline-run-*/*.wandb")
        for record in records(path)
        for item in record.history.item
        if item.nested_key[-1:] == ["path"]
    ]
    assert sorted(rows) == ["text/t0", "text/t1", "text/t2", "text/t3"]


def png(side: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A black picture, with chunks behind its pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (1 + (side + 7) // 8)), 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", pixels), *chunks, (b"IEND", b""))
    )


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(png(14_000), id="more pixels than Pillow opens"),
        pytest.param(png(8, (b"fdAT", b"\0\0\0\1odd")), id="a chunk of an animation in a still picture"),
    ],
)
def test_a_picture_that_cannot_be_read_holds_nothing_up(picture: bytes, run: Rehearsal) -> None:
    images = [
        ImageLogged(at, f"i{at}", samples.stored(run, f"i{at}.png", content), 8, 8, step=at)
        for at, content in enumerate([png(8), picture, png(8)])
    ]
    run.log(*images, samples.metrics(0, loss=0.5))
    run.end()
    report = run.deliver().report
    assert (report.rejected, report.delivered["images"], report.delivered["metrics"]) == (1, 2, 1)


def test_a_run_whose_files_are_gone_is_delivered_anew(run: Rehearsal) -> None:
    run.log(samples.metrics(0, loss=0.5))
    run.deliver()
    shutil.rmtree(run.options.directory / "wandb")
    run.log(samples.metrics(1, loss=0.25))
    run.end()
    run.deliver()
    assert [point[:2] for point in run.shown().metrics["loss"]] == [(0, 0.5), (1, 0.25)]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("loss", "loss"), ("_step", "~_step"), ("trackhub/step", "~trackhub/step"), ("~_step", "~~_step"), ("", "~")],
)
def test_metrics_that_are_called_as_something_of_wandb(name: str, shown: str, run: Rehearsal) -> None:
    with run.opened() as (backend, opened):
        backend.write_metrics([samples.metrics(4, **{name: 0.5})])
        assert [point[:2] for point in run.shown(opened).metrics[shown]] == [(4, 0.5)]
        assert [note[:2] for note in backend.notes.drain()] == ([] if name == shown else [("renamed", name)])


def test_long_tables_and_wide_histograms_are_shortened_and_that_is_said(run: Rehearsal) -> None:
    content = json.dumps({"columns": ["a"], "data": [[at] for at in range(12_000)]}).encode()
    table = TableLogged(1, "long", samples.stored(run, "t.json", content, "application/json"), ["a"], 12_000, 3)
    bins = HistogramLogged(2, "wide", [float(at) for at in range(1025)], [1.0] * 1024, 3)
    with run.opened() as (backend, opened):
        backend.write_tables([table])
        backend.write_histograms([bins])
        assert [note[:2] for note in backend.notes.drain()] == [("shortened", "long"), ("shortened", "wide")]
        shown = run.shown(opened)
        [path] = Path(str(opened.link)).glob("*.wandb")
    assert shown.files == {"tables/long-3.json": content}
    assert shown.others == {"tables/long", "histograms/wide"}
    found = {
        "/".join(item.nested_key): json.loads(item.value_json)
        for record in records(path)
        for item in record.history.item
    }
    assert found["histograms/wide/values"] == [2.0] * 512
    assert found["histograms/wide/bins"] == [float(at) for at in range(0, 1025, 2)]


def test_folders_of_the_same_second_are_read_in_their_order_whatever_the_run_is_called() -> None:
    for run_id in ("fold", "fold-7", "conformance-358350898047"):
        made = [f"offline-run-20261121_211938-{run_id}{ending}" for ending in ("", "-1", "-2", "-10")]
        backwards = made[::-1]
        assert sorted(backwards, key=lambda folder: order_of(folder, run_id)) == made


def read_back(directory: Path, run_id: str) -> Shown:
    """A run as its files have it, one after the other, as `wandb sync` would send them."""
    shown, rows = Shown(), set[int]()
    for path in sorted(
        directory.glob(f"wandb/offline-run-*/run-{run_id}.wandb"), key=lambda path: path.stat().st_ctime_ns
    ):
        shown.status = "running"
        for record in records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    shown.parent = record.run.run_group or None
                    read_config(shown, record.run.config)
                case "config":
                    read_config(shown, record.config)
                case "history":
                    rows |= read_row(shown, record.history, rows)
                case "files":
                    for file in record.files.files:
                        if file.path.startswith("artifacts/"):
                            content = (path.parent / "files" / file.path).read_bytes()
                            shown.files[file.path.removeprefix("artifacts/")] = content
                case "exit":
                    shown.status = STATUS[record.exit.exit_code]
    return shown


def read_config(shown: Shown, config: Any) -> None:
    for item in config.update:
        value = json.loads(item.value_json)
        if item.key == "trackhub":
            shown.tags = value["tags"]
        elif item.key != "_wandb":
            shown.params[item.key] = value


def read_row(shown: Shown, history: Any, seen: set[int]) -> set[int]:
    values: dict[str, Any] = {}
    for item in history.item:
        name, *below = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if below:
            values.setdefault(name, {})[below[0]] = value
        else:
            values[name] = value
    number = int(values.pop("_step"))
    assert number not in seen, "W&B drops rows whose number is not new"
    step, time_ns = values.pop("trackhub/step"), round(values.pop("_timestamp") * 10**9)
    values.pop("_runtime")
    for name, value in values.items():
        if isinstance(value, dict):
            assert value["_type"] in MEDIA
            shown.others.add(name)
        else:
            shown.metrics.setdefault(name, []).append(Point(int(step), float(value), time_ns))
    return {number}


def records(path: Path) -> Iterator[Any]:
    """The messages in a `.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    message = b""
    at = 7
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        checksum, size, kind = struct.unpack_from("<IHB", content, at)
        fragment = content[at + 6 : at + 7 + size]
        if len(fragment) < size + 1:
            return
        assert zlib.crc32(fragment) == checksum
        message += fragment[1:]
        if kind in (1, 4):
            yield Record.FromString(message)
            message = b""
        at += 7 + size
