"""Bringing one run to one backend: batches, retries, the dead letter and the report.

Apart because it is the only place that calls a backend, and so the only one that catches whatever a backend may raise.
A delivery is a state machine without threads or clocks of its own: `pump` does the next piece of work and says when it
wants to be called again.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, cast

import msgspec

from trackhub import lowering
from trackhub.attempts import Attempts, Highest
from trackhub.backend import Backend, Rewind, RunInfo
from trackhub.cursor import MAX_EXAMPLES, BackendReport, Cursor, NoteCount
from trackhub.errors import BackendUnavailable, RecordRejected, StateLost, TrackhubError
from trackhub.journal import Chunk, JournalReader, JournalRecord, writer_is_alive
from trackhub.private import make_directory, open_file
from trackhub.processing import Pipeline, ProcessorFailed
from trackhub.records import Deliverable, EndStatus, MetricsLogged, RunEnded
from trackhub.redaction import HidesSecrets, hide
from trackhub.rundir import RunDirectory
from trackhub.settings import without_credentials

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0
SHORTEST_RETRY_AFTER_SECONDS = 0.1
LONGEST_RETRY_AFTER_SECONDS = 600.0
IDLE_POLL_SECONDS = 1.0
PARENT_POLL_SECONDS = 0.2
PARENT_PATIENCE_SECONDS = 5.0
CLAIM_POLL_SECONDS = 0.5
ASK_AGAIN_SECONDS = 2.0
HAND_OVER_SECONDS = 30.0
"""Long enough for another process to start on a busy machine and take over."""
MAX_REJECTED_EXAMPLES = 5
STILL_SHOWN = "superseded and still shown"
MAX_DAMAGED_EXAMPLES = 100

_MORE_DAMAGE = re.compile(r"(\d+) more places")
_log = logging.getLogger("trackhub.delivery")
_log.addFilter(HidesSecrets())


class _ParentNotOpen(TrackhubError):
    """The run's parent has to be opened at the backend first."""


@dataclass
class _SplitStep:
    """What the parts of one halved step have in common: the step counts as delivered once, when a part of it is."""

    arrived: bool = False


@dataclass
class _Batch:
    kind: str
    records: list[Deliverable]
    step: _SplitStep | None = None


@dataclass
class _Tally:
    """What became of the records of one chunk. Enters the report with the cursor, so a crash counts nothing twice."""

    delivered: Counter[str] = field(default_factory=Counter)
    lowered: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    points: int = 0
    rejected: int = 0
    rejected_examples: list[str] = field(default_factory=list)
    rejected_lines: list[bytes] = field(default_factory=list)
    superseded: int = 0
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    highest: Highest = field(default_factory=Highest)
    still_shown: Rewind | None = None

    def enter(self, report: BackendReport) -> None:
        """Add all of it to the report."""
        for counts, more in (
            (report.delivered, self.delivered),
            (report.lowered, self.lowered),
            (report.skipped, self.skipped),
        ):
            for kind, count in more.items():
                counts[kind] = counts.get(kind, 0) + count
        report.points += self.points
        report.rejected += self.rejected
        report.superseded += self.superseded
        report.rejected_examples.extend(self.rejected_examples)
        del report.rejected_examples[MAX_REJECTED_EXAMPLES:]
        _enter_notes(report, self.notes)


class Delivery:
    """One run on its way to one backend.

    Args:
        run: The run directory.
        name: The backend's name.
        make_backend: Called once, on the first pump; what it raises suspends this delivery.
        version: The backend's name and version for the report; `make_backend` may still set it.
        clock: Seconds on a clock that does not jump.
        lasting: Whether what the backend has been given outlives this process. If not, nobody goes on from the saved
            cursor, and it is saved only for those who look on.
        hands_over: Whether this process calls `hand_over` on SIGUSR1.
        takes_over: Whether to ask a delivery that makes no progress for the run, until this one has had it once.
    """

    def __init__(
        self,
        run: RunDirectory,
        name: str,
        make_backend: Callable[[], Backend],
        version: str = "",
        clock: Callable[[], float] = time.monotonic,
        *,
        lasting: bool = True,
        hands_over: bool = False,
        takes_over: bool = False,
    ) -> None:
        self.run = run
        self.name = name
        self.suspended = False
        self._make_backend = make_backend
        self.version = version or name
        self._clock = clock
        self._lasting = lasting
        self._hands_over = hands_over
        self.takes_over = takes_over
        self._reader = JournalReader(run.journal)
        self._attempts = Attempts(run.journal)
        self._cursor_file = run.cursor_file(name)
        self._cursor = Cursor()
        self._claimed = False
        self._claim_at = 0.0
        self._ask_at = 0.0
        self._backend: Backend | None = None
        self._pipeline: Pipeline | None = None
        self._touched = False
        self._opened = False
        self._info: RunInfo | None = None
        self._parent_known = False
        self._parent_remote_id: str | None = None
        self._waiting_since: float | None = None
        self._chunk: Chunk | None = None
        self._batches: deque[_Batch | Rewind] = deque()
        self._tally = _Tally()
        self._ended: tuple[int, EndStatus] | None = None
        self._failures = 0
        self._retry_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether the run has ended at this backend and nothing is left to do."""
        return self._claimed and self._cursor.closed

    @property
    def troubled(self) -> bool:
        """Whether it makes no progress: the backend was unavailable when last tried, or the parent run is not open."""
        return self._failures > 0 or self._waiting_since is not None

    def retry_now(self) -> None:
        """Forget the backoff: somebody is waiting."""
        self._retry_at = 0.0

    def pump(self) -> float | None:
        """Do the next piece of work.

        Returns:
            Seconds until there may be more to do: 0 for at once, None for never in this process.
        """
        if self.suspended:
            return None
        wait = (self._retry_at if self._claimed else max(self._retry_at, self._claim_at)) - self._clock()
        if wait > 0:
            return wait
        try:
            if not self.run.exists:
                return None
            if not self.claim():
                if self.takes_over and self._ask_at <= self._clock():
                    self._ask_at = self._clock() + ASK_AGAIN_SECONDS
                    self._cursor_file.ask_to_hand_over()
                return CLAIM_POLL_SECONDS
            progressed = self._step()
            settled = not progressed and self._is_settled()
        except _ParentNotOpen as problem:
            return self._wait_for_parent(str(problem))
        except StateLost as error:
            return self._start_over(str(error))
        except BackendUnavailable as error:
            return self._back_off(str(error) or type(error).__name__, error.retry_after_seconds)
        except OSError as error:
            return self._back_off(f"{type(error).__name__}: {error}", None)
        except (Exception, SystemExit) as error:
            self._suspend(error)
            return None
        if self._failures:
            self._failures = 0
            if self._cursor.report.error is not None:
                self._save_quietly(None)
        if progressed:
            return 0.0
        return None if settled else IDLE_POLL_SECONDS

    def claim(self) -> bool:
        """Become the one delivery of this run to this backend, as `pump` does; False while there is another."""
        if self._claimed:
            return True
        if not self._cursor_file.claim(hands_over=self._hands_over):
            return False
        self._cursor = self._cursor_file.load()
        self._cursor.report.version = self.version
        report = self._cursor.report
        # Of the delivery before this one, which has yet to find out for itself.
        report.suspended = report.error = report.error_since_ns = None
        self._claimed = True
        self.takes_over = False
        return True

    def abandon_after_fork(self) -> None:
        """In a forked child: close the parent's files and do nothing else."""
        self._reader.close()
        self._attempts.close()
        self._cursor_file.abandon_after_fork()

    def release(self) -> None:
        """Let go of everything without ending the run, so that another process can deliver the rest."""
        self._disconnect()
        self._forget_chunk()
        self._reader.close()
        self._attempts.close()
        self._cursor_file.release()
        self._claimed = False
        self._failures = 0
        self._retry_at = 0.0

    def hand_over(self) -> None:
        """Let another process deliver if this one makes no progress, and claim the run again when that one ends."""
        if self._claimed and self.troubled:
            self.release()
            self._claim_at = self._clock() + HAND_OVER_SECONDS

    def _is_settled(self) -> bool:
        """Whether nothing more can come: the run is closed (or never began), and no forked worker still writes it."""
        if not (self._cursor.closed or self._cursor.holders.chief == 0):
            return False
        return not any(writer_is_alive(self.run.journal, writer) for writer in self._reader.segments())

    def _step(self) -> bool:
        """Open, write the next chunk, close; False if there is no hurry to do more."""
        if self._chunk is None:
            self._find_parent()
            # Asked before reading: what was written before the end is then surely read before the end is believed.
            self._ended = self._ending()
            chunk = self._reader.read(self._cursor.position)
            if chunk.empty:
                return self._ended is not None and self._close(*self._ended)
            self._accept(chunk)
        self._open()
        while self._batches:
            self._write_next_batch()
        full = self._commit()
        # A few records at a time, as they come, would keep backend and processor busy: let some more gather. An ended
        # run is closed when the next look finds nothing more.
        return full or self._ending() is not None

    def _accept(self, chunk: Chunk) -> None:
        if chunk.owners and self._cursor.holders.owner:
            # Another process goes on with the run: the backend is told so by being opened again.
            self._disconnect()
        kind_of_backend = type(self._get_backend())
        supported = lowering.supported_kinds(kind_of_backend)
        pipeline = self._get_pipeline()
        info = self._run_info(len(chunk.owners))
        batches: list[_Batch | Rewind] = []
        batch_of: dict[str, _Batch] = {}
        tally = _Tally(highest=Highest(self._cursor.highest_step, self._cursor.highest_before))

        def add(kind: str, records: Iterable[Deliverable]) -> None:
            if kind not in batch_of or (kind_of_backend.keeps_order and batches[-1] is not batch_of[kind]):
                batch = batch_of[kind] = _Batch(kind, [])
                batches.append(batch)
            batch_of[kind].records.extend(records)

        for part in self._attempts.sort_out(chunk, self._cursor.position, tally.highest):
            if part.rewind is not None:
                batches.append(self._as_shown(part.rewind, part.kept))
                batch_of.clear()
            tally.superseded += part.values_left_out
            tally.notes += [
                ("superseded, left out", _describe(record), "a later attempt went on from an earlier step")
                for record in cast(list[Deliverable], part.others_left_out)
            ]
            # Thousands of steps in a row are one stretch.
            for kind_of_record, stretch in groupby(part.kept, key=type):
                if kind_of_record is RunEnded:
                    continue
                logged_kind = lowering.KINDS[kind_of_record]
                records = cast(Iterable[Deliverable], stretch)
                if "file" in kind_of_record.__annotations__:
                    records = self._whose_files_may_be_read(logged_kind, records, tally)
                if pipeline.handles(kind_of_record):
                    records = pipeline.process(kind_of_record, records)
                    if not records:
                        continue
                if logged_kind in supported:
                    add(logged_kind, records)
                    continue
                for record in records:
                    shown = lowering.lower(record, supported, info)
                    (tally.lowered if shown else tally.skipped)[logged_kind] += 1
                    for final in shown:
                        add(lowering.KINDS[type(final)], [final])
        tally.notes += pipeline.drain_notes()
        self._batches = deque(batches)
        self._tally = tally
        self._chunk = chunk

    def _as_shown(self, rewind: Rewind, records: Iterable[JournalRecord]) -> Rewind:
        """A rewind with the names that metrics have at the backend.

        Args:
            rewind: By their names in the journal.
            records: What the attempt goes on with, each of those metrics among them.
        """
        if not rewind.metrics or not self._get_pipeline().handles(MetricsLogged):
            return rewind
        # One of its own: what it is asked here is not delivered.
        pipeline = Pipeline(self._get_backend().options.processors)
        left, shown = dict(rewind.metrics), dict[str, int]()
        for record in records:
            if not left:
                break
            if not isinstance(record, MetricsLogged) or left.keys().isdisjoint(record.values):
                continue
            # Of this very step it may be left out, and be shown from a later one on: step 0 is of every rhythm.
            found = pipeline.names_shown(msgspec.structs.replace(record, step=0)) | pipeline.names_shown(record)
            for name in left.keys() & record.values.keys():
                step = left.pop(name)
                for new in found.get(name, [name]):
                    shown[new] = min(step, shown.get(new, step))
        return replace(rewind, metrics={**shown, **left})

    def _whose_files_may_be_read(
        self, kind: str, records: Iterable[Deliverable], tally: _Tally
    ) -> Iterator[Deliverable]:
        for record in records:
            if self.run.lies_inside(record.file):  # type: ignore[union-attr]
                yield record
            else:
                self._set_aside(kind, record, "its file is not in the run directory, or is another user's", tally)

    def _write_next_batch(self) -> None:
        batch = self._batches[0]
        if isinstance(batch, Rewind):
            if not self._get_backend().rewind(batch):
                self._tally.still_shown = batch
            self._batches.popleft()
            return
        try:
            getattr(self._get_backend(), f"write_{batch.kind}")(batch.records)
        except RecordRejected as error:
            halves = _halve(batch)
            if halves is None:
                self._set_aside(batch.kind, batch.records[0], str(error), self._tally)
            self._batches.popleft()
            self._batches.extendleft(reversed(halves or ()))
            return
        self._batches.popleft()
        tally = self._tally
        if batch.step is None:
            tally.delivered[batch.kind] += len(batch.records)
        elif not batch.step.arrived:
            batch.step.arrived = True
            tally.delivered[batch.kind] += 1
        tally.points += sum(len(record.values) for record in batch.records if isinstance(record, MetricsLogged))

    def _set_aside(self, kind: str, record: Deliverable, reason: str, tally: _Tally) -> None:
        """Keep a record that the backend will never take for where people can find it."""
        reason = hide(reason)
        _log.warning("%s: run %s: rejected %s: %s", self.version, self.run.path.name, kind, reason)
        tally.rejected += 1
        if tally.rejected <= MAX_REJECTED_EXAMPLES:
            tally.rejected_examples.append(f"{kind} {_describe(record)}: {reason}")
        line = {"kind": kind, "reason": reason, "record": _as_dict(record)}
        # The standard library's JSON keeps NaN and infinities, which are a common reason to be refused.
        tally.rejected_lines.append(json.dumps(line, default=_as_dict).encode(errors="backslashreplace") + b"\n")

    def _commit(self) -> bool:
        """Remember that the chunk has arrived; True if it was full, so that there is probably more."""
        chunk, cursor, tally = self._chunk, self._cursor, self._tally
        assert chunk is not None
        state = self._get_backend().checkpoint()
        if tally.rejected_lines:
            make_directory(self.run.rejected)
            path = self.run.rejected / f"{self.name}.jsonl"
            with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
                file.write(b"".join(tally.rejected_lines))
            tally.rejected_lines.clear()
        if state is not None:
            cursor.state = dict(state)
        cursor.advance(chunk)
        _note_damage(cursor.report.damaged, chunk.damaged)
        cursor.highest_step, cursor.highest_before = tally.highest.step, tally.highest.before
        tally.enter(cursor.report)
        if tally.still_shown is not None:
            self._note_still_shown(tally.still_shown)
        self._forget_chunk()
        if self._lasting or not chunk.full:
            self._save()
        return chunk.full

    def _note_still_shown(self, rewind: Rewind) -> None:
        """Have the report say how much a backend shows that a later attempt has superseded."""
        report, name = self._cursor.report, self.run.path.name
        found = self._attempts.superseded()
        shown = sum(found.values()) - report.superseded
        if shown > 0:
            of = [(f"attempt {number}", f"{count:,} values") for number, count in sorted(found.items())]
            report.notes[STILL_SHOWN] = NoteCount(shown, of[:MAX_EXAMPLES])
        elif rewind.attempt == 1:
            detail = f"what other run directories have delivered after step {rewind.after_step} is not counted here"
            report.notes[STILL_SHOWN] = NoteCount(1, [(name, detail)])

    def _forget_chunk(self) -> None:
        self._chunk = None
        self._batches.clear()
        self._tally = _Tally()

    def _save(self) -> None:
        report = self._cursor.report
        if self._backend is not None:
            _enter_notes(report, self._backend.notes.drain())
        report.error = report.error_since_ns = None
        report.updated_ns = time.time_ns()
        self._cursor_file.save(self._cursor, durably=self._lasting)

    def _save_quietly(self, error: str | None) -> None:
        """Save why nothing is being delivered now (None: it is again); a disk that refuses is no further trouble."""
        report = self._cursor.report
        if error is None:
            report.error_since_ns = None
        else:
            report.error_since_ns = report.error_since_ns or time.time_ns()
        report.error = error
        report.updated_ns = time.time_ns()
        try:
            self._cursor_file.save(self._cursor)
        except OSError as problem:
            _log.warning("%s: run %s: the cursor cannot be saved: %s", self.version, self.run.path.name, problem)

    def _ending(self) -> tuple[int, EndStatus] | None:
        """For whom the run has ended, and how: as it said, or "killed" if its process vanished; None if it runs."""
        holders = self._cursor.holders
        status = holders.status(lambda writer: writer_is_alive(self.run.journal, writer))
        return None if status is None else (holders.chief, status)

    def _close(self, owner: int, status: EndStatus) -> bool:
        cursor = self._cursor
        if cursor.closed_owner == owner:
            return False
        self._open()
        backend = self._get_backend()
        backend.close(status)
        state = backend.checkpoint()
        if state is not None:
            cursor.state = dict(state)
        cursor.closed_owner, cursor.closed_status = owner, status
        self._save()
        self._disconnect()
        return True

    def _open(self) -> None:
        if self._opened:
            return
        info = self._run_info()
        backend = self._get_backend()
        # Set first: what `open` began before it raised is let go of, too.
        self._touched = True
        # Before: a plugin that never comes back from `open`, or ends the process in it, is then named with its version.
        self._save_quietly(self._cursor.report.error)
        opened = backend.open(info, self._cursor.state)
        self._opened = True
        self._cursor.remote_id = opened.remote_id
        self._cursor.link = None if opened.link is None else without_credentials(opened.link)
        self._cursor.state = dict(opened.state)
        self._save()
        _log.info("%s: run %s: open (%s)", self.version, info.id, opened.link or opened.remote_id)

    def _disconnect(self) -> None:
        """Let go of the backend; the next record makes and opens it again."""
        backend, self._backend = self._backend, None
        touched, self._touched = self._touched, False
        self._opened = False
        self._info = None
        if backend is None or not touched:
            return
        try:
            backend.disconnect()
        except Exception:
            _log.exception("%s: run %s: disconnecting failed", self.version, self.run.path.name)

    def _get_backend(self) -> Backend:
        if self._backend is None:
            self._backend = self._make_backend()
            self._cursor.report.version = self._full_version()
        return self._backend

    def _full_version(self) -> str:
        """Whom people are told of if the delivery falls silent: the backend, and processors of other packages."""
        strangers = self._pipeline.strangers if self._pipeline else ""
        return f"{self.version} with {strangers}" if strangers else self.version

    def _get_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            self._pipeline = Pipeline(self._get_backend().options.processors)
            if self._pipeline.strangers:
                # As before `open`: one that never comes back, or ends the process, is then named.
                self._cursor.report.version = self._full_version()
                self._save_quietly(self._cursor.report.error)
        return self._pipeline

    def _run_info(self, new_owners: int = 0) -> RunInfo:
        """What the backend is told."""
        if self._info is None:
            self._info = self.run.info(self._parent_remote_id, max(self._cursor.attempts + new_owners, 1))
        return self._info

    def _find_parent(self) -> None:
        """Find out under what id the backend knows the run's parent, which has to be opened there first."""
        if self._parent_known:
            return
        parent_id = self.run.manifest.parent_id
        if parent_id is not None:
            parent = RunDirectory(self.run.path.parent / parent_id)
            if parent.exists and self.name in parent.backends:
                cursor = parent.cursor(self.name)
                self._parent_remote_id = cursor.remote_id
                # A backend may have no ids of its own; then that something was delivered tells that the run is open.
                if cursor.remote_id is None and not cursor.position:
                    raise _ParentNotOpen(f"its parent run {parent_id} has not been opened there yet")
        self._parent_known = True
        self._waiting_since = None

    def _wait_for_parent(self, problem: str) -> float:
        now = self._clock()
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        if waited > PARENT_PATIENCE_SECONDS and self._cursor.report.error != problem:
            self._save_quietly(problem)
        return min(max(waited / 4, PARENT_POLL_SECONDS), 10 * PARENT_POLL_SECONDS)

    def _back_off(self, message: str, retry_after_seconds: float | None) -> float:
        self._failures += 1
        message = hide(message)
        if retry_after_seconds is not None:
            seconds = min(max(retry_after_seconds, SHORTEST_RETRY_AFTER_SECONDS), LONGEST_RETRY_AFTER_SECONDS)
        else:
            longest = min(FIRST_BACKOFF_SECONDS * 2 ** min(self._failures - 1, 16), LAST_BACKOFF_SECONDS)
            seconds = longest * random.uniform(0.7, 1.0)
        self._retry_at = self._clock() + seconds
        if self._claimed:
            if self._cursor.report.error != message:
                _log.warning("%s: run %s: %s; trying again", self.version, self.run.path.name, message)
            self._save_quietly(message)
        return seconds

    def _start_over(self, message: str) -> float:
        """Forget how far the backend was: what it had is gone."""
        message = hide(message)
        self._disconnect()
        self._forget_chunk()
        if not self._cursor.position:
            self._cursor.state = {}
            return self._back_off(message, None)
        _log.warning("%s: run %s: %s; delivering it from its start", self.version, self.run.path.name, message)
        self._cursor = Cursor(report=BackendReport(version=self.version))
        self._cursor.report.notes["delivered again from the start"] = NoteCount(1, [(self.run.path.name, message)])
        return 0.0

    def _suspend(self, error: BaseException) -> None:
        part = "processor" if isinstance(error, ProcessorFailed) else "backend"
        _log.error(
            "%s: run %s: suspended by an error of the %s", self.version, self.run.path.name, part, exc_info=error
        )
        self.suspended = True
        if self._claimed:
            whose = str(error) if part == "processor" else f"{self.version}: {type(error).__name__}: {error}"
            self._cursor.report.suspended, self._cursor.report.failed_part = hide(whose), part
            self._save_quietly(None)
        self.release()


def _note_damage(noted: list[str], found: Sequence[str]) -> None:
    """Keep the first sentences and count the others: of damage there may be any amount."""
    earlier = _MORE_DAMAGE.fullmatch(noted[-1]) if noted else None
    more = 0
    if earlier is not None:
        more = int(earlier[1])
        noted.pop()
    room = MAX_DAMAGED_EXAMPLES - len(noted)
    noted.extend(found[:room])
    more += len(found[room:])
    if more:
        noted.append(f"{more} more places")


def _halve(batch: _Batch) -> tuple[_Batch, _Batch] | None:
    """Split a batch, down to single metrics of one step; None if there is nothing left to split."""
    records = batch.records
    middle = len(records) // 2
    if middle:
        return _Batch(batch.kind, records[:middle]), _Batch(batch.kind, records[middle:])
    record = records[0]
    if not isinstance(record, MetricsLogged) or len(record.values) < 2:
        return None
    items = list(record.values.items())
    middle = len(items) // 2
    step = batch.step or _SplitStep()
    parts = [MetricsLogged(record.time_ns, record.step, dict(half)) for half in (items[:middle], items[middle:])]
    return _Batch(batch.kind, [parts[0]], step), _Batch(batch.kind, [parts[1]], step)


def _enter_notes(report: BackendReport, notes: Iterable[tuple[str, str, str]]) -> None:
    for reason, subject, detail in notes:
        report.notes.setdefault(hide(reason), NoteCount()).add(hide(subject), hide(detail))


def _as_dict(record: Any) -> dict[str, Any]:
    return msgspec.structs.asdict(record)


def _describe(record: Deliverable) -> str:
    if isinstance(record, MetricsLogged):
        return f"{', '.join(record.values)} at step {record.step}"
    name = getattr(record, "name", None)
    return name if isinstance(name, str) else ", ".join(getattr(record, "params", None) or getattr(record, "tags", {}))
