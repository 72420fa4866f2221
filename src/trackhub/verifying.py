"""Reconciling what a backend holds of a run with the run's journal, point by point: what `trackhub verify` does.

Apart from the delivery because it trusts nothing the delivery has remembered except how far it came and what it has
reported. What should be there is computed in one place, `Expected`; what is there is read by `Backend.read_back`, one
group of metrics after the other, so that memory stays bounded however long the run was.

A run may go on while it is compared. The journal is read as it was when the comparison began; what was logged since is
looked at only to tell what is there already from what nobody has logged.
"""

from __future__ import annotations

import itertools
import json
import struct
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trackhub import lowering, plugins
from trackhub.attempts import Attempts
from trackhub.backend import Backend, RunInfo
from trackhub.cursor import Cursor
from trackhub.errors import BackendUnavailable, CannotReadBack, StateLost, TrackhubError
from trackhub.journal import Chunk, JournalReader, Position
from trackhub.processing import Pipeline
from trackhub.readback import Item, KindOfName, Point, ReadBack
from trackhub.records import Deliverable, MetricsLogged, ParamsLogged, RunEnded, TagsSet
from trackhub.rundir import RunDirectory
from trackhub.sync import options_for

POINTS_AT_ONCE = 1_000_000
"""How many points are compared at once, 24 bytes each; one metric may have more."""
MAX_UNDELIVERED = 100_000
"""With more records under way than this, nothing is compared: they might be there or not."""
MAX_FINDINGS = 1000
"""How many differences are listed; all are counted."""
CHUNK_POINTS = 20_000

Outcome = Literal["agrees", "differs", "cannot be read back", "not available", "not delivered"]
_Key = tuple[int, bytes, int | None]
_pack = struct.Struct("<d").pack


@dataclass(frozen=True)
class Finding:
    """One difference that nothing explains.

    Args:
        kind: What it is, in a fixed phrase: "missing point", "different value", "shown twice", "extra param" ...
        subject: The metric, param, tag or file, as it was logged; as the vendor calls it if it was not logged.
        step: The step, of a point.
        logged: What was logged; None if nothing was.
        found: What the vendor has instead; None if it has nothing.
        count: How many of the same this stands for.
    """

    kind: str
    subject: str
    step: int | None = None
    logged: Any = None
    found: Any = None
    count: int = 1

    def __str__(self) -> str:
        where = self.subject if self.step is None else f"{self.subject} at step {self.step}"
        both = (("logged", self.logged), ("found", self.found))
        said = ", ".join(f"{name} {value!r}" for name, value in both if value is not None)
        many = f" ({self.count:,} points)" if self.count > 1 else ""
        return f"{self.kind}: {where}{many}{': ' if said else ''}{said}"


@dataclass
class Verification:
    """What came of comparing one run with one backend. True when nothing is unexplained.

    Args:
        run_id: The run.
        backend: The backend's name.
        outcome: "agrees", "differs", or why nothing was compared.
        reason: More on that, for people.
        compared: What was compared: "points", "metrics", "params", "tags", "items" (files, pictures, texts) -> number.
        undelivered: Records that are not delivered yet; they may be there or not.
        findings: The differences, at most `MAX_FINDINGS`.
        counts: Kind of difference -> how many there are.
        explained: What is not there as it was logged for a reason that is known -> how often.
        not_compared: What could not be compared, a phrase each.
    """

    run_id: str
    backend: str
    outcome: Outcome = "agrees"
    reason: str = ""
    compared: dict[str, int] = field(default_factory=dict)
    undelivered: int = 0
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    not_compared: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.outcome == "agrees"

    def find(self, kind: str, subject: str, step: int | None = None, **more: Any) -> None:
        """Note a difference."""
        finding = Finding(kind, subject, step, **more)
        self.outcome = "differs"
        self.counts[kind] += finding.count
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)


def verify(run: RunDirectory, backend: str) -> Verification:
    """Compare what a backend holds of a run with the journal.

    Args:
        run: The run.
        backend: One of its backends.

    Raises:
        SettingsError: The backend is unknown, an option is not accepted, or a package is missing.
    """
    kind = plugins.find_backend(backend)
    if kind.needs_training_process:
        reason = "the training process itself fills it, and nothing can be read back from there"
        return Verification(run.manifest.id, backend, "cannot be read back", reason)
    return reconcile(run, kind(kind.Options.model_validate(options_for(run, backend))))


def reconcile(run: RunDirectory, backend: Backend) -> Verification:
    """Compare what a backend holds of a run with the journal.

    Args:
        run: The run.
        backend: The backend, which is not open.
    """
    cursor = run.cursor(backend.name)
    result = Verification(run.manifest.id, backend.name)
    if cursor.remote_id is None and not cursor.position:
        result.outcome, result.reason = "not delivered", "nothing has been delivered there yet"
        return result
    if run.freed is not None:
        result.outcome = "cannot be read back"
        result.reason = "its journal was freed (trackhub prune), so there is nothing to compare with"
        return result
    expected = Expected(run, backend, cursor, _run_info(run, backend.name, cursor))
    result.undelivered = expected.undelivered
    if expected.undelivered > MAX_UNDELIVERED:
        result.outcome = "not delivered"
        result.reason = f"{expected.undelivered:,} records are not delivered yet: deliver them first (trackhub sync)"
        return result
    try:
        there = backend.read_back(expected.info, cursor.state)
        try:
            _Comparison(expected, there, result).run()
        finally:
            there.close()
        ended = not expected.is_running
        if result and ended and (expected.undelivered or not cursor.closed):
            result.outcome = "not delivered"
            left = f"{expected.undelivered:,} records are" if expected.undelivered else "the end of the run is"
            result.reason = f"{left} not delivered yet; all else is there (trackhub sync delivers the rest)"
    except CannotReadBack as error:
        result.outcome, result.reason = "cannot be read back", str(error)
    except StateLost as error:
        result.find("missing run", run.manifest.id)
        result.reason = str(error)
    except BackendUnavailable as error:
        result.outcome, result.reason = "not available", str(error)
    finally:
        expected.close()
        backend.disconnect()
    return result


class Expected:
    """What should be at one backend: the journal as it is delivered there, and nothing else.

    The one place for whatever comes between journal and backend: processors drop or change records in `_delivered`, and
    what a later attempt has superseded is left out there, or may be there where a backend cannot take it back.

    Made before the backend is read: the journal is then read up to where it ended now, however often it is read.

    Args:
        run: The run.
        backend: The backend.
        cursor: How far the delivery has come.
        info: What the backend is told of the run.
    """

    def __init__(self, run: RunDirectory, backend: Backend, cursor: Cursor, info: RunInfo) -> None:
        self.info = info
        self.cursor = cursor
        self.damaged: list[str] = []
        self.is_running = run.end()[0] == "running"
        self._run = run
        self._supported = lowering.supported_kinds(type(backend))
        self._pipeline = Pipeline(backend.options.processors)
        self._rejected = _rejected(run.rejected / f"{backend.name}.jsonl")
        self._attempts = Attempts(run.journal)
        self._under_way: set[tuple[Any, ...]] = set()
        self._end = cursor.position
        for chunk in self._chunks(cursor.position):
            self._under_way.update(_identity(record) for record in _without_ends(chunk))
            self._end = chunk.position
            if len(self._under_way) > MAX_UNDELIVERED:
                break
        self.undelivered = len(self._under_way)

    def runs_still(self) -> bool:
        """Whether the run has not ended yet, at this moment."""
        return self._run.end()[0] == "running"

    def records(self) -> Iterator[tuple[Deliverable, bool]]:
        """All records but metrics, as the backend is given them, each with whether it must be there.

        What is under way or was rejected may be there or not.
        """
        for record, may_miss in self._delivered():
            for final in self._lowered(record):
                yield final, not (may_miss or _identity(final) in self._rejected)

    def later_records(self) -> Iterator[Deliverable]:
        """The same of what was logged since this was made, which may be there already."""
        for record in self._later():
            yield from self._lowered(record)

    def points(self) -> Iterator[tuple[MetricsLogged, bool]]:
        """All metrics, each step with whether it must be there."""
        if "metrics" not in self._supported:
            return
        for record, may_miss in self._delivered():
            if isinstance(record, MetricsLogged):
                yield record, not may_miss

    def later_points(self) -> Iterator[MetricsLogged]:
        """Metrics that were logged since this was made, which may be there already."""
        if "metrics" not in self._supported:
            return
        for record in self._later():
            if isinstance(record, MetricsLogged):
                yield record

    def superseded_points(self) -> Iterator[MetricsLogged]:
        """Metrics that a later attempt has superseded, by now."""
        if "metrics" not in self._supported or self._attempts.look() < 2:
            return
        for chunk in self._chunks({}, self._end):
            for _, part in self._attempts.kept_of(chunk):
                for record in part.points_left_out:
                    for shown in self._processed(record):
                        if isinstance(shown, MetricsLogged):
                            yield shown

    def is_rejected(self, name: str, step: int, time_ns: int) -> bool:
        """Whether a point was refused."""
        return (time_ns, step, name) in self._rejected

    @property
    def has_rejected_points(self) -> bool:
        """Whether any point was refused."""
        return any(isinstance(one[1], int) for one in self._rejected)

    def close(self) -> None:
        """Close the journal."""
        self._attempts.close()

    def _delivered(self) -> Iterator[tuple[Deliverable, bool]]:
        """The journal's records as they are for this backend, each with whether it may be missing there."""
        self.damaged.clear()
        for chunk in self._chunks({}, self._end):
            self.damaged.extend(chunk.damaged)
            for _, part in self._attempts.kept_of(chunk):
                for records, are_superseded in ((part.kept, False), (part.others_left_out, True)):
                    for record in records:
                        if isinstance(record, RunEnded):
                            continue
                        may_miss = are_superseded or (bool(self._under_way) and _identity(record) in self._under_way)
                        for shown in self._processed(record):
                            yield shown, may_miss

    def _processed(self, record: Deliverable) -> list[Deliverable]:
        if not self._pipeline.handles(type(record)):
            return [record]
        shown = self._pipeline.process(type(record), [record])
        # What they have to say was said when the run was delivered.
        self._pipeline.drain_notes()
        return shown

    def _lowered(self, record: Deliverable) -> list[Deliverable]:
        """What a record other than metrics is shown as."""
        return [] if isinstance(record, MetricsLogged) else lowering.lower(record, self._supported, self.info)

    def _later(self) -> Iterator[Deliverable]:
        for chunk in self._chunks(self._end):
            for record in _without_ends(chunk):
                yield from self._processed(record)

    def _chunks(self, position: Position, end: Position | None = None) -> Iterator[Chunk]:
        reader = JournalReader(self._run.journal)
        try:
            while not (chunk := reader.read(position, max_points=CHUNK_POINTS, end=end)).empty:
                yield chunk
                position = chunk.position
        finally:
            reader.close()


class _Comparison:
    """One comparison.

    Args:
        expected: What should be there.
        there: What is there.
        result: Gets what comes of it.
    """

    def __init__(self, expected: Expected, there: ReadBack, result: Verification) -> None:
        self._expected = expected
        self._there = there
        self._result = result

    def run(self) -> None:
        """Compare everything."""
        self._compare_records()
        self._compare_metrics()
        self._compare_status()
        for problem in self._there.problems():
            self._result.find("damage", problem)
        self._explain()

    # Metrics

    def _compare_metrics(self) -> None:
        there, result = self._there, self._result
        known = set(there.metric_names())
        counts: Counter[str] = Counter()
        for record, _ in self._expected.points():
            counts.update(record.values.keys())
        for record in itertools.chain(self._expected.superseded_points(), self._expected.later_points()):
            # Nothing of these must be there; what is, is told apart from what nobody has logged.
            counts.update(dict.fromkeys(record.values, 0))
        names = {name: there.metric_name(name) for name in counts}
        for extra in sorted(known - set(names.values())):
            self._extra("metric", extra)
        for group in _groups(counts):
            self._compare_group(group, names, known)
        result.compared |= {"metrics": len(counts), "points": counts.total()}

    def _compare_group(self, group: Collection[str], names: dict[str, str], known: set[str]) -> None:
        columns = {name: _Column() for name in group}
        for record, must in self._expected.points():
            for name, value in record.values.items():
                column = columns.get(name)
                if column is not None:
                    column.add(record.step, value, record.time_ns, must=must)
        there = self._there
        matches = {names[name]: _Match(name, columns[name], there) for name in group}
        for found, point in there.points([name for name in matches if name in known]):
            matches[found].take(point)
        # Asked after what is there was read: whatever the delivery has done about it, the journal knows by now.
        superseded = _columns(self._expected.superseded_points(), columns)
        later = _columns(self._expected.later_points(), columns)
        for match in matches.values():
            match.finish(may_miss=self._expected.has_rejected_points)
            if match.name in superseded:
                self._drop_superseded(match, superseded[match.name])
            if match.name in later:
                match.forget_extra(later[match.name])
            self._judge(match)

    def _drop_superseded(self, match: _Match, column: _Column) -> None:
        """Forget what is there and was superseded, where the backend could not take it back."""
        match.forget_missing(column)
        for point in self._there.metric_points(match.name, column.points()) if match.extra else ():
            if not isinstance(point, str) and _cancel(match.extra, match.normal(point)):
                self._result.explained["points that a later attempt superseded, still shown"] += 1

    def _judge(self, match: _Match) -> None:
        result, name = self._result, match.name
        for reason, count in match.left_out.items():
            result.explained[f"points left out: {reason}"] += count
        missing, extra = match.missing, match.extra
        if match.lost:
            result.find("missing metric", name, count=match.lost)
        if not missing and not extra:
            return
        shown = match.times_expected({*missing, *extra})
        if self._there.equal_points_collapse:
            for key in [key for key in missing if shown[key] > missing[key]]:
                result.explained["points that are equal, and one there"] += missing.pop(key)
        self._drop_excused(match)
        for key in [key for key in extra if shown[key] > missing.get(key, 0)]:
            result.find("shown twice", name, key[0], found=_value(key), count=extra.pop(key))
        self._pair(match)
        for key, count in missing.items():
            for _ in range(count):
                result.find("missing point", name, key[0], logged=_value(key))
        for key, count in extra.items():
            if self._there.is_shared:
                result.explained["points of others in the same run"] += count
                continue
            for _ in range(count):
                result.find("extra point", name, key[0], found=_value(key))

    def _drop_excused(self, match: _Match) -> None:
        """Forget what is missing and need not be there."""
        optional: Counter[_Key] = Counter()
        rejected: Counter[_Key] = Counter()
        has_rejected = self._expected.has_rejected_points
        if not has_rejected and not match.column.optional:
            return
        for index, point in match.expected():
            if isinstance(point, str):
                continue
            step, time_ns = match.column.steps[index], match.column.times[index]
            if has_rejected and self._expected.is_rejected(match.name, step, time_ns):
                rejected[match.normal(point)] += 1
            elif index in match.column.optional:
                optional[match.normal(point)] += 1
        for excused, reason in ((rejected, "points refused by the backend"), (optional, "points not delivered yet")):
            for key, count in excused.items():
                dropped = min(count, match.missing.get(key, 0))
                if dropped:
                    self._result.explained[reason] += dropped
                    match.missing[key] -= dropped
                    if not match.missing[key]:
                        del match.missing[key]

    def _pair(self, match: _Match) -> None:
        """Find what is there in another form: at the same step, with another value or another time."""
        missing, extra = match.missing, match.extra
        by_step: dict[int, list[_Key]] = {}
        for key in extra:
            by_step.setdefault(key[0], []).append(key)
        for key in list(missing):
            candidates = [one for one in by_step.get(key[0], ()) if extra.get(one)]
            if not candidates:
                continue
            # The same value at another time first, then the same time with another value.
            other = min(candidates, key=lambda one: (one[1] != key[1], one[2] != key[2]))
            if other[1] == key[1]:
                self._result.find("different time", match.name, key[0], logged=key[2], found=other[2])
            else:
                self._result.find("different value", match.name, key[0], logged=_value(key), found=_value(other))
            for side, one in ((missing, key), (extra, other)):
                side[one] -= 1
                if not side[one]:
                    del side[one]

    # Everything else

    def _compare_records(self) -> None:
        there = self._there
        found_params, found_tags, listed = there.params, there.tags, there.items()
        found_items = None if listed is None else list(listed)
        params, tags = _Values(first_stands=there.first_param_stands), _Values()
        items: dict[str, _Value] = {}
        times: Counter[str] = Counter()
        unknown = 0
        # Asked after what is there was read, so that it has all of it.
        later = ((record, False) for record in self._expected.later_records())
        for record, must in itertools.chain(self._expected.records(), later):
            if isinstance(record, ParamsLogged):
                for name, value in record.params.items():
                    params.add(name, there.param(name, value), must=must)
            elif isinstance(record, TagsSet):
                for name, text in record.tags.items():
                    tags.add(name, there.tag(name, text), must=must)
            wanted = there.items_for(record)
            if wanted is None:
                unknown += 1
            for item in wanted or ():
                items.setdefault(item.path, _Value(item.path)).add(item, must=must)
                times[item.path] += 1
        self._compare_values("param", params, found_params)
        self._compare_values("tag", tags, found_tags)
        self._compare_items(items, times, found_items, complete=not unknown)
        if unknown:
            self._result.not_compared.append(f"{unknown:,} artifacts, whose local files are gone")

    def _compare_values(self, kind: Literal["param", "tag"], wanted: _Values, found: Any) -> None:
        result = self._result
        if found is None:
            if wanted.values:
                result.not_compared.append(f"{kind}s, which cannot be read there")
            return
        result.compared[f"{kind}s"] = len(wanted.values)
        result.explained[f"{kind}s left out on purpose"] += wanted.left_out
        for key, one in wanted.values.items():
            if key not in found:
                if one.must_be:
                    result.find(f"missing {kind}", one.name, logged=one.must_be[0])
            elif not any(_same(found[key], value) for value in one.any):
                if self._there.is_shared:
                    result.explained[f"{kind}s that others have set first"] += 1
                else:
                    result.find(f"different {kind}", one.name, logged=one.any[0], found=found[key])
        for name in found:
            if name not in wanted.values:
                self._extra(kind, name)

    def _compare_items(
        self, wanted: dict[str, _Value], times: Counter[str], found: Sequence[Item] | None, *, complete: bool
    ) -> None:
        result = self._result
        if found is None:
            if wanted:
                result.not_compared.append("files, which cannot be listed there")
            return
        seen: Counter[str] = Counter()
        for item in found:
            if item.path not in wanted:
                if complete:
                    self._extra("item", item.path)
                continue
            seen[item.path] += 1
            if seen[item.path] > times[item.path]:
                result.find("shown twice", item.path)
            candidates = wanted[item.path].any
            if not any(_is_like(logged, item) for logged in candidates):
                logged = candidates[0]
                if _differ(logged.size_bytes, item.size_bytes):
                    result.find("different size", item.path, logged=logged.size_bytes, found=item.size_bytes)
                else:
                    result.find("different content", item.path, logged=logged.sha256, found=item.sha256)
        for path, one in wanted.items():
            if one.must_be and path not in seen:
                result.find("missing file", path)
        result.compared["items"] = len(wanted)

    def _compare_status(self) -> None:
        there, cursor = self._there, self._expected.cursor
        if there.status is None:
            return
        runs_still = self._expected.runs_still()
        if cursor.closed and cursor.closed_status is not None and not runs_still:
            wanted = there.end_status(cursor.closed_status)
        elif runs_still and not cursor.closed:
            wanted = "running"
        else:
            # Its end is not delivered yet, or just being delivered; or a process has gone on with it since.
            self._result.not_compared.append("the end of the run, which is not delivered yet")
            return
        if there.status != wanted:
            self._result.find("different status", self._result.run_id, logged=wanted, found=there.status)

    def _extra(self, kind: KindOfName, name: str) -> None:
        word = "file" if kind == "item" else kind
        if self._there.adds(kind, name):
            return
        if self._there.is_shared:
            self._result.explained[f"{word}s of others in the same run"] += 1
        else:
            self._result.find(f"extra {word}", name)

    def _explain(self) -> None:
        """Put beside it what the delivery has reported; what was left out and is not in the report is a difference."""
        result, report = self._result, self._expected.cursor.report
        prefix = "points left out: "
        for text, count in list(result.explained.items()):
            reason = text.removeprefix(prefix)
            if text.startswith(prefix) and reason not in report.notes and not result.undelivered:
                result.find("left out without a report", reason, count=count)
        for reason, note in report.notes.items():
            if f"{prefix}{reason}" not in result.explained:
                result.explained[f"{reason} (see the delivery report)"] += note.count
        if report.rejected:
            result.explained["records refused by the backend"] += report.rejected
        for kind, count in report.skipped.items():
            result.explained[f"{kind.replace('_', ' ')} that the backend has no place for"] += count
        if self._expected.damaged:
            result.explained["places in the journal that cannot be read"] += len(self._expected.damaged)
        result.explained = +result.explained


class _Column:
    """The points of one metric as they were logged, in little space."""

    __slots__ = ("optional", "steps", "times", "values")

    def __init__(self) -> None:
        self.steps, self.values, self.times = array("q"), array("d"), array("q")
        self.optional: set[int] = set()

    def add(self, step: int, value: float, time_ns: int, *, must: bool) -> None:
        if not must:
            self.optional.add(len(self.steps))
        self.steps.append(step)
        self.values.append(value)
        self.times.append(time_ns)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Point:
        return Point(self.steps[index], self.values[index], self.times[index])

    def points(self) -> Iterator[Point]:
        return (Point(*one) for one in zip(self.steps, self.values, self.times, strict=True))


def _columns(records: Iterable[MetricsLogged], names: Collection[str]) -> dict[str, _Column]:
    """The points of some metrics, none of which must be there."""
    found: dict[str, _Column] = {}
    for record in records:
        for name, value in record.values.items():
            if name in names:
                found.setdefault(name, _Column()).add(record.step, value, record.time_ns, must=False)
    return found


class _Match:
    """One metric, as it should be and as it is, cancelled out point by point as they come.

    Both come in much the same order, so that what has not found its counterpart yet is little.
    """

    def __init__(self, name: str, column: _Column, there: ReadBack) -> None:
        self.name = name
        self.column = column
        self.missing: Counter[_Key] = Counter()
        self.extra: Counter[_Key] = Counter()
        self.left_out: Counter[str] = Counter()
        self.lost = 0
        self._taken = False
        self._there = there
        self._keeps_times = True
        self._coming = self._next_keys()

    def expected(self) -> Iterator[tuple[int, Point | str]]:
        """What should be there, numbered as it was logged."""
        return enumerate(self._there.metric_points(self.name, self.column.points()))

    def take(self, point: Point) -> None:
        """Take in a point that is there."""
        self._taken = True
        if point.time_ns is None:
            self._keeps_times = False
        key = _key(point)
        if _cancel(self.missing, key):
            return
        wanted = next(self._coming, None)
        if wanted == key:
            return
        self.extra[key] += 1
        if wanted is not None and not _cancel(self.extra, wanted):
            self.missing[wanted] += 1

    def finish(self, *, may_miss: bool) -> None:
        """All that is there was taken in.

        Args:
            may_miss: Whether points may be missing for a reason, so that each must be looked at.
        """
        if not self._taken and not may_miss and not self.column.optional:
            # Counted only: there may be a million of them.
            self.lost = sum(1 for _ in self._coming)
            return
        for wanted in self._coming:
            if not _cancel(self.extra, wanted):
                self.missing[wanted] += 1

    def forget_missing(self, superseded: _Column) -> None:
        """Let go of what is missing and was superseded since the column was read.

        Args:
            superseded: What is by now. What had been before is not in the column.
        """
        if not self.missing and not self.lost:
            return
        since = Counter(map(_key, superseded.points()))
        for index, point in self.expected():
            if not isinstance(point, str) and _cancel(since, _key(self.column[index])):
                if self.lost:
                    self.lost -= 1
                else:
                    _cancel(self.missing, self.normal(point))

    def forget_extra(self, later: _Column) -> None:
        """Let go of what is there and was logged since the column was read.

        Args:
            later: All that was.
        """
        if not self.extra:
            return
        # The whole metric: what a vendor keeps of a point may hang on those before it.
        logged = itertools.chain(self.column.points(), later.points())
        for point in itertools.islice(self._there.metric_points(self.name, logged), len(self.column), None):
            if not isinstance(point, str):
                _cancel(self.extra, self.normal(point))

    def times_expected(self, keys: Collection[_Key]) -> Counter[_Key]:
        """How often each of these should be there."""
        found = (self.normal(point) for _, point in self.expected() if not isinstance(point, str))
        return Counter(key for key in found if key in keys)

    def _next_keys(self) -> Iterator[_Key]:
        for _, point in self.expected():
            if isinstance(point, str):
                self.left_out[point] += 1
            else:
                yield self.normal(point)

    def normal(self, point: Point) -> _Key:
        """A point to look up, without its time where the vendor keeps none."""
        return _key(point if self._keeps_times else point._replace(time_ns=None))


class _Values:
    """Params or tags as they should be, by the vendor's names."""

    def __init__(self, *, first_stands: bool = False) -> None:
        self.values: dict[str, _Value] = {}
        self.left_out = 0
        self._first_stands = first_stands

    def add(self, name: str, wanted: tuple[str, Any] | None, *, must: bool) -> None:
        if wanted is None:
            self.left_out += 1
            return
        key, value = wanted
        one = self.values.setdefault(key, _Value(name))
        if not (must and one.must_be and self._first_stands):
            one.add(value, must=must)


@dataclass
class _Value:
    """One param, tag or file: its name, the value it must have (if it must be there), and others it may have."""

    name: str
    must_be: list[Any] = field(default_factory=list)
    may_be: list[Any] = field(default_factory=list)

    def add(self, value: Any, *, must: bool) -> None:
        """Another value was logged."""
        if must:
            self.must_be = [value]
        else:
            self.may_be.append(value)

    @property
    def any(self) -> list[Any]:
        """All values it may have."""
        return [*self.must_be, *self.may_be]


def _groups(counts: Counter[str]) -> Iterator[list[str]]:
    """Metrics, so many at once that their points are not too many."""
    group: list[str] = []
    points = 0
    for name, count in counts.items():
        if group and points + count > POINTS_AT_ONCE:
            yield group
            group, points = [], 0
        group.append(name)
        points += count
    if group:
        yield group


def _key(point: Point) -> _Key:
    """A point as something to look up; NaN is like NaN, and zero has no sign."""
    value = point.value
    return point.step, _NAN if value != value else _pack(value + 0.0), point.time_ns


_NAN = b"NaN"


def _value(key: _Key) -> float:
    return float("nan") if key[1] == _NAN else float(struct.unpack("<d", key[1])[0])


def _cancel(counter: Counter[_Key], key: _Key) -> bool:
    count = counter.get(key, 0)
    if not count:
        return False
    if count == 1:
        del counter[key]
    else:
        counter[key] = count - 1
    return True


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)


def _is_like(logged: Item, found: Item) -> bool:
    return not _differ(logged.size_bytes, found.size_bytes) and not _differ(logged.sha256, found.sha256)


def _differ(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one != other


def _without_ends(chunk: Chunk) -> Iterator[Deliverable]:
    return (record for record in chunk.records if not isinstance(record, RunEnded))


def _identity(record: Deliverable) -> tuple[Any, ...]:
    if isinstance(record, MetricsLogged):
        return (record.time_ns, record.step)
    return (record.time_ns, lowering.KINDS[type(record)], getattr(record, "name", ""))


def _rejected(path: Path) -> set[tuple[Any, ...]]:
    """What was refused, as the delivery has set it aside: points by time, step and name, the rest by `_identity`."""
    found: set[tuple[Any, ...]] = set()
    if not path.exists():
        return found
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
                kind, record = entry["kind"], entry["record"]
                if kind == "metrics":
                    found.update((record["time_ns"], record["step"], name) for name in record["values"])
                else:
                    found.add((record["time_ns"], kind, record.get("name", "")))
            except (ValueError, KeyError, TypeError, AttributeError):
                # Cut short by a full disk, or changed by hand: it excuses nothing.
                continue
    return found


def _run_info(run: RunDirectory, backend: str, cursor: Cursor) -> RunInfo:
    manifest = run.manifest
    parent_remote_id = None
    if manifest.parent_id is not None:
        parent = RunDirectory(run.path.parent / manifest.parent_id)
        parent_remote_id = parent.cursor(backend).remote_id if parent.exists else None
    return run.info(parent_remote_id, max(cursor.attempts, 1))


def verify_all(runs: Iterable[RunDirectory], backends: Collection[str] | None) -> list[Verification]:
    """Compare several runs with their backends; one that cannot be compared does not keep the others from it.

    Args:
        runs: The runs.
        backends: Only these; default: all that each run was given to.
    """
    found = []
    for run in runs:
        for name in run.backends if backends is None else backends:
            try:
                found.append(verify(run, name))
            except (TrackhubError, OSError) as error:
                found.append(Verification(run.manifest.id, name, "not available", str(error)))
    return found
