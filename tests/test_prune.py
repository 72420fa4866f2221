"""Freeing disk: what all backends have goes, everything else stays, and the story of the run is still told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backends_for_tests import (
    LinesBackend,
    LinesOptions,
    MetricsOnlyBackend,
    RaisingBackend,
    UnavailableBackend,
    calls_in,
)
from stage import Stage, records_of, said

import trackhub
from trackhub import Backend
from trackhub.cursor import Cursor
from trackhub.delivery import Delivery
from trackhub.prune import Pruned, free_blobs, prune
from trackhub.records import RunEnded
from trackhub.rundir import RunDirectory


def record(stage: Stage, *backends: type[Backend], run_id: str = "run") -> RunDirectory:
    """A run that has ended and, unless a backend does not let it, arrived; gone on with if it is there."""
    (stage.path / "file").write_bytes(b"x" * 50_000)
    with trackhub.init(dir=stage.root, run_id=run_id, name="sgd", mode="offline") as tracker:
        for step in range(50):
            tracker.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
        tracker.log_params({"lr": 0.1})
        tracker.log_artifact(stage.path / "file")
    run = RunDirectory(stage.root / run_id)
    for backend in backends:
        deliver(run, backend, stage)
    return run


def deliver(run: RunDirectory, backend: type[Backend], stage: Stage) -> None:
    """Deliver as a delivery process does, as far as it goes without waiting."""
    options = LinesOptions(path=str(stage.path / f"{backend.name}.jsonl"))
    delivery = Delivery(run, backend.name, lambda: backend(options))
    while delivery.pump() == 0.0:
        pass
    delivery.release()


def freeing(*runs: RunDirectory, **more: Any) -> list[Pruned]:
    return prune(runs, dry_run=False, **more)


def files(run: RunDirectory) -> set[str]:
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}


def told(stage: Stage, *words: str, code: int = 0) -> Any:
    command = [sys.executable, "-m", "trackhub", *words]
    done = subprocess.run(command, cwd=stage.path, env=stage.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if "--json" in words else done.stdout + done.stderr


def test_what_was_freed_is_gone_and_the_run_is_listed_as_before(stage: Stage) -> None:
    run = record(stage, LinesBackend)
    before = [told(stage, command, "--json") for command in ("runs", "status")]
    dry = told(stage, "prune")
    assert "would free" in dry
    assert "repeat with --yes" in dry
    assert len(records_of(run)) == 53
    (one,) = freeing(run)
    assert one.kept is None
    assert one.freed_bytes > 50_000
    assert files(run) == {
        "run.json", "freed.json", "cursors/lines.json", "cursors/lines.lock", "journal/w0001.lock"
    }  # fmt: skip
    after = [told(stage, command, "--json") for command in ("runs", "status")]
    assert after[0][0].pop("pruned") is not None
    assert before[0][0].pop("pruned") is None
    assert after == before
    assert run.end()[0] == "finished"
    assert "pruned" in told(stage, "show", "run")
    assert "nothing left to free" in told(stage, "prune", "--yes")
    assert "was pruned" in told(stage, "sync", "--to", "ordered", code=1)


def test_a_run_that_is_gone_on_with_after_that_is_counted_and_delivered_as_one(stage: Stage) -> None:
    run = record(stage, LinesBackend)
    freeing(run)
    record(stage, LinesBackend)
    (row,) = told(stage, "runs", "--json")
    assert row["records"] == 104
    assert row["points"] == 100
    assert row["complete"] is True
    steps = [
        point["step"] for one in calls_in(stage.lines) if one["call"] == "write_metrics" for point in one["records"]
    ]
    assert steps == [*range(50), *range(50)]
    freeing(run)
    (again,) = told(stage, "runs", "--json")
    assert {**again, "pruned": None} == {**row, "pruned": None}


@pytest.mark.parametrize(
    ("backends", "reason"),
    [
        ([], "it was given to no backend"),
        ([LinesBackend, UnavailableBackend], "unavailable does not have all of it"),
        ([RaisingBackend], "raising does not have all of it"),
        ([MetricsOnlyBackend], "no backend of it has a place for its artifacts, params"),
    ],
)
def test_what_only_the_run_directory_has_is_kept(stage: Stage, backends: list[type[Backend]], reason: str) -> None:
    run = record(stage, *backends)
    before = files(run)
    (one,) = freeing(run, whole_runs=True)
    assert one.kept is not None
    assert reason in one.kept
    assert files(run) >= before
    assert len(records_of(run)) == 53


def test_a_record_that_was_refused_is_kept(stage: Stage) -> None:
    run = record(stage, LinesBackend)
    file = run.cursor_file("lines")
    cursor = file.load()
    cursor.report.rejected = 1
    file.save(cursor)
    (one,) = freeing(run)
    assert one.kept == "lines refused 1 of its records, which are nowhere else"


def test_a_run_without_backends_is_freed_only_if_told(stage: Stage) -> None:
    run = record(stage)
    (one,) = freeing(run, journal_only=True)
    assert one.kept is None
    assert run.amount().points == 50


def test_a_run_that_is_being_written_or_delivered_is_left_alone(stage: Stage) -> None:
    run = record(stage, LinesBackend)
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(mode="offline", run_id="run")
        print("begun", flush=True)
        sys.stdin.readline()
        """
    )
    assert said(process) == "begun"
    for whole_runs in (False, True):
        (one,) = freeing(run, whole_runs=whole_runs)
        assert one.kept == "it is being written"
    process.communicate("go on\n", timeout=60)
    deliver(run, LinesBackend, stage)
    other = run.cursor_file("lines")
    assert other.claim()
    (one,) = freeing(run)
    assert one.kept == "it is being delivered"
    other.release()
    (one,) = freeing(run)
    assert one.kept is None


def test_only_runs_that_ended_long_enough_ago(stage: Stage) -> None:
    record(stage, LinesBackend)
    assert "kept: it ended later than that" in told(stage, "prune", "--older-than", "1h", "--yes")
    assert "1 run" in told(stage, "prune", "--older-than", "0s")
    assert "is no age" in told(stage, "prune", "--older-than", "yesterday", code=2)


def test_whole_runs_go_but_not_the_parent_of_one_that_stays(stage: Stage) -> None:
    with trackhub.init(dir=stage.root, run_id="parent", mode="offline") as tracker:
        tracker.child("trial").log_metrics({"a": 1.0})
    family = {run.manifest.parent_id: run for run in stage.runs()}
    child, parent = family["parent"], family[None]
    deliver(parent, LinesBackend, stage)
    deliver(child, LinesBackend, stage)
    cursor = child.cursor("lines")
    child.cursor_file("lines").save(Cursor())
    kept = freeing(parent, child, whole_runs=True)
    assert "does not have all of it" in str(kept[1].kept)
    assert kept[0].kept == "it has child runs that stay"
    child.cursor_file("lines").save(cursor)
    assert [one.kept for one in freeing(parent, child, whole_runs=True)] == [None, None]
    assert list(stage.root.iterdir()) == []


KILLED = """
import os, signal, sys, trackhub.prune
from pathlib import Path
from trackhub.rundir import RunDirectory
remove, left = trackhub.prune.remove, int(sys.argv[2])
def die_at_some_point(path):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return remove(path)
trackhub.prune.remove = die_at_some_point
trackhub.prune.prune([RunDirectory(Path(sys.argv[1]))], dry_run=False)
"""


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_prune_that_is_killed_in_the_middle_is_completed_by_the_next(stage: Stage, removed: int) -> None:
    run = record(stage, LinesBackend)
    amount = run.amount()
    with trackhub.init(run_id="run", dir=stage.root, mode="offline") as tracker:
        tracker.log_metrics({"loss": 1.0})
    assert run.amount().points == amount.points + 1
    deliver(run, LinesBackend, stage)
    amount, end = run.amount(), run.end()
    assert len(list(run.journal.glob("*.journal"))) == 2
    command = [sys.executable, "-c", KILLED, str(run.path), str(removed)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert run.amount() == amount
    assert run.end() == end
    (one,) = freeing(run)
    assert one.kept is None
    assert run.amount() == amount
    assert run.end() == (end[0], RunEnded(amount.ended_ns or 0, "finished"))
    assert not list(run.journal.glob("*.journal"))
    assert not list(run.blobs.iterdir())


def test_a_process_that_begins_to_write_meanwhile_loses_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = record(stage, LinesBackend)
    note_freed = RunDirectory.note_freed
    begun: list[trackhub.Tracker] = []

    def begin(self: RunDirectory, freed: Any) -> None:
        begun.append(trackhub.init(run_id="run", dir=stage.root, mode="offline"))
        begun[0].log_text("note", "kept")
        note_freed(self, freed)

    monkeypatch.setattr(RunDirectory, "note_freed", begin)
    freeing(run)
    begun[0].log_metrics({"loss": 2.0})
    begun[0].finish()
    assert [type(one).__name__ for one in records_of(run)] == ["TextLogged", "MetricsLogged", "RunEnded"]
    assert (run.path / records_of(run)[0].file.path).read_text() == "kept"  # type: ignore[union-attr]
    assert run.amount().points == 51


def test_a_process_that_begins_to_write_while_the_whole_run_is_moved_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(stage, LinesBackend)
    rename, begun = Path.rename, []

    def begin(self: Path, target: Path) -> Path:
        if self == run.path and not begun:
            begun.append(trackhub.init(run_id="run", dir=stage.root, mode="offline"))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", begin)
    (one,) = freeing(run, whole_runs=True)
    assert one.kept == "it is being written"
    begun[0].log_metrics({"loss": 2.0})
    begun[0].finish()
    assert run.amount().points == 51


def test_blobs_alone_are_freed_for_a_quota(stage: Stage) -> None:
    run = record(stage, LinesBackend)
    assert free_blobs(run) >= 50_000
    assert not list(run.blobs.iterdir())
    assert len(records_of(run)) == 53
    assert free_blobs(run) == 0


def test_nothing_outside_is_removed(stage: Stage) -> None:
    run = record(stage, LinesBackend)
    outside = stage.path / "outside"
    outside.mkdir()
    (outside / "file").write_text("keep me")
    (run.blobs / "link").symlink_to(outside)
    (run.blobs / "0001-000001" / "inner").symlink_to(outside)
    assert freeing(run)[0].kept is None
    assert (outside / "file").read_text() == "keep me"
    link = stage.root / "elsewhere"
    link.symlink_to(run.path)
    assert freeing(RunDirectory(link), whole_runs=True)[0].kept == "its directory is a link"
    assert run.exists
    assert os.path.lexists(link)
