"""Writes a run that was read from another tracker's files into a run directory.

Apart from the readers because it is the same for all of them: a run is built aside and appears whole, or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from trackhub._version import VERSION
from trackhub.blobs import BlobStore
from trackhub.errors import JournalError
from trackhub.importing.source import Finding, SourceRun
from trackhub.journal import JournalReader, JournalWriter, writer_is_alive
from trackhub.lowering import KINDS
from trackhub.private import write_file
from trackhub.records import MetricsLogged, RunEnded
from trackhub.rundir import Manifest, RunDirectory

NOTE_NAME = "import.json"
_ASIDE = ".importing-"
_STALE_SECONDS = 3600.0

State = Literal["imported", "replaced", "already here", "refused"]


class ImportNote(msgspec.Struct, frozen=True):
    """What is in the `import.json` of a run directory: where the run came from, and what of it is missing.

    Args:
        format: "neptune" or "tensorboard".
        source: Where it was read from.
        fingerprint: Of the source as it was then.
        imported_ns: When.
        counts: Kind of record -> how many; "points" are single values of metrics.
        findings: What is missing or changed.
        version: Of the trackhub that imported it.
    """

    format: str
    source: str
    fingerprint: str
    imported_ns: int
    counts: dict[str, int]
    findings: list[Finding]
    version: str = VERSION


@dataclass(frozen=True)
class Imported:
    """What became of one run of a source.

    Args:
        run: Its directory.
        name: Its name.
        state: "imported", "replaced" (it was here and was read anew), "already here", or "refused".
        note: Of this import or, for a run that was here, of the earlier one; None where nothing of it is here.
        problem: For a refused one: why, and what to do.
    """

    run: RunDirectory
    name: str
    state: State
    note: ImportNote | None
    problem: str = ""

    @property
    def complete(self) -> bool:
        """Whether all that the source ever had is here."""
        return self.note is not None and not self.problem and not any(one.missing for one in self.note.findings)


def write_run(
    source: SourceRun, kind: str, root: Path, project: str, name: str | None = None, *, again: bool = False
) -> Imported:
    """Import a run, if it is not here yet.

    Args:
        source: The run.
        kind: The name of its format.
        root: The `TRACKHUB_DIR`.
        project: The project it gets.
        name: The name it gets; default: its own.
        again: Replace what an earlier import made of it.

    Raises:
        OSError: It cannot be read or written; nothing is left behind.
        JournalError: A part of it could not be written.
    """
    final = RunDirectory(root / source.id)
    refused = _refusal(final, source, again=again)
    if refused is not None:
        return refused
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_leftovers(root)
    aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=root))
    try:
        note = _build(aside, source, kind, project, name)
        replaced = final.exists
        if replaced:
            final.path.rename(aside / "replaced")
        # Fails where another import of the same run was quicker.
        (aside / source.id).rename(final.path)
        _sync_directory(root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Imported(RunDirectory(final.path), name or source.name, "replaced" if replaced else "imported", note)


def read_note(run: RunDirectory) -> ImportNote | None:
    """What an import wrote down in a run directory; None if none did."""
    try:
        return msgspec.json.decode((run.path / NOTE_NAME).read_bytes(), type=ImportNote)
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _refusal(final: RunDirectory, source: SourceRun, *, again: bool) -> Imported | None:
    """Why a run is not imported now; None if it is."""
    if not final.path.exists():
        return None
    note = read_note(final)
    name = final.manifest.name if final.exists else source.name
    if note is None:
        problem = f"{final.path} is there, and was not made by an import: move it away"
    elif again and not _only_imported(final):
        problem = (
            f"{final.path} has records that did not come by import, or is being delivered now: importing again would "
            "lose them"
        )
    elif again:
        return None
    elif note.fingerprint == source.fingerprint:
        return Imported(final, name, "already here", note)
    else:
        problem = f"{source.path} has changed since it was imported: --again reads it anew and replaces {final.path}"
    return Imported(final, name, "refused", note, problem)


def _only_imported(run: RunDirectory) -> bool:
    """Whether nothing but an import has written to a run, and nobody delivers it at the moment."""
    if set(JournalReader(run.journal).segments()) - {1}:
        return False
    for backend in run.backends:
        cursor_file = run.cursor_file(backend)
        if not cursor_file.claim():
            return False
        cursor_file.release()
    return True


def _build(aside: Path, source: SourceRun, kind: str, project: str, name: str | None) -> ImportNote:
    """Write the whole run directory into a place where nobody looks for runs."""
    manifest = Manifest(
        id=source.id,
        name=name or source.name,
        project=project,
        created_ns=source.created_ns,
        backends={},
        working_directory=str(Path.cwd()),
        version=VERSION,
    )
    run = RunDirectory.create(aside, manifest)
    scratch = aside / "scratch"
    scratch.mkdir()
    journal = JournalWriter(run.journal, "owner", time.time_ns(), VERSION)
    blobs = BlobStore(run.blobs, f"{journal.writer:04d}")
    counts: Counter[str] = Counter()
    segment = 0
    try:
        for record in source.records(blobs, scratch):
            if isinstance(record, MetricsLogged):
                journal.append_metrics(record.values, record.step, record.time_ns)
                counts["points"] += len(record.values)
            else:
                journal.append(record)
            counts[KINDS[type(record)]] += 1
            if journal.position[1] != segment:
                # Segments that are full stay open until they are synced.
                segment = journal.position[1]
                journal.sync()
        status, ended_ns = source.end()
        journal.append(RunEnded(ended_ns, status))
        blobs.sync()
    finally:
        journal.close()
    if journal.lost_bytes:
        raise JournalError(f"the disk did not take {journal.lost_bytes:,} bytes of run {source.id}: make room first")
    note = ImportNote(kind, str(source.path), source.fingerprint, time.time_ns(), dict(counts), source.findings.all())
    write_file(run.path / NOTE_NAME, msgspec.json.format(msgspec.json.encode(note), indent=2))
    return note


def _remove_leftovers(root: Path) -> None:
    """Remove what an import that was killed has left; one that is at work holds its journal."""
    for path in root.glob(f"{_ASIDE}*"):
        journals = list(path.glob("*/journal"))
        if any(writer_is_alive(journal, 1) for journal in journals):
            continue
        if journals or time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
