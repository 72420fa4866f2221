"""Fresh processes, watched to the last descendant: their exit, their CPU time, and their end when it takes too long.

Apart because it is all operating system: the harness makes itself the *subreaper* of what it starts, so a process that
leaves its session and outlives its parent (as a delivery process does) still comes back here to be waited for, and
`wait4` then tells its CPU time exactly. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.01
_FOREIGN_PREFIXES = ("TRACKHUB_", "MLFLOW_", "NEPTUNE_", "WANDB_", "PYTHON")


class MeasurementError(Exception):
    """A measured process failed or did not end; the text says how, with the end of what it wrote."""


@dataclass
class Outcome:
    """What became of a process and everything it started."""

    started: float
    """CLOCK_MONOTONIC just before the process was created, in seconds."""
    exit_status: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    """Until the last descendant had exited."""
    descendants: int = 0
    """How many processes outlived the one started and were reaped here."""


def become_subreaper() -> None:
    """Make orphaned descendants children of this process instead of init's."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def environment(**more: str) -> dict[str, str]:
    """The environment of every measured process: one numeric thread, no settings or telemetry from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_PREFIXES)}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        **more,
    }


def run(
    arguments: list[str],
    directory: Path,
    *,
    timeout_seconds: float = 300,
    meanwhile: Callable[[int], None] | None = None,
    stop_the_rest: bool = False,
    expected_status: int = 0,
    **variables: str,
) -> Outcome:
    """Run Python with `arguments` in `directory` until it and all its descendants have exited.

    Args:
        arguments: What follows the interpreter on the command line.
        directory: The working directory; what the process prints goes to `output.txt` in it.
        timeout_seconds: After which everything left is killed and MeasurementError raised.
        meanwhile: Called with the process id as soon as it is started.
        stop_the_rest: Kill the descendants once the process itself has exited, instead of waiting for them.
        expected_status: The exit status that is no failure (negative: the signal).
        variables: Added to the environment.
    """
    output = directory / "output.txt"
    with output.open("ab") as sink:
        outcome = Outcome(started=time.clock_gettime(time.CLOCK_MONOTONIC))
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=directory,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    try:
        if meanwhile is not None:
            meanwhile(process.pid)
        _reap(process, outcome, timeout_seconds, stop_the_rest)
    except BaseException:
        kill_descendants()
        _reap(process, outcome, 30, stop_the_rest)
        raise
    outcome.seconds = time.clock_gettime(time.CLOCK_MONOTONIC) - outcome.started
    if outcome.exit_status != expected_status:
        raise MeasurementError(f"exit status {outcome.exit_status}: {_tail(output)}")
    return outcome


def _reap(process: subprocess.Popen[bytes], outcome: Outcome, timeout_seconds: float, stop_the_rest: bool) -> None:
    """Wait for the process and every descendant that comes back here, adding up their CPU time."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() > deadline:
                names = ", ".join(_command(left) for left in _descendants())
                raise MeasurementError(f"still running after {timeout_seconds:.0f} s: {names}")
            time.sleep(_POLL_SECONDS)
            continue
        outcome.cpu_seconds += usage.ru_utime + usage.ru_stime
        if pid == process.pid:
            outcome.exit_status = process.returncode = os.waitstatus_to_exitcode(status)
            if stop_the_rest:
                kill_descendants()
        else:
            outcome.descendants += 1


def kill_descendants() -> None:
    """SIGKILL every process that descends from this one, and nothing else."""
    while left := _descendants():
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_POLL_SECONDS)


def _descendants() -> list[int]:
    """The living processes that descend from this one, parents before children; zombies wait for `_reap`.

    A zombie's children count: while other threads of it still end, the children have not been handed on.
    """
    children: dict[int, list[int]] = {}
    living: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except OSError:  # it ended in the meantime
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        pid = int(stat.parent.name)
        children.setdefault(int(parent), []).append(pid)
        if state not in "ZX":
            living.add(pid)
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return [pid for pid in found if pid in living]


def _command(pid: int) -> str:
    """What `ps` would show of a process."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"{pid} (gone)"
    return f"{pid} {b' '.join(words)[:120].decode(errors='replace').strip()}"


def _tail(output: Path) -> str:
    """The last lines a process wrote."""
    return " | ".join(output.read_text(errors="replace").strip().splitlines()[-4:])[-600:]
