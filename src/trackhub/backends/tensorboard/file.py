"""An event file that is only ever as long as what has been delivered, plus what is being written now.

Apart from the backend because it knows bytes and disks and nothing of TensorBoard's meaning: framing, checksums,
cutting back what was half written, and saying "not now" when the disk does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import struct
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from trackhub.errors import BackendUnavailable, StateLost

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
_FRAME_BYTES = 16  # a length, its checksum and the event's
_MASK_DELTA = 0xA282EAD8  # TFRecord stores checksums rotated and shifted by this


@functools.cache
def _tables() -> tuple[list[int], list[int], list[int]]:
    """CRC-32C tables: for one byte, and for the lower and the upper half of a 32-bit word.

    Half a word a step does in pure Python a third of the work of a byte a step; 7 ms and 5 MB once, so built when
    needed first.
    """
    byte: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        byte.append(value)
    shifted = [byte]
    for _ in range(3):
        shifted.append([byte[value & 255] ^ (value >> 8) for value in shifted[-1]])
    lower = [high ^ low for high in shifted[2] for low in shifted[3]]
    upper = [high ^ low for high in shifted[0] for low in shifted[1]]
    return byte, lower, upper


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of some bytes."""
    byte, lower, upper = _tables()
    words = len(data) >> 2
    crc = 0xFFFFFFFF
    for word in struct.unpack_from(f"<{words}I", data):
        crc ^= word
        crc = lower[crc & 0xFFFF] ^ upper[crc >> 16]
    for value in data[words << 2 :]:
        crc = byte[(crc ^ value) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> bytes:
    """The checksum of some bytes, as a TFRecord stores it."""
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF)


@functools.lru_cache(maxsize=1024)
def _head(length: int) -> bytes:
    """The start of a record. Cached because the events of one training loop are nearly all of a few lengths."""
    size = struct.pack("<Q", length)
    return size + masked_crc(size)


def framed(event: bytes) -> bytes:
    """One serialised event as a TFRecord: length, its checksum, the event, its checksum."""
    return b"".join((_head(len(event)), event, masked_crc(event)))


def events_in(path: Path, size_bytes: int | None = None) -> Iterator[bytes]:
    """The serialised events of a file, one after the other, up to the first that is not whole.

    Args:
        path: The file.
        size_bytes: How much of it to read; default: all there is.
    """
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size if size_bytes is None else size_bytes
        while left >= _FRAME_BYTES:
            (length,) = struct.unpack("<Q", file.read(12)[:8])
            left -= _FRAME_BYTES + length
            if left < 0:
                return
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)


@contextlib.contextmanager
def unavailable_on_os_error(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a BackendUnavailable that names the path: disks fill up, and are emptied again."""
    try:
        yield
    except OSError as error:
        raise BackendUnavailable(f"cannot {doing} {path}: {error.strerror or error}") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole small file in one step, so that no reader sees half of it."""
    with unavailable_on_os_error("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(".new")  # not named after `path`: TensorBoard reads any file with "tfevents" in its name
        new.write_bytes(data)
        new.replace(path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that `target` is either whole or absent."""
    with unavailable_on_os_error("copy to", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(".new")
        shutil.copyfile(source, new)
        new.replace(target)


class EventFile:
    """Appends events to one file, all of a batch or none of it.

    Args:
        path: The event file.
        size_bytes: How much of the file counts as delivered; what lies behind is cut off. None starts it anew.
    """

    def __init__(self, path: Path, size_bytes: int | None) -> None:
        self.path = path
        self.size_bytes = size_bytes or 0
        self._file: FileIO | None = None
        with unavailable_on_os_error("open", path):
            if size_bytes is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            self._file = self._opened()

    def append(self, events: list[bytes]) -> None:
        """Append serialised events. When this returns they are in the operating system's hands.

        Raises:
            BackendUnavailable: Nothing was appended; the next call first cuts off what may have been.
            StateLost: The file was deleted or cut short by somebody else.
        """
        data = memoryview(b"".join(map(framed, events)))
        written = 0
        with unavailable_on_os_error("write", self.path):
            try:
                if self._file is None:
                    self._file = self._opened()
                elif os.fstat(self._file.fileno()).st_nlink == 0:
                    raise FileNotFoundError  # deleted under us: writing on would fill a file nobody can open
                while written < len(data):
                    written += self._file.write(data[written:]) or 0
            except OSError as error:
                self._give_up()
                if isinstance(error, FileNotFoundError):
                    raise self._gone("it was deleted") from error
                raise
        self.size_bytes += len(data)

    def cut_back(self, size_bytes: int) -> None:
        """Take back what was appended behind a size the file had. Never raises: the next call does what fails now."""
        self.size_bytes = size_bytes
        self.close()
        with contextlib.suppress(OSError, StateLost):
            self._file = self._opened()

    def close(self) -> None:
        """Let go of the file. Never raises."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _opened(self) -> FileIO:
        """Open the file and cut it back to what counts, in place, so that a reader with it open notices nothing."""
        try:
            file = FileIO(self.path, "r+")
        except FileNotFoundError as error:
            raise self._gone("it does not exist") from error
        try:
            found = os.fstat(file.fileno()).st_size
            if found < self.size_bytes:
                raise self._gone(f"it has {found} bytes instead of at least {self.size_bytes}")
            if found > self.size_bytes:
                file.truncate(self.size_bytes)
            file.seek(self.size_bytes)
        except BaseException:
            file.close()
            raise
        return file

    def _give_up(self) -> None:
        """Drop the handle (it may be stale, on a network file system) and try to leave no half record behind."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size_bytes)
        self.close()

    def _gone(self, what: str) -> StateLost:
        return StateLost(f"{self.path} is not the event file that was written before: {what}")
