"""Prints metrics as lines that Katib's default collector reads from the standard output of a trial.

One vendor, one file. It must live in the training process, because the collector reads what that prints; no package
is needed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
import select
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from trackhub.backend import Backend, BackendOptions, OpenedRun, RunInfo, hookimpl
from trackhub.errors import BackendUnavailable
from trackhub.records import MetricsLogged

PATIENCE_SECONDS = 2.0
"""How long to wait for a reader that does not take lines."""

_ILLEGAL = re.compile(r"[^A-Za-z0-9_-]")


class KatibOptions(BackendOptions):
    """Options of the Katib backend."""

    metrics: Annotated[
        tuple[str, ...],
        Field(
            description="Names of the metrics to print, as they are logged: the objective and additional metrics of "
            "the experiment. Default: all of them."
        ),
    ] = ()


class KatibBackend(Backend):
    """Prints `<time> <name>=<value>`, a line for each finite value of each step.

    The lines go to what was standard output when the run began, whatever is put in its place afterwards, in one
    write a batch and never in the middle of another line.
    """

    name = "katib"
    Options = KatibOptions
    needs_training_process = True

    _output: int | None = None

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Keep hold of standard output."""
        self._names: dict[str, str] = dict(state.get("names", {}))
        # Folds and trials of a search inside the trial would be taken for values of the trial's own objective.
        self._is_child = run.parent_remote_id is not None
        self._child_said = False
        self.disconnect()
        with contextlib.suppress(OSError):
            self._output = os.dup(_standard_output())
        return OpenedRun(remote_id=run.id, state=self.checkpoint())

    def checkpoint(self) -> Mapping[str, Any]:
        """What each metric is called."""
        return {"names": dict(self._names)}

    def disconnect(self) -> None:
        """Let go of standard output."""
        if self._output is not None:
            with contextlib.suppress(OSError):
                os.close(self._output)
            self._output = None

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Metrics: a line each.

        Raises:
            BackendUnavailable: Nobody reads, or the disk is full; lines may then be printed twice, which is harmless.
        """
        if self._is_child:
            if not self._child_said:
                self._child_said = True
                self.notes.add("not printed", "metrics of a child run", "Katib knows one set of metrics a trial")
            return
        chosen = frozenset(self.options.metrics)
        lines: list[str] = []
        not_finite: list[str] = []
        for point in points:
            when = _rfc3339(point.time_ns)
            for name, value in point.values.items():
                if chosen and name not in chosen:
                    continue
                if math.isfinite(value):
                    lines.append(f"{when} {self._legal(name)}={float(value)!r}\n")
                else:
                    not_finite.append(name)
        if lines and not self._print("".join(lines).encode("ascii")):
            self.notes.add("not printed", f"{len(lines)} values", "standard output is closed")
        for name in not_finite:
            self.notes.add("not finite", name, "not printed: it would stall the experiment")

    def _legal(self, name: str) -> str:
        """What a metric is called in a line: other characters replaced, and two metrics never called the same."""
        legal = self._names.get(name)
        if legal is None:
            legal = _ILLEGAL.sub("_", name) or "_"
            if legal in self._names.values():
                legal = f"{legal}-{hashlib.blake2s(name.encode(errors='replace')).hexdigest()[:6]}"
            self._names[name] = legal
            if legal != name:
                self.notes.add("renamed", name, f"printed as {legal}; write that in the experiment")
        return legal

    def _print(self, lines: bytes) -> bool:
        """Print whole lines; False if standard output is closed."""
        if self._output is None:
            return False
        # What the training has printed so far comes before.
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            sys.__stdout__.flush()  # type: ignore[union-attr]
        # A line may be unfinished, be it a progress bar's or one the buffer was full in the middle of.
        rest = memoryview(b"\n" + lines)
        until = time.monotonic() + PATIENCE_SECONDS
        while rest:
            try:
                rest = rest[os.write(self._output, rest) :]
            except BlockingIOError:
                if time.monotonic() > until:
                    raise BackendUnavailable("nobody reads the standard output") from None
                select.select([], [self._output], [], PATIENCE_SECONDS)
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.EBADF):
                    return False
                raise BackendUnavailable(f"standard output cannot be written: {error.strerror}") from error
        return True


def _standard_output() -> int:
    """The descriptor of the process's standard output, which `sys.stdout` may have long stopped to be."""
    try:
        return sys.__stdout__.fileno()  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        # Never simply 1: where standard output was closed, that may by now be a file of the training's.
        return -1


def _rfc3339(time_ns: int) -> str:
    """A time as Go's RFC3339Nano.

    >>> _rfc3339(1_763_717_400_000_000_001)
    '2025-11-21T09:30:00.000000001Z'
    """
    seconds, nanoseconds = divmod(time_ns, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z"


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backend of this module."""
    return [KatibBackend]
