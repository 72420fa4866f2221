"""Which files of this machine a Neptune directory may have copied into a run.

Apart because it is a question of trust: the directory names files by their paths, and may be anybody's. Only copies
that lie inside it are taken without asking, and files below the directory that training was started in; others are
taken from directories that the person names.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from trackhub.importing.source import Findings, clean_name

MAX_FILES = 10_000
"""Of one set of files."""

MAX_LOOKED_AT = 200_000
"""Files and directories below the fixed part of a pattern."""

_WILDCARDS = frozenset("*?[")


class NotAllowedError(Exception):
    """The file lies where nothing may be read without the person's word."""


class Files:
    """Finds the files that operations of one directory name.

    Args:
        directory: The directory, without links.
        allowed: Other directories whose files may be read, without links.
        findings: Told of what of a set of files is not looked at, or passed over.
    """

    def __init__(self, directory: Path, allowed: Sequence[Path], findings: Findings) -> None:
        self._findings = findings
        self._copies = directory / "upload_path"
        self._allowed = [*_working_directory(directory), *allowed]

    def copy(self, name: str) -> Path:
        """A copy that the client made.

        Raises:
            FileNotFoundError: It is gone.
            NotAllowedError: The name leads out of the directory.
        """
        if "\0" in name or "/" in name or name in ("", ".", ".."):
            raise NotAllowedError(name)
        path = self._copies / name
        if self._copies.is_symlink() or path.is_symlink():
            raise NotAllowedError(name)
        if not _is_file(path):
            raise FileNotFoundError(name)
        return path

    def original(self, name: str) -> Path:
        """A file by the path it had when it was uploaded, with links resolved.

        Raises:
            FileNotFoundError: It is gone, or is no file.
            NotAllowedError: It lies outside of what may be read.
        """
        if "\0" in name or not name.startswith("/"):
            raise NotAllowedError(name)
        resolved = _resolved(Path(name))
        if not _is_file(resolved):
            raise FileNotFoundError(name)
        if not self._may_read(resolved):
            raise NotAllowedError(name)
        return resolved

    def matching(self, pattern: str) -> Iterator[tuple[Path, str]]:
        """The files that an absolute path with wildcards stands for, each with its path below the fixed part.

        Raises:
            FileNotFoundError: There is none.
            NotAllowedError: It lies outside of what may be read.
        """
        if "\0" in pattern or not pattern.startswith("/"):
            raise NotAllowedError(pattern)
        parts = PurePosixPath(pattern).parts
        wild = next((at for at, part in enumerate(parts) if _WILDCARDS & set(part)), None)
        base = _resolved(Path(*parts[:wild]))
        if wild is None and not base.is_dir():
            yield self.original(pattern), PurePosixPath(pattern).name
            return
        if not base.is_dir():
            raise FileNotFoundError(pattern)
        if not self._may_read(base):
            raise NotAllowedError(pattern)
        wanted = ("**",) if wild is None else parts[wild:]
        none = True
        for count, path in enumerate(_entries_below(base)):
            if count == MAX_LOOKED_AT:
                reason = f"sets of files with more than {MAX_LOOKED_AT:,} files and directories, not looked at further"
                self._findings.missing(reason, clean_name(pattern))
                return
            below = path.relative_to(base).parts
            # A directory that matches stands for all it holds.
            if _is_directory(path) or not any(_matches(below[:end], wanted) for end in range(1, len(below) + 1)):
                continue
            none = False
            if _is_file(path):
                yield path, "/".join(below)
            else:
                self._findings.missing("links and special files in sets of files, not read", clean_name(str(path)))
        if none:
            raise FileNotFoundError(pattern)

    def _may_read(self, path: Path) -> bool:
        return any(path.is_relative_to(directory) for directory in self._allowed)


def _working_directory(directory: Path) -> list[Path]:
    """Where training was started: the directory that `.neptune/offline/<directory>` lies in.

    Not a home directory and nothing above one: that would be everything the person has.
    """
    for above in directory.parents:
        if above.name in ("offline", "async"):
            # The folder may have been copied without the level above it.
            held_in = above.parent.parent if above.parent.name == ".neptune" else above.parent
            return [] if Path.home().resolve().is_relative_to(held_in) else [held_in]
    return []


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(str(path)) from error


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(_mode(path))


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """What is there, a link being one; 0 for nothing."""
    try:
        return path.lstat().st_mode
    except (OSError, ValueError):
        return 0


def _entries_below(base: Path) -> Iterator[Path]:
    """All that lies below, in a fixed order, without following links."""
    for parent, folders, names in os.walk(base):
        folders.sort()
        for name in sorted([*folders, *names]):
            yield Path(parent, name)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern part by part; `**` stands for any number of parts."""
    reached = {0}
    for part in parts:
        reached = _skipping(reached, pattern)
        reached = {
            at if pattern[at] == "**" else at + 1
            for at in reached
            if at < len(pattern) and (pattern[at] == "**" or fnmatch.fnmatchcase(part, pattern[at]))
        }
    return len(pattern) in _skipping(reached, pattern)


def _skipping(reached: set[int], pattern: Sequence[str]) -> set[int]:
    """The places of a pattern that can be reached without a part of the path."""
    result = set(reached)
    for at in sorted(reached):
        while at < len(pattern) and pattern[at] == "**":
            at += 1
            result.add(at)
    return result
