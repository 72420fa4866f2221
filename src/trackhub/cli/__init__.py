"""The command line: parses, calls, prints. What it has to say comes from the modules beside it.

Thin and apart so that nothing is only possible here; each command imports what it needs, so that `--help` is quick.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from trackhub.errors import TrackhubError

if TYPE_CHECKING:
    from trackhub.cli.finding import Place
    from trackhub.report import DeliveryReport
    from trackhub.rundir import Manifest, RunDirectory

INCOMPLETE = 1
"""Exit code: something is not delivered, not imported or not as it was logged, or the doctor found a problem."""

WRONG = 2
"""Exit code: what was asked for cannot be done; standard error says why."""

UNVERIFIED = 3
"""Exit code: nothing is known to be wrong, but not everything could be compared."""


class _Group(TyperGroup):
    """Turns what may go wrong into one clean message and an exit code."""

    def get_params(self, ctx: Any) -> Any:
        """The options, without showing those that install shell completion."""
        parameters: Any = super().get_params(ctx)
        for parameter in parameters:
            if parameter.name in ("install_completion", "show_completion"):
                parameter.hidden = True
        return parameters

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # Whoever read this has seen enough (`| head`). Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + 13) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (TrackhubError, OSError) as error:
            _say(f"error: {error}")
            raise typer.Exit(WRONG) from None


app = typer.Typer(
    name="trackhub",
    cls=_Group,
    help="Looks at the runs in a TRACKHUB_DIR, and delivers what is left of them.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Json = Annotated[bool, typer.Option("--json", help="Print strict JSON, for programs.")]
_Dir = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIRECTORY", help="Where the runs are. Default: TRACKHUB_DIR, or .trackhub here."),
]
_Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, the beginning of one, or the path of a run directory.")
]


def main() -> None:
    """What `trackhub` and `python -m trackhub` run."""
    sys.stdout, sys.stderr = _writable(sys.stdout), _writable(sys.stderr)
    app(prog_name="trackhub")


def _writable(stream: TextIO | None) -> TextIO:
    """A stream that takes any text: `?` for what its encoding has not, and nothing at all if it was closed."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream


@app.callback()
def _trackhub(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from trackhub._version import VERSION

        typer.echo(f"trackhub {VERSION}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        # With rich the help is printed right away, and there is nothing to give back.
        if text := context.get_help():
            typer.echo(text)
        raise typer.Exit


@app.command()
def runs(
    directory: _Dir = None,
    last: Annotated[int, typer.Option("--last", metavar="N", min=0, help="Only the N latest; 0 for all.")] = 0,
    as_json: _Json = False,
) -> None:
    """List runs, the latest at the bottom, with what each backend has and lacks. Exit code 1 if one is unreadable."""
    from trackhub.cli.finding import place_of
    from trackhub.cli.overview import in_family_order, overviews

    place = place_of(directory)
    found = place.runs()
    seen = list(overviews(found[-last:] if last else found, place.note))
    _complain(place)
    if as_json:
        from trackhub.cli.plainly import plain_overview

        _put_json([plain_overview(one) for one in seen])
    elif seen:
        from trackhub.cli.printing import Printer, print_runs

        print_runs(Printer(), in_family_order(seen))
    elif not place.unreadable:
        _say(place.nothing())
    if place.unreadable:
        raise typer.Exit(INCOMPLETE)


@app.command()
def show(run: _Run, directory: _Dir = None, as_json: _Json = False) -> None:
    """Show all a run holds: params, metrics, artifacts, and its delivery report."""
    from trackhub.cli.finding import find_run, place_of, sync_command
    from trackhub.cli.overview import overview
    from trackhub.readout import read_run

    found = find_run(run, place_of(directory))
    one = overview(found)
    readout = read_run(found.journal)
    if as_json:
        from trackhub.cli.plainly import plain_readout

        _put_json(plain_readout(one, readout))
    else:
        from trackhub.cli.printing import Printer, print_run

        print_run(Printer(), one, readout, one.report(sync_command(found)))


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run, with its child runs; default: all.")
    ] = None,
    directory: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Print delivery reports: what is not delivered, refused or changed. Exit code 1 if something is not delivered."""
    from trackhub.cli.finding import find_run, find_runs, place_of, sync_command
    from trackhub.cli.overview import in_family_order, overviews
    from trackhub.sync import with_families

    place = place_of(directory)
    asked = None if run is None else find_run(run, place)
    chosen = find_runs([], place) if asked is None else _with_descendants(asked, with_families([asked]))
    seen = list(overviews(chosen, place.note))
    _complain(place)
    reports = [(one.manifest, one.report(sync_command(one.run))) for _, one in in_family_order(seen)]
    if not reports and not place.unreadable:
        _say(place.nothing())
    _print_reports(reports, as_json=as_json, all_of_them=asked is not None)
    if place.unreadable or not all(report.complete for _, report in reports):
        raise typer.Exit(INCOMPLETE)


@app.command()
def sync(
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN|DIRECTORY]...", help="Runs, or directories that hold runs; default: all runs."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND", help="Deliver to this backend (may be repeated); default: to those of the run."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on, also with runs that come, until SIGTERM or Ctrl-C.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="How long to deliver at most; with --follow: after the signal (25)."
        ),
    ] = None,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to try a backend that is unavailable.")
    ] = 30.0,
    directory: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Deliver what is left; of a run that goes on, what there is now. Exit code 0 if that is complete, 1 if not."""
    from trackhub.cli.completing import complete, terminating_cleanly
    from trackhub.cli.finding import find_runs, place_of

    names = [name.strip() for text in to for name in text.split(",") if name.strip()] if to else None
    if follow:
        _follow(which or [], names, 25.0 if timeout is None else timeout, directory, as_json=as_json)
        return
    place = place_of(directory)
    chosen = find_runs(which or [], place)
    _complain(place)
    with terminating_cleanly():
        result = complete(chosen, names, float("inf") if timeout is None else timeout, patience)
    if not chosen and not place.unreadable:
        _say(place.nothing())
    for problem in result.refused:
        _say(problem)
    _print_reports(result.reports, as_json=as_json, all_of_them=True)
    if not as_json:
        if result.already:
            typer.echo(f"{_counted(result.already, 'run')} already complete")
        if result.without_backends:
            ids = ", ".join(manifest.id for manifest in result.without_backends[:3])
            typer.echo(
                f"{_counted(len(result.without_backends), 'run')} without a backend ({ids}"
                f"{', ...' if len(result.without_backends) > 3 else ''}): deliver with trackhub sync --to BACKEND"
            )
    if not result.complete or place.unreadable:
        repeat = ["trackhub", "sync", *(which or []), *(part for name in names or () for part in ("--to", name))]
        repeat += [] if directory is None else ["--dir", str(directory)]
        _say(f"not everything is delivered; repeat with: {shlex.join(repeat)}")
        raise typer.Exit(INCOMPLETE)


def _follow(which: list[str], to: list[str] | None, grace: float, directory: Path | None, *, as_json: bool) -> None:
    from trackhub.cli.completing import stopping_politely
    from trackhub.cli.finding import place_of
    from trackhub.rundir import RunDirectory
    from trackhub.sync import follow

    roots = [Path(text) for text in which] or [place_of(directory).root]
    if len(roots) > 1 or RunDirectory(roots[0]).exists or (which and not roots[0].is_dir()):
        raise TrackhubError("sync --follow takes one directory that holds runs, and delivers all that come there")
    problems: list[str] = []

    def tell(problem: str) -> None:
        problems.append(problem)
        _say(problem)

    with stopping_politely() as stop:
        _say(f"delivering the runs in {roots[0].absolute()}; Ctrl-C or SIGTERM ends it")
        reports = follow(roots[0], to, tell, lambda: stop.asked, grace)
    found = {report.run_id: RunDirectory(roots[0] / report.run_id) for report in reports}
    _print_reports(
        [(found[report.run_id].manifest, report) for report in reports if found[report.run_id].exists],
        as_json=as_json,
        all_of_them=False,
    )
    if problems or not all(reports):
        raise typer.Exit(INCOMPLETE)


@app.command()
def replay(
    run: _Run,
    to: Annotated[str, typer.Option(metavar="BACKEND", help="Where to: any installed backend.")],
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the backend, for this copy (may be repeated)."),
    ] = None,
    same_id: Annotated[
        bool,
        typer.Option(
            "--same-id", help="Give the copy the run's own id, also if the backend has had the run: for another server."
        ),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Make a further copy, though there is one with the same options.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="How long to deliver at most.")
    ] = None,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to try a backend that is unavailable.")
    ] = 30.0,
    directory: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Deliver a whole run, with its child runs, once more: as a new run at any backend. Given again, it goes on.

    Exit code 0 if the copy is complete, 1 if something is left.
    """
    from trackhub.cli.completing import terminating_cleanly
    from trackhub.cli.finding import find_run, place_of
    from trackhub.replaying import given_options, prepare_copy
    from trackhub.sync import sync as deliver

    found = find_run(run, place_of(directory))
    copy = prepare_copy(found, to, given_options(option or []), same_id=same_id, again=again)
    with terminating_cleanly():
        reports = deliver(
            copy.runs, [to], float("inf") if timeout is None else timeout, patience, given={to: copy.options}
        )
    by_id = {one.manifest.id: one.manifest for one in copy.runs}
    _print_reports([(by_id[report.run_id], report) for report in reports], as_json=as_json, all_of_them=True)
    if not all(reports):
        _say("not everything is delivered; the same command goes on with it")
        raise typer.Exit(INCOMPLETE)
    if not as_json:
        already = "was made before (another one: --again)" if copy.was_complete else "is complete"
        typer.echo(f"the copy {already}; look at it with: trackhub status {shlex.quote(str(copy.runs[0].path))}")


@app.command()
def verify(
    run: _Run,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at", metavar="BACKEND", help="Look at this backend (may be repeated); default: at those of the run."
        ),
    ] = None,
    directory: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Read a run and its child runs back from their backends, and compare with the journal point by point.

    Exit code 0 if all is there and no more, 1 if anything differs or is not delivered, 3 if nothing differs but a
    backend could not be read back.
    """
    from trackhub.cli.finding import find_run, place_of
    from trackhub.sync import with_families
    from trackhub.verifying import verify_all

    found = find_run(run, place_of(directory))
    chosen = _with_descendants(found, with_families([found]))
    results = verify_all(chosen, [name for text in at for name in text.split(",")] if at else None)
    if as_json:
        from trackhub.cli.plainly import plain_verification

        _put_json([plain_verification(one) for one in results])
    elif results:
        from trackhub.cli.printing import Printer, print_verifications

        print_verifications(Printer(), results)
    else:
        _say(f"run {found.manifest.id} was given to no backend: there is nothing to compare it with")
    if any(one.outcome in ("differs", "not delivered") for one in results):
        raise typer.Exit(INCOMPLETE)
    if not results or not all(results):
        raise typer.Exit(UNVERIFIED)


@app.command()
def prune(
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN|DIRECTORY]...", help="Runs, or directories that hold runs; default: all runs."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Only runs that ended longer ago than this: 90s, 30m, 12h, 7d, 4w."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this, only say what would be freed.")] = False,
    whole_runs: Annotated[
        bool, typer.Option("--whole-runs", help="Remove the run directories altogether: nothing tells of them then.")
    ] = False,
    journal_only: Annotated[
        bool,
        typer.Option("--journal-only", help="Also runs that were given to no backend: this is the only copy of them."),
    ] = False,
    directory: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Free the disk from what all backends have: journals and copies of files, of runs that have ended.

    What is not delivered, refused, or shown by no backend stays, and so does a run that is being written or delivered.
    `runs` and `status` go on telling of what was freed. Exit code 1 if a run is unreadable.
    """
    from trackhub.cli.finding import find_runs, place_of
    from trackhub.cli.formats import seconds_of, size
    from trackhub.prune import prune as prune_runs

    age_seconds = 0.0 if older_than is None else seconds_of(older_than)
    place = place_of(directory)
    chosen = find_runs(which or [], place)
    _complain(place)
    results = prune_runs(
        chosen, older_than_seconds=age_seconds, journal_only=journal_only, whole_runs=whole_runs, dry_run=not yes
    )
    if as_json:
        from trackhub.cli.plainly import plain_pruned

        _put_json([plain_pruned(one, dry_run=not yes) for one in results])
    elif results:
        for one in results:
            verdict = f"{size(one.freed_bytes)} {'freed' if yes else 'can be freed'}"
            typer.echo(f"{one.run.path.name}  {verdict if one.kept is None else f'kept: {one.kept}'}")
        freed = [one for one in results if one.kept is None]
        total = f"{size(sum(one.freed_bytes for one in freed))} of {_counted(len(freed), 'run')}"
        typer.echo(f"freed {total}" if yes else f"would free {total}{'; repeat with --yes to do it' if freed else ''}")
    elif not place.unreadable:
        _say(place.nothing())
    if place.unreadable or not all(one.readable for one in results):
        raise typer.Exit(INCOMPLETE)


@app.command()
def cat(
    run: _Run,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Only this kind of record (may be repeated): metrics, params, artifact ..."),
    ] = None,
    directory: _Dir = None,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = True,  # noqa: ARG001 (it always is)
) -> None:
    """Print every record of a run as a line of JSON: its kind, its time (ISO 8601, UTC) and its fields.

    JSON has no NaN and no infinities: they are the strings "NaN", "Infinity" and "-Infinity". Where a run was gone on
    with, "attempt" says by which process in turn, also for what a later one has superseded.
    """
    from trackhub.attempts import Attempts
    from trackhub.cli.finding import find_run, place_of
    from trackhub.cli.plainly import json_bytes, kinds_of, plain_record
    from trackhub.journal import JournalReader

    found = find_run(run, place_of(directory))
    _ = found.manifest  # Refuses a directory that leads out of itself.
    wanted = kinds_of(part for text in kind for part in text.split(",")) if kind else None
    out = sys.stdout.buffer
    reader, attempts = JournalReader(found.journal), Attempts(found.journal)
    try:
        chunk = reader.read({})
        while not chunk.empty:
            several = attempts.look() > 1
            for writer, records in chunk.by_writer():
                more = {"attempt": attempts.number_of(writer)} if several else {}
                chosen = records if wanted is None else [one for one in records if isinstance(one, wanted)]
                out.writelines(json_bytes({**plain_record(record), **more}) + b"\n" for record in chosen)
            for place in chunk.damaged:
                _say(f"damage in the journal: {place}")
            chunk = reader.read(chunk.position)
    finally:
        attempts.close()
        reader.close()
    out.flush()


@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help="neptune or tensorboard.")],
    source: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="Neptune's directory (.neptune or a part of it), or a log directory."),
    ],
    project: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="The project of the runs. Default: as for a new run.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name of the run, if there is one. Default: its own.")
    ] = None,
    files_from: Annotated[
        list[Path] | None,
        typer.Option(
            "--files-from",
            metavar="DIRECTORY",
            help="Also copy files below this directory that the source names by their paths (may be repeated).",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Read what was imported before anew, and replace it.")] = False,
    directory: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Import runs from what another tracker left on disk. Exit code 1 if something of it is missing or left out."""
    from trackhub import settings
    from trackhub.cli.finding import place_of
    from trackhub.importing import import_runs

    chosen = settings.load({} if project is None else {"project": project}).settings.project
    report = import_runs(kind, source, place_of(directory).root, chosen, name, again=again, files_from=files_from or [])
    if as_json:
        from trackhub.cli.plainly import plain_import

        _put_json([plain_import(one) for one in report.runs])
    else:
        from trackhub.cli.finding import sync_command
        from trackhub.cli.printing import Printer, print_imports

        print_imports(Printer(), report.runs, sync_command)
    for sentence in report.left_out:
        _say(sentence)
    if not report.complete:
        raise typer.Exit(INCOMPLETE)


@app.command()
def backends(directory: _Dir = None, as_json: _Json = False) -> None:  # noqa: ARG001 (taken by every command)
    """List the backends that are installed, and what each can show."""
    from trackhub.cli.inventory import inventory

    entries = inventory()
    if as_json:
        from dataclasses import asdict

        _put_json([asdict(entry) for entry in entries])
    else:
        from trackhub.cli.printing import Printer, print_backends

        print_backends(Printer(), entries)


@app.command()
def doctor(
    backend: Annotated[
        list[str] | None,
        typer.Option(metavar="BACKEND", help="Look at this backend (may be repeated); default: at those selected."),
    ] = None,
    directory: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Check what a run would need: settings and their sources, the directory, and each backend. Secrets are hidden."""
    from trackhub.cli.doctor import diagnose

    diagnosis = diagnose({"dir": directory}, backend)
    if as_json:
        from dataclasses import asdict

        _put_json({"healthy": diagnosis.healthy, **asdict(diagnosis)})
    else:
        from trackhub.cli.printing import Printer, print_diagnosis

        print_diagnosis(Printer(), diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(INCOMPLETE)


def _with_descendants(run: RunDirectory, family: list[RunDirectory]) -> list[RunDirectory]:
    """A run and those of its family that are below it; parents come before their children in a family."""
    below = {run.manifest.id}
    for other in family:
        if other.manifest.parent_id in below:
            below.add(other.manifest.id)
    return [other for other in family if other.manifest.id in below]


def _print_reports(reports: list[tuple[Manifest, DeliveryReport]], *, as_json: bool, all_of_them: bool) -> None:
    if as_json:
        from trackhub.cli.plainly import plain_report

        _put_json([plain_report(report) for _, report in reports])
        return
    shown = [(manifest, report) for manifest, report in reports if all_of_them or report.remarkable]
    if shown:
        from trackhub.cli.printing import Printer, print_reports

        print_reports(Printer(), shown)
    if len(shown) < len(reports):
        typer.echo(f"{_counted(len(reports) - len(shown), 'run')} complete")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _complain(place: Place) -> None:
    for name, why in place.unreadable.items():
        _say(f"run {name} is left out: {why}")


def _say(text: str) -> None:
    """Tell the person, beside what is printed."""
    from trackhub.cli.formats import legible

    typer.echo(legible(text), err=True)


def _put_json(value: object) -> None:
    from trackhub.cli.plainly import json_bytes

    sys.stdout.buffer.write(json_bytes(value, indent=2) + b"\n")
    sys.stdout.buffer.flush()
