"""Puts content where KFP uploads it from, without ever writing over what the component wrote itself.

Apart from the backend because it knows disks and nothing of KFP: what is ours is told from what is not by size and
time, and a disk that refuses means "not now".
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from trackhub.errors import BackendUnavailable, RecordRejected


@contextlib.contextmanager
def unavailable_on_os_error(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a BackendUnavailable that names the path: disks fill up, and are emptied again."""
    try:
        yield
    except OSError as error:
        raise BackendUnavailable(f"cannot {doing} {path}: {error.strerror or error}") from error


class Places:
    """Files and directories that were put in place, and what they looked like then."""

    def __init__(self) -> None:
        self._ours: dict[str, list[int]] = {}

    def marks_of(self, paths: Iterable[str]) -> dict[str, list[int]]:
        """What to remember, so that a later attempt in the same places may replace what this one has written."""
        return {path: self._ours[path] for path in map(str, map(Path, paths)) if path in self._ours}

    def remember(self, marks: Mapping[str, list[int]]) -> None:
        """Take for ours what an earlier attempt has written, as long as it has not changed since."""
        self._ours = {**marks, **self._ours}

    def is_free(self, path: Path) -> bool:
        """Whether nothing is there but what we have put there."""
        mark = _mark(path)
        return mark is None or self._ours.get(str(path)) == mark

    def write(self, path: Path, content: bytes) -> None:
        """Put content in place, in one step.

        Raises:
            BackendUnavailable: The disk refuses.
        """
        fresh = _fresh(path)
        with unavailable_on_os_error("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(content)
            self._put(fresh, path)

    def copy(self, source: Path, path: Path) -> None:
        """Put a copy of a file or directory in place, in one step.

        Raises:
            BackendUnavailable: The disk refuses.
            RecordRejected: The source is gone.
        """
        if not source.exists():
            raise RecordRejected(f"{source} is gone")
        fresh = _fresh(path)
        with unavailable_on_os_error("copy to", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(fresh)
            if source.is_dir():
                shutil.copytree(source, fresh, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(source, fresh)
            self._put(fresh, path)

    def remove(self, path: Path) -> None:
        """Remove what we have put in place.

        Raises:
            BackendUnavailable: The disk refuses.
        """
        if str(path) in self._ours and self.is_free(path):
            with unavailable_on_os_error("remove", path):
                _remove(path)
            del self._ours[str(path)]

    def _put(self, fresh: Path, path: Path) -> None:
        if path.is_dir() or fresh.is_dir():
            _remove(path)
        fresh.replace(path)
        mark = _mark(path)
        if mark is not None:
            self._ours[str(path)] = mark


def _mark(path: Path) -> list[int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.trackhub-{os.getpid()}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
