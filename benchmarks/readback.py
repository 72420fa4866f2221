"""What is on disk after a run: which points can be read back from each sink, how often, and in what state the run is.

Apart from the contenders because a sink is read the same way whoever wrote it, and because reading needs libraries that
the measured processes must not import.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

Point = tuple[str, int]
"""A metric's key and its step."""


def points(kind: str, path: Path) -> Counter[Point]:
    """How often each point can be read back from a sink of that kind."""
    return Counter(_READERS[kind](path)) if path.exists() else Counter()


def mlflow_state(database: Path) -> str:
    """The status of the run in MLflow's database, or what is wrong with there being not exactly one."""
    with sqlite3.connect(database) as connection:
        states = [status for (status,) in connection.execute("SELECT status FROM runs")]
    return states[0] if len(states) == 1 else f"{len(states)} runs: {', '.join(states)}"


def _jsonlines(path: Path) -> Iterator[Point]:
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # cut off by the kill
            continue
        step = record.pop("step")
        record.pop("time")
        yield from ((key, step) for key in record)


def _mlflow(path: Path) -> Iterator[Point]:
    with sqlite3.connect(path) as connection:
        yield from connection.execute("SELECT key, step FROM metrics")


def _tensorboard(path: Path) -> Iterator[Point]:
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

    for folder in {file.parent for file in path.rglob("*tfevents*")}:
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, TENSORS: 0}).Reload()
        for key in accumulator.Tags()["scalars"]:
            yield from ((key, event.step) for event in accumulator.Scalars(key))
        for key in accumulator.Tags()["tensors"]:
            yield from ((key, event.step) for event in accumulator.Tensors(key))


def _csv(path: Path) -> Iterator[Point]:
    for table in path.rglob("metrics.csv"):
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                step = row.pop("step", None)
                if step and None not in row.values():
                    yield from ((key, int(step)) for key, value in row.items() if value)


def _journal(path: Path) -> Iterator[Point]:
    from trackhub.journal import JournalReader, Position
    from trackhub.records import MetricsLogged

    for journal in path.glob("*/journal"):
        reader = JournalReader(journal)
        position: Position = {}
        while not (chunk := reader.read(position)).empty:
            for record in chunk.records:
                if isinstance(record, MetricsLogged):
                    yield from ((key, record.step) for key in record.values)
            position = chunk.position
        reader.close()


_READERS: dict[str, Callable[[Path], Iterator[Point]]] = {
    "jsonlines": _jsonlines,
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "csv": _csv,
    "journal": _journal,
}
