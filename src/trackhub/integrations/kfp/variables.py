"""Checks what an author gives for the environment of a task, and turns it into variables.

Apart from the task because these are rules about values: a task's environment is text, is fixed when the pipeline is
compiled, and stands in the compiled file for everyone to read.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from trackhub import plugins, settings
from trackhub.errors import SettingsError

_SECRET_OPTION = re.compile(r"(.*_)?(token|password|passwd|secret|key|credentials?)")
_KNOWN_LATER = re.compile(r"\{\{(channel:|\$)")
"""What KFP's parameters and placeholders look like once they are part of a text."""

_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def static_variables(given: Mapping[str, Any]) -> dict[str, str]:
    """The variables of settings and of options of backends.

    Args:
        given: Settings by name, and a mapping of options by a backend's name; None means not given.

    Raises:
        SettingsError: A value is not accepted.
        TypeError: A value is of the wrong kind.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        _refuse_known_later(name, value)
    plain = {name: value for name, value in given.items() if name in settings.Settings.model_fields}
    if "run_id" in plain:
        raise SettingsError("track() takes no run_id: it would be the same for every run of the pipeline")
    try:
        checked = settings.Settings.model_validate(plain)
    except ValidationError as error:
        refused = [(one["loc"][0], one["msg"]) for one in error.errors(include_url=False)]
        raise SettingsError("; ".join(f"{name} is not accepted: {message}" for name, message in refused)) from None
    if "backends" in plain and not checked.backends:
        raise SettingsError(
            "backends is empty: leave it out, and the component or its image decides; or give mode='offline', and the "
            "run is recorded for no backend"
        )
    variables = {
        settings.variable_of(name): _text(settings.variable_of(name), getattr(checked, name)) for name in plain
    }
    options = {name: value for name, value in given.items() if name not in plain}
    for name, value in options.items():
        if not isinstance(value, Mapping):
            raise TypeError(f"track() has no argument {name!r} (a backend's options are given as {name}={{...}})")
    for backend in dict.fromkeys((*checked.backends, *options)):
        known = _options_of(backend)
        for option, value in options.get(backend, {}).items():
            variable = f"{settings.PREFIX}{backend.upper().replace('-', '_')}_{option.upper()}"
            variables[variable] = _option(variable, option, value, known)
    return variables


def referred_variables(argument: str, given: Mapping[str, Mapping[str, str]] | None) -> dict[str, dict[str, str]]:
    """Which variables come from which Secrets or ConfigMaps: name of the object -> key in it -> variable.

    Raises:
        TypeError: It is not in that form. The message shows nothing of it, for it may hold a secret.
    """
    found = {} if given is None else given
    if not isinstance(found, Mapping) or not all(_is_reference(name, keys) for name, keys in found.items()):
        raise TypeError(
            f"{argument} must say where values are kept in the cluster, and hold none itself: "
            f"{argument}={{'name-of-the-object': {{'key-in-it': 'VARIABLE'}}}}"
        )
    return {name: dict(keys) for name, keys in found.items()}


def check_volume(claim: Any, directory: str) -> None:
    """Refuse what cannot be mounted.

    Raises:
        SettingsError: The directory is not absolute, or the claim's name cannot be one.
        TypeError: The claim is neither a name nor the output of a task.
    """
    from kfp.dsl.pipeline_channel import PipelineParameterChannel

    if not directory.startswith("/"):
        raise SettingsError(f"dir = {directory!r} is not accepted: the volume is mounted there, so it must be absolute")
    if not isinstance(claim, (str, PipelineParameterChannel)):
        raise TypeError(f"directory_volume must be the name of a PersistentVolumeClaim, not {type(claim).__name__}")
    if isinstance(claim, str) and not _OBJECT.fullmatch(claim):
        raise SettingsError(f"directory_volume = {claim!r} is not accepted: no PersistentVolumeClaim can be called so")


def _is_reference(name: object, keys: object) -> bool:
    if not isinstance(name, str) or not _OBJECT.fullmatch(name) or not isinstance(keys, Mapping) or not keys:
        return False
    return all(
        isinstance(key, str) and key and isinstance(one, str) and _VARIABLE.fullmatch(one) for key, one in keys.items()
    )


def _options_of(backend: str) -> Mapping[str, Any] | None:
    """The options of a backend; None if it is not installed here, or broken: the task runs in another environment."""
    try:
        return plugins.find_backend(backend).Options.model_fields
    except SettingsError as error:
        warnings.warn(f"track(): {error} It must be in the image of the task.", stacklevel=4)
        return None


def _option(variable: str, option: str, value: Any, known: Mapping[str, Any] | None) -> str:
    if known is not None and option not in known:
        near = difflib.get_close_matches(option, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingsError(f"track(): no option is set by {variable}{hint} (options are: {', '.join(sorted(known))})")
    typed = "Secret" in str(known[option].annotation) if known is not None else False
    if typed or _SECRET_OPTION.fullmatch(option.lower()):
        raise SettingsError(_in_clear_text(variable))
    return _text(variable, value)


def _refuse_known_later(name: str, value: Any) -> None:
    from kfp.dsl.pipeline_channel import PipelineChannel

    if isinstance(value, Mapping):
        for option, one in value.items():
            _refuse_known_later(f"{option!r} of {name}", one)
    for one in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(one, PipelineChannel) or (isinstance(one, str) and _KNOWN_LATER.search(one)):
            raise TypeError(
                f"{name} cannot be a parameter of the pipeline, the output of a task or a placeholder of KFP: the "
                "environment of a task is text that is fixed when the pipeline is compiled. Make it an input of the "
                "component, and pass it on there with trackhub.init(...)"
            )


def _text(variable: str, value: Any) -> str:
    several = isinstance(value, (list, tuple))
    for one in value if several else (value,):
        if not isinstance(one, (str, int, float, PurePath)):
            raise TypeError(f"{variable} must be text or a number, or a list of these, not {type(one).__name__}")
        if several and "," in str(one):
            raise SettingsError(f"{variable} is a list with commas between, and {one!r} has one in it")
        if settings.without_credentials(one) != one:
            raise SettingsError(_in_clear_text(variable))
    text = ",".join(map(str, value)) if several else str(value)
    if not text:
        raise SettingsError(f"{variable} is empty, which is the same as not set: leave it out")
    if "\0" in text:
        raise SettingsError(f"{variable} has a NUL character in it, which no environment can hold")
    return text


def _in_clear_text(variable: str) -> str:
    return (
        f"{variable} would stand in the compiled pipeline in clear text: keep it in a Kubernetes Secret, and pass "
        f"secrets={{'name-of-the-secret': {{'key-in-it': {variable!r}}}}}"
    )
