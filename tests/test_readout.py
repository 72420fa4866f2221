from __future__ import annotations

import math
import tracemalloc
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

import trackhub
from trackhub.cli.formats import sparkline
from trackhub.journal import JournalWriter
from trackhub.readout import MAX_SAMPLES, read_run
from trackhub.records import MetricsLogged


def journal(directory: Path, *points: MetricsLogged) -> Path:
    writer = JournalWriter(directory, "owner", 1)
    for point in points:
        writer.append_metrics(point.values, point.step, point.time_ns)
    writer.close()
    return directory


def of(values: list[float]) -> list[MetricsLogged]:
    return [MetricsLogged(10 + step, step, {"m": value}) for step, value in enumerate(values)]


def test_a_metric_is_summed_up(tmp_path: Path) -> None:
    one = read_run(journal(tmp_path, *of([3.0, 1.0, math.nan, 5.0, 2.0]))).metrics["m"]
    assert (one.count, one.last, one.last_step, one.last_time_ns) == (5, 2.0, 4, 14)
    assert (one.minimum, one.minimum_step, one.maximum, one.maximum_step) == (1.0, 1, 5.0, 3)
    assert one.nan_count == 1
    assert [step for step, _ in one.series] == [0, 1, 2, 3, 4]


def test_infinities_are_extremes_and_nan_is_not(tmp_path: Path) -> None:
    one = read_run(journal(tmp_path, *of([math.nan, math.inf, -math.inf]))).metrics["m"]
    assert (one.minimum, one.maximum, one.nan_count) == (-math.inf, math.inf, 1)
    alone = read_run(journal(tmp_path / "other", *of([math.nan]))).metrics["m"]
    assert math.isnan(alone.minimum)
    assert math.isnan(alone.maximum)
    assert math.isnan(alone.last)


def test_the_last_value_is_the_latest_even_if_its_step_is_not(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint logs earlier steps again."""
    journal(tmp_path, MetricsLogged(10, 700, {"m": 1.0}))
    journal(tmp_path, MetricsLogged(20, 500, {"m": 2.0}))
    one = read_run(tmp_path).metrics["m"]
    assert (one.last, one.last_step) == (2.0, 500)
    assert one.series == [(500, 2.0)]


@pytest.mark.parametrize("count", [1, MAX_SAMPLES - 1, MAX_SAMPLES, MAX_SAMPLES + 1, 10_000])
def test_a_series_is_thin_even_and_ends_at_the_end(count: int, tmp_path: Path) -> None:
    series = read_run(journal(tmp_path, *of([float(step) for step in range(count)]))).metrics["m"].series
    steps = [step for step, _ in series]
    assert len(steps) <= MAX_SAMPLES + 1
    assert (steps[0], steps[-1]) == (0, count - 1)
    gaps = {later - earlier for earlier, later in pairwise(steps[:-1])}
    assert len(gaps) <= 1
    assert all(step == value for step, value in series)


def test_what_alternates_is_not_sampled_to_a_constant(tmp_path: Path) -> None:
    series = read_run(journal(tmp_path, *of([float(step % 2) for step in range(5_000)]))).metrics["m"].series
    assert {value for _, value in series} == {0.0, 1.0}


def test_memory_does_not_grow_with_the_number_of_steps(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        directory = journal(tmp_path / str(count), *of([1.0] * count))
        tracemalloc.start()
        read_run(directory)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(60_000) < 1.3 * peak(20_000)


def test_params_tags_and_rich_values(tmp_path: Path) -> None:
    artifact = tmp_path / "model.bin"
    artifact.write_bytes(b"12345")
    with trackhub.init(dir=tmp_path, mode="offline", params={"lr": 0.1, "opt": {"name": "sgd"}}) as tracker:
        tracker.log_params({"lr": 0.2})
        tracker.set_tags({"team": "vision"})
        tracker.log_artifact(artifact)
        for step in (3, 9):
            tracker.log_text("notes", "hello", step=step)
        tracker.log_confusion_matrix("cm", ["a", "b"], [[1, 2], [3, 4]])
        tracker.log_model(artifact, "model", register_as="digits")
    readout = read_run(tracker.directory / "journal")
    assert readout.params == {"lr": 0.2, "opt/name": "sgd"}
    assert readout.tags == {"team": "vision"}
    values = {(one.kind, one.name): one for one in readout.values}
    assert list(values) == [
        ("artifact", "model.bin"),
        ("text", "notes"),
        ("confusion matrix", "cm"),
        ("model", "model"),
    ]
    text = values["text", "notes"]
    assert (text.count, text.steps, text.size_bytes) == (2, (3, 9), 10)
    path = values["artifact", "model.bin"].path
    assert path is not None
    assert (tracker.directory / path).read_bytes() == b"12345"
    assert values["confusion matrix", "cm"].path is None
    assert values["model", "model"].detail == "registered as digits"


def test_damage_is_told(tmp_path: Path) -> None:
    journal(tmp_path, *of([1.0, 2.0, 3.0]))
    path = next(tmp_path.glob("*.journal"))
    content = bytearray(path.read_bytes())
    content[-60] ^= 0xFF
    path.write_bytes(content)
    readout = read_run(tmp_path)
    assert readout.damaged
    assert readout.metrics["m"].last == 3.0


NAN, INF = math.nan, math.inf
LINES: Mapping[str, tuple[list[float], int]] = {
    "": ([], 8),
    "▄": ([5.0], 8),
    "▄▄": ([5.0, 5.0], 8),
    "▁█": ([-1e308, 1e308], 8),
    "▁ █": ([0.0, NAN, 1.0], 8),
    "▁█▁█": ([0.0, INF, -INF, 1.0], 8),
    "  ": ([NAN, NAN], 8),
    "█▁": ([INF, -INF], 8),
    "▁▅█": ([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], 3),
}


@pytest.mark.parametrize("line", LINES)
def test_a_sparkline_takes_any_number(line: str) -> None:
    assert sparkline(*LINES[line]) == line
