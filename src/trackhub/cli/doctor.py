"""What `trackhub doctor` looks at: settings with their sources, directory, rank, each backend's options and vendor.

Apart from the command line so that a test can read the findings. No secret gets into a finding.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from trackhub import misspelt, plugins, processing, ranks, settings
from trackhub.cli.inventory import error_text
from trackhub.errors import SettingsError
from trackhub.redaction import HIDDEN, SECRET_WORDS, hide

LITTLE_BYTES = 1 << 30


@dataclass(frozen=True)
class Value:
    """One setting or option: its value as text, without secrets, and where it came from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Finding:
    """What came of one look.

    Args:
        what: What was looked at.
        state: "ok", "warning" or "problem".
        text: What was found.
    """

    what: str
    state: str
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings.

    Args:
        settings: Every setting in force.
        file: The settings file that was found.
        options: Backend -> its options in force.
        findings: What was looked at besides.
    """

    settings: list[Value] = field(default_factory=list)
    file: str | None = None
    options: dict[str, list[Value]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether no finding is a problem."""
        return all(finding.state != "problem" for finding in self.findings)


def diagnose(arguments: Mapping[str, Any], backends: Sequence[str] | None = None) -> Diagnosis:
    """Look at everything a run would need here and now.

    Args:
        arguments: Settings given on the command line; None means not given.
        backends: Backends to look at; default: those the settings select.
    """
    settings.learn_secrets_of_environment()
    try:
        loaded = settings.load(arguments)
        misspelt.check_tables(loaded)
    except SettingsError as error:
        return Diagnosis(findings=[Finding("settings", "problem", str(error))])
    chosen = loaded.settings
    diagnosis = Diagnosis(file=None if loaded.file is None else str(loaded.file))
    for name in type(chosen).model_fields:
        value = getattr(chosen, name)
        text = ", ".join(value) if isinstance(value, tuple) else value
        diagnosis.settings.append(Value(name, _shown(name, text), loaded.sources[name]))
    diagnosis.findings.extend(_look_at_directory(Path.cwd() / chosen.dir))
    names = list(dict.fromkeys(chosen.backends if backends is None else backends))
    diagnosis.findings.extend(_look_at_variables(names))
    if (place := ranks.detect(settings.environment())) is not None:
        diagnosis.findings.append(_look_at_rank(place, chosen))
    # Each has its place now: they come back in any order.
    diagnosis.options.update({name: [] for name in names})
    # Each vendor may take seconds to answer, so they are asked side by side; what a plugin raises stays in its future.
    with ThreadPoolExecutor(max(len(names), 1), thread_name_prefix="trackhub-doctor") as pool:
        futures = {name: pool.submit(_look_at_backend, name, loaded, diagnosis) for name in names}
        for name, future in futures.items():
            raised = future.exception()
            text = future.result() if raised is None else error_text(raised)
            diagnosis.findings.append(Finding(name, "ok" if raised is None else "problem", hide(text)))
    return diagnosis


def _look_at_variables(backends: Sequence[str]) -> list[Finding]:
    options = {}
    for name in backends:
        # One that cannot be loaded has a finding of its own.
        with contextlib.suppress(SettingsError):
            options[name] = plugins.find_backend(name).Options.model_fields
    ignored = misspelt.ignored_variables(settings.environment(), options)
    return [Finding("variables", "warning", sentence) for sentence in ignored.values()]


def _look_at_rank(place: ranks.Place, chosen: settings.Settings) -> Finding:
    here = f"rank {place.rank} of {place.count} (by {place.variable})"
    if chosen.ranks == "all":
        try:
            if chosen.run_id is None:
                ranks.check_agreement(place)
        except SettingsError as error:
            return Finding("rank", "problem", str(error))
        return Finding("rank", "ok", f"{here}: all ranks record, into one run")
    if place.rank:
        return Finding(
            "rank", "warning", f"{here} records nothing: only rank 0 does (TRACKHUB_RANKS=all has all of them record)"
        )
    return Finding("rank", "ok", f"{here}: records, and no other rank does")


def _look_at_backend(name: str, loaded: settings.Loaded, diagnosis: Diagnosis) -> str:
    kind = plugins.find_backend(name)
    options, sources = settings.backend_options(name, kind.Options, {}, loaded.tables.get(name, {}), loaded.file)
    options = processing.resolved(kind, options, Path.cwd(), sources.get("processors", ""))
    diagnosis.options[name] = _values(options, sources)
    kind.check(options)
    return f"{plugins.version_of(name, kind)}; {kind.probe(options) or 'nothing to reach'}"


def _values(options: BaseModel, sources: Mapping[str, str]) -> list[Value]:
    return [
        Value(name, _shown(name, _in_force(name, getattr(options, name))), sources.get(name, "default"))
        for name in type(options).model_fields
    ]


def _in_force(name: str, value: object) -> object:
    """Of processors, also the one that is there without being chosen."""
    if name != "processors" or not isinstance(value, tuple):
        return value
    with contextlib.suppress(SettingsError):
        return ", ".join(processing.in_order(value))
    return ", ".join(value)


def _shown(name: str, value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, SecretStr) or (isinstance(value, str) and any(word in name.lower() for word in SECRET_WORDS)):
        return HIDDEN
    return hide(str(value))


def _look_at_directory(directory: Path) -> list[Finding]:
    nearest = directory
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    new = "" if nearest == directory else " (to be made)"
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"trackhub doctor")
            file.flush()
            locks = _locks_work(file.fileno())
        free_bytes = shutil.disk_usage(nearest).free
    except OSError as error:
        return [Finding("directory", "problem", f"{directory} cannot be written: {error.strerror or error}")]
    found = [
        Finding(
            "directory",
            "warning" if free_bytes < LITTLE_BYTES else "ok",
            f"{directory}{new} can be written, {free_bytes / (1 << 30):,.1f} GiB free",
        )
    ]
    if not locks:
        found.append(
            Finding(
                "file locks",
                "warning",
                "do not work on this file system: whether a run's process still lives is then told by its process id, "
                "on the same host alone",
            )
        )
    return found


def _locks_work(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
