"""What a backend reads back is what is there, and reading it changes nothing.

A part of the conformance suite, for backends that have `read_back`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from trackhub.backend import Backend
from trackhub.errors import StateLost
from trackhub.testing import samples
from trackhub.testing.conformance.subject import Subject
from trackhub.testing.rehearsal import Rehearsal
from trackhub.verifying import Verification, reconcile


class ReadsItBack(Subject):
    """Tests of `read_back`, which `trackhub verify` goes by; its answers are compared with the author's own `read`."""

    def test_what_is_read_back_is_what_is_there(self, tmp_path: Path) -> None:
        """Metrics, params and tags, beside what the author finds; and the journal agrees with it."""
        run = self._delivered(tmp_path)
        shown = run.shown()
        backend = run.kind(run.options)
        try:
            there = backend.read_back(run.info(), run.cursor.state)
            points = list(there.points(list(there.metric_names())))
            params, tags, status = there.params, there.tags, there.status
            there.close()
        finally:
            backend.disconnect()
        found = sorted((point.step, point.value) for name, point in points if name == there.metric_name("loss"))
        assert found == self.found(shown, "loss")
        if self.shows_params and params is not None:
            assert params == shown.params
        if self.shows_tags and tags is not None:
            assert shown.tags.items() <= tags.items()
        if self.tells_status:
            assert status in (None, shown.status)
        verification = self._verified(run)
        assert [str(one) for one in verification.findings] == []
        assert verification.outcome == "agrees"

    def test_reading_back_changes_nothing(self, tmp_path: Path) -> None:
        """Neither of a run that has ended nor of one that goes on."""
        run = self._delivered(tmp_path, end=False)
        for _ in range(2):
            shown = run.shown()
            assert self._verified(run).outcome == "agrees"
            assert run.shown() == shown
            run.end("failed")
            run.deliver()

    def test_what_was_never_logged_is_found(self, tmp_path: Path) -> None:
        """Points that the backend was given behind the journal's back."""
        run = self._delivered(tmp_path, end=False)
        state = run.cursor.state
        backend = run.kind(run.options)
        try:
            backend.open(run.info(), state)
            backend.write_metrics([samples.metrics(1000, loss=0.5), samples.metrics(1001, stranger=0.25)])
        finally:
            backend.disconnect()
        found = {(one.kind, one.step) for one in self._verified(run).findings}
        assert found == {("extra point", 1000), ("extra metric", None)}

    def test_a_run_that_is_not_there_is_said_to_be_gone(self, tmp_path: Path) -> None:
        """Nothing is created in its place."""
        run = self.rehearse(tmp_path)
        self._needs_read_back(run.kind)
        backend = run.kind(run.options)
        try:
            with pytest.raises(StateLost):
                backend.read_back(run.info(), {})
        finally:
            backend.disconnect()

    def _delivered(self, directory: Path, *, end: bool = True) -> Rehearsal:
        run = self.rehearse(directory)
        self._needs_read_back(run.kind)
        run.log(samples.sample(run, "params"), samples.sample(run, "tags"), samples.sample(run, "artifacts"))
        run.log(*[samples.metrics(step, loss=1 / (step + 1), acc=float(step)) for step in range(20)])
        run.log(*[samples.sample(run, kind) for kind in samples.RICH_KINDS])
        if end:
            run.end()
        run.deliver()
        return run

    def _verified(self, run: Rehearsal) -> Verification:
        return reconcile(run.run, run.kind(run.options))

    def _needs_read_back(self, kind: type[Backend]) -> None:
        if kind.read_back is Backend.read_back:
            pytest.skip("the backend has no read_back()")
