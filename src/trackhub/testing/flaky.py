"""A backend that fails, delays and rejects as a script says, and otherwise does what another one does.

Apart from `MemoryBackend` because it goes round any backend: how a delivery bears trouble is best seen with a real one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trackhub.backend import Backend, OpenedRun, RunInfo
from trackhub.errors import RecordRejected
from trackhub.lowering import supported_kinds
from trackhub.records import EndStatus, Record


@dataclass
class Script:
    """What goes wrong, and when. It may be changed while it plays.

    Args:
        failures: Method -> what its calls raise, one after the other; None for a call that works. Calls beyond work.
        delays_seconds: Method -> how long each of its calls takes longer.
        is_bad: Which records are refused for ever; asked for each metric of a step alone, too.
        notes: Method -> notes of `(reason, subject, detail)` that each of its calls adds.
    """

    failures: dict[str, list[BaseException | None]] = field(default_factory=dict)
    delays_seconds: dict[str, float] = field(default_factory=dict)
    is_bad: Callable[[Record], bool] = lambda _: False
    notes: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)

    def play(self, backend: Backend, method: str, records: Sequence[Record] = ()) -> None:
        """Do what the script has for this call, before the backend does it.

        Raises:
            BaseException: What the script has.
        """
        time.sleep(self.delays_seconds.get(method, 0.0))
        for note in self.notes.get(method, []):
            backend.notes.add(*note)
        failures = self.failures.get(method)
        failure = failures.pop(0) if failures else None
        if failure is not None:
            raise failure
        if any(self.is_bad(record) for record in records):
            raise RecordRejected(f"one of {len(records)} is bad")


class FlakyBackend(Backend):
    """Goes round another backend: `FlakyBackend.around(MemoryBackend, script)` is the class to deliver with."""

    script: ClassVar[Script]

    @classmethod
    def around(cls, kind: type[Backend], script: Script) -> type[Backend]:
        """A backend class that shows what `kind` shows, with its name and options, and fails as the script says.

        Args:
            kind: The backend that does the work.
            script: What goes wrong; one for all objects of the class, as they come and go with each reconnection.
        """
        methods = {method: _scripted(method) for method in (f"write_{one}" for one in supported_kinds(kind))}
        return type(f"Flaky{kind.__name__}", (cls, kind), {"script": script, "__module__": kind.__module__, **methods})

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Fail as the script says, or open."""
        self.script.play(self, "open")
        return super().open(run, state)  # type: ignore[safe-super]

    def checkpoint(self) -> Mapping[str, Any] | None:
        """Fail as the script says, or remember."""
        self.script.play(self, "checkpoint")
        return super().checkpoint()

    def close(self, status: EndStatus) -> None:
        """Fail as the script says, or end the run."""
        self.script.play(self, "close")
        super().close(status)

    def disconnect(self) -> None:
        """Fail as the script says, or let go."""
        self.script.play(self, "disconnect")
        super().disconnect()


def _scripted(method: str) -> Callable[[FlakyBackend, Sequence[Record]], None]:
    def write(self: FlakyBackend, records: Sequence[Record]) -> None:
        self.script.play(self, method, records)
        getattr(super(FlakyBackend, self), method)(records)

    return write
