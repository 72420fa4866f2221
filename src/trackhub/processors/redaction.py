"""Keeping secrets from a backend: on by default, for params and tags."""

from __future__ import annotations

from typing import Any

from trackhub.backend import hookimpl
from trackhub.processor import Processor
from trackhub.processors.naming import Patterns, alternatives, members, with_members
from trackhub.processors.secret_names import names_a_secret
from trackhub.records import Deliverable, ParamsLogged, TagsSet

REDACTED = "(redacted)"
_OFF = "off"
_NO_SECRETS = frozenset({"", "None", "none", "null", "True", "true", "False", "false", REDACTED})


class Redact(Processor):
    """`redact`: what is behind the name of a secret, in params and tags, does not go to the backend. On by default.

    The name stays and the value is `(redacted)`, in whatever list or mapping it is. What cannot be a secret stays, too:
    None, yes and no, fractions, empty texts.

    `redact:patient*|!auth/token_kind` redacts whatever matches `patient*` as well, and never what matches
    `auth/token_kind`; the last pattern that matches counts. `redact:off` turns it off.

    It comes first, wherever it is written, and so goes by the names that were logged.
    """

    name = "redact"
    handles = frozenset([ParamsLogged, TagsSet])

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        if argument.strip() == _OFF:
            self.handles = frozenset()
            argument = ""
        patterns = alternatives(argument) if argument else []
        self._rules = [(Patterns(one.removeprefix("!")), not one.startswith("!")) for one in reversed(patterns)]

    def process(self, record: Deliverable) -> Deliverable | None:
        """Take out what must not be shown."""
        values = members(record)
        assert values is not None
        shown = {name: self._shown(name, value) for name, value in values.items()}
        if all(shown[name] is value for name, value in values.items()):
            return record
        return with_members(record, shown)

    def _shown(self, name: str, value: Any) -> Any:
        ruling = next((redacts for patterns, redacts in self._rules if patterns.match(name)), None)
        if ruling or (ruling is None and names_a_secret(name) and _can_be_secret(value)):
            self.notes.add("redacted", name)
            return REDACTED
        if isinstance(value, dict):
            members = {key: self._shown(f"{name}/{key}", member) for key, member in value.items()}
            return members if any(members[key] is not member for key, member in value.items()) else value
        if isinstance(value, list):
            # Only what is in a mapping has a name of its own; a list may be long.
            elements = [
                self._shown(f"{name}/{at}", element) if isinstance(element, (dict, list)) else element
                for at, element in enumerate(value)
            ]
            return elements if any(new is not old for new, old in zip(elements, value, strict=True)) else value
        return value


def _can_be_secret(value: Any) -> bool:
    if isinstance(value, str):
        return value not in _NO_SECRETS
    return value is not None and not isinstance(value, (bool, float)) and value not in ([], {})


@hookimpl
def trackhub_processors() -> list[type[Processor]]:
    """The one of this module."""
    return [Redact]
