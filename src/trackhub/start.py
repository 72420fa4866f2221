"""Starting a run: settings, backends and identity are put together and checked here, before anything is recorded.

Apart from the tracker because this is the strict door: what is wrong raises here, with the fix in the message, and
nothing raises for the same reason later.
"""

from __future__ import annotations

import errno
import functools
import logging
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trackhub import active, misspelt, plain, plugins, processing, settings, termination
from trackhub import ranks as ranks_module
from trackhub._version import VERSION
from trackhub.context import RunContext
from trackhub.errors import NoActiveRunError, SettingsError, UnknownBackendError
from trackhub.rundir import Manifest, RunDirectory, check_run_id, check_run_name, new_run_id
from trackhub.tracker import Tracker

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_log = logging.getLogger("trackhub")


def init(
    project: str | None = None,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    backends: Sequence[str] | str | None = None,
    tags: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    resume_step: int | None = None,
    dir: str | Path | None = None,
    mode: str | None = None,
    ranks: str | None = None,
    finish_timeout: float | None = None,
    **backend_options: Mapping[str, Any],
) -> Tracker:
    """Start a run.

    What is left out comes from `TRACKHUB_*` variables, then from `trackhub.toml` or `[tool.trackhub]` in
    `pyproject.toml`, then from the place the process runs in (a pipeline's task has a name), then from the defaults.

    Args:
        project: The project the run belongs to.
        name: The name people see; default: the run id.
        params: Logged at once, as by `log_params`; those of rank 0, where all ranks record.
        backends: Names of the backends that get the run; none: the journal alone.
        tags: Set at once, as by `set_tags`; those of rank 0, where all ranks record.
        run_id: The id of the run; that of an earlier run goes on with it. Default: a new one.
        resume_step: The step of the checkpoint that training goes on from. What an earlier attempt logged after it is
            superseded by what is logged now, and steps that are left out are counted from there.
        dir: The directory that holds the run directories; default `.trackhub`.
        mode: "online", "offline" (journal alone, for `trackhub sync` later) or "disabled" (nothing is recorded).
        ranks: Which of the processes of a distributed training record: "zero" (default) or "all".
        finish_timeout: How long `finish()` waits for the deliveries, in seconds; default 60.
        backend_options: A mapping of options for each backend that needs some: `mlflow={"tracking_uri": ...}`.

    Raises:
        SettingsError: A setting or an option is not accepted, a backend is unknown, or its package is missing. The
            message says what to write instead.
        OSError: The run directory cannot be written, or the working directory has been deleted. Where writing is
            forbidden, a temporary run directory takes its place and a warning says so.

    >>> import tempfile
    >>> with init(project="doc", dir=tempfile.mkdtemp()) as tracker:
    ...     tracker.log_metrics({"loss": 0.5}, step=0)
    """
    working_directory = _working_directory()
    if resume_step is not None:
        resume_step = plain.step_of(resume_step)
    settings.learn_secrets_of_environment()
    loaded = settings.load(
        {
            "project": project,
            "name": name,
            "backends": backends,
            "run_id": run_id,
            "dir": dir,
            "mode": mode,
            "ranks": ranks,
            "finish_timeout": finish_timeout,
        },
        working_directory,
    )
    context = plugins.find_context(settings.environment()) or RunContext()
    loaded = loaded.completed({"name": context.name, "run_id": context.run_id}, "the place it runs in")
    place = ranks_module.detect(settings.environment())
    loaded = loaded.completed({"run_id": _shared_run_id(loaded, place, working_directory)}, "the launcher")
    chosen = loaded.settings
    misspelt.check_tables(loaded)
    _check_name(loaded)
    _refuse_stray_options(backend_options, chosen.backends)
    options = {
        backend: options_of(backend, loaded, backend_options.get(backend, {}), working_directory)
        for backend in chosen.backends
    }
    if chosen.mode == "disabled" or (place is not None and place.rank and chosen.ranks == "zero"):
        return Tracker.disabled(chosen)
    misspelt.warn_of_variables(settings.environment(), options)
    # Refused before there is a run, or it would be left behind without an end.
    flat, texts = plain.plain_params(params or {}), {**context.tags, **plain.plain_tags(tags or {})}
    if chosen.ranks == "zero":
        place = None
    run = _create(loaded, options, context, working_directory, joins=place is not None and place.rank > 0)
    termination.watch()
    tracker = Tracker.start(run, chosen, options, place=place, resume_step=resume_step)
    context.before_end(tracker.end_before_waiting)
    if place is not None and place.rank:
        # What all ranks start with is said once, by rank 0.
        return tracker
    tracker.log_first(flat, texts)
    return tracker


def current() -> Tracker:
    """The tracker in force: the last one started in this context and not finished.

    In a thread that was started without a context it is the process's last one.

    Raises:
        NoActiveRunError: There is none.
    """
    tracker = active.in_force()
    if not isinstance(tracker, Tracker):
        raise NoActiveRunError("no run is in force: call trackhub.init(...) before trackhub.current()")
    return tracker


def options_of(backend: str, loaded: settings.Loaded, arguments: Mapping[str, Any], working_directory: Path) -> Any:
    """A backend's options, checked as far as they can be without the vendor's SDK.

    Args:
        backend: Its name.
        loaded: The settings in force.
        arguments: What was given to `init` for it.
        working_directory: What relative paths are relative to.

    Raises:
        SettingsError: The backend is unknown, an option is not accepted, or a package is missing.
    """
    kind = plugins.find_backend(backend)
    table = loaded.tables.get(backend, {})
    options, sources = settings.backend_options(backend, kind.Options, arguments, table, loaded.file)
    options = processing.resolved(kind, options, working_directory, sources.get("processors", ""))
    if loaded.settings.mode == "online":
        kind.check(options)
    return options


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno,
            "the working directory of this process has been deleted, and relative paths in settings would lead "
            "nowhere: call os.chdir() with a directory that exists before trackhub.init()",
        ) from error


def _check_name(loaded: settings.Loaded) -> None:
    if loaded.settings.name:
        try:
            check_run_name(loaded.settings.name)
        except ValueError as error:
            source = loaded.sources["name"]
            where = "" if source == "argument" else f" (from {source})"
            raise SettingsError(f"{error}{where}; set {settings.variable_of('name')}") from None


def _refuse_stray_options(backend_options: Mapping[str, Any], selected: Sequence[str]) -> None:
    for name, options in backend_options.items():
        if not isinstance(options, Mapping):
            raise TypeError(
                f"init() has no argument {name!r} (a backend's options are given as a mapping: {name}={{...}})"
            )
        if name not in selected and name not in plugins.BUILT_IN and name not in plugins.backend_names():
            raise UnknownBackendError(
                f"init() was given options for a backend {name!r} that is not installed "
                f"(installed: {', '.join(plugins.backend_names())})"
            )


def _shared_run_id(loaded: settings.Loaded, place: ranks_module.Place | None, working_directory: Path) -> str | None:
    """The id that all processes of a launcher come to, where they share a run or one of them goes on with it."""
    if place is None or loaded.settings.run_id or loaded.settings.mode == "disabled":
        return None
    if loaded.settings.ranks == "zero":
        if place.rank or not place.restarts:
            return None
        # What rank 0 starts inherits its variables. That is another run, as it would be without a launcher.
        root = working_directory / loaded.settings.dir
        return ranks_module.next_run_id(place, lambda run_id: RunDirectory(root / run_id).end()[0] == "running")
    ranks_module.check_agreement(place)
    return ranks_module.next_run_id(place)


def _create(
    loaded: settings.Loaded,
    options: Mapping[str, Any],
    context: RunContext,
    working_directory: Path,
    *,
    joins: bool,
) -> RunDirectory:
    """Make the run directory, or find it again: where the settings say or, if that may not be, in a temporary one."""
    root = working_directory / loaded.settings.dir
    try:
        return RunDirectory.create(root, _manifest(loaded, options, context, root, working_directory), joins=joins)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        try:
            fallback = _temporary_root()
        except FileNotFoundError:
            raise OSError(
                error.errno,
                f"{root} cannot be written ({error.strerror}), and there is no temporary directory that can be: set "
                "TRACKHUB_DIR to a directory that can",
            ) from error
        run = RunDirectory.create(fallback, _manifest(loaded, options, context, fallback, working_directory))
        _log.warning(
            "trackhub: %s cannot be written (%s): run %s is recorded in %s instead. Set TRACKHUB_DIR to a directory "
            "that can be, and that outlives this machine if the run has to.",
            root,
            error.strerror,
            run.manifest.id,
            fallback,
        )
        return run


@functools.cache
def _temporary_root() -> Path:
    """One for all runs of this process."""
    return Path(tempfile.mkdtemp(prefix="trackhub-"))


def _manifest(
    loaded: settings.Loaded, options: Mapping[str, Any], context: RunContext, root: Path, working_directory: Path
) -> Manifest:
    chosen = loaded.settings
    stored = {name: settings.storable_options(option) for name, option in options.items()}
    in_process = [name for name in options if plugins.find_backend(name).needs_training_process]
    identity = check_run_id(chosen.run_id) if chosen.run_id else new_run_id()
    fresh = Manifest(
        id=identity,
        name=chosen.name or identity,
        project=chosen.project,
        created_ns=time.time_ns(),
        backends=stored,
        working_directory=str(working_directory),
        version=VERSION,
        in_process=in_process,
        reserved_params=sorted(context.reserved_params),
        origin=secrets.token_hex(4) if chosen.run_id else "",
    )
    earlier = RunDirectory(root / identity)
    # Not `exists`, which takes what may not be looked at for a run: here another directory takes its place.
    if not (earlier.path / "run.json").is_file():
        return fresh
    past = earlier.manifest
    return msgspec.structs.replace(
        fresh,
        name=chosen.name or past.name,
        project=past.project if loaded.sources["project"] == "default" else chosen.project,
        created_ns=past.created_ns,
        backends={**past.backends, **stored},
        parent_id=past.parent_id,
        working_directory=past.working_directory,
        in_process=sorted({*past.in_process, *in_process}),
        origin=past.origin,
    )
