"""Files and folders of a run directory: for their owner alone whatever the umask, and no link in them is followed.

Apart because all that writes into a run directory keeps to the same three rules: folders are 0700 and files 0600; what
lies in the way as a link is an error and not another file; and what is read is a file of bounded size, not a pipe.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


class UntrustedFileError(OSError):
    """What lies there is no file of a run directory: a link, a pipe, or larger than such a file can be."""


def make_directory(path: Path, *, parents: bool = False) -> None:
    """Make a folder for its owner alone, or make one that is there so.

    Args:
        path: The folder.
        parents: Whether to make the folders above it too, with the usual modes.

    Raises:
        OSError: It cannot be made.
        NotADirectoryError: Something else lies there, a link to a folder for instance.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "is no folder of the run directory", str(path))
    if stat.S_IMODE(mode) != 0o700:
        # Another user's folder, or a file system without modes.
        with suppress(OSError):
            path.chmod(0o700)


def open_file(path: Path | str, flags: int) -> int:
    """Open a file for its owner alone, without following a link; give its descriptor.

    Args:
        path: The file.
        flags: As for `os.open`; it is made if they have `O_CREAT`.

    Raises:
        OSError: It cannot be opened, or is a link.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if flags & os.O_CREAT and stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
        with suppress(OSError):
            os.fchmod(descriptor, 0o600)
    return descriptor


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file for its owner alone.

    Raises:
        OSError: It cannot be written, or a link lies there.
    """
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(content)


def open_to_read(path: Path) -> int:
    """Open a file of a run directory for reading: a file, and no pipe that never answers or link to another place.

    Raises:
        FileNotFoundError: There is none.
        UntrustedFileError: It is no file.
        OSError: It cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UntrustedFileError(error.errno, "is a link", str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UntrustedFileError(errno.EINVAL, "is no file", str(path))
    return descriptor


def read_file(path: Path, max_bytes: int) -> bytes:
    """All of a file that is not larger than it should be.

    Raises:
        FileNotFoundError: There is none.
        UntrustedFileError: It is no file, or too large.
        OSError: It cannot be read.
    """
    with os.fdopen(open_to_read(path), "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UntrustedFileError(errno.EFBIG, f"is larger than the {max_bytes:,} bytes that it may have", str(path))
    return content
