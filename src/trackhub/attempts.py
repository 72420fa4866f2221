"""Which attempt at a run wrote what, and what later attempts supersede of it.

Apart from the delivery because readers of the journal ask the same: a run that was killed and started again from a
checkpoint has steps twice in its journal, and shows one curve. Memory grows with the number of names of metrics, not
with the number of points.

An attempt is what one owner of the run writes, with its workers and the ranks that a launcher started beside it. Ranks
start in any order: one that starts again begins another attempt, and an owner that comes later joins it. An attempt
supersedes, of earlier ones,

- everything with a step later than its `resume_step`, if it has said one,
- each metric that it logs, from the first step on that it logs it with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trackhub.backend import Rewind
from trackhub.journal import (
    Chunk,
    JournalReader,
    JournalRecord,
    Position,
    RankStarted,
    WriterResumed,
    WriterStarted,
)
from trackhub.records import MetricsLogged

_FIRST_FRAME = 24


@dataclass
class _Attempt:
    """What is known of one attempt.

    Args:
        number: 1 for the first.
        time_ns: When its owner began or, as long as there is none, the first of its ranks.
        owner: The number of its owner's writer; None as long as there is none.
        resume_step: The step it has said that it goes on from.
        firsts: Name of a metric -> the step it was first logged with.
        position: How far the journal has been read for `firsts`.
    """

    number: int
    time_ns: int
    owner: int | None = None
    resume_step: int | None = None
    firsts: dict[str, int] = field(default_factory=dict)
    position: Position = field(default_factory=dict)


@dataclass
class Part:
    """A stretch of a chunk that one attempt wrote.

    Args:
        rewind: What it supersedes of what was delivered before it; None for nothing.
        kept: What no later attempt supersedes.
        points_left_out: Metrics that one does.
        others_left_out: Other records that one does.
    """

    rewind: Rewind | None
    kept: list[JournalRecord]
    points_left_out: list[MetricsLogged] = field(default_factory=list)
    others_left_out: list[JournalRecord] = field(default_factory=list)

    @property
    def values_left_out(self) -> int:
        """How many metric values one supersedes."""
        return sum(len(point.values) for point in self.points_left_out)


@dataclass
class Highest:
    """The highest steps of the metrics read for delivery so far; None where that is not known.

    Args:
        step: Of all.
        before: Of those before the last attempt, or the last rank ahead of its owner, began.
    """

    step: int | None = None
    before: int | None = None

    def begin(self) -> None:
        """Another attempt begins."""
        self.before = self.step

    def take(self, records: Iterable[JournalRecord]) -> None:
        """These are delivered."""
        steps = [record.step for record in records if isinstance(record, MetricsLogged)]
        if steps:
            self.step = max(steps) if self.step is None else max(self.step, *steps)


class Attempts:
    """The attempts at one run, as the journal has them so far.

    Args:
        journal: The run's `journal` directory.
    """

    def __init__(self, journal: Path) -> None:
        self._reader = JournalReader(journal)
        self._attempts: list[_Attempt] = []
        self._starts: dict[int, WriterStarted | None] = {}
        self._numbers: dict[int, int] = {}
        self._rank_began_ns: dict[int, int] = {}
        self._last_owned = 0
        self._begun: dict[int, set[str]] = {}

    def close(self) -> None:
        """Close the journal."""
        self._reader.close()

    def look(self) -> int:
        """Look for attempts that have begun since; gives their number in all."""
        segments = self._reader.segments()
        fresh = False
        for writer in segments:
            if writer in self._starts:
                continue
            start = {str(writer): (segments[writer][0], _FIRST_FRAME)}
            chunk = self._reader.read(start, max_points=1, only=writer)
            if chunk.empty:
                continue
            self._starts[writer] = chunk.began.get(writer)
            fresh = True
        if fresh:
            self._number_all()
        return len(self._attempts)

    def number_of(self, writer: int) -> int:
        """The attempt that a writer belongs to."""
        return self._numbers.get(writer, max(self._last_owned, 1))

    def _number_all(self) -> None:
        """Tell the attempts apart, from the first frames of all writers in their order."""
        self._attempts.clear()
        self._begun.clear()
        last_owned = 0
        of_rank: dict[int, tuple[int, int]] = {}
        for writer, started in sorted(self._starts.items()):
            number = max(last_owned, 1)
            if isinstance(started, RankStarted) and started.rank and started.role != "owner":
                if started.role == "rank":
                    before = of_rank.get(started.rank, (0, 0))[0]
                    of_rank[started.rank] = max(number, before + 1), started.time_ns
                # A worker goes with its rank, whose names it shares.
                number, self._rank_began_ns[writer] = of_rank.get(started.rank, (number, started.time_ns))
            elif started is not None and started.role == "owner":
                # An owner of several may find that its ranks have begun the attempt; one alone has none.
                earlier = last_owned if isinstance(started, RankStarted) else len(self._attempts)
                number = last_owned = earlier + 1
            self._numbers[writer] = number
            if started is None or started.role == "worker":
                continue
            if number > len(self._attempts):
                self._attempts.append(_Attempt(number, started.time_ns))
            if started.role == "owner":
                attempt = self._attempts[number - 1]
                attempt.owner, attempt.time_ns, attempt.resume_step = writer, started.time_ns, _resume_step(started)
        self._last_owned = last_owned

    def sort_out(self, chunk: Chunk, since: Position, highest: Highest) -> list[Part]:
        """Take a chunk apart: what each attempt in it supersedes, and what later ones have superseded of it.

        Args:
            chunk: Records that are to be delivered.
            since: The position the chunk was read from.
            highest: As of that position; changed to what it is behind the chunk.
        """
        if self.look() < 2 and all(_resume_step(start) is None for start in chunk.began.values()):
            highest.take(chunk.records)
            return [Part(None, chunk.records)]
        parts: list[Part] = []
        stretches = dict(chunk.by_writer())
        for writer in sorted({*stretches, *chunk.began}):
            number = self.number_of(writer)
            records = stretches.get(writer, [])
            part = self.kept(number, records)
            if number <= len(self._attempts):
                attempt = self._attempts[number - 1]
                is_ahead = attempt.owner is None or writer < attempt.owner
                if number > 1 and writer in chunk.began and (is_ahead or writer == attempt.owner):
                    highest.begin()
                metrics = self._logged_anew(attempt, records, since, highest.before)
                after_step = attempt.resume_step if writer in chunk.owners else None
                if metrics or after_step is not None:
                    # What a rank has logged ahead of its owner is not to be called earlier.
                    time_ns = self._rank_began_ns[writer] if is_ahead and number > 1 else attempt.time_ns
                    part.rewind = Rewind(number, time_ns, after_step, metrics)
            # Also what is left out now: it may have arrived before, and that been forgotten.
            highest.take(records)
            parts.append(part)
        return parts

    def kept_of(self, chunk: Chunk) -> list[tuple[int, Part]]:
        """The number of the attempt that wrote it, and what of it no later attempt supersedes, for parts of a chunk."""
        if self.look() < 2:
            return [(1, Part(None, chunk.records))]
        numbered = [(self.number_of(writer), records) for writer, records in chunk.by_writer()]
        return [(number, self.kept(number, records)) for number, records in numbered]

    def kept(self, number: int, records: list[JournalRecord]) -> Part:
        """What no later attempt supersedes of what an attempt has logged, and what one does.

        Args:
            number: The attempt's.
            records: What it has logged.
        """
        later = self._attempts[number:]
        for attempt in later:
            self._read_firsts(attempt)
        after_step = min((one.resume_step for one in later if one.resume_step is not None), default=None)
        firsts: dict[str, int] = {}
        for attempt in later:
            for name, first in attempt.firsts.items():
                firsts[name] = min(first, firsts.get(name, first))
        if after_step is None and not firsts:
            return Part(None, records)
        part = Part(None, [])
        for record in records:
            step = getattr(record, "step", None)
            late = step is not None and after_step is not None and step > after_step
            if isinstance(record, MetricsLogged):
                values = {} if late else _below(firsts, record)
                if len(values) == len(record.values):
                    part.kept.append(record)
                    continue
                if values:
                    part.kept.append(MetricsLogged(record.time_ns, record.step, values))
                gone = {name: value for name, value in record.values.items() if name not in values}
                part.points_left_out.append(MetricsLogged(record.time_ns, record.step, gone))
            else:
                (part.others_left_out if late else part.kept).append(record)
        return part

    def superseded(self) -> dict[int, int]:
        """Attempt -> how many of its metric values are superseded. Reads the whole journal."""
        self.look()
        found: dict[int, int] = {}
        for attempt in self._attempts[:-1]:
            count = 0
            for writer in self._writers_of(attempt.number):
                for records in self._stretches(writer, {}):
                    count += self.kept(attempt.number, records).values_left_out
            if count:
                found[attempt.number] = count
        return found

    def _logged_anew(
        self, attempt: _Attempt, records: list[JournalRecord], since: Position, highest_before: int | None
    ) -> dict[str, int]:
        """The metrics that an attempt begins to log in these records, with the step before the first."""
        points = [record for record in records if isinstance(record, MetricsLogged)]
        if attempt.number == 1 or not points:
            return {}
        if highest_before is not None and all(point.step > highest_before for point in points):
            # Which ones it begins here is only looked up if it ever comes back below.
            self._begun.pop(attempt.number, None)
            return {}
        if attempt.number not in self._begun:
            self._begun[attempt.number] = self._begun_before(attempt, since)
        begun = self._begun[attempt.number]
        found: dict[str, int] = {}
        for point in points:
            if not begun.issuperset(point.values):
                found.update((name, point.step - 1) for name in point.values if name not in begun)
                begun.update(point.values)
        return {name: step for name, step in found.items() if highest_before is None or step < highest_before}

    def _begun_before(self, attempt: _Attempt, end: Position) -> set[str]:
        """The metrics that an attempt had begun to log up to a position."""
        names: set[str] = set()
        for writer in self._writers_of(attempt.number):
            for records in self._stretches(writer, {}, end):
                for record in records:
                    if isinstance(record, MetricsLogged):
                        names.update(record.values)
        return names

    def _read_firsts(self, attempt: _Attempt) -> None:
        """Learn what an attempt has begun to log since this was last asked."""
        firsts = attempt.firsts
        for writer in self._writers_of(attempt.number):
            for records in self._stretches(writer, attempt.position):
                for record in records:
                    if isinstance(record, MetricsLogged) and not firsts.keys() >= record.values.keys():
                        for name in record.values:
                            firsts.setdefault(name, record.step)

    def _writers_of(self, number: int) -> list[int]:
        return [writer for writer in self._reader.segments() if self.number_of(writer) == number]

    def _stretches(self, writer: int, position: Position, end: Position | None = None) -> Iterator[list[JournalRecord]]:
        """The records of one writer from a position on, which goes along, up to an end."""
        key = str(writer)
        while True:
            place: Position = {key: position[key]} if key in position else {}
            chunk = self._reader.read(place, only=writer, end=end)
            if chunk.empty:
                return
            position[key] = chunk.position[key]
            yield chunk.records


def _resume_step(started: WriterStarted) -> int | None:
    return started.resume_step if isinstance(started, WriterResumed) else None


def _below(firsts: Mapping[str, int], record: MetricsLogged) -> dict[str, float]:
    """The values of metrics that are not logged anew from this step, or an earlier one, on."""
    step = record.step
    return {name: value for name, value in record.values.items() if step < firsts.get(name, step + 1)}
