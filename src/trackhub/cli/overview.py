"""How a run stands, at a glance: status, duration, what it amounts to, and what each backend has and lacks.

Apart from the delivery report because a list shows hundreds of runs: everything here comes from headers and cursors,
and no record is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from trackhub.cli.formats import local_time
from trackhub.errors import UNREADABLE, JournalError
from trackhub.journal.skim import Skim
from trackhub.records import RunStatus
from trackhub.report import BackendStanding, DeliveryReport, DeliverySeen
from trackhub.room_note import room_sentences
from trackhub.rundir import Manifest, RunDirectory


@dataclass(frozen=True)
class Overview:
    """One run at a glance.

    Args:
        run: Its directory.
        manifest: Who it is.
        status: A run whose process vanished is "killed".
        amount: What its journal amounts to.
        standings: One a backend.
    """

    run: RunDirectory
    manifest: Manifest
    status: RunStatus
    amount: Skim
    standings: tuple[BackendStanding, ...]

    @property
    def complete(self) -> bool:
        """Whether every backend has everything."""
        return all(standing.complete for standing in self.standings)

    @property
    def ended_ns(self) -> int | None:
        """When it ended; for a run whose process vanished, when it last wrote; None while it runs."""
        if self.status == "running":
            return None
        return self.amount.ended_ns or self.amount.last_time_ns or self.manifest.created_ns

    @property
    def duration_seconds(self) -> float:
        """How long it took, or has taken until now."""
        ended_ns = self.ended_ns
        return max((time.time_ns() if ended_ns is None else ended_ns) - self.manifest.created_ns, 0) / 1e9

    def report(self, command: str) -> DeliveryReport:
        """The delivery report, with the command that delivers the rest."""
        return DeliveryReport(self.manifest.id, command, self.standings, room=tuple(room_sentences(self.run.path)))


def overview(run: RunDirectory, backends: Iterable[str] | None = None) -> Overview:
    """Look at a run.

    Args:
        run: The run.
        backends: Only how it stands with these; default: all it was given to.

    Raises:
        JournalError: It cannot be read.
    """
    try:
        return _look(run, backends)
    except JournalError:
        raise
    except UNREADABLE as error:
        raise JournalError(f"{run.path} cannot be read: {error}") from error


def overviews(
    runs: Iterable[RunDirectory],
    on_unreadable: Callable[[RunDirectory, Exception], None],
    backends: Iterable[str] | None = None,
) -> Iterator[Overview]:
    """Look at runs; one that cannot be read keeps no other from being looked at.

    Args:
        runs: The runs.
        on_unreadable: Told of those that are left out.
        backends: Only how they stand with these; default: all each was given to.
    """
    for run in runs:
        try:
            yield overview(run, backends)
        except JournalError as error:
            on_unreadable(run, error)


def _look(run: RunDirectory, backends: Iterable[str] | None) -> Overview:
    manifest = run.manifest
    # The cursors first: what is written meanwhile then counts as not delivered, never the other way round.
    deliveries = [DeliverySeen.of(run, name) for name in (run.backends if backends is None else backends)]
    alive = set[int]()
    amount = run.amount(alive)
    holders = amount.holders
    status: RunStatus = holders.status(alive.__contains__) or run.status_without_end(holders)
    standings = tuple(_standing(run, seen, amount, status) for seen in deliveries)
    for time_ns in (manifest.created_ns, amount.ended_ns or 0, amount.last_time_ns):
        # Refused here and not where it is printed: by then there would be no other run to go on with.
        local_time(time_ns)
    return Overview(run, manifest, status, amount, standings)


def _standing(run: RunDirectory, seen: DeliverySeen, amount: Skim, status: RunStatus) -> BackendStanding:
    undelivered = run.remaining(seen.cursor) if seen.cursor.position else amount.records
    return BackendStanding.of(run, seen, undelivered, ended=status != "running")


def in_family_order(runs: Sequence[Overview]) -> list[tuple[int, Overview]]:
    """Runs with their children below them, each with its depth; in the order given otherwise."""
    known = {one.manifest.id for one in runs}
    children: dict[str | None, list[Overview]] = {}
    for one in runs:
        parent = one.manifest.parent_id
        children.setdefault(parent if parent in known else None, []).append(one)
    ordered: list[tuple[int, Overview]] = []
    waiting = [(0, one) for one in reversed(children.get(None, []))]
    while waiting:
        depth, one = waiting.pop()
        ordered.append((depth, one))
        waiting += [(depth + 1, child) for child in reversed(children.get(one.manifest.id, []))]
    return ordered
