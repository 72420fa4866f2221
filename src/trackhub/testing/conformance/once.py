"""What is sent again is shown once: after a kill, after the state was lost, after the run was closed.

A part of the conformance suite.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trackhub.settings import full_options
from trackhub.testing import samples
from trackhub.testing.conformance.subject import Subject
from trackhub.testing.rehearsal import Rehearsal

KILLED_DELIVERY = """
import importlib, json, os, pathlib, signal, sys, time
sys.path[:], module, name, options, path = json.loads(sys.argv[1])
from trackhub.delivery import Delivery
from trackhub.rundir import RunDirectory

kind = getattr(importlib.import_module(module), name)

class Dying(kind):
    def write_metrics(self, points):
        super().write_metrics(points)
        os.kill(os.getpid(), signal.SIGKILL)

made = Dying(kind.Options.model_validate(options))
delivery = Delivery(RunDirectory(pathlib.Path(path)), kind.name, lambda: made)
until = time.monotonic() + 60
while (again := delivery.pump()) is not None and (not again or delivery.troubled) and time.monotonic() < until:
    if again:
        time.sleep(min(again, 0.2))
        delivery.retry_now()
sys.exit(f"it was not killed: {delivery.run.cursor(kind.name).report}")
"""
"""A delivery process that is killed after the backend has taken metrics, and before that is remembered."""


class ShowsItOnce(Subject):
    """Tests of what is found at the vendor after something was sent twice."""

    def test_a_batch_that_comes_again_after_a_restart_is_shown_once(self, tmp_path: Path) -> None:
        """The delivery ended between a batch and the saving of its place: same state, same batch."""
        self._needs_once()
        run = self._half_delivered(tmp_path)
        with run.cursor_not_saved():
            run.deliver()
            shown = run.shown()
        opened = run.cursor.remote_id
        run.deliver()
        assert run.shown() == shown
        assert run.cursor.remote_id == opened

    def test_a_batch_that_comes_again_with_more_is_shown_once(self, tmp_path: Path) -> None:
        """The batches after a restart need not be cut where they were before."""
        self._needs_once()
        run = self._half_delivered(tmp_path)
        with run.cursor_not_saved():
            run.deliver()
        run.log(*[samples.metrics(step, loss=float(step)) for step in range(20, 25)])
        run.deliver()
        assert self.found(run.shown(), "loss") == self.kept([(step, float(step)) for step in range(25)])

    def test_a_run_whose_state_was_lost_is_found_again_and_shown_once(self, tmp_path: Path) -> None:
        """All is given again, with an empty state: the run at the vendor is the same one."""
        self._needs_once()
        run = self._half_delivered(tmp_path)
        run.deliver()
        shown, remote_id = run.shown(), run.cursor.remote_id
        run.lose_cursor()
        run.deliver()
        assert run.cursor.remote_id == remote_id
        assert run.shown() == shown

    def test_a_run_that_had_ended_is_shown_once_when_all_is_given_again(self, tmp_path: Path) -> None:
        """It runs again for a moment, and ends as it had ended."""
        self._needs_once()
        run = self._half_delivered(tmp_path)
        run.end("failed")
        run.deliver()
        shown, remote_id = run.shown(), run.cursor.remote_id
        run.lose_cursor()
        assert run.deliver().closed
        assert run.cursor.remote_id == remote_id
        assert run.shown() == shown

    def test_a_close_that_comes_again_is_harmless(self, tmp_path: Path) -> None:
        """The delivery ended between the close and the saving of it."""
        run = self._half_delivered(tmp_path)
        run.deliver()
        run.end()
        with run.cursor_not_saved():
            run.deliver()
            shown = run.shown()
        assert run.deliver().closed
        if self.shows_once:
            assert run.shown() == shown

    def test_opening_again_attaches_to_the_same_run(self, tmp_path: Path) -> None:
        """With nothing remembered and nothing written yet."""
        run = self.rehearse(tmp_path)
        with run.opened() as (_, first):
            pass
        with run.opened() as (_, second):
            pass
        assert first.remote_id == second.remote_id

    def test_a_delivery_process_that_is_killed_after_a_batch_does_no_harm(self, tmp_path: Path) -> None:
        """SIGKILL, so nothing is let go of in good order; then another process goes on."""
        if self.kind.needs_training_process:
            pytest.skip("it has no delivery process")
        run = self._half_delivered(tmp_path)
        kind = self.kind
        told = [sys.path, kind.__module__, kind.__name__, full_options(run.options), str(run.run.path)]
        ended = subprocess.run(
            [sys.executable, "-c", KILLED_DELIVERY, json.dumps(told)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        run.end()
        run.deliver()
        assert self.found(run.shown(), "loss") == self.kept([(step, float(step)) for step in range(20)])

    def _half_delivered(self, directory: Path) -> Rehearsal:
        """A run of 20 steps and some values, of which the first steps have been delivered."""
        run = self.rehearse(directory)
        run.log(samples.sample(run, "params"), samples.sample(run, "tags"))
        run.log(*[samples.metrics(step, loss=float(step)) for step in range(8)])
        run.deliver()
        run.log(*[samples.metrics(step, loss=float(step)) for step in range(8, 20)])
        run.log(*[samples.sample(run, kind) for kind in ("artifacts", *samples.RICH_KINDS)])
        return run

    def _needs_once(self) -> None:
        if not self.shows_once:
            pytest.skip("what was sent cannot be told apart or taken back, and showing it twice does no harm")
