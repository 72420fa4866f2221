"""What the tests of the importers share: sources written by the vendors' own code, and what an import made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stage import records_of

from trackhub.importing import Imported, ImportReport, import_runs
from trackhub.records import MetricsLogged, RunEnded

QUIET = (
    "mode='offline', source_files=[], git_ref=False, capture_stdout=False, capture_stderr=False, "
    "capture_hardware_metrics=False, capture_traceback=False"
)
"""How to have Neptune's client write what it is told and nothing else."""


def neptune(directory: Path, code: str, exit_code: int = 0) -> str:
    """Run a script with Neptune's client in a directory; gives what it printed."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEPTUNE_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith("[neptune]"))


def run_directories(directory: Path) -> list[Path]:
    """The directories that Neptune's client made, in the order they were begun."""
    found = [path.parent for path in directory.glob(".neptune/*/*/metadata.json")]
    return sorted(found, key=lambda path: json.loads((path / "metadata.json").read_text())["createdAt"])


def operations_in(directory: Path) -> list[dict[str, Any]]:
    """The operations on disk that a plain JSON reader can read, each version once, in order."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(directory.glob("data-*.log"), key=lambda path: int(path.stem[5:])):
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found.setdefault(entry["version"], entry)
    return [found[version] for version in sorted(found)]


def imported(kind: str, source: Path, root: Path, **options: Any) -> ImportReport:
    """Import into a directory, under a project of the tests."""
    return import_runs(kind, source, root, "tests", **options)


def only(report: ImportReport) -> Imported:
    """The one run of an import."""
    (one,) = report.runs
    return one


def findings(one: Imported) -> dict[str, int]:
    """The beginning of each reason -> how often."""
    assert one.note is not None
    return {finding.reason: finding.count for finding in one.note.findings}


def count_of(one: Imported, beginning: str) -> int:
    """How often what begins like this was found."""
    return sum(count for reason, count in findings(one).items() if reason.startswith(beginning))


def points_of(one: Imported) -> dict[str, list[tuple[int, int, float]]]:
    """Metric -> its points of step, time and value, in the order of the journal."""
    points: dict[str, list[tuple[int, int, float]]] = {}
    for record in records_of(one.run):
        if isinstance(record, MetricsLogged):
            for name, value in record.values.items():
                points.setdefault(name, []).append((record.step, record.time_ns, value))
    return points


def records(one: Imported, kind: type) -> Iterator[Any]:
    """The records of one kind."""
    return (record for record in records_of(one.run) if isinstance(record, kind))


def content(one: Imported, record: Any) -> bytes:
    """What a record's file holds."""
    path = one.run.path / record.file.path
    assert path.is_relative_to(one.run.blobs)
    return path.read_bytes()


def end_of(one: Imported) -> RunEnded:
    """The run's end."""
    status, ended = one.run.end()
    assert ended is not None
    assert status == ended.status
    return ended
