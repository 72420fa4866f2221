"""Directories that Neptune's real client wrote, complete, killed, forked and tampered with, as runs of ours."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from importing_helpers import (
    QUIET,
    content,
    count_of,
    end_of,
    findings,
    imported,
    neptune,
    only,
    operations_in,
    points_of,
    records,
    run_directories,
)

from trackhub.errors import RunNotFoundError, SettingsError
from trackhub.importing.neptune.log import Versions
from trackhub.importing.neptune.mapping import MAX_TEXTS
from trackhub.readout import read_run
from trackhub.records import ArtifactLogged, ImageLogged, ParamsLogged, TagsSet, TextLogged

needs_client = pytest.mark.skipif(
    importlib.util.find_spec("neptune") is None, reason="needs the package neptune, whose client writes the directories"
)

EVERYTHING = f"""
import datetime, neptune, pathlib
from neptune.types import File, FloatSeries
from PIL import Image
run = neptune.init_run({QUIET}, name="first try", description="a note", tags=["old", "new"])
run["params/lr"] = 0.1
run["params/epochs"] = 3
run["params/nesterov"] = True
run["params/optimizer"] = "sgd \\N{{SNOWMAN}}"
run["params/begun"] = datetime.datetime.fromtimestamp(1700000000.0)
run["config"] = {{"model": {{"depth": 2}}}}
for at in range(4):
    run["train/loss"].append(1 / (at + 1), step=10 * at, timestamp=1700000000.25 + at)
run["train/accuracy"].extend([0.5, 0.75, 0.875])
run["fraction"].append(1.0, step=0.5)
run["fraction"].append(2.0, step=1.5)
run["notes"].append("hello", step=1, timestamp=1700000001.5)
run["notes"].append("world\\nagain", step=4, timestamp=1700000002.5)
pathlib.Path("model.bin").write_bytes(b"weights")
run["model"].upload("model.bin")
run["report"].upload(File.from_content("all is well"))
pathlib.Path("code").mkdir()
pathlib.Path("code/a.py").write_text("a = 1")
pathlib.Path("code/b.txt").write_text("b")
run["code"].upload_files("code/*.py")
run["picture"].append(File.as_image(Image.new("RGB", (5, 4))), step=2, name="black", description="all of it",
                      timestamp=1700000003.5)
run["sys/tags"].remove("old")
run["forgotten"] = 1
del run["forgotten"]
run["data"].track_files("model.bin")
run["again"] = FloatSeries([1.0, 2.0])
run["again"] = FloatSeries([3.0], steps=[7])
run.stop()
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("everything")
    neptune(directory, EVERYTHING)
    return directory


# --- a run that was stopped


@needs_client
def test_a_whole_run_arrives_with_its_own_steps_times_and_values(everything: Path, tmp_path: Path) -> None:
    (source,) = run_directories(everything)
    one = only(imported("neptune", everything / ".neptune", tmp_path / "hub"))
    identity = json.loads((source / "metadata.json").read_text())
    assert one.run.path == tmp_path / "hub" / f"neptune-{identity['containerId']}"
    manifest = one.run.manifest
    assert (one.state, manifest.name, manifest.project) == ("imported", "first try", "tests")
    created = datetime.fromtimestamp(manifest.created_ns / 1e9, UTC)
    assert abs(created - datetime.fromisoformat(identity["createdAt"])).total_seconds() < 1e-5

    held = read_run(one.run.journal)
    assert held.params == {
        "params/lr": 0.1,
        "params/epochs": 3,
        "params/nesterov": True,
        "params/optimizer": "sgd \N{SNOWMAN}",
        "params/begun": "2023-11-14T22:13:20+00:00",
        "config/model/depth": 2,
        "data": ["model.bin"],
    }
    assert held.tags == {
        "sys/name": "first try",
        "sys/description": "a note",
        "sys/tags": "new",
        "sys/failed": "False",
    }
    points = points_of(one)
    assert points["train/loss"] == [(10 * at, 1_700_000_000_250_000_000 + at * 10**9, 1 / (at + 1)) for at in range(4)]
    assert [(step, value) for step, _, value in points["train/accuracy"]] == [(0, 0.5), (1, 0.75), (2, 0.875)]
    assert [(step, value) for step, _, value in points["fraction"]] == [(0, 1.0), (1, 2.0)]
    assert [(step, value) for step, _, value in points["again"]] == [(7, 3.0)]
    assert findings(one) == {
        "steps that were no whole numbers, rounded down": 2,
        "operations on fields that were emptied or deleted later": 2,
        "earlier states of sets of words, not kept": 1,
    }
    assert one.complete


@needs_client
def test_texts_pictures_and_files_arrive(everything: Path, tmp_path: Path) -> None:
    one = only(imported("neptune", everything / ".neptune" / "offline", tmp_path / "hub"))
    texts = [(text.name, text.step, text.time_ns, content(one, text)) for text in records(one, TextLogged)]
    assert texts == [
        ("notes", 1, 1_700_000_001_500_000_000, b"hello"),
        ("notes", 4, 1_700_000_002_500_000_000, b"world\nagain"),
        ("picture/caption", 2, 1_700_000_003_500_000_000, b"black\n\nall of it"),
    ]
    (picture,) = records(one, ImageLogged)
    assert (picture.name, picture.step, picture.width, picture.height) == ("picture", 2, 5, 4)
    assert picture.time_ns == 1_700_000_003_500_000_000
    assert content(one, picture).startswith(b"\x89PNG")
    files = {file.name: content(one, file) for file in records(one, ArtifactLogged)}
    assert files == {"model.bin": b"weights", "report.txt": b"all is well", "code/a.py": b"a = 1"}


@needs_client
def test_the_run_ends_when_its_last_operation_was(everything: Path, tmp_path: Path) -> None:
    (source,) = run_directories(everything)
    ended = end_of(only(imported("neptune", source, tmp_path / "hub")))
    assert ended.status == "finished"
    assert ended.time_ns / 1e9 == pytest.approx(operations_in(source)[-1]["at"], abs=1e-6)


@needs_client
def test_neither_the_vendors_package_nor_another_is_imported(everything: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trackhub.importing import import_runs\n"
        f"report = import_runs('neptune', Path({str(everything)!r}), Path({str(tmp_path / 'hub')!r}), 'p')\n"
        "assert report.runs[0].complete\n"
        "print([name for name in ('neptune', 'tensorboard', 'numpy', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@needs_client
def test_a_run_that_raised_has_failed(tmp_path: Path) -> None:
    code = f"""
    import neptune
    run = neptune.init_run({QUIET.replace("capture_traceback=False", "capture_traceback=True")})
    run["loss"].append(0.5)
    raise ValueError("no more data")
    """
    neptune(tmp_path, code, exit_code=1)
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert end_of(one).status == "failed"
    trace = [content(one, text).decode() for text in records(one, TextLogged) if text.name.endswith("/traceback")]
    assert trace[-1] == "no more data"


@needs_client
def test_a_long_text_series_becomes_one_file(tmp_path: Path) -> None:
    count = MAX_TEXTS + 1
    neptune(
        tmp_path,
        f"""
        import neptune
        run = neptune.init_run({QUIET})
        for at in range({count}):
            run["stdout"].append(f'line "{{at}}"\\nmore', timestamp=1700000000.5 + at)
        run["short"].append("kept apart")
        run.stop()
        """,
    )
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    (file,) = records(one, ArtifactLogged)
    rows = list(csv.reader(io.StringIO(content(one, file).decode(), newline="")))
    assert file.name == "stdout.csv"
    assert rows[0] == ["step", "timestamp", "value"]
    assert [(int(step), float(at), text) for step, at, text in rows[1:]] == [
        (at, 1700000000.5 + at, f'line "{at}"\nmore') for at in range(count)
    ]
    assert [text.name for text in records(one, TextLogged)] == ["short"]
    assert findings(one) == {"long text series, each kept as one CSV file": 1}


# --- a run that was killed

KILLED = f"""
import neptune, os, signal, sys
run = neptune.init_run({QUIET})
for at in range(700):
    run["loss"].append(at / 7, step=at, timestamp=1700000000 + at)
    if at == FLUSHED:
        run.wait(disk_only=True)
print(run._op_processor._queue._last_put_file.read_local(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_client
@pytest.mark.parametrize("flushed", [-1, 300, 699])
def test_of_a_killed_run_all_that_is_on_disk_arrives_and_the_lost_are_counted(tmp_path: Path, flushed: int) -> None:
    given_out = int(neptune(tmp_path, KILLED.replace("FLUSHED", str(flushed)), exit_code=-9))
    (source,) = run_directories(tmp_path)
    on_disk = operations_in(source)
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    series = [value for entry in on_disk if entry["obj"]["path"] == ["loss"] for value in entry["obj"]["values"]]
    assert flushed < len(series) <= 700
    assert points_of(one)["loss"] == [(value["step"], int(value["ts"]) * 10**9, value["value"]) for value in series]
    lost = given_out - len(on_disk)
    assert count_of(one, "operations lost") == lost
    if flushed == 699:
        # Nothing tells such a run from one that was stopped.
        assert (lost, one.complete, end_of(one).status) == (0, True, "finished")
    else:
        assert lost == 700 - len(series) > 0
        assert (one.complete, end_of(one).status) == (False, "killed")


@needs_client
def test_a_run_that_is_killed_from_outside_at_any_moment_adds_up(tmp_path: Path) -> None:
    code = f"""
    import itertools, neptune
    run = neptune.init_run({QUIET})
    print("begun", flush=True)
    for at in itertools.count():
        run["loss"].append(float(at), step=at)
    """
    (tmp_path / "train.py").write_text("\n".join(line.removeprefix("    ") for line in code.splitlines()))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "train.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        while "begun" not in (line := process.stdout.readline()):
            assert line, "the script ended early"
        until = time.monotonic() + 60
        while not run_directories(tmp_path) or len(operations_in(run_directories(tmp_path)[0])) < 1_000:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
    (source,) = run_directories(tmp_path)
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    on_disk = operations_in(source)
    counter = int((source / "last_put_version").read_text())
    assert [step for step, _, _ in points_of(one)["loss"]] == [
        entry["obj"]["values"][0]["step"] for entry in on_disk if entry["obj"]["path"] == ["loss"]
    ]
    # The counter is written after the operation has been handed over, so it may be behind by the one in between.
    assert count_of(one, "operations lost") == max(0, counter - len(on_disk))
    assert count_of(one, "counters") == 0


@needs_client
def test_what_a_fork_wrote_twice_arrives_once(tmp_path: Path) -> None:
    neptune(
        tmp_path,
        f"""
        import neptune, os
        run = neptune.init_run({QUIET})
        for at in range(200):
            run["loss"].append(at / 3, step=at)
        child = os.fork()
        if child == 0:
            run["child"] = 1
            run.stop()
            os._exit(0)
        os.waitpid(child, 0)
        run["parent"] = 2
        run.stop()
        """,
    )
    sources = run_directories(tmp_path)
    assert len(sources) == 2
    lines = (sources[0] / "data-1.log").read_bytes().count(b"\n")
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert [(step, value) for step, _, value in points_of(one)["loss"]] == [(at, at / 3) for at in range(200)]
    held = read_run(one.run.journal)
    assert (held.params["child"], held.params["parent"]) == (1, 2)
    assert count_of(one, "operations lost") == 0
    # The client's fork handlers write the parent's memory out twice, the second copy from the middle of a line on.
    assert count_of(one, "lines that were there twice") > 0
    taken = len(operations_in(sources[0]))
    assert count_of(one, "lines that were there twice") + count_of(one, "damaged lines") == lines - taken


@needs_client
def test_what_a_server_took_is_counted_apart(tmp_path: Path) -> None:
    """The client's own queue rolls its files, takes a server's acknowledgements, and deletes what they cover."""
    neptune(
        tmp_path,
        f"""
        import neptune, pathlib, threading
        run = neptune.init_run({QUIET})
        source = run._op_processor.data_path
        run.stop()
        from neptune.core.components.queue.disk_queue import DiskQueue
        from neptune.internal.operation import LogFloats, Operation
        path = source.parent.parent / "async" / source.name
        path.parent.mkdir()
        source.rename(path)
        queue = DiskQueue(path, lambda one: one.to_dict(), Operation.from_dict, threading.RLock(), max_file_size=2000)
        for at in range(100):
            queue.put(LogFloats(["loss"], [LogFloats.ValueType(float(at), at, 1700000000.0 + at)]))
        queue.flush()
        queue.ack(60)
        queue.close()
        """,
    )
    (source,) = run_directories(tmp_path)
    on_disk = operations_in(source)
    versions = [entry["version"] for entry in on_disk]
    assert len(list(source.glob("data-*.log"))) > 2
    assert versions == list(range(versions[0], versions[-1] + 1))
    assert 1 < versions[0] <= 60
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert len(points_of(one)["loss"]) == len(versions)
    assert count_of(one, "operations lost") == 0
    assert count_of(one, "operations that a server got and the client then deleted") == versions[0] - 1
    assert count_of(one, "operations that a server got, too") == 60 - versions[0] + 1
    assert (one.complete, end_of(one).status) == (False, "finished")


# --- directories written by hand, as damage and malice would have them


def write_directory(
    place: Path, operations: list[object], name: str = "run__5f1c__1__abcdefgh", put: object = None
) -> Path:
    source = place / ".neptune" / "offline" / name
    source.mkdir(parents=True)
    lines = [
        line if isinstance(line, bytes) else json.dumps({"obj": line, "version": at, "at": 1700000000.0 + at}).encode()
        for at, line in enumerate(operations, 1)
    ]
    (source / "data-1.log").write_bytes(b"".join(line + b"\n" for line in lines))
    (source / "last_put_version").write_text(str(len(operations) if put is None else put))
    (source / "last_ack_version").touch()
    (source / "metadata.json").write_text('{"createdAt": "2024-05-01T10:00:00+00:00"}')
    return source


def assign(name: str, value: int) -> dict[str, object]:
    return {"type": "AssignInt", "path": name.split("/"), "value": value}


def upload(**fields: object) -> dict[str, object]:
    return {"type": "UploadFile", "path": ["file"], "ext": "txt", **fields}


def test_damaged_torn_and_missing_lines_are_counted_and_the_rest_arrives(tmp_path: Path) -> None:
    source = write_directory(
        tmp_path,
        [
            assign("a", 1),
            b"\0\0\0\0",
            assign("c", 3),
            b'{"obj": {"type": "AssignInt", "pa{"obj": {"type": "AssignInt", "path": ["d"], "value": 4}, "version": 4}',
            b"\xff\xfe not even text",
            b"[" * 100_000,
            assign("g", 7),
        ],
        put=12,
    )
    with (source / "data-1.log").open("ab") as file:
        file.write(b'{"obj": {"type": "AssignInt", "path": ["h"], "val')
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert read_run(one.run.journal).params == {"a": 1, "c": 3, "d": 4, "g": 7}
    assert findings(one) == {
        "operations lost: the client had counted them, but they never reached the disk": 12 - 4,
        "damaged lines": 3,
        "last lines cut off": 1,
    }
    assert end_of(one).status == "killed"


@pytest.mark.parametrize("put", ["", "nonsense", "-3", "9" * 30])
def test_a_counter_that_says_nothing_is_told(tmp_path: Path, put: str) -> None:
    write_directory(tmp_path, [assign("a", 1), assign("b", 2), assign("c", 3)], put=put)
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert len(read_run(one.run.journal).params) == 3
    assert count_of(one, "counters") == 1
    assert not one.complete


def test_operations_of_other_clients_are_named(tmp_path: Path) -> None:
    write_directory(
        tmp_path,
        [
            {"type": "AssignVector", "path": ["v"], "value": [1, 2]},
            {"type": "CopyAttribute", "path": ["w"], "container_id": "x"},
            {"type": "ConfigFloatSeries", "path": ["loss"], "min": 0, "max": 1, "unit": "nat"},
            assign("a", 1),
        ],
    )
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert findings(one) == {
        "operations of the kind AssignVector, not imported": 1,
        "operations of the kind CopyAttribute, not imported": 1,
        "settings of charts, not kept": 1,
    }


def test_values_that_only_python_writes_are_read(tmp_path: Path) -> None:
    point = {"value": float("nan"), "step": None, "ts": 1700000000.0}
    write_directory(
        tmp_path,
        [
            {"type": "LogFloats", "path": ["loss"], "values": [point, {**point, "value": float("-inf")}]},
            {"type": "AssignString", "path": ["s"], "value": "lone \ud800 surrogate"},
            {"type": "AssignInt", "path": ["n"], "value": 10**30},
        ],
    )
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert [repr(value) for _, _, value in points_of(one)["loss"]] == ["nan", "-inf"]
    assert read_run(one.run.journal).params == {"s": "lone ? surrogate", "n": str(10**30)}
    assert one.complete


def test_points_whose_step_fits_nowhere_are_counted(tmp_path: Path) -> None:
    values = [{"value": 1.0, "step": step, "ts": 1e300} for step in (1e300, -(2**63), 2**63, 5)]
    write_directory(tmp_path, [{"type": "LogFloats", "path": ["loss"], "values": values}])
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    # A time that is none is that of the operation.
    assert points_of(one)["loss"] == [(step, 1_700_000_001_000_000_000, 1.0) for step in (-(2**63), 5)]
    assert count_of(one, "points whose step does not fit 64 bits") == 2
    assert count_of(one, "times that do not fit 64 bits") == 2


def test_a_time_beyond_all_floats_is_counted_and_nothing_is_lost(tmp_path: Path) -> None:
    source = write_directory(
        tmp_path, [json.dumps({"obj": assign("a", 1), "version": 1, "at": 10**400}).encode(), assign("b", 2)]
    )
    (source / "metadata.json").unlink()
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    # Without metadata the run begins with its first operation that has a time.
    assert one.run.manifest.created_ns == 1_700_000_002 * 10**9
    assert {record.time_ns for record in records(one, ParamsLogged)} == {1_700_000_002 * 10**9}
    assert read_run(one.run.journal).params == {"a": 1, "b": 2}
    assert count_of(one, "times that do not fit 64 bits") == 1


def test_a_directory_of_a_project_is_left_out_and_said(tmp_path: Path) -> None:
    write_directory(tmp_path, [assign("a", 1)])
    other = write_directory(tmp_path, [assign("a", 1)], name="project__9e__1__abcdefgh")
    report = imported("neptune", tmp_path, tmp_path / "hub")
    assert len(report.runs) == 1
    assert report.left_out == [f"{other} is of a project, not of a run: left out"]
    assert not report.complete


def test_a_copy_of_a_directory_does_not_double_a_run(tmp_path: Path) -> None:
    source = write_directory(tmp_path, [assign("a", 1)])
    shutil.copytree(source, tmp_path / ".neptune" / "backup" / source.name)
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert len(list(records(one, ParamsLogged))) == 1
    assert count_of(one, "directories that are copies") == 1


def test_files_are_read_only_where_they_may_be(tmp_path: Path) -> None:
    place, secrets, more = tmp_path / "work", tmp_path / "secrets", tmp_path / "more"
    for directory in (place, secrets, more):
        directory.mkdir()
        (directory / "file.txt").write_text(directory.name)
    source = write_directory(
        place,
        [
            upload(path=["inside"], file_path=str(place / "file.txt")),
            upload(path=["outside"], file_path=str(secrets / "file.txt")),
            upload(path=["dots"], file_path=f"{place}/../secrets/file.txt"),
            upload(path=["link"], file_path=str(place / "link.txt")),
            upload(path=["folder link"], file_path=str(place / "folder" / "file.txt")),
            upload(path=["allowed"], file_path=str(more / "file.txt")),
            upload(path=["relative"], file_path="file.txt"),
            upload(path=["gone"], file_path=str(place / "gone.txt")),
            upload(path=["device"], file_path="/dev/zero"),
            upload(path=["copy"], tmp_file_name="copy.txt"),
            upload(path=["copy dots"], tmp_file_name="../../../../secrets/file.txt"),
            upload(path=["copy absolute"], tmp_file_name=str(secrets / "file.txt")),
            upload(path=["copy link"], tmp_file_name="link.txt"),
            upload(path=["copy pipe"], tmp_file_name="pipe"),
            {"type": "UploadFileSet", "path": ["set"], "file_globs": [f"{secrets}/*"], "reset": "False"},
            {"type": "UploadFileSet", "path": ["set"], "file_globs": [f"{place}/../**"], "reset": "False"},
            {"type": "UploadFileSet", "path": ["set"], "file_globs": [f"{place}/f*"], "reset": "False"},
            upload(path=["..", "..", "escape"], tmp_file_name="copy.txt"),
        ],
    )
    (place / "link.txt").symlink_to(secrets / "file.txt")
    (place / "folder").symlink_to(secrets)
    (source / "upload_path").mkdir()
    (source / "upload_path" / "copy.txt").write_text("copy")
    (source / "upload_path" / "link.txt").symlink_to(secrets / "file.txt")
    os.mkfifo(source / "upload_path" / "pipe")
    one = only(imported("neptune", place, tmp_path / "hub", files_from=[more]))
    assert {file.name: content(one, file) for file in records(one, ArtifactLogged)} == {
        "inside.txt": b"work",
        "allowed.txt": b"more",
        "copy.txt": b"copy",
        "set/file.txt": b"work",
        "_/_/escape.txt": b"copy",
    }
    assert findings(one) == {
        "files outside of the training directory, not read (allow with --files-from)": 7,
        "files that are gone": 3,
        "copies whose name leads elsewhere": 3,
        "links and special files in sets of files, not read": 1,
    }


def test_a_home_directory_is_no_training_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text("secret")
    write_directory(tmp_path, [upload(file_path=str(tmp_path / "key"))])
    one = only(imported("neptune", tmp_path / ".neptune", tmp_path / "hub"))
    assert not list(records(one, ArtifactLogged))
    assert count_of(one, "files outside") == 1


def test_what_of_a_set_of_files_is_passed_over_is_counted(tmp_path: Path) -> None:
    place = tmp_path / "work"
    (place / "data" / "deep").mkdir(parents=True)
    (place / "data" / "a.txt").write_text("a")
    (place / "data" / "deep" / "b.txt").write_text("b")
    (place / "data" / "link.txt").symlink_to(place / "data" / "a.txt")
    (place / "data" / "folder.txt").symlink_to(place / "data" / "deep")
    (place / "data" / "link.bin").symlink_to(place / "data" / "a.txt")
    os.mkfifo(place / "data" / "deep" / "pipe.txt")
    in_set = {"type": "UploadFileSet", "path": ["set"], "file_globs": [f"{place}/data/**/*.txt"], "reset": "False"}
    write_directory(place, [in_set])
    one = only(imported("neptune", place, tmp_path / "hub"))
    assert {file.name for file in records(one, ArtifactLogged)} == {"set/a.txt", "set/deep/b.txt"}
    assert findings(one) == {"links and special files in sets of files, not read": 3}
    assert not one.complete


BOTH = ["b.txt", "a/d.txt"]


@pytest.mark.parametrize(("limit", "found"), [(1, []), (3, ["b.txt"]), (4, BOTH), (5, BOTH)])
def test_a_walk_that_is_cut_off_is_said(
    limit: int, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackhub.importing.neptune.files.MAX_LOOKED_AT", limit)
    place = tmp_path / "work"
    for name in ("a", "c/e"):
        (place / "data" / name).mkdir(parents=True)
    for name in ("b.txt", "a/d.txt"):
        (place / "data" / name).write_text(name)
    # In the order they are looked at: a, b.txt, c, a/d.txt, c/e.
    in_set = {"type": "UploadFileSet", "path": ["set"], "file_globs": [f"{place}/data/**/*.txt"], "reset": "False"}
    write_directory(place, [in_set])
    one = only(imported("neptune", place, tmp_path / "hub"))
    assert [file.name for file in records(one, ArtifactLogged)] == [f"set/{name}" for name in found]
    reason = f"sets of files with more than {limit} files and directories, not looked at further"
    assert findings(one) == ({reason: 1} if limit < 5 else {})
    assert one.complete == (limit >= 5)


@pytest.mark.parametrize("folder", ["offline", "async"])
def test_a_folder_without_its_neptune_directory_opens_nothing_above_it(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home" / "me", tmp_path / "home" / "me" / "work"
    monkeypatch.setenv("HOME", str(home))
    names = [home / "key", home.parent / "key", home.parent / "other" / "key", work / "file"]
    for name in names:
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(name.parent.name)
    source = write_directory(tmp_path, [upload(path=[str(at)], file_path=str(at)) for at in names])
    allowed = {}
    for place in (home, work):
        shutil.copytree(source, place / folder / source.name)
        one = only(imported("neptune", place / folder, tmp_path / f"hub-{place.name}"))
        allowed[place.name] = [content(one, file) for file in records(one, ArtifactLogged)]
    assert allowed == {"me": [], "work": [b"work"]}


def test_links_to_logs_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_directory(elsewhere, [assign("a", 1)])
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".neptune").symlink_to(elsewhere / ".neptune")
    with pytest.raises(RunNotFoundError, match="no run of Neptune's found"):
        imported("neptune", tmp_path / "here", tmp_path / "hub")
    linked = tmp_path / "linked" / "run__77__1__abcdefgh"
    linked.mkdir(parents=True)
    (linked / "data-1.log").symlink_to(next(elsewhere.rglob("data-1.log")))
    one = only(imported("neptune", tmp_path / "linked", tmp_path / "hub"))
    assert not list(records(one, ParamsLogged))


def test_what_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="is no directory"):
        imported("neptune", tmp_path / "nowhere", tmp_path / "hub")
    with pytest.raises(RunNotFoundError, match=r"no run of Neptune's found .* data-\*\.log"):
        imported("neptune", tmp_path, tmp_path / "hub")
    with pytest.raises(SettingsError, match="no format is called 'comet'"):
        imported("comet", tmp_path, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_name_is_for_one_run(tmp_path: Path) -> None:
    write_directory(tmp_path, [assign("a", 1)])
    one = only(imported("neptune", tmp_path, tmp_path / "hub", name="mine"))
    assert one.run.manifest.name == "mine"
    write_directory(tmp_path, [assign("a", 1)], name="run__other__1__abcdefgh")
    with pytest.raises(SettingsError, match="holds 2 runs"):
        imported("neptune", tmp_path, tmp_path / "more", name="mine")


def test_a_set_is_one_tag_as_it_was_last(tmp_path: Path) -> None:
    path = {"path": ["sys", "tags"]}
    write_directory(
        tmp_path,
        [
            {"type": "AddStrings", **path, "values": ["b", "a"]},
            {"type": "RemoveStrings", **path, "values": ["b", "never there"]},
            {"type": "ClearStringSet", **path},
            {"type": "AddStrings", **path, "values": ["d", "c"]},
            {"type": "AddStrings", "path": ["words"], "values": ["x"]},
            {"type": "ClearStringSet", "path": ["words"]},
        ],
    )
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    second_ns = 10**9
    assert [(tags.tags, tags.time_ns - 1_700_000_000 * second_ns) for tags in records(one, TagsSet)] == [
        ({"sys/tags": "c, d"}, 4 * second_ns),
        ({"words": ""}, 6 * second_ns),
    ]
    assert findings(one) == {"earlier states of sets of words, not kept": 4}
    assert one.complete


def test_a_set_that_changes_often_takes_no_more_room_than_it_took(tmp_path: Path) -> None:
    adds = [{"type": "AddStrings", "path": ["words"], "values": [f"word-{at:06d}"]} for at in range(2_000)]
    source = write_directory(tmp_path, list(adds))
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    journal_bytes = sum(path.stat().st_size for path in one.run.journal.rglob("*") if path.is_file())
    assert journal_bytes < (source / "data-1.log").stat().st_size


def test_a_file_that_is_named_often_is_copied_once(tmp_path: Path) -> None:
    place = tmp_path / "work"
    (place / "data").mkdir(parents=True)
    (place / "data" / "weights.bin").write_bytes(b"w" * 1000)
    (place / "link.bin").symlink_to(place / "data" / "weights.bin")
    named = [upload(path=[f"f{at}"], ext="bin", file_path=str(place / "data" / "weights.bin")) for at in range(50)]
    linked = upload(path=["linked"], ext="bin", file_path=str(place / "link.bin"))
    in_set = {"type": "UploadFileSet", "path": ["set"], "file_globs": [f"{place}/data/*"], "reset": "False"}
    write_directory(place, [*named, linked, in_set])
    one = only(imported("neptune", place, tmp_path / "hub"))
    files = list(records(one, ArtifactLogged))
    assert {file.name for file in files} == {*(f"f{at}.bin" for at in range(50)), "linked.bin", "set/weights.bin"}
    assert {content(one, file) for file in files} == {b"w" * 1000}
    assert len([path for path in one.run.blobs.rglob("*") if path.is_file()]) == 1


def test_two_operations_of_one_version_both_arrive(tmp_path: Path) -> None:
    source = write_directory(tmp_path, [assign("a", 1), assign("b", 2)])
    other = json.dumps({"obj": assign("c", 3), "version": 2, "at": 1700000003.0})
    with (source / "data-1.log").open("a") as file:
        file.write(other + "\n" + other + "\n")
    one = only(imported("neptune", tmp_path, tmp_path / "hub"))
    assert read_run(one.run.journal).params == {"a": 1, "b": 2, "c": 3}
    assert findings(one) == {
        "operations with a version that another one has, all imported": 1,
        "lines that were there twice": 1,
    }


def test_versions_are_a_set_whatever_their_order() -> None:
    versions = Versions()
    wanted = {5, 1, 2, 9, 4, 3, 7, 8, 20}
    for version in (5, 1, 2, 9, 4, 3, 9, 7, 8, 20):
        assert versions.add(version)
    assert {version for version in range(30) if version in versions} == wanted
    assert (versions.highest, versions.count(), versions.count(8)) == (20, 9, 7)
