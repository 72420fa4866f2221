"""The processors of one backend at work: made as they were chosen, and applied to the records one after the other.

Apart from the delivery because `init`, `sync` and `doctor` make them, too, to refuse what cannot be meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trackhub import plugins
from trackhub.backend import Backend
from trackhub.errors import SettingsError, TrackhubError
from trackhub.processor import Processor
from trackhub.records import Deliverable, MetricsLogged, ParamsLogged, Record, TagsSet

BY_DEFAULT = "redact"
"""Comes first, chosen or not: it must see the names that were logged."""


class ProcessorFailed(TrackhubError):
    """A processor raised, or gave back what is no record. The message names it with its version."""


@dataclass(frozen=True)
class _Stage:
    processor: Processor
    owner: str

    def __str__(self) -> str:
        return f"processor {str(self.processor)!r} of {self.owner}"

    def apply(self, record: Deliverable) -> Deliverable | None:
        """What the processor makes of a record; it has said of everything that is not as it was."""
        processor = self.processor
        before = len(processor.notes)
        result = processor.process(record)
        if result is record:
            return record
        if result is not None and type(result) is not type(record):
            raise TypeError(
                f"process() must return a {type(record).__name__} like the one it was given, or None, "
                f"not {type(result).__name__}"
            )
        if len(processor.notes) == before and result != record:
            processor.notes.add(f"{'left out' if result is None else 'changed'} by {processor}", _subject(record))
        return result


class Pipeline:
    """The processors of one backend, in the order they are applied.

    Args:
        chosen: As in `BackendOptions.processors`.

    Raises:
        SettingsError: There is no processor of that name, or its argument is not accepted.
    """

    def __init__(self, chosen: Sequence[str]) -> None:
        self._stages = [_stage(text) for text in in_order(chosen)]

    @property
    def strangers(self) -> str:
        """Whom to name beside the backend, if it does not come back: processors of other packages."""
        return ", ".join(
            str(stage) for stage in self._stages if stage.processor.name not in plugins.BUILT_IN_PROCESSORS
        )

    def handles(self, kind: type[Record]) -> bool:
        """Whether any of them wants to see records of this kind."""
        return any(_handles(stage, kind) for stage in self._stages)

    def process(self, kind: type[Record], records: Iterable[Deliverable]) -> list[Deliverable]:
        """What the backend gets in place of records of one kind.

        Raises:
            ProcessorFailed: One of them raised.
        """
        left = list(records)
        for stage in self._stages:
            if not _handles(stage, kind):
                continue
            try:
                left = [result for record in left if (result := stage.apply(record)) is not None]
            except (Exception, SystemExit) as error:
                raise ProcessorFailed(f"{stage}: {type(error).__name__}: {error}") from error
        return left

    def names_shown(self, record: MetricsLogged) -> dict[str, list[str]]:
        """Name of a metric in a record -> the names it has at the backend; those that are left out are not in it.

        What the processors do to the record is forgotten. Where they change the value, they are not followed.

        Args:
            record: Its values do not matter.
        """
        # Each metric is known again by its value.
        names = dict(enumerate(record.values, 1))
        numbered = MetricsLogged(record.time_ns, record.step, {name: float(number) for number, name in names.items()})
        found: dict[str, list[str]] = {}
        for shown in self.process(MetricsLogged, [numbered]):
            assert isinstance(shown, MetricsLogged)
            for name, number in shown.values.items():
                if number in names:
                    found.setdefault(names[int(number)], []).append(name)
        self.drain_notes()
        return found

    def drain_notes(self) -> list[tuple[str, str, str]]:
        """Take all notes of `(reason, subject, detail)` added since the last call."""
        return [note for stage in self._stages for note in stage.processor.notes.drain()]


def resolved(kind: type[Backend], options: Any, working_directory: Path, source: str = "") -> Any:
    """A backend's options as its `resolve` gives them, with their processors: it may make new ones, and not know these.

    Args:
        kind: The backend.
        options: Its validated options.
        working_directory: What is relative in them is relative to it.
        source: Where the processors come from, for messages.

    Raises:
        SettingsError: There is no processor of a name, or its argument is not accepted; or what `resolve` raises.
    """
    chosen = options.processors
    try:
        # Most runs choose none, and need not load what then cannot be wrong.
        if chosen:
            Pipeline(chosen)
    except SettingsError as error:
        raise SettingsError(f"{kind.name}: processors{f' (from {source})' if source else ''}: {error}") from error
    found = kind.resolve(options, working_directory)
    return found if found.processors == chosen else found.model_copy(update={"processors": chosen})


def in_order(chosen: Sequence[str]) -> list[str]:
    """The processors as they are applied, the one by default among them.

    Raises:
        SettingsError: That one is written twice.
    """
    first = [text for text in chosen if _name_and_argument(text)[0] == BY_DEFAULT]
    if len(first) > 1:
        raise SettingsError(f"{BY_DEFAULT} is written twice: write its patterns in one, with | between")
    return [*(first or [BY_DEFAULT]), *(text for text in chosen if text not in first)]


def _stage(text: str) -> _Stage:
    name, argument = _name_and_argument(text)
    kind = plugins.find_processor(name)
    owner = plugins.owner_of_processor(name)
    try:
        return _Stage(kind(argument), owner)
    except ValueError as error:
        raise SettingsError(f"{text!r} is not accepted: {error}") from error
    except Exception as error:
        raise SettingsError(
            f"processor {name!r} of {owner} failed to take {text!r}: {type(error).__name__}: {error}"
        ) from error


def _name_and_argument(text: str) -> tuple[str, str]:
    name, _, argument = text.partition(":")
    return name.strip(), argument.strip()


def _handles(stage: _Stage, kind: type[Record]) -> bool:
    handled = stage.processor.handles
    return handled is None or kind in handled


def _subject(record: Deliverable) -> str:
    """What to call a record whose processor has not said what it did to it."""
    match record:
        case MetricsLogged(values=values) | ParamsLogged(params=values) | TagsSet(tags=values):
            return ", ".join(values)
        case _:
            return record.name
