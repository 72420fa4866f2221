"""One run on its way to one backend, in a test: a journal written by hand, and deliveries that may be cut short.

Apart from the tests because it is the machinery they share: the real journal, the real cursor, the real delivery.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trackhub.backend import Backend, OpenedRun, RunInfo
from trackhub.cursor import Cursor
from trackhub.delivery import Delivery
from trackhub.journal import JournalRecord, JournalWriter
from trackhub.records import EndStatus, MetricsLogged, RunEnded
from trackhub.rundir import Manifest, RunDirectory
from trackhub.testing.shown import Shown

CREATED_NS = 1_763_717_400_000_000_000
"""When the runs began: not now, as a run may be delivered long after it was recorded."""

DEADLINE_SECONDS = 120.0
PAUSE_SECONDS = 0.2

Note = tuple[str, str, str]


class Rehearsal:
    """One run, and what becomes of it at a backend.

    Args:
        directory: The test's directory.
        kind: The backend's class.
        options: Its options, as `resolve` gave them.
        read: Reads the run back at the vendor.
        name: The name people see.
        parent: The run it is a child of.
    """

    def __init__(
        self,
        directory: Path,
        kind: type[Backend],
        options: Any,
        read: Callable[[OpenedRun], Shown],
        name: str = "run",
        parent: Rehearsal | None = None,
    ) -> None:
        self.kind = kind
        self.options = options
        self.parent = parent
        self.notes: list[Note] = []
        self._read = read
        run_id = f"conformance-{secrets.token_hex(6)}"
        manifest = Manifest(
            id=run_id,
            name=name,
            project="conformance",
            created_ns=CREATED_NS,
            backends={kind.name: {}},
            parent_id=parent.run.manifest.id if parent else None,
            working_directory=str(directory),
        )
        self.run: RunDirectory = RunDirectory.create(directory / "hub", manifest)
        self._writer: JournalWriter | None = None

    # --- recording

    def log(self, *records: JournalRecord) -> None:
        """Write records to the run's journal."""
        if self._writer is None:
            self.begin()
        assert self._writer is not None
        for record in records:
            if type(record) is MetricsLogged:
                self._writer.append_metrics(record.values, record.step, record.time_ns)
            else:
                self._writer.append(record)

    def begin(self, resume_step: int | None = None, time_ns: int = CREATED_NS) -> None:
        """Have another process go on with the run, whose last one has vanished if it has not ended.

        Args:
            resume_step: What is given to `init`.
            time_ns: When that is.
        """
        if self._writer is not None:
            self._writer.close()
        self._writer = JournalWriter(self.run.journal, "owner", time_ns, resume_step=resume_step)

    def end(self, status: EndStatus = "finished") -> None:
        """End the run; what is logged afterwards is a process that goes on with it."""
        self.log(RunEnded(CREATED_NS + 10**12, status))
        assert self._writer is not None
        self._writer.close()
        self._writer = None

    # --- the backend alone

    @contextmanager
    def opened(self) -> Iterator[tuple[Backend, OpenedRun]]:
        """A backend that is open for this run, as a delivery opens it, and let go of in the end."""
        backend = self._make()
        try:
            yield backend, backend.open(self.info(), {})
        finally:
            backend.disconnect()

    def info(self) -> RunInfo:
        """What the backend is told of the run."""
        manifest = self.run.manifest
        return RunInfo(
            id=manifest.id,
            name=manifest.name,
            project=manifest.project,
            created_ns=manifest.created_ns,
            directory=self.run.path,
            parent_remote_id=self.parent.cursor.remote_id if self.parent else None,
            working_directory=Path(manifest.working_directory),
        )

    def shown(self, opened: OpenedRun | None = None) -> Shown:
        """The run as it is at the vendor now."""
        if opened is None:
            cursor = self.cursor
            opened = OpenedRun(cursor.remote_id, cursor.link, cursor.state)
        return self._read(opened)

    # --- the delivery

    @property
    def cursor(self) -> Cursor:
        """Where the delivery stands, with its report."""
        return self.run.cursor(self.kind.name)

    def deliver(self) -> Cursor:
        """Deliver all there is, as a process of its own would, and let go; the delivery must not be suspended."""
        delivery = self.delivery()
        until = time.monotonic() + DEADLINE_SECONDS
        try:
            while True:
                again = delivery.pump()
                report = self.cursor.report
                assert not delivery.suspended, f"the backend failed: {report.suspended}"
                if again is None or (again > 0 and not delivery.troubled):
                    return self.cursor
                assert time.monotonic() < until, f"nothing was delivered in {DEADLINE_SECONDS:g} s: {report.error}"
                if again > 0:
                    time.sleep(min(again, PAUSE_SECONDS))
                    delivery.retry_now()
        finally:
            delivery.release()

    def delivery(self) -> Delivery:
        """A delivery of the run that has not begun."""
        return Delivery(self.run, self.kind.name, self._make, self.kind.name)

    @contextmanager
    def cursor_not_saved(self) -> Iterator[None]:
        """What is delivered meanwhile has arrived, but the delivery forgets it: as if killed before it could save."""
        path = self.run.cursor_file(self.kind.name).path
        before = path.read_bytes() if path.exists() else None
        yield
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)

    def lose_cursor(self) -> None:
        """Forget all about the delivery, the backend's state included."""
        self.run.cursor_file(self.kind.name).path.unlink()

    def noted(self, subject: str) -> bool:
        """Whether the backend has noted something about a key or file; a long subject may be cut."""
        return any(one == subject or (len(one) >= 80 and subject.startswith(one)) for _, one, _ in self.notes)

    def _make(self) -> Backend:
        backend = self.kind(self.options)
        drain = backend.notes.drain

        def keep() -> list[Note]:
            taken = drain()
            self.notes += taken
            return taken

        # The report keeps a few examples of each reason; the suite wants to know of every one.
        backend.notes.drain = keep  # type: ignore[method-assign]
        return backend
