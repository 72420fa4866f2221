"""What looks like a setting and is none: variables and file tables whose names nobody knows, with the nearest name.

Apart from the settings because it needs the names of the backends, which are known without importing any of them.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable, Mapping

from pydantic import BaseModel

from trackhub import plugins, settings
from trackhub.errors import UnknownBackendError

_log = logging.getLogger("trackhub")
_NOT_OURS = re.compile(
    # The project's own tests and benchmarks read these.
    r"TRACKHUB_(TEST_\w+|LONG_TESTS|SOAK_\w+|BENCH_\w+"
    # Kubernetes sets these in every pod where a service has such a name.
    r"|(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+))"
)
_told: set[str] = set()


def check_tables(loaded: settings.Loaded) -> None:
    """Refuse a table of the settings file that is for no backend.

    Raises:
        UnknownBackendError: There is one; the message has the nearest name.
    """
    for name in loaded.tables:
        if not _is_known(name):
            installed = plugins.backend_names()
            raise UnknownBackendError(
                f"{loaded.file}: the table [{name}] is for no backend that is installed"
                f"{_near(name, installed, '[{}]')} (installed: {', '.join(installed)})"
            )


def warn_of_variables(environment: Mapping[str, str], options: Mapping[str, BaseModel]) -> None:
    """Warn of variables that are ignored, once in a process.

    Args:
        environment: The process's variables.
        options: Backend -> its options, of those selected.
    """
    known = {backend: type(one).model_fields for backend, one in options.items()}
    for variable, sentence in ignored_variables(environment, known).items():
        if variable not in _told:
            _told.add(variable)
            _log.warning("trackhub: %s", sentence)


def ignored_variables(environment: Mapping[str, str], options: Mapping[str, Collection[str]]) -> dict[str, str]:
    """The `TRACKHUB_*` variables that are set and that nothing reads: name -> a sentence.

    Args:
        environment: The process's variables.
        options: Backend -> the names of its options. Of other backends any option is taken for one that they have:
            who wants to know would have to import them.
    """
    known = {settings.variable_of(name) for name in settings.Settings.model_fields}
    known |= {settings.option_variable(backend, name) for backend, names in options.items() for name in names}
    unknown = [
        name
        for name, value in environment.items()
        if value and name.startswith(settings.PREFIX) and name not in known and not _NOT_OURS.fullmatch(name)
    ]
    if not unknown:
        return {}
    others = [name for name in (*plugins.backend_names(), *plugins.FOR_TESTS) if name not in options]
    prefixes = tuple(settings.option_variable(name, "") for name in others)
    return {
        name: f"the variable {name} is ignored: there is no such setting{_near(name, known, '{}')}"
        for name in unknown
        if not name.startswith(prefixes)
    }


def _is_known(backend: str) -> bool:
    # The built-in ones first: looking for plugins takes longer, and most files name none.
    return backend in plugins.BUILT_IN or backend in plugins.FOR_TESTS or backend in plugins.backend_names()


def _near(name: str, known: Iterable[str], form: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {form.format(near[0])}?" if near else ""
