"""The delivery report: for each backend of a run, what it has, what it lacks and what was changed on the way.

Apart because `flush()`, `finish()` and the command line show the same one, all read from the cursors on disk.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from trackhub.cursor import Cursor
from trackhub.journal import JournalReader
from trackhub.room_note import room_sentences
from trackhub.rundir import RunDirectory

SHOWN_CHILDREN = 5
SILENT_SECONDS = 10.0
"""How long a delivery may be busy with one call of a backend before people are told."""


@dataclass(frozen=True)
class DeliverySeen:
    """What there is to see of the delivery of a run to one backend, at one moment.

    Args:
        backend: Its name.
        process_id: The last process that delivered; None if none has begun, or it has let go in order.
        claimed: Whether it still did. If not, it has saved its last cursor, and this is it.
        cursor: As saved then, or since.
    """

    backend: str
    process_id: int | None
    claimed: bool
    cursor: Cursor

    @classmethod
    def of(cls, run: RunDirectory, backend: str) -> DeliverySeen:
        """Look at it."""
        file = run.cursor_file(backend)
        # In this order: a delivery saves its cursor, and then lets go. Read before, the cursor might be an earlier one
        # of a delivery that has done all it had to do meanwhile, and would seem to have ended half way.
        return cls(backend, file.holder(), file.is_claimed, file.load())


@dataclass(frozen=True)
class BackendStanding:
    """How one run stands with one backend.

    Args:
        backend: Its name.
        cursor: As last saved by the delivery.
        undelivered: Number of records the backend does not have yet.
        complete: Whether nothing is left to deliver, the run's end included if the run has ended.
        out_of_reach: Whether what it does not have cannot be delivered any more: it lived in a process that has ended.
        process_id: The last process that delivered, unless all has arrived; None if none has begun, or it has let go
            in order.
        delivering: Whether that process still does.
        silent_seconds: For how long it has not saved anything, though there was something to deliver.
    """

    backend: str
    cursor: Cursor
    undelivered: int
    complete: bool
    out_of_reach: bool = False
    process_id: int | None = None
    delivering: bool = False
    silent_seconds: float = 0.0

    @classmethod
    def of(
        cls, run: RunDirectory, seen: DeliverySeen, undelivered: int, *, ended: bool, arrived: bool = False
    ) -> BackendStanding:
        """Put together how a run stands.

        Args:
            run: The run.
            seen: What was seen of the delivery.
            undelivered: Number of records behind its cursor.
            ended: Whether the run has ended.
            arrived: Whether all that is asked after is known to be there. What others have written since is theirs to
                ask after.
        """
        backend, cursor = seen.backend, seen.cursor
        if arrived or (not undelivered and (cursor.closed or not ended)):
            return cls(backend, cursor, 0, complete=True)
        file = run.cursor_file(backend)
        # Another one may have begun since.
        delivering = seen.claimed or file.is_claimed
        if not delivering:
            lost = backend in run.manifest.in_process
            return cls(backend, cursor, undelivered, complete=lost, out_of_reach=lost, process_id=seen.process_id)
        silent_seconds = _silent_seconds(run, cursor, file.claimed_ns)
        return cls(backend, cursor, undelivered, False, False, file.holder(), True, silent_seconds)

    def sentences(self) -> list[str]:
        """What people should know, a sentence each; the first says where it stands."""
        report = self.cursor.report
        kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in report.delivered.items())
        if self.out_of_reach:
            what = f"{self.undelivered:,} records are" if self.undelivered > 1 else "the last of it is"
            lines = [f"{self.backend}: {what} not shown there; only the training process, which has let go, could"]
        elif self.complete:
            lines = [f"{self.backend}: complete ({kinds or 'nothing was logged'})"]
        else:
            few = {0: "the end of the run is", 1: "1 record is"}
            left = few.get(self.undelivered, f"{self.undelivered:,} records are")
            lines = [f"{self.backend}: {left} not delivered yet"]
        if report.suspended:
            why = f"because the {report.failed_part} failed: {report.suspended}"
            lines.append(f"{self.backend}: delivery gave up {why}")
        elif report.error and not self.complete:
            lines.append(f"{self.backend}: not available: {report.error}")
        elif not self.complete:
            lines += self._what_is_wrong()
        if report.rejected:
            examples = "; ".join(report.rejected_examples[:2])
            lines.append(
                f"{self.backend}: refused {report.rejected:,} record{'s' if report.rejected > 1 else ''}, "
                f"kept in rejected/{self.backend}.jsonl ({examples})"
            )
        for kind, count in report.skipped.items():
            lines.append(f"{self.backend}: has no place for {kind.replace('_', ' ')}: {count:,} not shown there")
        if report.superseded:
            lines.append(f"{self.backend}: {report.superseded:,} points left out: a later attempt has logged them anew")
        for reason, note in report.notes.items():
            shown = note.examples[:3]
            subjects = ", ".join(f"{subject} ({detail})" if detail else subject for subject, detail in shown)
            lines.append(f"{self.backend}: {note.count:,} {reason}: {subjects}")
        lines.extend(f"{self.backend}: damage in the journal: {place}" for place in report.damaged[:3])
        return lines

    def _what_is_wrong(self) -> list[str]:
        """Why it may be that nothing arrives, where the delivery itself cannot say it any more."""
        whose = self.cursor.report.version or self.backend
        if not self.delivering:
            if self.process_id is None:
                return [f"{self.backend}: no process is delivering it now (delivery.log may say why)"]
            return [
                f"{self.backend}: process {self.process_id} of its delivery ended before it was done: it was ended "
                f"from outside, or by a failure of {whose} (delivery.log may say more)"
            ]
        if self.silent_seconds > SILENT_SECONDS:
            return [
                f"{self.backend}: process {self.process_id} of its delivery has been waiting for {whose} for "
                f"{self.silent_seconds:.0f} s"
            ]
        return []


@dataclass(frozen=True)
class DeliveryReport:
    """How one run stands with all its backends. True when nothing is left to deliver.

    Args:
        run_id: The run.
        command: The command that delivers the rest.
        standings: One a backend.
        children: The reports of the run's child runs.
        room: What want of room did to the run, a sentence each.
    """

    run_id: str
    command: str
    standings: tuple[BackendStanding, ...]
    children: tuple[DeliveryReport, ...] = ()
    room: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether every backend has everything, child runs included."""
        return all(standing.complete for standing in self.standings) and all(map(bool, self.children))

    @property
    def undelivered(self) -> dict[str, int]:
        """Backend -> number of records it lacks, for those that lack any or have not closed the run."""
        return {standing.backend: standing.undelivered for standing in self.standings if not standing.complete}

    @property
    def remarkable(self) -> bool:
        """Whether there is anything that people should be told without asking."""
        return (
            not self.complete
            or bool(self.room)
            or any(len(standing.sentences()) > 1 for standing in self.standings)
            or any(child.remarkable for child in self.children)
        )

    def _sentences(self) -> list[str]:
        lines = [line for standing in self.standings for line in standing.sentences()] + list(self.room)
        remarkable = [child for child in self.children if child.remarkable]
        for child in remarkable[:SHOWN_CHILDREN]:
            lines.extend(f"child run {child.run_id}: {line}" for line in child._sentences())
        if len(remarkable) > SHOWN_CHILDREN:
            lines.append(f"{len(remarkable) - SHOWN_CHILDREN} more child runs: see trackhub runs")
        return lines

    def __str__(self) -> str:
        lines = self._sentences()
        if not self.complete:
            lines.append(f"deliver the rest with: {self.command}")
        return "\n".join(lines) or "no backends: the run is in its directory alone"


def _silent_seconds(run: RunDirectory, cursor: Cursor, claimed_ns: int) -> float:
    """For how long a delivery that goes on has not saved anything, though there was something to deliver."""
    since_ns = max(cursor.report.updated_ns, claimed_ns)
    if time.time_ns() - since_ns > SILENT_SECONDS * 1e9:
        # It may have had nothing to do until a moment ago.
        reader = JournalReader(run.journal)
        try:
            oldest = reader.read(cursor.position, max_points=1).records
        finally:
            reader.close()
        since_ns = max([since_ns, *(record.time_ns for record in oldest)])
    return max(time.time_ns() - since_ns, 0) / 1e9


def delivery_report(
    run: RunDirectory,
    command: str,
    backends: Iterable[str] | None = None,
    children: Iterable[DeliveryReport] = (),
    arrived: Collection[str] = (),
) -> DeliveryReport:
    """Read how a run stands.

    Args:
        run: The run.
        command: The command that delivers the rest.
        backends: Only these; default: all the run was given to.
        children: The reports of its child runs.
        arrived: The backends that are known to have all that is asked after.
    """
    ended = run.end()[0] != "running"
    standings = []
    for name in run.backends if backends is None else backends:
        seen = DeliverySeen.of(run, name)
        left = run.remaining(seen.cursor)
        standings.append(BackendStanding.of(run, seen, left, ended=ended, arrived=name in arrived))
    return DeliveryReport(run.manifest.id, command, tuple(standings), tuple(children), tuple(room_sentences(run.path)))
