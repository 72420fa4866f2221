from __future__ import annotations

import json
import math
import random
import shutil
import struct
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_helpers import (
    EVERY_KIND,
    HEADER_BYTES,
    append,
    as_text,
    frame,
    frames_of,
    packed,
    read_all,
    segment,
    write,
)

from trackhub.errors import JournalError, RunFinishedError
from trackhub.journal import MAX_FRAME_BYTES, JournalReader, JournalWriter, segment_name, writer_is_alive
from trackhub.journal import writer as journal
from trackhub.records import MetricsLogged, ParamsLogged, RunEnded, TagsSet, TextLogged

GOLDEN = Path(__file__).parent / "golden"
STARTED = frame(packed(18, 1, "owner", 1, "host", "1.0"))
NAMES, VALUES = 16, 17

any_bits = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
metrics = st.dictionaries(st.text(min_size=1, max_size=20), st.floats() | any_bits, min_size=1, max_size=40)
int64 = st.integers(-(2**63), 2**63 - 1)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def tag(text: str) -> TagsSet:
    return TagsSet(1, {"tag": text})


# --- what was written is what is read


@given(st.lists(st.tuples(metrics, int64 | st.integers(0, 1000), int64), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_metrics_come_back_to_the_last_bit_and_in_order(logged: list[tuple[dict[str, float], int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = JournalWriter(Path(folder) / "journal", "owner", 1)
        for values, step, time_ns in logged:
            writer.append_metrics(values, step, time_ns)
        writer.close()
        found = read_all(writer.directory)
    assert found.damaged == []
    assert [
        (list(record.values), [*map(bits, record.values.values())], record.step, record.time_ns)
        for record in found.records
        if isinstance(record, MetricsLogged)
    ] == [(list(values), [*map(bits, values.values())], step, time_ns) for values, step, time_ns in logged]


def test_every_kind_of_record_comes_back_in_the_order_written(tmp_path: Path) -> None:
    write(tmp_path, *EVERY_KIND)
    found = read_all(tmp_path)
    assert as_text(found.records) == as_text(EVERY_KIND)
    assert found.damaged == []
    assert found.owners == [1]
    assert found.ends == {1: EVERY_KIND[-1]}


def test_a_journal_of_format_1_stays_readable() -> None:
    found = read_all(GOLDEN / "journal-v1")
    expected = json.loads((GOLDEN / "journal-v1" / "expected.json").read_text(encoding="utf-8"))
    assert json.dumps(json.loads(as_text(found.records))) == json.dumps(expected)
    assert found.damaged == []


def test_format_1_is_still_written_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change here is a change of the format, which the rules in the docstring of the journal allow or do not."""
    monkeypatch.setattr(journal.os, "getpid", lambda: 4242)
    monkeypatch.setattr(journal.socket, "gethostname", lambda: "golden-host")
    write(tmp_path, *EVERY_KIND)
    name = segment_name(1, 0)
    assert (tmp_path / name).read_bytes() == (GOLDEN / "journal-v1" / name).read_bytes()


@pytest.mark.parametrize("limits", [{"max_points": 1}, {"max_bytes": 1}, {"max_points": 3}])
def test_reading_in_small_chunks_gives_the_same_as_reading_at_once(tmp_path: Path, limits: dict[str, int]) -> None:
    write(tmp_path, *EVERY_KIND)
    write(tmp_path, *EVERY_KIND)
    found = read_all(tmp_path, **limits)
    assert as_text(found.records) == as_text(EVERY_KIND * 2)
    assert found.chunks > 8


def test_reading_goes_on_from_any_position_that_went_through_json(tmp_path: Path) -> None:
    write(tmp_path, *EVERY_KIND)
    position, rest = {}, list(EVERY_KIND)
    while rest:
        # A reader of its own each time: it has not read the names that the metrics need.
        reader = JournalReader(tmp_path)
        chunk = reader.read(position, max_points=1)
        reader.close()
        assert as_text(chunk.records) == as_text(rest[: len(chunk.records)])
        del rest[: len(chunk.records)]
        position = json.loads(json.dumps(chunk.position))


def test_reading_ends_where_it_is_told_to_wherever_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FIRST_SEGMENT_BYTES", 300)
    monkeypatch.setattr(journal, "LAST_SEGMENT_BYTES", 300)
    writers = [JournalWriter(tmp_path, "owner", 1), JournalWriter(tmp_path, "worker", 1)]
    ends: list[tuple[dict[str, tuple[int, int]], int]] = []
    reader = JournalReader(tmp_path)
    for step in range(60):
        writers[step % 7 == 3].append_metrics({"loss": float(step)}, step, step)
        ends.append((reader.read({}).position, step + 1))
    assert len(reader.segments()[1]) > 2
    everything = as_text(read_all(tmp_path).records)
    for end, count in ends:
        found, place = [], {}
        while not (chunk := reader.read(place, max_points=4, end=end)).empty:
            found += chunk.records
            place = chunk.position
        assert place == end
        assert len(found) == count
        assert set(as_text(found)) <= set(everything)
        assert sorted(record.step for record in found) == list(range(count))
        assert reader.read(ends[-1][0], end=end).empty
    # An end that is damaged is inside of a record.
    segment, offset = ends[-1][0]["1"]
    for inside in range(offset):
        found = reader.read({}, only=1, end={"1": (segment, inside)}).records
        assert [record.step for record in found] == sorted(record.step for record in found)
    reader.close()
    for writer in writers:
        writer.close()


def test_a_chunk_is_no_larger_than_asked_for(tmp_path: Path) -> None:
    write(tmp_path, *[MetricsLogged(1, step, {"a": 1.0, "b": 2.0}) for step in range(1000)])
    reader = JournalReader(tmp_path)
    assert 8 <= len(reader.read({}, max_points=20).records) <= 11
    assert 5 <= len(reader.read({}, max_bytes=500).records) <= 14
    reader.close()


def test_the_journal_of_a_run_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "none")
    assert reader.read({}).empty
    assert reader.last_owner() == (0, None)


def test_a_call_without_metrics_writes_nothing(tmp_path: Path) -> None:
    writer = write(tmp_path, close=False)
    before = writer.position
    writer.append_metrics({}, 1, 1)
    assert writer.position == before
    writer.close()
    assert read_all(tmp_path).records == []


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"a": "1"}, struct.error),
        ({"a": 1.0, "b": None}, struct.error),
        ({"a": 10**400}, struct.error),
        ({"a": math}, struct.error),
    ],
)
def test_a_value_that_is_no_float_raises_and_leaves_the_journal_as_it_was(
    tmp_path: Path, values: dict[str, object], error: type[Exception]
) -> None:
    writer = write(tmp_path, MetricsLogged(1, 1, {"a": 1.0}), close=False)
    with pytest.raises(error):
        writer.append_metrics(values, 2, 2)  # type: ignore[arg-type]
    with pytest.raises((struct.error, TypeError)):
        writer.append_metrics({"a": 1.0}, 2**64, 2)
    append(writer, MetricsLogged(3, 3, {"a": 3.0}))
    writer.close()
    found = read_all(tmp_path)
    assert found.records == [MetricsLogged(1, 1, {"a": 1.0}), MetricsLogged(3, 3, {"a": 3.0})]
    assert found.damaged == []


def test_names_are_checked_once_before_anything_is_written(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def check(names: tuple[str, ...]) -> None:
        asked.append(names)
        if "bad" in names:
            raise ValueError("no")

    writer = JournalWriter(tmp_path, "owner", 1, check_names=check)
    before = writer.position
    with pytest.raises(ValueError, match="no"):
        writer.append_metrics({"good": 1.0, "bad": 1.0}, 0, 0)
    assert writer.position == before
    for step in range(3):
        writer.append_metrics({"good": 1.0}, step, 0)
    assert asked == [("good", "bad"), ("good",)]
    writer.close()


def test_a_hundred_thousand_metrics_in_one_call(tmp_path: Path) -> None:
    values = {f"layer/{index}/norm": float(index) for index in range(100_000)}
    write(tmp_path, *[MetricsLogged(1, step, values) for step in range(3)])
    assert read_all(tmp_path).records == [MetricsLogged(1, step, values) for step in range(3)]


def test_thousands_of_series_over_many_segments_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FIRST_SEGMENT_BYTES", 4096)
    monkeypatch.setattr(journal, "LAST_SEGMENT_BYTES", 16384)
    monkeypatch.setattr(journal, "MAX_SERIES_IN_MEMORY", 50)
    order = random.Random(1)
    logged = []
    for step in range(4000):
        first = order.randrange(300)
        logged.append(MetricsLogged(step, step, {f"m{first}": float(step), f"m{first + 1}": -float(step)}))
    write(tmp_path, *logged)
    assert len(list(tmp_path.glob("*.journal"))) > 10
    assert read_all(tmp_path).records == logged
    assert read_all(tmp_path, max_points=7).records == logged


@settings(max_examples=60, deadline=None)
@given(
    stretches=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3), st.booleans(), st.integers(0, 1)), max_size=6),
    limits=st.fixed_dictionaries({}, optional={"max_points": st.integers(1, 90), "max_bytes": st.integers(1, 4000)}),
)
def test_stretches_of_like_metrics_read_at_once_are_what_reading_them_one_by_one_gives(
    stretches: list[tuple[int, int, bool, int]], limits: dict[str, int]
) -> None:
    logged: list[MetricsLogged] = []
    for length, count, wide, other in stretches:
        for index in range(length):
            step = len(logged) + (2**32 if wide else 0)
            names = {f"m{other}/{name}": step / (name + 1) for name in range(count)}
            logged.append(MetricsLogged(2**61 + index if index % 17 else -index, step, names))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), *logged)
        assert read_all(Path(folder), **limits).records == logged


def test_a_flipped_bit_in_a_long_stretch_of_like_metrics_costs_its_frame_alone(tmp_path: Path) -> None:
    records = [MetricsLogged(2**61 + step, step, {"a": 1.0 / (step + 1), "b": 2.0}) for step in range(40)]
    write(tmp_path, *records)
    path = tmp_path / segment_name(1, 0)
    whole = path.read_bytes()
    at, stop, _ = list(frames_of(whole))[22]
    for place in range(at, stop):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            found = read_all(tmp_path)
            assert found.records == records[:20] + records[21:], (place, bit)
            assert len(found.damaged) == 1, (place, bit)


def test_a_reader_holds_few_names_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LAST_SEGMENT_BYTES", 1 << 20)
    values = {f"layer/{index}/norm": float(index) for index in range(40_000)}
    logged = [MetricsLogged(1, step, values) for step in range(60)]
    write(tmp_path, *logged)
    assert len(list(tmp_path.glob("*.journal"))) > 20
    reader, position, steps = JournalReader(tmp_path), {}, []
    tracemalloc.start()
    while not (chunk := reader.read(position, max_points=1)).empty:
        steps += [record.step for record in chunk.records if isinstance(record, MetricsLogged)]
        position = chunk.position
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reader.close()
    assert steps == list(range(60))
    # A list of 40,000 such names takes 3 MB.
    assert most < 50e6


def test_metrics_of_five_names_take_at_most_sixteen_bytes_a_point(tmp_path: Path) -> None:
    values = {f"train/metric_{index}": float(index) for index in range(5)}
    write(tmp_path, *[MetricsLogged(1_800_000_000_000_000_000, step, values) for step in range(10_000)])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 16 * 5 * 10_000


def test_a_hundred_thousand_metrics_that_repeat_their_names_take_at_most_sixteen_bytes_a_point(tmp_path: Path) -> None:
    values = {f"model/layers/{index:06}/self_attention/gradient_norm": float(index) for index in range(100_000)}
    write(tmp_path, *[MetricsLogged(1_800_000_000_000_000_000, step, values) for step in range(10)])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 16 * 100_000 * 10


def test_segments_grow_and_give_back_the_room_they_did_not_use(tmp_path: Path) -> None:
    writer = write(tmp_path, *[tag("x" * 1000) for _ in range(2000)], close=False)
    paths = sorted(tmp_path.glob("*.journal"))
    reserved = [path.stat().st_size for path in paths]
    assert reserved == [1 << 18, 1 << 20, 1 << 22]
    writer.sync()
    assert [path.stat().st_size < size for path, size in zip(paths, reserved, strict=True)] == [True, True, False]
    writer.close()
    assert sum(path.stat().st_size for path in paths) < 2000 * 1100
    assert len(read_all(tmp_path).records) == 2000


def test_a_record_as_large_as_a_frame_may_be_is_kept_and_a_larger_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_FRAME_BYTES", 1 << 20)
    around = len(packed(4, 1, {"tag": "x" * 70_000})) - 70_000 + 8
    writer = write(tmp_path, tag("before"), close=False)
    largest = tag("x" * ((1 << 20) - around))
    writer.append(largest)
    before = writer.position
    with pytest.raises(ValueError, match="over the limit of 1,048,576 bytes"):
        writer.append(tag("x" * ((1 << 20) - around + 1)))
    with pytest.raises(ValueError, match="131,072 metrics in one call are over the limit"):
        writer.append_metrics({str(index): 1.0 for index in range(1 << 17)}, 0, 0)
    assert writer.position == before
    writer.append(tag("after"))
    writer.close()
    assert read_all(tmp_path).records == [tag("before"), largest, tag("after")]


def test_the_limit_of_a_frame_is_64_mib(tmp_path: Path) -> None:
    writer = write(tmp_path, close=False)
    with pytest.raises(ValueError, match="over the limit of 67,108,864 bytes"):
        writer.append(tag("x" * MAX_FRAME_BYTES))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [segment_name(1, 0), "w0001.lock"]


def test_a_file_system_that_cannot_map_gets_the_same_bytes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such file system is at hand, so mapping is made to fail; the rest is real."""
    records = [*EVERY_KIND[:-1], *[MetricsLogged(1, step, {"a": 1.0}) for step in range(20_000)], EVERY_KIND[-1]]
    write(tmp_path / "mapped", *records)

    def cannot_map(*_: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(journal.mmap, "mmap", cannot_map)
    writer = write(tmp_path / "written", *records, close=False)
    # What a call has returned for is in the file before anything is synced.
    assert as_text(read_all(tmp_path / "written").records) == as_text(records)
    writer.close()
    for path in (tmp_path / "mapped").glob("*.journal"):
        assert path.read_bytes() == (tmp_path / "written" / path.name).read_bytes()
    assert len(list((tmp_path / "written").iterdir())) == len(list((tmp_path / "mapped").iterdir()))


# --- writers


def test_each_writer_has_a_number_of_its_own_even_if_lock_files_were_cleaned_away(tmp_path: Path) -> None:
    write(tmp_path, tag("first"))
    for lock in tmp_path.glob("*.lock"):
        lock.unlink()
    (tmp_path / "white.lock").touch()
    assert write(tmp_path, tag("second")).writer == 2
    assert read_all(tmp_path).records == [tag("first"), tag("second")]


def test_the_last_owner_is_found_with_the_end_it_gave(tmp_path: Path) -> None:
    write(tmp_path, tag("a"), RunEnded(5, "failed"))
    assert JournalReader(tmp_path).last_owner() == (1, RunEnded(5, "failed"))
    writer = write(tmp_path, tag("b"), close=False)
    assert JournalReader(tmp_path).last_owner() == (2, None)
    JournalWriter(tmp_path, "worker", 1).close()
    assert JournalReader(tmp_path).last_owner() == (2, None)
    writer.append(RunEnded(6, "finished"))
    writer.close()
    assert JournalReader(tmp_path).last_owner() == (2, RunEnded(6, "finished"))


def test_nothing_can_be_appended_behind_the_end_of_the_run(tmp_path: Path) -> None:
    writer = write(tmp_path, MetricsLogged(1, 1, {"a": 1.0}), RunEnded(5, "finished"), close=False)
    for _ in range(2):
        with pytest.raises(RunFinishedError):
            writer.append_metrics({"a": 1.0}, 1, 1)
        with pytest.raises(RunFinishedError):
            writer.append(tag("late"))
        writer.close()
    assert JournalReader(tmp_path).last_owner() == (1, RunEnded(5, "finished"))
    assert len(list(tmp_path.glob("*.journal"))) == 1


def test_a_journal_that_was_closed_without_an_end_takes_no_more(tmp_path: Path) -> None:
    writer = write(tmp_path, tag("a"))
    with pytest.raises(RunFinishedError):
        writer.append(tag("late"))
    writer.sync()
    assert read_all(tmp_path).records == [tag("a")]


def test_a_journal_that_cannot_be_created_leaves_no_writer_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FIRST_SEGMENT_BYTES", 1 << 62)
    with pytest.raises(OSError, match=r"space|large"):
        JournalWriter(tmp_path, "owner", 1)
    assert not writer_is_alive(tmp_path, 1)
    assert read_all(tmp_path).records == []
    assert list(tmp_path.glob("*.new")) == []


# --- damage


def small_journal(directory: Path) -> list[object]:
    records = [
        tag("first"),
        MetricsLogged(1, 1, {"a": 1.0, "b": 2.0}),
        MetricsLogged(2, 2, {"a": 0.0, "b": 0.0}),
        tag("x" * 23),  # a payload of 32 bytes: one flipped bit makes its size 0
        MetricsLogged(3, 3, {"c": 3.0}),
        MetricsLogged(4, 4, {"a": 4.0, "b": 0.0}),
        ParamsLogged(5, {"lr": 0.1}),
        MetricsLogged(6, 6, {"c": 0.0}),
    ]
    write(directory, *records)  # type: ignore[arg-type]
    return list(records)


def test_a_segment_cut_at_any_byte_gives_a_prefix_and_at_most_one_damage(tmp_path: Path) -> None:
    records = small_journal(tmp_path / "whole")
    whole = (tmp_path / "whole" / segment_name(1, 0)).read_bytes()
    ends = [stop for _, stop, kind in frames_of(whole) if kind not in (NAMES, 18)]
    (tmp_path / "cut").mkdir()
    for length in range(len(whole)):
        (tmp_path / "cut" / segment_name(1, 0)).write_bytes(whole[:length])
        found = read_all(tmp_path / "cut")
        assert found.records == records[: sum(end <= length for end in ends)]
        assert len(found.damaged) <= 1
        if length > HEADER_BYTES and length not in {stop for _, stop, _ in frames_of(whole)}:
            assert len(found.damaged) == 1, length


def test_a_cut_segment_with_its_room_still_reserved_gives_a_prefix(tmp_path: Path) -> None:
    """As a SIGKILL in the middle of a write leaves it."""
    records = small_journal(tmp_path / "whole")
    whole = (tmp_path / "whole" / segment_name(1, 0)).read_bytes()
    (tmp_path / "cut").mkdir()
    for length in range(HEADER_BYTES, len(whole)):
        (tmp_path / "cut" / segment_name(1, 0)).write_bytes(whole[:length] + bytes(5000))
        found = read_all(tmp_path / "cut")
        assert found.records == records[: len(found.records)]
        assert len(found.damaged) <= 1


def test_any_flipped_bit_costs_one_frame_at_most_and_is_reported(tmp_path: Path) -> None:
    records = small_journal(tmp_path)
    path = tmp_path / segment_name(1, 0)
    whole = path.read_bytes()
    assert 32 in {stop - at - 8 for at, stop, _ in frames_of(whole)}
    kinds = [kind for _, _, kind in frames_of(whole)]
    assert kinds == [18, 4, NAMES, VALUES, VALUES, 4, NAMES, VALUES, VALUES, 3, VALUES]
    lost_with = [[], [0], [1, 2, 5], [1], [2], [3], [4, 7], [4], [5], [6], [7]]
    for (at, stop, _), lost in zip(frames_of(whole), lost_with, strict=True):
        expected = [record for index, record in enumerate(records) if index not in lost]
        for place in range(at, stop):
            for bit in range(8):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
                found = read_all(tmp_path)
                assert found.records == expected, (place, bit)
                assert found.damaged, (place, bit)


def test_a_flipped_bit_in_the_header_costs_no_record(tmp_path: Path) -> None:
    records = small_journal(tmp_path)
    path = tmp_path / segment_name(1, 0)
    whole = path.read_bytes()
    for place in range(HEADER_BYTES):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            version = int.from_bytes(path.read_bytes()[8:12], "little")
            if version > 1:
                with pytest.raises(JournalError, match=f"format {version}; this trackhub reads up to 1: upgrade it"):
                    read_all(tmp_path)
                continue
            found = read_all(tmp_path)
            assert found.records == records
            assert bool(found.damaged) == (place < 8 or version == 0)


@pytest.mark.parametrize("followed", [False, True])
def test_pages_that_a_power_failure_left_empty_are_reported_and_what_follows_is_read(
    tmp_path: Path, followed: bool
) -> None:
    """Also if the hole is larger than what the reader looks at in one go."""
    records = [tag(f"{number:06d}" + "x" * 100) for number in range(12_000)]
    writer = write(tmp_path, *records)
    path = tmp_path / segment_name(1, 1)
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 4096 * 100] = bytes(4096 * 100)
    path.write_bytes(data)
    if not followed:
        (tmp_path / segment_name(1, 2)).unlink()
    found = read_all(tmp_path)
    kept = {record.tags["tag"] for record in found.records if isinstance(record, TagsSet)}
    assert len(found.damaged) == 1
    assert "409" in found.damaged[0]
    assert records[0].tags["tag"] in kept
    assert (records[-1].tags["tag"] in kept) == followed
    assert writer.writer == 1
    assert found.records == [record for record in records if record.tags["tag"] in kept]
    assert 3000 < len(kept) < len(records) - 2000


def test_a_segment_that_is_missing_between_others_is_reported_and_the_rest_read(tmp_path: Path) -> None:
    write(tmp_path, *[tag(f"{number:06d}" + "x" * 1000) for number in range(2000)])
    (tmp_path / segment_name(1, 1)).unlink()
    found = read_all(tmp_path)
    assert len(found.damaged) == 1
    assert segment_name(1, 1) in found.damaged[0]
    assert found.records[0] == tag("000000" + "x" * 1000)
    assert found.records[-1] == tag("001999" + "x" * 1000)


def test_damage_before_a_last_record_that_ends_in_zeros_does_not_cost_that_record(tmp_path: Path) -> None:
    zeros = MetricsLogged(2, 2, dict.fromkeys("abcdef", 0.0))
    write(tmp_path, MetricsLogged(1, 1, zeros.values), tag("damaged"), zeros)
    path = tmp_path / segment_name(1, 0)
    path.write_bytes(path.read_bytes().replace(b"damaged", b"DAMAGED"))
    found = read_all(tmp_path)
    assert found.records == [MetricsLogged(1, 1, zeros.values), zeros]
    assert len(found.damaged) == 1


def test_many_metrics_whose_names_are_damaged_are_one_report(tmp_path: Path) -> None:
    write(tmp_path, *[MetricsLogged(1, step, {"some name": 1.0}) for step in range(500)], tag("after"))
    path = tmp_path / segment_name(1, 0)
    path.write_bytes(path.read_bytes().replace(b"some name", b"lost name"))
    found = read_all(tmp_path)
    assert found.records == [tag("after")]
    assert len(found.damaged) == 2
    assert "500" in found.damaged[1]


def test_a_second_reader_is_not_confused_by_what_the_first_has_read(tmp_path: Path) -> None:
    """A reader keeps a segment open and remembers names; writers and segments must not be taken for each other."""
    for name in ("one", "two"):
        write(tmp_path, MetricsLogged(1, 1, {name: 1.0}), MetricsLogged(2, 2, {name: 2.0}))
    assert [record.values for record in read_all(tmp_path, max_points=1).records] == [  # type: ignore[union-attr]
        {"one": 1.0}, {"one": 2.0}, {"two": 1.0}, {"two": 2.0}
    ]  # fmt: skip


# --- what no writer of ours would write


def values_payload(names_at: object, values: bytes, *more: object) -> bytes:
    return packed(VALUES, names_at, 1, 1, values, *more)


GOOD = frame(packed(4, 7, {"still": "here"}))
HOSTILE = {
    "enormous length": struct.pack("<II", 0xFFFFFFFF, 1),
    "length of the largest frame, beyond the file": struct.pack("<II", MAX_FRAME_BYTES, 1),
    "length a little beyond the file": struct.pack("<II", 200, 1) + b"x" * 50,
    "deep nesting": frame(b"\x93\x03\x01\x81\xa1a" + b"\x91" * 200_000 + b"\x00"),
    "deep maps": frame(b"\x93\x03\x01\x81\xa1a" + b"\x81\xa1a" * 200_000 + b"\x00"),
    "a list said to be endless": frame(b"\x92\x10\xdd\xff\xff\xff\xff"),
    "a map said to be endless": frame(b"\x93\x03\x01\xdf\xff\xff\xff\xff"),
    "a map for a key": frame(b"\x93\x03\x01\x81\xa1a\x91\x81\x80\x03"),
    "text that is no UTF-8": frame(b"\x93\x04\x01\x81\xa1\xff\xa1a"),
    "a name that is no UTF-8": frame(b"\x92\x10\x91\xa1\xff"),
    "an unknown tag": frame(packed(99, 1, 2)),
    "a tag that is a text": frame(packed("params", 1)),
    "no tag": frame(packed()),
    "no array": frame(b"\xc0"),
    "too few fields": frame(packed(6, 1)),
    "a wrong type": frame(packed(4, "now", {})),
    "trailing bytes": frame(packed(4, 1, {}) + b"\x00"),
    "names before the file": frame(values_payload(-1, bytes(8))),
    "names at the header": frame(values_payload(0, bytes(8))),
    "names far beyond the file": frame(values_payload(2**32 - 1, bytes(8))),
    "names beyond any file": frame(values_payload(2**64 - 1, bytes(8))),
    "names in another kind of record": frame(values_payload(HEADER_BYTES, bytes(8))),
    "names in itself": frame(values_payload(HEADER_BYTES + len(STARTED), bytes(8))),
    "names in the middle of a frame": frame(values_payload(HEADER_BYTES + 3, bytes(8))),
    "names that are a text": frame(values_payload("a", bytes(8))),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_frame_is_reported_and_costs_nothing_else(tmp_path: Path, case: str) -> None:
    segment(tmp_path, STARTED, HOSTILE[case], GOOD)
    found = read_all(tmp_path)
    assert found.records == [TagsSet(7, {"still": "here"})]
    assert len(found.damaged) == 1


@pytest.mark.parametrize(
    ("names", "values"), [(["a"], bytes(7)), (["a"], bytes(16)), (["a", "b"], bytes(8)), ([], bytes(8))]
)
def test_values_that_do_not_fit_their_names_are_reported_and_not_misnamed(
    tmp_path: Path, names: list[str], values: bytes
) -> None:
    at = HEADER_BYTES + len(STARTED)
    segment(tmp_path, STARTED, frame(packed(NAMES, names)), frame(values_payload(at, values)), GOOD)
    found = read_all(tmp_path)
    assert found.records == [TagsSet(7, {"still": "here"})]
    assert len(found.damaged) == 1


def test_fields_that_a_later_version_added_at_the_end_are_passed_over(tmp_path: Path) -> None:
    at = HEADER_BYTES + len(STARTED)
    segment(
        tmp_path,
        frame(packed(18, 1, "owner", 1, "host", "1.0")),
        frame(packed(NAMES, ["a"], "new")),
        frame(values_payload(at, struct.pack(">d", 1.5), "new", {"x": [1]})),
        frame(packed(4, 7, {"k": "v"}, None)),
        frame(packed(7, 1, "note", ["blobs/x", 3, False, "text/plain", "new"], 2, "new")),
        frame(packed(15, 9, "finished", None, 1)),
    )
    found = read_all(tmp_path)
    assert found.damaged == []
    assert [type(record) for record in found.records] == [MetricsLogged, TagsSet, TextLogged, RunEnded]
    assert found.records[0] == MetricsLogged(1, 1, {"a": 1.5})
    assert found.owners == [1]


def test_fields_that_have_defaults_may_be_missing(tmp_path: Path) -> None:
    """What an earlier version wrote before a field was added."""
    segment(tmp_path, STARTED, frame(packed(7, 1, "note", ["blobs/x", 3])), frame(packed(15, 9, "killed")))
    assert [type(record) for record in read_all(tmp_path).records] == [TextLogged, RunEnded]


def test_a_segment_of_a_newer_format_is_refused_with_the_fix(tmp_path: Path) -> None:
    path = segment(tmp_path, STARTED, GOOD, version=2)
    with pytest.raises(JournalError, match=rf"{path} was written in format 2.*reads up to 1: upgrade it"):
        read_all(tmp_path)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_never_raise_and_never_go_round_in_circles(data: st.DataObject) -> None:
    pieces = st.one_of(
        st.binary(max_size=60),
        st.binary(min_size=1, max_size=60).map(frame),
        st.sampled_from([*HOSTILE.values(), GOOD, STARTED, bytes(40), frame(packed(NAMES, ["a"]))]),
    )
    content = b"".join(data.draw(st.lists(pieces, max_size=8)))
    offset = data.draw(st.integers(0, len(content) + 50))
    with tempfile.TemporaryDirectory() as folder:
        segment(Path(folder), content)
        found = read_all(Path(folder))
        assert found.records.count(TagsSet(7, {"still": "here"})) <= content.count(GOOD)
        read_all(Path(folder), position={"1": (0, offset)})
        JournalReader(Path(folder)).last_owner()


def test_a_file_that_looks_like_a_frame_at_every_byte_takes_bounded_memory_and_ends(tmp_path: Path) -> None:
    # Every eighth byte begins what could be a frame of a megabyte, never with the right CRC.
    fake = struct.pack("<II", 1 << 20, 0) + b"\x93\x04"
    segment(tmp_path, STARTED, fake * 400_000)
    tracemalloc.start()
    try:
        found = read_all(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.records == []
    assert len(found.damaged) == 1
    assert peak < 40_000_000


def test_files_that_are_none_of_the_journal_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, tag("a"))
    for name in ("w0001-s000001.journal.new", "notes.journal", "w1-s1.journal", ".nfs0001", "w0001-s000002.journal~"):
        (tmp_path / name).write_bytes(b"garbage")
    shutil.copy(tmp_path / segment_name(1, 0), tmp_path / "copy of w0001-s000000.journal")
    found = read_all(tmp_path)
    assert found.records == [tag("a")]
    assert found.damaged == []


def test_infinities_and_nan_are_no_special_case_of_a_histogram(tmp_path: Path) -> None:
    write(tmp_path, MetricsLogged(1, 1, {"a": math.nan, "b": -math.inf}))
    (record,) = read_all(tmp_path).records
    assert isinstance(record, MetricsLogged)
    assert math.isnan(record.values["a"])
    assert record.values["b"] == -math.inf
