"""What becomes of TensorBoard's events: records, with the steps and times they were given.

Apart from the run because it sees one event after the other, and nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trackhub import values
from trackhub.blobs import BlobStore
from trackhub.importing.source import Findings, clean_name, clean_path, clean_text, time_ns_of
from trackhub.importing.tensorboard import tensors
from trackhub.journal import JournalRecord
from trackhub.records import (
    ArtifactLogged,
    HistogramLogged,
    ImageLogged,
    MetricsLogged,
    ParamsLogged,
    PlainValue,
    TagsSet,
    TextLogged,
)

SESSION_START, SESSION_END = "_hparams_/session_start_info", "_hparams_/session_end_info"

_MAX_HPARAMS_BYTES = 4 << 20
_MAX_PARTS = 10_000
_OLD_FORMS = {"simple_value": "scalars", "image": "images", "histo": "histograms", "audio": "audio"}
_NOT_IMPORTED = {
    "graph_def": "graphs",
    "meta_graph_def": "graphs",
    "tagged_run_metadata": "profiles of graphs",
    "log_message": "log messages",
}


class EventMapper:
    """Makes records of events, and holds what must be known from one to the next: by tag, not by step.

    Args:
        findings: Told of what is missing or changed.
        blobs: Takes contents.
        created_ns: When the run began.
    """

    def __init__(self, findings: Findings, blobs: BlobStore, created_ns: int) -> None:
        self._findings = findings
        self._blobs = blobs
        self._now_ns = created_ns
        self._plugins: dict[str, str] = {}
        self._params: set[str] = set()

    def records_of(self, event: Any, *, superseded: bool) -> Iterator[JournalRecord]:
        """What an event becomes."""
        self._now_ns = time_ns_of(event.wall_time, self._now_ns, self._findings)
        what = event.WhichOneof("what")
        if what in _NOT_IMPORTED:
            self._findings.missing(f"{_NOT_IMPORTED[what]}, not imported")
        if what != "summary":
            return
        scalars: dict[str, float] = {}
        for value in event.summary.value:
            plugin = self._plugin(value)
            if plugin == "hparams":
                yield from self._hparams(value)
            elif superseded:
                self._findings.changed("values that a restart at an earlier step superseded", clean_name(value.tag))
            elif plugin == "scalars":
                name, number = clean_name(value.tag), self._number(value)
                if number is None:
                    continue
                if name in scalars:
                    yield MetricsLogged(self._now_ns, event.step, scalars)
                    scalars = {}
                scalars[name] = number
            else:
                yield from self._rich(value, plugin, event.step)
        if scalars:
            yield MetricsLogged(self._now_ns, event.step, scalars)

    def _plugin(self, value: Any) -> str:
        """The plugin a value belongs to; later values of a tag may leave it out."""
        form = value.WhichOneof("value")
        if form in _OLD_FORMS:
            return _OLD_FORMS[form]
        named = clean_name(value.metadata.plugin_data.plugin_name) if value.metadata.plugin_data.plugin_name else ""
        return self._plugins.setdefault(value.tag, named) if named else self._plugins.get(value.tag, "")

    def _number(self, value: Any) -> float | None:
        if value.HasField("simple_value"):
            return float(value.simple_value)
        try:
            return tensors.number_of(value.tensor)
        except ValueError:
            self._findings.missing("scalars that are no number", clean_name(value.tag))
            return None

    def _rich(self, value: Any, plugin: str, step: int) -> Iterator[JournalRecord]:
        name = clean_name(value.tag)
        try:
            match plugin:
                case "images":
                    yield from self._images(value, name, step)
                case "text":
                    text = clean_text(tensors.texts_of(value.tensor))
                    yield TextLogged(self._now_ns, name, self._blobs.store(text.encode(), ".txt", "text/plain"), step)
                case "histograms":
                    yield from self._histogram(value, name, step)
                case "audio":
                    yield from self._audio(value, name, step)
                case _:
                    what = f"values of the plugin {plugin[:80]}" if plugin else "values that no plugin claims"
                    self._findings.missing(f"{what}, not imported", name)
        except ValueError as error:
            self._findings.missing(f"{plugin} that cannot be read", f"{name} at step {step}: {error}")

    def _images(self, value: Any, name: str, step: int) -> Iterator[JournalRecord]:
        if value.HasField("image"):
            pictures = [bytes(value.image.encoded_image_string)]
        else:
            # After width and height.
            pictures = [bytes(part) for part in value.tensor.string_val[2 : 2 + _MAX_PARTS]]
        for at, content in enumerate(pictures):
            own = name if len(pictures) == 1 else f"{name}/{at}"
            try:
                image = values.encode_image(content, own)
            except ValueError:
                self._findings.changed("pictures that are neither PNG nor JPEG, kept as files", own)
                yield self._file(content, own, step, ".gif" if content.startswith(b"GIF8") else ".bin")
            else:
                file = self._blobs.store(image.data, image.suffix, image.media_type)
                yield ImageLogged(self._now_ns, own, file, image.width, image.height, step)

    def _histogram(self, value: Any, name: str, step: int) -> Iterator[JournalRecord]:
        bins = tensors.bins_of_proto(value.histo) if value.HasField("histo") else tensors.bins_of_tensor(value.tensor)
        if bins is None:
            self._findings.missing("histograms of nothing", f"{name} at step {step}")
        else:
            yield HistogramLogged(self._now_ns, name, *bins, step)

    def _audio(self, value: Any, name: str, step: int) -> Iterator[JournalRecord]:
        if value.HasField("audio"):
            clips = [bytes(value.audio.encoded_audio_string)]
        else:
            # Each with its label behind it.
            clips = [bytes(part) for part in value.tensor.string_val[: 2 * _MAX_PARTS : 2]]
        for at, content in enumerate(clips):
            own = name if len(clips) == 1 else f"{name}/{at}"
            yield self._file(content, own, step, ".wav" if content.startswith(b"RIFF") else ".bin")

    def _file(self, content: bytes, name: str, step: int, suffix: str) -> JournalRecord:
        media_type = {".wav": "audio/wav", ".gif": "image/gif"}.get(suffix, "application/octet-stream")
        file = self._blobs.store(content, suffix, media_type)
        return ArtifactLogged(self._now_ns, f"{clean_path(name)}/step-{step}{suffix}", file)

    def _hparams(self, value: Any) -> Iterator[JournalRecord]:
        """Hyperparameters. Of several session starts TensorBoard believes the first; others add what is new in them."""
        if value.tag == SESSION_END:
            return
        start = hparams_of(value, "session_start_info") if value.tag == SESSION_START else None
        if start is None:
            self._findings.changed("descriptions for the hyperparameters' page, not kept", clean_name(value.tag))
            return
        params = {clean_name(name): _plain(inner) for name, inner in start.hparams.items()}
        fresh = {name: params[name] for name in sorted(params) if name not in self._params}
        self._params.update(fresh)
        if fresh:
            yield ParamsLogged(self._now_ns, fresh)
        tags = {
            f"hparams/{field}": clean_text(text)
            for field in ("group_name", "model_uri", "monitor_url")
            if (text := getattr(start, field))
        }
        if tags:
            yield TagsSet(self._now_ns, tags)


def hparams_of(value: Any, field: str) -> Any:
    """A message of the hparams plugin; None if there is none, or it is too large."""
    from google.protobuf.message import DecodeError
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = value.metadata.plugin_data.content
    if len(content) > _MAX_HPARAMS_BYTES:
        return None
    try:
        data = HParamsPluginData.FromString(content)
    except DecodeError:
        return None
    return getattr(data, field) if data.HasField(field) else None


def _plain(value: Any) -> PlainValue:
    """A hyperparameter's value."""
    nested = ("list_value", "struct_value")
    match value.WhichOneof("kind"):
        case "number_value":
            return float(value.number_value)
        case "bool_value":
            return bool(value.bool_value)
        case "string_value":
            return clean_text(value.string_value)
        case "list_value" if all(one.WhichOneof("kind") not in nested for one in value.list_value.values):
            return [_plain(one) for one in value.list_value.values]
        case "list_value" | "struct_value":
            return clean_text(str(value))
    return None
