"""`MemoryBackend` passes the conformance suite: what users test with behaves like a vendor."""

from __future__ import annotations

from pathlib import Path

from trackhub import OpenedRun
from trackhub.testing import BackendConformance, MemoryBackend, Shown


class TestMemory(BackendConformance):
    kind = MemoryBackend

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        return MemoryBackend.runs[str(opened.remote_id)].shown()
