from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_helpers import python_command, run_python

from trackhub.cursor import MAX_EXAMPLES, BackendReport, Cursor, CursorFile, NoteCount
from trackhub.journal import Holders
from trackhub.records import RunEnded

FULL = Cursor(
    position={"1": (0, 24), "12": (3, 2**40)},
    state={"run": "abc", "steps": [1, 2.5, None], "größe": {"x": True}},
    remote_id="r-1",
    link="http://127.0.0.1/#/r-1",
    holders=Holders(12, 4, ranks={3: 11}, ends={12: RunEnded(7, "failed", "no"), 11: RunEnded(8, "finished")}),
    attempts=2,
    closed_owner=12,
    closed_status="failed",
    report=BackendReport(
        version="mlflow 3.17.2",
        delivered={"metrics": 3},
        points=9,
        notes={"renamed": NoteCount(2, [("a", "b")])},
        rejected=1,
        damaged=["w0001-s000000.journal at 24: 3 damaged bytes skipped"],
        error="no route",
        error_since_ns=5,
    ),
)

HOLDER = """
import sys
from pathlib import Path
from trackhub.cursor import CursorFile
file = CursorFile(Path(sys.argv[1]), "mlflow")
print(file.claim(), flush=True)
print(file.holder(), flush=True)
input()
"""


def held_elsewhere(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        python_command(HOLDER, directory), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    file = CursorFile(tmp_path, "mlflow")
    file.save(FULL)
    assert CursorFile(tmp_path, "mlflow").load() == FULL
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert json.loads(file.path.read_bytes())["position"] == {"1": [0, 24], "12": [3, 2**40]}


def test_a_path_that_is_not_utf_8_comes_back(tmp_path: Path) -> None:
    cursor = Cursor(position={"1": (0, 24)}, state={"file": os.fsdecode(b"/runs/caf\xe9/events")})
    cursor_file = CursorFile(tmp_path, "far")
    cursor_file.save(cursor)
    assert cursor_file.load() == cursor


def test_a_backend_that_has_no_cursor_yet_starts_at_the_beginning(tmp_path: Path) -> None:
    assert CursorFile(tmp_path / "none", "mlflow").load() == Cursor()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"remote_id": "\xff"}', b'{"position": {"1": [1]}}', b'{"owner": "x"}',
     b'{"state": ' + b'{"a":' * 100_000, b'{"state": {"a":' + b"[" * 100_000, b"\0" * 4096],
)  # fmt: skip
def test_a_cursor_that_cannot_be_read_is_a_fresh_one(tmp_path: Path, content: bytes) -> None:
    file = CursorFile(tmp_path, "mlflow")
    file.path.write_bytes(content)
    assert file.load() == Cursor()


@given(st.binary(max_size=200))
def test_no_content_makes_loading_raise(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = CursorFile(Path(folder), "mlflow")
        file.path.write_bytes(content)
        assert isinstance(file.load(), Cursor)


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    file = CursorFile(tmp_path, "mlflow")
    file.path.write_bytes(b'{"remote_id": "r", "invented_later": [1], "report": {"points": 3, "too": 1}}')
    assert file.load() == Cursor(remote_id="r", report=BackendReport(points=3))


PARTLY_WRITTEN = """
import resource, sys
from pathlib import Path
from trackhub.cursor import Cursor, CursorFile
file = CursorFile(Path(sys.argv[1]), "mlflow")
file.save(Cursor(remote_id="before"))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    file.save(Cursor(remote_id="after", state={"large": "x" * 1000}))
except OSError as error:
    print(type(error).__name__)
"""


def test_a_disk_that_takes_only_a_part_leaves_the_old_cursor_standing(tmp_path: Path) -> None:
    """write(2) takes what fits, and says so with a number, not with an error."""
    assert run_python(PARTLY_WRITTEN, tmp_path).strip() == "OSError"
    assert CursorFile(tmp_path, "mlflow").load().remote_id == "before"


KILLED_WHILE_SAVING = """
import os, sys
from pathlib import Path
from trackhub.cursor import Cursor, CursorFile
for number in range(10):
    child = os.fork()
    if child == 0:
        file, count = CursorFile(Path(sys.argv[1]), "mlflow"), 0
        while True:
            count += 1
            file.save(Cursor(closed_owner=count, state={"copy": count, "fill": "x" * (count % 5000)}))
    path = Path(sys.argv[1]) / "mlflow.json"
    while not path.exists() or path.stat().st_mtime_ns % 7 != number % 7: pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    cursor = CursorFile(Path(sys.argv[1]), "mlflow").load()
    assert cursor.closed_owner == cursor.state["copy"] > 0, cursor
"""


def test_a_cursor_that_nobody_would_read_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor_file = CursorFile(tmp_path, "far")
    cursor_file.save(FULL)
    monkeypatch.setattr("trackhub.cursor.MAX_CURSOR_BYTES", 1000)
    with pytest.raises(OSError, match="which nobody would read"):
        cursor_file.save(Cursor(state={"tags": "x" * 1000}))
    assert cursor_file.load() == FULL


def test_a_process_killed_while_saving_leaves_a_whole_cursor(tmp_path: Path) -> None:
    run_python(KILLED_WHILE_SAVING, tmp_path)
    assert CursorFile(tmp_path, "mlflow").load().closed_owner > 0


def test_one_process_at_a_time_delivers_until_it_lets_go_or_dies(tmp_path: Path) -> None:
    directory = tmp_path / "cursors"
    with held_elsewhere(directory) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert other.stdout.readline() == f"{other.pid}\n"
        mine = CursorFile(directory, "mlflow")
        assert not mine.claim()
        assert mine.holder() == other.pid
        assert CursorFile(directory, "tensorboard").claim()
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert mine.claim()
        assert mine.claim()
        assert mine.holder() == os.getpid()
    with held_elsewhere(directory) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "False\n"
        assert other.stdout.readline() == f"{os.getpid()}\n"
        other.kill()
    mine.release()
    mine.release()
    # Who lets go in order is not told of as one that has ended before it was done.
    assert mine.holder() is None
    with held_elsewhere(directory) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        other.kill()


@pytest.mark.parametrize("hands_over", [True, False])
def test_only_who_hands_over_is_asked_to(tmp_path: Path, hands_over: bool) -> None:
    """A signal would end whoever else has the cursor: a training that frees disk, or another sync."""
    code = f"""
        import os, pathlib, signal, sys
        from trackhub.cursor import CursorFile
        cursor_file = CursorFile(pathlib.Path({str(tmp_path)!r}), "far")
        if {hands_over}:
            def hand_over(*_):
                cursor_file.release()
                os.write(1, b"handed over\\n")
            signal.signal(signal.SIGUSR1, hand_over)
        assert cursor_file.claim(hands_over={hands_over})
        print(os.getpid(), flush=True)
        sys.stdin.readline()
        """
    cursor_file = CursorFile(tmp_path, "far")
    with subprocess.Popen(
        python_command(textwrap.dedent(code)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        holder = int(process.stdout.readline())
        assert cursor_file.holder() == holder
        cursor_file.ask_to_hand_over()
        if hands_over:
            assert process.stdout.readline() == "handed over\n"
        assert cursor_file.is_claimed is not hands_over
        out, _ = process.communicate("\n", timeout=60)
        assert (out, process.returncode) == ("", 0)
    cursor_file.ask_to_hand_over()
    assert not cursor_file.is_claimed


def test_a_forked_child_that_lets_go_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    code = f"""
        import os, pathlib
        from trackhub.cursor import CursorFile
        mine = CursorFile(pathlib.Path({str(tmp_path)!r}), "far")
        assert mine.claim()
        child = os.fork()
        if child == 0:
            mine.abandon_after_fork()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        other = CursorFile(pathlib.Path({str(tmp_path)!r}), "far")
        assert other.is_claimed and other.holder() == os.getpid()
        """
    run_python(textwrap.dedent(code))


def test_asking_who_holds_a_cursor_does_not_let_go_of_it(tmp_path: Path) -> None:
    mine = CursorFile(tmp_path, "mlflow")
    assert mine.claim()
    assert mine.holder() == os.getpid()
    with held_elsewhere(tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "False\n"
        other.kill()
    mine.release()


@pytest.mark.parametrize("content", [b"", b"soon", b"\xff"])
def test_a_holder_that_is_not_known_is_none(tmp_path: Path, content: bytes) -> None:
    file = CursorFile(tmp_path, "mlflow")
    assert file.holder() is None
    (tmp_path / "mlflow.lock").write_bytes(content)
    assert file.holder() is None


@pytest.mark.parametrize(
    ("place", "passed"),
    [(None, False), ((0, 50), False), ((1, 9), False), ((1, 10), True), ((1, 11), True), ((2, 0), True)],
)
def test_a_mark_is_passed_when_everything_before_it_has_been_delivered(place: Any, passed: bool) -> None:
    cursor = Cursor(position={"2": (9, 9)} | ({"1": place} if place else {}))
    assert cursor.has_passed((1, 1, 10)) == passed


def test_a_cursor_is_closed_for_the_last_owner_only() -> None:
    assert not Cursor().closed
    assert Cursor(holders=Holders(owner=2), closed_owner=2).closed
    assert not Cursor(holders=Holders(owner=3), closed_owner=2).closed


def test_notes_count_all_and_keep_a_few_different_examples() -> None:
    note = NoteCount()
    for number in range(100):
        note.add(f"key {number // 2}", "shortened")
    assert note.count == 100
    assert note.examples == [(f"key {number}", "shortened") for number in range(MAX_EXAMPLES)]


def test_the_module_needs_no_vendor_and_no_settings() -> None:
    code = "import sys, trackhub.cursor; print({'pydantic', 'pluggy', 'rich', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
