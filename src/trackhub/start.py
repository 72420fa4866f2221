"""Starting a run: settings, backends and identity are put together and checked here, before anything is recorded.

Apart from the tracker because this is the strict door: what is wrong raises here, with the fix in the message, and
nothing raises for the same reason later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trackhub import active, plain, plugins, settings
from trackhub._version import VERSION
from trackhub.errors import NoActiveRunError, UnknownBackendError
from trackhub.rundir import Manifest, RunDirectory, check_run_id, new_run_id
from trackhub.tracker import Tracker


def init(
    project: str | None = None,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    backends: Sequence[str] | str | None = None,
    tags: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    dir: str | Path | None = None,
    mode: str | None = None,
    finish_timeout: float | None = None,
    **backend_options: Mapping[str, Any],
) -> Tracker:
    """Start a run.

    What is left out comes from `TRACKHUB_*` variables, then from `trackhub.toml` or `[tool.trackhub]` in
    `pyproject.toml`, then from the defaults.

    Args:
        project: The project the run belongs to.
        name: The name people see; default: the run id.
        params: Logged at once, as by `log_params`.
        backends: Names of the backends that get the run; none: the journal alone.
        tags: Set at once, as by `set_tags`.
        run_id: The id of the run; that of an earlier run goes on with it. Default: a new one.
        dir: The directory that holds the run directories; default `.trackhub`.
        mode: "online", "offline" (journal alone, for `trackhub sync` later) or "disabled" (nothing is recorded).
        finish_timeout: How long `finish()` waits for the deliveries, in seconds; default 60.
        backend_options: A mapping of options for each backend that needs some: `mlflow={"tracking_uri": ...}`.

    Raises:
        SettingsError: A setting or an option is not accepted, a backend is unknown, or its package is missing. The
            message says what to write instead.
        OSError: The run directory cannot be written.

    >>> import tempfile
    >>> with init(project="doc", dir=tempfile.mkdtemp()) as tracker:
    ...     tracker.log_metrics({"loss": 0.5}, step=0)
    """
    working_directory = Path.cwd()
    loaded = settings.load(
        {
            "project": project,
            "name": name,
            "backends": backends,
            "run_id": run_id,
            "dir": dir,
            "mode": mode,
            "finish_timeout": finish_timeout,
        },
        working_directory,
    )
    chosen = loaded.settings
    _refuse_stray_options(backend_options, chosen.backends)
    options = {
        backend: options_of(backend, loaded, backend_options.get(backend, {}), working_directory)
        for backend in chosen.backends
    }
    if chosen.mode == "disabled":
        return Tracker.disabled(chosen)
    # Refused before there is a run, or it would be left behind without an end.
    flat, texts = plain.plain_params(params or {}), plain.plain_tags(tags or {})
    run = RunDirectory.create(working_directory / chosen.dir, _manifest(loaded, options, working_directory))
    tracker = Tracker.start(run, chosen, options)
    if flat:
        tracker.log_params(flat)
    if texts:
        tracker.set_tags(texts)
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
    options, _ = settings.backend_options(backend, kind.Options, arguments, table, loaded.file)
    options = kind.resolve(options, working_directory)
    if loaded.settings.mode == "online":
        kind.check(options)
    return options


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


def _manifest(loaded: settings.Loaded, options: Mapping[str, Any], working_directory: Path) -> Manifest:
    chosen = loaded.settings
    stored = {name: settings.storable_options(option) for name, option in options.items()}
    identity = check_run_id(chosen.run_id) if chosen.run_id else new_run_id()
    earlier = RunDirectory(working_directory / chosen.dir / identity)
    if earlier.exists:
        past = earlier.manifest
        return Manifest(
            id=identity,
            name=chosen.name or past.name,
            project=past.project if loaded.sources["project"] == "default" else chosen.project,
            created_ns=past.created_ns,
            backends={**past.backends, **stored},
            parent_id=past.parent_id,
            working_directory=past.working_directory,
            version=VERSION,
        )
    return Manifest(
        id=identity,
        name=chosen.name or identity,
        project=chosen.project,
        created_ns=time.time_ns(),
        backends=stored,
        working_directory=str(working_directory),
        version=VERSION,
    )
