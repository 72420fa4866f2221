"""Copies of a run: its whole journal delivered once more, as a new run at any backend. What `trackhub replay` does.

Apart from `sync.py`, which completes what a run was given to: a copy has cursors of its own, so that it neither touches
nor is touched by what was delivered before. It is a run directory like any other, except that its journal and blobs are
those of the run (symbolic links), so everything that works on runs works on it: it can be interrupted, gone on with,
looked at and verified.

    <TRACKHUB_DIR>/<run id>/replays/
        lock                          held while a copy is laid out
        <backend>-<number>/           a directory of runs: the copy of the run, and of each of its child runs
            <id of the copy>/
                run.json              written last, so what has one is laid out; names the run in `copy_of`
                journal -> ../../../journal
                blobs   -> ../../../blobs
                cursors/
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trackhub import plugins, settings
from trackhub.errors import SettingsError
from trackhub.journal import lock_file
from trackhub.private import make_directory
from trackhub.rundir import REPLAYS, Manifest, RunDirectory, runs_in
from trackhub.sync import options_for, with_families

_LONGEST_ID = 128


@dataclass(frozen=True)
class Copy:
    """A copy of a run, laid out and ready to be delivered.

    Args:
        runs: The copy of the run, then those of its child runs.
        options: What was given for it, beside what is stored with it.
        was_complete: Whether all of it had been delivered before.
    """

    runs: list[RunDirectory]
    options: dict[str, Any]
    was_complete: bool


def given_options(texts: Iterable[str]) -> dict[str, str]:
    """Options from texts like `logdir=runs`.

    Raises:
        SettingsError: One is not of that form.

    >>> given_options(["logdir=a=b"])
    {'logdir': 'a=b'}
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"--option {text!r} is not of the form NAME=VALUE")
        found[name.strip()] = value
    return found


def prepare_copy(
    run: RunDirectory, backend: str, given: Mapping[str, Any], *, same_id: bool = False, again: bool = False
) -> Copy:
    """Lay out a copy of a run and its child runs for a backend, or find the one that was laid out before.

    The first time a backend is given a run, the copy has the run's own id. A further one has an id of its own (`-copy2`
    at its end), by which backends keep it apart from what they have.

    Args:
        run: The run.
        backend: The backend's name.
        given: Options for this copy, stronger than those stored with the run and those of the environment.
        same_id: Whether the copy has the run's own id in any case.
        again: Whether to lay out a further one, though there is one with the same options.

    Raises:
        SettingsError: The backend is unknown, an option is not accepted, or only the training process can deliver.
        OSError: It cannot be written.
    """
    kind = plugins.find_backend(backend)
    full = options_for(run, backend, given)
    stored = settings.storable_options(kind.Options.model_validate(full))
    mark = _mark(full, stored)
    family = _family(run)
    if freed := [one.manifest.id for one in family if one.freed is not None]:
        raise SettingsError(f"run {freed[0]} was pruned: its journal is not there any more to be delivered again")
    root = run.path / REPLAYS
    make_directory(root)
    with _locked(root / "lock"):
        earlier = _places(root, backend)
        matching = [] if again else [one for one in earlier if _is_for(earlier[one], run, backend, stored, same_id)]
        # One that was never laid out to its end was never delivered, either.
        unfinished = [number for number, place in earlier.items() if _top(place, run) is None]
        _refuse_other_secrets(_top(earlier[matching[-1]], run) if matching else None, mark)
        number = (matching or unfinished or [max(earlier, default=0) + 1])[-1]
        place = root / f"{backend}-{number}"
        top = _top(place, run)
        if top is not None:
            suffix = "" if top.manifest.id == run.manifest.id else "-" + top.manifest.id.rpartition("-")[2]
        else:
            number += any(one.cursor(backend).position for one in family)
            suffix = "" if same_id or number == 1 else f"-copy{number}"
        make_directory(place)
        # The run itself last: it is what tells that the copy is whole.
        copies = [_lay_out(place, one, run, suffix, backend, stored, mark) for one in reversed(family)]
    copies.reverse()
    return Copy(copies, dict(given), all(_is_complete(one, backend) for one in copies))


def _family(run: RunDirectory) -> list[RunDirectory]:
    """A run and those below it, parents first."""
    below = {run.manifest.id}
    found = []
    for one in with_families([run]):
        if one.manifest.id == run.manifest.id or one.manifest.parent_id in below:
            below.add(one.manifest.id)
            found.append(one)
    return found


def _lay_out(
    place: Path, run: RunDirectory, top: RunDirectory, suffix: str, backend: str, stored: dict[str, Any], mark: str
) -> RunDirectory:
    manifest = run.manifest
    is_top = manifest.id == top.manifest.id
    copy = RunDirectory(place / _copy_id(manifest.id, suffix))
    if copy.exists:
        return copy
    make_directory(copy.path)
    for source in (run.journal, run.blobs):
        link = copy.path / source.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(source.resolve(), copy.path.resolve()))
    return RunDirectory.create(
        place,
        msgspec.structs.replace(
            manifest,
            id=copy.path.name,
            name=copy.path.name if manifest.name == manifest.id else manifest.name,
            parent_id=None if is_top or manifest.parent_id is None else _copy_id(manifest.parent_id, suffix),
            backends={backend: stored},
            in_process=[],
            copy_of=manifest.id,
            copy_mark=mark,
        ),
    )


def _copy_id(run_id: str, suffix: str) -> str:
    if len(run_id) + len(suffix) <= _LONGEST_ID:
        return run_id + suffix
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:12]
    return f"{run_id[: _LONGEST_ID - len(suffix) - len(digest) - 1]}-{digest}{suffix}"


def _top(place: Path, run: RunDirectory) -> RunDirectory | None:
    """The copy of the run itself in a directory of copies; None if that was not laid out to its end."""
    return next((one for one in runs_in(place) if one.manifest.copy_of == run.manifest.id), None)


def _places(root: Path, backend: str) -> dict[int, Path]:
    """The directories of copies for a backend, by their numbers."""
    found = {}
    for path in root.iterdir():
        name, _, number = path.name.rpartition("-")
        if name == backend and number.isdecimal():
            found[int(number)] = path
    return dict(sorted(found.items()))


def _is_for(place: Path, run: RunDirectory, backend: str, stored: Mapping[str, Any], same_id: bool) -> bool:
    top = _top(place, run)
    if top is None:
        return False
    found: Manifest = top.manifest
    return found.backends == {backend: stored} and (not same_id or found.id == run.manifest.id)


def _mark(full: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """16 bits that differ, most likely, where secrets do: a server's address may be in them, and they are not stored.

    Sixteen and no more, so that nobody can find a password by trying.
    """
    if full == stored:
        return ""
    return hashlib.sha256(json.dumps(full, sort_keys=True, default=str).encode()).hexdigest()[:4]


def _refuse_other_secrets(copy: RunDirectory | None, mark: str) -> None:
    """Gone on with at another server, a copy would be written into whatever has its id there."""
    if copy is not None and copy.manifest.copy_mark != mark:
        raise SettingsError(
            f"there is a copy with these options that was made with other secrets: {copy.path}. If they are of another "
            f"server, make another copy with --again; if the token or password was changed, complete it with: "
            f"trackhub sync {copy.path}"
        )


def _is_complete(run: RunDirectory, backend: str) -> bool:
    cursor = run.cursor(backend)
    return cursor.closed and not run.remaining(cursor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel lets go of if this process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_file(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
