"""The whole history of the metrics, as JSON lines at the path of a Metrics artifact, which KFP uploads with it.

Apart from the backend because KFP knows no steps: this file is for whoever reads the artifact.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from trackhub.backends.kfp.files import unavailable_on_os_error


class Line(msgspec.Struct, gc=False):
    """One step, a line of the history: NaN and infinities are the texts that `float()` takes."""

    step: int
    timestamp: float
    metrics: dict[str, Any]


_encoder = msgspec.json.Encoder()


def encoded(lines: list[Line]) -> bytes:
    """Lines as strict JSON, one a line. Takes the lines over."""
    content = _encoder.encode_lines(lines)
    # msgspec writes null for what is not finite; to look for that is cheaper than to look at every value.
    if b":null" in content:
        for line in lines:
            # One sum is cheaper than many questions; of finite values it may overflow, which does no harm.
            if not math.isfinite(sum(line.metrics.values())):
                line.metrics = {name: _spelled(value) for name, value in line.metrics.items()}
        content = _encoder.encode_lines(lines)
    return content


def _spelled(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class History:
    """A file that only grows, batch by batch: all of a batch or none of it.

    Args:
        path: The file; whatever is there is written over, for it can only be of an earlier attempt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How much of the file counts."""
        return self._size_bytes

    def cut(self, size_bytes: int) -> None:
        """Take back what was appended after the file had this size; the next call of `append` cuts it off."""
        self._size_bytes = size_bytes

    def append(self, content: bytes) -> None:
        """Append what is complete lines.

        Raises:
            BackendUnavailable: The disk refuses; the next call first cuts off what may have been written.
        """
        with unavailable_on_os_error("write", self.path):
            if self._size_bytes == 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch()
            with self.path.open("r+b") as file:
                file.truncate(self._size_bytes)
                file.seek(self._size_bytes)
                file.write(content)
        self._size_bytes += len(content)

    def remove(self) -> None:
        """Remove the file.

        Raises:
            BackendUnavailable: The disk refuses.
        """
        if self._size_bytes:
            with unavailable_on_os_error("remove", self.path):
                self.path.unlink(missing_ok=True)
            self._size_bytes = 0
