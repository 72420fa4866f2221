"""Numbers to read and to keep: medians over the rounds, the JSON file, and the same table for a terminal and a README.

Apart from the measurements so that an old JSON file can be shown again without measuring anything.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.promises import Verdict, judge

Results = dict[str, Any]
_ALSO_NAMED = ("numpy",)
_NONE = "-"
_UNREST_PERCENT = 2.0
_HEADINGS = (
    "recording",
    "call, us: median / mean / p99",
    "longest of n calls, ms",
    "1,000 values, us",
    "call in a 10 ms loop, us",
    "step slower by, %: first / later",
    "CPU s, 10,000 steps",
    "start to first metric, ms",
    "lost at SIGKILL",
    "state left",
)


def results(
    runs: dict[str, dict[str, list[dict[str, Any]]]],
    imports: dict[str, list[float]],
    skipped: dict[str, str],
    failures: dict[str, str],
    settings: dict[str, Any],
) -> Results:
    """Everything that goes into the JSON file, each round with its medians."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "contenders": {
            name: {
                "title": CONTENDERS[name].title,
                **{key: {"median": _medians(rounds), "runs": rounds} for key, rounds in measurements.items()},
            }
            for name, measurements in runs.items()
        },
        "import_ms": {key: {"median": statistics.median(values), "runs": values} for key, values in imports.items()},
        "skipped": skipped,
        "failures": failures,
    }


def machine() -> dict[str, Any]:
    """The machine that measures."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(cpu),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
    }


def load() -> float:
    """How many processes wanted to run in the last minute; before measuring begins, all of them are other people's."""
    return float(Path("/proc/loadavg").read_text().split()[0])


def versions() -> dict[str, str]:
    """The installed versions of everything compared."""
    found = {}
    for name in sorted({name for kind in CONTENDERS.values() for name in kind.distributions} | set(_ALSO_NAMED)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    numbers = [key for key, value in rounds[0].items() if isinstance(value, int | float)]
    return {key: statistics.median(run[key] for run in rounds) for key in numbers}


def rows(measured: Results) -> list[tuple[str, ...]]:
    """The table without its headings: a row a contender, a dash where nothing was measured."""
    return [_row(numbers) for numbers in measured["contenders"].values()]


def _row(numbers: dict[str, Any]) -> tuple[str, ...]:
    calls, steps, cpu, start = (numbers.get(key, {}).get("median") for key in ("calls", "steps", "cpu", "start"))
    kills = numbers.get("kill", {}).get("runs", [])
    return (
        numbers["title"],
        f"{calls['median_us']:,.2f} / {calls['mean_us']:,.2f} / {calls['p99_us']:,.1f}" if calls else _NONE,
        f"{max(calls['worst_us'], calls.get('spread_worst_us', 0)) / 1e3:,.2f} ({calls['n']:,.0f})" if calls else _NONE,
        f"{calls['wide_median_us']:,.0f}" if calls else _NONE,
        f"{steps['call_us']:,.1f}" if steps else _NONE,
        f"{steps['early_slowdown_percent']:,.1f} / {steps['slowdown_percent']:,.1f}" if steps else _NONE,
        f"{'~' if cpu['n'] < 10_000 else ''}{cpu['cpu_seconds']:,.1f}" if cpu else _NONE,
        f"{start['first_metric_ms']:,.0f}" if start else _NONE,
        _losses(kills),
        ", ".join(sorted({kill["state"] for kill in kills if kill["state"]})) or _NONE,
    )


def _losses(kills: list[dict[str, Any]]) -> str:
    """The least and the most that any round lost in each sink, of about how many points."""
    if not kills:
        return _NONE
    points = f"of {round(statistics.median(kill['points'] for kill in kills), -2):,.0f}"
    if not any(lost for kill in kills for lost in kill["lost"].values()):
        return f"0 {points}"
    parts = []
    for sink in kills[0]["lost"]:
        lost = sorted(kill["lost"][sink] for kill in kills)
        amount = f"{lost[0]:,}" if lost[0] == lost[-1] else f"{lost[0]:,} to {lost[-1]:,}"
        parts.append(f"{sink} {amount}" if len(kills[0]["lost"]) > 1 else amount)
    return f"{', '.join(parts)} {points}"


def markdown(measured: Results) -> str:
    """The table for the README, with what one must know to read it."""
    lines = [_line(_HEADINGS), _line(["---"] + ["---:"] * (len(_HEADINGS) - 1)), *map(_line, rows(measured))]
    return "\n".join([*lines, "", _context(measured)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _context(measured: Results) -> str:
    where = measured["machine"]
    known = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    imported = measured["import_ms"]
    text = (
        f"Measured {measured['date'][:10]} in one run on {where['cores']} cores of {where['cpu']}, Linux"
        f" {where['kernel']}, Python {where['python']}; {known}. Five metrics a step; every number is the median of"
        " rounds in fresh processes that took turns. A step is 10 ms of numpy; the first steps (four seconds, less for"
        " slow peers) are apart because delivery processes start then. Ratios travel, absolute times do not."
    )
    if "trackhub" in imported:
        over = imported["trackhub"]["median"] - imported["bare"]["median"]
        text += f" `import trackhub` takes {over:.0f} ms over a bare interpreter."
    return text


def show(measured: Results) -> None:
    """Print the table, what was left out and why, and every promise; with rich where it is installed."""
    table = rows(measured)
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("\t".join(_HEADINGS), *("\t".join(row) for row in table), sep="\n")
    else:
        shown = Table(title="medians over all rounds")
        for index, heading in enumerate(_HEADINGS):
            shown.add_column(heading, justify="right" if index else "left", min_width=0 if index else 24)
        for row in table:
            shown.add_row(*row)
        console = Console()
        Console(width=max(console.width, 160)).print(shown)
    print(_context(measured))
    control = measured["contenders"].get("nothing", {}).get("steps", {}).get("runs", [])
    unrest = max((abs(run["slowdown_percent"]) for run in control), default=0.0)
    if unrest > _UNREST_PERCENT or measured["settings"]["load_before"] > measured["machine"]["cores"] / 2:
        print(
            f"This machine was busy: load {measured['settings']['load_before']:.1f} before, and steps without any"
            f" recording differed by up to {unrest:.1f} %. Compare nothing to a limit; measure again in peace."
        )
    for kind in ("skipped", "failures"):
        for name, reason in measured[kind].items():
            print(f"{kind}: {name}: {reason}")


def show_promises(measured: Results) -> list[Verdict]:
    """Print every promise with what was measured, and give the verdicts back."""
    verdicts = judge(measured)
    for verdict in verdicts:
        promise = verdict.promise
        word = {True: "kept", False: "BROKEN", None: "not measured"}[verdict.kept]
        amount = _NONE if verdict.measured is None else f"{verdict.measured:,.3g} {promise.unit}".strip()
        print(f"{word:<12} {promise.text}: {amount} (at most {promise.limit:g} {promise.unit}".rstrip() + ")")
    return verdicts
