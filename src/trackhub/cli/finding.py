"""Finding the runs that a person names: by id, by the beginning of one, or by path; and saying well what is not there.

Apart from the command line because each command finds runs in the same way.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trackhub.errors import RunNotFoundError
from trackhub.rundir import RunDirectory, runs_in

_SUGGESTIONS = 5


@dataclass
class Place:
    """The directory whose runs are meant.

    Args:
        root: The directory.
        source: Where that choice came from: "--dir", a variable, a file, or "default".
        unreadable: Name of a run that could not be read -> why, as far as they were come upon.
    """

    root: Path
    source: str
    unreadable: dict[str, str] = field(default_factory=dict)

    def runs(self) -> list[RunDirectory]:
        """All readable runs, oldest first."""
        self.unreadable.clear()
        return list(runs_in(self.root, self.note))

    def note(self, run: RunDirectory, error: Exception) -> None:
        """Remember a run that could not be read."""
        self.unreadable[run.path.name] = str(error)

    def nothing(self) -> str:
        """Why there is no run here, and what to do about it."""
        why = "there are no runs in it" if self.root.is_dir() else "there is no such directory"
        changed = {"--dir": "from --dir", "default": "the default"}.get(self.source, f"from {self.source}")
        return (
            f"no runs found: looked in {self.root.absolute()} ({changed}), and {why}. "
            "To look elsewhere, pass --dir or set TRACKHUB_DIR."
        )


def place_of(directory: Path | None) -> Place:
    """The directory given with --dir, else the one the settings name.

    Raises:
        SettingsError: The settings are not accepted.
    """
    if directory is not None:
        return Place(directory.expanduser(), "--dir")
    # Imported late: with --dir the settings and all they load are not needed.
    from trackhub import settings

    loaded = settings.load({})
    return Place(loaded.settings.dir, loaded.sources["dir"])


def find_run(text: str, place: Place) -> RunDirectory:
    """The run that a person means by an id, the beginning of one, or the path of a run directory.

    Raises:
        RunNotFoundError: There is none, or there are several; the message lists what there is.
        JournalError: The directory at that path holds a run that cannot be read.
    """
    path = Path(text)
    if path.name in ("", ".."):
        # A run has a name, and it is that of its directory.
        path = path.resolve()
    is_path = "/" in text or text in (".", "..")
    if is_path or not (place.root / text).is_dir():
        run = RunDirectory(path)
        if run.exists:
            _ = run.manifest  # Who names a run is told at once that it cannot be read.
            return run
    if not text or is_path:
        raise RunNotFoundError(f"{text!r} is no run directory (it has no run.json)")
    # What else cannot be read there is no matter of this run.
    place = Place(place.root, place.source)
    runs = place.runs()
    for run in runs:
        if run.path.name == text:
            return run
    if text in place.unreadable:
        raise RunNotFoundError(f"run {text} cannot be read: {place.unreadable[text]}")
    begin = [run for run in runs if run.path.name.startswith(text)]
    if len(begin) == 1:
        return begin[0]
    unreadable = [
        f"run {name} cannot be read: {why}" for name, why in place.unreadable.items() if name.startswith(text)
    ]
    if unreadable and not begin:
        raise RunNotFoundError("\n".join(unreadable))
    if not runs:
        raise RunNotFoundError(place.nothing())
    if begin:
        raise RunNotFoundError(
            f"{text!r} is the beginning of {len(begin)} run ids; write more of it:\n{_listed(begin)}"
        )
    raise RunNotFoundError(_unknown(text, runs, place))


def find_runs(texts: Sequence[str], place: Place) -> list[RunDirectory]:
    """The runs meant by ids and paths; a path may also be a directory that holds runs. Without any, all there are.

    Raises:
        RunNotFoundError: One of them names nothing.
    """
    if not texts:
        if not place.root.is_dir():
            raise RunNotFoundError(place.nothing())
        return place.runs()
    found: dict[Path, RunDirectory] = {}
    for text in texts:
        inner = Place(Path(text), "the command line")
        is_run = (place.root / text / "run.json").is_file() or (inner.root / "run.json").is_file()
        several = [] if is_run or not inner.root.is_dir() else inner.runs()
        place.unreadable |= inner.unreadable
        if inner.root.is_dir() and "/" in text and not is_run and not several:
            raise RunNotFoundError(inner.nothing())
        for run in several or [find_run(text, place)]:
            found.setdefault(run.path.absolute(), run)
    return list(found.values())


def sync_command(run: RunDirectory) -> str:
    """The command that delivers what is left of a run, from where the caller is."""
    default = Path.cwd() / ".trackhub"
    if run.path.absolute().parent == default:
        return f"trackhub sync {run.path.name}"
    return f"trackhub sync {shlex.quote(str(run.path.absolute()))}"


def _unknown(text: str, runs: Sequence[RunDirectory], place: Place) -> str:
    named = [run for run in runs if run.manifest.name == text]
    if named:
        return f"no run has an id that begins with {text!r}, but these are called so:\n{_listed(named)}"
    ids = {run.path.name: run for run in runs}
    near = [ids[name] for name in difflib.get_close_matches(text, list(ids), n=_SUGGESTIONS, cutoff=0.8)]
    which = "nearest" if near else "most recent"
    shown = near or list(reversed(runs[-_SUGGESTIONS:]))
    return f"no run in {place.root.absolute()} has an id that begins with {text!r}; the {which}:\n{_listed(shown)}"


def _listed(runs: Iterable[RunDirectory]) -> str:
    lines = [f"  {run.path.name}  {run.manifest.name}" for run in runs]
    more = len(lines) - 2 * _SUGGESTIONS
    return "\n".join(lines[: 2 * _SUGGESTIONS] + ([f"  and {more} more"] if more > 0 else []))
