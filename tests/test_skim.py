from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_helpers import EVERY_KIND

import trackhub.journal.skim as skim_module
from trackhub.journal import FIRST_SEGMENT_BYTES, Holders, JournalReader, JournalWriter, segment_name
from trackhub.journal.skim import Skim, skim
from trackhub.records import MetricsLogged, ParamsLogged, RunEnded


def write(directory: Path, *records: Any, role: Any = "owner", time_ns: int = 1_700_000_000_000_000_000) -> None:
    writer = JournalWriter(directory, role, time_ns)
    for record in records:
        if isinstance(record, MetricsLogged):
            writer.append_metrics(record.values, record.step, record.time_ns)
        else:
            writer.append(record)
    writer.close()


def read(directory: Path) -> Skim:
    return skim_module._read(JournalReader(directory), {}, Skim())


def test_a_journal_of_every_kind_amounts_to_what_the_reader_finds(tmp_path: Path) -> None:
    write(tmp_path, *EVERY_KIND)
    seen = skim(tmp_path)
    assert seen.records == len(EVERY_KIND) - 1
    assert seen.points == sum(len(record.values) for record in EVERY_KIND if isinstance(record, MetricsLogged))
    assert seen.holders == Holders(owner=1, ends={1: RunEnded(17, "failed", "ValueError: no")})
    assert (seen.error, seen.ended_ns) == ("ValueError: no", 17)


def test_nothing_is_decoded_for_an_ordinary_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skim_module, "_read", None)
    now = 1_700_000_000_000_000_001
    write(tmp_path, ParamsLogged(now, {"lr": 1}), MetricsLogged(now, 7, {"loss": 1.0}), RunEnded(now, "finished"))
    assert skim(tmp_path) == Skim(2, 1, 7, now, Holders(owner=1, ends={1: RunEnded(now, "finished")}))


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.integers(2**33, 2**63 - 1),
            st.integers(1, 40),
        ),
        max_size=20,
    ),
    end=st.booleans(),
)
def test_it_says_what_the_reader_says(
    points: list[tuple[int, int, int]], end: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    records: list[Any] = [
        MetricsLogged(time_ns, step, {f"metric {index}": math.nan for index in range(count)})
        for step, time_ns, count in points
    ]
    write(directory, *records, *([RunEnded(2**63 - 1, "killed", "x")] if end else []))
    fast, slow = skim(directory), read(directory)
    assert (fast.records, fast.points, fast.holders) == (slow.records, slow.points, slow.holders)
    assert fast.last_step == (records[-1].step if records else None)


@settings(max_examples=60, deadline=None)
@given(
    stretches=st.lists(
        st.tuples(st.integers(1, 700), st.integers(1, 2), st.sampled_from([0, 2**32]), st.booleans()), max_size=6
    )
)
def test_long_stretches_of_like_frames_are_counted_as_the_reader_counts_them(
    stretches: list[tuple[int, int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    records: list[Any] = []
    for length, count, first, interrupted in stretches:
        values = {f"metric {index}": 1.0 for index in range(count)}
        records += [MetricsLogged(2**61 + step, first + step, values) for step in range(length)]
        if interrupted:
            records.append(ParamsLogged(2**61 + length, {"lr": 1}))
    write(directory, *records)
    fast, slow = skim(directory), read(directory)
    assert (fast.records, fast.points) == (slow.records, slow.points) == (len(records), slow.points)
    assert fast.last_step == next((one.step for one in reversed(records) if isinstance(one, MetricsLogged)), None)


def test_the_parts_before_and_behind_a_position_are_the_whole(tmp_path: Path) -> None:
    count = FIRST_SEGMENT_BYTES // 20
    write(tmp_path, *(MetricsLogged(2**61 + step, step, {"a": 1.0, "b": 2.0}) for step in range(count)))
    assert len(list(tmp_path.glob("*.journal"))) > 1
    reader = JournalReader(tmp_path)
    chunk, before = reader.read({}), 0
    while not chunk.empty:
        before += len(chunk.records)
        assert before + skim(tmp_path, chunk.position).records == count
        chunk = reader.read(chunk.position)
    reader.close()
    assert skim(tmp_path).points == 2 * count


def test_the_end_of_an_earlier_owner_does_not_end_a_run_that_goes_on(tmp_path: Path) -> None:
    write(tmp_path, MetricsLogged(2**61, 3, {"a": 1.0}), RunEnded(2**61 + 1, "failed", "boom"))
    assert skim(tmp_path).error == "boom"
    write(tmp_path, MetricsLogged(2**61 + 2, 4, {"a": 1.0}))
    write(tmp_path, MetricsLogged(2**61 + 1, 9, {"a": 1.0}), role="worker")
    seen = skim(tmp_path)
    assert (seen.holders, seen.last_step) == (Holders(owner=2), 4)
    write(tmp_path, RunEnded(2**61 + 3, "finished"))
    assert skim(tmp_path).holders.ends == {4: RunEnded(2**61 + 3, "finished")}


@pytest.mark.parametrize("cut", [1, 3, 8, 20])
def test_a_write_cut_short_costs_that_record_alone(cut: int, tmp_path: Path) -> None:
    write(tmp_path, *(MetricsLogged(2**61, step, {"a": 1.0, "b": 2.0}) for step in range(5)))
    path = tmp_path / segment_name(1, 0)
    path.write_bytes(path.read_bytes()[:-cut])
    assert skim(tmp_path).points == read(tmp_path).points == 8


def test_room_that_is_reserved_is_not_counted(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "owner", 2**61)
    writer.append_metrics({"a": 1.0}, 0, 2**61)
    assert skim(tmp_path).records == 1
    writer.close()


def test_there_may_be_no_journal(tmp_path: Path) -> None:
    assert skim(tmp_path / "none") == Skim()
