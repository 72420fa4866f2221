"""What was logged is shown: each kind as itself, as something simpler, or as a line of the report; never as nothing.

A part of the conformance suite.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from trackhub.lowering import supported_kinds
from trackhub.records import EndStatus, MetricsLogged, ParamsLogged, TagsSet
from trackhub.testing import samples
from trackhub.testing.conformance.subject import Subject
from trackhub.testing.rehearsal import CREATED_NS

MILLISECOND_NS = 1_000_000


class ShowsWhatWasLogged(Subject):
    """Tests of what is found at the vendor after each kind of call."""

    def test_metrics_are_there_when_the_call_returns(self, tmp_path: Path) -> None:
        """Another reader finds them, while the backend is still open."""
        run = self.rehearse(tmp_path)
        with run.opened() as (backend, opened):
            backend.write_metrics([samples.metrics(step, loss=1 / (step + 1)) for step in range(5)])
            found = self.found(run.shown(opened), "loss")
        assert found == self.kept([(step, 1 / (step + 1)) for step in range(5)])

    def test_params_and_tags_are_there_when_the_call_returns(self, tmp_path: Path) -> None:
        """Another reader finds them, while the backend is still open."""
        run = self.rehearse(tmp_path)
        supported = supported_kinds(self.kind)
        with run.opened() as (backend, opened):
            if "params" in supported:
                backend.write_params([ParamsLogged(1, {"optimizer": "sgd"}), ParamsLogged(2, {"model/size": "small"})])
            if "tags" in supported:
                backend.write_tags([TagsSet(3, {"team": "vision", "stage": "draft"}), TagsSet(4, {"stage": "final"})])
            shown = run.shown(opened)
        if self.shows_params:
            assert shown.params == {"optimizer": "sgd", "model/size": "small"}
        if self.shows_tags:
            assert shown.tags == {"team": "vision", "stage": "final"}

    def test_files_and_directories_are_there_when_the_call_returns(self, tmp_path: Path) -> None:
        """With their content, under their names."""
        if not self.shows_files:
            pytest.skip("the vendor has no place for files")
        run = self.rehearse(tmp_path)
        with run.opened() as (backend, opened):
            backend.write_artifacts(
                [samples.artifact(run, "out/a.bin", b"\0\xff"), samples.directory(run, "folder", x=b"1", y=b"")]
            )
            shown = run.shown(opened)
        assert shown.files == {"out/a.bin": b"\0\xff", "folder/x": b"1", "folder/y": b""}

    def test_a_whole_run_arrives_through_a_delivery(self, tmp_path: Path) -> None:
        """From the journal, in batches, to its end."""
        run = self.rehearse(tmp_path)
        run.log(samples.sample(run, "params"), samples.sample(run, "tags"), samples.sample(run, "artifacts"))
        points = [samples.metrics(step, loss=1 / (step + 1), acc=float(step)) for step in range(60)]
        for point in points[:20]:
            run.log(point)
        run.deliver()
        for point in points[20:]:
            run.log(point)
        run.end()
        cursor = run.deliver()
        shown = run.shown()
        assert cursor.closed
        assert cursor.report.delivered["metrics"] == 60
        assert cursor.report.points == 120
        assert cursor.report.rejected == 0
        assert self.found(shown, "loss") == self.kept([(step, 1 / (step + 1)) for step in range(60)])
        assert self.found(shown, "acc") == self.kept([(step, float(step)) for step in range(60)])
        if self.shows_params:
            assert set(shown.params) == {"lr", "optimizer/name"}
        if self.shows_tags:
            assert shown.tags == {"team": "vision"}
        if self.shows_files:
            assert b"\0content\xff" in shown.files.values()

    def test_points_keep_the_time_they_were_logged(self, tmp_path: Path) -> None:
        """The journal's time, not that of the delivery."""
        if not self.keeps_times:
            pytest.skip("the vendor keeps no times")
        run = self.rehearse(tmp_path)
        logged = [samples.metrics(step, loss=0.5) for step in range(3)]
        run.log(*logged)
        run.deliver()
        found = [time_ns or 0 for _, _, time_ns in run.shown().metrics["loss"]]
        expected = [point.time_ns for point in (logged if self.keeps_every_step else logged[-1:])]
        assert len(found) == len(expected)
        for time_ns, when in zip(sorted(found), expected, strict=True):
            assert abs(time_ns - when) <= MILLISECOND_NS

    def test_steps_that_go_backwards_are_shown_or_reported(self, tmp_path: Path) -> None:
        """As after a checkpoint was loaded; also a step that comes again with another value."""
        run = self.rehearse(tmp_path)
        steps = [5, 6, 3, 4, 5, 7]
        for order, step in enumerate(steps):
            run.log(MetricsLogged(CREATED_NS + order * 10**9, step, {"loss": float(order)}))
        run.end()
        cursor = run.deliver()
        found = self.found(run.shown(), "loss")
        logged = [(step, float(order)) for order, step in enumerate(steps)]
        if self.takes_any_step_order or not self.keeps_every_step:
            assert found == self.kept(logged)
        else:
            missing = [point for point in logged if point not in found]
            assert len(found) == len(logged) - len(missing)
            assert (5, 0.0) in found
            assert (7, 5.0) in found
            assert len(missing) <= len(run.notes) + cursor.report.rejected

    @pytest.mark.parametrize("kind", samples.RICH_KINDS)
    def test_a_rich_value_is_shown_or_lowered_or_reported(self, kind: str, tmp_path: Path) -> None:
        """Whatever the report says of it is true."""
        run = self.rehearse(tmp_path)
        run.log(samples.metrics(0, loss=0.5), samples.sample(run, kind), samples.metrics(1, loss=0.25))
        run.end()
        report = run.deliver().report
        shown = run.shown()
        is_shown = any(samples.NAME in name for name in {*shown.files, *shown.others})
        is_reported = bool(report.skipped.get(kind) or report.rejected or run.notes)
        assert is_shown or is_reported, f"{kind} are neither shown nor reported: {report}"
        if kind in supported_kinds(self.kind):
            assert (kind in report.delivered) or report.rejected, f"{kind}: {report}"
        else:
            assert (kind in report.lowered) != (kind in report.skipped), f"{kind}: {report}"
        assert self.found(shown, "loss") == self.kept([(0, 0.5), (1, 0.25)])

    @pytest.mark.parametrize("status", ["finished", "failed", "killed"])
    def test_the_end_is_told(self, status: EndStatus, tmp_path: Path) -> None:
        """The vendor says how the run ended, and not before."""
        if not self.tells_status:
            pytest.skip("the vendor does not tell how a run ended")
        run = self.rehearse(tmp_path)
        run.log(samples.metrics(0, loss=0.5))
        run.deliver()
        assert run.shown().status in (None, "running")
        run.end(status)
        run.deliver()
        accepted = {status} if self.tells_killed_from_failed or status == "finished" else {"failed", "killed"}
        assert run.shown().status in accepted

    def test_a_run_that_goes_on_after_its_end_is_the_same_run(self, tmp_path: Path) -> None:
        """Another process resumes it: it runs again, keeps what it had, and ends anew."""
        run = self.rehearse(tmp_path)
        run.log(samples.metrics(0, loss=0.5))
        run.end("failed")
        before = run.deliver()
        run.log(samples.metrics(1, loss=0.25))
        during = run.deliver()
        if self.tells_status:
            assert run.shown().status in (None, "running")
        run.end()
        after = run.deliver()
        assert before.remote_id == during.remote_id == after.remote_id
        assert self.found(run.shown(), "loss") == self.kept([(0, 0.5), (1, 0.25)])
        if self.tells_status:
            assert run.shown().status == "finished"

    def test_a_child_run_is_below_its_parent_and_not_in_it(self, tmp_path: Path) -> None:
        """As the trials of a search are."""
        parent = self.rehearse(tmp_path, "parent")
        parent.log(samples.metrics(0, loss=0.5))
        parent.deliver()
        child = self.rehearse(tmp_path, "child", parent)
        child.log(samples.metrics(0, loss=0.125, only_child=1.0))
        child.end()
        child.deliver()
        parent.end()
        parent.deliver()
        assert parent.cursor.closed
        assert child.cursor.closed
        assert self.found(parent.shown(), "loss") == self.kept([(0, 0.5)])
        if not self.shows_children:
            return
        shown = child.shown()
        assert child.cursor.remote_id != parent.cursor.remote_id
        assert shown.parent == parent.cursor.remote_id
        assert self.found(shown, "loss") == self.kept([(0, 0.125)])
        assert "only_child" not in parent.shown().metrics

    def test_two_runs_are_two_runs(self, tmp_path: Path) -> None:
        """Even with the same name."""
        if not self.shows_children:
            pytest.skip("there is one place for one run")
        first, second = self.rehearse(tmp_path, "same"), self.rehearse(tmp_path, "same")
        for value, run in enumerate((first, second)):
            run.log(samples.metrics(0, loss=float(value)))
            run.end()
            run.deliver()
        assert first.cursor.remote_id != second.cursor.remote_id
        assert self.found(first.shown(), "loss") == self.kept([(0, 0.0)])
        assert self.found(second.shown(), "loss") == self.kept([(0, 1.0)])
