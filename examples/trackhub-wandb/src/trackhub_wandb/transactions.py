"""Reading a run's `.wandb` file: the log of everything that wandb's process was told, before it is sent anywhere.

Apart from the backend because it is a file format: seven bytes, then blocks of 32 KiB, in which each record is one or
more fragments of CRC-32, length, kind (whole, first, middle, last) and content. A record is a protobuf message.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_MAGIC = b":W&B\xe1\xbe\x00"
_BLOCK_BYTES = 32768
_FRAGMENT = struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


class TransactionFile:
    """A `.wandb` file, read from a place onwards while it is written.

    Args:
        path: The file.
        offset: Where a record begins; 0 is the file's beginning.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        """Where the next record begins: all before it has been given."""

    def read(self) -> Iterator[bytes]:
        """The records that have come since: those that are there completely."""
        content = self._rest()
        start = self.offset
        at = start
        if at == 0:
            if len(content) < len(_MAGIC):
                return
            if not content.startswith(_MAGIC):
                raise OSError(f"{self.path} is no file of wandb")
            at = len(_MAGIC)
        fragments: list[bytes] = []
        while True:
            left = _BLOCK_BYTES - at % _BLOCK_BYTES
            if left < _FRAGMENT.size:
                at += left
                continue
            head = content[at - start : at - start + _FRAGMENT.size]
            if len(head) < _FRAGMENT.size:
                return
            checksum, size, kind = _FRAGMENT.unpack(head)
            at += _FRAGMENT.size
            body = content[at - start : at - start + size]
            if len(body) < size or checksum != zlib.crc32(bytes([kind]) + body):
                # Torn: its writer was killed, or has not come to the end of it.
                return
            at += size
            if kind in (_WHOLE, _FIRST):
                fragments = []
            fragments.append(body)
            if kind in (_WHOLE, _LAST):
                self.offset = at
                yield b"".join(fragments)

    def _rest(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read()
