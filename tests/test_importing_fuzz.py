"""What nobody vouches for: whatever the files hold, an import ends, says something true, and writes nowhere else."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from importing_helpers import imported, only
from stage import records_of

from trackhub.errors import TrackhubError
from trackhub.importing import ImportReport
from trackhub.importing.neptune.operations import KNOWN
from trackhub.journal import JournalReader
from trackhub.records import Deliverable, MetricsLogged, StoredFile

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def importing(kind: str, fill: Callable[[Path], None]) -> ImportReport | None:
    """Import what `fill` wrote, and check what must hold of any import; None if it was refused."""
    with tempfile.TemporaryDirectory() as text:
        place, hub = Path(text) / "source", Path(text) / "hub"
        place.mkdir()
        fill(place)
        before = tree(place)
        try:
            report = imported(kind, place, hub)
        except TrackhubError:
            assert not hub.exists()
            return None
        assert tree(place) == before
        assert {path.name for path in Path(text).iterdir()} <= {"source", "hub"}
        names = {one.run.path.name for one in report.runs}
        assert {path.name for path in hub.iterdir()} == names if names else not hub.exists()
        for one in report.runs:
            check(one)
            assert one.run.path.parent == hub
        second = imported(kind, place, hub)
        assert {one.state for one in second.runs} <= {"already here"}
        assert second.complete == report.complete
        return report


def check(one: Any) -> None:
    assert one.state == "imported"
    reader = JournalReader(one.run.journal)
    chunk = reader.read({}, max_points=1 << 30, max_bytes=1 << 40)
    reader.close()
    assert not chunk.damaged
    counts: dict[str, int] = {}
    for record in records_of(one.run):
        if isinstance(record, MetricsLogged):
            counts["points"] = counts.get("points", 0) + len(record.values)
        if isinstance(file := getattr(record, "file", None), StoredFile):
            path = one.run.path / file.path
            assert path.resolve().is_relative_to(one.run.blobs.resolve())
            assert path.is_file()
            assert path.stat().st_size == file.size_bytes
        if isinstance(name := getattr(record, "name", None), str):
            assert name
            assert name.isprintable() or not any(character < " " for character in name)
            assert isinstance(record, Deliverable)
    assert one.note.counts.get("points", 0) == counts.get("points", 0)
    assert one.run.end()[1] is not None


# --- Neptune

NUMBERS = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, -0.0, True]),
)
TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from(["../../x", "/etc/passwd", "\ud800", "a" * 5000, "\0", "*", "/**"])
)
JSON = st.recursive(
    st.one_of(NUMBERS, TEXTS), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)
VALUES = st.one_of(JSON, NUMBERS, TEXTS)
POINTS = st.lists(st.fixed_dictionaries({"value": VALUES}, optional={"step": NUMBERS, "ts": NUMBERS}), max_size=3)
TYPES = st.sampled_from([*sorted(KNOWN), "CopyAttribute", "ConfigFloatSeries", "Operation"])
OPERATIONS = st.fixed_dictionaries(
    {"type": TYPES, "path": st.lists(TEXTS, max_size=3)},
    optional={
        "value": st.one_of(NUMBERS, TEXTS, JSON),
        "values": st.one_of(POINTS, st.lists(TEXTS, max_size=3)),
        "hash": TEXTS,
        "ext": TEXTS,
        "file_path": TEXTS,
        "tmp_file_name": TEXTS,
        "file_content": TEXTS,
        "file_globs": st.lists(TEXTS, max_size=3),
        "reset": st.sampled_from(["True", "False", True, 3]),
        "entries": st.lists(st.lists(st.one_of(st.none(), TEXTS), max_size=2), max_size=2),
    },
)
LINES = st.builds(
    lambda operation, version, at: json.dumps({"obj": operation, "version": version, "at": at}).encode(),
    OPERATIONS,
    st.one_of(st.integers(1, 20), NUMBERS),
    st.one_of(st.floats(1e9, 2e9), NUMBERS),
)


def neptune_directory(
    data: bytes, put: bytes = b"", ack: bytes = b"", metadata: bytes = b"{}"
) -> Callable[[Path], None]:
    def fill(place: Path) -> None:
        source = place / ".neptune" / "offline" / "run__a__1__b"
        (source / "upload_path").mkdir(parents=True)
        (source / "data-1.log").write_bytes(data)
        (source / "last_put_version").write_bytes(put)
        (source / "last_ack_version").write_bytes(ack)
        (source / "metadata.json").write_bytes(metadata)

    return fill


@FUZZ
@given(st.lists(st.one_of(LINES, st.binary(max_size=40)), max_size=12), st.binary(max_size=30))
def test_any_operations_are_imported_or_counted(lines: list[bytes], tail: bytes) -> None:
    report = importing("neptune", neptune_directory(b"".join(line + b"\n" for line in lines) + tail))
    assert report is not None
    assert len(report.runs) == 1


@FUZZ
@given(st.binary(max_size=300), st.binary(max_size=40), st.binary(max_size=40), st.one_of(st.binary(max_size=60), JSON))
def test_any_bytes_in_neptunes_files_are_survived(data: bytes, put: bytes, ack: bytes, metadata: Any) -> None:
    text = metadata if isinstance(metadata, bytes) else json.dumps({"createdAt": metadata}).encode()
    assert importing("neptune", neptune_directory(data, put, ack, text)) is not None


@FUZZ
@given(
    st.integers(1, 60),
    st.integers(0, 80),
    st.lists(st.integers(0, 59), max_size=20, unique=True),
    st.integers(0, 40),
    st.integers(0, 90),
)
@example(written=10, put=10, missing=[2], cut=0, ack=5)
@example(written=10, put=12, missing=[7], cut=9, ack=5)
@example(written=10, put=3, missing=[], cut=0, ack=20)
def test_the_counts_add_up_whatever_is_missing(written: int, put: int, missing: list[int], cut: int, ack: int) -> None:
    """Of any subset of lines, with the last one cut: what is there arrives, the rest is lost or was sent."""
    kept = [at for at in range(written) if at not in missing]
    lines = [
        json.dumps(
            {"obj": {"type": "AssignInt", "path": [f"p{at}"], "value": at}, "version": at + 1, "at": 1e9}
        ).encode()
        for at in kept
    ]
    data = b"\n".join(lines)
    cut = min(cut, len(lines[-1])) if lines else 0
    if cut:
        data, kept = data[:-cut], kept[:-1]
    report = importing("neptune", neptune_directory(data, str(put).encode(), str(ack).encode()))
    assert report is not None
    one = only(report)
    assert one.note is not None
    found = {finding.reason.split(":")[0]: finding.count for finding in one.note.findings}
    highest = max([put, *(at + 1 for at in kept)])
    gone = [version for version in range(1, highest + 1) if version - 1 not in kept]
    assert one.note.counts.get("params", 0) == len(kept)
    assert found.get("operations lost", 0) == sum(version > ack for version in gone)
    assert found.get("operations that a server got and the client then deleted here", 0) == sum(
        version <= ack for version in gone
    )
    assert found.get("operations that a server got, too", 0) == sum(at + 1 <= ack for at in kept)


def in_bounded_memory(kind: str, place: Path, megabytes: int = 700) -> str:
    """Import in a process that may not have more memory; gives what it found."""
    code = (
        "import resource; from pathlib import Path; from trackhub.importing import import_runs\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({megabytes} << 20,) * 2)\n"
        f"report = import_runs({kind!r}, Path({str(place / 'source')!r}), Path({str(place / 'hub')!r}), 'p')\n"
        "print(report.runs[0].note.counts, [str(finding) for finding in report.runs[0].note.findings])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "line",
    [
        b'{"obj": {"type": "LogFloats", "path": ["a"], "values": [' + b'{"value": 0},' * (3 << 20),
        b'{"obj": {"type": "AddStrings", "path": ["a"], "values": [' + b'"ab",' * (8 << 20) + b'"a"]}, "version": 1}',
        b'{"obj": {"type": "AssignVector", "path": ["a"], "value": ' + b"[" * (40 << 20),
        b'{"obj": {"type": "AssignInt", "path": ["a"], "value": ' + b"9" * (40 << 20) + b'}, "version": 1}',
    ],
    ids=["points", "words", "depth", "digits"],
)
def test_a_line_that_would_fill_memory_does_not(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "source").mkdir()
    neptune_directory(line + b"\n")(tmp_path / "source")
    in_bounded_memory("neptune", tmp_path)


def test_a_file_without_line_ends_is_not_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    neptune_directory(b"")(tmp_path / "source")
    with next(tmp_path.rglob("data-1.log")).open("r+b") as file:
        file.truncate(1 << 30)  # takes no room on disk
    in_bounded_memory("neptune", tmp_path)


# --- TensorBoard


def event_file(data: bytes) -> Callable[[Path], None]:
    return lambda place: place.joinpath("events.out.tfevents.1").write_bytes(data) and None


def sound_file() -> bytes:
    """A file with a value of each plugin."""
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    from trackhub.backend import Notes
    from trackhub.backends.tensorboard.events import EventMaker
    from trackhub.backends.tensorboard.file import framed

    make = EventMaker({}, Notes())
    second = 10**9
    events = [
        make.version(second),
        make.session_start(second, second, {"lr": 0.5, "name": "x", "on": True}),
        make.scalars(second, 1, {"a": 1.0, "b": 2.0}, []),
        make.text(second, 2, "note", "text"),
        make.histogram(second, 3, "weights", [0.0, 1.0, 2.0], [3.0, 4.0]),
        make.image(second, 4, "picture", b"\x89PNG\r\n\x1a\n" + bytes(40), 1, 1),
        Event(wall_time=2.0, step=4, session_log=SessionLog(status=SessionLog.START)).SerializeToString(),
        make.scalars(second, 5, {"a": 6.0}, []),
        make.session_end(second, 1),
    ]
    return b"".join(map(framed, events))


@FUZZ
@given(st.data())
def test_any_change_of_an_event_file_is_survived(data: st.DataObject) -> None:
    content = bytearray(sound_file())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content)))
        removed = data.draw(st.integers(0, 40))
        content[at : at + removed] = data.draw(st.binary(max_size=40))
    importing("tensorboard", event_file(bytes(content)))


@FUZZ
@given(st.data())
def test_any_change_inside_an_event_with_a_right_checksum_is_survived(data: st.DataObject) -> None:
    pytest.importorskip("tensorboard")
    from trackhub.backends.tensorboard.file import framed

    content, events = sound_file(), []
    while content:
        size = struct.unpack_from("<Q", content)[0]
        events.append(bytearray(content[12 : 12 + size]))
        content = content[16 + size :]
    for _ in range(data.draw(st.integers(1, 6))):
        event = events[data.draw(st.integers(0, len(events) - 1))]
        at = data.draw(st.integers(0, len(event)))
        event[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    importing("tensorboard", event_file(b"".join(framed(bytes(event)) for event in events)))


@FUZZ
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes_as_events_are_survived(events: list[bytes]) -> None:
    pytest.importorskip("tensorboard")
    from trackhub.backends.tensorboard.file import framed

    importing("tensorboard", event_file(b"".join(map(framed, events))))


def test_an_event_that_would_fill_memory_does_not(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from trackhub.backends.tensorboard.file import framed

    parts = b"\x0a\x00" * (16 << 20)  # as many empty values as fit 32 MiB
    length = bytearray()
    left = len(parts)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    length.append(left)
    (tmp_path / "source").mkdir()
    event_file(sound_file() + framed(b"\x2a" + bytes(length) + parts) + sound_file())(tmp_path / "source")
    said = in_bounded_memory("tensorboard", tmp_path)
    assert "events beyond what is read (64 MiB, 200,000 parts): 1" in said


def test_what_the_sound_file_of_these_tests_holds_arrives(tmp_path: Path) -> None:
    event_file(sound_file())(tmp_path)
    one = only(imported("tensorboard", tmp_path, tmp_path / "hub"))
    assert one.note is not None
    assert one.note.counts == {"params": 1, "metrics": 2, "points": 3, "text": 1, "histograms": 1}
    assert [finding.count for finding in one.note.findings] == [1]  # the picture, which the restart supersedes
