"""What the event files of a run hold, event by event, and what of it should be there.

Apart from the backend because it only ever reads, and takes nothing for granted that it wrote: TensorBoard shows every
event file in the directory, whoever wrote it, and stops at the first damage.
"""

from __future__ import annotations

import datetime
import math
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trackhub.backends.tensorboard.events import FAILURE, RUNNING, SUCCESS, Hyperparameter, restart_step
from trackhub.backends.tensorboard.file import masked_crc, unavailable_on_os_error
from trackhub.errors import StateLost
from trackhub.readback import Item, KindOfName, Point, ReadBack
from trackhub.records import (
    ConfusionMatrixLogged,
    Deliverable,
    EndStatus,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    ParamsLogged,
    RocCurveLogged,
    RunStatus,
    TableLogged,
    TagsSet,
    TextLogged,
)

_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")
_MAX_EVENT_BYTES = 1 << 30
_STATUSES: Mapping[int, RunStatus] = {SUCCESS: "finished", FAILURE: "failed", RUNNING: "running"}


class TensorBoardReadBack(ReadBack):
    """The directory of one run in TensorBoard.

    Args:
        file: Our event file.
        size_bytes: How much of it is known to be whole.
        tags: Kind -> name -> tag (empty: the same as the name).
        as_hyperparameter: What the HPARAMS page can hold of a param.
        beside: Where a file of a record is kept beside the events; None where there is none.
    """

    def __init__(
        self,
        file: Path,
        size_bytes: int,
        tags: Mapping[str, Mapping[str, str]],
        as_hyperparameter: Callable[[str, Any], Hyperparameter],
        beside: Callable[[HtmlLogged | FigureLogged], Path],
    ) -> None:
        if not file.is_file():
            raise StateLost(f"there is no event file {file}")
        self._file = file
        self._size_bytes = size_bytes
        self._tags = tags
        self._as_hyperparameter = as_hyperparameter
        self._beside = beside
        self._problems: list[str] = []
        self._damaged_at: dict[Path, int] = {}
        self._restarts: list[tuple[int, int]] = []
        self._scalars: dict[str, None] = {}
        self._items: list[Item] = []
        self.status = "running"
        # In the order in which TensorBoard reads them: what it finds first stands.
        self._files = sorted(path for path in file.parent.iterdir() if "tfevents" in path.name and path.is_file())
        self._look()

    def metric_names(self) -> Iterable[str]:
        """The tags of scalars."""
        return self._scalars

    def points(self, names: Collection[str]) -> Iterator[tuple[str, Point]]:
        """The scalars, in the order of the events."""
        wanted = frozenset(names)
        for event, is_forgotten in self._events():
            if is_forgotten:
                continue
            time_ns = _in_ns(event.wall_time)
            for value in event.summary.value:
                if value.tag in wanted and value.HasField("simple_value"):
                    yield value.tag, Point(event.step, value.simple_value, time_ns)

    def items(self) -> Iterator[Item]:
        """Pictures, texts and histograms, and the files beside the events."""
        yield from self._items
        folder = self._file.parent / "files"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield Item(f"files/{path.name}", path.stat().st_size)

    def problems(self) -> Iterable[str]:
        """Damage in the event files."""
        return self._problems

    def metric_name(self, name: str) -> str:
        """The metric's tag."""
        return self._tag("scalar", name)

    def metric_points(self, name: str, logged: Iterable[Point]) -> Iterator[Point | str]:
        """TensorBoard's values have 32 bits, and its times are seconds in 64."""
        for step, value, time_ns in logged:
            yield Point(step, _single(value), None if time_ns is None else _in_ns(time_ns / 10**9))

    def param(self, name: str, value: Any) -> tuple[str, Any] | None:
        """A hyperparameter."""
        return name, self._as_hyperparameter(name, value)

    def end_status(self, status: EndStatus) -> RunStatus:
        """TensorBoard knows success and failure."""
        return "finished" if status == "finished" else "failed"

    def items_for(self, record: Deliverable) -> list[Item] | None:
        """The events of a record, and its file beside them."""
        found: list[Item] = []

        def shown(kind: str, name: str) -> None:
            step = getattr(record, "step", None) or 0
            found.append(Item(_event_name(self._tag(kind, name), step, record.time_ns / 10**9)))

        def kept(one: HtmlLogged | FigureLogged) -> None:
            shown("text", one.name)
            found.append(Item(f"files/{self._beside(one).name}", one.file.size_bytes))

        match record:
            case ParamsLogged() | TagsSet():
                kind = "params" if isinstance(record, ParamsLogged) else "tags"
                found.append(Item(_text_name(self._tag(kind, kind), record.time_ns / 10**9)))
            case ImageLogged(name=name):
                shown("image", name)
            case FigureLogged(name=name) if record.file.media_type == "image/png":
                shown("image", name)
            case HtmlLogged() | FigureLogged():
                kept(record)
            case TextLogged(name=name) | TableLogged(name=name):
                shown("text", name)
            case HistogramLogged(name=name):
                shown("histogram", name)
            case ConfusionMatrixLogged(name=name) | RocCurveLogged(name=name):
                shown("image", name)
                shown("text", f"{name}/table")
        return found

    def adds(self, kind: KindOfName, name: str) -> bool:
        """What of a long text or table is not shown is in a file beside the events."""
        return kind == "item" and name.startswith("files/")

    def _tag(self, kind: str, name: str) -> str:
        return self._tags.get(kind, {}).get(name) or name or "_"

    def _look(self) -> None:
        """Read everything once: which scalars there are, the rest, and whether it is whole."""
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        numbered = {self._tag(kind, kind) for kind in ("params", "tags") if kind in self._tags}
        params: dict[str, Any] | None = None
        status: RunStatus | None = None
        for place, event in enumerate(self._all_events(checked=True)):
            if (step := restart_step(event)) is not None:
                self._restarts.append((place, step))
        for event, is_forgotten in self._events():
            for value in event.summary.value:
                if is_forgotten and value.metadata.plugin_data.plugin_name != "hparams":
                    continue
                if value.HasField("simple_value"):
                    self._scalars.setdefault(value.tag)
                elif value.metadata.plugin_data.plugin_name == "hparams":
                    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    if content.HasField("session_start_info") and params is None:
                        fields = content.session_start_info.hparams
                        params = {name: getattr(one, str(one.WhichOneof("kind"))) for name, one in fields.items()}
                    if content.HasField("session_end_info") and status is None:
                        status = _STATUSES.get(content.session_end_info.status)
                elif value.tag in numbered:
                    self._items.append(Item(_text_name(value.tag, event.wall_time)))
                else:
                    self._items.append(Item(_event_name(value.tag, event.step, event.wall_time)))
        self.params = params or {}
        self.status = status or "running"

    def _events(self) -> Iterator[tuple[Any, bool]]:
        """All events, each with whether TensorBoard forgets it at a restart behind it, for its step is not lower."""
        restarts = list(self._restarts)
        for place, event in enumerate(self._all_events()):
            while restarts and restarts[0][0] <= place:
                del restarts[0]
            yield event, any(event.step >= step for _, step in restarts)

    def _all_events(self, *, checked: bool = False) -> Iterator[Any]:
        """All events; what is wrong with the files is told once, when they are checked."""
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event

        for path in self._files:
            with unavailable_on_os_error("read", path), path.open("rb", buffering=1 << 18) as file:
                at = 0
                while head := file.read(_HEAD.size):
                    size = _HEAD.unpack(head)[0] if len(head) == _HEAD.size else 0
                    whole = len(head) == _HEAD.size and size <= _MAX_EVENT_BYTES
                    data = file.read(size) if whole else b""
                    tail = file.read(_TAIL.size)
                    if not whole or len(data) < size or len(tail) < _TAIL.size:
                        # A torn tail behind what is known to be whole is a write under way, which nobody shows.
                        if checked and (path != self._file or at < self._size_bytes):
                            self._problems.append(f"{path} ends in the middle of an event, at byte {at}")
                        break
                    if checked and (masked_crc(head[:8]) != head[8:] or masked_crc(data) != tail):
                        self._problems.append(
                            f"{path} is damaged at byte {at}: TensorBoard shows nothing of what lies behind"
                        )
                        self._damaged_at[path] = at
                        break
                    if self._damaged_at.get(path) == at:
                        break
                    try:
                        yield Event.FromString(data)
                    except DecodeError:
                        self._problems += [f"{path} has no event at byte {at}"] if checked else []
                    at += len(head) + size + len(tail)


def _in_ns(wall_time: float) -> int:
    return round(wall_time * 10**9)


def _event_name(tag: str, step: int, wall_time: float) -> str:
    return f"{tag} at step {step} ({_when(wall_time)})"


def _text_name(tag: str, wall_time: float) -> str:
    return f"{tag} ({_when(wall_time)})"


def _when(wall_time: float) -> str:
    return datetime.datetime.fromtimestamp(wall_time, datetime.UTC).isoformat(timespec="microseconds")


def _single(value: float) -> float:
    try:
        single: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return single
