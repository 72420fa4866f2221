"""Whose end is the run's end: every order in which owners and ranks come, go, and are started again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackhub.cursor import Cursor
from trackhub.journal import Holders, JournalReader, JournalWriter, RankStarted, WriterStarted, writer_is_alive
from trackhub.journal.frames import Role
from trackhub.journal.skim import skim
from trackhub.records import EndStatus, RunEnded
from trackhub.rundir import Manifest, RunDirectory

STATUSES: list[EndStatus] = ["finished", "failed", "killed"]


def began(role: Role, rank: int = 0, count: int = 1) -> WriterStarted:
    who = (1, role, 1, "host", "")
    return WriterStarted(*who) if count == 1 else RankStarted(*who, rank, count)


def nobody(_: int) -> bool:
    return False


@pytest.mark.parametrize(("owner", "rank"), list(itertools.product(STATUSES, STATUSES)))
def test_the_worst_end_is_that_of_the_run(owner: EndStatus, rank: EndStatus) -> None:
    holders = Holders()
    holders.add({1: began("owner", 0, 2), 2: began("rank", 1, 2)}, {})
    assert holders.status({1, 2}.__contains__) is None
    holders.add({}, {1: RunEnded(5, owner, "owner")})
    assert holders.status({2}.__contains__) is None
    holders.add({}, {2: RunEnded(4, rank, "rank")})
    worst = "failed" if "failed" in (owner, rank) else "killed" if "killed" in (owner, rank) else "finished"
    assert holders.status(nobody) == worst
    assert holders.end is not None
    # When the last one ended, with the error of the first that ended like that.
    assert holders.end.time_ns == 5
    assert holders.end.error == ("rank" if rank == worst else "owner")


def test_a_vanished_rank_was_killed_and_one_that_failed_says_why() -> None:
    holders = Holders()
    holders.add({1: began("owner", 0, 3), 2: began("rank", 1, 3), 3: began("rank", 2, 3)}, {})
    holders.add({}, {1: RunEnded(5, "finished"), 2: RunEnded(5, "finished")})
    assert holders.status(nobody) == "killed"
    holders.add({}, {3: RunEnded(6, "failed", "ValueError: x")})
    assert holders.status(nobody) == "failed"


def test_a_worker_ends_nothing() -> None:
    holders = Holders()
    holders.add({1: began("owner"), 2: began("worker"), 3: began("worker", 4, 8)}, {2: RunEnded(1, "failed")})
    holders.add({}, {1: RunEnded(2, "finished")})
    assert holders.status({2, 3}.__contains__) == "finished"


def test_of_processes_that_were_started_again_the_last_count() -> None:
    holders = Holders()
    holders.add({1: began("owner", 0, 2), 2: began("rank", 1, 2)}, {2: RunEnded(1, "failed")})
    # The second attempt's rank may begin before its owner.
    holders.add({3: began("rank", 1, 2)}, {})
    holders.add({4: began("owner", 0, 2)}, {})
    assert (holders.owner, holders.ranks) == (4, {1: 3})
    holders.add({}, {4: RunEnded(3, "finished"), 3: RunEnded(3, "finished")})
    assert holders.status(nobody) == "finished"


def test_ranks_of_an_earlier_larger_start_do_not_count() -> None:
    holders = Holders()
    holders.add({1: began("owner", 0, 4), 2: began("rank", 3, 4)}, {2: RunEnded(1, "failed")})
    holders.add({3: began("owner", 0, 2), 4: began("rank", 1, 2)}, {3: RunEnded(1, "finished")})
    holders.add({}, {4: RunEnded(1, "finished")})
    assert holders.status(nobody) == "finished"


def test_ranks_alone_hold_a_run_whose_owner_writes_elsewhere() -> None:
    holders = Holders()
    assert holders.status(nobody) is None
    holders.add({1: began("rank", 2, 4), 2: began("rank", 3, 4)}, {})
    assert holders.status({2}.__contains__) is None
    assert holders.status(nobody) == "killed"
    holders.add({}, {1: RunEnded(1, "finished"), 2: RunEnded(1, "finished")})
    assert (holders.chief, holders.status(nobody)) == (2, "finished")


writers = st.lists(
    st.tuples(
        st.sampled_from(["owner", "rank", "worker"]),
        st.integers(0, 5),
        st.sampled_from([None, "finished", "failed", "killed"]),
    ),
    max_size=8,
)


@given(writers=writers, data=st.data())
def test_it_does_not_matter_in_what_parts_it_is_read(writers: list[Any], data: st.DataObject) -> None:
    starts = {n: began(role, rank, 6) for n, (role, rank, _) in enumerate(writers, 1)}
    ends = {n: RunEnded(n, end) for n, (_, _, end) in enumerate(writers, 1) if end}
    at_once = Holders()
    at_once.add(starts, ends)
    by_parts = Holders()
    for number in data.draw(st.permutations(sorted(starts))):
        by_parts.add({number: starts[number]}, {})
        by_parts.add({}, {number: ends[number]} if number in ends else {})
    assert by_parts.status(nobody) == at_once.status(nobody)
    assert (by_parts.chief, sorted(by_parts.writers)) == (at_once.chief, sorted(at_once.writers))
    assert by_parts.end == at_once.end


def test_reader_skim_cursor_and_run_directory_come_to_the_same(tmp_path: Path) -> None:
    manifest = Manifest(id="run", name="run", project="p", created_ns=1, backends={})
    run = RunDirectory.create(tmp_path, manifest)
    owner = JournalWriter(run.journal, "owner", 1, rank=0, rank_count=3)
    one = JournalWriter(run.journal, "rank", 1, rank=1, rank_count=3)
    two = JournalWriter(run.journal, "rank", 1, rank=2, rank_count=3)
    owner.append_metrics({"x": 1.0}, 0, 1)
    owner.append(RunEnded(7, "finished"))
    owner.close()
    assert run.end() == ("running", None)
    one.append(RunEnded(8, "failed", "ValueError: x"))
    one.close()
    assert run.end() == ("running", None)
    two.close()  # without an end, as if it had vanished
    assert run.end() == ("failed", RunEnded(8, "failed", "ValueError: x"))
    reader, cursor = JournalReader(run.journal), Cursor()
    while not (chunk := reader.read(cursor.position, max_points=1)).empty:
        cursor.advance(chunk)
    assert cursor.holders == reader.holders() == skim(run.journal).holders
    reader.close()
    assert cursor.holders.status(lambda writer: writer_is_alive(run.journal, writer)) == "failed"
    assert skim(run.journal).error == "ValueError: x"
