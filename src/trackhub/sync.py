"""Delivering run directories without their training process: what `trackhub sync` does, once or for ever.

Apart from the command line so that it can be called and tested as a function. It is the same code as live delivery: the
same processes, told of the same run directories.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trackhub import plugins, processing, settings
from trackhub.errors import UNREADABLE, SettingsError
from trackhub.host import Host
from trackhub.journal import JournalReader
from trackhub.report import DeliveryReport, delivery_report
from trackhub.rundir import RunDirectory, runs_in
from trackhub.waiting import Awaited, backends_complete, wait_for_deliveries

STOP_SECONDS = 10.0
FOLLOW_INTERVAL_SECONDS = 1.0


def with_families(runs: Iterable[RunDirectory]) -> list[RunDirectory]:
    """The runs with their parents and children, parents first: a child can only be delivered below its parent."""
    wanted = {run.path: run for run in runs}
    known = {run.manifest.id: run for root in {path.parent for path in wanted} for run in runs_in(root)}
    family: dict[str, RunDirectory] = {}

    def add(run: RunDirectory) -> None:
        parent = run.manifest.parent_id
        if parent in known and parent not in family:
            add(known[parent])
        family.setdefault(run.manifest.id, run)

    for run in wanted.values():
        add(run)
    for run in known.values():
        if run.manifest.parent_id in family:
            add(run)
    return list(family.values())


def options_for(run: RunDirectory, backend: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options to deliver a stored run with: as it was started, with secrets and overrides from the environment.

    A `TRACKHUB_<BACKEND>_<OPTION>` variable wins over what is stored, unless the run is a copy made for one place; the
    vendor's own variables and the settings file fill in what is not.

    Args:
        run: The run.
        backend: The backend's name.
        given: Options that win over everything.

    Raises:
        SettingsError: The backend is unknown, an option is not accepted, a package is missing, or only the training
            process can deliver to it.
    """
    settings.learn_secrets_of_environment()
    kind = plugins.find_backend(backend)
    if kind.needs_training_process:
        raise SettingsError(f"backend {backend!r} is filled by the training process itself, while it runs")
    freed = run.freed
    if freed is not None and not run.cursor(backend).position:
        raise SettingsError(
            f"run {run.manifest.id} was pruned ({time.strftime('%Y-%m-%d', time.localtime(freed.time_ns / 1e9))}): its "
            f"records are no longer here to be delivered to {backend}"
        )
    directory = Path(run.manifest.working_directory)
    loaded = settings.load({}, directory if directory.is_dir() else None)
    stored = {
        name: value
        for name, value in run.manifest.backends.get(backend, {}).items()
        if name in kind.Options.model_fields
        and (run.manifest.copy_of is not None or not settings.option_variable_is_set(backend, name))
    }
    arguments = {**stored, **(given or {})}
    options, _ = settings.backend_options(backend, kind.Options, arguments, loaded.tables.get(backend, {}), loaded.file)
    options = processing.resolved(kind, options, directory)
    kind.check(options)
    return settings.full_options(options)


def sync(
    runs: Iterable[RunDirectory],
    to: Sequence[str] | None = None,
    timeout_seconds: float = float("inf"),
    patience_seconds: float = 30.0,
    on_problem: Callable[[str], None] | None = None,
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[DeliveryReport]:
    """Deliver runs, and wait until everything has arrived or will not for now.

    Args:
        runs: The runs; their parents and children are delivered with them.
        to: Backends to deliver to; default: those each run was given to.
        timeout_seconds: How long to wait at most.
        patience_seconds: How long a backend may be unavailable before it is given up for now.
        on_problem: Told of a delivery that cannot be begun; the others go on. Default: it raises, before any begins.
        given: Backend -> options that win over those of the runs.

    Returns:
        A report for each run, parents first.

    Raises:
        SettingsError: A backend in `to` is unknown; without `on_problem` also: one of a run is, an option is not
            accepted, or a package is missing.
    """
    for name in to or ():
        plugins.find_backend(name)
    family = with_families(runs)
    options: dict[tuple[Path, str], dict[str, Any]] = {}
    work = []
    for run in family:
        for name in to if to is not None else run.deliverable:
            try:
                options[run.path, name] = options_for(run, name, (given or {}).get(name))
                _undelivered(run, name)
                work.append((run, name))
            except UNREADABLE as error:
                if on_problem is None:
                    raise
                on_problem(f"run {run.manifest.id} cannot be delivered to {name}: {error}")
    # What another process tries in vain to deliver is ours to try now.
    for run, name in work:
        run.cursor_file(name).ask_to_hand_over()
    # Not the host of this process: that one may be delivering runs that go on.
    host = Host()
    try:
        for run, name in work:
            host.deliver(run, {name: options[run.path, name]})
        awaited = list(_awaited(work, on_problem))
        arrived = wait_for_deliveries(host, awaited, timeout_seconds, patience_seconds)
    finally:
        host.stop(STOP_SECONDS)
    return list(_reports(family, to, arrived, on_problem))


def follow(
    root: Path,
    to: Sequence[str] | None = None,
    on_problem: Callable[[str], None] = print,
    until: Callable[[], bool] = lambda: False,
    grace_seconds: float = 25.0,
) -> list[DeliveryReport]:
    """Deliver every run under a directory, and those that come, until told to stop; then what is left, in a grace.

    Args:
        root: A `TRACKHUB_DIR`; it may not exist yet.
        to: Backends to deliver to; default: those each run was given to.
        on_problem: Told about a run that cannot be delivered.
        until: Asked every second whether to stop.
        grace_seconds: How long to go on delivering after that.

    Returns:
        A report for each run that was taken up.
    """
    host = Host()
    taken: dict[Path, _Taken] = {}
    try:
        while True:
            stopping = until()
            for run in runs_in(root):
                _take_up(host, taken.setdefault(run.path, _Taken(run)), to, on_problem)
            host.keep_alive()
            if stopping:
                break
            time.sleep(FOLLOW_INTERVAL_SECONDS)
        kept = [one for one in taken.values() if one.run.exists]
        awaited = list(_awaited([(one.run, name) for one in kept for name in one.backends(to)], on_problem))
        arrived = wait_for_deliveries(host, awaited, grace_seconds)
    finally:
        host.stop(STOP_SECONDS)
    return list(_reports([one.run for one in kept], to, arrived, on_problem))


def _undelivered(run: RunDirectory, backend: str) -> bool:
    """Whether a backend lacks something; raises now what would be raised in the middle of waiting for all."""
    run.amount()
    cursor = run.cursor(backend)
    return run.remaining(cursor) > 0 or not cursor.closed


def _awaited(work: Iterable[tuple[RunDirectory, str]], on_problem: Callable[[str], None] | None) -> Iterator[Awaited]:
    """What to wait for; a run that cannot be read keeps no other one from being waited for."""
    for run, name in work:
        try:
            yield _all_there_is_now(run, name)
        except UNREADABLE as error:
            if on_problem is None:
                raise
            on_problem(f"run {run.path.name}, as delivered to {name}, is not waited for: {error}")


def _reports(
    runs: Iterable[RunDirectory],
    to: Sequence[str] | None,
    arrived: Sequence[Awaited],
    on_problem: Callable[[str], None] | None,
) -> Iterator[DeliveryReport]:
    """How runs stand; one that cannot be read keeps no other one from being told of."""
    for run in runs:
        try:
            yield delivery_report(run, f"trackhub sync {run.path}", to, arrived=backends_complete(run, arrived))
        except UNREADABLE as error:
            if on_problem is None:
                raise
            on_problem(f"how run {run.path.name} stands cannot be read: {error}")


def _all_there_is_now(run: RunDirectory, backend: str) -> Awaited:
    """What to wait for: of a run that goes on, there is more a moment later."""
    if not run.is_being_written:
        return Awaited(run, backend)
    reader = JournalReader(run.journal)
    try:
        chunk = reader.read(run.cursor(backend).position)
        while chunk.full:
            chunk = reader.read(chunk.position)
    finally:
        reader.close()
    marks = tuple((int(writer), segment, offset) for writer, (segment, offset) in chunk.position.items())
    return Awaited(run, backend, marks, end=True)


@dataclass
class _Taken:
    """A run that `follow` has taken up.

    Args:
        run: The run.
        changed_ns: When its journal directory had last changed: later, another process has begun to write the run.
        refused: Those it cannot be delivered to.
    """

    run: RunDirectory
    changed_ns: int = 0
    refused: set[str] = field(default_factory=set)

    def backends(self, to: Sequence[str] | None) -> list[str]:
        return [name for name in (to if to is not None else self.run.deliverable) if name not in self.refused]


def _take_up(host: Host, taken: _Taken, to: Sequence[str] | None, on_problem: Callable[[str], None]) -> None:
    """Have a run delivered if it is new, or if a process has begun to write it since."""
    run = taken.run
    try:
        changed_ns = run.journal.stat().st_mtime_ns
    except FileNotFoundError:
        return
    if changed_ns == taken.changed_ns:
        return
    taken.changed_ns = changed_ns
    for name in taken.backends(to):
        try:
            options = options_for(run, name)
            undelivered = _undelivered(run, name)
        except UNREADABLE as error:
            taken.refused.add(name)
            on_problem(f"run {run.path.name} cannot be delivered to {name}: {error}")
            continue
        if undelivered:
            host.deliver(run, {name: options})
