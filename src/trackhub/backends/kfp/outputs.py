"""A component's output artifacts by what they are for, and which of them takes what is logged.

Apart from the backend because it is plain rules about names and types: by name first, then by type, and several of a
type without a name are an error that lists them. Artifacts are recognised by `schema_title`, without importing kfp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from trackhub.errors import RecordRejected, SettingsError

ROLES = {
    "metrics": "Metrics",
    "classification_metrics": "ClassificationMetrics",
    "model": "Model",
    "dataset": "Dataset",
    "artifact": "Artifact",
    "html": "HTML",
    "markdown": "Markdown",
}
"""The options, and the name of KFP's type for each; its `schema_title` is `system.<type>`."""

FILES = ("model", "dataset", "artifact", "html", "markdown")
"""Roles whose content is a file at the artifact's path."""

_NOT_IN_WORDS = re.compile(r"[^0-9A-Za-z]+")


@dataclass(frozen=True, eq=False)
class Output:
    """One live output artifact.

    Args:
        name: What it is called in the component's signature, or in the mapping that was given.
        role: One of `ROLES`.
        live: KFP's object.
    """

    name: str
    role: str
    live: Any

    @property
    def path(self) -> str:
        """Where its content is written; empty if it has no place."""
        return str(getattr(self.live, "path", "") or "")

    @property
    def metadata(self) -> dict[str, Any]:
        """What KFP shows of it. Asked for anew each time, because a component may put another one in its place."""
        if not isinstance(self.live.metadata, dict):
            self.live.metadata = {}
        found: dict[str, Any] = self.live.metadata
        return found

    def __str__(self) -> str:
        return f"{self.name}: Output[{ROLES[self.role]}]"


def role_of(live: Any) -> str | None:
    """What a live artifact is for; None if it is of a type of somebody else's making."""
    title = str(getattr(live, "schema_title", "")).removeprefix("system.")
    names = (title, *(kind.__name__ for kind in type(live).__mro__)) if title == "" else (title,)
    return next((role for role, name in ROLES.items() if name in names), None)


def is_artifact(value: Any) -> bool:
    """Whether something can be filled: it has metadata, and a path or a URI."""
    return isinstance(getattr(value, "metadata", None), dict) and (hasattr(value, "path") or hasattr(value, "uri"))


def refusal(role: str, value: Any) -> str | None:
    """Why an option cannot be this value; None if it can.

    Args:
        role: The option.
        value: A live artifact, the name of one of the component's outputs, or a mapping of names to either.
    """
    if isinstance(value, Mapping) and not is_artifact(value):
        if not value or not all(isinstance(name, str) for name in value):
            return "a mapping must have names as keys, and at least one"
        return next((why for one in value.values() if (why := refusal(role, one))), None)
    if isinstance(value, str):
        return None if value else "the name of an output is empty"
    if not is_artifact(value):
        return (
            f"it must be the component's Output[{ROLES[role]}] itself (or its name, or a mapping of names to either), "
            f"not {type(value).__name__}"
        )
    found = role_of(value)
    if found in (None, role) or (found in FILES and role in FILES):
        return None
    return f"it is an Output[{ROLES[found]}], not an Output[{ROLES[role]}]"


def outputs_of_executor(executor: Any | None) -> list[Output]:
    """The outputs that a component's function is given as objects.

    Not those it returns, nor those of which it is given the path alone: the function itself writes them.
    """
    live: Mapping[str, Any] = getattr(executor, "output_artifacts", None) or {}
    annotations = getattr(getattr(executor, "func", None), "__annotations__", None)
    found = []
    for name, artifact in live.items():
        role = role_of(artifact)
        if annotations is not None and (name not in annotations or type(annotations[name]).__name__ == "OutputPath"):
            continue
        if role is not None and is_artifact(artifact):
            found.append(Output(name, role, artifact))
    return found


def chosen_outputs(given: Mapping[str, Any], found: Iterable[Output]) -> Outputs:
    """The outputs to fill: for each role those that were given, else those that were found.

    Args:
        given: Role -> the option, where it was set.
        found: The outputs of the running component.

    Raises:
        SettingsError: An output is given by a name that the component does not have.
    """
    of_component = list(found)
    by_name = {output.name: output for output in of_component}
    chosen: list[Output] = []
    for role, value in given.items():
        named = value if isinstance(value, Mapping) and not is_artifact(value) else None
        for name, one in (named or {"": value}).items():
            if not isinstance(one, str):
                chosen.append(Output(name or _name_of(one, role, of_component), role, one))
                continue
            output = by_name.get(one)
            why = f"the component has no output called {one!r}" if output is None else refusal(role, output.live)
            if output is None or why:
                listed = ", ".join(map(str, of_component)) or "none"
                raise SettingsError(f"kfp: {role} = {one!r} is not accepted: {why}; its outputs are: {listed}")
            chosen.append(Output(name or one, role, output.live))
    # An object that was given for one role is not found again for another.
    taken = {id(output.live) for output in chosen}
    chosen += [output for output in of_component if output.role not in given and id(output.live) not in taken]
    return Outputs(chosen, sorted_metrics=isinstance(given.get("metrics"), Mapping))


def _name_of(live: Any, role: str, found: Iterable[Output]) -> str:
    return next((output.name for output in found if output.live is live), role)


class Outputs:
    """All outputs to fill.

    Args:
        outputs: They.
        sorted_metrics: Whether metrics are to be sorted by the first part of their names.
    """

    def __init__(self, outputs: Iterable[Output], *, sorted_metrics: bool = False) -> None:
        self.all = list(outputs)
        self._is_mapping = sorted_metrics
        self.sorts_metrics = sorted_metrics or len(self.of("metrics")) > 1

    def of(self, *roles: str) -> list[Output]:
        """Those of some roles."""
        return [output for role in roles for output in self.all if output.role == role]

    def main(self, role: str) -> Output | None:
        """The one output of a role: the only one, or of several the one that is called like the role."""
        outputs = self.of(role)
        if len(outputs) == 1:
            return outputs[0]
        return next((output for output in outputs if output.name == role), None)

    def check(self) -> None:
        """Refuse what would leave metrics without a place.

        Raises:
            SettingsError: There are several Output[Metrics] and none is the main one.
        """
        several = self.of("metrics")
        if len(several) > 1 and self.main("metrics") is None and not self._is_mapping:
            first = several[0].name
            listed = ", ".join(map(str, several))
            raise SettingsError(
                f"kfp: the component has several outputs for metrics ({listed}) and none is called 'metrics': say "
                f"which with init(kfp={{'metrics': {first}}}) or TRACKHUB_KFP_METRICS={first}, or sort them by the "
                f"first part of their names with init(kfp={{'metrics': {{'train': {first}, ...}}}}), where train/loss "
                "goes to the output given as 'train'"
            )

    def take_metric(self, name: str) -> Output | None:
        """The output that takes a metric: of several the one called like the first part of its name, else the main."""
        outputs = self.of("metrics")
        if outputs and not self.sorts_metrics:
            return outputs[0]
        first = _word(name.partition("/")[0])
        return next((output for output in outputs if _word(output.name) == first), self.main("metrics"))

    def take(self, name: str, *roles: str, named: tuple[str, ...] = ()) -> tuple[Output | None, bool]:
        """The output that takes what was logged under a name.

        Args:
            name: The name.
            roles: Roles by which it may be found, the first that there is.
            named: Further roles, for which the name must match.

        Returns:
            The output, or None if there is none for it; and whether the name matched.

        Raises:
            RecordRejected: There are several and none has the name.
        """
        wanted = _words_of(name)
        for output in self.of(*roles, *named):
            if _word(output.name) in wanted:
                return output, True
        for role in roles:
            if outputs := self.of(role):
                if main := self.main(role):
                    return main, False
                raise RecordRejected(
                    f"{name!r} fits several outputs and has the name of none of them: {', '.join(map(str, outputs))}; "
                    f"log it under one of these names, or choose with init(kfp={{{role!r}: ...}})"
                )
        return None, False


def _words_of(name: str) -> set[str]:
    """The forms of a name that an output may have: all of it, its first part, its last, and that without a suffix."""
    path = PurePosixPath(name)
    return {_word(form) for form in (name, name.partition("/")[0], path.name, path.stem)} - {""}


def _word(text: str) -> str:
    return _NOT_IN_WORDS.sub("_", text).strip("_").lower()


def strict(value: Any, changed: Callable[[str], object], place: str = "") -> Any:
    """A value as strict JSON can hold it: NumPy's scalars made plain; None, NaN and infinities left out of mappings.

    Args:
        value: What KFP is about to write.
        changed: Told about everything that is left out or replaced, by its place.
        place: Where the value is.
    """
    if isinstance(value, Mapping):
        whole = {str(key): strict(one, changed, f"{place}/{key}" if place else str(key)) for key, one in value.items()}
        return {key: one for key, one in whole.items() if one is not None}
    if isinstance(value, (list, tuple)):
        return [strict(one, changed, place) for one in value]
    if isinstance(value, (str, bool, int)) and type(value) in (str, bool, int):
        return value
    if hasattr(value, "item") and getattr(value, "shape", ()) == ():
        value = value.item()
    elif hasattr(value, "tolist"):
        return strict(value.tolist(), changed, place)
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    changed(place)
    return None if value is None or isinstance(value, float) else str(value)
