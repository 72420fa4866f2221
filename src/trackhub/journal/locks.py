"""Signs of life: the number a writer takes, and the lock by which others see that it still lives.

Apart because it is about processes, not records: how long a lock is held decides when a run counts as killed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import struct
from pathlib import Path

from trackhub.private import UntrustedFileError, open_file, open_to_read

_WRITER_FILE = re.compile(r"w(\d{4,})(?:\.lock|-s\d{6,}\.journal)")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_WHOLE_FILE = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _lock_name(writer: int) -> str:
    return f"w{writer:04d}.lock"


# Lock files this process holds: descriptor -> device and inode. Where only POSIX locks are to be had, closing any other
# descriptor of a locked file would let go of the lock, so a process looks here before it opens one.
_held_locks: dict[int, tuple[int, int]] = {}


def forget_locks_after_fork() -> None:
    """In a forked child: close the parent's lock files, or the child would keep them locked when the parent ends."""
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=forget_locks_after_fork)


def claim_writer_number(directory: Path) -> tuple[int, int]:
    """Take the next free writer number; gives the descriptor of its lock file, and the number."""
    taken = [int(match[1]) for name in os.listdir(directory) if (match := _WRITER_FILE.fullmatch(name))]  # noqa: PTH208
    number = max(taken, default=0)
    while True:
        number += 1
        path = directory / _lock_name(number)
        try:
            descriptor = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue
        break
    try:
        status = os.fstat(descriptor)
        # Before it is locked: a child that is forked from now on lets go of it.
        _held_locks[descriptor] = status.st_dev, status.st_ino
        claim = {"locked": lock_file(descriptor), "pid": os.getpid(), "host": socket.gethostname()}
        os.write(descriptor, json.dumps(claim).encode())
    except BaseException:
        _held_locks.pop(descriptor, None)
        os.close(descriptor)
        raise
    return descriptor, number


def lock_file(descriptor: int, *, wait: bool = True) -> bool:
    """Lock a file until the descriptor, and every copy that a fork made of it, is closed.

    Args:
        descriptor: Of a file open for writing.
        wait: Whether to wait for another process to let go of it.

    Returns:
        False where the file system has no locks.

    Raises:
        BlockingIOError: Another process, or another descriptor of this one, has locked it and `wait` is false.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except PermissionError as error:
        raise BlockingIOError(error.errno, "locked by another process") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    else:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:
        raise BlockingIOError(error.errno, "locked by another process") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def is_locked(descriptor: int) -> bool:
    """Whether somebody else has locked a file; False where the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        pass
    return False


def release(descriptor: int) -> None:
    """Let go of the lock file that `claim_writer_number` gave."""
    if _held_locks.pop(descriptor, None) is not None:
        os.close(descriptor)


def writer_is_alive(directory: Path, writer: int) -> bool:
    """Whether the process that writes as this writer still has the journal open."""
    path = directory / _lock_name(writer)
    try:
        status = path.stat()
        if (status.st_dev, status.st_ino) in _held_locks.values():
            return True
        descriptor = open_to_read(path)
    except (FileNotFoundError, UntrustedFileError):
        return False
    try:
        return is_locked(descriptor) or _alive_by_process_id(os.read(descriptor, 4096))
    finally:
        os.close(descriptor)


def a_writer_is_alive(directory: Path) -> bool:
    """Whether any process has the journal open for writing."""
    return any(
        writer_is_alive(directory, int(match[1]))
        for path in directory.glob("w*.lock")
        if (match := _WRITER_FILE.fullmatch(path.name))
    )


def _alive_by_process_id(content: bytes) -> bool:
    """For file systems without locks: a process of the same host can be asked for; one of another host cannot."""
    try:
        claim = json.loads(content)
        if claim["locked"]:
            return False
        if claim["host"] != socket.gethostname():
            return True
        os.kill(claim["pid"], 0)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
