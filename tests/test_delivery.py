from __future__ import annotations

import errno
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backends_for_tests import (
    HERE,
    LinesBackend,
    LinesOptions,
    MetricsOnlyBackend,
    OrderedBackend,
    calls_in,
)

from trackhub import BackendUnavailable, OpenedRun, RunInfo, StateLost
from trackhub.backend import Backend
from trackhub.delivery import (
    CLAIM_POLL_SECONDS,
    FIRST_BACKOFF_SECONDS,
    HAND_OVER_SECONDS,
    LAST_BACKOFF_SECONDS,
    LONGEST_RETRY_AFTER_SECONDS,
    PARENT_PATIENCE_SECONDS,
    Delivery,
)
from trackhub.journal import JournalWriter
from trackhub.records import (
    ConfusionMatrixLogged,
    EndStatus,
    HistogramLogged,
    MetricsLogged,
    ParamsLogged,
    Record,
    RunEnded,
    TagsSet,
)
from trackhub.rundir import Manifest, RunDirectory
from trackhub.testing import FlakyBackend, Script


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """One run, one backend that writes lines, one clock."""

    def __init__(self, root: Path, run_id: str = "run", parent_id: str | None = None) -> None:
        manifest = Manifest(run_id, run_id, "p", 1, {"lines": {}}, parent_id=parent_id, working_directory=str(root))
        self.run = RunDirectory.create(root, manifest)
        self.lines = root / f"{run_id}.lines"
        self.script = Script()
        self.clock = FakeClock()
        self.kind: type[LinesBackend] = LinesBackend

    def writer(self, role: Any = "owner") -> JournalWriter:
        return JournalWriter(self.run.journal, role, 1)

    def delivery(self) -> Delivery:
        def make() -> Backend:
            return FlakyBackend.around(self.kind, self.script)(LinesOptions(path=str(self.lines)))

        return Delivery(self.run, "lines", make, "lines 1.0", self.clock)

    def calls(self, *but: str) -> list[str]:
        return [line["call"] for line in calls_in(self.lines) if line["call"] not in but]

    def written(self, call: str) -> list[dict[str, Any]]:
        return [record for line in calls_in(self.lines) if line["call"] == call for record in line["records"]]

    def points(self) -> list[tuple[int, str, float]]:
        return [(r["step"], name, v) for r in self.written("write_metrics") for name, v in r["values"].items()]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def settle(delivery: Delivery) -> float | None:
    """Pump until there is nothing to do at once."""
    for _ in range(10_000):
        again = delivery.pump()
        if again != 0.0:
            return again
    raise AssertionError("it never comes to rest")


def log(writer: JournalWriter, steps: range, names: str = "ab") -> None:
    for step in steps:
        writer.append_metrics({name: step + index / 10 for index, name in enumerate(names)}, step, step + 1)


def expected(steps: range, names: str = "ab") -> list[tuple[int, str, float]]:
    return [(step, name, step + index / 10) for step in steps for index, name in enumerate(names)]


def end(writer: JournalWriter, status: EndStatus = "finished") -> None:
    writer.append(RunEnded(99, status))
    writer.close()


def report_of(scene: Scene) -> Any:
    return scene.run.cursor("lines").report


# --- batches


def test_each_kind_of_a_chunk_is_one_batch_in_the_order_it_was_logged(scene: Scene) -> None:
    writer = scene.writer()
    writer.append(ParamsLogged(1, {"lr": 0.1}))
    log(writer, range(3))
    writer.append(TagsSet(2, {"k": "v"}))
    writer.append(ParamsLogged(3, {"depth": 2}))
    log(writer, range(3, 5))
    end(writer)
    assert settle(scene.delivery()) is None
    assert scene.calls() == ["open", "write_params", "write_metrics", "write_tags", "close", "disconnect"]
    assert [record["params"] for record in scene.written("write_params")] == [{"lr": 0.1}, {"depth": 2}]
    assert scene.points() == expected(range(5))


def test_a_backend_that_keeps_order_gets_a_new_batch_wherever_the_kind_changes(scene: Scene) -> None:
    scene.kind = OrderedBackend
    writer = scene.writer()
    log(writer, range(2))
    writer.append(TagsSet(2, {"k": "v"}))
    log(writer, range(2, 3))
    log(writer, range(3, 4))
    end(writer)
    settle(scene.delivery())
    assert scene.calls()[1:5] == ["write_metrics", "write_tags", "write_metrics", "close"]
    assert scene.points() == expected(range(4))


def test_a_long_journal_comes_in_several_chunks_each_point_once(scene: Scene) -> None:
    writer = scene.writer()
    log(writer, range(25_000))
    end(writer)
    assert settle(scene.delivery()) is None
    assert scene.calls().count("write_metrics") > 1
    assert scene.points() == expected(range(25_000))
    assert report_of(scene).delivered == {"metrics": 25_000}
    assert report_of(scene).points == 50_000


def test_an_ended_run_of_several_chunks_is_opened_and_closed_once_with_its_own_status(scene: Scene) -> None:
    writer = scene.writer()
    for step in range(6_000):
        writer.append_metrics({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}, step, step)
    writer.append(RunEnded(6_000, "finished"))
    writer.close()
    settle(scene.delivery())
    assert scene.calls("write_metrics") == ["open", "close", "disconnect"]
    assert len(scene.points()) == 30_000
    assert [line["status"] for line in calls_in(scene.lines) if line["call"] == "close"] == ["finished"]


def test_a_few_records_at_a_time_are_gathered_rather_than_sent_one_by_one(scene: Scene) -> None:
    writer, delivery = scene.writer(), scene.delivery()
    settle(delivery)
    log(writer, range(1))
    assert delivery.pump() >= 0.5
    log(writer, range(1, 9))
    assert delivery.pump() >= 0.5
    assert scene.calls("open").count("write_metrics") == 2
    end(writer)
    assert settle(delivery) is None


# --- not available


def test_while_unavailable_the_cursor_stays_and_the_backoff_grows_to_its_bound_for_ever(scene: Scene) -> None:
    scene.script.failures["open"] = [BackendUnavailable("no route")] * 2000
    writer = scene.writer()
    log(writer, range(3))
    end(writer)
    delivery = scene.delivery()
    waits = []
    for _ in range(2000):
        wait = delivery.pump()
        assert wait is not None
        assert wait > 0
        waits.append(wait)
        assert delivery.pump() == pytest.approx(wait)  # not before its time
        scene.clock.now += wait
    assert FIRST_BACKOFF_SECONDS * 0.7 <= waits[0] <= FIRST_BACKOFF_SECONDS
    assert max(waits) <= LAST_BACKOFF_SECONDS
    assert min(waits[10:]) >= LAST_BACKOFF_SECONDS * 0.7
    assert len(set(waits[10:])) > 100  # spread, so that many runs do not come back at the same moment
    cursor = scene.run.cursor("lines")
    assert cursor.position == {}
    assert cursor.report.error == "no route"
    assert settle(delivery) is None
    assert scene.points() == expected(range(3))
    assert scene.run.cursor("lines").report.error is None


@pytest.mark.parametrize(("asked", "waited"), [(7.5, 7.5), (0.0, 0.1), (-3.0, 0.1), (1e9, LONGEST_RETRY_AFTER_SECONDS)])
def test_the_delay_a_backend_asks_for_is_kept_within_reason(scene: Scene, asked: float, waited: float) -> None:
    scene.script.failures["open"] = [BackendUnavailable("quota", asked)]
    writer = scene.writer()
    assert scene.delivery().pump() == pytest.approx(waited)
    end(writer)


def test_retry_now_ends_a_backoff(scene: Scene) -> None:
    scene.script.failures["open"] = [BackendUnavailable("quota", 600)]
    end(scene.writer())
    delivery = scene.delivery()
    assert delivery.pump() == 600
    assert delivery.troubled
    delivery.retry_now()
    assert settle(delivery) is None
    assert not delivery.troubled


def test_batches_that_have_arrived_are_not_sent_again_when_a_later_one_has_to_wait(scene: Scene) -> None:
    scene.script.failures["write_metrics"] = [BackendUnavailable("full"), BackendUnavailable("full")]
    scene.script.failures["write_tags"] = [BackendUnavailable("full")]
    writer = scene.writer()
    writer.append(ParamsLogged(1, {"lr": 0.1}))
    log(writer, range(3))
    writer.append(TagsSet(2, {"k": "v"}))
    end(writer)
    delivery = scene.delivery()
    for _ in range(3):
        wait = settle(delivery)
        assert wait is not None
        assert scene.run.cursor("lines").position == {}
        scene.clock.now += wait
    assert settle(delivery) is None
    assert scene.calls() == ["open", "write_params", "write_metrics", "write_tags", "close", "disconnect"]
    assert report_of(scene).delivered == {"params": 1, "metrics": 3, "tags": 1}


def test_an_os_error_counts_as_unavailable(scene: Scene) -> None:
    scene.script.failures["write_metrics"] = [ConnectionResetError("gone")]
    writer = scene.writer()
    log(writer, range(1))
    end(writer)
    delivery = scene.delivery()
    scene.clock.now += settle(delivery) or math.nan
    assert report_of(scene).error == "ConnectionResetError: gone"
    assert settle(delivery) is None
    assert scene.points() == expected(range(1))


def test_unavailable_at_the_end_is_tried_again_and_the_run_is_closed_once(scene: Scene) -> None:
    scene.script.failures["close"] = [BackendUnavailable("down")]
    end(scene.writer(), "failed")
    delivery = scene.delivery()
    scene.clock.now += settle(delivery) or math.nan
    assert not scene.run.cursor("lines").closed
    assert settle(delivery) is None
    assert [line["status"] for line in calls_in(scene.lines) if line["call"] == "close"] == ["failed"]


# --- rejected


def rejected_lines(scene: Scene) -> list[dict[str, Any]]:
    path = scene.run.rejected / "lines.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_bad_record_is_set_aside_alone_and_all_others_arrive(scene: Scene) -> None:
    scene.script.is_bad = lambda record: isinstance(record, TagsSet) and "bad" in record.tags
    writer = scene.writer()
    for number in range(100):
        writer.append(TagsSet(number, {"bad" if number in (0, 37, 99) else "good": str(number)}))
    end(writer)
    assert settle(scene.delivery()) is None
    arrived = [int(record["tags"]["good"]) for record in scene.written("write_tags")]
    assert arrived == [number for number in range(100) if number not in (0, 37, 99)]
    lines = rejected_lines(scene)
    assert [line["record"]["tags"]["bad"] for line in lines] == ["0", "37", "99"]
    assert {line["kind"] for line in lines} == {"tags"}
    assert {line["reason"] for line in lines} == {"one of 1 is bad"}
    report = report_of(scene)
    assert report.rejected == 3
    assert report.delivered == {"tags": 97}
    assert report.rejected_examples[0] == "tags bad: one of 1 is bad"


def test_one_bad_metric_of_a_step_is_set_aside_alone_and_the_step_counts_once(scene: Scene) -> None:
    def is_bad(record: Record) -> bool:
        return isinstance(record, MetricsLogged) and any(math.isnan(value) for value in record.values.values())

    scene.script.is_bad = is_bad
    writer = scene.writer()
    log(writer, range(3), "abcde")
    writer.append_metrics({"a": 1.0, "b": 2.0, "c": math.nan, "d": 4.0, "e": 5.0}, 3, 4)
    writer.append_metrics({"a": math.nan}, 4, 5)
    log(writer, range(5, 8), "abcde")
    end(writer)
    assert settle(scene.delivery()) is None
    points = [*expected(range(3), "abcde"), (3, "a", 1.0), (3, "b", 2.0), (3, "d", 4.0), (3, "e", 5.0)]
    assert scene.points() == [*points, *expected(range(5, 8), "abcde")]
    report = report_of(scene)
    assert report.delivered == {"metrics": 7}
    assert report.points == 34
    assert report.rejected == 2
    first, second = rejected_lines(scene)
    assert list(first["record"]["values"]) == ["c"]
    assert math.isnan(first["record"]["values"]["c"])  # kept as what it was
    assert (first["record"]["step"], second["record"]["step"]) == (3, 4)


def test_what_waits_in_the_middle_of_a_halving_is_neither_lost_nor_counted_twice(scene: Scene) -> None:
    scene.script.is_bad = lambda record: isinstance(record, TagsSet) and "bad" in record.tags
    writer = scene.writer()
    for number in range(16):
        writer.append(TagsSet(number, {"bad" if number == 3 else "good": str(number)}))
    end(writer)
    delivery = scene.delivery()
    # The whole is refused, then its first half, then its first quarter arrives, then the vendor goes away.
    scene.script.failures["write_tags"] = [None, None, None, BackendUnavailable("down")]
    wait = settle(delivery)
    assert wait
    assert report_of(scene).rejected == 0
    scene.clock.now += wait
    assert settle(delivery) is None
    arrived = [int(record["tags"]["good"]) for record in scene.written("write_tags")]
    assert sorted(arrived) == [number for number in range(16) if number != 3]
    assert (report_of(scene).rejected, report_of(scene).delivered) == (1, {"tags": 15})
    assert len(rejected_lines(scene)) == 1


# --- bugs of a backend


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), SystemExit(1), MemoryError(), RecursionError("deep")])
@pytest.mark.parametrize("method", ["open", "write_metrics", "close"])
def test_any_other_exception_suspends_the_delivery_and_the_next_start_goes_on(
    scene: Scene, error: BaseException, method: str
) -> None:
    scene.script.failures[method] = [error]
    writer = scene.writer()
    log(writer, range(2))
    end(writer)
    delivery = scene.delivery()
    assert settle(delivery) is None
    assert delivery.suspended
    suspended = report_of(scene).suspended
    assert suspended.startswith(f"lines 1.0: {type(error).__name__}")
    assert str(error) in suspended
    assert delivery.pump() is None
    assert settle(scene.delivery()) is None
    assert scene.points() == expected(range(2))
    assert report_of(scene).suspended is None
    assert scene.run.cursor("lines").closed


def test_a_backend_that_cannot_even_be_made_is_suspended_with_the_reason(scene: Scene) -> None:
    def make() -> Backend:
        raise ImportError("no such package")

    end(scene.writer())
    delivery = Delivery(scene.run, "lines", make, clock=scene.clock)
    assert settle(delivery) is None
    assert report_of(scene).suspended == "lines: ImportError: no such package"


def test_a_disconnect_that_raises_harms_nobody(scene: Scene) -> None:
    scene.script.failures["disconnect"] = [RuntimeError("twice")]
    end(scene.writer())
    delivery = scene.delivery()
    assert settle(delivery) is None
    assert not delivery.suspended
    assert scene.run.cursor("lines").closed


# --- the cursor


def test_what_was_written_before_a_crash_but_not_remembered_is_sent_again_and_nothing_is_skipped(scene: Scene) -> None:
    writer, crashed = scene.writer(), scene.delivery()
    log(writer, range(3))
    settle(crashed)
    remembered = scene.run.cursor_file("lines").path.read_bytes()
    log(writer, range(3, 6))
    settle(crashed)
    crashed.release()
    scene.run.cursor_file("lines").path.write_bytes(remembered)  # as if it had died before saving
    log(writer, range(6, 8))
    end(writer)
    assert settle(scene.delivery()) is None
    assert scene.points() == [*expected(range(6)), *expected(range(3, 8))]
    assert report_of(scene).delivered == {"metrics": 8}


def test_a_crash_in_the_middle_of_a_chunk_counts_nothing_twice(scene: Scene) -> None:
    scene.script.failures["write_tags"] = [BackendUnavailable("down")]
    scene.script.is_bad = lambda record: isinstance(record, ParamsLogged)
    writer = scene.writer()
    writer.append(ParamsLogged(1, {"lr": 0.1}))
    log(writer, range(4))
    writer.append(HistogramLogged(1, "h", [0.0, 1.0], [2.0]))
    writer.append(TagsSet(1, {"k": "v"}))
    end(writer)
    crashed = scene.delivery()
    assert settle(crashed)
    crashed.release()
    assert settle(scene.delivery()) is None
    report = report_of(scene)
    assert report.delivered == {"metrics": 4, "artifacts": 1, "tags": 1}
    assert (report.points, report.lowered, report.rejected) == (8, {"histograms": 1}, 1)
    assert len(rejected_lines(scene)) == 1


def test_a_lost_cursor_starts_over_with_an_empty_state(scene: Scene) -> None:
    writer = scene.writer()
    log(writer, range(3))
    first = scene.delivery()
    settle(first)
    first.release()
    scene.run.cursor_file("lines").path.unlink()
    end(writer)
    settle(scene.delivery())
    assert scene.points() == [*expected(range(3)), *expected(range(3))]
    assert [line["state"] for line in calls_in(scene.lines) if line["call"] == "open"] == [{}, {}]


def test_a_cursor_that_is_no_cursor_starts_over(scene: Scene) -> None:
    end(scene.writer())
    scene.run.cursor_file("lines").path.write_bytes(b"\0" * 300)
    assert settle(scene.delivery()) is None
    assert scene.run.cursor("lines").closed


def test_the_state_a_backend_gives_comes_back_at_the_next_open(scene: Scene) -> None:
    class Remembering(LinesBackend):
        checkpoints: ClassVar[list[Mapping[str, Any]]] = [{"offset": 1}, {"offset": 2}]

    scene.kind = Remembering
    writer = scene.writer()
    first = scene.delivery()
    settle(first)
    log(writer, range(1))
    settle(first)
    first.release()
    end(writer)
    settle(scene.delivery())
    assert [line["state"] for line in calls_in(scene.lines) if line["call"] == "open"] == [{}, {"offset": 2}]


def test_when_a_backend_has_lost_what_it_had_everything_is_given_again(scene: Scene) -> None:
    writer, delivery = scene.writer(), scene.delivery()
    log(writer, range(3))
    settle(delivery)
    scene.script.failures["write_metrics"] = [StateLost("the file is gone")]
    log(writer, range(3, 5))
    end(writer)
    assert settle(delivery) is None
    assert scene.points() == [*expected(range(3)), *expected(range(5))]
    report = report_of(scene)
    assert report.delivered == {"metrics": 5}
    assert report.notes["delivered again from the start"].count == 1


def test_a_backend_that_loses_its_state_within_the_first_chunk_gets_all_of_it_again(scene: Scene) -> None:
    scene.script.failures["write_tags"] = [StateLost("gone"), StateLost("gone")]
    writer = scene.writer()
    log(writer, range(2))
    writer.append(TagsSet(1, {"k": "v"}))
    end(writer)
    delivery = scene.delivery()
    for _ in range(2):
        wait = settle(delivery)
        assert wait  # a pause, or it would spin
        scene.clock.now += wait
    assert settle(delivery) is None
    assert scene.points() == expected(range(2)) * 3
    assert len(scene.written("write_tags")) == 1


def test_a_disk_that_refuses_the_cursor_delays_and_loses_nothing(scene: Scene) -> None:
    writer, delivery = scene.writer(), scene.delivery()
    settle(delivery)
    cursors = scene.run.cursors
    cursors.rename(cursors.with_name("away"))
    log(writer, range(2))
    wait = settle(delivery)
    assert wait
    cursors.with_name("away").rename(cursors)
    scene.clock.now += wait
    log(writer, range(2, 4))
    end(writer)
    assert settle(delivery) is None
    assert scene.points() == expected(range(4))
    assert scene.run.cursor("lines").closed
    assert report_of(scene).delivered == {"metrics": 4}


def test_of_two_processes_only_one_delivers_and_the_other_takes_over(scene: Scene) -> None:
    writer, mine = scene.writer(), scene.delivery()
    log(writer, range(3))
    settle(mine)
    code = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from backends_for_tests import LinesBackend, LinesOptions
from trackhub.delivery import Delivery
from trackhub.rundir import RunDirectory
make = lambda: LinesBackend(LinesOptions(path={str(scene.lines)!r}))
delivery = Delivery(RunDirectory(Path({str(scene.run.path)!r})), "lines", make)
print(delivery.pump(), flush=True)
sys.stdin.readline()
while (again := delivery.pump()) is not None:
    assert again == 0.0, again
print("done", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == f"{CLAIM_POLL_SECONDS}\n"
        assert scene.points() == expected(range(3))
        log(writer, range(3, 5))
        end(writer)
        mine.release()
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"
    assert scene.points() == expected(range(5))
    assert scene.calls().count("close") == 1


def test_a_delivery_in_trouble_hands_over_and_claims_again_later(scene: Scene) -> None:
    scene.script.failures["open"] = [BackendUnavailable("down")]
    end(scene.writer())
    delivery = scene.delivery()
    assert settle(delivery)
    delivery.hand_over()
    delivery.retry_now()
    assert delivery.pump() == pytest.approx(HAND_OVER_SECONDS)
    assert scene.calls() == ["disconnect"]
    scene.clock.now += HAND_OVER_SECONDS
    assert settle(delivery) is None
    assert scene.calls() == ["disconnect", "open", "close", "disconnect"]


def test_a_delivery_that_makes_progress_does_not_hand_over(scene: Scene) -> None:
    writer, delivery = scene.writer(), scene.delivery()
    settle(delivery)
    delivery.hand_over()
    log(writer, range(1))
    settle(delivery)
    assert scene.points() == expected(range(1))
    end(writer)


# --- ends


@pytest.mark.parametrize("status", ["finished", "failed", "killed"])
def test_the_run_is_closed_once_with_its_status_after_everything_was_written(scene: Scene, status: EndStatus) -> None:
    writer, delivery = scene.writer(), scene.delivery()
    log(writer, range(3))
    settle(delivery)
    log(writer, range(3, 6))
    end(writer, status)
    assert settle(delivery) is None
    assert delivery.closed
    assert scene.calls() == ["open", "write_metrics", "write_metrics", "close", "disconnect"]
    assert [line["status"] for line in calls_in(scene.lines) if line["call"] == "close"] == [status]
    assert scene.points() == expected(range(6))


def test_a_run_whose_process_vanished_is_killed_once_its_records_are_there(scene: Scene) -> None:
    writer, delivery = scene.writer(), scene.delivery()
    log(writer, range(3))
    assert settle(delivery)
    assert "close" not in scene.calls()
    log(writer, range(3, 5))
    writer.close()
    assert settle(delivery) is None
    assert scene.run.cursor("lines").closed_status == "killed"
    assert scene.points() == expected(range(5))


def test_a_running_run_is_not_closed(scene: Scene) -> None:
    writer, delivery = scene.writer(), scene.delivery()
    for _ in range(50):
        assert settle(delivery)
    assert scene.calls() == ["open"]
    end(writer)


def test_late_records_of_a_worker_arrive_and_the_run_is_closed_again(scene: Scene) -> None:
    owner, worker = scene.writer(), scene.writer("worker")
    log(worker, range(2))
    delivery = scene.delivery()
    end(owner, "failed")
    assert settle(delivery)  # not None: the worker may still write
    assert scene.calls().count("close") == 1
    log(worker, range(2, 4))
    assert settle(delivery)
    worker.close()
    assert settle(delivery) is None
    assert scene.points() == expected(range(4))
    assert [line["status"] for line in calls_in(scene.lines) if line["call"] == "close"] == ["failed", "failed"]


def test_a_worker_that_never_stops_writing_does_not_keep_the_run_from_being_closed(scene: Scene) -> None:
    owner, worker, delivery = scene.writer(), scene.writer("worker"), scene.delivery()
    end(owner)
    for step in range(5):
        log(worker, range(step, step + 1))
        settle(delivery)
    assert scene.run.cursor("lines").closed
    worker.close()


def test_the_status_follows_the_last_process_that_went_on_with_the_run(scene: Scene) -> None:
    first = scene.writer()
    log(first, range(2))
    end(first, "failed")
    earlier = scene.delivery()
    settle(earlier)
    earlier.release()
    second = scene.writer()
    log(second, range(2, 4))
    delivery = scene.delivery()
    assert settle(delivery)
    end(second, "finished")
    assert settle(delivery) is None
    calls = calls_in(scene.lines)
    assert [line["attempt"] for line in calls if line["call"] == "open"] == [1, 2]
    assert [line["status"] for line in calls if line["call"] == "close"] == ["failed", "finished"]
    assert scene.points() == expected(range(4))


def test_a_delivery_under_which_a_run_is_gone_on_with_opens_the_backend_again(scene: Scene) -> None:
    first, delivery = scene.writer(), scene.delivery()
    settle(delivery)
    first.close()  # vanished
    second = scene.writer()
    log(second, range(2))
    assert settle(delivery)
    assert [line["attempt"] for line in calls_in(scene.lines) if line["call"] == "open"] == [1, 2]
    assert "close" not in scene.calls()  # the second is alive, so the first's end is not the run's
    end(second)
    assert settle(delivery) is None


def test_a_run_that_never_began_keeps_nobody_waiting(scene: Scene) -> None:
    assert settle(scene.delivery()) is None
    assert scene.calls() == []


def test_a_run_of_which_it_cannot_be_found_out_whether_it_is_settled_is_looked_at_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = scene.writer()
    log(writer, range(1))
    end(writer)
    writer.close()

    def refuse(directory: Path, writer: int) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    delivery = scene.delivery()
    with monkeypatch.context() as disk:
        # Asked last of all, and only of a run that is closed.
        disk.setattr("trackhub.delivery.writer_is_alive", refuse)
        wait = settle(delivery)
    assert wait
    assert scene.run.cursor("lines").closed
    assert "Stale file handle" in str(report_of(scene).error)
    scene.clock.now += wait
    assert settle(delivery) is None
    assert report_of(scene).error is None
    assert scene.calls() == ["open", "write_metrics", "close", "disconnect"]


# --- family


def test_a_child_waits_for_the_remote_id_of_its_parent(tmp_path: Path) -> None:
    parent, child = Scene(tmp_path, "parent"), Scene(tmp_path, "child", "parent")
    end(parent.writer())
    end(child.writer())
    delivery = child.delivery()
    waited = 0.0
    for _ in range(20):
        wait = settle(delivery)
        assert wait
        waited += wait
        child.clock.now += wait
    assert child.calls() == []
    assert waited > PARENT_PATIENCE_SECONDS
    assert report_of(child).error == "its parent run parent has not been opened there yet"
    settle(parent.delivery())
    assert settle(delivery) is None
    assert calls_in(child.lines)[0]["parent"] == "remote-parent"
    assert report_of(child).error is None


def test_a_child_whose_parent_does_not_go_to_that_backend_is_not_held_up(tmp_path: Path) -> None:
    child = Scene(tmp_path, "child", "a-parent-that-is-elsewhere")
    end(child.writer())
    assert settle(child.delivery()) is None
    assert calls_in(child.lines)[0]["parent"] is None


class NamelessBackend(LinesBackend):
    """Has no ids of its own for runs."""

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        super().open(run, state)
        return OpenedRun()


def test_a_child_of_a_parent_without_a_remote_id_waits_until_that_is_open(tmp_path: Path) -> None:
    parent, child = Scene(tmp_path, "parent"), Scene(tmp_path, "child", "parent")
    parent.kind = child.kind = NamelessBackend
    end(parent.writer())
    end(child.writer())
    delivery = child.delivery()
    assert settle(delivery)
    assert child.calls() == []
    settle(parent.delivery())
    child.clock.now += 60
    assert settle(delivery) is None
    assert child.calls() == ["open", "close", "disconnect"]
    assert calls_in(child.lines)[0]["parent"] is None


# --- the rest of the report


def test_notes_enter_the_report_exactly_once(scene: Scene) -> None:
    scene.script.notes = {
        "open": [("renamed", "run", "x")],
        "write_metrics": [("shortened", "a", "")],
        "close": [("shortened", "b", "")],
    }
    writer, delivery = scene.writer(), scene.delivery()
    log(writer, range(1))
    settle(delivery)
    log(writer, range(1, 2))
    settle(delivery)
    end(writer)
    settle(delivery)
    notes = report_of(scene).notes
    assert {reason: note.count for reason, note in notes.items()} == {"renamed": 1, "shortened": 3}
    assert notes["shortened"].examples == [("a", ""), ("b", "")]


def test_lowered_and_skipped_records_are_counted(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    writer = scene.writer()
    writer.append(ConfusionMatrixLogged(1, "cm", ["a", "b"], [[1.0, 2.0], [3.0, 4.0]]))
    log(writer, range(1))
    end(writer)
    settle(scene.delivery())
    report = report_of(scene)
    assert report.lowered == {"confusion_matrices": 1}
    assert report.skipped == {}
    assert report.delivered == {"artifacts": 2, "metrics": 1}
    other = Delivery(scene.run, "metrics_only", lambda: MetricsOnlyBackend(LinesOptions()), clock=scene.clock)
    settle(other)
    report = scene.run.cursor("metrics_only").report
    assert report.skipped == {"confusion_matrices": 1}
    assert report.lowered == {}
    assert report.delivered == {"metrics": 1}


def test_damage_in_the_journal_is_reported_and_the_rest_arrives(scene: Scene) -> None:
    writer = scene.writer()
    log(writer, range(3))
    place = writer.position[2]
    log(writer, range(3, 4))
    log(writer, range(4, 6))
    end(writer)
    segment = next(scene.run.journal.glob("*.journal"))
    content = bytearray(segment.read_bytes())
    content[place + 20] ^= 0xFF
    segment.write_bytes(content)
    settle(scene.delivery())
    assert [point for point in scene.points() if point[0] != 3] == expected(range(3)) + expected(range(4, 6))
    assert len(report_of(scene).damaged) == 1


def test_a_run_directory_deleted_under_a_delivery_ends_it_and_stays_deleted(scene: Scene) -> None:
    writer, delivery = scene.writer(), scene.delivery()
    log(writer, range(2))
    settle(delivery)
    shutil.rmtree(scene.run.path)
    assert delivery.pump() is None
    assert scene.delivery().pump() is None
    delivery.release()
    writer.close()
    assert not scene.run.path.exists()


def test_the_times_of_the_report_are_real(scene: Scene) -> None:
    before = time.time_ns()
    scene.script.failures["open"] = [BackendUnavailable("down")]
    end(scene.writer())
    settle(scene.delivery())
    report = report_of(scene)
    assert before <= report.error_since_ns <= report.updated_ns <= time.time_ns()
    assert report.version == "lines 1.0"


def test_a_backend_that_fails_halfway_through_open_is_let_go_of(scene: Scene) -> None:
    class HalfOpen(LinesBackend):
        def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
            raise KeyError("half")

    scene.kind = HalfOpen
    end(scene.writer())
    settle(scene.delivery())
    assert scene.calls() == ["disconnect"]
