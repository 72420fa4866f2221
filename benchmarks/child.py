"""The programs that are measured: each runs in a fresh process, with one contender, and leaves its numbers in a file.

Apart from the harness because these processes must import nothing that a training script would not: their start, their
memory and their garbage are part of what is measured.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
import time
from collections.abc import Callable

from benchmarks.contenders import CONTENDERS, Contender, Nothing

RESULT = "result.json"
CUT_SHORT = ("start", "calls")
"""Programs that end without closing: how a run ends is measured by others, and a thousand metrics take their time."""
COUNTER = "counter"
COUNTER_FORMAT = "q"
KEYS = ("train/loss", "train/accuracy", "train/grad_norm", "train/learning_rate", "train/throughput")
_PACE_STEPS = 20
"""A paced loop sleeps once in so many steps: a sleep of half a millisecond is not exact enough."""


def main() -> None:
    """Run the program that the JSON argument names, with its other members as arguments."""
    spec = json.loads(sys.argv[1])
    program = spec.pop("program")
    result = PROGRAMS[program](**spec)
    with open(RESULT, "w") as file:  # noqa: PTH123 - pathlib is not imported here
        json.dump(result, file)
        file.flush()
        if program in CUT_SHORT:
            os._exit(0)


def start(contender: str) -> dict[str, float]:
    """Log once and say when that call had returned."""
    subject = CONTENDERS[contender](os.getcwd())  # noqa: PTH109
    subject.open()
    subject.log(_metrics(0), 0)
    return {"first_metric_at": time.clock_gettime(time.CLOCK_MONOTONIC)}


def calls(contender: str, count: int, wide: int, blocks: int) -> dict[str, float]:
    """Time single calls: in a hot loop, with 1,000 values, and spread over seconds while a delivery may be at work.

    Args:
        contender: Its name.
        count: Calls in the hot loop, and again in the spread one.
        wide: Calls with 1,000 values.
        blocks: Into how many blocks, 0.1 s apart, the spread calls are divided; 0 leaves them out.
    """
    empty = _timed(Nothing(""), range(count), _metrics)
    subject = _opened(contender)
    first = _timed(subject, range(1), _metrics)
    hot = _timed(subject, range(1, count + 1), _metrics)
    broad = _timed(subject, range(count + 1, count + 1 + wide), _wide_metrics)
    spread: list[int] = []
    empty_spread: list[int] = []
    step = count + 1 + wide
    for _ in range(blocks):
        time.sleep(0.1)
        empty_spread += _timed(Nothing(""), range(count // blocks), _metrics)
        spread += _timed(subject, range(step, step + count // blocks), _metrics)
        step += count // blocks
    numbers = {
        "n": count,
        "wide_n": wide,
        "empty_median_us": _quantile(empty, 0.5),
        "empty_worst_us": _quantile(empty, 1),
        "first_us": _quantile(first, 0.5),
        "median_us": _quantile(hot, 0.5),
        "mean_us": _mean(hot) / 1e3,
        "p99_us": _quantile(hot, 0.99),
        "worst_us": _quantile(hot, 1),
        "wide_median_us": _quantile(broad, 0.5),
    }
    if spread:
        numbers["spread_p99_us"] = _quantile(spread, 0.99)
        numbers["spread_worst_us"] = _quantile(spread, 1)
        numbers["spread_empty_worst_us"] = _quantile(empty_spread, 1)
    return numbers


def steps(contender: str, size: int, bare: int, early: int, late: int) -> dict[str, float]:
    """Time steps of matrix products: `bare` without recording, `early` and `late` with it, `bare` again after closing.

    The comparison is with the steps around the recording and not with steps between recorded ones: a peer's background
    thread would go on working in those, and its cost would be hidden.
    """
    work = _matrix_product(size)
    nothing = Nothing("")
    _trained(nothing, work, 5)
    before, _ = _trained(nothing, work, bare)
    subject = _opened(contender)
    _trained(subject, work, 1)
    early_steps, early_calls = _trained(subject, work, early, first_step=1)
    late_steps, late_calls = _trained(subject, work, late, first_step=1 + early)
    subject.close()
    after, _ = _trained(nothing, work, bare)
    quiet = min(before, after, key=_mean)  # a neighbour who was busy at one end must not make recording look free
    return {
        "bare_ms": _mean(quiet) / 1e6,
        "bare_median_ms": _quantile(quiet, 0.5) / 1e3,
        "early_ms": _mean(early_steps) / 1e6,
        "late_ms": _mean(late_steps) / 1e6,
        "late_median_ms": _quantile(late_steps, 0.5) / 1e3,
        "early_call_us": _mean(early_calls) / 1e3,
        "call_us": _mean(late_calls) / 1e3,
        "call_median_us": _quantile(late_calls, 0.5),
    }


def calibrate(target_ms: float) -> dict[str, int]:
    """Find the size of the matrices whose product takes about `target_ms`."""
    size = 256
    for _ in range(4):
        spent, _ = _trained(Nothing(""), _matrix_product(size), 40)
        size = max(64, round(size * (target_ms / (_quantile(spent, 0.5) / 1e3)) ** (1 / 3) / 8) * 8)
    return {"size": size}


def everything(contender: str, count: int) -> dict[str, float]:
    """Log `count` steps without other work and close; the harness adds up the CPU time of all processes."""
    subject = _opened(contender)
    subject.log(_metrics(0), 0)
    started = time.process_time()
    for step in range(1, count):
        subject.log(_metrics(step), step)
    logged = time.monotonic()
    subject.close()
    return {
        "cpu_start_seconds": started,
        "cpu_closed_seconds": time.process_time(),
        "close_seconds": time.monotonic() - logged,
    }


def endless(contender: str, steps_per_second: int) -> None:
    """Log until killed, and leave in shared memory how many calls have returned."""
    import mmap

    with open(COUNTER, "r+b") as file:  # noqa: PTH123
        counter = mmap.mmap(file.fileno(), struct.calcsize(COUNTER_FORMAT))
    subject = _opened(contender)
    step = 0
    began = time.monotonic()
    while True:
        subject.log(_metrics(step), step)
        step += 1
        struct.pack_into(COUNTER_FORMAT, counter, 0, step)
        if step % _PACE_STEPS == 0:
            time.sleep(max(0.0, began + step / steps_per_second - time.monotonic()))


def create_database() -> dict[str, bool]:
    """Make the MLflow database that every contender gets a copy of, so that nobody is charged for its creation."""
    from mlflow import MlflowClient

    from benchmarks.contenders import DATABASE, EXPERIMENT

    MlflowClient(f"sqlite:///{os.getcwd()}/{DATABASE}").create_experiment(EXPERIMENT)  # noqa: PTH109
    return {"created": True}


PROGRAMS = {
    program.__name__: program for program in (start, calls, steps, calibrate, everything, endless, create_database)
}


def _opened(contender: str) -> Contender:
    subject = CONTENDERS[contender](os.getcwd())  # noqa: PTH109
    subject.open()
    return subject


def _metrics(step: int) -> dict[str, float]:
    """Five values that look like a training's: different at every step, with many digits."""
    loss = 1 / (step + 1.5)
    return dict(zip(KEYS, (loss, 1 - loss, loss * 7.3, 0.001 / (1 + step / 9), 1000 / (1 + loss)), strict=True))


def _wide_metrics(step: int) -> dict[str, float]:
    return {f"layer/{index:04}/norm": index / (step + 1.5) for index in range(1000)}


def _matrix_product(size: int) -> Callable[[], object]:
    """The work of a step: it also takes the caches, as a training's work does."""
    import numpy

    left, right = numpy.random.default_rng(0).random((2, size, size))
    return lambda: left @ right


def _timed(subject: Contender, numbers: range, make: Callable[[int], dict[str, float]]) -> list[int]:
    """The nanoseconds of every call. The collector stays on: a call's garbage is its cost too."""
    from array import array

    log, clock = subject.log, time.perf_counter_ns
    spent = array("q", bytes(8 * len(numbers)))
    gc.collect()
    for index, step in enumerate(numbers):
        metrics = make(step)
        begin = clock()
        log(metrics, step)
        spent[index] = clock() - begin
    return spent.tolist()


def _trained(
    subject: Contender, work: Callable[[], object], count: int, first_step: int = 0
) -> tuple[list[int], list[int]]:
    """The nanoseconds of every step with its call, and of the calls alone."""
    log, clock = subject.log, time.perf_counter_ns
    whole, alone = [], []
    gc.collect()
    for step in range(first_step, first_step + count):
        begin = clock()
        work()
        metrics = _metrics(step)
        middle = clock()
        log(metrics, step)
        end = clock()
        whole.append(end - begin)
        alone.append(end - middle)
    return whole, alone


def _mean(nanoseconds: list[int]) -> float:
    return sum(nanoseconds) / max(1, len(nanoseconds))


def _quantile(nanoseconds: list[int], fraction: float) -> float:
    """A quantile in microseconds."""
    ordered = sorted(nanoseconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))] / 1e3
