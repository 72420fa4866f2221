"""Events in the formats of TensorBoard's plugins, and which tag belongs to which name.

Apart from the backend because everything that is TensorBoard's own is here: its protocol buffers (and nothing heavier:
30 ms and 6 MB to import; the package's own writers and summaries bring NumPy and look for TensorFlow), its plugins'
tensors and the rule that a tag belongs to one plugin.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trackhub.backend import Notes

Hyperparameter = str | float | bool

SUCCESS, FAILURE, RUNNING = 1, 2, 3  # hparams' Status

_DT_FLOAT, _DT_DOUBLE, _DT_STRING = 1, 2, 7
_CLASS_TENSOR = 2
_SESSION_START, _SESSION_END = "_hparams_/session_start_info", "_hparams_/session_end_info"
_PLUGIN = {"text": "text", "params": "text", "tags": "text", "histogram": "histograms"}
_LARGEST_FLOAT32 = 3.4028234663852886e38


class EventMaker:
    """Makes serialised events. The same calls give the same bytes, whatever the batches and restarts between them.

    Args:
        tags: Kind -> name -> tag (empty: the same as the name), as in the state that was remembered; empty at first.
        notes: Told of names that are shown under another tag.
    """

    def __init__(self, tags: Mapping[str, Mapping[str, str]], notes: Notes) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        self._event_type, self._value_type, self._hparams_type = Event, Summary.Value, HParamsPluginData
        self._notes = notes
        self.tags: dict[str, dict[str, str]] = {
            kind: {name: tag or name for name, tag in names.items()} for kind, names in tags.items()
        }
        self.stepless: set[str] = set()
        self._taken = {tag for names in self.tags.values() for tag in names.values()} | {_SESSION_START, _SESSION_END}

    def version(self, time_ns: int) -> bytes:
        """The event every event file begins with."""
        event = self._new(time_ns, 0)
        event.file_version = "brain.Event:2"
        return self._bytes(event)

    def restarts(self, time_ns: int, step: int) -> list[bytes]:
        """What has TensorBoard forget everything it has read so far with this step or a later one.

        Two events, as most of its readers take the first one they see for the start of the run.
        """
        event = self._new(time_ns, step)
        event.session_log.status = event.session_log.START
        return [self._bytes(event)] * 2

    def survivors(self, event: Any, is_superseded: Callable[[str, str, int], bool]) -> bytes | None:
        """An event without the values that are superseded; None if nothing is left of it.

        Args:
            event: As it was read.
            is_superseded: Asked with the kind, the name and the step of a value.
        """
        kinds = self._kinds()
        kept = []
        for value in event.summary.value:
            kind, name = kinds.get(value.tag, ("scalar" if value.HasField("simple_value") else "", value.tag))
            if not is_superseded(kind, name, event.step):
                kept.append(value)
        if not kept:
            return None
        copy = self._event_type(wall_time=event.wall_time, step=event.step)
        copy.summary.value.extend(kept)
        return self._bytes(copy)

    def parsed(self, serialised: bytes) -> Any:
        """An event as it was read from a file."""
        return self._event_type.FromString(serialised)

    def _kinds(self) -> dict[str, tuple[str, str]]:
        """Tag -> kind and name; what has no step, or one of our own counting, is of the kind "run"."""
        kinds = {tag: (kind, name) for kind, names in self.tags.items() for name, tag in names.items()}
        own = {tag for kind in ("params", "tags") for tag in self.tags.get(kind, {}).values()}
        own |= self.stepless | {_SESSION_START, _SESSION_END, "params", "tags"} - kinds.keys()
        return kinds | {tag: ("run", tag) for tag in own}

    def scalars(self, time_ns: int, step: int, values: Mapping[str, float], beyond: list[tuple[str, float]]) -> bytes:
        """One event with all metrics of a step.

        Args:
            time_ns: When they were logged.
            step: Their step.
            values: Name -> value.
            beyond: Gets the names and values that are finite and too large for the plugin's 32 bits.
        """
        tags = self.tags.setdefault("scalar", {})
        event = self._new(time_ns, step)
        add = event.summary.value.add
        for name, value in values.items():
            add(tag=tags.get(name) or self._tag("scalar", name), simple_value=value)
            if not -_LARGEST_FLOAT32 <= value <= _LARGEST_FLOAT32 and math.isfinite(value):
                beyond.append((name, value))
        return self._bytes(event)

    def text(self, time_ns: int, step: int | None, name: str, text: str, kind: str = "text") -> bytes:
        """A Markdown text. Our own texts have a kind of their own, so that a user's of that name stays apart."""
        value = self._tensor(kind, name, _DT_STRING, ())
        value.tensor.string_val.append(text.encode())
        return self._with_value(time_ns, step, value)

    def image(self, time_ns: int, step: int | None, name: str, encoded: bytes, width: int, height: int) -> bytes:
        """A PNG or JPEG picture. The older form, which all readers know: the newer ones convert it."""
        value = self._value_type(tag=self._tag("image", name))
        value.image.width, value.image.height, value.image.encoded_image_string = width, height, encoded
        return self._with_value(time_ns, step, value)

    def histogram(
        self, time_ns: int, step: int | None, name: str, edges: Sequence[float], counts: Sequence[float]
    ) -> bytes:
        """A histogram: the plugin's rows of left edge, right edge and count, in 64 bits."""
        buckets = [number for bucket in zip(edges, edges[1:], counts, strict=False) for number in bucket]
        value = self._tensor("histogram", name, _DT_DOUBLE, (len(counts), 3))
        value.tensor.tensor_content = struct.pack(f"<{len(buckets)}d", *buckets)
        return self._with_value(time_ns, step, value)

    def session_start(self, time_ns: int, created_ns: int, params: Mapping[str, Hyperparameter]) -> bytes:
        """The run's row in the HPARAMS page.

        No experiment is written: the plugin takes the first one it finds in any run for all of them, and would show
        other runs without their own params and metrics. Where there is none it finds both by itself.
        """
        content = self._hparams_type()
        content.session_start_info.start_time_secs = created_ns / 10**9
        fields = content.session_start_info.hparams
        for name, value in params.items():
            if isinstance(value, bool):
                fields[name].bool_value = value
            elif isinstance(value, str):
                fields[name].string_value = value
            else:
                fields[name].number_value = value
        return self._hparams(time_ns, _SESSION_START, content)

    def session_end(self, time_ns: int, status: int) -> bytes:
        """How the run ended, for the HPARAMS page."""
        content = self._hparams_type()
        content.session_end_info.status = status
        if status != RUNNING:
            content.session_end_info.end_time_secs = time_ns / 10**9
        return self._hparams(time_ns, _SESSION_END, content)

    def _tag(self, kind: str, name: str) -> str:
        """The tag of a name: the name itself, unless another plugin has it in this run.

        TensorBoard shows any text as it is (to replace all but `[-/\\w.]` is a rule of TensorFlow 1's writers), but it
        takes a tag for one plugin's, and drops what another one writes to it.
        """
        names = self.tags.setdefault(kind, {})
        if name in names:
            return names[name]
        tag = wanted = name or "_"
        count = 1
        while tag in self._taken:
            tag = f"{wanted} ({kind})" if count == 1 else f"{wanted} ({kind} {count})"
            count += 1
        if tag != name:
            self._notes.add("renamed", name, f"this {kind} is shown as {tag!r}")
        names[name] = tag
        self._taken.add(tag)
        return tag

    def _tensor(self, kind: str, name: str, dtype: int, shape: Sequence[int]) -> Any:
        value = self._value_type(tag=self._tag(kind, name))
        value.metadata.plugin_data.plugin_name = _PLUGIN[kind]  # its content says version 0: no bytes at all
        value.metadata.data_class = _CLASS_TENSOR
        value.tensor.dtype = dtype
        value.tensor.tensor_shape.SetInParent()
        for size in shape:
            value.tensor.tensor_shape.dim.add(size=size)
        return value

    def _hparams(self, time_ns: int, tag: str, content: Any) -> bytes:
        value = self._value_type(tag=tag)
        value.metadata.plugin_data.plugin_name = "hparams"
        value.metadata.plugin_data.content = content.SerializeToString(deterministic=True)
        value.metadata.data_class = _CLASS_TENSOR
        value.tensor.dtype = _DT_FLOAT
        value.tensor.tensor_shape.dim.add(size=0)
        return self._with_value(time_ns, 0, value)

    def _with_value(self, time_ns: int, step: int | None, value: Any) -> bytes:
        if step is None:
            self.stepless.add(value.tag)
        event = self._new(time_ns, step or 0)
        event.summary.value.append(value)
        return self._bytes(event)

    def _new(self, time_ns: int, step: int) -> Any:
        # Divided as integers, which rounds once: a float of so many nanoseconds is off by up to 128 of them.
        return self._event_type(wall_time=time_ns / 10**9, step=step)

    @staticmethod
    def _bytes(event: Any) -> bytes:
        serialised: bytes = event.SerializeToString(deterministic=True)
        return serialised


def restart_step(event: Any) -> int | None:
    """The step from which on an event has TensorBoard forget; None if it does not."""
    starts = event.HasField("session_log") and event.session_log.status == event.session_log.START
    return int(event.step) if starts else None
