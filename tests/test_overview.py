"""What is said of a run that changes while it is looked at: true of one moment, and nobody is accused of anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trackhub.cli.overview import overview
from trackhub.delivery import Delivery
from trackhub.journal import JournalWriter
from trackhub.journal import skim as skimming
from trackhub.journal import writer as writing
from trackhub.records import MetricsLogged, RunEnded
from trackhub.report import DeliveryReport, delivery_report
from trackhub.rundir import RunDirectory
from trackhub.testing import MemoryBackend
from trackhub.testing.conformance import Subject
from trackhub.testing.rehearsal import CREATED_NS, Rehearsal

NAME = MemoryBackend.name
REPORTS: dict[str, Callable[[RunDirectory], DeliveryReport]] = {
    "overview": lambda run: overview(run).report("trackhub sync"),
    "delivery report": lambda run: delivery_report(run, "trackhub sync"),
}


class InMemory(Subject):
    kind = MemoryBackend


@pytest.fixture
def run(tmp_path: Path) -> Rehearsal:
    return InMemory().rehearse(tmp_path)


def metrics(step: int) -> MetricsLogged:
    return MetricsLogged(CREATED_NS + step, step, {"loss": 0.5})


def once(patched: pytest.MonkeyPatch, of: Any, name: str, do: Callable[[], object], *, before: bool) -> None:
    """Have something done right before or after a function is called for the first time."""
    function = getattr(of, name)
    left = [do]

    def called(*arguments: Any, **more: Any) -> Any:
        if before and left:
            left.pop()()
        result = function(*arguments, **more)
        if left:
            left.pop()()
        return result

    patched.setattr(of, name, called)


def end(writer: JournalWriter) -> None:
    writer.append(RunEnded(CREATED_NS + 10**9, "finished"))
    writer.close()


@pytest.mark.parametrize(
    ("of", "name", "before", "status"),
    [
        (skimming, "_skim_segment", True, "finished"),
        (skimming, "_skim_segment", False, "running"),
        (RunDirectory, "amount", False, "running"),
    ],
    ids=["before its end is read", "after its end was read", "after all was read"],
)
def test_a_run_that_finishes_while_it_is_looked_at_was_not_killed(
    run: Rehearsal, monkeypatch: pytest.MonkeyPatch, of: Any, name: str, before: bool, status: str
) -> None:
    writer = JournalWriter(run.run.journal, "owner", CREATED_NS)
    writer.append_metrics({"loss": 0.5}, 0, CREATED_NS)
    once(monkeypatch, of, name, lambda: end(writer), before=before)
    assert overview(run.run).status == status
    assert overview(run.run).status == "finished"


def test_a_run_whose_journal_is_just_begun_was_not_killed(run: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    once(
        monkeypatch,
        writing,
        "claim_writer_number",
        lambda: seen.extend([overview(run.run).status, run.run.end()[0]]),
        before=False,
    )
    writer = JournalWriter(run.run.journal, "owner", CREATED_NS)
    assert seen == ["running", "running"]
    writer.close()
    assert overview(run.run).status == run.run.end()[0] == "killed"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_process_that_begins_while_the_run_is_looked_at_has_not_vanished(
    run: Rehearsal, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    first = JournalWriter(run.run.journal, "owner", CREATED_NS)
    first.append_metrics({"loss": 0.5}, 0, CREATED_NS)
    end(first)
    if damaged:
        # Then the reader, which looks for writers anew, decodes every record.
        (path,) = run.run.journal.glob("*.journal")
        path.write_bytes(path.read_bytes() + b"\1\0\0\0damage")
    begun: list[JournalWriter] = []

    def begin() -> None:
        begun.append(JournalWriter(run.run.journal, "owner", CREATED_NS + 1))
        begun[0].append_metrics({"loss": 0.25}, 1, CREATED_NS + 1)

    once(monkeypatch, skimming, "_skim_segment", begin, before=True)
    assert overview(run.run).status == ("running" if damaged else "finished")
    assert overview(run.run).status == "running"
    begun[0].close()
    assert overview(run.run).status == "killed"


def let_finish(delivery: Delivery) -> None:
    while delivery.pump() == 0.0:
        pass
    delivery.release()


@pytest.mark.parametrize("how", list(REPORTS))
@pytest.mark.parametrize("in_process", [False, True], ids=["its own process", "the training process"])
def test_a_delivery_that_is_done_while_it_is_looked_at_is_accused_of_nothing(
    run: Rehearsal, monkeypatch: pytest.MonkeyPatch, how: str, in_process: bool
) -> None:
    if in_process:
        manifest = msgspec.structs.replace(run.run.manifest, in_process=[NAME])
        run.run = RunDirectory.create(run.run.path.parent, manifest)
    run.log(*map(metrics, range(10)))
    run.end()
    delivery = run.delivery()
    assert delivery.claim()
    # Between the look at its cursor and whatever is looked at next.
    once(monkeypatch, RunDirectory, "remaining", lambda: let_finish(delivery), before=True)
    once(monkeypatch, RunDirectory, "amount", lambda: let_finish(delivery), before=True)
    report = REPORTS[how](run.run)
    (standing,) = report.standings
    assert not report.complete
    assert not standing.out_of_reach
    assert standing.delivering
    assert standing.sentences() == [f"{NAME}: 10 records are not delivered yet"]
    assert REPORTS[how](run.run).complete


@pytest.mark.parametrize("how", list(REPORTS))
def test_a_delivery_that_ends_half_way_is_named_and_one_that_takes_over_meanwhile_is_not(
    run: Rehearsal, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run.log(*map(metrics, range(10)))
    run.end()
    first = run.delivery()
    assert first.claim()
    # As the end of its process leaves it.
    first.abandon_after_fork()
    (standing,) = REPORTS[how](run.run).standings
    assert "of its delivery ended before it was done" in standing.sentences()[1]
    second = run.delivery()
    once(monkeypatch, RunDirectory, "remaining", second.claim, before=True)
    once(monkeypatch, RunDirectory, "amount", second.claim, before=True)
    (standing,) = REPORTS[how](run.run).standings
    assert standing.sentences() == [f"{NAME}: 10 records are not delivered yet"]
    second.release()
