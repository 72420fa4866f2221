"""Which backends are installed and what each can show, read off their classes.

Apart from the plugin loading because this looks at all of them at once, broken ones included.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from trackhub import plugins
from trackhub.backend import Backend
from trackhub.errors import MissingPackageError, TrackhubError
from trackhub.lowering import KINDS, supported_kinds

Showing = Literal["native", "lowered", "not shown"]

LOWERED_TO: dict[str, tuple[str, ...]] = {
    "roc_curves": ("tables", "figures"),
    "confusion_matrices": ("tables", "figures"),
    "histograms": ("tables",),
    "models": ("artifacts",),
    "text": ("artifacts",),
    "html": ("artifacts",),
    "images": ("artifacts",),
    "figures": ("artifacts",),
    "tables": ("artifacts",),
}
"""What `lowering.lower` makes of each kind, as a table to look at."""


@dataclass(frozen=True)
class BackendEntry:
    """One installed backend.

    Args:
        version: Its vendor's package, or its plugin's, with the version; empty if that is not installed.
        missing: What to do about a package that is missing; None if there is none.
        error: Why its plugin cannot be used; None if it can.
        kinds: Kind of record -> how it is shown.
        options: The names of its options.
    """

    name: str
    version: str = ""
    missing: str | None = None
    error: str | None = None
    kinds: dict[str, Showing] = field(default_factory=dict)
    options: tuple[str, ...] = ()


def inventory(names: Sequence[str] | None = None) -> list[BackendEntry]:
    """Look at backends; one that is broken has its error in its entry.

    Args:
        names: Default: all that are installed.
    """
    names = plugins.backend_names() if names is None else names
    entries = []
    # A stranger's module may raise anything when it is imported; in a pool that stays in its future.
    with ThreadPoolExecutor(1, thread_name_prefix="trackhub-backends") as pool:
        for name in names:
            future = pool.submit(_look_at, name)
            error = future.exception()
            entries.append(future.result() if error is None else BackendEntry(name, error=error_text(error)))
    return entries


def error_text(error: BaseException) -> str:
    """An error for people: our own speak for themselves, others need their kind."""
    return str(error) if isinstance(error, TrackhubError) else f"{type(error).__name__}: {error}"


def _look_at(name: str) -> BackendEntry:
    backend = plugins.find_backend(name)
    version = plugins.version_of(name, backend)
    return BackendEntry(
        name,
        version="" if version == name else version,
        missing=_missing(backend),
        kinds=showing(backend),
        options=tuple(backend.Options.model_fields),
    )


def _missing(backend: type[Backend]) -> str | None:
    try:
        # Only whether the package is there is asked, so the options need not be valid ones.
        backend.check(backend.Options.model_construct())
    except MissingPackageError as error:
        return str(error)
    except TrackhubError:
        pass
    return None


def showing(backend: type[Backend]) -> dict[str, Showing]:
    """How a backend shows each kind of record."""
    native = supported_kinds(backend)

    def arrives(kind: str) -> bool:
        return kind in native or any(arrives(simpler) for simpler in LOWERED_TO.get(kind, ()))

    return {
        kind: "native" if kind in native else "lowered" if arrives(kind) else "not shown" for kind in KINDS.values()
    }
