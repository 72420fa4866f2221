"""Snapshots: copies of files and rich values in the run directory, taken while the caller waits.

Apart from the journal because files are copied whole before the record that names them is written, so that a record in
the journal always has its content.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trackhub.private import make_directory, open_file, write_file
from trackhub.records import StoredFile


class NotStoredError(Exception):
    """The run directory did not take a file. No OSError, so that it is never mixed up with a source that is unreadable.

    Args:
        reason: Why, in the words of the system.
        disk_full: Whether there is no room.
    """

    def __init__(self, reason: str, *, disk_full: bool) -> None:
        super().__init__(reason)
        self.disk_full = disk_full


@contextmanager
def _writing() -> Iterator[None]:
    """While the run directory is written: whatever goes wrong is no fault of who logs."""
    try:
        yield
    except OSError as error:
        raise _not_stored(error) from error


@contextmanager
def _reading() -> Iterator[None]:
    """While the source is read: that a process has too many files open says nothing of the source."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise _not_stored(error) from error


def _not_stored(error: OSError) -> NotStoredError:
    return NotStoredError(error.strerror or str(error), disk_full=error.errno in (errno.ENOSPC, errno.EDQUOT))


class BlobStore:
    """Takes snapshots into one run's `blobs` directory.

    Args:
        directory: The run's `blobs` directory; exists.
        prefix: Makes the names of this writer's snapshots its own.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self._directory = directory
        self._prefix = prefix
        self._count = 0
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._unsynced: list[Path] = []

    def store(self, content: bytes, suffix: str, media_type: str) -> StoredFile:
        """Store bytes as a file.

        Args:
            content: What the file will hold.
            suffix: With its dot, e.g. `.png`.
            media_type: RFC 6838 media type.

        Raises:
            NotStoredError: The run directory does not take it.
        """
        path = self._directory / f"{self._next_name()}{suffix}"
        fresh = path.with_name(path.name + ".new")
        try:
            with _writing():
                write_file(fresh, content)
                fresh.replace(path)
        except BaseException:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        self._unsynced.append(path)
        return StoredFile(self._relative(path), len(content), media_type=media_type)

    def snapshot(self, source: Path) -> StoredFile:
        """Copy a file or a directory as it is now, without this run and those beside it, if they lie in it.

        Raises:
            FileNotFoundError: There is nothing at that path.
            ValueError: It is, or holds, something that is neither a file nor a directory, or a link into a circle.
            NotStoredError: The run directory does not take it.
            OSError: It cannot be read.
        """
        own = self._directory.parent.resolve()
        if source.resolve() in (own, self._directory.resolve()):
            raise ValueError(f"{str(source)!r} is the run directory itself, so it cannot be logged to the run")
        check_regular(source, self._is_run)
        folder = self._directory / self._next_name()
        fresh = folder.with_name(folder.name + ".new")
        copy = fresh / (source.name if source.name not in ("", "..") else source.resolve().name)

        try:
            with _writing():
                make_directory(fresh)
            if source.is_dir():
                _copy_folder(source, copy, self._is_run)
            else:
                _copy_file(source, copy)
            with _writing():
                fresh.replace(folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        copy = folder / copy.name
        self._unsynced.append(copy)
        with _writing():
            return describe(copy, self._relative(copy))

    def measure(self, source: Path) -> int:
        """How many bytes a snapshot would have.

        Raises:
            FileNotFoundError: There is nothing at that path.
            ValueError: It is, or holds, something that cannot be copied.
        """
        check_regular(source, self._is_run)
        return sum(file.stat().st_size for file in _files_of(source, self._is_run))

    def sync(self) -> None:
        """Make the snapshots survive a power failure too; called off the training thread.

        Raises:
            OSError: The disk did not take one of them, the first of those; the others are synced, and these are tried
                again at the next call.
        """
        # The thread that syncs every second and the one that ends the run may come at the same time.
        with self._sync_lock:
            failed: list[OSError] = []
            while len(self._unsynced) > len(failed):
                try:
                    _sync_file_or_folder(self._unsynced[len(failed)])
                except OSError as error:
                    failed.append(error)
                else:
                    del self._unsynced[len(failed)]
            if failed:
                raise failed[0]

    def _is_run(self, path: Path) -> bool:
        """Whether a directory is this run's, or that of a run beside it.

        With the runs below the working directory, as is the default, a copy of it would otherwise have all the copies
        that earlier runs have made of it, and each run would double the disk.
        """
        own = self._directory.parent.resolve()
        if path.name != own.name and not (path / "run.json").is_file():
            return False
        place = path.resolve()
        return place == own or (place.parent == own.parent and (place / "run.json").is_file())

    def _next_name(self) -> str:
        with self._lock:
            self._count += 1
            return f"{self._prefix}-{self._count:06d}"

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._directory.parent))


def describe(path: Path, name: str) -> StoredFile:
    """What a record says of a file or directory."""
    if path.is_dir():
        return StoredFile(name, sum(file.stat().st_size for file in _files_below(path)), is_directory=True)
    return StoredFile(
        name, path.stat().st_size, media_type=mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    )


def check_regular(source: Path, is_left_out: Callable[[Path], bool] = lambda _: False) -> None:
    """Refuse what cannot be copied: a missing path, a pipe, a socket, a device, links that lead in a circle.

    Args:
        source: What is to be copied.
        is_left_out: Whether a directory below it does not count.

    Raises:
        FileNotFoundError: There is nothing at that path, or at a link below it.
        ValueError: It is, or holds, something that is neither a file nor a directory, or a link into a circle.
    """
    if not source.exists():
        raise FileNotFoundError(f"there is no file or directory {str(source)!r} to log (looked in {Path.cwd()})")
    for file in _files_of(source, is_left_out):
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{str(file)!r} is neither a file nor a directory, so it cannot be logged")


def _files_of(source: Path, is_left_out: Callable[[Path], bool]) -> Iterable[Path]:
    return _files_below(source, is_left_out) if source.is_dir() else [source]


def _files_below(folder: Path, is_left_out: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        for name in list(folders):
            path = Path(parent) / name
            if is_left_out(path):
                folders.remove(name)
            elif path.is_symlink() and any(path.samefile(above) for above in (Path(parent), *Path(parent).parents)):
                raise ValueError(f"{str(path)!r} is a link to a directory it lies in, so it cannot be logged")
        for name in sorted(names):
            yield Path(parent) / name


def _sync_file_or_folder(path: Path) -> None:
    for file in _files_below(path) if path.is_dir() else [path]:
        # A delivery that has passed it may have freed it.
        with suppress(FileNotFoundError):
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(file)) from error
            finally:
                os.close(descriptor)


def _copy_folder(source: Path, target: Path, is_left_out: Callable[[Path], bool]) -> None:
    """Copy what is in a directory. Not `shutil.copytree`, whose errors do not say which side they are of."""
    with _writing():
        make_directory(target)
    with _reading():
        members = sorted(source.iterdir())
    for member in members:
        if not member.is_dir():
            _copy_file(member, target / member.name)
        elif not is_left_out(member):
            _copy_folder(member, target / member.name, is_left_out)


def _copy_file(source: Path, target: Path) -> None:
    """Copy inside the kernel where it can: file systems that share blocks then copy nothing at all."""
    with _reading():
        reader = source.open("rb")
    with reader, _new_file(target) as writer:
        left = os.fstat(reader.fileno()).st_size
        try:
            while left > 0:
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), left)
                if copied == 0:
                    break
                left -= copied
        except OSError:
            reader.seek(0)
            with _writing():
                writer.seek(0)
                writer.truncate()
        # Whatever the kernel did not copy; all of a file that does not tell its size, as those in /proc.
        while piece := reader.read(1 << 20):
            with _writing():
                writer.write(piece)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    with _writing():
        writer = os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")
    try:
        yield writer
    finally:
        # What is still in memory is written here, and some servers only now say that there is no room.
        with _writing():
            writer.close()
