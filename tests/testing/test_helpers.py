"""What users test with: the fixture, `recorded`, and a backend that fails as told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from journal_helpers import run_python

import trackhub
from trackhub import BackendUnavailable
from trackhub.plugins import backend_names, find_backend
from trackhub.records import MetricsLogged
from trackhub.testing import FlakyBackend, MemoryBackend, Point, Script, Shown, recorded
from trackhub.testing.rehearsal import Rehearsal
from trackhub.testing.samples import metrics, sample

TEST_OF_A_USER = """
    import trackhub
    from trackhub.testing import recorded

    pytest_plugins = ["trackhub.testing.fixtures"]

    def train():
        run = trackhub.current()
        run.log_params({"lr": 0.1, "model": {"depth": 2}})
        run.log_metrics({"loss": 0.5}, step=7)
        run.set_tags({"team": "vision"})
        run.log_text("note", "hello")
        with run.child("fold-0") as fold:
            fold.log_metrics({"loss": 0.25}, step=0)
        return fold

    def test_train(tracker, tmp_path):
        (tmp_path / "file.txt").write_text("content")
        tracker.log_artifact(tmp_path / "file.txt")
        fold = train()
        shown = recorded(tracker)
        assert shown.params == {"lr": 0.1, "model/depth": 2}
        [point] = shown.metrics["loss"]
        assert (point.step, point.value) == (7, 0.5)
        assert shown.tags == {"team": "vision"}
        assert shown.files == {"file.txt": b"content"}
        assert shown.others == {"note"}
        assert shown.status == "running"
        assert recorded(fold.directory).parent == tracker.id
        tracker.finish("failed")
        assert recorded(tracker).status == "failed"
        assert tracker.directory.is_relative_to(tmp_path)

    def test_another_run(tracker):
        assert recorded(tracker).metrics == {}
        assert tracker.name == "test_another_run"
"""


def run_pytest(directory: Path, test: str, *arguments: str, **variables: str) -> str:
    (directory / "test_user.py").write_text(textwrap.dedent(test))
    own = {name: value for name, value in os.environ.items() if not name.startswith("TRACKHUB_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *arguments],
        cwd=directory,
        env={**own, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_fixture_gives_a_run_that_can_be_read_back(tmp_path: Path) -> None:
    assert "2 passed" in run_pytest(tmp_path, TEST_OF_A_USER)


def test_the_fixture_does_not_go_where_the_environment_says(tmp_path: Path) -> None:
    hub = tmp_path / "elsewhere"
    everything = {
        "TRACKHUB_BACKENDS": "mlflow",
        "TRACKHUB_DIR": str(hub),
        "TRACKHUB_RUN_ID": "one-for-all",
        "TRACKHUB_MODE": "disabled",
        "TRACKHUB_PROJECT": "real",
        # Not accepted, if anybody reads it.
        "TRACKHUB_FINISH_TIMEOUT": "abc",
        # The second process of a launcher records nothing.
        "RANK": "1",
        "WORLD_SIZE": "2",
    }
    assert "2 passed" in run_pytest(tmp_path, TEST_OF_A_USER, **everything)
    assert not hub.exists()


def test_pytest_is_loaded_by_those_who_test_alone() -> None:
    loaded = "import sys, trackhub, trackhub.testing, trackhub.start; {}; print('pytest' in sys.modules)"
    assert run_python(loaded.format("trackhub.testing.MemoryBackend, trackhub.testing.FlakyBackend")) == "False\n"
    assert run_python(loaded.format("trackhub.testing.BackendConformance")) == "True\n"


def test_what_trackhub_brings_does_not_slow_other_peoples_pytest(tmp_path: Path) -> None:
    test = "import sys\ndef test(): assert not [m for m in sys.modules if m.partition('.')[0] == 'trackhub']\n"
    assert "1 passed" in run_pytest(tmp_path, test)


def test_a_failed_assertion_of_the_suite_says_what_was_compared(tmp_path: Path) -> None:
    test = """
        from trackhub.testing import BackendConformance, MemoryBackend, Shown

        class TestEmpty(BackendConformance):
            kind = MemoryBackend

            def read(self, directory, opened):
                return Shown()
    """
    (tmp_path / "test_user.py").write_text(textwrap.dedent(test))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "metrics_are_there"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "assert [] == [(0, 1.0)" in done.stdout


def test_the_memory_backend_is_found_but_never_offered() -> None:
    assert find_backend("memory") is MemoryBackend
    assert "memory" not in backend_names()


# --- a backend that fails as told


def memory(directory: Path, script: Script) -> Rehearsal:
    def read(opened: trackhub.OpenedRun) -> Shown:
        return MemoryBackend.runs[str(opened.remote_id)].shown()

    kind = FlakyBackend.around(MemoryBackend, script)
    return Rehearsal(directory, kind, kind.Options(), read)


def test_what_fails_for_a_while_arrives_in_the_end_and_once(tmp_path: Path) -> None:
    methods = ("open", "checkpoint", "close", "write_metrics", "write_params", "write_images")
    script = Script({method: [BackendUnavailable("down", 0.1), None, ConnectionError("reset")] for method in methods})
    run = memory(tmp_path, script)
    run.log(sample(run, "params"), sample(run, "images"))
    for start in range(0, 30, 10):
        run.log(*[metrics(step, loss=float(step)) for step in range(start, start + 10)])
        run.deliver()
    run.end()
    assert run.deliver().closed
    shown = run.shown()
    assert [point[:2] for point in shown.metrics["loss"]] == [(step, float(step)) for step in range(30)]
    assert shown.params == {"lr": 0.1, "optimizer/name": "sgd"}
    assert shown.others == {"sample"}
    assert [len(left) for left in script.failures.values()] == [0, 0, 1, 0, 1, 1]


def test_what_is_bad_is_rejected_and_the_rest_of_its_step_is_shown(tmp_path: Path) -> None:
    script = Script(is_bad=lambda record: isinstance(record, MetricsLogged) and "bad" in record.values)
    run = memory(tmp_path, script)
    run.log(*[metrics(step, good=1.0, bad=2.0) for step in range(3)])
    run.end()
    report = run.deliver().report
    assert (report.rejected, report.points) == (3, 3)
    assert list(run.shown().metrics) == ["good"]


def test_delays_and_notes_are_played(tmp_path: Path) -> None:
    script = Script(delays_seconds={"write_metrics": 0.2}, notes={"write_metrics": [("renamed", "loss", "to x")]})
    run = memory(tmp_path, script)
    run.log(metrics(0, loss=0.5))
    run.end()
    started = time.monotonic()
    report = run.deliver().report
    assert time.monotonic() - started >= 0.2
    assert report.notes["renamed"].count == 1


def test_a_flaky_backend_shows_what_the_other_shows_and_is_called_like_it(tmp_path: Path) -> None:
    from trackhub.backends.tensorboard import TensorBoardBackend
    from trackhub.lowering import supported_kinds

    kind = FlakyBackend.around(TensorBoardBackend, Script())
    assert supported_kinds(kind) == supported_kinds(TensorBoardBackend)
    assert (kind.name, kind.Options, kind.keeps_order) == ("tensorboard", TensorBoardBackend.Options, True)


def test_recorded_reads_a_run_directory_that_has_no_tracker(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path, mode="offline", backends=()) as tracker:
        tracker.log_metrics({"loss": 0.5}, step=1, timestamp=1.5)
    assert recorded(tracker.directory).metrics == {"loss": [Point(1, 0.5, 1_500_000_000)]}


@pytest.mark.parametrize("name", ["Nothing", "conformances"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    import trackhub.testing

    with pytest.raises(AttributeError, match=name):
        getattr(trackhub.testing, name)


def test_a_run_in_memory_can_be_looked_into_by_the_test_that_trains(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path, backends="memory", mode="online", params={"lr": 0.1}) as tracker:
        tracker.log_metrics({"loss": 0.5}, step=1)
        tracker.flush()
        assert MemoryBackend.runs[tracker.id].shown().status == "running"
        with tracker.child("fold") as fold:
            fold.log_histogram("weights", [1.0, 2.0, 2.5])
    assert tracker.finish().complete
    shown = MemoryBackend.runs[tracker.id].shown()
    assert [point[:2] for point in shown.metrics["loss"]] == [(1, 0.5)]
    assert (shown.params, shown.status) == ({"lr": 0.1}, "finished")
    assert MemoryBackend.runs[fold.id].shown().parent == tracker.id
    assert MemoryBackend.runs[fold.id].shown().others == {"weights"}
