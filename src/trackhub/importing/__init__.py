"""Imports runs from what other trackers left on disk, with their own steps and times; what `trackhub import` does.

Apart from the command line so that it can be called and tested as a function. One format is one module below; it is
loaded when it is asked for, and no vendor's package before that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trackhub.errors import RunNotFoundError, SettingsError
from trackhub.importing.source import Finding, Found, ReadOptions
from trackhub.importing.writing import Imported, ImportNote, read_note, write_run

__all__ = ["FORMATS", "Finding", "ImportNote", "ImportReport", "Imported", "import_runs", "read_note"]

FORMATS = {
    "neptune": "trackhub.importing.neptune",
    "tensorboard": "trackhub.importing.tensorboard",
}
"""Format -> the module that reads it; it has a function `find(path, options)`."""


@dataclass
class ImportReport:
    """What an import came to.

    Args:
        runs: One a run of the source, in order.
        left_out: A sentence for each thing that looked like a run and was not imported.
    """

    runs: list[Imported] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether everything the source ever had is here."""
        return not self.left_out and all(one.complete for one in self.runs)


def import_runs(
    kind: str,
    path: Path,
    root: Path,
    project: str,
    name: str | None = None,
    *,
    again: bool = False,
    files_from: Sequence[Path] = (),
    on_run: Callable[[Imported], None] = lambda _: None,
) -> ImportReport:
    """Import every run in a place.

    Args:
        kind: The format, a key of `FORMATS`.
        path: Where the other tracker's files are.
        root: The `TRACKHUB_DIR` that gets the runs.
        project: The project they get.
        name: The name it gets, if there is one run; default: its own.
        again: Replace what an earlier import made of them.
        files_from: Directories whose files may be copied when the source names them by their path.
        on_run: Told of each run when it is done.

    Raises:
        RunNotFoundError: There is no run of that format.
        SettingsError: The format is unknown, its package is missing, or one name is given for several runs.
        OSError: Something cannot be read or written. The runs that were done are here; the same call does the rest.
    """
    if kind not in FORMATS:
        raise SettingsError(f"no format is called {kind!r} (there are: {', '.join(FORMATS)})")
    if not path.is_dir():
        raise RunNotFoundError(f"{str(path)!r} is no directory")
    allowed = tuple(directory.resolve() for directory in files_from)
    found: Found = importlib.import_module(FORMATS[kind]).find(path.resolve(), ReadOptions(allowed))
    if name is not None and len(found.runs) > 1:
        raise SettingsError(
            f"{path} holds {len(found.runs)} runs, and one name cannot be that of all: leave out --name"
        )
    report = ImportReport(left_out=found.left_out)
    for source in found.runs:
        one = write_run(source, kind, root, project, name, again=again)
        report.runs.append(one)
        on_run(one)
    return report
