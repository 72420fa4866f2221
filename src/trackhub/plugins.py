"""Finding a backend by its name, and what knows the place the process runs in: pluggy's hooks, and who implements them.

Apart so that loading is in one place: a backend is imported when it is asked for by name and never otherwise, so a
stranger's broken plugin hurts nobody. pluggy registers and finds; it never carries data.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import pluggy

from trackhub.backend import Backend
from trackhub.context import RunContext
from trackhub.errors import SettingsError, UnknownBackendError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "trackhub"
BUILT_IN = {
    "katib": "trackhub.backends.katib",
    "kfp": "trackhub.backends.kfp",
    "mlflow": "trackhub.backends.mlflow",
    "neptune": "trackhub.backends.neptune",
    "tensorboard": "trackhub.backends.tensorboard",
}
"""Name -> module. The same hook as any plugin's is called in it; being listed here only saves the look-up."""
CONTEXTS = {
    "trackhub.backends.kfp.context": ("_KFP_RUNTIME", "kfp.dsl.executor"),
}
"""Module -> signs that it may know the place the process runs in: a variable that is set, a module that is loaded."""
FOR_TESTS = {"memory": "trackhub.testing.memory"}
"""Found by name like those, but never offered: nobody's runs should end up there by a typing error."""

_hookspec = pluggy.HookspecMarker("trackhub")


class HookSpec:
    """The hooks of a trackhub plugin."""

    @_hookspec
    def trackhub_backends(self) -> list[type[Backend]]:  # type: ignore[empty-body]
        """The backends this plugin brings, as classes."""

    @_hookspec(firstresult=True)
    def trackhub_context(self, environment: Mapping[str, str]) -> RunContext | None:
        """What the place the process runs in says of the run that is being started; None if it is another place."""


_loaded: dict[str, type[Backend]] = {}


def find_backend(name: str) -> type[Backend]:
    """The backend of that name.

    Raises:
        UnknownBackendError: There is none; the message lists those there are and the nearest name.
        SettingsError: Its plugin is broken, or two packages claim the name.
    """
    if name not in _loaded:
        _loaded[name] = _load(name)
    return _loaded[name]


def backend_names() -> list[str]:
    """The names of all backends that are installed, without importing any of them."""
    return sorted({*BUILT_IN, *(entry.name for entry in _entry_points())})


def find_context(environment: Mapping[str, str]) -> RunContext | None:
    """What the place the process runs in says of the run that is being started; None if it says nothing.

    Args:
        environment: The process's variables.
    """
    modules = [
        module
        for module, signs in CONTEXTS.items()
        if any(sign in environment or sign in sys.modules for sign in signs)
    ]
    manager = _manager_of(map(importlib.import_module, modules)) if modules else None
    return manager.hook.trackhub_context(environment=environment) if manager else None


def version_of(name: str, backend: type[Backend]) -> str:
    """What to call a backend in a message: its name with the version of the vendor's package, or of its plugin."""
    from importlib.metadata import PackageNotFoundError, version

    for distribution in backend.distributions:
        try:
            return f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            continue
    for entry in _entry_points():
        if entry.name == name and entry.dist is not None:
            return f"{entry.dist.name} {entry.dist.version}"
    return name


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=ENTRY_POINT_GROUP))


def _load(name: str) -> type[Backend]:
    if module := BUILT_IN.get(name) or FOR_TESTS.get(name):
        return _from_module(name, importlib.import_module(module))
    entries = [entry for entry in _entry_points() if entry.name == name]
    if not entries:
        known = backend_names()
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UnknownBackendError(
            f"no backend is called {name!r}{hint} Installed backends: {', '.join(known)}. "
            "A plugin package brings others once it is installed beside trackhub."
        )
    if len(entries) > 1:
        owners = " and ".join(f"{entry.dist.name} ({entry.value})" if entry.dist else entry.value for entry in entries)
        raise SettingsError(f"two packages bring a backend called {name!r}: {owners}. Uninstall one of them.")
    entry = entries[0]
    owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    try:
        return _from_module(name, entry.load(), owner)
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"the plugin of backend {name!r} ({owner}) cannot be loaded: {type(error).__name__}: {error}. "
            "Upgrade or uninstall it, or leave the backend out."
        ) from error


def _manager_of(modules: Iterable[ModuleType]) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("trackhub")
    manager.add_hookspecs(HookSpec)
    for module in modules:
        manager.register(module)
    return manager


def _from_module(name: str, module: ModuleType, owner: str = "trackhub") -> type[Backend]:
    classes = [backend for found in _manager_of([module]).hook.trackhub_backends() for backend in found]
    for backend in classes:
        if isinstance(backend, type) and issubclass(backend, Backend) and backend.name == name:
            return backend
    brought = ", ".join(repr(getattr(backend, "name", backend)) for backend in classes) or "nothing"
    raise SettingsError(
        f"the plugin of backend {name!r} ({owner}) brings {brought}: its hook trackhub_backends() must return a list "
        f"with a trackhub.Backend subclass whose name is {name!r}"
    )
