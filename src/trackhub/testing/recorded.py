"""What a run in a test has recorded, read from its journal.

Apart from the fixture because it works for any tracker, whatever backends it has.
"""

from __future__ import annotations

from pathlib import Path

from trackhub.backend import RunInfo
from trackhub.journal import JournalReader
from trackhub.records import RunEnded
from trackhub.rundir import RunDirectory
from trackhub.testing.memory import MemoryRun
from trackhub.testing.shown import Shown
from trackhub.tracker import Tracker


def recorded(run: Tracker | Path) -> Shown:
    """What a run has recorded so far. Nothing has to be delivered for that, and the run may go on.

    Args:
        run: The tracker, or a run directory.

    >>> import tempfile, trackhub
    >>> with trackhub.init(dir=tempfile.mkdtemp(), mode="offline") as tracker:
    ...     tracker.log_metrics({"loss": 0.5}, step=3)
    ...     [point] = recorded(tracker).metrics["loss"]
    >>> point.step, point.value
    (3, 0.5)
    """
    directory = RunDirectory((run if isinstance(run, Path) else run.directory).absolute())
    manifest = directory.manifest
    info = RunInfo(
        manifest.id,
        manifest.name,
        manifest.project,
        manifest.created_ns,
        directory.path,
        # Where nothing is delivered there are no remote ids; our own id of the parent says as much.
        parent_remote_id=manifest.parent_id,
    )
    found = MemoryRun(info)
    reader = JournalReader(directory.journal)
    try:
        chunk = reader.read({})
        while not chunk.empty:
            found.add([record for record in chunk.records if not isinstance(record, RunEnded)])
            chunk = reader.read(chunk.position)
    finally:
        reader.close()
    found.status = directory.end()[0]
    return found.shown()
