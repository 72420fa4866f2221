"""What later attempts supersede: the rule as a few lines, against journals, deliveries and crashes of all kinds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trackhub.attempts import Attempts
from trackhub.backend import OpenedRun
from trackhub.delivery import STILL_SHOWN
from trackhub.journal import JournalReader, JournalWriter
from trackhub.readout import read_run
from trackhub.records import MetricsLogged, TextLogged
from trackhub.testing import MemoryBackend, Shown, samples
from trackhub.testing.rehearsal import CREATED_NS, Rehearsal

NAMES = ("a", "b", "c")
STEPS = st.integers(0, 6)
RECORD = st.tuples(STEPS, st.sets(st.sampled_from(NAMES), min_size=1))
DELIVER = st.sampled_from(["no", "yes", "forgotten"])
RANKS = (0, 1, 2)
START = st.none() | st.just("again") | st.integers(-1, 6)
EVENT = st.tuples(st.sampled_from(RANKS), START, st.tuples(STEPS, st.sets(st.sampled_from(NAMES))), DELIVER)
ATTEMPT = st.tuples(st.none() | st.integers(-1, 6), st.lists(st.tuples(RECORD, DELIVER), max_size=6))


class MixingBackend(MemoryBackend):
    """Cannot take anything back."""

    name = "mixing"

    def rewind(self, rewind: Any) -> bool:
        return False


def rehearse(directory: Path, kind: type[MemoryBackend] = MemoryBackend) -> Rehearsal:
    def read(opened: OpenedRun) -> Shown:
        return MemoryBackend.runs[str(opened.remote_id)].shown()

    return Rehearsal(directory, kind, kind.Options(), read)


def left(attempts: list[Any]) -> dict[str, list[tuple[int, int]]]:
    """The rule: name -> (step, time) of the points that no later attempt supersedes."""
    found: dict[str, list[tuple[int, int]]] = {}
    time_ns = CREATED_NS
    firsts = [
        {
            name: next(step for (step, names), _ in records if name in names)
            for name in NAMES
            if any(name in names for (_, names), _ in records)
        }
        for _, records in attempts
    ]
    for number, (_, records) in enumerate(attempts):
        for (step, names), _ in records:
            time_ns += 1
            for name in names:
                later = range(number + 1, len(attempts))
                said = any(attempts[one][0] is not None and step > attempts[one][0] for one in later)
                if not said and not any(name in firsts[one] and firsts[one][name] <= step for one in later):
                    found.setdefault(name, []).append((step, time_ns))
    return {name: sorted(points) for name, points in found.items()}


@settings(max_examples=25, deadline=None)
@given(st.lists(ATTEMPT, min_size=1, max_size=4))
@example([(None, [((5, {"a"}), "yes")]), (None, [((6, {"a"}), "yes"), ((3, {"a"}), "yes")])])
@example([(None, [((5, {"a"}), "yes")]), (None, [((2, {"a"}), "no"), ((1, {"a"}), "forgotten"), ((0, {"b"}), "yes")])])
@example([(None, [((0, {"a"}), "no"), ((1, {"a"}), "no"), ((0, {"a"}), "forgotten")]), (None, [((1, {"a"}), "no")])])
@example([(None, [((0, {"a"}), "no")]), (None, [((1, {"a"}), "no"), ((0, {"a"}), "yes")]), (0, [])])
@example([(None, [((5, {"a", "b"}), "yes")]), (3, []), (None, [((4, {"b"}), "forgotten")])])
def test_whatever_is_delivered_when_the_curve_is_the_same(attempts: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        runs = [rehearse(Path(directory) / "one"), rehearse(Path(directory) / "two", MixingBackend)]
        for run in runs:
            time_ns = CREATED_NS
            for resume_step, records in attempts:
                run.begin(resume_step)
                for (step, names), deliver in records:
                    time_ns += 1
                    run.log(MetricsLogged(time_ns, step, dict.fromkeys(sorted(names), float(step))))
                    if deliver == "yes":
                        run.deliver()
                    elif deliver == "forgotten":
                        with run.cursor_not_saved():
                            run.deliver()
            run.end()
            run.deliver()
        taken_back, mixed = runs
        wanted = left(attempts)
        shown = {
            name: sorted((p.step, p.time_ns) for p in points) for name, points in taken_back.shown().metrics.items()
        }
        assert shown == wanted
        # What is not taken back is counted: what was given, less what should be there.
        of_all = sum(len(names) for _, records in attempts for (_, names), _ in records)
        report = mixed.cursor.report
        note = report.notes.get(STILL_SHOWN)
        assert report.points + report.superseded == of_all
        assert report.points - (note.count if note and of_all else 0) <= sum(map(len, wanted.values()))
        readout = read_run(taken_back.run.journal)
        assert {name: one.count for name, one in readout.metrics.items()} == {n: len(p) for n, p in wanted.items()}
        # All of it again, from the start.
        taken_back.lose_cursor()
        MemoryBackend.runs.clear()
        taken_back.deliver()
        again = {
            name: sorted((p.step, p.time_ns) for p in points) for name, points in taken_back.shown().metrics.items()
        }
        assert again == wanted


class Ranks:
    """Ranks of one run, which start again when they like; now and then one process alone goes on from a checkpoint."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.writers: dict[int, JournalWriter] = {}
        self.attempts: dict[int, list[Any]] = {rank: [] for rank in RANKS}
        self.counts = dict.fromkeys(RANKS, 0)

    def start(self, rank: int) -> None:
        self.end(rank)
        role = "rank" if rank else "owner"
        self.writers[rank] = JournalWriter(self.journal, role, CREATED_NS, rank=rank, rank_count=len(RANKS))  # type: ignore[arg-type]
        self.attempts[rank].append((None, []))

    def start_alone(self, resume_step: int) -> None:
        self.end(*RANKS)
        self.writers[0] = JournalWriter(self.journal, "owner", CREATED_NS, resume_step=resume_step)
        for attempts in self.attempts.values():
            attempts.append((resume_step, []))

    def log(self, rank: int, step: int, names: set[str]) -> None:
        self.counts[rank] += 1
        own = {f"rank{rank}/{name}" if rank else name: float(step) for name in sorted(names)}
        self.writers[rank].append_metrics(own, step, CREATED_NS + self.counts[rank])
        self.attempts[rank][-1][1].append(((step, names), ""))

    def end(self, *ranks: int) -> None:
        for rank in ranks:
            if rank in self.writers:
                self.writers.pop(rank).close()

    def left(self) -> dict[str, list[tuple[int, int]]]:
        """No rank logs another's metrics, so the rule holds for each of them by itself."""
        return {
            f"rank{rank}/{name}" if rank else name: points
            for rank, attempts in self.attempts.items()
            for name, points in left(attempts).items()
        }


NOTHING, A2, A5, A9 = (0, set[str]()), (2, {"a"}), (5, {"a"}), (9, {"a"})
TWICE = [(0, "again", A2, "yes"), (1, "again", A2, "yes"), (0, "again", A2, "yes")]


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENT, min_size=1, max_size=10))
@example([(0, "again", A5, "no"), (1, "again", A5, "yes"), (1, "again", A2, "yes"), (0, "again", A2, "yes")])
@example([(1, "again", A5, "yes"), (1, "again", A2, "yes"), (1, None, (3, {"b"}), "yes")])
@example([(0, "again", A5, "yes"), (1, "again", A2, "yes"), (1, "again", A9, "yes"), (0, 3, A5, "yes")])
@example([*TWICE, (1, "again", A9, "yes"), (1, "again", A5, "yes")])
@example([*TWICE, (1, "again", A9, "yes"), (1, "again", NOTHING, "yes"), (1, None, A5, "yes")])
def test_ranks_may_start_again_in_any_order(events: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = rehearse(Path(directory))
        ranks = Ranks(run.run.journal)
        for rank, start, (step, names), deliver in events:
            if isinstance(start, int):
                rank = 0
                ranks.start_alone(start)
            elif start == "again" or rank not in ranks.writers:
                ranks.start(rank)
            ranks.log(rank, step, names)
            if deliver == "yes":
                run.deliver()
            elif deliver == "forgotten":
                with run.cursor_not_saved():
                    run.deliver()
        ranks.end(*RANKS)
        run.deliver()
        wanted = ranks.left()
        for _ in range(2):
            shown = run.shown().metrics
            assert {n: sorted((p.step, p.time_ns) for p in points) for n, points in shown.items()} == wanted
            # All of it again, from the start.
            run.lose_cursor()
            MemoryBackend.runs.clear()
            run.deliver()
        readout = read_run(run.run.journal)
        assert {name: one.count for name, one in readout.metrics.items()} == {n: len(p) for n, p in wanted.items()}


def test_an_attempt_may_be_seen_before_it_has_logged_anything(tmp_path: Path) -> None:
    run = rehearse(tmp_path)
    run.log(samples.metrics(1, loss=1.0))
    run.deliver()
    run.begin()
    run.deliver()
    run.log(samples.metrics(1, loss=2.0))
    run.deliver()
    assert [(point.step, point.value) for point in run.shown().metrics["loss"]] == [(1, 2.0)]
    assert read_run(run.run.journal).attempts == 2


def test_a_value_with_a_later_step_is_superseded_if_the_step_is_said(tmp_path: Path) -> None:
    run = rehearse(tmp_path)
    texts = [
        TextLogged(CREATED_NS, f"note-{step}", samples.stored(run, f"{step}.txt", b"x"), step) for step in (3, 4, None)
    ]
    run.log(samples.sample(run, "params"), *texts)
    run.begin(3)
    run.log(samples.metrics(4, loss=1.0))
    report = run.deliver().report
    assert run.shown().others == {"note-3", "note-None"}
    assert report.notes["superseded, left out"].examples[0][0] == "note-4"
    assert run.shown().params


def test_workers_belong_to_the_attempt_of_their_owner(tmp_path: Path) -> None:
    for role, first, resume_step in (("owner", 0, None), ("worker", 0, None), ("owner", 5, 4), ("worker", 5, None)):
        writer = JournalWriter(tmp_path, role, 1, resume_step=resume_step)  # type: ignore[arg-type]
        for step in range(first, 10):
            writer.append_metrics({f"{role}/loss": 0.5}, step, step)
        writer.close()
    attempts, reader = Attempts(tmp_path), JournalReader(tmp_path)
    chunk = reader.read({})
    assert attempts.look() == 2
    assert [attempts.number_of(writer) for writer in (1, 2, 3, 4)] == [1, 1, 2, 2]
    kept = [(number, len(part.kept), part.values_left_out) for number, part in attempts.kept_of(chunk)]
    assert kept == [(1, 5, 5), (1, 5, 5), (2, 5, 0), (2, 5, 0)]
    assert attempts.superseded() == {1: 10}


@pytest.mark.parametrize("resume_step", [None, 3])
def test_a_resumed_tracker_counts_on(tmp_path: Path, resume_step: int | None) -> None:
    import trackhub

    for attempt in (1, 2):
        with trackhub.init(
            run_id="counted", dir=tmp_path, mode="offline", resume_step=resume_step if attempt == 2 else None
        ) as tracker:
            for _ in range(6):
                tracker.log_metrics({"loss": float(attempt)})
    last = [5, 11] if resume_step is None else [3, 9]
    one = read_run(tmp_path / "counted" / "journal").metrics["loss"]
    assert (one.count, one.last_step) == (last[1] + 1, last[1])
    assert [step for step, value in one.series if value == 1.0] == list(range(last[0] + 1))


@pytest.mark.parametrize("wrong", [1.5, "40", 2**63])
def test_a_resume_step_is_a_step(wrong: Any, tmp_path: Path) -> None:
    import trackhub

    with pytest.raises((TypeError, ValueError), match="step"):
        trackhub.init(run_id="run", dir=tmp_path, resume_step=wrong)
    assert not list(tmp_path.iterdir())
