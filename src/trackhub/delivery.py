"""Bringing one run to one backend: batches, retries, the dead letter and the report.

Apart because it is the only place that calls a backend, and so the only one that catches whatever a backend may raise.
A delivery is a state machine without threads or clocks of its own: `pump` does the next piece of work and says when it
wants to be called again.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from trackhub import lowering
from trackhub.backend import Backend, RunInfo
from trackhub.cursor import BackendReport, Cursor, NoteCount
from trackhub.errors import BackendUnavailable, RecordRejected, StateLost, TrackhubError
from trackhub.journal import Chunk, JournalReader, writer_is_alive
from trackhub.records import Deliverable, EndStatus, MetricsLogged, RunEnded
from trackhub.rundir import RunDirectory

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 600.0
PARENT_POLL_SECONDS = 0.2
CLAIM_POLL_SECONDS = 0.5

_log = logging.getLogger("trackhub.delivery")
_encode_json = msgspec.json.Encoder(enc_hook=str).encode


class _Waiting(TrackhubError):
    """Something of ours has to happen first; not worth a line in the report."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class Delivery:
    """One run on its way to one backend.

    Args:
        run: The run directory.
        name: The backend's name.
        make_backend: Called once, on the first pump; what it raises suspends this delivery.
        version: The backend's name and version for the report.
        clock: Seconds on a clock that does not jump.
    """

    def __init__(
        self,
        run: RunDirectory,
        name: str,
        make_backend: Callable[[], Backend],
        version: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run
        self.name = name
        self.suspended = False
        self._make_backend = make_backend
        self._version = version
        self._clock = clock
        self._reader = JournalReader(run.journal)
        self._cursor_file = run.cursor_file(name)
        self._backend: Backend | None = None
        self._supported: frozenset[str] = frozenset()
        self._info: RunInfo | None = None
        self._opened = False
        self._chunk: Chunk | None = None
        self._batches: deque[tuple[str, list[Deliverable]]] = deque()
        self._failures = 0
        self._retry_at = 0.0
        self._claimed = False

    @property
    def closed(self) -> bool:
        """Whether the run has ended at this backend and nothing is left to do."""
        return self._claimed and self._cursor.closed

    @property
    def troubled(self) -> bool:
        """Whether it is backing off: the last attempt found the backend unavailable."""
        return self._failures > 0

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
        wait = self._retry_at - self._clock()
        if wait > 0:
            return wait
        try:
            if not self._claim():
                return CLAIM_POLL_SECONDS
            progressed = self._step()
        except _Waiting as waiting:
            return waiting.seconds
        except StateLost as error:
            return self._start_over(str(error))
        except BackendUnavailable as error:
            return self._back_off(str(error) or type(error).__name__, error.retry_after_seconds)
        except OSError as error:
            return self._back_off(f"{type(error).__name__}: {error}", None)
        except Exception as error:
            self._suspend(error)
            return None
        self._failures = 0
        if progressed:
            return 0.0
        return None if self.closed else 1.0

    def release(self) -> None:
        """Let go of everything without ending the run, so that another process can deliver the rest."""
        if self._backend is not None and self._opened:
            self._opened = False
            try:
                self._backend.disconnect()
            except Exception:
                _log.exception("%s: run %s: disconnecting failed", self._version, self.run.path.name)
        self._reader.close()
        self._cursor_file.release()
        self._claimed = False

    def _claim(self) -> bool:
        if self._claimed:
            return True
        if not self._cursor_file.claim():
            return False
        self._claimed = True
        self._cursor = self._cursor_file.load()
        self._cursor.report.version = self._version
        self._cursor.report.suspended = None
        return True

    def _step(self) -> bool:
        """Open, write the next batch, or close; False if there was nothing to do."""
        if self._chunk is None:
            # Asked before reading: what was written before the end is then surely read before the end is believed.
            ending = self._ending()
            chunk = self._reader.read(self._cursor.position)
            if chunk.empty:
                return ending is not None and self._close(*ending)
            self._accept(chunk)
        self._open()
        while self._batches:
            self._write_next_batch()
        self._commit()
        return True

    def _accept(self, chunk: Chunk) -> None:
        batches: list[tuple[str, list[Deliverable]]] = []
        batch_of: dict[str, list[Deliverable]] = {}
        lowered: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        if chunk.owners and self._cursor.owner:
            # Another process goes on with the run: the backend is told so by being opened again.
            self.release_backend()
            self._info = None
        info = self._run_info(len(chunk.owners))
        keeps_order = type(self._get_backend()).keeps_order
        for record in chunk.records:
            if isinstance(record, RunEnded):
                continue
            shown = lowering.lower(record, self._supported, info)
            logged_kind = lowering.KINDS[type(record)]
            if logged_kind not in self._supported:
                (lowered if shown else skipped)[logged_kind] += 1
            for final in shown:
                kind = lowering.KINDS[type(final)]
                if kind not in batch_of or (keeps_order and batches[-1][0] != kind):
                    batch_of[kind] = []
                    batches.append((kind, batch_of[kind]))
                batch_of[kind].append(final)
        for counts, more in ((self._cursor.report.lowered, lowered), (self._cursor.report.skipped, skipped)):
            for kind, count in more.items():
                counts[kind] = counts.get(kind, 0) + count
        self._batches = deque(batches)
        self._chunk = chunk

    def _write_next_batch(self) -> None:
        kind, records = self._batches[0]
        backend = self._get_backend()
        try:
            getattr(backend, f"write_{kind}")(records)
        except RecordRejected as error:
            halves = _halve(records)
            if halves is None:
                self._set_aside(kind, records[0], str(error))
                self._batches.popleft()
            else:
                self._batches.popleft()
                self._batches.extendleft([(kind, halves[1]), (kind, halves[0])])
            return
        self._batches.popleft()
        report = self._cursor.report
        report.delivered[kind] = report.delivered.get(kind, 0) + len(records)
        if kind == "metrics":
            report.points += sum(len(record.values) for record in records if isinstance(record, MetricsLogged))

    def _commit(self) -> None:
        """Remember that the chunk has arrived."""
        chunk, cursor, backend = self._chunk, self._cursor, self._get_backend()
        assert chunk is not None
        state = backend.checkpoint()
        if state is not None:
            cursor.state = dict(state)
        cursor.position = chunk.position
        cursor.closed_owner = 0
        for owner in chunk.owners:
            cursor.owner = max(cursor.owner, owner)
            cursor.attempts += 1
        for owner, end in chunk.ends.items():
            if owner == cursor.owner:
                cursor.ended_owner, cursor.ended_status = owner, end.status
        cursor.report.damaged.extend(chunk.damaged)
        self._chunk = None
        self._save()

    def _save(self) -> None:
        report = self._cursor.report
        if self._backend is not None:
            for reason, subject, detail in self._backend.notes.drain():
                report.notes.setdefault(reason, NoteCount()).add(subject, detail)
        report.error = None
        report.error_since_ns = None
        report.updated_ns = time.time_ns()
        self._cursor_file.save(self._cursor)

    def _ending(self) -> tuple[int, EndStatus] | None:
        """The owner that ended the run, and how: as it said, or "killed" if its process vanished; None while it runs."""
        cursor = self._cursor
        if cursor.owner == 0:
            return None
        if cursor.ended_owner == cursor.owner and cursor.ended_status is not None:
            return cursor.owner, cursor.ended_status
        if writer_is_alive(self.run.journal, cursor.owner):
            return None
        return cursor.owner, "killed"

    def _close(self, owner: int, status: EndStatus) -> bool:
        cursor = self._cursor
        if cursor.closed_owner == owner:
            return False
        self._open()
        backend = self._get_backend()
        backend.close(status)
        cursor.closed_owner, cursor.closed_status = owner, status
        state = backend.checkpoint()
        if state is not None:
            cursor.state = dict(state)
        self._save()
        self.release_backend()
        return True

    def release_backend(self) -> None:
        """Disconnect from the backend; the next record opens it again."""
        if self._backend is not None and self._opened:
            self._opened = False
            self._backend.disconnect()
            self._backend = None

    def _get_backend(self) -> Backend:
        if self._backend is None:
            self._backend = self._make_backend()
        return self._backend

    def _run_info(self, new_owners: int = 0) -> RunInfo:
        """What the backend is told. Also finds out what it supports, which needs the backend but not its vendor."""
        self._supported = lowering.supported_kinds(type(self._get_backend()))
        if self._info is None:
            manifest = self.run.manifest
            self._info = RunInfo(
                id=manifest.id,
                name=manifest.name,
                project=manifest.project,
                created_ns=manifest.created_ns,
                directory=self.run.path.absolute(),
                parent_remote_id=self._parent_remote_id(manifest.parent_id),
                attempt=max(self._cursor.attempts + new_owners, 1),
                working_directory=Path(manifest.working_directory),
            )
        return self._info

    def _parent_remote_id(self, parent_id: str | None) -> str | None:
        if parent_id is None:
            return None
        parent = RunDirectory(self.run.path.parent / parent_id)
        if not parent.exists or self.name not in parent.backends:
            return None
        remote_id = parent.cursor(self.name).remote_id
        if remote_id is None:
            raise _Waiting(PARENT_POLL_SECONDS)
        return remote_id

    def _open(self) -> None:
        if self._opened:
            return
        info = self._run_info()
        opened = self._get_backend().open(info, self._cursor.state)
        self._opened = True
        self._cursor.remote_id, self._cursor.link = opened.remote_id, opened.link
        self._cursor.state = dict(opened.state)
        self._save()
        _log.info("%s: run %s: open (%s)", self._version, info.id, opened.link or opened.remote_id)

    def _back_off(self, message: str, retry_after_seconds: float | None) -> float:
        self._failures += 1
        if retry_after_seconds is not None:
            seconds = min(max(retry_after_seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)
        else:
            longest = min(FIRST_BACKOFF_SECONDS * 2 ** min(self._failures - 1, 16), LAST_BACKOFF_SECONDS)
            seconds = longest * random.uniform(0.7, 1.0)  # noqa: S311
        self._retry_at = self._clock() + seconds
        report = self._cursor.report
        if report.error != message:
            _log.warning("%s: run %s: %s; trying again", self._version, self.run.path.name, message)
        report.error = message
        report.error_since_ns = report.error_since_ns or time.time_ns()
        report.updated_ns = time.time_ns()
        self._save_quietly()
        return seconds

    def _start_over(self, message: str) -> float:
        """Forget how far the backend was: what it had is gone."""
        if not self._cursor.position:
            return self._back_off(message, None)
        _log.warning("%s: run %s: %s; delivering it from its start", self._version, self.run.path.name, message)
        self.release_backend()
        self._chunk = None
        self._batches.clear()
        self._info = None
        self._cursor = Cursor(report=BackendReport(version=self._version))
        self._cursor.report.notes["delivered again from the start"] = NoteCount(1, [(self.run.path.name, message)])
        return 0.0

    def _save_quietly(self) -> None:
        try:
            self._cursor_file.save(self._cursor)
        except OSError as error:
            _log.warning("%s: run %s: the cursor cannot be saved: %s", self._version, self.run.path.name, error)

    def _suspend(self, error: Exception) -> None:
        _log.error(
            "%s: run %s: suspended by an error of the backend", self._version, self.run.path.name, exc_info=error
        )
        self.suspended = True
        if self._claimed:
            report = self._cursor.report
            report.suspended = f"{self._version}: {type(error).__name__}: {error}"
            report.updated_ns = time.time_ns()
            self._save_quietly()
        self.release()

    def _set_aside(self, kind: str, record: Deliverable, reason: str) -> None:
        """Put a record that the backend will never take where people can find it."""
        report = self._cursor.report
        report.rejected += 1
        if len(report.rejected_examples) < 5:
            report.rejected_examples.append(f"{kind} {_describe(record)}: {reason}")
        self.run.rejected.mkdir(mode=0o700, exist_ok=True)
        line: dict[str, Any] = {"kind": kind, "reason": reason, "record": msgspec.structs.asdict(record)}
        with (self.run.rejected / f"{self.name}.jsonl").open("ab") as file:
            file.write(_encode_json(line) + b"\n")
        _log.warning("%s: run %s: rejected %s: %s", self._version, self.run.path.name, kind, reason)


def _halve(records: list[Deliverable]) -> tuple[list[Deliverable], list[Deliverable]] | None:
    """Split a batch, down to single metrics of one step; None if there is nothing left to split."""
    middle = len(records) // 2
    if middle:
        return records[:middle], records[middle:]
    record = records[0]
    if isinstance(record, MetricsLogged) and len(record.values) > 1:
        items = list(record.values.items())
        middle = len(items) // 2
        return (
            [MetricsLogged(record.time_ns, record.step, dict(items[:middle]))],
            [MetricsLogged(record.time_ns, record.step, dict(items[middle:]))],
        )
    return None


def _describe(record: Deliverable) -> str:
    if isinstance(record, MetricsLogged):
        return f"{', '.join(record.values)} at step {record.step}"
    name = getattr(record, "name", None)
    return name if isinstance(name, str) else ", ".join(getattr(record, "params", None) or getattr(record, "tags", {}))
