"""Delivering run directories without their training process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backends_for_tests import calls_in
from stage import Stage, delivery_processes, said, scalars, tell, wait_until

import trackhub
from trackhub import plugins, waiting
from trackhub.errors import SettingsError, UnknownBackendError
from trackhub.host import host
from trackhub.rundir import RunDirectory
from trackhub.sync import follow, options_for, sync, with_families

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

OFFLINE = """
import trackhub
with trackhub.init(mode="offline", backends=["tensorboard", "lines"]) as tracker:
    for step in range(300):
        tracker.log_metrics({"x": step}, step=step)
    child = tracker.child("kid")
    child.log_metrics({"y": 1.0}, step=0)
"""


@pytest.fixture(autouse=True)
def environment_of_the_stage(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the one that syncs: it has the same settings and finds the same plugins."""
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(stage.path)
    monkeypatch.syspath_prepend(str(stage.plugins))
    monkeypatch.setattr(plugins, "_loaded", {})


def steps_in(path: Path) -> list[int]:
    return [
        r["step"] for c in calls_in(path) if c["call"] == "write_metrics" for r in c["records"] if "x" in r["values"]
    ]


def parent_and_child(stage: Stage) -> tuple[RunDirectory, RunDirectory]:
    parent, child = sorted(stage.runs(), key=lambda run: run.manifest.parent_id is not None)
    return parent, child


def test_an_offline_run_is_completed_with_its_family(stage: Stage) -> None:
    stage.run(OFFLINE)
    parent, child = parent_and_child(stage)
    assert not stage.lines.exists()
    reports = sync([child])
    assert [report.run_id for report in reports] == [parent.manifest.id, child.manifest.id]
    assert all(reports)
    assert scalars(parent) == {"x": [(step, float(step)) for step in range(300)]}
    assert scalars(child) == {"y": [(0, 1.0)]}
    assert sorted(steps_in(stage.lines)) == list(range(300))
    assert sorted(call["status"] for call in calls_in(stage.lines) if call["call"] == "close") == ["finished"] * 2


def test_syncing_again_does_nothing(stage: Stage) -> None:
    stage.run(OFFLINE)
    sync(stage.runs())
    before = calls_in(stage.lines)
    assert all(sync(stage.runs()))
    assert calls_in(stage.lines) == before


def test_nothing_is_left_running_after_a_sync(stage: Stage) -> None:
    import os

    stage.run(OFFLINE)
    sync(stage.runs())
    assert delivery_processes(os.getpid()) == {}


def test_a_run_can_be_sent_to_a_backend_it_was_not_meant_for(stage: Stage) -> None:
    stage.run('import trackhub\nwith trackhub.init() as t: t.log_metrics({"x": 1.0}, step=0)')
    run = stage.run_directory()
    assert run.backends == []
    (report,) = sync([run], to=["lines"])
    assert [standing.backend for standing in report.standings] == ["lines"]
    assert report
    assert steps_in(stage.lines) == [0]
    assert run.backends == ["lines"]


def test_an_unknown_backend_is_refused_before_anything_is_started(stage: Stage) -> None:
    stage.run(OFFLINE)
    with pytest.raises(UnknownBackendError, match="tensorboard"):
        sync(stage.runs(), to=["tensorbord"])
    assert not any(run.cursor("tensorboard").holders.owner for run in stage.runs())


def test_a_run_that_cannot_be_delivered_stops_no_other(stage: Stage) -> None:
    stage.run('import trackhub; trackhub.init(mode="offline", backends=["lines"], run_id="bad")')
    manifest = stage.root / "bad" / "run.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("lines", "gone"), encoding="utf-8")
    stage.run(OFFLINE.replace('["tensorboard", "lines"]', '["gone", "lines"]'.replace("gone", "metrics_only")))
    for path in stage.root.glob("*/run.json"):
        path.write_text(path.read_text(encoding="utf-8").replace("metrics_only", "gone"), encoding="utf-8")
    with pytest.raises(UnknownBackendError):
        sync(stage.runs())
    assert not stage.lines.exists(), "without somebody to tell, nothing is begun"
    problems: list[str] = []
    reports = {report.run_id: report for report in sync(stage.runs(), on_problem=problems.append)}
    assert sorted(steps_in(stage.lines)) == list(range(300)), "neither of other runs nor to other backends"
    assert len(problems) == 3
    assert all("cannot be delivered to gone: no backend is called 'gone'" in problem for problem in problems)
    assert not any(report.complete for report in reports.values())


def test_an_unavailable_backend_is_given_up_after_some_patience_for_the_whole_family(stage: Stage) -> None:
    stage.run(OFFLINE.replace('"lines"', '"unavailable"'))
    before = time.monotonic()
    reports = sync(stage.runs(), patience_seconds=1.0)
    assert time.monotonic() - before < 60
    assert [report.undelivered for report in reports] == [{"unavailable": 300}, {"unavailable": 1}]
    assert "the vendor does not answer" in str(reports[0])
    assert "its parent run" in str(reports[1])
    (stage.path / "unavailable.jsonl").touch()
    assert all(sync(stage.runs(), patience_seconds=1.0))


def test_a_delivery_that_was_suspended_before_is_tried_again(stage: Stage) -> None:
    stage.run('import trackhub\nt = trackhub.init(backends=["raising"])\nt.log_metrics({"x": 1.0}, step=0)\nt.finish()')
    run = stage.run_directory()
    assert run.cursor("raising").report.suspended is not None
    (report,) = sync([run])
    assert "a bug of the plugin" in str(report)
    (stage.path / "raising.jsonl").touch()  # as if it had been upgraded
    (report,) = sync([run])
    assert report
    assert steps_in(stage.path / "raising.jsonl") == [0]


def test_a_run_that_is_gone_on_with_is_not_complete_until_the_second_part_has_arrived(stage: Stage) -> None:
    code = """
    import trackhub
    with trackhub.init(mode="offline", run_id="mine", backends=["lines"]) as tracker:
        tracker.log_metrics({"x": 1.0}, step=STEP)
    """
    stage.run(code.replace("STEP", "0"))
    assert all(sync(stage.runs()))
    stage.run(code.replace("STEP", "1"))
    assert all(sync(stage.runs()))
    assert steps_in(stage.lines) == [0, 1]
    assert [call["attempt"] for call in calls_in(stage.lines) if call["call"] == "open"] == [1, 2]


RUNNING = """
import sys, trackhub
tracker = trackhub.init(mode=MODE, backends=["BACKEND"])
for step in range(100):
    tracker.log_metrics({"x": step}, step=step)
print("logged", flush=True)
sys.stdin.readline()
for step in range(100, 150):
    tracker.log_metrics({"x": step}, step=step)
tracker.finish(timeout=TIMEOUT)
print("finished", flush=True)
sys.stdin.readline()
"""


def running(mode: str, backend: str, timeout: float = 30) -> str:
    return RUNNING.replace("MODE", repr(mode)).replace("BACKEND", backend).replace("TIMEOUT", str(timeout))


def test_of_a_run_that_goes_on_what_is_there_is_delivered_and_it_is_not_ended(stage: Stage) -> None:
    process = stage.start(running("offline", "lines"))
    said(process)
    (report,) = sync(stage.runs())
    assert report
    assert steps_in(stage.lines) == list(range(100))
    assert "close" not in [call["call"] for call in calls_in(stage.lines)]
    tell(process)
    said(process)
    assert all(sync(stage.runs()))
    assert steps_in(stage.lines) == list(range(150))
    assert [call["status"] for call in calls_in(stage.lines) if call["call"] == "close"] == ["finished"]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_sync_of_a_run_that_logs_all_the_time_comes_to_an_end(stage: Stage, mode: str) -> None:
    process = stage.start(
        f"""
        import sys, threading, trackhub
        told = threading.Event()
        threading.Thread(target=lambda: sys.stdin.readline() and told.set(), daemon=True).start()
        with trackhub.init(mode="{mode}", backends=["lines"]) as tracker:
            step = 0
            while not told.wait(0.005):
                tracker.log_metrics({{"x": step}}, step=step)
                step += 1
                if step == 100:
                    print("logged", flush=True)
        """
    )
    said(process)
    (report,) = sync(stage.runs(), timeout_seconds=60)
    assert report, str(report)
    assert set(range(100)) <= set(steps_in(stage.lines))
    assert process.poll() is None
    tell(process)
    process.wait(60)
    assert all(sync(stage.runs()))
    steps = steps_in(stage.lines)
    assert steps == list(range(len(steps)))


def test_a_delivery_that_ends_at_each_start_is_given_up_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "START_SECONDS", 4.0)
    stage.run(OFFLINE.replace('"lines"', '"exiting"'))
    reports = sync(stage.runs(), patience_seconds=1.0)
    assert [list(report.undelivered) for report in reports] == [["exiting"], ["exiting"]]
    assert "of its delivery ended before it was done" in str(reports[0])
    for run in stage.runs():
        assert stage.is_closed("tensorboard", run)


def test_a_run_that_another_process_is_delivering_well_stays_with_that_process(stage: Stage) -> None:
    process = stage.start(running("online", "lines"))
    said(process)
    wait_until(lambda: stage.run_directory().cursor("lines").report.points == 100, "the other process to deliver")
    assert all(sync(stage.runs()))
    assert steps_in(stage.lines) == list(range(100))
    tell(process)
    said(process)
    assert steps_in(stage.lines) == list(range(150))
    assert [call["call"] for call in calls_in(stage.lines)].count("open") == 1


def test_a_process_whose_backend_does_not_answer_hands_over_and_takes_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = stage.start(running("online", "unavailable", timeout=60))
    said(process)
    run = stage.run_directory()
    wait_until(lambda: run.cursor("unavailable").report.error, "the delivery to be in trouble")
    # From here the vendor can be reached, though not from the delivery process of the training.
    reachable = stage.path / "reachable.jsonl"
    reachable.touch()
    monkeypatch.setenv("TRACKHUB_UNAVAILABLE_PATH", str(reachable))
    (report,) = sync([run], patience_seconds=10)
    assert report
    assert steps_in(reachable) == list(range(100))
    (stage.path / "unavailable.jsonl").touch()
    tell(process)
    assert said(process) == "finished"
    assert steps_in(stage.path / "unavailable.jsonl") == list(range(100, 150))
    assert run.cursor("unavailable").closed


def test_syncing_in_a_process_that_trains_leaves_its_own_deliveries_alone(stage: Stage) -> None:
    stage.run(OFFLINE)
    with trackhub.init(backends=["lines"], dir=stage.path / "mine", lines={"path": str(stage.path / "own")}) as tracker:
        tracker.remote_id("lines")
        assert all(sync(stage.runs()))
        tracker.log_metrics({"x": 1.0}, step=7)
    assert tracker.finish()
    assert steps_in(stage.path / "own") == [7]
    host().stop(10)


def test_options_come_from_the_run_and_the_environment_wins(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run(
        'import trackhub; trackhub.init(mode="offline", backends=["lines"], lines={"path": "a"})',
        environment={"TRACKHUB_LINES_PATH": ""},
    )
    run = stage.run_directory()
    monkeypatch.delenv("TRACKHUB_LINES_PATH")
    assert options_for(run, "lines") == {"path": "a"}
    monkeypatch.setenv("TRACKHUB_LINES_PATH", "b")
    assert options_for(run, "lines") == {"path": "b"}
    with pytest.raises(SettingsError):
        options_for(run, "no such backend")


def test_a_family_has_parents_before_children(stage: Stage) -> None:
    stage.run(
        """
        import trackhub
        with trackhub.init(mode="offline", name="other"):
            pass
        with trackhub.init(mode="offline", name="top") as top:
            middle = top.child("middle")
            middle.child("leaf")
            top.child("second")
        """
    )
    runs = {run.manifest.name: run for run in stage.runs()}
    names = [run.manifest.name for run in with_families([runs["leaf"]])]
    assert names[:3] == ["top", "middle", "leaf"] or names.index("top") < names.index("middle") < names.index("leaf")
    assert "other" not in names


# --- following


class Follower:
    def __init__(self, root: Path) -> None:
        self.stop = threading.Event()
        self.problems: list[str] = []
        self.reports: list[Any] = []
        self.thread = threading.Thread(target=self._follow, args=(root,))
        self.thread.start()

    def _follow(self, root: Path) -> None:
        self.reports = follow(root, on_problem=self.problems.append, until=self.stop.is_set, grace_seconds=60)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(100)
        assert not self.thread.is_alive()


@pytest.fixture
def following() -> Any:
    followers: list[Follower] = []

    def start(root: Path) -> Follower:
        followers.append(Follower(root))
        return followers[-1]

    yield start
    for follower in followers:
        follower.end()


def test_runs_that_come_later_are_delivered_until_told_to_stop(
    stage: Stage, following: Callable[[Path], Follower]
) -> None:
    follower = following(stage.root)  # the directory is not there yet
    process = stage.start(running("offline", "lines"))
    said(process)
    wait_until(lambda: steps_in(stage.lines) == list(range(100)), "the records of the running run")
    tell(process)
    said(process)
    stage.wait_closed("lines")
    assert steps_in(stage.lines) == list(range(150))
    stage.run(OFFLINE)
    follower.end()  # in its grace it delivers what it has just come upon
    assert len(follower.reports) == 3
    assert all(follower.reports)
    assert sorted(steps_in(stage.lines)) == sorted([*range(150), *range(300)])
    assert follower.problems == []


def test_a_followed_run_that_is_gone_on_with_is_taken_up_again(
    stage: Stage, following: Callable[[Path], Follower]
) -> None:
    code = """
    import trackhub
    with trackhub.init(mode="offline", run_id="mine", backends=["lines"]) as tracker:
        tracker.log_metrics({"x": 1.0}, step=STEP)
    """
    stage.run(code.replace("STEP", "0"))
    following(stage.root)
    stage.wait_closed("lines")
    stage.run(code.replace("STEP", "1"))
    wait_until(lambda: steps_in(stage.lines) == [0, 1], "the second part")
    stage.wait_closed("lines")


def test_no_process_is_started_again_for_runs_that_are_complete(
    stage: Stage, following: Callable[[Path], Follower]
) -> None:
    code = """
    import trackhub
    with trackhub.init(mode="offline", run_id="BACKEND", backends=["BACKEND"]) as tracker:
        tracker.log_metrics({"x": 1.0}, step=0)
    """
    follower = following(stage.root)
    stage.run(code.replace("BACKEND", "lines"))
    stage.wait_closed("lines", run=RunDirectory(stage.root / "lines"))
    # As it does when it has been idle for a while.
    os.kill(delivery_processes(os.getpid())["lines"], signal.SIGTERM)
    wait_until(lambda: "lines" not in delivery_processes(os.getpid()), "the idle process to end")
    stage.run(code.replace("BACKEND", "spy"))
    stage.wait_closed("spy", run=RunDirectory(stage.root / "spy"))
    assert set(delivery_processes(os.getpid())) == {"spy"}
    follower.end()
    assert len(follower.reports) == 2
    assert all(follower.reports)


def test_a_run_that_cannot_be_delivered_is_told_once_and_the_others_are_delivered(
    stage: Stage, following: Callable[[Path], Follower]
) -> None:
    stage.run(
        'import trackhub; trackhub.init(mode="offline", backends=["metrics_only"], run_id="bad")',
        environment={"TRACKHUB_METRICS_ONLY_PATH": "x"},
    )
    manifest = stage.root / "bad" / "run.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("metrics_only", "gone"), encoding="utf-8")
    stage.run(OFFLINE)
    follower = following(stage.root)
    wait_until(lambda: len(steps_in(stage.lines)) == 300, "the other run")
    follower.end()
    (problem,) = follower.problems
    assert "run bad cannot be delivered" in problem
    assert "'gone'" in problem
