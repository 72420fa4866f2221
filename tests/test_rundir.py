from __future__ import annotations

import errno
import json
import os
import re
import stat
import string
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_helpers import EVERY_KIND, write

from trackhub.cursor import Cursor
from trackhub.errors import JournalError, SettingsError
from trackhub.journal import JournalWriter
from trackhub.records import RunEnded, TagsSet
from trackhub.rundir import FORMAT_VERSION, Manifest, RunDirectory, check_run_id, new_run_id, runs_in


def manifest(run_id: str = "run", created_ns: int = 5, **more: Any) -> Manifest:
    return Manifest(run_id, "name", "project", created_ns, {"mlflow": {"experiment": "x"}}, **more)


def create(root: Path, run_id: str = "run", created_ns: int = 5, **more: Any) -> RunDirectory:
    return RunDirectory.create(root, manifest(run_id, created_ns, **more))


def test_a_run_that_was_created_is_read_back_from_its_directory_alone(tmp_path: Path) -> None:
    made = create(tmp_path / "deep" / "er", parent_id="parent", working_directory="/work", version="1.2")
    read = RunDirectory(made.path)
    assert made.path == tmp_path / "deep" / "er" / "run"
    assert read.exists
    assert read.manifest == manifest(parent_id="parent", working_directory="/work", version="1.2")
    assert json.loads((made.path / "run.json").read_text())["format"] == FORMAT_VERSION
    assert {path.name for path in made.path.iterdir()} == {"run.json", "blobs", "cursors"}


@pytest.mark.parametrize("path", ["/caf\udce9", "/café\udce9/%E9", "/caf\\udce9", "/caf%E9"], ids=ascii)
def test_paths_come_back_exactly_also_those_that_are_not_utf8(tmp_path: Path, path: str) -> None:
    made = RunDirectory.create(tmp_path, Manifest("r", "r", "p", 5, {"lines": {"path": path}}, working_directory=path))
    read = RunDirectory(made.path).manifest
    assert (read.working_directory, read.backends) == (path, {"lines": {"path": path}})


def test_a_name_that_could_not_be_shown_is_not_trusted(tmp_path: Path) -> None:
    run = create(tmp_path)
    text = (run.path / "run.json").read_text(encoding="utf-8")
    (run.path / "run.json").write_text(text.replace('"project": "', '"project": "\\udc80'), encoding="utf-8")
    with pytest.raises(JournalError, match="trusted"):
        _ = RunDirectory(run.path).manifest


def test_nobody_else_can_look_into_a_run_directory(tmp_path: Path) -> None:
    run = create(tmp_path)
    for path in (run.path, run.blobs, run.cursors):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_creating_a_run_again_replaces_its_identity_and_keeps_the_rest(tmp_path: Path) -> None:
    first = create(tmp_path)
    write(first.journal, *EVERY_KIND)
    again = create(tmp_path, created_ns=6)
    assert RunDirectory(again.path).manifest.created_ns == 6
    assert again.remaining(Cursor()) == len(EVERY_KIND) - 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b'{"id": "\xff"}', b'{"id": 1}', b'{"backends":' + b'{"a":' * 100_000, b"\0" * 300],
)
def test_a_run_json_that_cannot_be_read_is_said_with_its_path(tmp_path: Path, content: bytes) -> None:
    run = create(tmp_path)
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(JournalError, match=rf"{re.escape(str(run.path))} is no run directory that can be read"):
        _ = RunDirectory(run.path).manifest


def test_a_directory_that_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    assert not RunDirectory(tmp_path).exists
    with pytest.raises(JournalError, match="no run directory"):
        _ = RunDirectory(tmp_path).manifest


def test_a_run_of_a_newer_trackhub_is_refused_with_its_version_and_the_fix(tmp_path: Path) -> None:
    run = create(tmp_path, format=FORMAT_VERSION + 1, version="9.9")
    with pytest.raises(JournalError, match=r"newer trackhub \(9\.9\): upgrade this one"):
        _ = RunDirectory(run.path).manifest


def test_fields_that_a_later_version_added_are_passed_over(tmp_path: Path) -> None:
    run = create(tmp_path)
    path = run.path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"invented_later": {"x": 1}}))
    assert RunDirectory(run.path).manifest == manifest()


# --- run ids


def test_new_ids_are_accepted_sort_by_time_and_do_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a job array of a thousand starts within one second: two runs of one id would be one run."""
    moments = [time.gmtime(1_763_717_400)] * 1000 + [time.gmtime(1_763_717_401)]
    monkeypatch.setattr(time, "gmtime", iter(moments).__next__)
    made = {new_run_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(check_run_id(one) == one and one.startswith("20251121-093000-") for one in made)
    assert max(made) < new_run_id()


@pytest.mark.parametrize("run_id", ["a", "A1", "_x", "run.2", "0", "x" * 128, "a..b", "sweep-1_fold.2"])
def test_ids_that_can_name_a_directory_are_accepted(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "-rf", ".hidden", "a b", "a\n", "\na", "a\0", "größe", "x" * 129,
     "a:b", "a*", "~", "a/../../b"],
)  # fmt: skip
def test_ids_that_cannot_are_refused_with_what_is_accepted(run_id: str) -> None:
    with pytest.raises(SettingsError, match=r"use up to 128 letters, digits, '\.', '_' and '-'"):
        check_run_id(run_id)


@given(st.text() | st.text(string.punctuation + "ab"))
def test_no_accepted_id_leaves_its_directory(run_id: str) -> None:
    try:
        check_run_id(run_id)
    except SettingsError:
        return
    path = Path("/root/of/runs") / run_id
    assert path.parent == Path("/root/of/runs")
    assert path.name == run_id
    assert run_id not in (".", "..")
    assert run_id.isprintable()


# --- how it stands


def test_a_run_is_running_until_it_is_ended_or_its_process_is_gone(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.end() == ("killed", None)
    writer = write(run.journal, TagsSet(1, {}), close=False)
    assert run.end() == ("running", None)
    ended = RunEnded(7, "failed", "ValueError: no")
    writer.append(ended)
    assert run.end() == ("failed", ended)
    writer.close()
    assert run.end() == ("failed", ended)
    writer = JournalWriter(run.journal, "owner", 8)
    assert run.end() == ("running", None)
    writer.close()
    assert run.end() == ("killed", None)


def test_what_remains_is_counted_from_the_cursor_without_the_end(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.remaining(Cursor()) == 0
    writer = write(run.journal, *[TagsSet(number, {}) for number in range(5)], close=False)
    assert run.remaining(Cursor()) == 5
    mark = writer.position
    writer.append(TagsSet(6, {}))
    writer.append(RunEnded(7, "finished"))
    writer.close()
    cursor = Cursor(position={str(mark[0]): mark[1:]})
    assert run.remaining(cursor) == 1
    assert cursor.position == {"1": mark[1:]}
    run.cursor_file("mlflow").save(cursor)
    assert run.remaining(run.cursor("mlflow")) == 1


def test_backends_are_those_chosen_at_the_start_and_those_it_was_sent_to_later(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.backends == ["mlflow"]
    for name in ("tensorboard", "mlflow", "neptune"):
        run.cursor_file(name).save(Cursor())
    assert run.backends == ["mlflow", "neptune", "tensorboard"]


# --- all of them


def test_runs_come_oldest_first_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    for run_id, created_ns in (("b", 2), ("c", 1), ("a", 2)):
        create(tmp_path, run_id, created_ns)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert [run.path.name for run in runs_in(tmp_path)] == ["c", "a", "b"]
    assert list(runs_in(tmp_path / "none")) == []
    assert list(runs_in(tmp_path / "notes.txt")) == []


def test_one_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    for run_id in ("a", "b", "c"):
        create(tmp_path, run_id)
    (tmp_path / "b" / "run.json").write_bytes(b"\xff")
    told: list[tuple[str, str]] = []
    found = runs_in(tmp_path, lambda run, error: told.append((run.path.name, str(error))))
    assert [run.path.name for run in found] == ["a", "c"]
    assert [name for name, _ in told] == ["b"]
    assert [run.path.name for run in runs_in(tmp_path)] == ["a", "c"]


def test_a_run_that_cannot_be_looked_at_is_not_taken_for_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    run = RunDirectory(tmp_path)
    assert not run.exists
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stale)
        exists = run.exists
    assert exists
