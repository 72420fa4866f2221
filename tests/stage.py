"""What the tests of whole processes share: training scripts, their delivery processes, reading back what arrived."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backends_for_tests import HERE, install_plugins

from trackhub.journal import JournalReader, JournalRecord
from trackhub.rundir import RunDirectory, runs_in

DEADLINE_SECONDS = 60.0 * float(os.environ.get("TRACKHUB_TEST_PATIENCE", "1"))
"""Long enough for a machine that has time; on a busy one the variable says how many times as long it may take."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Wait until a condition holds; gives back what it gave."""
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def exists(process_id: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def delivery_processes(parent: int, backend: str | None = None) -> dict[str, int]:
    """Backend -> process id of the delivery processes a process has started, also after it has gone."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")[:-1]
            if words[2:5] == ["-P", "-m", "trackhub.delivery_process"] or "trackhub.delivery_process" in words:
                name, of = words[-2:]
                if of == str(parent) and backend in (None, name) and exists(int(folder.name)):
                    found[name] = int(folder.name)
    return found


def records_of(run: RunDirectory) -> list[JournalRecord]:
    """Everything in a run's journal."""
    reader, records, place = JournalReader(run.journal), [], {}
    while not (chunk := reader.read(place)).empty:
        records.extend(chunk.records)
        place = chunk.position
    reader.close()
    return records


def scalars(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of a run in TensorBoard, in the order of the events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = Path(run.cursor("tensorboard").state["file"]).parent
    found = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


class Stage:
    """A directory where training scripts run.

    Args:
        path: It.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plugins = path / "plugins"
        install_plugins(self.plugins)
        self.lines = path / "lines.jsonl"
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKHUB_", "MLFLOW_"))}
        self.environment = {
            **own,
            "PYTHONPATH": f"{self.plugins}:{HERE}",
            "TRACKHUB_DIR": str(path / "hub"),
            "TRACKHUB_TENSORBOARD_LOGDIR": str(path / "runs"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        for backend in ("LINES", "EXITING", "SLEEPING", "RAISING", "UNAVAILABLE", "INLINE", "SPY"):
            self.environment[f"TRACKHUB_{backend}_PATH"] = str(path / f"{backend.lower()}.jsonl")
        self._started: list[subprocess.Popen[str]] = []

    @property
    def root(self) -> Path:
        return self.path / "hub"

    def runs(self) -> list[RunDirectory]:
        return list(runs_in(self.root))

    def run_directory(self) -> RunDirectory:
        """The one run there is."""
        (run,) = self.runs()
        return run

    def start(self, code: str, *flags: str, environment: Mapping[str, str] | None = None, **more: Any) -> Any:
        """Start a training script; its standard output is for `said`."""
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        process = subprocess.Popen(
            [sys.executable, *flags, "-c", textwrap.dedent(code)],
            cwd=more.pop("cwd", self.path),
            env={**self.environment, **(environment or {})},
            **{**options, **more},
        )
        self._started.append(process)
        return process

    def run(self, code: str, *flags: str, exit_code: int | None = 0, **more: Any) -> tuple[str, str]:
        """Run a training script to its end; gives back what it printed."""
        process = self.start(code, *flags, stderr=subprocess.PIPE, **more)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert exit_code is None or process.returncode == exit_code, (process.returncode, out, err)
        return out.strip(), err

    def is_closed(self, backend: str, run: RunDirectory | None = None) -> bool:
        run = run or self.run_directory()
        return run.cursor(backend).closed and not run.remaining(run.cursor(backend))

    def wait_closed(self, *backends: str, run: RunDirectory | None = None) -> None:
        for backend in backends:
            wait_until(lambda name=backend: self.is_closed(name, run), f"{backend} to be complete")

    def end_all(self) -> None:
        """End what a test has started and not ended itself."""
        for process in self._started:
            with process:
                process.kill()
        for process in self._started:
            for pid in delivery_processes(process.pid).values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._started:
            wait_until(lambda pid=process.pid: not delivery_processes(pid), "the delivery processes to end")


def said(process: Any) -> str:
    """The next line a script printed."""
    line = process.stdout.readline()
    assert line, "the script ended early"
    return str(line.strip())


def tell(process: Any, line: str = "go on") -> None:
    """Let a script that reads a line go on."""
    process.stdin.write(line + "\n")
    process.stdin.flush()


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Stage]:
    """A stage on which nothing is left running."""
    stage = Stage(path)
    try:
        yield stage
    finally:
        stage.end_all()
