"""What lies in a run directory is its owner's alone, nothing leads out of it, and a hostile one can do no harm."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backends_for_tests import calls_in
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from journal_helpers import EVERY_KIND, write
from stage import Stage, records_of

import trackhub
from trackhub.cursor import Cursor, CursorFile
from trackhub.errors import JournalError, SettingsError
from trackhub.journal import MAX_FRAME_BYTES, JournalReader, segment_name
from trackhub.journal.frames import MAX_PARTS, is_modest
from trackhub.journal.skim import Skim, skim
from trackhub.records import ArtifactLogged, ParamsLogged, RunEnded, StoredFile, TagsSet, TextLogged
from trackhub.rundir import Manifest, RunDirectory

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tree(place: Path) -> dict[str, bytes | None]:
    """Every path below a place: a file's content, None for a folder."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None for path in sorted(place.rglob("*"))
    }


def offline(path: Path, **more: Any) -> trackhub.Tracker:
    return trackhub.init(dir=path, mode="offline", **more)


# --- who may read


EVERYTHING = """
import os, sys, trackhub
os.makedirs("data/inner")
for name in ("data/file", "data/inner/file"):
    open(name, "w").close()
    os.chmod(name, 0o666)
os.chmod("data/inner", 0o777)
os.umask(int(sys.argv[1], 8))
with trackhub.init(backends=["lines", "metrics_only"], run_id="run", finish_timeout=30) as tracker:
    tracker.log_params({"lr": 0.1})
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.log_text("note", "text")
    tracker.log_artifact("data")
    tracker.log_artifact("data/file", "one")
    tracker.log_confusion_matrix("cm", ["a", "b"], [[1, 2], [3, 4]])
    tracker.child("trial").log_metrics({"loss": 1.0})
"""


@pytest.mark.parametrize("umask", ["000", "022", "077", "777"])
def test_all_of_a_run_directory_is_its_owner_s_alone_whatever_the_umask(stage: Stage, umask: str) -> None:
    stage.root.mkdir(mode=0o777)
    stage.root.chmod(0o777)
    (stage.root / "run").mkdir(mode=0o755)
    stage.run(f"import sys; sys.argv[1:] = [{umask!r}]\n{EVERYTHING}")
    stage.wait_closed("lines", run=RunDirectory(stage.root / "run"))
    found = list(stage.root.rglob("*"))
    assert len(found) > 20
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_temporary_directory_in_place_of_a_forbidden_one_is_its_owner_s_alone(stage: Stage) -> None:
    forbidden = stage.path / "forbidden"
    forbidden.write_text("")
    code = """
    import errno, os, trackhub, trackhub.rundir
    os.umask(0)
    make = trackhub.rundir.make_directory
    def refuse(path, **more):
        if "/hub/" in str(path):
            raise PermissionError(errno.EACCES, "no", str(path))
        make(path, **more)
    trackhub.rundir.make_directory = refuse  # root may write everywhere
    tracker = trackhub.init(mode="offline")
    tracker.log_text("note", "text")
    tracker.finish()
    print(tracker.directory)
    """
    out, _ = stage.run(code, environment={"TMPDIR": str(stage.path)})
    run = Path(out.splitlines()[-1])
    assert run.parent.parent == stage.path
    for path in (run.parent, run, *run.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# --- names


HOSTILE = [
    "../out",
    "../../out",
    "/out",
    "~/out",
    "~",
    "..",
    ".",
    "a/../../out",
    "..\\..\\out",
    "C:\\out",
    "nul\0l",
    "x" * 5_000,
    "line\nbreak",
    "\u202eright to left",
    "\uff0e\uff0e/\uff0fout",
    "\u2024\u2024/out",
    "a\u2215b",
    "%2e%2e/%2fout",
    "$(touch out)",
    "-rf",
    "\udc80",
    "",
]


@pytest.mark.parametrize("run_id", [one for one in HOSTILE if one])
def test_a_run_id_cannot_leave_the_directory(run_id: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SettingsError, match="cannot name a run"):
        offline(tmp_path / "in", run_id=run_id)
    assert tree(tmp_path) == {"in": None}


LOGGING = """
import json, sys, trackhub
names = json.loads(sys.stdin.readline())
with trackhub.init(
    project=names[0], name=names[1], backends=["tensorboard", "lines"], run_id="run", finish_timeout=40
) as tracker:
    for name in names[2:]:
        calls = [
            lambda: tracker.log_metrics({name: 1.0}, step=1),
            lambda: tracker.log_params({name: name}),
            lambda: tracker.set_tags({name: name}),
            lambda: tracker.log_artifact("file", name),
            lambda: tracker.log_model("file", name),
            lambda: tracker.log_text(name, "text"),
            lambda: tracker.log_html(name, "text", step=3),
            lambda: tracker.log_table(name, [[1]], columns=[name]),
            lambda: tracker.log_confusion_matrix(name, ["a"], [[1]]),
            lambda: tracker.log_histogram(name, [1, 2, 3]),
        ]
        for call in calls:
            try:
                call()
            except (ValueError, TypeError):
                pass
"""


def test_no_name_leaves_its_directory_in_the_backends_that_write_files(stage: Stage) -> None:
    work = stage.path / "deep" / "er" / "work"
    work.mkdir(parents=True)
    (work / "file").write_text("content")
    logs = work / "runs"
    before = tree(stage.path)
    process = stage.start(LOGGING, cwd=work, environment={"TRACKHUB_TENSORBOARD_LOGDIR": str(logs), "HOME": str(work)})
    process.stdin.write(json.dumps(["../../project", "../../name", *HOSTILE]) + "\n")
    process.stdin.close()
    assert process.wait(60) == 0
    stage.wait_closed("tensorboard", "lines")
    new = set(tree(stage.path)) - set(before)
    mine = ("hub", "deep/er/work/runs", "lines.jsonl")
    assert {name for name in new if not name.startswith(mine)} == set()
    assert tree(work / "file") == {}
    assert sum(name.startswith("deep/er/work/runs") for name in new) > 2
    for path in stage.path.rglob("*"):
        assert not path.is_symlink()


@given(name=st.text() | st.sampled_from(HOSTILE))
@FUZZ
def test_an_artifact_s_name_is_a_path_below_or_is_refused(name: str) -> None:
    with tempfile.TemporaryDirectory() as text:
        (Path(text) / "file").write_text("x")
        with offline(Path(text) / "hub", run_id="run") as tracker:
            try:
                tracker.log_artifact(Path(text) / "file", name)
            except ValueError:
                return
        records = records_of(RunDirectory(tracker.directory))
        (logged,) = [record for record in records if isinstance(record, ArtifactLogged)]
        assert not logged.name.startswith("/")
        assert not {"", ".", ".."} & set(logged.name.split("/"))
        assert (tracker.directory / logged.file.path).resolve().is_relative_to(tracker.directory.resolve())
        assert {path.name for path in Path(text).iterdir()} == {"file", "hub"}


def test_a_link_in_a_logged_directory_is_followed_once_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights").write_text("w")
    (tmp_path / "logged").mkdir()
    (tmp_path / "logged" / "link").symlink_to(tmp_path / "elsewhere")
    with offline(tmp_path / "hub", run_id="run") as tracker:
        tracker.log_artifact(tmp_path / "logged")
    assert not [path for path in tracker.directory.rglob("*") if path.is_symlink()]
    assert len([path for path in tracker.directory.rglob("weights") if path.read_text() == "w"]) == 1


# --- links in the way


@pytest.mark.parametrize("folder", ["journal", "blobs", "cursors", "rejected"])
def test_a_folder_that_is_a_link_is_not_written_to(folder: str, tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "hub" / "run"
    elsewhere.mkdir()
    run.mkdir(parents=True)
    (run / folder).symlink_to(elsewhere)
    if folder == "rejected":
        offline(tmp_path / "hub", run_id="run").finish()
        with pytest.raises(JournalError, match="its rejected is a link"):
            _ = RunDirectory(run).manifest
    else:
        with pytest.raises(NotADirectoryError, match="no folder of the run directory"):
            offline(tmp_path / "hub", run_id="run")
    assert tree(elsewhere) == {}


@pytest.mark.parametrize(
    "name", ["run.json", "delivery.log", "cursors/lines.lock", "cursors/lines.new", "cursors/lines.json"]
)
def test_a_file_that_is_a_link_is_not_written_through(stage: Stage, name: str) -> None:
    target = stage.path / "target"
    target.write_text("keep me")
    link = stage.root / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    code = """
    import trackhub
    with trackhub.init(backends=["lines"], run_id="run", finish_timeout=2) as tracker:
        tracker.log_metrics({"a": 1.0})
    """
    stage.run(code, exit_code=None)
    assert target.read_text() == "keep me"


# --- a hostile run directory


def plant(root: Path, *records: Any, name: str = "run", **changes: Any) -> RunDirectory:
    """A run directory as a stranger would make it."""
    run = RunDirectory.create(root, Manifest("run", "name", "project", 5, {"lines": {}}))
    write(run.journal, *records, RunEnded(9, "finished"))
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**content, **changes}))
    return RunDirectory(run.path)


COMMANDS = [
    ["show"],
    ["cat"],
    ["status"],
    ["sync", "--timeout", "5"],
    ["prune", "--yes", "--whole-runs"],
]


def call(stage: Stage, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trackhub", *words]
    return subprocess.run(command, cwd=stage.path, env=stage.environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "../../elsewhere"},
        {"id": "/elsewhere"},
        {"id": ""},
        {"id": "a\0b"},
        {"parent_id": "../elsewhere"},
        {"parent_id": "x" * 200},
        {"backends": {"../../elsewhere/secret": {}}},
        {"backends": {"/elsewhere": {}}},
        {"in_process": ["../../elsewhere/secret"]},
    ],
)
def test_a_run_json_that_leads_elsewhere_is_refused_by_every_command(stage: Stage, changes: dict[str, Any]) -> None:
    elsewhere = stage.path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.json").write_text("{}")
    run = plant(stage.root, TagsSet(1, {"a": "b"}), **changes)
    with pytest.raises(JournalError, match="no run directory to be trusted"):
        _ = run.manifest
    before = tree(stage.path)
    for command in COMMANDS:
        done = call(stage, command[0], str(run.path), *command[1:])
        assert done.returncode == 2
        assert "no run directory to be trusted" in done.stderr
        assert "Traceback" not in done.stderr
    assert tree(stage.path) == before


def test_a_file_outside_of_a_run_directory_is_never_delivered(stage: Stage) -> None:
    (stage.path / "private").mkdir()
    (stage.path / "private" / "key").write_text("a private key")
    (stage.path / "shared").write_text("logged in place")
    files = {
        "dots": "../../private/key",
        "deep dots": "blobs/../../../private/key",
        "folder": "blobs/link",
        "file": "blobs/key",
        "below": "blobs/folder",
        "own": "blobs/own",
    }
    logged = [ArtifactLogged(1, name, StoredFile(path, 3)) for name, path in files.items()]
    in_place = ArtifactLogged(1, "in place", StoredFile(str(stage.path / "shared"), 3))
    run = plant(stage.root, *logged, TextLogged(2, "text", StoredFile("../../private/key", 3)), in_place)
    (run.blobs / "link").symlink_to(stage.path / "private")
    (run.blobs / "key").symlink_to(stage.path / "private" / "key")
    (run.blobs / "folder").mkdir()
    (run.blobs / "folder" / "inner").symlink_to(stage.path / "private" / "key")
    (run.blobs / "own").write_text("x")
    done = call(stage, "sync", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    written = [
        record["name"] for one in calls_in(stage.lines) if one["call"] == "write_artifacts" for record in one["records"]
    ]
    assert written == ["own", "in place"]
    report = run.cursor("lines").report
    assert report.rejected == 6
    assert "its file is not in the run directory" in (run.rejected / "lines.jsonl").read_text()
    assert (stage.path / "private" / "key").read_text() == "a private key"


def test_a_file_logged_in_place_in_another_user_s_run_is_not_read(tmp_path: Path) -> None:
    run = plant(tmp_path)
    (tmp_path / "file").write_text("x")
    in_place = StoredFile(str(tmp_path / "file"), 1)
    assert run.lies_inside(in_place)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(run.path / "run.json", 12_345, 12_345)
    assert not run.lies_inside(in_place)
    assert run.lies_inside(StoredFile("blobs/x", 1))


@pytest.mark.parametrize("name", ["run.json", "cursors/lines.json", "journal/w0001-s000001.journal"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "link to nothing"])
def test_what_is_no_file_keeps_nobody_waiting(stage: Stage, name: str, kind: str) -> None:
    run = plant(stage.root, TagsSet(1, {"a": "b"}))
    path = run.path / name
    path.unlink(missing_ok=True)
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "endless": lambda: path.symlink_to("/dev/zero"),
        "link to nothing": lambda: path.symlink_to("/nothing/here"),
    }[kind]()
    for command in (["status"], ["show", "run"], ["runs"]):
        done = call(stage, *command)
        assert done.returncode in (0, 1, 2)
        assert "Traceback" not in done.stderr


# --- fuzzing


def frame(payload: bytes, *, size: int | None = None) -> bytes:
    return struct.pack("<II", len(payload) if size is None else size, zlib.crc32(payload)) + payload


def segment(*frames: bytes, writer: int = 1, number: int = 0) -> bytes:
    return struct.pack("<8sIIII", b"trackhub", 1, writer, number, 0) + b"".join(frames)


pack = msgspec.msgpack.encode
msgpack = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
payloads = (
    st.binary(min_size=1, max_size=60)
    | st.tuples(st.integers(0, 30), st.lists(msgpack, max_size=6)).map(
        lambda one: msgspec.msgpack.encode([one[0], *one[1]])
    )
    | st.sampled_from(
        [msgspec.msgpack.encode(record) for record in EVERY_KIND if type(record).__name__ != "MetricsLogged"]
    )
)
frames = (
    payloads.map(frame)
    | st.binary(max_size=60)
    | st.tuples(payloads, st.integers(0, 2**32 - 1)).map(lambda one: frame(one[0], size=one[1]))
)
places = st.dictionaries(
    st.sampled_from(["1", "2", "-1", "x", "", "9" * 30]), st.tuples(st.integers(), st.integers()), max_size=2
)


@given(content=st.lists(st.lists(frames, max_size=8), min_size=1, max_size=3), cut=st.integers(0, 40), position=places)
@example(content=[[b"\xff" * 40], []], cut=0, position={"1": (0, -5)})
@FUZZ
def test_reader_and_skim_take_any_journal(content: list[list[bytes]], cut: int, position: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as text:
        run = RunDirectory.create(Path(text), Manifest("run", "name", "project", 5, {"lines": {}}))
        run.journal.mkdir()
        for number, one in enumerate(content):
            data = segment(*one, number=number)
            (run.journal / segment_name(1, number)).write_bytes(data[: len(data) - cut])
        file = run.cursor_file("lines")
        file.path.write_bytes(msgspec.json.encode(Cursor(position=position)))
        # A place is only ever read from a cursor, which gives none that cannot be.
        place = file.load().position
        amount = skim(run.journal, place)
        reader = JournalReader(run.journal)
        records = 0
        while not (chunk := reader.read(place)).empty:
            assert len(chunk.damaged) <= 5_010
            records += sum(not isinstance(record, RunEnded) for record in chunk.records)
            place = chunk.position
        reader.last_owner()
        reader.close()
        assert amount.records >= records or amount == Skim()
        run.end()
        assert run.manifest.id == "run"


@given(content=st.binary(max_size=200) | msgpack.map(msgspec.json.encode))
@FUZZ
def test_any_cursor_is_read_or_begun_anew(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as text:
        file = CursorFile(Path(text), "lines")
        file.path.write_bytes(content)
        cursor = file.load()
        for writer, (number, offset) in cursor.position.items():
            assert int(writer) >= 0
            assert number >= 0
            assert offset >= 0
        file.save(cursor)
        assert file.load() == cursor


MANIFEST = {"id": "run", "name": "n", "project": "p", "created_ns": 5, "backends": {"lines": {}}}


@given(
    content=st.binary(max_size=200)
    | msgpack.map(msgspec.json.encode)
    | st.tuples(st.sampled_from([*MANIFEST, "parent_id", "in_process"]), msgpack).map(
        lambda one: msgspec.json.encode({**MANIFEST, one[0]: one[1]})
    )
)
@FUZZ
def test_any_run_json_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as text:
        run = RunDirectory(Path(text) / "run")
        run.path.mkdir()
        (run.path / "run.json").write_bytes(content)
        try:
            manifest = run.manifest
        except JournalError:
            return
        for name in (manifest.id, *manifest.backends, *manifest.in_process):
            assert (run.path / f"{name}.json").resolve().parent == run.path.resolve()


# --- memory


READING = """
import resource, sys
from pathlib import Path
from trackhub.journal import JournalReader
from trackhub.journal.skim import skim
from trackhub.readout import read_run
from trackhub.rundir import RunDirectory
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
run = RunDirectory(Path(sys.argv[1]))
reader, place = JournalReader(run.journal), {}
while not (chunk := reader.read(place)).empty:
    place = chunk.position
skim(run.journal)
read_run(run.journal)
run.end()
run.cursor("lines")
try:
    run.manifest
except Exception as error:
    print(type(error).__name__, error)
"""
READING_LIMIT_BYTES = 1 << 30


def tagged(tag: int, *fields: bytes) -> bytes:
    return bytes([0x90 | (len(fields) + 1), tag, *b"".join(fields)])


def array(count: int, member: bytes) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + member * count


def names(count: int) -> bytes:
    return tagged(16, array(count, b"\xa3abc"))


def bombs() -> Iterator[Any]:
    big = MAX_FRAME_BYTES - 100
    yield pytest.param(
        lambda: frame(tagged(3, b"\x01", b"\x81\xa1x" + array(big - 20, b"\x90"))), id="lists in a param"
    )
    yield pytest.param(
        lambda: frame(tagged(3, b"\x01", b"\x81\xa1x" + array(big - 20, b"\x80"))), id="mappings in a param"
    )
    yield pytest.param(lambda: frame(names(big // 4)), id="names of metrics")
    yield pytest.param(lambda: b"".join(frame(names(900_000)) for _ in range(12)), id="many names of metrics")
    yield pytest.param(lambda: frame(tagged(3, b"\x01", b"\xdf\xff\xff\xff\xff")), id="a mapping of 4 billion")
    yield pytest.param(lambda: frame(tagged(16, b"\xdd\xff\xff\xff\xff")), id="4 billion names")
    yield pytest.param(lambda: frame(tagged(3, b"\x01", b"\x81\xa1x" + b"\x91" * 1_000_000)), id="deep lists")
    yield pytest.param(lambda: frame(b"\x93", size=0xFFFFFFFF), id="a length of 4 GB")
    yield pytest.param(lambda: frame(tagged(99)) * 400_000, id="unknown records")
    yield pytest.param(lambda: (b"\x01\0\0\0" * 2 + b"\x93") * 300_000, id="damage everywhere")


@pytest.mark.parametrize("bomb", list(bombs()))
def test_no_journal_eats_the_memory_of_who_reads_it(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    run = plant(tmp_path, TagsSet(1, {"a": "b"}))
    (run.journal / segment_name(1, 1)).write_bytes(segment(bomb(), number=1))
    expect_modest(run)


@pytest.mark.parametrize(
    "name", ["journal/w0001-s000001.journal", "run.json", "cursors/lines.json", "cursors/lines.lock"]
)
def test_a_file_of_a_terabyte_is_not_read_whole(name: str, tmp_path: Path) -> None:
    run = plant(tmp_path, TagsSet(1, {"a": "b"}))
    with (run.path / name).open("ab") as file:
        file.write(segment(number=1))
        os.truncate(file.fileno(), 1 << 40)
    said = expect_modest(run)
    assert (name == "run.json") == ("larger than" in said)


def expect_modest(run: RunDirectory) -> str:
    limit = READING_LIMIT_BYTES
    done = subprocess.run(
        [sys.executable, "-c", READING, str(run.path), str(limit)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_what_cannot_be_read_back_is_refused_when_it_is_logged(tmp_path: Path) -> None:
    with offline(tmp_path, run_id="run") as tracker:
        with pytest.raises(ValueError, match="over the limit"):
            tracker.log_params({"x": [[]] * (MAX_PARTS + 1)})
        tracker.log_params({"x": [0.5] * (MAX_PARTS + 1)})
        tracker.log_params({"x": ["a"] * (MAX_PARTS // 2)})
    assert list(map(type, records_of(RunDirectory(tracker.directory)))) == [ParamsLogged, ParamsLogged, RunEnded]


@given(record=st.lists(msgpack, max_size=20))
@FUZZ
def test_parts_are_counted_as_they_are(record: list[Any]) -> None:
    def parts(value: Any) -> int:
        if isinstance(value, (str, bytes)):
            return 1
        if isinstance(value, dict):
            return 1 + sum(parts(key) + parts(member) for key, member in value.items())
        return 1 + sum(map(parts, value)) if isinstance(value, list) else 0

    payload = msgspec.msgpack.encode(record)
    count = parts(record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trackhub.journal.frames.MAX_PARTS", max(count - 1, 0))
        assert is_modest(payload) == (len(payload) <= max(count - 1, 0))
        patch.setattr("trackhub.journal.frames.MAX_PARTS", count)
        assert is_modest(payload)
