"""`python -m benchmarks.scale`: how cost grows with a run, from a thousand points to a million, and with its width.

Apart from the other measurements because nothing is compared with peers here: the same journal is made larger and
larger, and brought to real servers and files by the same command that people use. What is judged are sizes, memory and
ratios within one run of the benchmark, which hold on any machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import growth
from benchmarks.processes import ROOT, MeasurementError, environment
from benchmarks.report import load, machine, versions

PER_STEP = 5
POINTS = (1_000, 10_000, 100_000, 1_000_000)
WIDE = 100_000
BACKENDS = ("tensorboard", "csv", "mlflow", "neptune")
BIG_STEPS = 15_000_000
"""Of five metrics each: a journal of 1 GB."""

RESUME_ROUNDS = 5

Numbers = dict[str, Any]


def main() -> int:
    """Do what the command line says; 1 when `--check` found a limit passed."""
    options = _parser().parse_args()
    if options.child:
        spec = json.loads(options.child)
        print(json.dumps(CHILDREN[spec.pop("program")](**spec)))
        return 0
    if options.judge:
        measured = json.loads(options.judge.read_text())
    else:
        with tempfile.TemporaryDirectory(prefix="trackhub-scale-") as work:
            measured = measure(Path(work), options.only.split(","), options.most, resume=not options.no_resume)
        if options.output:
            options.output.write_text(json.dumps(measured, indent=1) + "\n")
    if options.docs:
        growth.write_page(measured, ROOT / "docs")
    print(growth.markdown(measured))
    kept = growth.show_limits(measured)
    return 0 if kept or not options.check else 1


def measure(work: Path, backends: list[str], most: int, *, resume: bool) -> Numbers:
    """Record runs of growing size, deliver each to every backend, and go on with one of a gigabyte.

    Args:
        work: A directory for all of it.
        backends: Those to deliver to.
        most: Points of the largest run.
        resume: Whether to measure going on with a run of a gigabyte.
    """
    measured: Numbers = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "load_before": load(),
        "recorded": {},
        "delivered": {name: {} for name in backends},
    }
    shapes = {str(points): (points // PER_STEP, PER_STEP) for points in POINTS if points <= most}
    shapes |= {"wide": (1, WIDE), "single": (most, 1)}
    with contextlib.ExitStack() as stack:
        sinks = {name: stack.enter_context(SINKS[name](work)) for name in backends}
        for shape, (steps, values) in shapes.items():
            hub = work / f"hub-{shape}"
            # One identity each: to a backend they are different runs.
            spec = {"program": "record", "hub": str(hub), "run": shape, "steps": steps, "values": values}
            measured["recorded"][shape] = recorded = _child(spec, work)
            _say(f"recorded {shape}: {recorded}")
            for name, sink in sinks.items() if shape != "single" else ():
                measured["delivered"][name][shape] = _deliver(hub, shape, name, sink, steps * values)
                _say(f"delivered {shape} to {name}: {measured['delivered'][name][shape]}")
    if resume:
        measured["resumed"] = _resume(work)
        _say(f"resumed: {measured['resumed']}")
    measured["load_after"] = load()
    return measured


class Sink:
    """Where a backend delivers to, and how its points are counted there.

    Args:
        variables: The environment of the delivery.
        count: How many points of metrics of a run have arrived.
    """

    def __init__(self, variables: dict[str, str], count: Callable[[str], int]) -> None:
        self.variables = variables
        self.count = count


@contextlib.contextmanager
def _tensorboard(work: Path) -> Iterator[Sink]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    def count(run: str) -> int:
        files = (work / "runs" / run).rglob("*tfevents*")
        events = (event for file in files for event in EventFileLoader(str(file)).Load())
        return sum(value.metadata.plugin_data.plugin_name == "scalars" for one in events for value in one.summary.value)

    yield Sink({"TRACKHUB_TENSORBOARD_LOGDIR": str(work / "runs")}, count)


@contextlib.contextmanager
def _csv(work: Path) -> Iterator[Sink]:
    def count(run: str) -> int:
        (table,) = (work / "csv" / run).glob("metrics*.csv")
        return table.read_bytes().count(b"\n") - 1

    yield Sink({"TRACKHUB_CSV_DIRECTORY": str(work / "csv")}, count)


@contextlib.contextmanager
def _mlflow(work: Path) -> Iterator[Sink]:
    """MLflow's own server, on SQLite."""
    from mlflow_server import running_server

    def count(run: str) -> int:
        question = "SELECT count(*) FROM metrics JOIN runs USING (run_uuid) WHERE runs.name = ?"
        with contextlib.closing(sqlite3.connect(work / "server.db")) as connection:
            return int(connection.execute(question, [run]).fetchone()[0])

    with running_server(work) as url:
        yield Sink({"MLFLOW_TRACKING_URI": url}, count)


@contextlib.contextmanager
def _neptune(_: Path) -> Iterator[Sink]:
    """The server of the tests, in this process."""
    from neptune_server import neptune_server

    with neptune_server() as server:

        def count(run: str) -> int:
            return sum(map(len, server.run(name=run).values("metrics/").values()))

        yield Sink({"NEPTUNE_PROJECT": server.project, "NEPTUNE_API_TOKEN": server.api_token}, count)


SINKS = {"tensorboard": _tensorboard, "csv": _csv, "mlflow": _mlflow, "neptune": _neptune}


def _deliver(hub: Path, run: str, backend: str, sink: Sink, points: int) -> Numbers:
    """Bring a recorded run to a backend with `trackhub sync`, watching the delivery process."""
    began = time.monotonic()
    command = [sys.executable, "-m", "trackhub", "sync", run, "--to", backend, "--json"]
    variables = {**environment(**sink.variables), "TRACKHUB_DIR": str(hub)}
    with (hub / f"{backend}.txt").open("wb") as output:
        process = subprocess.Popen(command, env=variables, cwd=hub, stdout=output, stderr=output)
        peak_bytes, cpu_seconds = 0, 0.0
        while process.poll() is None:
            for child in _children(process.pid):
                peak_bytes = max(peak_bytes, _peak_bytes(child))
                cpu_seconds = max(cpu_seconds, _cpu_seconds(child))
            time.sleep(0.01)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise MeasurementError((hub / f"{backend}.txt").read_text()[-2000:])
    cursor = json.loads((hub / run / "cursors" / f"{backend}.json").read_bytes())
    return {
        "points": points,
        "accepted": cursor["report"]["points"],
        "arrived": sink.count(run),
        "notes": {reason: note["count"] for reason, note in cursor["report"]["notes"].items()},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes,
        "cursor_bytes": (hub / run / "cursors" / f"{backend}.json").stat().st_size,
    }


def _resume(work: Path, recorded: Path | None = None) -> Numbers:
    """What it takes to go on with a run whose journal has a gigabyte, all of it delivered, beside a new run.

    Args:
        work: A directory for all of it.
        recorded: A directory that has such a run already.
    """
    big = recorded or work / "resume-big"
    if recorded is None:
        spec = {"program": "record", "hub": str(big), "run": "big", "steps": BIG_STEPS, "values": PER_STEP}
        _child(spec, work)
    rounds: dict[str, list[Numbers]] = {"new": [], "1 GB": []}
    # In turns, so that what else the machine does meets both.
    for number in range(RESUME_ROUNDS):
        for name, hub, run in (("new", work / f"resume-{number}", "new"), ("1 GB", big, "big")):
            spec = {"program": "resume", "hub": str(hub), "run": run, "number": number}
            rounds[name].append(_child(spec, work))
            for command in ("status", "sync"):
                began = time.monotonic()
                subprocess.run(
                    [sys.executable, "-m", "trackhub", command, run],
                    env={**environment(TRACKHUB_CSV_DIRECTORY=str(hub / "csv")), "TRACKHUB_DIR": str(hub)},
                    stdout=subprocess.DEVNULL,
                    check=True,
                )
                rounds[name][-1][f"{command}_seconds"] = time.monotonic() - began
    # The best of the rounds: whatever else the machine does can only add to it.
    numbers: Numbers = {
        name: {key: min(one[key] for one in all_rounds) for key in all_rounds[0]} for name, all_rounds in rounds.items()
    }
    numbers["journal_bytes"] = sum(file.stat().st_size for file in (big / "big" / "journal").iterdir())
    return numbers


# What runs in a process of its own


def record(hub: str, run: str, steps: int, values: int) -> Numbers:
    """Record a run without a backend; what a call takes and what a point takes on disk."""
    import trackhub

    tracker = trackhub.init(project="scale", run_id=run, dir=hub, backends=[])
    names = [f"layer/{index:06}/gradient_norm" if values > PER_STEP else f"train/{index}" for index in range(values)]
    metrics = dict.fromkeys(names, 0.5)
    log, clock = tracker.log_metrics, time.perf_counter_ns
    longest = 0
    began = time.perf_counter()
    for step in range(steps):
        metrics[names[0]] = 1 / (step + 1)
        before = clock()
        log(metrics, step=step)
        longest = max(longest, clock() - before)
    seconds = time.perf_counter() - began
    journal = Path(hub) / run / "journal"
    reserved = _allocated(journal)
    tracker.finish()
    points = steps * values
    return {
        "points": points,
        "steps": steps,
        "call_us": seconds / steps * 1e6,
        "longest_call_ms": longest / 1e6,
        "bytes": _allocated(journal),
        "bytes_a_point": sum(file.stat().st_size for file in journal.iterdir()) / points,
        "reserved_bytes": reserved,
        "peak_bytes": _peak_bytes(os.getpid()),
    }


def resume(hub: str, run: str, number: int) -> Numbers:
    """Go on with a run, all of it delivered, and deliver one step: how long `init` takes, and how long the step."""
    import trackhub
    from trackhub.cursor import Cursor
    from trackhub.journal import JournalReader, segment_name
    from trackhub.rundir import RunDirectory

    directory = RunDirectory(Path(hub) / run)
    if directory.exists:
        reader = JournalReader(directory.journal)
        ends = {str(writer): segments[-1] for writer, segments in reader.segments().items()}
        holders = reader.holders()
        reader.close()
        position = {
            writer: (segment, (directory.journal / segment_name(int(writer), segment)).stat().st_size)
            for writer, segment in ends.items()
        }
        directory.cursor_file("csv").save(Cursor(position=position, holders=holders, attempts=1))
    name = f"resumed/{number}"
    began = time.perf_counter()
    tracker = trackhub.init(
        project="scale", run_id=run, dir=hub, backends=["csv"], csv={"directory": f"{hub}/csv"}, finish_timeout=60
    )
    started = time.perf_counter()
    tracker.log_metrics({name: 1.0}, step=1)
    folder = Path(hub) / "csv" / run
    while not any(name.encode() in table.read_bytes() for table in folder.glob("metrics*.csv")):
        if time.perf_counter() - started > 60:
            raise MeasurementError(f"nothing arrived in {folder}")
        time.sleep(0.002)
    arrived = time.perf_counter()
    tracker.finish()
    return {"init_seconds": started - began, "first_delivered_seconds": arrived - started}


CHILDREN: dict[str, Callable[..., Numbers]] = {"record": record, "resume": resume}


def _child(spec: Numbers, work: Path) -> Numbers:
    command = [sys.executable, "-m", "benchmarks.scale", "--child", json.dumps(spec)]
    done = subprocess.run(command, env=environment(), cwd=work, stdout=subprocess.PIPE, check=True, timeout=600)
    numbers: Numbers = json.loads(done.stdout)
    return numbers


def _allocated(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _peak_bytes(pid: int) -> int:
    """The most memory a process has had: VmHWM."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--only", default=",".join(BACKENDS), metavar="NAMES", help="backends, with commas between")
    parser.add_argument("--most", type=int, default=POINTS[-1], metavar="POINTS", help="size of the largest run")
    parser.add_argument("--no-resume", action="store_true", help="leave out the run of a gigabyte")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep everything measured as JSON")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="show and judge a kept JSON file")
    parser.add_argument("--docs", action="store_true", help="write the table and the plot into docs/")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is passed")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    # The servers are those of the tests.
    sys.path[:0] = [str(ROOT / "tests" / "backends"), str(ROOT / "tests")]
    sys.exit(main())
