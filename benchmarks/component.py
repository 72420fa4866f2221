"""`python -m benchmarks.component`: what the KFP backend adds to a component, beside the journal alone.

Apart from the other measurements because it needs kfp and measures inside its executor. Each round is two processes,
one with the backend and one without, in turn; what is judged are the medians of their differences.
"""

# KFP reads the annotations as objects: no `from __future__ import annotations` here.
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 10_000
VALUES = 5
MOST_ADDED_TO_CALL_US = 2.0
MOST_ADDED_TO_END_MS = 50.0


def main() -> int:
    """Measure, show, and give 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.component", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_measure(options.steps)))
        return 0
    rounds = [(_run("", options.steps), _run("kfp", options.steps)) for _ in range(options.rounds)]
    kept = True
    for what, unit, limit in (
        ("call_us", "us", MOST_ADDED_TO_CALL_US),
        ("mean_call_us", "us", MOST_ADDED_TO_CALL_US),
        ("end_ms", "ms", MOST_ADDED_TO_END_MS),
    ):
        added = statistics.median(with_it[what] - without[what] for without, with_it in rounds)
        alone, both = (statistics.median(one[side][what] for one in rounds) for side in (0, 1))
        kept = kept and added <= limit
        print(f"{what:14} journal {alone:8.2f}  with kfp {both:8.2f}  added {added:8.2f} {unit} (limit {limit:g})")
    return 0 if kept else 1


def _run(backends: str, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "TRACKHUB_BACKENDS": backends, "TRACKHUB_DIR": f"{directory}/hub"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.component", "--child", "--steps", str(steps)],
            env={**environment, "BENCHMARK_DIRECTORY": directory},
            stdout=subprocess.PIPE,
            check=True,
            timeout=300,
        )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _measure(steps: int) -> dict[str, float]:
    """Run a component in KFP's own executor, in this process."""
    from kfp import dsl
    from kfp.dsl.executor import Executor

    import trackhub

    directory = Path(os.environ["BENCHMARK_DIRECTORY"]) / "pipe-2026-11-21-09-30-00-123456" / "train"
    directory.mkdir(parents=True)
    seen: dict[str, Any] = {}

    def train(metrics: dsl.Output[dsl.Metrics], page: dsl.Output[dsl.HTML]) -> None:  # noqa: ARG001 (found, not used)
        tracker = trackhub.init(params={"lr": 0.1})
        names = [f"metric_{index}" for index in range(VALUES)]
        now = time.perf_counter_ns
        calls = []
        for step in range(steps):
            values = {name: step / (index + 1.0) for index, name in enumerate(names)}
            began = now()
            tracker.log_metrics(values, step=step)
            calls.append(now() - began)
        seen["calls"], seen["returned"] = calls, now()

    artifacts = {
        name: {
            "artifacts": [
                {
                    "name": name,
                    "type": {"schemaTitle": f"system.{kind}", "schemaVersion": "0.0.1"},
                    "uri": str(directory / name),
                    "metadata": {},
                }
            ]
        }
        for name, kind in (("metrics", "Metrics"), ("page", "HTML"))
    }
    given = {
        "inputs": {},
        "outputs": {"outputFile": str(directory / "executor_output.json"), "artifacts": artifacts},
    }
    Executor(executor_input=given, function_to_execute=train).execute()
    ended = time.perf_counter_ns()
    return {
        "call_us": statistics.median(seen["calls"]) / 1e3,
        "mean_call_us": statistics.fmean(seen["calls"]) / 1e3,
        "end_ms": (ended - seen["returned"]) / 1e6,
    }


if __name__ == "__main__":
    sys.exit(main())
