"""A run that was killed and went on from a checkpoint is one curve, or the report says what else is shown.

A part of the conformance suite.
"""

from __future__ import annotations

from pathlib import Path

from trackhub.backend import Backend
from trackhub.delivery import STILL_SHOWN
from trackhub.records import MetricsLogged
from trackhub.testing import samples
from trackhub.testing.conformance.subject import Subject
from trackhub.testing.rehearsal import CREATED_NS, Rehearsal
from trackhub.testing.shown import Shown

CHECKPOINT = 11
CRASH = 20
END = 26
RESTARTED_NS = CREATED_NS + 3600 * 10**9

Points = list[tuple[int, float]]


class ShowsOneCurve(Subject):
    """Tests of what is found at the vendor after training went on from an earlier step."""

    def test_steps_logged_anew_supersede_the_earlier_ones(self, tmp_path: Path) -> None:
        """The attempt has said from which step it goes on."""
        run = self._crashed(tmp_path)
        run.deliver()
        self._go_on(run, CHECKPOINT)
        run.deliver()
        self._check(run, late_kept=CHECKPOINT + 1)

    def test_steps_logged_anew_supersede_the_earlier_ones_without_being_told(self, tmp_path: Path) -> None:
        """Then it is so for each metric that is logged again, from its first step on."""
        run = self._crashed(tmp_path)
        run.deliver()
        self._go_on(run, None)
        run.deliver()
        self._check(run, late_kept=CRASH)

    def test_a_rewind_that_comes_again_changes_nothing(self, tmp_path: Path) -> None:
        """The delivery ended after it, and before its place was saved."""
        run = self._crashed(tmp_path)
        run.deliver()
        self._go_on(run, CHECKPOINT)
        with run.cursor_not_saved():
            run.deliver()
            shown = run.shown()
        run.deliver()
        self._check(run, late_kept=CHECKPOINT + 1)
        if self.shows_once:
            assert run.shown() == shown

    def test_what_is_delivered_late_has_nothing_superseded_in_it(self, tmp_path: Path) -> None:
        """Nothing was delivered before the second attempt: every backend then shows one curve."""
        run = self._crashed(tmp_path)
        self._go_on(run, CHECKPOINT)
        report = run.deliver().report
        superseded = CRASH - CHECKPOINT - 1
        assert report.superseded == 2 * superseded
        assert STILL_SHOWN not in report.notes
        assert self._loss(run.shown()) == self.kept(self._expected(CHECKPOINT + 1))

    def test_steps_that_go_on_supersede_nothing(self, tmp_path: Path) -> None:
        """A run that is resumed where it ended, with steps that follow."""
        run = self._crashed(tmp_path)
        run.deliver()
        run.begin()
        run.log(*[_point(step, 2) for step in range(CRASH, END)])
        report = run.deliver().report
        assert STILL_SHOWN not in report.notes
        assert report.superseded == 0
        assert self._loss(run.shown()) == self.kept(self._expected(CRASH))

    def _crashed(self, directory: Path) -> Rehearsal:
        run = self.rehearse(directory)
        run.log(samples.sample(run, "params"), samples.sample(run, "tags"))
        run.log(*[_point(step, 1, late=step / 2) for step in range(CRASH)])
        return run

    def _go_on(self, run: Rehearsal, resume_step: int | None) -> None:
        run.begin(resume_step, RESTARTED_NS)
        run.log(*[_point(step, 2) for step in range(CHECKPOINT + 1, END)])
        run.end()

    def _expected(self, first_anew: int) -> Points:
        return [(step, step + (0.25 if step < first_anew else 0.5)) for step in range(END)]

    def _loss(self, shown: Shown) -> Points:
        return self.found(shown, "loss")

    def _check(self, run: Rehearsal, *, late_kept: int) -> None:
        """The curve is one, or the report tells how much more is shown."""
        shown, notes = run.shown(), run.cursor.report.notes
        if self.takes_back and self.kind.rewind is not Backend.rewind:
            assert self._loss(shown) == self.kept(self._expected(CHECKPOINT + 1))
            kept = [(step, step / 2) for step in range(late_kept)]
            assert self.found(shown, "late") == self.kept(kept)
            assert STILL_SHOWN not in notes
        else:
            count = CRASH - CHECKPOINT - 1
            assert notes[STILL_SHOWN].count == count + CRASH - late_kept
        assert shown.params or not self.shows_params


def _point(step: int, attempt: int, **more: float) -> MetricsLogged:
    began = CREATED_NS if attempt == 1 else RESTARTED_NS
    values = {"loss": step + attempt * 0.25, **more}
    return MetricsLogged(began + step * 10**9, step, values)
