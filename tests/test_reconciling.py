"""The reconciliation itself: whatever is missing and whatever is too much is found, in any order, and nothing else."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackhub import verifying
from trackhub.backend import Backend, OpenedRun, RunInfo
from trackhub.readback import Point, ReadBack
from trackhub.records import MetricsLogged
from trackhub.testing.conformance import Subject
from trackhub.testing.rehearsal import CREATED_NS
from trackhub.verifying import reconcile

Stored = tuple[str, Point]


class Shelf(Backend):
    """Keeps points in a list, where a test can rearrange them."""

    name = "shelf"
    points: ClassVar[list[Stored]] = []

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        return OpenedRun(remote_id="1")

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        for one in points:
            self.points.extend((name, Point(one.step, value, one.time_ns)) for name, value in one.values.items())

    def read_back(self, run: RunInfo, state: Mapping[str, Any]) -> ReadBack:
        return ShelfReadBack()


class ShelfReadBack(ReadBack):
    def metric_names(self) -> Iterable[str]:
        return {name for name, _ in Shelf.points}

    def points(self, names: Collection[str]) -> Iterator[Stored]:
        return ((name, point) for name, point in Shelf.points if name in names)


class OnAShelf(Subject):
    kind = Shelf


NAMES = st.sampled_from(["loss", "acc"])
VALUES = st.sampled_from([0.0, -0.0, 0.5, 1.0, math.nan, math.inf])
STEPS = st.integers(0, 4)
LOGGED = st.lists(st.tuples(NAMES, STEPS, VALUES, st.integers(0, 2)), max_size=25)
MISSING = ("missing point", "missing metric", "different value", "different time")
TOO_MUCH = ("extra point", "extra metric", "shown twice", "different value", "different time")


@given(logged=LOGGED, data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_difference_is_that_of_the_two_bags_of_points(logged: list[Any], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
        patched.setattr(verifying, "POINTS_AT_ONCE", data.draw(st.sampled_from([1, 1000])))
        Shelf.points.clear()
        run = OnAShelf().rehearse(Path(directory))
        for name, step, value, time in logged:
            run.log(MetricsLogged(CREATED_NS + time, step, {name: value}))
        run.end()
        run.deliver()
        before = Counter(map(comparable, Shelf.points))
        kept = [one for one in Shelf.points if data.draw(st.integers(0, 5))]
        strange = data.draw(
            st.lists(st.tuples(NAMES, st.builds(Point, STEPS, VALUES, st.just(CREATED_NS))), max_size=3)
        )
        twice = data.draw(st.lists(st.sampled_from(kept), max_size=2)) if kept else []
        Shelf.points[:] = data.draw(st.permutations(kept + strange + twice))
        after = Counter(map(comparable, Shelf.points))

        found = reconcile(run.run, Shelf(Shelf.Options()))
        known = {one[0] for one in before}
        missing, extra = before - after, after - before
        # A metric that was never logged is one difference, whatever is in it.
        foreign = {one[0] for one in extra} - known
        assert sum(found.counts[kind] for kind in MISSING) == missing.total()
        assert sum(found.counts[kind] for kind in TOO_MUCH) == len(foreign) + sum(
            count for one, count in extra.items() if one[0] not in foreign
        )
        assert bool(found) == (before == after)
        for one in found.findings:
            if one.kind == "missing point":
                assert any(name == one.subject and step == one.step for name, step, *_ in missing)
            if one.kind in ("extra point", "shown twice"):
                assert any(name == one.subject and step == one.step for name, step, *_ in extra)


def comparable(stored: Stored) -> tuple[Any, ...]:
    name, point = stored
    return name, point.step, "NaN" if math.isnan(point.value) else point.value, point.time_ns
