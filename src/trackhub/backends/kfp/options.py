"""The options of the KFP backend: live objects of the component, by what they are for.

Apart from the backend because options are made where `init` is called, and the objects may only be found there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from trackhub.backend import BackendOptions
from trackhub.backends.kfp.executor import find_executor
from trackhub.backends.kfp.outputs import ROLES, is_artifact, refusal


def _live(role: str) -> Any:
    return Field(
        # Never dumped: neither stored with the run nor sent to another process, where it would mean nothing.
        exclude=True,
        description=f"The component's Output[{ROLES[role]}]: the object itself, its name, or a mapping of names to "
        "either. Default: found by itself in the component that runs.",
    )


class KfpOptions(BackendOptions):
    """Options of the KFP backend: live objects, by what they are for."""

    metrics: Annotated[Any, _live("metrics")] = None
    classification_metrics: Annotated[Any, _live("classification_metrics")] = None
    model: Annotated[Any, _live("model")] = None
    dataset: Annotated[Any, _live("dataset")] = None
    artifact: Annotated[Any, _live("artifact")] = None
    html: Annotated[Any, _live("html")] = None
    markdown: Annotated[Any, _live("markdown")] = None

    _executor: Any = PrivateAttr(default=None)

    @field_validator("*")
    @classmethod
    def _accept(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        why = None if value is None else refusal(info.field_name, value)
        if why:
            raise ValueError(why)
        return value

    def with_executor(self) -> KfpOptions:
        """These options, which remember the component that runs now: it is only to be found from its own thread."""
        remembering = self.model_copy()
        remembering._executor = self._executor or find_executor()
        return remembering

    @property
    def executor(self) -> Any | None:
        """The component's executor; None outside of KFP."""
        return self._executor or find_executor()

    @property
    def given(self) -> dict[str, Any]:
        """Role -> what was given for it."""
        values = {role: getattr(self, role) for role in ROLES}
        return {role: value for role, value in values.items() if value is not None}

    @property
    def holds_live(self) -> bool:
        """Whether an object itself was given, and not only names."""
        return any(map(_holds_live, self.given.values()))


def _holds_live(value: Any) -> bool:
    if isinstance(value, Mapping) and not is_artifact(value):
        return any(map(_holds_live, value.values()))
    return is_artifact(value)
