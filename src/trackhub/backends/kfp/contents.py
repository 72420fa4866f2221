"""What a run has logged so far, as far as the page and the summary of the component show it.

Apart from the backend because it outlives it: the delivery may let go of a backend and open another one for the same
run, while the artifacts of the component, and what was gathered for them, stay in this process.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trackhub.backend import RunInfo
from trackhub.backends.kfp.files import Places
from trackhub.backends.kfp.history import History
from trackhub.backends.kfp.outputs import Output
from trackhub.backends.kfp.series import Series
from trackhub.records import FigureLogged, ImageLogged, PlainValue, TableLogged, TextLogged


@dataclass
class Contents:
    """One run, as it is shown.

    Args:
        run: The run.
        outputs: The live objects it fills, by identity: what was put into others is not in these.
        token: Tells what was gathered in this process from what was gathered in another.
        status: How the run ended, or "running".
        revision: Counts what was taken in; another one than is remembered means that something was not confirmed.
        changed: Whether the page and the document are to be made anew.
        highest_step: Of texts, pictures and whatever else with a step is no metric.
    """

    run: RunInfo
    outputs: tuple[int, ...]
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    status: str = "running"
    revision: int = 0
    changed: bool = True
    highest_step: float = -math.inf
    params: dict[str, PlainValue] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    texts: dict[str, TextLogged | TableLogged] = field(default_factory=dict)
    pictures: dict[str, ImageLogged | FigureLogged] = field(default_factory=dict)
    last: dict[str, dict[str, float]] = field(default_factory=dict)
    """Output -> metric, under the name it has there -> its last finite value."""
    claims: dict[tuple[str, str], tuple[bool, str]] = field(default_factory=dict)
    """(output, what of it) -> whether the name matched, and the name."""
    histories: dict[str, History] = field(default_factory=dict)
    metrics: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    """Metric -> the output that takes it, and its key there; None if none does."""
    described: dict[str, dict[str, object]] = field(default_factory=dict)
    """Output -> what its metadata say of the file that was copied to it."""
    said: set[str] = field(default_factory=set)
    """What is said only once."""

    def touch(self) -> None:
        """Something was taken in: also the page of the run that this one is a child of changes."""
        self.revision += 1
        above: Contents | None = self
        while above is not None:
            above.changed = True
            above = _runs.get(above.run.parent_remote_id or "")

    @property
    def is_current(self) -> bool:
        """Whether this, and no later attempt to gather the same run, is what is shown."""
        return _runs.get(self.run.id) is self

    def history_of(self, output: Output) -> History | None:
        """The file with the steps of the metrics that an output shows; None if the output has no place for one."""
        if output.name not in self.histories and output.path:
            self.histories[output.name] = History(Path(output.path))
        return self.histories.get(output.name)

    def last_values(self) -> dict[str, float]:
        """Metric -> its last finite value."""
        return {name: series.last for name, series in list(self.series.items()) if series.count}

    def trials(self) -> Iterator[tuple[str, Contents]]:
        """The child runs with their names, those of child runs after their parents."""
        for child in list(_children.get(self.run.id, {}).values()):
            yield child.run.name, child
            for name, grandchild in child.trials():
                yield f"{child.run.name} / {name}", grandchild


_runs: dict[str, Contents] = {}
_children: dict[str, dict[str, Contents]] = {}

PLACES = Places()
"""The files this process has put in place, for whichever run."""


def known_contents(run_id: str, token: str, revision: int, outputs: tuple[int, ...]) -> Contents | None:
    """What this process has gathered of a run, if it is for the same outputs and all of it has been confirmed."""
    known = _runs.get(run_id)
    if known is None or (known.token, known.revision, known.outputs) != (token, revision, outputs):
        return None
    return known


def new_contents(run: RunInfo, outputs: tuple[int, ...]) -> Contents:
    """Begin to gather a run, from its first record."""
    contents = _runs[run.id] = Contents(run, outputs)
    if run.parent_remote_id is not None:
        _children.setdefault(run.parent_remote_id, {})[run.id] = contents
    return contents


def others(contents: Contents) -> list[Contents]:
    """Other runs of this process that fill the same outputs."""
    return [one for one in _runs.values() if one.run.id != contents.run.id and {*one.outputs} & {*contents.outputs}]


def forget(contents: Contents) -> None:
    """The component's output is being written: nothing more can be shown in it."""
    for _, child in contents.trials():
        _runs.pop(child.run.id, None)
        _children.pop(child.run.id, None)
    _children.pop(contents.run.id, None)
    if _runs.get(contents.run.id) is contents:
        del _runs[contents.run.id]
