"""Disks that are full, read-only, or have lost or changed what was on them; clocks that jump; two that deliver one run.

The journal's own tests cut and flip it, too; here it is whole runs, and what arrives is counted.
"""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from neptune_server import NeptuneServer, neptune_server
from real_servers import MlflowOnPostgres
from stage import Stage, delivery_processes, records_of, said, scalars, tell, wait_until
from three_backends import environment, found_in_all, statuses, sync

from trackhub import Backend, OpenedRun, RunInfo
from trackhub.delivery import Delivery
from trackhub.journal import JournalWriter
from trackhub.journal.frames import HEADER
from trackhub.records import EndStatus, MetricsLogged
from trackhub.report import delivery_report
from trackhub.rundir import Manifest, RunDirectory

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

BACKENDS = ("mlflow", "tensorboard", "neptune")


# --- what is on disk is not what was written


class Recording(Backend):
    """Keeps what it is given, as often as it is given it."""

    name = "recording"
    points: list[tuple[int, float]]
    ended: list[str]

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        return OpenedRun(state=state)

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        self.points.extend((point.step, point.values["x"]) for point in points)

    def close(self, status: EndStatus) -> None:
        self.ended.append(status)


def deliver(run: RunDirectory) -> Recording:
    """Deliver all there is, in this process."""
    backend = Recording(Recording.Options())
    backend.points, backend.ended = [], []
    delivery = Delivery(run, "recording", lambda: backend)
    for _ in range(100):
        if delivery.pump() != 0.0:
            break
    delivery.release()
    return backend


def write(run: RunDirectory, steps: range) -> None:
    """What a training that vanishes leaves."""
    writer = JournalWriter(run.journal, "owner", 1)
    for step in steps:
        writer.append_metrics({"x": float(step)}, step, step + 1)
    writer.close()


def points(steps: range) -> list[tuple[int, float]]:
    return [(step, float(step)) for step in steps]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, Manifest("run", "run", "p", 1, {"recording": {}}))


def segment_of(run: RunDirectory) -> Path:
    (segment,) = run.journal.glob("*.journal")
    return segment


def test_a_run_cut_at_any_byte_arrives_up_to_there_and_ends(run: RunDirectory) -> None:
    write(run, range(12))
    segment, whole = segment_of(run), segment_of(run).read_bytes()
    counts = []
    for length in range(len(whole) + 1):
        segment.write_bytes(whole[:length])
        shutil.rmtree(run.cursors, ignore_errors=True)
        arrived = deliver(run)
        counts.append(len(arrived.points))
        assert arrived.points == points(range(len(arrived.points)))
        # Before the writer has said who it is, there is nobody whose run could end.
        assert arrived.ended in ([["killed"]] if arrived.points else [[], ["killed"]])
        assert len(run.cursor("recording").report.damaged) <= 1
    assert counts == sorted(counts)
    assert counts[-1] == 12


def test_a_run_cut_behind_the_cursors_back_goes_on_with_nothing_lost_and_nothing_twice(run: RunDirectory) -> None:
    """What a power failure takes may have been delivered already; a training that goes on is not harmed by that."""
    write(run, range(12))
    segment, whole = segment_of(run), segment_of(run).read_bytes()
    assert deliver(run).points == points(range(12))
    cursor = run.cursor_file("recording").path.read_bytes()
    for length in range(0, len(whole) + 1, 5):
        for path in run.journal.iterdir():
            path.unlink()
        segment.write_bytes(whole[:length])
        run.cursor_file("recording").path.write_bytes(cursor)
        write(run, range(12, 16))
        arrived = deliver(run)
        assert arrived.points == points(range(12, 16)), length
        assert arrived.ended == ["killed"]


def test_a_flipped_bit_costs_what_it_was_in_and_is_told(run: RunDirectory) -> None:
    write(run, range(30))
    segment, whole = segment_of(run), segment_of(run).read_bytes()
    chance = random.Random(5)
    told = 0
    for _ in range(100):
        place = chance.randrange(HEADER.size * 8, len(whole) * 8)
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        segment.write_bytes(flipped)
        shutil.rmtree(run.cursors, ignore_errors=True)
        arrived = deliver(run)
        assert set(arrived.points) <= set(points(range(30)))
        assert len(arrived.points) == len(set(arrived.points))
        if len(arrived.points) < 30:
            told += 1
            assert "damage in the journal" in str(delivery_report(run, "")), place
    assert told > 50


# --- the disk takes nothing

FULL_DISK = """
import pathlib, sys, trackhub
ballast = pathlib.Path(sys.argv[1])
tracker = trackhub.init(backends=["tensorboard"])
tracker.remote_id("tensorboard", timeout=120)
def log(steps):
    for step in steps:
        tracker.log_metrics({"x": step, f"extra {step % 30}": 1.0}, step=step)
log(range(1000))
with ballast.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
log(range(1000, 6000))
tracker.log_text("note", "a text for which there is no room" * 1000)
tracker.log_artifact("train.py")
pathlib.Path("folder").mkdir()
pathlib.Path("folder/file").write_text("also without room" * 1000)
tracker.log_artifact("folder")
print(bool(tracker.flush(timeout=2)), flush=True)
ballast.unlink()
log(range(6000, 7000))
report = tracker.finish(timeout=120)
print(bool(report), flush=True)
"""


def test_a_full_disk_stops_no_training_and_loses_no_metric(stage: Stage) -> None:
    disk = stage.path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "none", disk], check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        stage.environment["TRACKHUB_DIR"] = str(disk / "hub")
        (stage.path / "train.py").write_text(FULL_DISK, encoding="utf-8")
        arguments = ["train.py", str(disk / "ballast")]
        process = stage.start(
            f"import sys; sys.argv = {arguments!r}; exec(open('train.py').read())", stderr=subprocess.PIPE
        )
        out, errors = process.communicate(timeout=240)
        assert out.splitlines() == ["False", "True"]
        assert "'note' is not recorded: No space left on device" in errors
        told = ["the disk was full; not recorded: text 1 (note)", "not recorded: artifacts 2 (train.py, folder)"]
        assert all(one in errors for one in told), errors
        (path,) = (disk / "hub").iterdir()
        run = RunDirectory(path)
        stage.wait_closed("tensorboard", run=run)
        assert scalars(run)["x"] == points(range(7000))
        assert run.cursor("tensorboard").closed_status == "finished"
        assert all(any(one in line for line in delivery_report(run, "").room) for one in told)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


READ_ONLY = """
mount --bind {hub} {hub} && mount -o remount,bind,ro {hub} || exit 99
cd {directory} && {python} -m trackhub sync
"""


def test_a_run_on_a_read_only_disk_is_not_touched_and_says_so(stage: Stage) -> None:
    stage.run(
        """
        import trackhub
        with trackhub.init(backends=["tensorboard"], mode="offline") as tracker:
            for step in range(100):
                tracker.log_metrics({"x": step}, step=step)
        """
    )
    script = READ_ONLY.format(
        **{
            name: shlex.quote(str(value))
            for name, value in {"hub": stage.root, "directory": stage.path, "python": sys.executable}.items()
        }
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env=stage.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode in (1, 99) and "Read-only" not in done.stderr:
        pytest.skip(f"may not mount a file system here: {done.stderr}")
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr
    run = stage.run_directory()
    assert list(run.cursors.iterdir()) == []
    syncing = sync(stage)
    said, _ = syncing.communicate(timeout=240)
    assert syncing.returncode == 0, said
    assert scalars(run) == {"x": points(range(100))}


# --- with all backends


@pytest.fixture
def neptune() -> Iterator[NeptuneServer]:
    with neptune_server() as server:
        # What is sent twice is then there twice.
        server.strict_steps = False
        yield server


@pytest.fixture
def full_stage(stage: Stage, mlflow_on_postgres: MlflowOnPostgres, neptune: NeptuneServer) -> Stage:
    stage.environment |= environment(mlflow_on_postgres, neptune)
    return stage


TRAINING = f"""
import sys, trackhub
tracker = trackhub.init(backends="{",".join(BACKENDS)}", params={{"lr": 0.1}}, mode=sys.argv[1])
for step in range(int(sys.argv[2])):
    tracker.log_metrics({{"x": step}}, step=step)
    if step == 1000:
        print("half", flush=True)
        sys.stdin.readline()
report = tracker.finish(timeout=240)
print(bool(report), flush=True)
"""


def train(stage: Stage, mode: str, steps: int) -> Any:
    (stage.path / "train.py").write_text(TRAINING, encoding="utf-8")
    arguments = ["train.py", mode, str(steps)]
    return stage.start(
        f"import sys; sys.argv = {arguments!r}; exec(open('train.py').read())", stderr=subprocess.DEVNULL
    )


def expect_once_everywhere(stage: Stage, served: MlflowOnPostgres, neptune: NeptuneServer, steps: int) -> None:
    stage.wait_closed(*BACKENDS)
    assert found_in_all(stage, served, neptune, "x") == dict.fromkeys(BACKENDS, points(range(steps)))
    assert set(statuses(stage, served, neptune).values()) == {"finished"}
    assert len(neptune.runs) == 1


def test_cursor_files_that_are_emptied_have_everything_sent_again_and_nothing_shown_twice(
    full_stage: Stage, mlflow_on_postgres: MlflowOnPostgres, neptune: NeptuneServer
) -> None:
    process = train(full_stage, "online", 1500)
    assert said(process) == "half"
    run = full_stage.run_directory()
    wait_until(lambda: all(run.cursor(backend).position for backend in BACKENDS), "something to arrive everywhere")
    for backend, delivery in delivery_processes(process.pid).items():
        subprocess.run(["kill", "-KILL", str(delivery)], check=True)
        wait_until(lambda name=backend, dead=delivery: delivery_processes(process.pid).get(name) != dead, "its end")
        run.cursor_file(backend).path.write_bytes(b"")
    tell(process)
    assert said(process) == "True"
    expect_once_everywhere(full_stage, mlflow_on_postgres, neptune, 1500)


def test_several_that_deliver_one_run_do_not_get_into_each_others_way(
    full_stage: Stage, mlflow_on_postgres: MlflowOnPostgres, neptune: NeptuneServer
) -> None:
    process = train(full_stage, "online", 1500)
    assert said(process) == "half"
    syncing = [sync(full_stage), sync(full_stage)]
    tell(process)
    assert said(process) == "True"
    for one in syncing:
        out, _ = one.communicate(timeout=240)
        assert one.returncode == 0, out
    expect_once_everywhere(full_stage, mlflow_on_postgres, neptune, 1500)
    (report,) = {run.cursor(name).report.delivered["metrics"] for run in full_stage.runs() for name in BACKENDS}
    assert report == 1500


CLOCK_JUMPS_BACK = """
# In every process the clock is an hour back from the five hundredth question on.
import itertools, time
real, asked = time.time_ns, itertools.count()
time.time_ns = lambda: real() - (3_600_000_000_000 if next(asked) >= 500 else 0)
"""


def test_a_clock_that_jumps_back_loses_and_doubles_nothing(
    full_stage: Stage, mlflow_on_postgres: MlflowOnPostgres, neptune: NeptuneServer
) -> None:
    # As the vendor did: times of a series may not go back.
    neptune.strict_steps = True
    (full_stage.plugins / "sitecustomize.py").write_text(CLOCK_JUMPS_BACK, encoding="utf-8")
    process = train(full_stage, "online", 1500)
    assert said(process) == "half"
    tell(process)
    assert said(process) == "True"
    expect_once_everywhere(full_stage, mlflow_on_postgres, neptune, 1500)
    times = [record.time_ns for record in records_of(full_stage.run_directory()) if isinstance(record, MetricsLogged)]
    assert times != sorted(times)
