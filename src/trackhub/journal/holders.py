"""Who holds a run, and how it ends: its owner, and the ranks that a launcher started beside it.

Apart because deliveries, the command line and the run directory must come to the same end of a run, each from what it
has read of the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from trackhub.journal.frames import RankStarted, WriterStarted
from trackhub.records import EndStatus, RunEnded

_WORST_FIRST: tuple[EndStatus, ...] = ("failed", "killed", "finished")


class Holders(msgspec.Struct):
    """The writers whose end is the run's end. A run ends when the last of them has ended, and as the worst of them did.

    Of several owners the last one counts, and of each rank the last writer, as processes are started anew. Ranks that
    an owner knows nothing of belong to an earlier, larger start. Without an owner (it writes on another machine) the
    ranks alone hold the run.

    Args:
        owner: Writer number of the last owner; 0 for none.
        rank_count: How many ranks that owner knows of, itself included.
        ranks: Rank -> its last writer.
        ends: Writer -> the end it gave the run.
    """

    owner: int = 0
    rank_count: int = 1
    ranks: dict[int, int] = msgspec.field(default_factory=dict)
    ends: dict[int, RunEnded] = msgspec.field(default_factory=dict)

    def add(self, began: Mapping[int, WriterStarted], ends: Mapping[int, RunEnded]) -> None:
        """Take in what more has been read: writers that began, and ends."""
        for writer, started in began.items():
            if started.role == "owner" and writer > self.owner:
                self.owner = writer
                self.rank_count = started.rank_count if isinstance(started, RankStarted) else 1
            elif isinstance(started, RankStarted) and started.role == "rank":
                self.ranks[started.rank] = max(writer, self.ranks.get(started.rank, 0))
        self.ends = {writer: end for writer, end in {**self.ends, **ends}.items() if self._may_count(writer)}

    @property
    def writers(self) -> list[int]:
        """The writers that hold the run, the owner first."""
        if not self.owner:
            return list(self.ranks.values())
        return [self.owner, *(writer for rank, writer in self.ranks.items() if rank < self.rank_count)]

    @property
    def chief(self) -> int:
        """The writer that stands for all of them: the owner or, where there is none, a rank; 0 for nobody."""
        return self.owner or max(self.ranks.values(), default=0)

    @property
    def end(self) -> RunEnded | None:
        """The worst end among those known, at the time of the last one."""
        known = [self.ends[writer] for writer in self.writers if writer in self.ends]
        if not known:
            return None
        worst = min(known, key=lambda end: (_WORST_FIRST.index(end.status), end.time_ns))
        return RunEnded(max(end.time_ns for end in known), worst.status, worst.error)

    def status(self, is_alive: Callable[[int], bool]) -> EndStatus | None:
        """How the run has ended; a holder whose process vanished was killed. None while it is held, or never was.

        Args:
            is_alive: Whether a writer's process still writes; asked before the ends were read, for one that ends in
                between would count as vanished.
        """
        if not self.chief:
            return None
        vanished = [writer for writer in self.writers if writer not in self.ends]
        if any(map(is_alive, vanished)):
            return None
        known = self.end.status if self.end is not None else "killed"
        return "killed" if vanished and known == "finished" else known

    def _may_count(self, writer: int) -> bool:
        # An owner's end is kept only while it is the last; a rank may yet turn out to count.
        return writer == self.owner or writer in self.ranks.values()
