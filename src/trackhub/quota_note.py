"""What a quota did to a run, in its directory: `quota/<writer>.json`, a file for each process that writes the run.

Apart from the quota because reports read it without one: on another machine, or after the limit was lifted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from trackhub.cursor import NoteCount
from trackhub.private import UntrustedFileError, make_directory, open_file, read_file

_FOLDER = "quota"
_MAX_NOTE_BYTES = 1 << 20


class QuotaNote(msgspec.Struct):
    """What became of a run's files under a quota.

    Args:
        max_bytes: The limit.
        refused: Kind of record -> how many were not recorded, with their names.
        freed_files: Snapshots that were removed because all backends had them.
        freed_bytes: What they took.
        over_bytes: What the directory took when it was over the limit and nothing more could be freed.
    """

    max_bytes: int
    refused: dict[str, NoteCount] = msgspec.field(default_factory=dict)
    freed_files: int = 0
    freed_bytes: int = 0
    over_bytes: int = 0


def save_quota_note(run: Path, writer: str, note: QuotaNote) -> None:
    """Write a note into a run directory; a disk that refuses is no further trouble."""
    with suppress(OSError):
        make_directory(run / _FOLDER)
        fresh = run / _FOLDER / f"{writer}.new"
        with os.fdopen(open_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(msgspec.json.encode(note))
        fresh.replace(fresh.with_suffix(".json"))


def quota_notes(run: Path) -> Iterator[QuotaNote]:
    """The notes in a run directory that can be read."""
    if (run / _FOLDER).is_symlink():
        return
    for path in sorted((run / _FOLDER).glob("*.json")):
        with suppress(FileNotFoundError, UntrustedFileError, ValueError, RecursionError):
            yield msgspec.json.decode(read_file(path, _MAX_NOTE_BYTES), type=QuotaNote)


def quota_sentences(run: Path) -> list[str]:
    """What people should know of what the quota did to a run, a sentence each."""
    notes = list(quota_notes(run))
    if not notes:
        return []
    limit = f"TRACKHUB_MAX_BYTES ({max(note.max_bytes for note in notes):,} bytes)"
    refused: dict[str, NoteCount] = {}
    for note in notes:
        for kind, count in note.refused.items():
            total = refused.setdefault(kind, NoteCount())
            total.count += count.count
            total.examples += count.examples
    lines = [
        f"{limit} was reached; not recorded: {kind.replace('_', ' ')} {count.count:,} ("
        + ", ".join([name for name, _ in count.examples[:3]] + ["..."] * (len(count.examples) > 3))
        + ")"
        for kind, count in refused.items()
    ]
    if files := sum(note.freed_files for note in notes):
        freed = sum(note.freed_bytes for note in notes)
        lines.append(f"{limit}: copies of {files:,} files ({freed:,} bytes) were removed here; all backends have them")
    if over := max(note.over_bytes for note in notes):
        lines.append(f"{limit}: the directory took {over:,} bytes; params and metrics are recorded all the same")
    return lines
