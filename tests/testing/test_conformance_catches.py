"""The conformance suite fails where a backend breaks its promises: each defect is caught by the test that is for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from trackhub import BackendOptions, OpenedRun, Rewind, RunInfo
from trackhub.records import EndStatus, MetricsLogged, Record
from trackhub.testing import BackendConformance, MemoryBackend, Shown
from trackhub.testing.memory import MemoryRun


class ReadMemory(BackendConformance):
    kind = MemoryBackend
    is_registered = False

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        return MemoryBackend.runs[str(opened.remote_id)].shown()


class Forgets(MemoryBackend):
    """Takes part of each batch."""

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        super().write_metrics(points[:-1])


class Buffers(MemoryBackend):
    """Writes when it is closed."""

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        self.buffer: list[MetricsLogged] = []
        return super().open(run, state)

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        self.buffer.extend(points)

    def close(self, status: EndStatus) -> None:
        super().write_metrics(self.buffer)


class Duplicates(MemoryBackend):
    """Appends whatever comes."""

    def _take(self, records: Sequence[Record]) -> None:
        self._run._records.update({str(len(self._run._records)).encode(): record for record in records[:1]})
        super()._take(records)


class NewRuns(MemoryBackend):
    """Makes another run at each opening."""

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        remote_id = f"{run.id}-{len(self.runs)}"
        self._run = self.runs[remote_id] = MemoryRun(run)
        return OpenedRun(remote_id=remote_id)


class Stamps(MemoryBackend):
    """Keeps the time of the delivery."""

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        super().write_metrics([MetricsLogged(7, point.step, point.values) for point in points])


class Strict(MemoryBackend):
    """Leaves out steps that do not increase, without a word."""

    last = -1

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        for point in points:
            if point.step > self.last:
                self.last = point.step
                super().write_metrics([point])


class Swallows(MemoryBackend):
    """Says that it has taken pictures."""

    def write_images(self, images: Sequence[Any]) -> None:
        pass


class NeverEnds(MemoryBackend):
    """Does not end runs."""

    def close(self, status: EndStatus) -> None:
        pass


class Mixes(MemoryBackend):
    """Puts child runs into their parents."""

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        opened = super().open(run, state)
        if run.parent_remote_id is None:
            return opened
        self._run = self.runs[run.parent_remote_id]
        return OpenedRun(remote_id=run.parent_remote_id)


class Collides(MemoryBackend):
    """Cleans names so that different ones meet."""

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        for point in points:
            for name, value in point.values.items():
                clean = "".join(one if one.isascii() and one.isalnum() else "_" for one in name)
                super().write_metrics([MetricsLogged(point.time_ns, point.step, {clean: value})])


class Zeroes(MemoryBackend):
    """Shows what is no number as 0."""

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        finite = [
            MetricsLogged(p.time_ns, p.step, {n: v if abs(v) < 1e300 else 0.0 for n, v in p.values.items()})
            for p in points
        ]
        super().write_metrics(finite)


class Shortens(MemoryBackend):
    """Cuts long params, without a word."""

    def write_params(self, params: Sequence[Any]) -> None:
        super().write_params(
            [type(p)(p.time_ns, {n: v[:500] if isinstance(v, str) else v for n, v in p.params.items()}) for p in params]
        )


class Chokes(MemoryBackend):
    """Fails on tags with line breaks."""

    def write_tags(self, tags: Sequence[Any]) -> None:
        if any("\n" in value for record in tags for value in record.tags.values()):
            raise ValueError("line break")
        super().write_tags(tags)


class Threads(MemoryBackend):
    """Leaves a thread behind."""

    gone: threading.Event

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        threading.Thread(target=self.gone.wait, args=(30,), daemon=True).start()
        return super().open(run, state)


class Files(MemoryBackend):
    """Leaves a file open at each run."""

    left: list[Any] = []  # noqa: RUF012

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        self.left.append(Path("/dev/null").open())  # noqa: SIM115
        return super().open(run, state)


class Children(MemoryBackend):
    """Leaves a process behind."""

    left: list[subprocess.Popen[bytes]] = []  # noqa: RUF012

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        self.left.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return super().open(run, state)


class Lenient(MemoryBackend):
    """Takes any option."""

    Options = type("Options", (BackendOptions,), {"model_config": {"extra": "ignore"}})


class Crashes(MemoryBackend):
    """Lets an error of its own out where the vendor is away."""

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        raise ConnectionRefusedError if run.name != "run" else RuntimeError("refused")


class NeedsOpen(MemoryBackend):
    """Cannot be let go of without having been opened."""

    def disconnect(self) -> None:
        self._run.status  # noqa: B018


class GoesOn(MemoryBackend):
    """Says that it has taken back what is superseded."""

    def rewind(self, rewind: Rewind) -> bool:
        return True


class TakesBackTooMuch(MemoryBackend):
    """Forgets all metrics from the step on."""

    def rewind(self, rewind: Rewind) -> bool:
        lowest = min([*rewind.metrics.values(), *([] if rewind.after_step is None else [rewind.after_step])])
        self._run.rewind(Rewind(rewind.attempt, rewind.time_ns, lowest - 1))
        return True


CAUGHT: list[tuple[type[MemoryBackend], str, dict[str, Any]]] = [
    (Forgets, "test_a_whole_run_arrives_through_a_delivery", {}),
    (Buffers, "test_metrics_are_there_when_the_call_returns", {}),
    (Duplicates, "test_a_batch_that_comes_again_after_a_restart_is_shown_once", {}),
    (Duplicates, "test_a_batch_that_comes_again_with_more_is_shown_once", {}),
    (NewRuns, "test_a_run_whose_state_was_lost_is_found_again_and_shown_once", {}),
    (NewRuns, "test_a_run_that_had_ended_is_shown_once_when_all_is_given_again", {}),
    (NewRuns, "test_opening_again_attaches_to_the_same_run", {}),
    (NewRuns, "test_a_run_that_goes_on_after_its_end_is_the_same_run", {}),
    (Stamps, "test_points_keep_the_time_they_were_logged", {}),
    (Strict, "test_steps_that_go_backwards_are_shown_or_reported", {}),
    (Swallows, "test_a_rich_value_is_shown_or_lowered_or_reported", {"kind": "images"}),
    (NeverEnds, "test_the_end_is_told", {"status": "failed"}),
    (Mixes, "test_a_child_run_is_below_its_parent_and_not_in_it", {}),
    (Collides, "test_odd_metric_names", {}),
    (Zeroes, "test_values_that_are_no_numbers", {}),
    (Shortens, "test_odd_params", {}),
    (Chokes, "test_odd_tags", {}),
    (Forgets, "test_many_metrics_of_one_step", {}),
    (Threads, "test_nothing_is_left_running", {}),
    (Files, "test_nothing_is_left_running", {}),
    (Children, "test_nothing_is_left_running", {}),
    (GoesOn, "test_steps_logged_anew_supersede_the_earlier_ones", {}),
    (GoesOn, "test_steps_logged_anew_supersede_the_earlier_ones_without_being_told", {}),
    (TakesBackTooMuch, "test_steps_logged_anew_supersede_the_earlier_ones", {}),
    (TakesBackTooMuch, "test_steps_logged_anew_supersede_the_earlier_ones_without_being_told", {}),
    (NeedsOpen, "test_letting_go_never_raises", {}),
]


@pytest.mark.parametrize(("defect", "test", "given"), CAUGHT, ids=[f"{one.__name__}-{test}" for one, test, _ in CAUGHT])
def test_a_defect_is_caught(
    defect: type[MemoryBackend], test: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackhub.testing.conformance.manners.SETTLING_SECONDS", 0.3)
    Threads.gone = threading.Event()
    subject = type("Defective", (ReadMemory,), {"kind": defect})()
    try:
        with pytest.raises((AssertionError, AttributeError)):
            getattr(subject, test)(tmp_path=tmp_path, **given)
    finally:
        Threads.gone.set()
        for file in Files.left:
            file.close()
        for process in Children.left:
            process.communicate()
        Files.left.clear()
        Children.left.clear()


def test_options_that_are_swallowed_are_caught() -> None:
    subject = type("Defective", (ReadMemory,), {"kind": Lenient})()
    with pytest.raises(pytest.fail.Exception):
        subject.test_options_that_do_not_exist_are_refused()


def test_an_error_of_its_own_where_the_vendor_is_away_is_caught(tmp_path: Path) -> None:
    class Away(ReadMemory):
        kind = Crashes

        def options_that_lead_nowhere(self, directory: Path) -> Mapping[str, Any]:
            return {}

    with pytest.raises(AssertionError, match="should have raised BackendUnavailable"):
        Away().test_a_vendor_that_cannot_be_reached_is_waited_for(tmp_path)


def test_a_vendor_imported_too_early_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labsdk.py").touch()
    (tmp_path / "lab_plugin.py").write_text(
        "import labsdk\nfrom trackhub.testing import MemoryBackend\nclass Lab(MemoryBackend): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import lab_plugin  # type: ignore[import-not-found]

    subject = type("Early", (ReadMemory,), {"kind": lab_plugin.Lab, "vendor_modules": ("labsdk",)})()
    with pytest.raises(AssertionError, match="labsdk"):
        subject.test_nothing_of_the_vendor_is_imported_before_open(tmp_path)
