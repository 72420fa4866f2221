"""Event files that TensorBoard's own code wrote, whole and damaged, as runs of ours; read beside its own reader."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from importing_helpers import content, count_of, end_of, findings, imported, only, points_of, records

import trackhub
from trackhub.backends.tensorboard.file import crc32c, framed
from trackhub.errors import RunNotFoundError
from trackhub.importing.tensorboard.eventfile import Damage, read_events
from trackhub.readout import read_run
from trackhub.records import ArtifactLogged, HistogramLogged, ImageLogged, TagsSet, TextLogged
from trackhub.rundir import RunDirectory
from trackhub.sync import sync
from trackhub.values import encode_image

pytest.importorskip("tensorboard")
np = pytest.importorskip("numpy")

pytestmark = [
    # TensorBoard's code, not ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

START = 1_700_000_000.25


class Writer:
    """Writes one event file with TensorBoard's own writer."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.directory = directory
        self._writer = EventFileWriter(str(directory))

    def add(self, step: int, value: Any, at: float | None = None) -> None:
        """Add a summary value, or a whole summary."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = value if isinstance(value, Summary) else Summary(value=[value])
        self.event(Event(wall_time=START + step if at is None else at, step=step, summary=summary))

    def event(self, event: Any) -> None:
        self._writer.add_event(event)

    def close(self) -> Path:
        self._writer.close()
        (path,) = self.directory.glob("*tfevents*")
        return path


def simple(tag: str, value: float) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary.Value(tag=tag, simple_value=value)


def as_tensor(tag: str, array: Any, plugin: str = "scalars") -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.util.tensor_util import make_tensor_proto

    value = Summary.Value(tag=tag, tensor=make_tensor_proto(array))
    value.metadata.plugin_data.plugin_name = plugin
    return value


def hparams(what: str, **fields: Any) -> Any:
    """A summary value of the hparams plugin; its functions for that need TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    value = Summary.Value(tag=f"_hparams_/{what}")
    value.metadata.plugin_data.plugin_name = "hparams"
    value.metadata.plugin_data.content = HParamsPluginData(**{what: fields}).SerializeToString()
    return value


def png(width: int, height: int) -> bytes:
    return encode_image(np.full((height, width), 0.5), "picture").data


def accumulated(directory: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"scalars": 0, "tensors": 0, "images": 0, "histograms": 0}
    return EventAccumulator(str(directory), size_guidance=sizes).Reload()


def scalars_of(directory: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Tag -> (step, wall time, value), as TensorBoard reads them."""
    from tensorboard.util.tensor_util import make_ndarray

    found = accumulated(directory)
    scalars = {
        tag: [(one.step, one.wall_time, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }
    for tag in found.Tags()["tensors"]:
        if found.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            scalars[tag] = [
                (one.step, one.wall_time, float(make_ndarray(one.tensor_proto))) for one in found.Tensors(tag)
            ]
    return scalars


def in_seconds(points: dict[str, list[tuple[int, int, float]]]) -> dict[str, list[tuple[int, float, float]]]:
    return {name: [(step, ns / 10**9, value) for step, ns, value in one] for name, one in points.items()}


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def write(logdir: Path) -> Callable[..., Writer]:
    return lambda name=".": Writer(logdir / name)


# --- values


def test_scalars_of_both_forms_are_what_tensorboard_reads(
    logdir: Path, write: Callable[..., Writer], tmp_path: Path
) -> None:
    writer = write()
    for step in range(200):
        writer.add(step, simple("old", step / 7), at=START + step / 3)
        writer.add(step, as_tensor("new", np.float32(step / 3)), at=START + step / 3)
        writer.add(step, as_tensor("double", np.float64(step / 11)))
        writer.add(-step, as_tensor("whole", np.int64(step)), at=START)
    writer.add(5, as_tensor("half", np.float16(0.5)))
    writer.add(2**40, simple("nan", float("nan")), at=START)
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    ours, theirs = in_seconds(points_of(one)), scalars_of(logdir)
    assert len(theirs) == 6
    assert repr(ours) == repr({tag: theirs[tag] for tag in ours})
    assert set(ours) == set(theirs)
    assert one.complete
    assert one.run.manifest.name == "logs"


def test_one_event_with_many_values_stays_one_record(
    logdir: Path, write: Callable[..., Writer], tmp_path: Path
) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary

    writer = write()
    writer.add(3, Summary(value=[simple("a", 1.0), simple("b", 2.0), simple("a", 3.0)]))
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    time_ns = 1_700_000_003_250_000_000
    assert points_of(one) == {"a": [(3, time_ns, 1.0), (3, time_ns, 3.0)], "b": [(3, time_ns, 2.0)]}
    assert one.note is not None
    assert one.note.counts == {"metrics": 2, "points": 3}


def test_pictures_arrive_as_they_are(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary

    writer = write()
    writer.add(1, Summary.Value(tag="old", image={"width": 9, "height": 9, "encoded_image_string": png(3, 2)}))
    writer.add(2, as_tensor("new", [b"3", b"2", png(3, 2)], "images"))
    writer.add(3, as_tensor("batch", [b"3", b"2", png(3, 2), png(5, 4)], "images"))
    writer.add(4, as_tensor("moving", [b"1", b"1", b"GIF89a"], "images"))
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    seen = [
        (image.name, image.step, image.width, image.height, content(one, image)) for image in records(one, ImageLogged)
    ]
    assert seen == [
        ("old", 1, 3, 2, png(3, 2)),
        ("new", 2, 3, 2, png(3, 2)),
        ("batch/0", 3, 3, 2, png(3, 2)),
        ("batch/1", 3, 5, 4, png(5, 4)),
    ]
    (other,) = records(one, ArtifactLogged)
    assert (other.name, content(one, other)) == ("moving/step-4.gif", b"GIF89a")
    assert findings(one) == {"pictures that are neither PNG nor JPEG, kept as files": 1}


def test_texts_and_sounds_arrive(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    from tensorboard.plugins.text.summary_v2 import text_pb

    writer = write()
    writer.add(1, text_pb("one", "# héllo"))
    writer.add(2, text_pb("list", ["a", "b"]))
    writer.add(3, text_pb("table", [["x", "y"], ["1", "2"]]))
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\1" * 10)
    writer.add(4, as_tensor("sound", [[sound.getvalue(), b"label"]], "audio"))
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert [(one_.name, one_.step, content(one, one_).decode()) for one_ in records(one, TextLogged)] == [
        ("one", 1, "# héllo"),
        ("list", 2, "a\n\nb"),
        ("table", 3, "| x | y |\n|---|---|\n| 1 | 2 |"),
    ]
    (file_,) = records(one, ArtifactLogged)
    assert (file_.name, content(one, file_)) == ("sound/step-4.wav", sound.getvalue())


def test_histograms_of_both_forms_have_the_edges_that_tensorboard_shows(
    logdir: Path, write: Callable[..., Writer], tmp_path: Path
) -> None:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
    from tensorboard.data_compat import migrate_value
    from tensorboard.util.tensor_util import make_ndarray

    writer = write()
    limits = [-1.0, 0.0, 1.0, 2.0, 1.7976931348623157e308]
    old = HistogramProto(min=-0.5, max=7.0, num=6, bucket_limit=limits, bucket=[0, 1, 2, 0, 3])
    writer.add(1, Summary.Value(tag="old", histo=old))
    rows = np.array([[0, 1, 5], [1, 1, 0], [1, 4, 2]], dtype=np.float64)
    writer.add(2, as_tensor("new", rows, "histograms"))
    writer.add(3, as_tensor("gap", np.array([[0, 1, 5], [2, 3, 6]], dtype=np.float32), "histograms"))
    writer.add(4, as_tensor("nothing", np.zeros((0, 3)), "histograms"))
    writer.add(5, as_tensor("backward", np.array([[0, 1, 5], [0, -3, 6]]), "histograms"))
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    seen = {record.name: (record.step, record.edges, record.counts) for record in records(one, HistogramLogged)}
    assert seen == {
        "old": (1, [-0.5, 0.0, 1.0, 2.0, 7.0], [1.0, 2.0, 0.0, 3.0]),
        "new": (2, [0.0, 1.0, 1.0, 4.0], [5.0, 0.0, 2.0]),
        "gap": (3, [0.0, 1.0, 2.0, 3.0], [5.0, 0.0, 6.0]),
    }
    theirs = migrate_value(Summary.Value(tag="old", histo=old))
    lefts, rights, counts = make_ndarray(theirs.tensor).T.tolist()
    assert (lefts, rights, counts) == ([-0.5, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 7.0], [1.0, 2.0, 0.0, 3.0])
    assert findings(one) == {"histograms of nothing": 1, "histograms that cannot be read": 1}


@pytest.mark.parametrize(("status", "expected"), [("STATUS_SUCCESS", "finished"), ("STATUS_FAILURE", "failed")])
def test_hyperparameters_become_params_and_the_session_the_status(
    logdir: Path, write: Callable[..., Writer], tmp_path: Path, status: str, expected: str
) -> None:
    from google.protobuf.struct_pb2 import Value
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    params = {"lr": 0.25, "layers": 3, "nesterov": True, "optimizer": "sgd"}
    values = {
        "lr": Value(number_value=0.5),
        "warmup": Value(number_value=7),
        "sizes": {"list_value": {"values": [Value(number_value=1), Value(string_value="two")]}},
    }
    writer = write()
    writer.add(0, hparams_pb(params, trial_id="sweep", start_time_secs=START - 100))
    writer.add(9, simple("loss", 0.5))
    writer.add(9, hparams("session_start_info", hparams=values, start_time_secs=START))
    writer.add(10, hparams("session_end_info", status=status, end_time_secs=START + 50))
    writer.add(10, hparams("session_end_info", status="STATUS_RUNNING"))
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    # TensorBoard believes the first start and the first end; what later ones add is kept.
    assert read_run(one.run.journal).params == {
        **params,
        "warmup": 7.0,
        "sizes": [1.0, "two"],
    }
    assert [tags.tags for tags in records(one, TagsSet)] == [{"hparams/group_name": "sweep"}]
    assert one.run.manifest.created_ns == 1_699_999_900_250_000_000
    assert (end_of(one).status, end_of(one).time_ns) == (expected, 1_700_000_050_250_000_000)
    assert one.complete


def test_a_session_without_an_end_was_killed(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    writer = write()
    writer.add(0, hparams_pb({"lr": 0.25}))
    writer.close()
    assert end_of(only(imported("tensorboard", logdir, tmp_path / "hub"))).status == "killed"


def test_what_has_no_place_is_named(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    writer = write()
    writer.event(Event(wall_time=START, graph_def=b"graph"))
    writer.add(1, as_tensor("curve", np.zeros((6, 3)), "pr_curves"))
    writer.add(2, as_tensor("several", np.zeros(3)))
    writer.add(3, as_tensor("words", "text", "scalars"))
    writer.add(4, as_tensor("nobody", np.zeros(3), ""))
    writer.add(0, hparams("experiment", name="a sweep"))
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert findings(one) == {
        "graphs, not imported": 1,
        "values of the plugin pr_curves, not imported": 1,
        "scalars that are no number": 2,
        "values that no plugin claims, not imported": 1,
        "descriptions for the hyperparameters' page, not kept": 1,
    }
    assert not one.complete


def test_a_tag_keeps_the_plugin_it_began_with(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    writer = write()
    writer.add(1, as_tensor("loss", np.float32(1.0)))
    later = as_tensor("loss", np.float32(2.0))
    later.ClearField("metadata")
    writer.add(2, later)
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert [value for _, _, value in points_of(one)["loss"]] == [1.0, 2.0]


def test_what_a_restart_superseded_is_left_out_as_in_tensorboard(
    logdir: Path, write: Callable[..., Writer], tmp_path: Path
) -> None:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer = write()
    for step in range(10):
        writer.add(step, simple("loss", 1.0))
    writer.event(Event(wall_time=START, step=6, session_log=SessionLog(status=SessionLog.START)))
    for step in range(6, 12):
        writer.add(step, simple("loss", 2.0))
    writer.event(Event(wall_time=START, step=8, session_log=SessionLog(status=SessionLog.START)))
    writer.add(8, simple("loss", 3.0))
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    points = in_seconds(points_of(one))
    assert points == scalars_of(logdir)
    assert [(step, value) for step, _, value in points["loss"]] == [
        *((step, 1.0) for step in range(6)),
        (6, 2.0),
        (7, 2.0),
        (8, 3.0),
    ]
    assert findings(one) == {"values that a restart at an earlier step superseded": 8}


# --- directories


def test_every_directory_with_event_files_is_a_run(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    for at, name in enumerate((".", "train", "sweep/one", "sweep/two")):
        writer = write(name)
        writer.add(at, simple("loss", float(at)), at=START + at)
        writer.close()
    (logdir / "empty").mkdir()
    (logdir / "notes.txt").write_text("no events")
    report = imported("tensorboard", logdir, tmp_path / "hub")
    assert {run.name: points_of(run)["loss"][0][2] for run in report.runs} == {
        "logs": 0.0,
        "train": 1.0,
        "sweep/one": 2.0,
        "sweep/two": 3.0,
    }
    assert all(run.run.manifest.parent_id is None for run in report.runs)
    assert report.complete


def test_links_and_files_without_events_are_said(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    writer = write("real")
    writer.add(0, simple("loss", 1.0))
    writer.close()
    (logdir / "linked").symlink_to(logdir / "real")
    (logdir / "hollow").mkdir()
    (logdir / "hollow" / "events.out.tfevents.1").touch()
    report = imported("tensorboard", logdir, tmp_path / "hub")
    assert [run.name for run in report.runs] == ["real"]
    assert sorted(report.left_out) == [
        f"{logdir / 'hollow'} has event files, but no event in them can be read",
        f"{logdir / 'linked'} is a link, which is not followed: import what it leads to by its own path",
    ]
    assert not report.complete


def test_what_holds_no_event_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="no event file found below"):
        imported("tensorboard", tmp_path, tmp_path / "hub")


def test_a_logdir_that_was_moved_is_the_same(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    writer = write("a")
    writer.add(0, simple("loss", 1.0))
    writer.close()
    first = only(imported("tensorboard", logdir, tmp_path / "hub"))
    moved = logdir.rename(tmp_path / "elsewhere")
    second = only(imported("tensorboard", moved, tmp_path / "hub"))
    assert (first.state, second.state, second.run.path) == ("imported", "already here", first.run.path)


# --- damage


@pytest.fixture
def records_on_disk(logdir: Path, write: Callable[..., Writer]) -> tuple[Path, list[bytes]]:
    """An event file with ten scalars, and its records."""
    writer = write()
    for step in range(10):
        writer.add(step, simple("loss", float(step)))
    path = writer.close()
    data, found = path.read_bytes(), []
    while data:
        end = 16 + struct.unpack_from("<Q", data)[0]
        found.append(data[:end])
        data = data[end:]
    assert len(found) == 11
    return path, found


def steps(one: Any) -> list[int]:
    return [step for step, _, _ in points_of(one).get("loss", [])]


def test_a_torn_tail_is_said_and_the_rest_arrives(
    records_on_disk: tuple[Path, list[bytes]], logdir: Path, tmp_path: Path
) -> None:
    path, found = records_on_disk
    for cut in range(1, len(found[-1])):
        path.write_bytes(b"".join(found)[:-cut])
        one = only(imported("tensorboard", logdir, tmp_path / f"hub{cut}"))
        assert steps(one) == list(range(9))
        assert findings(one) == {"files whose last record is cut off": 1}
        assert end_of(one).status == "killed"


def test_a_record_with_a_wrong_checksum_is_passed_over(
    records_on_disk: tuple[Path, list[bytes]], logdir: Path, tmp_path: Path
) -> None:
    path, found = records_on_disk
    damaged = bytearray(found[4])
    damaged[20] ^= 1
    path.write_bytes(b"".join([*found[:4], bytes(damaged), *found[5:]]))
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert steps(one) == [0, 1, 2, *range(4, 10)]
    assert findings(one) == {"damaged records": 1}


@pytest.mark.parametrize("garbage", [b"\0" * 500, b"\xff" * 37, bytes(range(256))])
def test_reading_goes_on_behind_garbage(
    records_on_disk: tuple[Path, list[bytes]], logdir: Path, tmp_path: Path, garbage: bytes
) -> None:
    path, found = records_on_disk
    path.write_bytes(b"".join([*found[:5], garbage, *found[5:]]))
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert steps(one) == list(range(10))
    assert findings(one) == {
        "damaged records": 1,
        "bytes passed over to find the next whole record": len(garbage),
    }


@pytest.mark.parametrize("length", [1000, 1012, 1013, 1016, 1020, 1023, 1024, 1025, 5000, 300_000])
def test_the_next_record_is_found_however_far_it_is(
    records_on_disk: tuple[Path, list[bytes]], logdir: Path, tmp_path: Path, length: int
) -> None:
    path, found = records_on_disk
    path.write_bytes(b"".join([*found[:5], b"\xff" * length, *found[5:]]))
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert steps(one) == list(range(10))
    assert count_of(one, "bytes passed over") == length


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what a process reads")
def test_much_small_damage_does_not_read_the_file_as_often(
    records_on_disk: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    def read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path, found = records_on_disk
    path.write_bytes(b"".join(record + b"\xff" for record in found) * 100 + framed(b"\x32" * 1_000_000))
    damage, before = Damage(), read_bytes()
    for _ in read_events(path, path.stat().st_size, damage):
        pass
    assert damage.skipped_bytes == 1100
    assert read_bytes() - before < 5 * path.stat().st_size


def head(length: int) -> bytes:
    """A record's head that says any length and has the right checksum."""
    size = struct.pack("<Q", length)
    crc = crc32c(size)
    return size + struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


@pytest.mark.parametrize("length", [1 << 20, 1 << 31, 1 << 62, (1 << 64) - 1])
def test_a_length_beyond_the_file_is_a_torn_tail(
    records_on_disk: tuple[Path, list[bytes]], logdir: Path, tmp_path: Path, length: int
) -> None:
    path, found = records_on_disk
    path.write_bytes(b"".join(found) + head(length) + b"x" * 100)
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert steps(one) == list(range(10))
    assert count_of(one, "files whose last record is cut off") == 1


def test_shapes_that_ask_for_memory_get_none(logdir: Path, write: Callable[..., Writer], tmp_path: Path) -> None:
    value = as_tensor("loss", np.float32(1.0))
    writer = write()
    for size in (1 << 40, -1, 1 << 62):
        value.tensor.tensor_shape.ClearField("dim")
        value.tensor.tensor_shape.dim.add(size=size)
        writer.add(0, value)
        value.tensor.tensor_shape.dim.add(size=3)
        histogram = as_tensor("histogram", np.zeros((1, 3)), "histograms")
        histogram.tensor.CopyFrom(value.tensor)
        writer.add(0, histogram)
    writer.close()
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert findings(one) == {"scalars that are no number": 3, "histograms that cannot be read": 3}


def test_an_event_of_countless_parts_is_not_unpacked(
    records_on_disk: tuple[Path, list[bytes]], logdir: Path, tmp_path: Path
) -> None:
    path, found = records_on_disk
    parts = b"\x0a\x00" * (1 << 20)  # a million empty values: 2 MiB here, a hundred in memory
    event = b"\x2a" + b"\x80\x80\x80\x01" + parts
    assert len(parts) == 1 << 21
    path.write_bytes(b"".join([*found, framed(event), *found[3:4]]))
    one = only(imported("tensorboard", logdir, tmp_path / "hub"))
    assert steps(one) == [*range(10), 2]
    assert count_of(one, "events beyond what is read") == 1


# --- our own


def test_what_our_backend_wrote_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with trackhub.init(
        name="there", params={"lr": 0.5}, mode="offline", dir=tmp_path / "hub", run_id="there"
    ) as tracker:
        for step in range(50):
            tracker.log_metrics({"loss": step / 4, "acc": step / 8}, step=step)
        tracker.log_histogram("weights", ([1.0, 2.0], [0.0, 0.5, 1.0]), step=3)
        tracker.log_image("picture", np.zeros((2, 3)), step=4)
    there = RunDirectory(tmp_path / "hub" / "there")
    assert all(sync([there], ["tensorboard"]))
    one = only(imported("tensorboard", tmp_path / "runs", tmp_path / "back"))
    assert {name: [(step, value) for step, _, value in series] for name, series in points_of(one).items()} == {
        "loss": [(step, step / 4) for step in range(50)],
        "acc": [(step, step / 8) for step in range(50)],
    }
    assert read_run(one.run.journal).params == {"lr": 0.5}
    assert [(one_.edges, one_.counts) for one_ in records(one, HistogramLogged)] == [([0.0, 0.5, 1.0], [1.0, 2.0])]
    assert [(image.name, image.step, image.width, image.height) for image in records(one, ImageLogged)] == [
        ("picture", 4, 3, 2)
    ]
    assert end_of(one).status == "finished"
    # And there again, the numbers, steps and times of the events are what they were.
    assert all(sync([one.run], ["tensorboard"]))
    first = Path(there.cursor("tensorboard").state["file"]).parent
    second = Path(one.run.cursor("tensorboard").state["file"]).parent
    assert first != second
    assert scalars_of(second) == scalars_of(first)
