"""The measurements: which programs run how often, in which order, and what is counted afterwards.

Apart from the programs themselves because this side may import and read whatever it needs; the measured side may not.
Everything is repeated in rounds, and in every round all contenders take their turn, each in a fresh process and in an
order that rotates: a neighbour who gets busy hurts everybody, not one.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import readback
from benchmarks.child import COUNTER, COUNTER_FORMAT, CUT_SHORT, KEYS, RESULT
from benchmarks.contenders import CONTENDERS, DATABASE, Contender, Nothing
from benchmarks.processes import MeasurementError, Outcome, kill_descendants, run

Numbers = dict[str, Any]
_CHILD = "from benchmarks.child import main; main()"
_COUNTED_STEPS = 10_000
_STEP_MS = 10.0
_STEPS_PER_SECOND = 2_000


@dataclass(frozen=True)
class Effort:
    """How much is measured; a pair is (contenders that are fast, contenders that take milliseconds a call)."""

    call_rounds: tuple[int, int]
    calls: tuple[int, int]
    wide_calls: tuple[int, int]
    spread_blocks: int
    step_rounds: tuple[int, int]
    bare_steps: tuple[int, int]
    early_steps: tuple[int, int]
    late_steps: tuple[int, int]
    cpu_rounds: tuple[int, int]
    cpu_steps: tuple[int, int]
    start_rounds: tuple[int, int]
    import_rounds: int
    kill_rounds: tuple[int, int]
    kill_seconds: float
    leaves_out: tuple[str, ...] = ()
    """Contenders that no promise needs, measured only when they are named."""


FULL = Effort(
    call_rounds=(3, 2),
    calls=(10_000, 500),
    wide_calls=(100, 5),
    spread_blocks=20,
    step_rounds=(3, 2),
    bare_steps=(100, 100),
    early_steps=(400, 100),
    late_steps=(300, 300),
    cpu_rounds=(3, 1),
    cpu_steps=(_COUNTED_STEPS, _COUNTED_STEPS),
    start_rounds=(7, 7),
    import_rounds=15,
    kill_rounds=(4, 4),
    kill_seconds=1.5,
)
QUICK = Effort(
    call_rounds=(1, 1),
    calls=(10_000, 100),
    wide_calls=(100, 2),
    spread_blocks=20,
    step_rounds=(1, 1),
    bare_steps=(60, 20),
    early_steps=(400, 20),
    late_steps=(100, 50),
    cpu_rounds=(1, 1),
    cpu_steps=(_COUNTED_STEPS, 200),
    start_rounds=(3, 1),
    import_rounds=7,
    kill_rounds=(2, 1),
    kill_seconds=1.0,
    leaves_out=("mlflow-async",),
)


def missing(contender: type[Contender]) -> str | None:
    """Why a contender cannot take part, or None."""
    absent = [module for module in contender.modules if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Bench:
    """One run of all measurements.

    Args:
        contenders: Names, in the order of the tables.
        effort: How much to measure.
        seed: Of the random moments of the kills.
        say: Called with a line for every measurement that is done.
    """

    def __init__(self, contenders: list[str], effort: Effort, seed: int, say: Callable[[str], None]) -> None:
        self.effort = effort
        self.runs: dict[str, dict[str, list[Numbers]]] = {name: {} for name in contenders}
        self.imports: dict[str, list[float]] = {}
        self.failures: dict[str, str] = {}
        self._random = random.Random(seed)
        self._say = say
        self._work = Path()
        self._count = 0

    def measure(self) -> None:
        """Measure everything; `runs`, `imports` and `failures` hold what came out."""
        effort = self.effort
        with tempfile.TemporaryDirectory(prefix="trackhub-bench-") as work:
            self._work = Path(work)
            if any(DATABASE in CONTENDERS[name].sinks.values() for name in self.runs):
                self._directory(None)
                self._child("create_database")
                shutil.copy(self._last / DATABASE, self._work / DATABASE)
            self._directory(None)
            size = self._child("calibrate", target_ms=_STEP_MS)[0]["size"]
            self._rounds("calls", effort.call_rounds, self._calls)
            self._rounds("steps", effort.step_rounds, lambda name, _: self._steps(name, size))
            self._rounds("cpu", effort.cpu_rounds, self._cpu)
            self._rounds("kill", effort.kill_rounds, self._kill)
            # Last, when every library has been read from disk and compiled by the measurements before.
            self._rounds("start", effort.start_rounds, self._start)
            self._import_rounds(effort.import_rounds)

    def _rounds(self, measurement: str, rounds: tuple[int, int], one: Callable[[str, int], Numbers | None]) -> None:
        """Let every contender take its turn in every round; one that fails is left out of this measurement then."""
        for number in range(max(rounds)):
            names = [name for name in self.runs if f"{measurement} {name}" not in self.failures]
            shift = number % max(1, len(names))
            for name in names[shift:] + names[:shift]:
                contender = CONTENDERS[name]
                if number >= rounds[contender.slow]:
                    continue
                directory = self._directory(contender)
                try:
                    numbers = one(name, number)
                except MeasurementError as error:
                    self.failures[f"{measurement} {name}"] = str(error)
                    self._say(f"{measurement:<6} {name:<17} FAILED {error}")
                    continue
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
                if numbers is not None:
                    self.runs[name].setdefault(measurement, []).append(numbers)
                    shown = "  ".join(f"{key} {_short(value)}" for key, value in numbers.items())
                    self._say(f"{measurement:<6} {name:<17} {shown}")

    def _start(self, name: str, _: int) -> Numbers:
        """From creating the process to the return of the first call; the rest of the process is cut short."""
        result, outcome = self._child("start", contender=name)
        return {"first_metric_ms": (result["first_metric_at"] - outcome.started) * 1e3}

    def _import_rounds(self, rounds: int) -> None:
        """`import trackhub` beside a bare interpreter, taking turns."""
        statements = {"bare": "pass"}
        if any("trackhub" in CONTENDERS[name].modules for name in self.runs):
            statements["trackhub"] = "import trackhub"
        tail = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC))"
        for number in range(-1, rounds):
            for key, statement in statements.items():
                directory = self._directory(None)
                outcome = run(["-c", f"{statement}; {tail}"], directory)
                ended = float((directory / "output.txt").read_text().split()[-1])
                if number >= 0:
                    self.imports.setdefault(key, []).append((ended - outcome.started) * 1e3)

    def _calls(self, name: str, _: int) -> Numbers:
        effort, slow = self.effort, CONTENDERS[name].slow
        blocks = 0 if slow else effort.spread_blocks
        return self._child(
            "calls", contender=name, count=effort.calls[slow], wide=effort.wide_calls[slow], blocks=blocks
        )[0]

    def _steps(self, name: str, size: int) -> Numbers:
        effort, slow = self.effort, CONTENDERS[name].slow
        numbers = self._child(
            "steps",
            contender=name,
            size=size,
            bare=effort.bare_steps[slow],
            early=effort.early_steps[slow],
            late=effort.late_steps[slow],
        )[0]
        return {
            **numbers,
            "early_slowdown_percent": (numbers["early_ms"] / numbers["bare_ms"] - 1) * 100,
            "slowdown_percent": (numbers["late_ms"] / numbers["bare_ms"] - 1) * 100,
            "median_slowdown_percent": (numbers["late_median_ms"] / numbers["bare_median_ms"] - 1) * 100,
        }

    def _cpu(self, name: str, _: int) -> Numbers:
        """CPU seconds of all processes until the last has exited, and whether everything had arrived by then.

        With fewer than 10,000 steps what lies between the first call and the end of `close` is scaled up. Only slow
        peers are measured so, which do all their work in one process.
        """
        count = self.effort.cpu_steps[CONTENDERS[name].slow]
        result, outcome = self._child("everything", contender=name, count=count)
        of_steps = result["cpu_closed_seconds"] - result["cpu_start_seconds"]
        return {
            "cpu_seconds": outcome.cpu_seconds + of_steps * (_COUNTED_STEPS / count - 1),
            "n": count,
            "seconds": outcome.seconds,
            "close_seconds": result["close_seconds"],
            "processes": 1 + outcome.descendants,
            **self._survivors(CONTENDERS[name], count),
        }

    def _kill(self, name: str, number: int) -> Numbers | None:
        """SIGKILL at a random moment: in even rounds the whole process tree, in odd ones the training process alone.

        Contenders that are a single process take part in the even rounds only.
        """
        contender, directory = CONTENDERS[name], self._last
        whole_tree = number % 2 == 0
        if not contender.sinks or not (whole_tree or contender.recovery):
            return None
        delay = self.effort.kill_seconds * self._random.uniform(0.8, 1.2)
        counter = directory / COUNTER
        counter.write_bytes(bytes(struct.calcsize(COUNTER_FORMAT)))
        returned = 0

        def kill(pid: int) -> None:
            nonlocal returned
            with counter.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as shared:
                _wait_for_first_step(pid, shared)
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
                if whole_tree:
                    kill_descendants()
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # now nothing counts any more
                (returned,) = struct.unpack(COUNTER_FORMAT, shared[:])

        spec = {"program": "endless", "contender": name, "steps_per_second": _STEPS_PER_SECOND}
        outcome = run(["-c", _CHILD, json.dumps(spec)], directory, meanwhile=kill, expected_status=-signal.SIGKILL)
        recovery_seconds = 0.0
        if whole_tree and contender.recovery:
            recovery = run([*contender.recovery], directory, TRACKHUB_DIR=str(directory / "trackhub"))
            recovery_seconds = recovery.seconds
        return {
            "killed": "whole tree" if whole_tree else "training process",
            "points": returned * len(KEYS),
            "descendants": outcome.descendants,
            "recovery_seconds": recovery_seconds,
            **self._survivors(contender, returned),
        }

    def _survivors(self, contender: type[Contender], returned: int) -> Numbers:
        """What each sink holds of the points whose calls had returned, and in what state the run is."""
        lost, twice = {}, {}
        for kind, path in contender.sinks.items():
            found = readback.points(kind, self._last / path)
            kept = {key: times for key, times in found.items() if key[0] in KEYS}
            lost[kind] = returned * len(KEYS) - sum(step < returned for _, step in kept)
            twice[kind] = sum(kept.values()) - len(kept)
        state = readback.mlflow_state(self._last / DATABASE) if "mlflow" in contender.sinks else None
        return {"lost": lost, "twice": twice, "state": state}

    def _directory(self, contender: type[Contender] | None) -> Path:
        """A fresh directory, with a copy of the database for those that write to MLflow."""
        self._count += 1
        self._last = self._work / str(self._count)
        self._last.mkdir()
        if contender is not None and DATABASE in contender.sinks.values():
            shutil.copy(self._work / DATABASE, self._last / DATABASE)
        return self._last

    def _child(self, program: str, **arguments: Any) -> tuple[Numbers, Outcome]:
        """Run a program of `child.py` in the newest directory."""
        directory, spec = self._last, {"program": program, **arguments}
        outcome = run(["-c", _CHILD, json.dumps(spec)], directory, stop_the_rest=program in CUT_SHORT)
        return json.loads((directory / RESULT).read_text()), outcome


def _wait_for_first_step(pid: int, shared: mmap.mmap) -> None:
    """Wait until the first call has returned; a process that ends before that is left to the caller's checks."""
    deadline = time.monotonic() + 120
    while not any(shared[:]):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        if time.monotonic() > deadline:
            raise MeasurementError("no call returned within 120 s")
        time.sleep(0.01)


def select(only: str | None, effort: Effort) -> tuple[list[str], dict[str, str]]:
    """The contenders to measure, and those that cannot be with the reason.

    Args:
        only: Names with commas between them; None for all.
        effort: May leave some out.

    Raises:
        SystemExit: When a name is wrong.
    """
    wanted = [name.strip() for name in only.split(",")] if only else list(CONTENDERS)
    if unknown := sorted(set(wanted) - set(CONTENDERS)):
        sys.exit(f"no such contender: {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    chosen = [name for name in CONTENDERS if name in wanted or name == Nothing.name]
    skipped = {name: reason for name in chosen if (reason := missing(CONTENDERS[name])) is not None}
    if only is None:
        skipped.update(dict.fromkeys(effort.leaves_out, "left out of a quick run"))
    return [name for name in chosen if name not in skipped], skipped


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")
