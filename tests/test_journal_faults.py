"""The journal among real processes, signals, threads, forks, and disks that are full."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from journal_helpers import python_command, read_all, run_python, write

from trackhub.journal import JournalReader, JournalWriter, writer_is_alive
from trackhub.journal import writer as journal
from trackhub.records import MetricsLogged, RunEnded, TagsSet


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FIRST_SEGMENT_BYTES", 4096)
    monkeypatch.setattr(journal, "LAST_SEGMENT_BYTES", 8192)


SMALL_SEGMENTS = """
import mmap, os, signal, sys, threading, time
from pathlib import Path
from trackhub.journal import writer as journal
from trackhub.journal import JournalWriter, writer_is_alive
from trackhub.records import RunEnded, TagsSet
journal.FIRST_SEGMENT_BYTES, journal.LAST_SEGMENT_BYTES = 4096, 8192
directory = Path(sys.argv[1])
"""


def values_of(records: list[object], name: str) -> list[float]:
    return [record.values[name] for record in records if isinstance(record, MetricsLogged) and name in record.values]


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that tells what it does on its standard output and waits for lines on its standard input."""
    running = subprocess.Popen(
        python_command(code, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


def told(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def tell(running: subprocess.Popen[str], line: str = "go on") -> None:
    assert running.stdin is not None
    running.stdin.write(line + "\n")
    running.stdin.flush()


# --- following a writer that lives


FAST_WRITER = """
import sys
from pathlib import Path
from trackhub.journal import JournalWriter
from trackhub.records import RunEnded
writer = JournalWriter(Path(sys.argv[1]), "owner", 1)
sizes = [{f"m{n}": 0.0 for n in range(size)} for size in (1, 2, 5, 30)]
for number in range(200_000):
    values = sizes[number % 4]
    values["m0"] = number
    writer.append_metrics(values, number, number)
writer.append(RunEnded(1, "finished"))
writer.close()
"""


def test_a_reader_that_follows_a_writer_at_full_speed_sees_each_record_once_in_order(tmp_path: Path) -> None:
    reader, position, damaged, seen, polls = JournalReader(tmp_path), {}, [], [], 0
    with process(FAST_WRITER, tmp_path):
        ended = False
        while not ended:
            chunk = reader.read(position, max_points=100_000)
            polls += 1
            position, ended = chunk.position, 1 in chunk.ends
            damaged += chunk.damaged
            seen += [record.values["m0"] for record in chunk.records if isinstance(record, MetricsLogged)]
    reader.close()
    assert damaged == []
    assert seen == list(range(200_000))
    assert polls > 10


def test_a_reader_looks_at_a_frame_again_before_it_calls_it_damaged(tmp_path: Path) -> None:
    """What a reader sees of a frame that is being copied while it reads, made certain by reading an older state."""
    writer = write(tmp_path, *[MetricsLogged(1, step, {"a": 1.0}) for step in range(3)], close=False)
    reader = JournalReader(tmp_path)
    genuine, torn = os.pread, []

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        data = genuine(descriptor, size, offset)
        if size >= 1 << 18 and len(torn) < 2:
            torn.append(offset)
            # The third frame from the end of what is there has not all its bytes yet.
            at = data.rstrip(b"\0").rfind(b"\x95\x11")
            at = data.rfind(b"\x95\x11", 0, at)
            return data[: at + 12] + bytes(8) + data[at + 20 :]
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.os, "pread", pread)
        chunk = reader.read({})
    rest = reader.read(chunk.position)
    writer.close()
    reader.close()
    assert torn
    assert chunk.damaged == rest.damaged == []
    assert [record.step for record in [*chunk.records, *rest.records] if isinstance(record, MetricsLogged)] == [0, 1, 2]


def test_a_frame_that_is_being_written_is_waited_for_while_its_writer_lives(tmp_path: Path) -> None:
    with process(SMALL_SEGMENTS + HOLDER_OF_A_TORN_FRAME, tmp_path) as running:
        assert told(running) == "torn"
        found = read_all(tmp_path)
        assert [record.step for record in found.records if isinstance(record, MetricsLogged)] == [0]
        assert found.damaged == []
        tell(running)
        assert told(running) == "whole"
        again = read_all(tmp_path, position=found.position)
        assert [record.step for record in again.records if isinstance(record, MetricsLogged)] == [1]
        tell(running)
        assert told(running) == "torn"
        running.kill()
        running.wait()
        last = read_all(tmp_path, position=again.position)
        assert last.records == []
        assert len(last.damaged) == 1
        assert read_all(tmp_path, position=last.position).damaged == []


HOLDER_OF_A_TORN_FRAME = """
writer = JournalWriter(directory, "owner", 1)
writer.append_metrics({"a": 1.0}, 0, 0)
for step in (1, 2):
    before = writer.position[2]
    writer.append_metrics({"a": 1.0}, step, 0)
    whole = writer._view[before + 20 : before + 30]
    writer._view[before + 20 : before + 30] = bytes(10)
    print("torn", flush=True)
    input()
    writer._view[before + 20 : before + 30] = whole
    print("whole", flush=True)
    input()
"""


# --- SIGKILL


VICTIMS = """
import json, mmap, os, random, signal, struct, sys
from pathlib import Path
from trackhub.journal import JournalWriter, writer_is_alive
from trackhub.records import TagsSet

order = random.Random(int(sys.argv[2]))
for number in range(int(sys.argv[3])):
    directory = Path(sys.argv[1]) / str(number)
    returned = mmap.mmap(-1, 8)
    # Around the first rotations too, which come at about 3,600 and 18,000 records.
    target = order.choice([order.randrange(1, 200), order.randrange(3_000, 4_500), order.randrange(1, 30_000)])
    child = os.fork()
    if child == 0:
        writer = JournalWriter(directory, "owner", 1)
        step = 0
        while True:
            if step % 50 == 49:
                writer.append(TagsSet(step, {"step": str(step)}))
            else:
                writer.append_metrics({"loss": step, f"m{step % 7}": 1.0}, step, step)
            step += 1
            returned[:] = struct.pack("<q", step)
    while struct.unpack("<q", returned[:])[0] < target:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(json.dumps([struct.unpack("<q", returned[:])[0], writer_is_alive(directory, 1)]), flush=True)
"""


def test_after_sigkill_every_record_whose_call_had_returned_is_there_and_at_most_one_more(tmp_path: Path) -> None:
    outcomes = run_python(VICTIMS, tmp_path, 20261121, 30).split("\n")[:-1]
    assert len(outcomes) == 30
    for number, outcome in enumerate(outcomes):
        returned, alive = outcome.strip("[]").split(", ")
        found = read_all(tmp_path / str(number))
        steps = [record.time_ns for record in found.records]
        assert steps == list(range(len(steps)))
        assert int(returned) <= len(steps) <= int(returned) + 1
        assert all(
            record.values == {"loss": float(record.step), f"m{record.step % 7}": 1.0}
            for record in found.records
            if isinstance(record, MetricsLogged)
        )
        assert len(found.damaged) <= 1
        assert alive == "false"
        assert JournalReader(tmp_path / str(number)).last_owner() == (1, None)


# --- threads


@pytest.mark.usefixtures("small_segments")
def test_eight_threads_that_log_while_another_syncs_lose_nothing(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "owner", 1)
    done = threading.Event()

    def log(thread: int) -> None:
        for number in range(1500):
            if number % 10 == 9:
                writer.append(TagsSet(number, {"thread": str(thread)}))
            else:
                writer.append_metrics({f"thread {thread}": number}, number, number)

    def sync() -> None:
        while not done.is_set():
            writer.sync()

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(8)]
    syncing = threading.Thread(target=sync)
    for thread in (*threads, syncing):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    syncing.join()
    writer.close()
    found = read_all(tmp_path)
    assert found.damaged == []
    assert len(found.records) == 8 * 1500
    for thread in range(8):
        assert values_of(found.records, f"thread {thread}") == [n for n in range(1500) if n % 10 != 9]
        assert [r.time_ns for r in found.records if r == TagsSet(r.time_ns, {"thread": str(thread)})] == [
            *range(9, 1500, 10)
        ]
    assert len(list(tmp_path.glob("*.journal"))) > 30


# --- signal handlers


INTERRUPTED = (
    SMALL_SEGMENTS
    + """
if sys.argv[2] == "unmapped":
    def no_map(*_): raise OSError(19, "No such device")
    journal.mmap.mmap = no_map
writer = JournalWriter(directory, "owner", 1)
handled = depth = 0

def arm():
    signal.setitimer(signal.ITIMER_REAL, 1e-5 + handled % 211 * 1e-6)

def log_too(*_):
    # A handler may be interrupted by the next signal; armed by itself without end, it would never come back.
    global handled, depth
    number, handled = handled, handled + 1
    depth += 1
    if depth < 3:
        arm()
    writer.append_metrics({"handler": number, f"extra {number % 50}": 1.0}, number, 1)
    depth -= 1

signal.signal(signal.SIGALRM, log_too)
done = threading.Event()
def sync():
    while not done.wait(0.001):
        writer.sync()
syncing = threading.Thread(target=sync, daemon=True)
syncing.start()
number, armed = 0, -1
while number < 20_000 or handled < 3_000:
    if armed != handled:
        armed = handled
        arm()
    writer.append_metrics({"main": number, f"extra {number % 90}": 1.0}, number, 1)
    number += 1
    if number % 20 == 0:
        # Large, so that a handler's record still fits where this one does not.
        writer.append(TagsSet(1, {"main": str(number) * 200}))
signal.signal(signal.SIGALRM, signal.SIG_IGN)
done.set()
syncing.join()
writer.close()
print(number, handled, writer.lost_bytes)
"""
)


@pytest.mark.parametrize("how", ["mapped", "unmapped"])
def test_a_signal_handler_that_logs_in_the_middle_of_appends_loses_and_tears_nothing(tmp_path: Path, how: str) -> None:
    number, handled, lost = map(int, run_python(INTERRUPTED, tmp_path, how).split())
    found = read_all(tmp_path)
    assert found.damaged == []
    assert lost == 0
    assert values_of(found.records, "main") == list(range(number))
    assert sorted(values_of(found.records, "handler")) == list(range(handled))
    for record in found.records:
        if isinstance(record, MetricsLogged):
            count, of = (50, "handler") if "handler" in record.values else (90, "main")
            assert record.values == {of: float(record.step), f"extra {record.step % count}": 1.0}
    assert sum(isinstance(record, TagsSet) for record in found.records) == number // 20


MAKING_A_SEGMENT = {
    "the room is reserved": (os, "posix_fallocate"),
    "the file is mapped": (mmap, "mmap"),
    "it gets its name": (os, "rename"),
}


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("disk", ["full", "full for a moment", "free"])
@pytest.mark.parametrize("then", ["goes on", "raises", "is interrupted itself"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", MAKING_A_SEGMENT)
def test_a_handler_that_comes_between_while_a_segment_is_made_leaves_no_gap_in_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str, then: str, when: str, what: str
) -> None:
    writer, reader = JournalWriter(tmp_path, "owner", 1), JournalReader(tmp_path)
    module, name = MAKING_A_SEGMENT[what]
    carry_out, main, handled, depth, left, position, followed = getattr(module, name), 0, 0, 0, 0, {}, []

    def follow() -> None:
        nonlocal position
        while not (chunk := reader.read(position)).empty:
            assert chunk.damaged == []
            position = chunk.position
            followed.extend(values_of(chunk.records, "main"))

    def handle() -> None:
        nonlocal handled, left
        if then == "is interrupted itself" and depth > 1:
            raise KeyboardInterrupt
        if left == 0:
            return
        left -= depth == 1
        number = writer.position[1]
        try:
            while writer.position[1] < number + 2:
                writer.append_metrics({"handler": handled}, handled, 1)
                handled += 1
        except KeyboardInterrupt:
            if then != "is interrupted itself":
                raise
        follow()
        if then == "raises":
            raise KeyboardInterrupt

    def interrupted(*arguments: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            if disk == "full" or (disk == "full for a moment" and depth < 3):
                if depth < 4:
                    handle()
                raise OSError(28, "No space left on device")
            done = carry_out(*arguments) if when == "after" else None
            if depth < 4:
                handle()
            return carry_out(*arguments) if when == "before" else done
        finally:
            depth -= 1

    for _ in range(3):
        monkeypatch.setattr(module, name, interrupted)
        number, left = writer.position[1], 3
        while writer.position[1] == number:
            with suppress(KeyboardInterrupt):
                writer.append_metrics({"main": main}, main, 1)
            main += 1
        monkeypatch.setattr(module, name, carry_out)
        writer.sync()
        follow()
    writer.close()
    follow()
    reader.close()
    found = read_all(tmp_path)
    assert found.damaged == []
    assert followed == values_of(found.records, "main")
    lost_by_interrupt = set(range(main)) - set(followed)
    assert len(lost_by_interrupt) <= (3 if then == "raises" else 0)
    assert writer.lost_bytes == 0
    assert len(list(tmp_path.glob("*.journal"))) > 3


RAISING = (
    SMALL_SEGMENTS
    + """
writer = JournalWriter(directory, "owner", 1)
interrupts = 0

def interrupt(*_):
    global interrupts
    interrupts += 1
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
returned, number = [], 0
while interrupts < 1500:
    try:
        # Up to 8 ms, for a disk that takes long to make a file.
        signal.setitimer(signal.ITIMER_REAL, 3e-5 * 1.15 ** (interrupts % 40))
        while True:
            writer.append_metrics({"main": number, f"extra {number % 90}": "x" * 0 or 1.0}, number, 1)
            returned.append(number)
            number += 1
    except KeyboardInterrupt:
        number += 1
signal.setitimer(signal.ITIMER_REAL, 0)
writer.sync()
writer.append(RunEnded(1, "finished"))
writer.close()
print(*returned)
"""
)


def test_a_signal_handler_that_raises_costs_at_most_the_call_it_interrupts(tmp_path: Path) -> None:
    """Ctrl-C in a notebook, which goes on with the run afterwards."""
    returned = [int(word) for word in run_python(RAISING, tmp_path).split()]
    found = read_all(tmp_path)
    values = values_of(found.records, "main")
    assert values == sorted(set(values))
    assert set(returned) <= set(values)
    assert found.damaged == []
    assert found.ends == {1: RunEnded(1, "finished")}
    assert len(list(tmp_path.glob("*.journal"))) > 20


# --- forks


FORKING = (
    SMALL_SEGMENTS
    + """
import trackhub
tracker = trackhub.init(run_id="run", dir=directory, mode="offline")
for step in range(300):
    tracker.log_metrics({"parent": step}, step=step)
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        for step in range(300):
            tracker.log_metrics({f"child {child}": step}, step=step)
        tracker.log_text("note", f"of {child}")
        os._exit(0)
    children.append(pid)
    for step in range(300 * (child + 1), 300 * (child + 2)):
        tracker.log_metrics({"parent": step}, step=step)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
print("children have gone", flush=True)
input()
tracker.finish()
print("finished", flush=True)
input()
"""
)


def test_forked_children_log_beside_their_parent_and_do_not_end_its_claim(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "journal"
    with process(FORKING, tmp_path) as running:
        assert told(running) == "children have gone"
        assert writer_is_alive(directory, 1)
        assert [writer_is_alive(directory, writer) for writer in (2, 3, 4)] == [False] * 3
        tell(running)
        assert told(running) == "finished"
        assert not writer_is_alive(directory, 1)
    found = read_all(directory)
    assert found.damaged == []
    assert values_of(found.records, "parent") == list(range(1200))
    for child in range(3):
        assert values_of(found.records, f"child {child}") == list(range(300))
    assert found.owners == [1]
    assert list(found.ends) == [1]


LEFT_BEHIND = """
import os, sys
from pathlib import Path
import trackhub
from trackhub.journal import JournalWriter
if sys.argv[2] == "tracker":
    tracker = trackhub.init(run_id="run", dir=sys.argv[1], mode="offline")
else:
    writer = JournalWriter(Path(sys.argv[1]) / "run" / "journal", "owner", 1)
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    input()
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("what", ["tracker", "writer"])
def test_a_forked_child_does_not_keep_a_dead_parent_looking_alive(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "run" / "journal"
    with process(LEFT_BEHIND, tmp_path, what) as running:
        child = int(told(running))
        try:
            assert writer_is_alive(directory, 1)
            running.kill()
            running.wait()
            os.kill(child, 0)
            assert not writer_is_alive(directory, 1)
        finally:
            os.kill(child, signal.SIGKILL)


FORK_IN_A_HANDLER = (
    SMALL_SEGMENTS
    + """
writer = JournalWriter(directory, "owner", 1)
is_child, forks = False, 0

def fork(*_):
    # The parent logs before the child goes on with the append that both are in.
    global is_child, forks
    reader, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        is_child = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        writer.abandon_after_fork()
        os.read(reader, 1)
    else:
        writer.append_metrics({"handler": forks}, forks, 1)
        forks += 1
        os.write(go_on, b"x")
        os.waitpid(child, 0)
        os.close(reader)
        os.close(go_on)

signal.signal(signal.SIGALRM, fork)
number = 0
while forks < 60:
    before = forks
    signal.setitimer(signal.ITIMER_REAL, 2e-5 + forks * 1e-6)
    while forks == before:
        try:
            writer.append_metrics({"main": -1.0 if is_child else number, "other": 1.0}, number, 1)
        finally:
            if is_child:
                os._exit(0)
        number += 1
writer.close()
print(number, forks)
"""
)


def test_a_child_forked_in_the_middle_of_an_append_writes_nothing_into_its_parents_journal(tmp_path: Path) -> None:
    number, forks = map(int, run_python(FORK_IN_A_HANDLER, tmp_path).split())
    found = read_all(tmp_path)
    assert found.damaged == []
    assert values_of(found.records, "main") == list(range(number))
    assert values_of(found.records, "handler") == list(range(forks))


# --- looking at a writer


HOLDER = """
import os, shutil, sys
from pathlib import Path
from trackhub.journal import JournalReader, JournalWriter, writer_is_alive
directory = Path(sys.argv[1])
writer = JournalWriter(directory, "owner", 1)
os.chdir(directory.parent)
assert writer_is_alive(Path(directory.name), 1)
assert writer_is_alive(Path("..") / directory.parent.name / directory.name, 1)
shutil.copytree(directory, "copy")
assert [path.read_bytes() for path in directory.glob("*.lock")]
print("looked", flush=True)
input()
writer.close()
assert not writer_is_alive(directory, 1)
print("closed", flush=True)
input()
"""


def test_a_writer_stays_alive_whatever_its_own_process_reads_and_copies(tmp_path: Path) -> None:
    """A POSIX lock would be gone with the first descriptor of the file that is closed, e.g. by a copy of the folder."""
    directory = tmp_path / "journal"
    with process(HOLDER, directory) as running:
        assert told(running) == "looked"
        assert writer_is_alive(directory, 1)
        assert not writer_is_alive(tmp_path / "copy", 1)
        tell(running)
        assert told(running) == "closed"
        assert not writer_is_alive(directory, 1)


WITHOUT_OFD_LOCKS = "import fcntl; fcntl.F_OFD_SETLKW = 9999\n"


def test_where_there_are_posix_locks_only_a_writer_is_alive_until_it_is_killed(tmp_path: Path) -> None:
    code = HOLDER.replace("shutil.copytree(directory", "0 and shutil.copytree(directory").replace(
        "assert [path.read", "0 and [path.read"
    )
    with process(WITHOUT_OFD_LOCKS + code, tmp_path / "journal") as running:
        assert told(running) == "looked"
        assert writer_is_alive(tmp_path / "journal", 1)
        running.kill()
        running.wait()
        assert not writer_is_alive(tmp_path / "journal", 1)


@pytest.mark.parametrize("claim", ["", "{", "[]", "null", '{"locked": false}', '{"locked": true}', "[" * 4096])
def test_a_lock_file_that_nobody_holds_and_that_says_nothing_is_of_a_dead_writer(tmp_path: Path, claim: str) -> None:
    (tmp_path / "w0001.lock").write_text(claim)
    assert not writer_is_alive(tmp_path, 1)
    assert not writer_is_alive(tmp_path, 2)


def test_without_locks_a_writer_of_this_host_lives_as_long_as_its_process(tmp_path: Path) -> None:
    host = journal.socket.gethostname()
    with process("input()") as other:
        claims = {
            "w0001.lock": f'{{"locked": false, "host": "{host}", "pid": {other.pid}}}',
            "w0002.lock": '{"locked": false, "host": "another", "pid": 1}',
            "w0003.lock": f'{{"locked": false, "host": "{host}", "pid": {10**30}}}',
        }
        for name, claim in claims.items():
            (tmp_path / name).write_text(claim)
        assert [writer_is_alive(tmp_path, writer) for writer in (1, 2, 3)] == [True, True, False]
        other.kill()
        other.wait()
        assert [writer_is_alive(tmp_path, writer) for writer in (1, 2, 3)] == [False, True, False]


# --- a disk that takes nothing


FULL_BY_LIMIT = (
    SMALL_SEGMENTS
    + """
import resource
def fill(): resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
def free(): resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""
)
FULL_BY_BALLAST = (
    SMALL_SEGMENTS
    + """
ballast = directory.parent / "ballast"
def fill():
    with ballast.open("wb", buffering=0) as file:
        try:
            while True: file.write(bytes(4096))
        except OSError: pass
def free(): ballast.unlink()
"""
)
FULL_DISK = """
if len(sys.argv) > 2:
    def no_map(*_): raise OSError(19, "No such device")
    journal.mmap.mmap = no_map
writer = JournalWriter(directory, "owner", 1)
number = 0
def log(count):
    global number
    for _ in range(count):
        writer.append_metrics({"main": number, f"extra {number % 30}": 1.0}, number, 1)
        number += 1
def sync_fails():
    try: writer.sync()
    except OSError: return
    raise AssertionError("the disk is full, but sync() says it is not")
log(100)
for _ in range(3):
    fill()
    log(1000)
    sync_fails()
    log(1000)
    sync_fails()
    free()
    log(10)
    writer.sync()
    written = sum(path.stat().st_size for path in directory.glob("*.journal"))
    log(1000)
    writer.sync()
fill()
log(500)
try: writer.close()
except OSError: pass
else: raise AssertionError("close() lost records and said nothing")
free()
print(number, writer.lost_bytes, writer_is_alive(directory, 1))
"""


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mount = shutil.which("mount")
    where = tmp_path / "disk"
    where.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", where], check=False).returncode:
        pytest.skip("may not mount a file system here")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


def check_after_full_disk(directory: Path, output: str) -> None:
    number, lost, alive = output.split()
    found = read_all(directory)
    values = values_of(found.records, "main")
    assert found.damaged == []
    # All but the 500 that close() said it could not write.
    assert values[: int(number) - 500] == list(range(int(number) - 500))
    assert values == list(range(len(values)))
    assert lost == "0"
    assert alive == "False"
    assert list(directory.glob("*.new")) == []


@pytest.mark.parametrize("how", ["", "unmapped"])
def test_records_wait_in_memory_for_a_disk_that_takes_nothing(tmp_path: Path, how: str) -> None:
    """The disk refuses for the reason that files may not grow, which needs no permission."""
    arguments = [how] if how else []
    check_after_full_disk(tmp_path / "j", run_python(FULL_BY_LIMIT + FULL_DISK, tmp_path / "j", *arguments))


def test_records_wait_in_memory_for_a_disk_that_is_full(tiny_disk: Path) -> None:
    check_after_full_disk(tiny_disk / "j", run_python(FULL_BY_BALLAST + FULL_DISK, tiny_disk / "j"))


def test_a_reader_does_not_hold_on_to_a_segment_that_was_given_up(tiny_disk: Path) -> None:
    """It is polled while creating segments fails, and must see them once that works."""
    with process(FULL_BY_BALLAST + STEP_BY_STEP, tiny_disk / "j") as running:
        reader, position, values = JournalReader(tiny_disk / "j"), {}, []
        while not values or values[-1] != 3999:
            tell(running)
            assert told(running) == "stepped"
            chunk = reader.read(position)
            position = chunk.position
            values += values_of(chunk.records, "main")
            assert chunk.damaged == []
        reader.close()
    assert values == list(range(4000))


STEP_BY_STEP = """
writer = JournalWriter(directory, "owner", 1)
for number in range(4000):
    if number == 1000: fill()
    if number == 3000: free()
    writer.append_metrics({"main": number}, number, 1)
    if number % 100 == 99:
        try: writer.sync()
        except OSError: pass
        input()
        print("stepped", flush=True)
input()
"""


def fails(*_: int) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("failing", ["fdatasync", "ftruncate"])
def test_what_cannot_be_made_durable_at_once_is_so_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    writer, number = JournalWriter(tmp_path, "owner", 1), 0
    for faulty in ("posix_fallocate", failing):
        for _ in range(1000):
            writer.append_metrics({"main": number}, number, 1)
            number += 1
        with monkeypatch.context() as patched:
            patched.setattr(os, faulty, fails)
            for _ in range(1000):
                writer.append_metrics({"main": number}, number, 1)
                number += 1
            for _ in range(3):
                with pytest.raises(OSError, match="Input/output"):
                    writer.sync()
            if faulty == "posix_fallocate":
                # Segments wait in memory, are written, and then this fails.
                patched.undo()
                patched.setattr(os, failing, fails)
                for _ in range(3):
                    with pytest.raises(OSError, match="Input/output"):
                        writer.sync()
        writer.sync()
    writer.close()
    found = read_all(tmp_path)
    assert found.damaged == []
    assert values_of(found.records, "main") == list(range(number))


@pytest.mark.usefixtures("small_segments")
def test_what_waits_in_memory_is_in_files_though_none_can_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path, "owner", 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", fails)
        for number in range(1000):
            writer.append_metrics({"main": number}, number, 1)
    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(OSError, match="Input/output"):
        writer.sync()
    assert values_of(read_all(tmp_path).records, "main") == list(range(1000))
    for number in range(1000, 2000):
        writer.append_metrics({"main": number}, number, 1)
    assert values_of(read_all(tmp_path).records, "main") == list(range(2000))
    with pytest.raises(OSError, match="Input/output"):
        writer.close()
    found = read_all(tmp_path)
    assert found.damaged == []
    assert values_of(found.records, "main") == list(range(2000))


TOO_MUCH = (
    FULL_BY_LIMIT
    + """
journal.MAX_MEMORY_BYTES = 50_000
writer = JournalWriter(directory, "owner", 1)
fill()
for number in range(10_000):
    writer.append_metrics({"main": number}, number, 1)
held = sum(segment.size for segment in [*writer._waiting, writer._segment])
free()
writer.sync()
for number in range(10_000, 10_100):
    writer.append_metrics({"main": number}, number, 1)
writer.close()
print(held, writer.lost_bytes)
"""
)


def test_what_is_held_in_memory_is_bounded_and_what_is_given_up_is_counted_and_reported(tmp_path: Path) -> None:
    held, lost = map(int, run_python(TOO_MUCH, tmp_path).split())
    assert held < 100_000
    found = read_all(tmp_path)
    values = values_of(found.records, "main")
    assert values == sorted(set(values))
    assert values[0] == 0
    assert values[-1] == 10_099
    missing = 10_100 - len(values)
    assert missing > 5000
    assert missing * 30 < lost < missing * 60
    assert found.damaged
    assert all("missing" in line for line in found.damaged)


HANDLER_WHILE_THE_DISK_COMES_BACK = (
    FULL_BY_LIMIT
    + """
writer = JournalWriter(directory, "owner", 1)
number = handled = 0
def log():
    global number
    for _ in range(200):
        writer.append_metrics({"main": number}, number, 1)
        number += 1
def log_too(*_):
    global handled
    writer.append_metrics({"handler": handled}, handled, 1)
    handled += 1
    if handled % 8:
        signal.setitimer(signal.ITIMER_REAL, 1e-5 + handled % 31 * 1e-6)
signal.signal(signal.SIGALRM, log_too)
for round in range(60):
    fill()
    log()
    free()
    signal.setitimer(signal.ITIMER_REAL, 1e-5 + round * 3e-6)
    writer.sync()
    signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
writer.close()
print(number, handled)
"""
)


def test_a_handler_that_logs_while_memory_is_brought_to_disk_loses_nothing(tmp_path: Path) -> None:
    number, handled = map(int, run_python(HANDLER_WHILE_THE_DISK_COMES_BACK, tmp_path).split())
    found = read_all(tmp_path)
    assert values_of(found.records, "main") == list(range(number))
    assert values_of(found.records, "handler") == list(range(handled))
    assert found.damaged == []


def test_a_run_that_is_gone_on_with_elsewhere_has_writers_that_do_not_share_files(tmp_path: Path) -> None:
    order = random.Random(3)
    writers = [JournalWriter(tmp_path, "worker", 1) for _ in range(5)]
    for number in range(500):
        order.choice(writers).append_metrics({"main": number}, number, 1)
    for writer in writers:
        writer.close()
    found = read_all(tmp_path)
    assert sorted(values_of(found.records, "main")) == list(range(500))
    assert [writer.writer for writer in writers] == [1, 2, 3, 4, 5]
