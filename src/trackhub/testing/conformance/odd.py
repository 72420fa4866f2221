"""Odd names and values are shown as they are, or the report says what became of them; their neighbours are intact.

A part of the conformance suite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trackhub.lowering import supported_kinds
from trackhub.records import MetricsLogged, ParamsLogged, PlainValue, TagsSet
from trackhub.testing import samples
from trackhub.testing.conformance.subject import Subject
from trackhub.testing.rehearsal import CREATED_NS, Rehearsal

MANY = 10_000
LONG = "0123456789abcdef" * 65_536  # 1 MiB

ODD_NAMES = [
    "a", "a/b", "a/b/c", "a.b", "A", " ", "/", "/rooted", "ends/", "two//slashes", ".", "..", "../above", "~", "-x",
    "größe", "損失", "loss 🚀", "e\u0301", "\u00e9", "\u202eleft", "with space", "a=b", "100%", "%s", "{x}", "$x", "#1",
    "'", '"', "`", "\\", "|", "<b>", "a:b", "a,b", "a;b", "a\tb", "a\nb", "\x00", "\x1b[31m", "\x7f",
    "step", "time", "value", "metrics", "params", "id", "name", "status", "x" * 300, "x" * 300 + "y", "ü" * 200,
]  # fmt: skip

ODD_TEXTS = {
    "empty": "",
    "spaces": "  two  ",
    "unicode": "größe 損失 🚀",
    "lines": "one\ntwo\r\nthree\ttab",
    "control": "\x1b[31mred\x07",
    "nul": "a\x00b",
    "markup": "<script>alert(1)</script> & `x` | \\n",
    "json": '{"a": [1, 2]}',
    "formula": "=1+1",
    "quotes": "'\"",
    "null": "null",
    "long": LONG,
}

ODD_VALUES: dict[str, PlainValue] = {
    "none": None,
    "true": True,
    "big": 2**63,
    "negative": -(2**63),
    "tiny": 5e-324,
    "nan": math.nan,
    "infinite": -math.inf,
    "list": [1, [2, None], {"a": "b"}],
    "nested/empty": {},
}


class BearsOddThings(Subject):
    """Tests of names and values that some vendor or other does not take."""

    def test_odd_metric_names(self, tmp_path: Path) -> None:
        """Each is a series of its own; one that is called otherwise, or left out, is noted."""
        run = self.rehearse(tmp_path)
        run.log(MetricsLogged(CREATED_NS, 1, {name: float(at) for at, name in enumerate(ODD_NAMES)}))
        run.log(samples.metrics(2, usual=-1.0))
        run.end()
        report = run.deliver().report
        shown = run.shown().metrics
        assert self.found(run.shown(), "usual") == self.kept([(2, -1.0)])
        places: dict[float, list[str]] = {}
        for name, points in shown.items():
            for point in points:
                places.setdefault(point[1], []).append(name)
        for at, name in enumerate(ODD_NAMES):
            found = places.get(float(at), [])
            assert len(found) <= 1, f"{name!r} is shown as {found}"
            accounted = found == [name] or run.noted(name) or (not found and report.rejected)
            assert accounted, f"{name!r} is shown as {found}, and not a word about it: {run.notes}"
            if found:
                assert len(shown[found[0]]) == 1, f"{name!r} shares {found[0]!r} with another metric"

    def test_many_metrics_of_one_step(self, tmp_path: Path) -> None:
        """Ten thousand names in one call; those for which there is no room are counted."""
        run = self.rehearse(tmp_path)
        run.log(MetricsLogged(CREATED_NS, 1, {f"layer{at}": float(at) for at in range(MANY)}))
        run.end()
        report = run.deliver().report
        shown = run.shown()
        missing = [at for at in range(MANY) if f"layer{at}" not in shown.metrics]
        wrong = [at for at in range(MANY) if self.found(shown, f"layer{at}") != self.kept([(1, float(at))])]
        assert wrong == missing, f"{len(wrong)} of {MANY} metrics are not as they were logged, layer{wrong[0]} for one"
        assert len(missing) <= report.rejected + len(run.notes), f"{len(missing)} of {MANY} metrics are missing, unsaid"

    def test_values_that_are_no_numbers(self, tmp_path: Path) -> None:
        """NaN, infinities and the ends of the range: shown as they are, or noted; what is between is intact."""
        run = self.rehearse(tmp_path)
        odd = {"nan": math.nan, "infinite": math.inf, "minus": -math.inf, "largest": 1.7976931348623157e308}
        for step, value in enumerate((1.0, 2.0)):
            run.log(samples.metrics(2 * step, **odd))
            run.log(samples.metrics(2 * step + 1, usual=value, zero=-0.0))
        run.end()
        report = run.deliver().report
        shown = run.shown()
        assert self.found(shown, "usual") == self.kept([(1, 1.0), (3, 2.0)])
        assert self.found(shown, "zero") == self.kept([(1, 0.0), (3, 0.0)])
        for name, value in odd.items():
            points = shown.metrics.get(name, [])
            as_it_is = len(points) == (2 if self.keeps_every_step else 1) and all(
                point[1] == value or (math.isnan(value) and math.isnan(point[1])) for point in points
            )
            assert as_it_is or run.noted(name) or report.rejected, f"{name} is shown as {points}, unsaid: {run.notes}"

    def test_odd_params(self, tmp_path: Path) -> None:
        """Texts arrive as they are, values of any type arrive, or it is noted; none stops the others."""
        run = self.rehearse(tmp_path)
        run.log(ParamsLogged(1, {**ODD_TEXTS, **ODD_VALUES}), ParamsLogged(2, {"a": "1", "a/b": "2", "usual": "3"}))
        run.end()
        run.deliver()
        if not self.shows_params:
            self._is_reported(run, "params")
            return
        shown = run.shown().params
        self._are_side_by_side(run, shown)
        for name, text in ODD_TEXTS.items():
            assert shown.get(name) == text or run.noted(name), f"param {name} is {_short(shown.get(name))}, unsaid"
        for name in ODD_VALUES:
            assert name in shown or run.noted(name), f"param {name} is not there, unsaid"

    def test_odd_tags(self, tmp_path: Path) -> None:
        """Texts arrive as they are, or it is noted; none stops the others."""
        run = self.rehearse(tmp_path)
        run.log(TagsSet(1, ODD_TEXTS), TagsSet(2, {"a": "1", "a/b": "2", "usual": "3"}))
        run.end()
        run.deliver()
        if not self.shows_tags:
            self._is_reported(run, "tags")
            return
        shown = run.shown().tags
        self._are_side_by_side(run, shown)
        for name, text in ODD_TEXTS.items():
            assert shown.get(name) == text or run.noted(name), f"tag {name} is {_short(shown.get(name))}, unsaid"

    @pytest.mark.parametrize("what", ["params", "tags"])
    def test_odd_names_of(self, what: str, tmp_path: Path) -> None:
        """Each has a place of its own; one that is called otherwise, or left out, is noted."""
        run = self.rehearse(tmp_path)
        values = {name: f"value {at}" for at, name in enumerate(ODD_NAMES)}
        run.log(ParamsLogged(1, dict(values)) if what == "params" else TagsSet(1, values))
        run.end()
        report = run.deliver().report
        if not (self.shows_params if what == "params" else self.shows_tags):
            self._is_reported(run, what)
            return
        shown = getattr(run.shown(), what)
        for name, value in values.items():
            found = [one for one, text in shown.items() if text == value]
            assert len(found) <= 1, f"{name!r} is shown as {found}"
            accounted = found == [name] or run.noted(name) or (not found and report.rejected)
            assert accounted, f"{name!r} is shown as {found}, and not a word about it: {run.notes}"

    def test_odd_file_names(self, tmp_path: Path) -> None:
        """Every content has a place of its own, or it is noted; nothing is written outside of the vendor's place."""
        run = self.rehearse(tmp_path)
        names = ["a.txt", "größe 🚀.txt", "with space.txt", "a=b.txt", "#1.txt", "100%.txt", "deep/er/a.txt", "x" * 200]
        for at, name in enumerate(names):
            run.log(samples.artifact(run, name, f"content {at}".encode()))
        run.end()
        report = run.deliver().report
        if not self.shows_files:
            self._is_reported(run, "artifacts")
            return
        shown = run.shown().files
        for at, name in enumerate(names):
            found = [path for path, content in shown.items() if content == f"content {at}".encode()]
            accounted = found == [name] or run.noted(name) or (not found and report.rejected)
            assert accounted, f"{name!r} is shown as {found}, and not a word about it: {run.notes}"

    def _are_side_by_side(self, run: Rehearsal, shown: Mapping[str, Any]) -> None:
        """That `a` does not keep `a/b` away, whatever the one of them is called then."""
        assert shown.get("usual") == "3"
        for name, value in (("a", "1"), ("a/b", "2")):
            assert shown.get(name) == value or (value in shown.values() and run.noted(name)), f"{name} is not there"

    def _is_reported(self, run: Rehearsal, kind: str) -> None:
        """That what the vendor has no place for is said; a backend may also show what `read` cannot find."""
        if kind not in supported_kinds(self.kind):
            assert run.cursor.report.skipped[kind] > 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"
