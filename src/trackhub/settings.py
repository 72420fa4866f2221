"""Every setting: its variable, its help text and where its value comes from; the only reader of the environment.

Apart so that there is one place to look for what can be set, from which the docs page is generated, and one order of
strength: arguments, `TRACKHUB_*` variables, the settings file, defaults. A backend's own options follow the same order,
with the vendor's own variable behind ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretBytes, SecretStr, ValidationError, field_validator

from trackhub import redaction
from trackhub.errors import SettingsError
from trackhub.redaction import SECRET_WORDS as _SECRET_WORDS

PREFIX = "TRACKHUB_"

Mode = Literal["online", "offline", "disabled"]
Ranks = Literal["zero", "all"]

_FURTHER_CREDENTIALS = re.compile(r"(?<=://)[^/\s,;@]*@")
_SECRET_PARAMETER = re.compile(rf"(?i)([?&])(?:sig|[^=&#]*(?:{'|'.join(_SECRET_WORDS)})[^=&#]*)=[^&#]*")


class Settings(BaseModel):
    """What can be set for a run, whatever its backends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backends: tuple[str, ...] = Field(
        default=(),
        description="The backends that get the run, by name, with commas between. Empty: the journal alone, "
        "to be delivered to any backend later.",
    )
    project: str = Field(
        default="default",
        min_length=1,
        description="The project the run belongs to: MLflow's experiment, a folder elsewhere.",
    )
    name: str | None = Field(default=None, description="The name people see. Default: the run id.")
    run_id: str | None = Field(
        default=None,
        description="The id of the run. Default: a new one. The id of an earlier run goes on with that run.",
    )
    dir: Path = Field(default=Path(".trackhub"), description="The directory that holds the run directories.")
    mode: Mode = Field(
        default="online",
        description="`online` delivers while the run goes on; `offline` writes the journal alone, for `trackhub sync` "
        "later; `disabled` records nothing.",
    )
    finish_timeout: float = Field(
        default=60.0,
        ge=0,
        description="How long `finish()` waits for the deliveries, in seconds. What is not delivered by then stays in "
        "the journal, is still being delivered in the background, and `trackhub sync` completes it.",
    )

    termination_timeout: float = Field(
        default=20.0,
        ge=0,
        description="How long the deliveries are waited for after SIGTERM, in seconds. In a pod it must be shorter "
        "than `terminationGracePeriodSeconds`, which is 30 by default.",
    )

    ranks: Ranks = Field(
        default="zero",
        description="Which of the processes that a launcher (torchrun, SLURM, MPI) has started record: rank `zero`, or "
        "`all` into one run, the names of rank 3 beginning with `rank3/`.",
    )
    max_bytes: ByteSize | None = Field(
        default=None,
        gt=0,
        description="What all runs in the directory may take on disk together: `50GB`, `500MiB`. Copies of files that "
        "all backends have are removed first; then files and rich values are refused, and counted in the report; "
        "params and metrics are always recorded. Default: no limit.",
    )

    @field_validator("dir")
    @classmethod
    def _below_home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    @field_validator("backends", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, (list, tuple)):
            names = [name.strip() if isinstance(name, str) else name for name in value]
            return tuple(dict.fromkeys(name for name in names if name != ""))
        return value


@dataclass(frozen=True)
class Loaded:
    """Settings with the source of each value, for `trackhub doctor`.

    Args:
        settings: The values in force.
        sources: Field -> where its value came from: "argument", a variable, a file, or "default".
        file: The settings file that was found.
        tables: The settings file's tables for backends: name -> options.
    """

    settings: Settings
    sources: dict[str, str]
    file: Path | None = None
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)

    def completed(self, values: Mapping[str, Any], source: str) -> Loaded:
        """These settings, with values for what nobody has set.

        Args:
            values: Field -> value; None for none.
            source: Where the values come from.
        """
        fresh = {name: value for name, value in values.items() if value is not None and self.sources[name] == "default"}
        return replace(
            self,
            settings=self.settings.model_copy(update=fresh),
            sources={**self.sources, **dict.fromkeys(fresh, source)},
        )


def variable_of(field_name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + field_name.upper()


def load(arguments: Mapping[str, Any], working_directory: Path | None = None) -> Loaded:
    """Put the settings together.

    Args:
        arguments: What was given to `init`; None means not given.
        working_directory: Where to look for a settings file, and in the folders above it.

    Raises:
        SettingsError: A value is not accepted; the message names where it came from and what is accepted.
    """
    file, table = _settings_file(working_directory or Path.cwd())
    tables = {name: value for name, value in table.items() if isinstance(value, dict)}
    plain = {name: value for name, value in table.items() if not isinstance(value, dict)}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in Settings.model_fields:
        variable = variable_of(name)
        if arguments.get(name) is not None:
            values[name], sources[name] = arguments[name], "argument"
        elif os.environ.get(variable):
            values[name], sources[name] = os.environ[variable], variable
        elif name in plain:
            values[name], sources[name] = plain[name], str(file)
        else:
            sources[name] = "default"
        plain.pop(name, None)
    if plain:
        known = ", ".join(sorted(Settings.model_fields))
        raise SettingsError(f"{file}: no such setting: {', '.join(sorted(plain))} (settings are: {known})")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error, sources, values)) from None
    return Loaded(settings, sources, file, tables)


def backend_options(
    backend: str, options: type[BaseModel], arguments: Mapping[str, Any], table: Mapping[str, Any], file: Path | None
) -> tuple[Any, dict[str, str]]:
    """Put one backend's options together.

    Args:
        backend: The backend's name.
        options: Its `Options`.
        arguments: What was given to `init(<backend>={...})`.
        table: The settings file's table for it.
        file: That file.

    Returns:
        The validated options, and the source of each value that is not the default.

    Raises:
        SettingsError: An option is unknown or not accepted.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in arguments:
        if name not in options.model_fields:
            raise SettingsError(_unknown_option(backend, name, f"init({backend}={{...}})", options))
    for name in table:
        if name not in options.model_fields:
            raise SettingsError(_unknown_option(backend, name, str(file), options))
    for name, info in options.model_fields.items():
        variable = option_variable(backend, name)
        vendor = next((entry.name for entry in info.metadata if type(entry).__name__ == "VendorVariable"), None)
        if arguments.get(name) is not None:
            values[name], sources[name] = arguments[name], f"init({backend}={{{name!r}: ...}})"
        elif os.environ.get(variable):
            values[name], sources[name] = _from_text(os.environ[variable], info.annotation), variable
        elif vendor and os.environ.get(vendor):
            values[name], sources[name] = _from_text(os.environ[vendor], info.annotation), vendor
        elif name in table:
            values[name], sources[name] = table[name], str(file)
    learn_secrets(options, values)
    try:
        return options.model_validate(values), sources
    except ValidationError as error:
        raise SettingsError(_explain(error, sources, values, backend, options)) from None


def option_variable_is_set(backend: str, option: str) -> bool:
    """Whether the environment gives this option of a backend under our own name for it."""
    return bool(os.environ.get(option_variable(backend, option)))


def option_variable(backend: str, option: str) -> str:
    """The environment variable of a backend's option."""
    return f"{PREFIX}{backend.upper().replace('-', '_')}_{option.upper()}"


def _from_text(text: str, annotation: Any) -> Any:
    """A variable holds text: lists are written with commas between."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if any((get_origin(choice) or choice) in (list, tuple, set, frozenset) for choice in choices):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _unknown_option(backend: str, name: str, source: str, options: type[BaseModel]) -> str:
    import difflib

    known = sorted(options.model_fields)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{source}: backend {backend!r} has no option {name!r}{hint} (options are: {', '.join(known) or 'none'})"


def _explain(
    error: ValidationError,
    sources: Mapping[str, str],
    values: Mapping[str, Any],
    backend: str = "",
    options: type[BaseModel] = Settings,
) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            lines.append(f"{backend}: {message}")
            continue
        name = str(problem["loc"][0])
        variable = option_variable(backend, name) if backend else variable_of(name)
        source = sources.get(name)
        if problem["type"] == "missing":
            lines.append(f"backend {backend!r} needs {name}: set {variable} or pass init({backend}={{{name!r}: ...}})")
            continue
        field_type = str(options.model_fields[name].annotation) if name in options.model_fields else ""
        secret = "Secret" in field_type or any(word in name.lower() for word in _SECRET_WORDS)
        shown = "(hidden)" if secret else repr(without_credentials(values.get(name)))
        where = f"{name} (from {source})" if source and source != "argument" else f"{name}"
        lines.append(f"{backend + ': ' if backend else ''}{where} = {shown} is not accepted: {message}; set {variable}")
    return redaction.hide("\n".join(lines))


def learn_secrets(options: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Have the secrets among a backend's options kept out of all messages.

    Args:
        options: The backend's `Options`.
        values: What they are to hold; need not be valid.
    """
    for name, value in values.items():
        annotation = str(options.model_fields[name].annotation) if name in options.model_fields else ""
        for text, secret in _texts_in(value, "Secret" in annotation or redaction.is_secret_name(name)):
            if secret:
                redaction.learn([text])
            elif "://" in text:
                redaction.learn_from_url(text)


def learn_secrets_of_environment() -> None:
    """Have the secrets among the environment's variables kept out of all messages."""
    for name, text in os.environ.items():
        if redaction.is_secret_variable(name):
            user = re.sub(r"(?i)(PASSWORD|PASSWD|PWD|PASS)$", "USERNAME", name)
            redaction.learn([text], os.environ.get(user, os.environ.get(user.removesuffix("NAME"), "")))
        elif "://" in text and "@" in text:
            redaction.learn_from_url(text)


def _texts_in(value: Any, secret: bool) -> Iterator[tuple[str, bool]]:
    """Every text in a value, and whether it is a secret."""
    if isinstance(value, (SecretStr, SecretBytes)):
        held = value.get_secret_value()
        yield held if isinstance(held, str) else held.decode(errors="replace"), True
    elif isinstance(value, str):
        yield value, secret
    elif isinstance(value, Mapping):
        for name, member in value.items():
            yield from _texts_in(member, secret or (isinstance(name, str) and redaction.is_secret_name(name)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for member in value:
            yield from _texts_in(member, secret)


def without_credentials(value: Any) -> Any:
    """A value that can be written down: user, password and secret parameters taken out of the URLs in it."""
    if isinstance(value, Mapping):
        return {
            name: without_credentials(member)
            for name, member in value.items()
            if not (isinstance(name, str) and redaction.is_secret_name(name))
        }
    if isinstance(value, (list, tuple)):
        return [without_credentials(member) for member in value]
    if not isinstance(value, str) or "://" not in value:
        return value
    scheme, _, rest = value.partition("://")
    rest = _SECRET_PARAMETER.sub(r"\1", rest)
    authority, slash, path = rest.partition("/")
    _, colon, port = authority.rpartition(":")
    if "@" in rest and "@" not in authority and colon and not (port.isdigit() or authority.startswith("[")):
        # No port: a password with an unquoted slash in it.
        authority, slash, path = rest, "", ""
    stored = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
    # A list of URLs in one text.
    return _FURTHER_CREDENTIALS.sub("", stored)


def storable_options(options: BaseModel) -> dict[str, Any]:
    """A backend's options as plain values for `run.json`: no secrets, nothing that is at its default."""
    plain: dict[str, Any] = options.model_dump(mode="json", exclude_defaults=True)
    live = options.model_dump(mode="python", exclude_defaults=True)
    return {
        name: without_credentials(value)
        for name, value in plain.items()
        if not _holds_secret(live[name]) and not redaction.is_secret_name(name)
    }


def full_options(options: BaseModel) -> dict[str, Any]:
    """A backend's options with their secrets, to be handed to its delivery process through a pipe."""
    plain: dict[str, Any] = options.model_dump(mode="json", exclude_defaults=True)
    revealed: dict[str, Any] = _reveal(options.model_dump(mode="python", exclude_defaults=True), plain)
    return revealed


def _holds_secret(live: Any) -> bool:
    if isinstance(live, Mapping):
        return any(_holds_secret(member) for member in live.values())
    if isinstance(live, (list, tuple, set, frozenset)):
        return any(_holds_secret(member) for member in live)
    return isinstance(live, (SecretStr, SecretBytes))


def _reveal(live: Any, plain: Any) -> Any:
    """The plain value, with its secrets put in from the live one, wherever in it they are."""
    if isinstance(live, SecretStr):
        return live.get_secret_value()
    if isinstance(live, SecretBytes):
        return live.get_secret_value().decode()
    if isinstance(live, Mapping):
        return {name: _reveal(one, plain[name]) for name, one in zip(plain, live.values(), strict=True)}
    if isinstance(live, (list, tuple, set, frozenset)) and isinstance(plain, list):
        return [_reveal(one, other) for one, other in zip(live, plain, strict=True)]
    return plain


def _settings_file(start: Path) -> tuple[Path | None, dict[str, Any]]:
    """The nearest `trackhub.toml` or `pyproject.toml` with `[tool.trackhub]`, in this folder or above."""
    for folder in (start, *start.parents):
        for name in ("trackhub.toml", "pyproject.toml"):
            file = folder / name
            try:
                if not file.is_file():
                    continue
            except PermissionError:
                # A container's working directory may be its builder's alone: whatever is there is not for this user.
                continue
            import tomllib

            try:
                content = tomllib.loads(file.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                if name == "pyproject.toml":
                    continue
                raise SettingsError(f"{file} cannot be read: {error}") from None
            if name == "trackhub.toml":
                return file, content
            tools = content.get("tool")
            if isinstance(tools, dict) and isinstance(table := tools.get("trackhub"), dict):
                return file, table
    return None, {}


def environment() -> Mapping[str, str]:
    """The environment as it is, for what has to recognise the place the process runs in."""
    return os.environ


def delivery_environment() -> dict[str, str]:
    """The environment of a delivery process: this one's, without the accelerators, which it must not claim."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
