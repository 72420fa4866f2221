"""`python -m benchmarks`: measure, show, keep and judge.

Apart because it only parses and calls; `nox -s bench` calls it in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks import report
from benchmarks.measure import FULL, QUICK, Bench, select
from benchmarks.processes import become_subreaper


def main() -> int:
    """Do what the command line says; 1 when `--check` found a promise broken."""
    options = _parser().parse_args()
    if options.markdown:
        print(report.markdown(json.loads(options.markdown.read_text())))
        return 0
    if options.judge:
        return _verdict(json.loads(options.judge.read_text()), everything=options.only is None)
    become_subreaper()
    began, load = time.monotonic(), report.load()
    effort = QUICK if options.quick else FULL
    names, skipped = select(options.only, effort)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    bench = Bench(names, effort, options.seed, lambda line: print(f"{time.monotonic() - began:6.0f} s  {line}"))
    bench.measure()
    settings = {
        "quick": options.quick,
        "seed": options.seed,
        "seconds": time.monotonic() - began,
        "load_before": load,
        **asdict(effort),
    }
    measured = report.results(bench.runs, bench.imports, skipped, bench.failures, settings)
    if options.output:
        options.output.write_text(json.dumps(measured, indent=1) + "\n")
    report.show(measured)
    status = _verdict(measured, everything=options.only is None)
    return status if options.check else 0


def _verdict(measured: report.Results, *, everything: bool) -> int:
    """Show the promises; 1 when one is broken or a measurement failed.

    A promise that was not measured counts as broken, unless only some contenders were asked for.
    """
    acceptable = (True,) if everything else (True, None)
    kept = all(verdict.kept in acceptable for verdict in report.show_promises(measured))
    return 0 if kept and not measured["failures"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure trackhub beside its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps: two minutes instead of twelve")
    parser.add_argument("--only", metavar="NAMES", help="contenders to measure, with commas between them")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep everything measured as JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is broken")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments of the kills")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print the README's table of a kept JSON file")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="check the promises on a kept JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
