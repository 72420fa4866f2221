"""What want of room, or a disk that failed, did to a run: `room/<writer>.json` in its directory, one a writing process.

Apart from the quota because a full disk does the same, and because reports read it without a quota: on another machine,
or after the limit was lifted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from trackhub.cursor import NoteCount
from trackhub.private import UntrustedFileError, make_directory, open_file, read_file

_FOLDER = "room"
_MAX_NOTE_BYTES = 1 << 20


class RoomNote(msgspec.Struct):
    """What became of a run's files where room was short.

    Args:
        max_bytes: The limit; 0 for none.
        refused: Kind of record -> how many were not recorded, with their names.
        freed_files: Snapshots that were removed because all backends had them.
        freed_bytes: What they took.
        over_bytes: What the directory took when it was over the limit and nothing more could be freed.
        disk_full: Kind of record -> how many were not recorded because the disk itself was full, with their names.
        disk_failed: Kind of record -> how many were not recorded because the run directory could not be written for
            another reason, with their names and the reason.
    """

    max_bytes: int = 0
    refused: dict[str, NoteCount] = msgspec.field(default_factory=dict)
    freed_files: int = 0
    freed_bytes: int = 0
    over_bytes: int = 0
    disk_full: dict[str, NoteCount] = msgspec.field(default_factory=dict)
    disk_failed: dict[str, NoteCount] = msgspec.field(default_factory=dict)


def save_room_note(run: Path, writer: str, note: RoomNote) -> None:
    """Write a note into a run directory; a disk that refuses is no further trouble."""
    with suppress(OSError):
        make_directory(run / _FOLDER)
        fresh = run / _FOLDER / f"{writer}.new"
        with os.fdopen(open_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(msgspec.json.encode(note))
        fresh.replace(fresh.with_suffix(".json"))


def room_notes(run: Path) -> Iterator[RoomNote]:
    """The notes in a run directory that can be read."""
    if (run / _FOLDER).is_symlink():
        return
    for path in sorted((run / _FOLDER).glob("*.json")):
        with suppress(FileNotFoundError, UntrustedFileError, ValueError, RecursionError):
            yield msgspec.json.decode(read_file(path, _MAX_NOTE_BYTES), type=RoomNote)


def room_sentences(run: Path) -> list[str]:
    """What people should know of it, a sentence each."""
    notes = list(room_notes(run))
    if not notes:
        return []
    limit = f"TRACKHUB_MAX_BYTES ({max(note.max_bytes for note in notes):,} bytes)"
    lines = _not_recorded(f"{limit} was reached", [note.refused for note in notes])
    lines += _not_recorded("the disk was full", [note.disk_full for note in notes])
    failures = [note.disk_failed for note in notes if note.disk_failed]
    if failures:
        reasons = {reason for kinds in failures for count in kinds.values() for _, reason in count.examples}
        lines += _not_recorded(f"the run directory could not be written ({'; '.join(sorted(reasons))})", failures)
    if files := sum(note.freed_files for note in notes):
        freed = sum(note.freed_bytes for note in notes)
        lines.append(f"{limit}: copies of {files:,} files ({freed:,} bytes) were removed here; all backends have them")
    if over := max(note.over_bytes for note in notes):
        lines.append(f"{limit}: the directory took {over:,} bytes; params and metrics are recorded all the same")
    return lines


def _not_recorded(reason: str, counts: Iterable[Mapping[str, NoteCount]]) -> list[str]:
    totals: dict[str, NoteCount] = {}
    for of_writer in counts:
        for kind, count in of_writer.items():
            total = totals.setdefault(kind, NoteCount())
            total.count += count.count
            total.examples += count.examples
    return [
        f"{reason}; not recorded: {kind.replace('_', ' ')} {count.count:,} ("
        + ", ".join([name for name, _ in count.examples[:3]] + ["..."] * (len(count.examples) > 3))
        + ")"
        for kind, count in totals.items()
    ]
