"""Freeing what a run no longer needs: what all its backends have, and nothing else.

Apart from the command line because a quota frees in the same way. A run that was freed keeps `run.json`, its cursors
with their reports, and `freed.json`, which says what the journal amounted to: it is listed as before.

What may be freed is listed first and looked at after that. A process that begins to write the run meanwhile has a
writer's number of its own, and so files that are not in the list.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trackhub.errors import UNREADABLE
from trackhub.journal import JournalReader, Position, segment_name
from trackhub.journal.skim import Skim, skim
from trackhub.rundir import Freed, RunDirectory

_ASIDE = ".pruned-"


@dataclass(frozen=True)
class Pruned:
    """What came of pruning one run.

    Args:
        run: Its directory.
        freed_bytes: What was freed, or would be.
        kept: Why nothing was; None if something was, or would be.
        readable: Whether that could be told; what cannot be read is kept.
    """

    run: RunDirectory
    freed_bytes: int = 0
    kept: str | None = None
    readable: bool = True


@dataclass(frozen=True)
class _Contents:
    """What of a run can be freed, as it was when it was listed."""

    segments: list[Path]
    blobs: list[Path]
    position: Position
    amount: Skim
    size_bytes: int


def prune(
    runs: Sequence[RunDirectory],
    *,
    older_than_seconds: float = 0.0,
    journal_only: bool = False,
    whole_runs: bool = False,
    dry_run: bool = True,
) -> list[Pruned]:
    """Free what all backends of runs have.

    Args:
        runs: The runs.
        older_than_seconds: Leave alone what ended later than so long ago.
        journal_only: Also free runs that were given to no backend; nothing else has what is in them.
        whole_runs: Remove their directories altogether, so that nothing tells of them any more.
        dry_run: Only say what would be freed.

    Returns:
        What came of each run, in their order.
    """
    if whole_runs and not dry_run:
        for root in {run.path.parent for run in runs}:
            _remove_leftovers(root)
    results: dict[Path, Pruned] = {}
    needed: set[str] = set()
    # Children were begun after their parents; a child that stays needs its parent's cursors.
    for run in sorted(runs, key=lambda one: one.manifest.created_ns, reverse=True):
        if whole_runs and run.manifest.id in needed:
            one = Pruned(run, kept="it has child runs that stay")
        else:
            try:
                one = _prune_run(run, older_than_seconds, journal_only, whole_runs, dry_run)
            except UNREADABLE as error:
                one = Pruned(run, kept=f"it cannot be read: {error}", readable=False)
        if one.kept is not None and run.manifest.parent_id is not None:
            needed.add(run.manifest.parent_id)
        results[run.path] = one
    return [results[run.path] for run in runs]


def free_blobs(run: RunDirectory) -> int:
    """Free the snapshots of a run that has ended and that all its backends have; gives how many bytes that were.

    Raises:
        OSError: It cannot be read.
    """
    contents = _list(run, whole_run=False)
    if not contents.blobs or _why_kept(run, contents, 0.0, journal_only=False) is not None:
        return 0
    with _claimed(run) as claimed:
        if not claimed or _why_kept(run, contents, 0.0, journal_only=False) is not None:
            return 0
        return sum(map(remove, contents.blobs))


def _prune_run(
    run: RunDirectory, older_than_seconds: float, journal_only: bool, whole_run: bool, dry_run: bool
) -> Pruned:
    def why_kept() -> str | None:
        return _why_kept(run, contents, older_than_seconds, journal_only=journal_only)

    contents = _list(run, whole_run=whole_run)
    if not whole_run and not contents.segments and not contents.blobs:
        return Pruned(run, kept="there is nothing left to free")
    if (reason := why_kept()) is not None:
        return Pruned(run, kept=reason)
    if any(run.cursor_file(name).is_claimed for name in run.deliverable):
        return Pruned(run, kept="it is being delivered")
    if dry_run:
        return Pruned(run, contents.size_bytes)
    with _claimed(run) as claimed:
        if not claimed:
            return Pruned(run, kept="it is being delivered")
        # Once more: now nobody else can change how the backends stand.
        if (reason := why_kept()) is not None:
            return Pruned(run, kept=reason)
        if whole_run:
            return _remove_whole(run, contents)
        # First what tells of it, then what it tells of: after a crash in between the rest is freed the next time.
        run.note_freed(Freed(time.time_ns(), contents.position, contents.amount))
        # The oldest first: what is left after a crash has the end of the run in it.
        freed = sum(map(remove, contents.segments)) + sum(map(remove, contents.blobs))
        return Pruned(run, freed)


def _list(run: RunDirectory, *, whole_run: bool) -> _Contents:
    reader = JournalReader(run.journal)
    found = reader.segments()
    segments = [run.journal / segment_name(writer, number) for writer in found for number in found[writer]]
    position: Position = dict(freed.position) if (freed := run.freed) else {}
    for writer, numbers in found.items():
        with suppress(FileNotFoundError):
            last = run.journal / segment_name(writer, numbers[-1])
            position[str(writer)] = max(position.get(str(writer), (0, 0)), (numbers[-1], last.lstat().st_size))
    blobs = sorted(run.blobs.iterdir()) if run.blobs.is_dir() else []
    size_bytes = size_on_disk(run.path) if whole_run else sum(map(size_on_disk, [*segments, *blobs]))
    return _Contents(segments, blobs, position, run.amount(), size_bytes)


def _why_kept(run: RunDirectory, contents: _Contents, older_than_seconds: float, *, journal_only: bool) -> str | None:
    """Why a run has to stay as it is; None if it can be freed."""
    if run.path.is_symlink():
        return "its directory is a link"
    if run.is_being_written:
        return "it is being written"
    for name in run.manifest.in_process:
        # Nobody can complete it once its training process has let go.
        if not run.cursor(name).closed and run.cursor_file(name).is_claimed:
            return f"it is being delivered to {name}"
    cursors = {name: run.cursor(name) for name in run.deliverable}
    if not cursors and not journal_only:
        return "it was given to no backend that keeps it: this is the only copy (--journal-only frees it all the same)"
    for name, cursor in cursors.items():
        # What was freed before counts as read: the cursor of a backend that has not got it is not closed.
        undelivered = skim(run.journal, cursor.position).records
        if undelivered or not cursor.closed:
            return f"{name} does not have all of it (trackhub status says what is missing)"
        if cursor.report.rejected:
            return f"{name} refused {cursor.report.rejected:,} of its records, which are nowhere else"
    for copy in run.copies:
        if any(not copy.cursor(name).closed for name in copy.deliverable):
            return f"its copy {copy.path.name} is not complete (the same trackhub replay goes on with it)"
    if cursors:
        nowhere = set.intersection(*(set(cursor.report.skipped) for cursor in cursors.values()))
        if nowhere:
            return f"no backend of it has a place for its {', '.join(sorted(nowhere)).replace('_', ' ')}"
    ended_ns = contents.amount.ended_ns or contents.amount.last_time_ns or run.manifest.created_ns
    if time.time_ns() - ended_ns < older_than_seconds * 1e9:
        return "it ended later than that"
    return None


@contextmanager
def _claimed(run: RunDirectory) -> Iterator[bool]:
    """While nobody else can deliver the run; False if somebody does."""
    with ExitStack() as stack:
        for name in run.deliverable:
            cursor_file = run.cursor_file(name)
            if not cursor_file.claim():
                yield False
                return
            stack.callback(cursor_file.release)
        yield True


def _remove_whole(run: RunDirectory, contents: _Contents) -> Pruned:
    aside = run.path.with_name(f"{_ASIDE}{run.path.name}-{os.getpid()}")
    run.path.rename(aside)
    moved = RunDirectory(aside)
    if moved.is_being_written:
        # Somebody has begun to write it just then: it goes on where it was.
        aside.rename(run.path)
        return Pruned(run, kept="it is being written")
    (aside / "run.json").unlink()
    shutil.rmtree(aside)
    return Pruned(run, contents.size_bytes)


def _remove_leftovers(root: Path) -> None:
    """Remove what a prune that was killed has put aside."""
    for path in root.glob(f"{_ASIDE}*"):
        if not path.is_symlink() and not (path / "run.json").exists():
            shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> int:
    """Remove a file, a folder with all that is in it, or a link itself; gives how many bytes that were."""
    size_bytes = size_on_disk(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return size_bytes


def size_on_disk(path: Path) -> int:
    """What a file, or all in a folder, takes on disk."""
    total = 0
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in below if path.is_dir() and not path.is_symlink() else [path]:
        with suppress(FileNotFoundError):
            # Room that was reserved counts; what is beyond the end of a sparse file does not.
            total += file.lstat().st_blocks * 512
    return total
