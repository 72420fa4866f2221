"""Finding a backend or a processor by its name, and what knows the place the process runs in: pluggy's hooks.

Apart so that loading is in one place: what a plugin brings is imported when it is asked for by name and never
otherwise, so a stranger's broken plugin hurts nobody. pluggy registers and finds; it never carries data.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

import pluggy

from trackhub._version import VERSION
from trackhub.backend import Backend
from trackhub.context import RunContext
from trackhub.errors import SettingsError, UnknownBackendError
from trackhub.processor import Processor

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "trackhub"
PROCESSOR_ENTRY_POINT_GROUP = "trackhub.processors"
"""A group of its own: a processor is no backend, and the two may have the same name."""
BUILT_IN = {
    "katib": "trackhub.backends.katib",
    "kfp": "trackhub.backends.kfp",
    "mlflow": "trackhub.backends.mlflow",
    "neptune": "trackhub.backends.neptune",
    "tensorboard": "trackhub.backends.tensorboard",
}
"""Name -> module. The same hook as any plugin's is called in it; being listed here only saves the look-up."""
BUILT_IN_PROCESSORS = {
    "every": "trackhub.processors.thinning",
    "exclude": "trackhub.processors.selection",
    "include": "trackhub.processors.selection",
    "redact": "trackhub.processors.redaction",
    "rename": "trackhub.processors.renaming",
}
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

    @_hookspec
    def trackhub_processors(self) -> list[type[Processor]]:  # type: ignore[empty-body]
        """The processors this plugin brings, as classes."""

    @_hookspec(firstresult=True)
    def trackhub_context(self, environment: Mapping[str, str]) -> RunContext | None:
        """What the place the process runs in says of the run that is being started; None if it is another place."""


Brought = TypeVar("Brought", Backend, Processor)


@dataclass(frozen=True)
class _Seam(Generic[Brought]):
    """Where one kind of part comes in: what it is called, who brings it, and how."""

    what: str
    group: str
    hook: str
    base: type[Brought]
    unknown: type[SettingsError]
    built_in: Mapping[str, str]
    unlisted: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        return sorted({*self.built_in, *(entry.name for entry in _entry_points(self.group))})


_loaded: dict[str, type[Backend]] = {}
_loaded_processors: dict[str, type[Processor]] = {}
_BACKENDS = _Seam(
    "backend",
    ENTRY_POINT_GROUP,
    "trackhub_backends",
    Backend,  # type: ignore[type-abstract]
    UnknownBackendError,
    BUILT_IN,
    FOR_TESTS,
)
_PROCESSORS = _Seam(
    "processor",
    PROCESSOR_ENTRY_POINT_GROUP,
    "trackhub_processors",
    Processor,  # type: ignore[type-abstract]
    SettingsError,
    BUILT_IN_PROCESSORS,
)


def find_backend(name: str) -> type[Backend]:
    """The backend of that name.

    Raises:
        UnknownBackendError: There is none; the message lists those there are and the nearest name.
        SettingsError: Its plugin is broken, or two packages claim the name.
    """
    if name not in _loaded:
        _loaded[name] = _load(_BACKENDS, name)
    return _loaded[name]


def backend_names() -> list[str]:
    """The names of all backends that are installed, without importing any of them."""
    return _BACKENDS.names()


def find_processor(name: str) -> type[Processor]:
    """The processor of that name.

    Raises:
        SettingsError: There is none, its plugin is broken, or two packages claim the name.
    """
    if name not in _loaded_processors:
        _loaded_processors[name] = _load(_PROCESSORS, name)
    return _loaded_processors[name]


def processor_names() -> list[str]:
    """The names of all processors that are installed, without importing any of them."""
    return _PROCESSORS.names()


def owner_of_processor(name: str) -> str:
    """The distribution that brings a processor, with its version; of trackhub itself, too."""
    if name not in BUILT_IN_PROCESSORS:
        for entry in _entry_points(PROCESSOR_ENTRY_POINT_GROUP):
            if entry.name == name and entry.dist is not None:
                return f"{entry.dist.name} {entry.dist.version}"
    return f"trackhub {VERSION}"


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
    for entry in _entry_points(ENTRY_POINT_GROUP):
        if entry.name == name and entry.dist is not None:
            return f"{entry.dist.name} {entry.dist.version}"
    return name


def _entry_points(group: str) -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=group))


def _load(seam: _Seam[Brought], name: str) -> type[Brought]:
    if module := seam.built_in.get(name) or seam.unlisted.get(name):
        return _from_module(seam, name, importlib.import_module(module))
    entries = [entry for entry in _entry_points(seam.group) if entry.name == name]
    if not entries:
        known = seam.names()
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise seam.unknown(
            f"no {seam.what} is called {name!r}{hint} Installed {seam.what}s: {', '.join(known)}. "
            "A plugin package brings others once it is installed beside trackhub."
        )
    if len(entries) > 1:
        owners = " and ".join(f"{entry.dist.name} ({entry.value})" if entry.dist else entry.value for entry in entries)
        raise SettingsError(f"two packages bring a {seam.what} called {name!r}: {owners}. Uninstall one of them.")
    entry = entries[0]
    owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    try:
        return _from_module(seam, name, entry.load(), owner)
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"the plugin of {seam.what} {name!r} ({owner}) cannot be loaded: {type(error).__name__}: {error}. "
            f"Upgrade or uninstall it, or leave the {seam.what} out."
        ) from error


def _manager_of(modules: Iterable[ModuleType]) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("trackhub")
    manager.add_hookspecs(HookSpec)
    for module in modules:
        manager.register(module)
    return manager


def _from_module(seam: _Seam[Brought], name: str, module: ModuleType, owner: str = "trackhub") -> type[Brought]:
    hook = getattr(_manager_of([module]).hook, seam.hook)
    classes = [one for found in hook() for one in found]
    for one in classes:
        if isinstance(one, type) and issubclass(one, seam.base) and one.name == name:
            return one
    brought = ", ".join(repr(getattr(one, "name", one)) for one in classes) or "nothing"
    raise SettingsError(
        f"the plugin of {seam.what} {name!r} ({owner}) brings {brought}: its hook {seam.hook}() must return a list "
        f"with a trackhub.{seam.base.__name__} subclass whose name is {name!r}"
    )
