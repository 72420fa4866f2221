"""How the command line looks: tables, sparklines, times and numbers for people, in a terminal or a pipe.

Apart from the commands so that they stay thin, and so that rich is imported only by a command that prints a table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trackhub.cli.formats import ago, legible, local_time, number, size, span, sparkline

if TYPE_CHECKING:
    from trackhub.cli.doctor import Diagnosis, Value
    from trackhub.cli.inventory import BackendEntry
    from trackhub.cli.overview import Overview
    from trackhub.importing import Imported
    from trackhub.readout import MetricSummary, Readout, ValueSummary
    from trackhub.report import BackendStanding, DeliveryReport
    from trackhub.rundir import Manifest, RunDirectory
    from trackhub.verifying import Verification

WIDE_COLUMNS = 116
"""From this width on there is room for everything about a run on one line."""

_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "killed": "yellow"}
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


class Printer:
    """Prints on standard output: at the terminal's width, or unbounded and without padding into a pipe."""

    def __init__(self) -> None:
        self.to_terminal = sys.stdout.isatty()
        self._console = Console(highlight=False, markup=False, emoji=False)
        if not self.to_terminal:
            self._console = Console(
                highlight=False, markup=False, emoji=False, color_system=None, force_terminal=False, width=10_000
            )

    @property
    def wide(self) -> bool:
        """Whether there is room for everything about a run on one line."""
        return self._console.width >= WIDE_COLUMNS

    def line(self, text: str | Text = "", style: str = "") -> None:
        """Print a line."""
        self._console.print(Text(legible(text), style=style) if isinstance(text, str) else text, soft_wrap=True)

    def sentence(self, text: str | Text, indent: int = 0, style: str = "") -> None:
        """Print a line that a terminal breaks between words, all of it indented; in a pipe it stays one line."""
        if isinstance(text, str):
            text = Text(legible(text), style=style)
        if self.to_terminal:
            self._console.print(Padding(text, (0, 0, 0, indent), expand=False))
        else:
            self.line(Text(" " * indent).append_text(text))

    def table(self, table: Table, indent: int = 0) -> None:
        """Print a table."""
        if self.to_terminal:
            self._console.print(Padding(table, (0, 0, 0, indent), expand=False))
            return
        with self._console.capture() as captured:
            self._console.print(table)
        lines = [(" " * indent + line).rstrip() for line in captured.get().splitlines()]
        self._console.out("\n".join(lines), highlight=False)


def _grid(*columns: tuple[str, str], header: bool = True) -> Table:
    """A table without lines; each column has a heading and "left", "right" or "fold" (left, and may break)."""
    table = Table(box=None, pad_edge=False, show_header=header, header_style="dim", padding=(0, 2, 0, 0))
    for heading, kind in columns:
        table.add_column(
            heading, justify="right" if kind == "right" else "left", no_wrap=kind != "fold", overflow="fold"
        )
    return table


def _cell(value: object, style: str = "") -> Text:
    return Text(legible(str(value)), style=style)


# --- runs


def print_runs(printer: Printer, runs: Sequence[tuple[int, Overview]]) -> None:
    """Print runs, each with its depth below its parents: a line each, or two where a line is short."""
    if not printer.wide:
        _print_runs_in_two_lines(printer, runs)
        return
    table = _grid(("RUN", "left"), ("NAME", "fold"), ("PROJECT", "fold"), *_RUN_COLUMNS, ("BACKENDS", "fold"))
    for depth, one in runs:
        name, project = one.manifest.name, one.manifest.project
        table.add_row(
            _cell("  " * depth + one.manifest.id, "bold"),
            _cell("" if name == one.manifest.id else name),
            _cell(project),
            *_run_cells(printer, one),
            _standings_text(one, shorten=printer.to_terminal),
        )
    printer.table(table)


_RUN_COLUMNS = (("STATUS", "left"), ("STARTED", "left"), ("TOOK", "right"), ("STEP", "right"), ("POINTS", "right"))


def _run_cells(printer: Printer, one: Overview) -> list[Text]:
    started_ns, amount = one.manifest.created_ns, one.amount
    return [
        _cell(one.status, _STYLES[one.status]),
        _cell(ago(started_ns) if printer.to_terminal else local_time(started_ns)),
        _cell(span(one.duration_seconds)),
        _cell("" if amount.last_step is None else f"{amount.last_step:,}"),
        _cell(f"{amount.points:,}"),
    ]


def _print_runs_in_two_lines(printer: Printer, runs: Sequence[tuple[int, Overview]]) -> None:
    columns = (("RUN", "left"), *_RUN_COLUMNS)
    rows = [[_cell("  " * depth + one.manifest.id, "bold"), *_run_cells(printer, one)] for depth, one in runs]
    widths = [max([len(head), *(row[at].cell_len for row in rows)]) for at, (head, _) in enumerate(columns)]

    def joined(cells: Sequence[Text]) -> Text:
        for cell, width, (_, kind) in zip(cells, widths, columns, strict=True):
            cell.align("right" if kind == "right" else "left", width)
        return Text("  ").join(cells)

    printer.line(joined([Text(head, style="dim") for head, _ in columns]))
    for (depth, one), row in zip(runs, rows, strict=True):
        printer.line(joined(row))
        below = Text()
        if one.manifest.name != one.manifest.id:
            below.append(legible(one.manifest.name) + "  ")
        below.append(legible(one.manifest.project) + "  ", style="dim")
        below.append_text(_standings_text(one, shorten=printer.to_terminal))
        printer.sentence(below, indent=2 * depth + 2)


def _standings_text(one: Overview, *, shorten: bool) -> Text:
    if not one.standings:
        return Text("journal only", style="dim")
    return Text("  ").join(_standing_text(standing, shorten=shorten) for standing in one.standings)


def _standing_text(standing: BackendStanding, *, shorten: bool) -> Text:
    report = standing.cursor.report
    to_go = f"{standing.undelivered:,} to go" if standing.undelivered else "only its end to go"

    def brief(message: str) -> str:
        message = " ".join(legible(message).split())
        return message[:59] + "…" if shorten and len(message) > 60 else message

    if standing.out_of_reach:
        text = Text(f"{standing.backend} not all shown", style="yellow")
    elif standing.complete:
        text = Text(f"{standing.backend} ✓", style="green")
    elif report.suspended:
        text = Text(f"{standing.backend} gave up, {to_go}: {brief(report.suspended)}", style="red")
    elif report.error:
        text = Text(f"{standing.backend} unavailable, {to_go}: {brief(report.error)}", style="yellow")
    else:
        text = Text(f"{standing.backend} {to_go}", style="yellow")
    if report.rejected:
        text.append(f" ({report.rejected:,} rejected)", style="red")
    return text


def print_run(printer: Printer, one: Overview, readout: Readout, report: DeliveryReport) -> None:
    """Print all a run holds."""
    manifest, amount = one.manifest, one.amount
    head = Text(legible(manifest.id), style="bold")
    head.append(f"  {legible(manifest.name)}" if manifest.name != manifest.id else "", style="bold")
    head.append(f"  {one.status}", style=_STYLES[one.status])
    printer.line(head)
    printer.sentence(
        f"project {manifest.project}, started {local_time(manifest.created_ns)} ({ago(manifest.created_ns)}), "
        f"{'running for' if one.status == 'running' else 'took'} {span(one.duration_seconds)}, "
        f"{amount.points:,} points in {amount.records:,} records"
    )
    if manifest.parent_id:
        printer.line(f"child of {manifest.parent_id}")
    printer.line(str(one.run.path.absolute()), style="dim")
    if (freed := one.run.freed) is not None:
        printer.sentence(f"pruned {ago(freed.time_ns)}: what it held by then is only at its backends", style="yellow")
    if amount.error:
        printer.line()
        printer.sentence(f"ended by {amount.error}", style="red")
    _print_pairs(printer, "params", readout.params)
    _print_pairs(printer, "tags", readout.tags)
    if readout.metrics:
        _heading(printer, "metrics")
        printer.table(_metrics_table(list(readout.metrics.values()), 40 if printer.wide else 12), indent=2)
    if readout.values:
        _heading(printer, "artifacts and rich values")
        printer.table(_values_table(readout.values), indent=2)
    if readout.superseded:
        printer.line(
            f"  {readout.superseded:,} values of {readout.attempts} attempts are superseded: logged anew by a later one"
        )
    if readout.values_left_out:
        printer.line(f"  and {readout.values_left_out:,} more under other names")
    _heading(printer, "backends")
    print_report(printer, report, indent=2)
    for place in readout.damaged:
        printer.line(f"damage in the journal: {place}", style="red")


def _heading(printer: Printer, text: str) -> None:
    printer.line()
    printer.line(text, style="bold")


def _print_pairs(printer: Printer, heading: str, pairs: Mapping[str, object]) -> None:
    if not pairs:
        return
    _heading(printer, heading)
    table = _grid(("", "fold"), ("", "fold"), header=False)
    for name, value in pairs.items():
        table.add_row(_cell(name), _cell(value))
    printer.table(table, indent=2)


def _metrics_table(metrics: Sequence[MetricSummary], bars: int) -> Table:
    table = _grid(
        ("", "fold"), ("LAST", "right"), ("STEP", "right"), ("MIN", "right"), ("MAX", "right"), ("VALUES", "right"),
        ("", "left"),
    )  # fmt: skip
    for one in metrics:
        table.add_row(
            _cell(one.name),
            _cell(number(one.last), "bold"),
            _cell(f"{one.last_step:,}"),
            _cell(number(one.minimum)),
            _cell(number(one.maximum)),
            _cell(f"{one.count:,}"),
            _cell(sparkline([value for _, value in one.series], bars), "cyan"),
        )
    return table


def _values_table(values: Sequence[ValueSummary]) -> Table:
    table = _grid(("", "left"), ("", "fold"), ("", "left"), ("", "right"), ("", "fold"), header=False)
    for one in values:
        times = "" if one.count == 1 else f"{one.count:,} times"
        if one.steps is not None:
            first, last = one.steps
            times = f"step {last:,}" if one.count == 1 else f"{one.count:,} times, steps {first:,} to {last:,}"
        table.add_row(
            _cell(one.kind, "dim"),
            _cell(one.name),
            _cell(times),
            _cell("" if one.path is None else size(one.size_bytes)),
            _cell(one.detail, "dim"),
        )
    return table


# --- reports


def print_report(printer: Printer, report: DeliveryReport, indent: int = 0) -> None:
    """Print a delivery report: each backend's sentences, where to look at the run, and what delivers the rest."""
    margin = " " * indent
    if not report.standings:
        printer.line(f"{margin}none: the run is in its directory alone")
    for standing in report.standings:
        first, *others = standing.sentences()
        mark, style = ("✓", "green") if standing.complete else ("…", "yellow")
        if standing.cursor.report.suspended:
            mark, style = "✗", "red"
        printer.sentence(Text(f"{mark} ", style=style).append(legible(first), style="default"), indent)
        for sentence in others:
            printer.sentence(sentence, indent + 2, style="yellow")
        if standing.cursor.link:
            printer.line(f"{margin}  {standing.cursor.link}", style="blue")
    for sentence in report.room:
        printer.sentence(sentence, indent, style="yellow")
    if not report.complete:
        printer.line(f"{margin}deliver the rest with: {report.command}", style="bold")


def print_reports(printer: Printer, runs: Sequence[tuple[Manifest, DeliveryReport]]) -> None:
    """Print delivery reports, each under the name of its run."""
    for at, (manifest, report) in enumerate(runs):
        if at:
            printer.line()
        head = Text(legible(manifest.id), style="bold")
        head.append(f"  {legible(manifest.name)}" if manifest.name != manifest.id else "")
        printer.line(head)
        print_report(printer, report, indent=2)


# --- imported runs


def print_imports(printer: Printer, runs: Sequence[Imported], command: Callable[[RunDirectory], str]) -> None:
    """Print what became of each run of an import, and what is missing of it.

    Args:
        printer: Prints.
        runs: The runs.
        command: Gives the command that delivers a run.
    """
    for one in runs:
        head = Text(legible(one.run.path.name), style="bold")
        head.append(f"  {legible(one.name)}" if one.name != one.run.path.name else "")
        if one.note is None or one.problem:
            printer.line(head)
            printer.sentence(Text("✗ ", style="red").append(legible(one.problem), style="default"), indent=2)
            continue
        status = one.run.end()[0]
        printer.line(head.append(f"  {status}", style=_STYLES[status]))
        counts = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in one.note.counts.items())
        mark, style = ("✓", "green") if one.complete else ("!", "yellow")
        said = f" {one.state}: {counts or 'nothing was logged'}"
        printer.sentence(Text(mark, style=style).append(legible(said), style="default"), indent=2)
        for finding in one.note.findings:
            printer.sentence(str(finding), indent=4, style="yellow" if finding.missing else "dim")
        if one.state != "already here":
            printer.line(f"  deliver with: {command(one.run)} --to BACKEND", style="dim")


# --- backends and the doctor


def print_backends(printer: Printer, entries: Sequence[BackendEntry]) -> None:
    """Print what is installed and what each backend shows."""
    for at, one in enumerate(entries):
        if at:
            printer.line()
        head = Text(legible(one.name), style="bold")
        head.append(f"  {legible(one.version)}" if one.version else "")
        printer.line(head)
        if one.error is not None:
            printer.sentence(f"✗ cannot be used: {one.error}", indent=2, style="red")
            continue
        if one.missing is not None:
            printer.sentence(f"! not installed: {one.missing}", indent=2, style="yellow")
        for showing, label in (
            ("native", "shows"),
            ("lowered", "shows in a simpler form"),
            ("not shown", "no place for"),
        ):
            kinds = [kind.replace("_", " ") for kind, how in one.kinds.items() if how == showing]
            if kinds:
                printer.sentence(f"{label}: {', '.join(kinds)}", indent=2)
        if one.options:
            printer.sentence(f"options: {', '.join(one.options)}", indent=2)


def print_diagnosis(printer: Printer, diagnosis: Diagnosis) -> None:
    """Print what the doctor found."""
    if diagnosis.settings:
        printer.line("settings", style="bold")
        _print_values(printer, diagnosis.settings)
        printer.line(
            f"  settings file: {diagnosis.file or 'none found (trackhub.toml, or pyproject.toml with [tool.trackhub])'}"
        )
        printer.line()
    for backend, values in diagnosis.options.items():
        if values:
            printer.line(f"options of {backend}", style="bold")
            _print_values(printer, values)
            printer.line()
    printer.line("findings", style="bold")
    for finding in diagnosis.findings:
        mark, style = _MARKS[finding.state]
        text = Text(mark, style=style).append(f" {finding.what}: {legible(finding.text)}", style="default")
        printer.sentence(text, indent=2)


def _print_values(printer: Printer, values: Sequence[Value]) -> None:
    table = _grid(("", "left"), ("", "fold"), ("", "fold"), header=False)
    for one in values:
        where = "" if one.source == "default" else f"from {one.source}"
        table.add_row(_cell(one.name), _cell(one.value or "-"), _cell(where or "default", "dim"))
    printer.table(table, indent=2)


# --- verify

_SHOWN_FINDINGS = 20
_COMPARED = {"items": "files and others"}
_VERDICTS = {
    "agrees": ("✓", "green", "all is there, and no more"),
    "differs": ("✗", "red", "not as it was logged"),
    "not delivered": ("✗", "red", "not delivered"),
    "cannot be read back": ("!", "yellow", "cannot be read back"),
    "not available": ("!", "yellow", "could not be compared"),
}


def print_verifications(printer: Printer, results: Sequence[Verification]) -> None:
    """Print what came of comparing runs with their backends."""
    last = None
    for one in results:
        if one.run_id != last:
            printer.line(f"run {one.run_id}", style="bold")
            last = one.run_id
        mark, style, words = _VERDICTS[one.outcome]
        compared = ", ".join(f"{_COMPARED.get(what, what)} {count:,}" for what, count in one.compared.items() if count)
        reason = f": {one.reason}" if one.reason else ""
        printer.sentence(Text(legible(f"{mark} {one.backend}: {words}{reason}"), style=style), indent=2)
        if compared:
            printer.sentence(f"compared: {compared}", indent=4)
        for finding in one.findings[:_SHOWN_FINDINGS]:
            printer.sentence(str(finding), indent=4, style="red")
        shown = sum(finding.count for finding in one.findings[:_SHOWN_FINDINGS])
        if one.counts.total() > shown:
            totals = ", ".join(f"{kind} {count:,}" for kind, count in one.counts.items())
            printer.sentence(f"and more; in all: {totals} (--json lists them)", indent=4, style="red")
        for what, count in one.explained.items():
            printer.sentence(f"explained: {count:,} {what}", indent=4)
        for what in one.not_compared:
            printer.sentence(f"not compared: {what}", indent=4)
        if one.undelivered and one.outcome in ("agrees", "differs"):
            printer.sentence(f"{one.undelivered:,} records are not delivered yet", indent=4)
