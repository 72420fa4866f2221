"""What becomes of Neptune's operations: records, with the steps and times they were given.

Apart from the run because it sees one operation after the other, and nothing of directories.
"""

from __future__ import annotations

import base64
import binascii
import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from trackhub import plain, values
from trackhub.blobs import BlobStore
from trackhub.importing.neptune import log, operations
from trackhub.importing.neptune.files import MAX_FILES, Files, NotAllowedError
from trackhub.importing.source import Findings, clean_name, clean_path, clean_text, time_ns_of
from trackhub.journal import JournalRecord
from trackhub.records import (
    ArtifactLogged,
    ImageLogged,
    MetricsLogged,
    ParamsLogged,
    PlainValue,
    StoredFile,
    TagsSet,
    TextLogged,
)

MAX_TEXTS = 1_000
"""A text series with more values becomes one CSV file: each text is a file of its own otherwise."""

_SYSTEM = "sys/"
_WITHOUT_DATA = {
    "ConfigFloatSeries": "settings of charts, not kept",
    "DeleteFiles": "files deleted from a set of files, kept",
}
_GONE = "files that are gone"
_OUTSIDE = "files outside of the training directory, not read (allow with --files-from)"


def path_of(operation: operations.Operation | operations.OtherOperation) -> str:
    """The name of the field that an operation is about."""
    return clean_name("/".join(operation.path))


@dataclass
class _WordSet:
    words: set[str] = field(default_factory=set)
    changes: int = 0
    changed_ns: int = 0


class OperationMapper:
    """Makes records of operations, and holds what must be known from one to the next: by name, not by step.

    Args:
        findings: Told of what is missing or changed.
        blobs: Takes contents.
        scratch: An empty directory.
        created_ns: When the run began.
        text_counts: Text series -> how many values it has.
    """

    def __init__(
        self, findings: Findings, blobs: BlobStore, scratch: Path, created_ns: int, text_counts: Mapping[str, int]
    ) -> None:
        self._findings = findings
        self._blobs = blobs
        self._scratch = scratch
        self._now_ns = created_ns
        self._text_counts = text_counts
        self._next_step: dict[str, int] = {}
        self._word_sets: dict[str, _WordSet] = {}
        self._stored: dict[tuple[str, int, int], StoredFile] = {}
        self._gathered: dict[str, Path] = {}

    def enter(self, files: Files) -> None:
        """Go on with another directory, whose files these are."""
        self._files = files

    def records_of(self, entry: log.Entry) -> Iterator[JournalRecord]:
        """What an operation becomes."""
        self._now_ns = time_ns_of(entry.at, self._now_ns, self._findings)
        operation, name = entry.operation, path_of(entry.operation)
        match operation:
            case operations.LogFloats():
                yield from self._metrics(name, operation)
            case operations.LogStrings():
                yield from self._texts(name, operation)
            case operations.LogImages():
                yield from self._pictures(name, operation)
            case operations.UploadFile() | operations.UploadFileContent() | operations.UploadFileSet():
                yield from self._artifacts(name, operation)
            case operations.AddStrings() | operations.RemoveStrings() | operations.ClearStringSet():
                self._change_set(name, operation)
            case operations.TrackFilesToArtifact():
                tracked = [clean_text(place[0]) for place in operation.entries if place and place[0]]
                yield ParamsLogged(self._now_ns, {name: list(tracked)})
            case operations.OtherOperation():
                if operation.type in _WITHOUT_DATA:
                    self._findings.changed(_WITHOUT_DATA[operation.type], name)
                    return
                self._findings.missing(f"operations of the kind {clean_name(operation.type)[:80]}, not imported", name)
            case _:
                if isinstance(operation, operations.Assigned):
                    yield self._assigned(name, operation)

    def rest(self) -> Iterator[JournalRecord]:
        """What was gathered over the whole run: the sets of words as they were last, and the long text series."""
        for name, word_set in self._word_sets.items():
            self._findings.changed("earlier states of sets of words, not kept", name, word_set.changes - 1)
            yield TagsSet(word_set.changed_ns, {name: ", ".join(sorted(word_set.words))})
        for name, path in self._gathered.items():
            self._findings.changed("long text series, each kept as one CSV file", name)
            yield ArtifactLogged(self._now_ns, f"{clean_path(name)}.csv", self._blobs.snapshot(path))
            path.unlink()

    # --- fields

    def _assigned(self, name: str, operation: operations.Assigned) -> JournalRecord:
        value: PlainValue
        match operation:
            case operations.AssignDatetime():
                value = _iso(operation.value)
            case operations.AssignArtifact():
                value = clean_text(operation.hash)
            case operations.AssignString():
                value = clean_text(operation.value)
            case _:
                value = plain.plain_value(operation.value, name)
        if name.startswith(_SYSTEM):
            return TagsSet(self._now_ns, {name: str(value)})
        return ParamsLogged(self._now_ns, {name: value})

    def _change_set(
        self, name: str, operation: operations.AddStrings | operations.RemoveStrings | operations.ClearStringSet
    ) -> None:
        """Note a change of a set. A tag for each change would make the square of what was read."""
        word_set = self._word_sets.setdefault(name, _WordSet())
        if isinstance(operation, operations.ClearStringSet):
            word_set.words.clear()
        elif isinstance(operation, operations.AddStrings):
            word_set.words.update(map(clean_text, operation.values))
        else:
            word_set.words.difference_update(map(clean_text, operation.values))
        word_set.changes += 1
        word_set.changed_ns = self._now_ns

    # --- series

    def _metrics(self, name: str, operation: operations.LogFloats) -> Iterator[JournalRecord]:
        for point in operation.values:
            step = self._step(name, point.step)
            if step is not None:
                yield MetricsLogged(time_ns_of(point.ts, self._now_ns, self._findings), step, {name: point.value})

    def _texts(self, name: str, operation: operations.LogStrings) -> Iterator[JournalRecord]:
        long = self._text_counts.get(path_of(operation), 0) > MAX_TEXTS
        rows = []
        for point in operation.values:
            step = self._step(name, point.step)
            if step is None:
                continue
            text, time_ns = clean_text(point.value), time_ns_of(point.ts, self._now_ns, self._findings)
            if long:
                rows.append((step, time_ns / 10**9, text))
            else:
                file = self._blobs.store(text.encode(), ".txt", "text/plain")
                yield TextLogged(time_ns, name, file, step)
        if rows:
            path = self._gathered.get(name)
            fresh = path is None
            path = self._gathered.setdefault(name, self._scratch / f"{len(self._gathered)}.csv")
            with path.open("a", encoding="utf-8", newline="") as file_:
                writer = csv.writer(file_)
                if fresh:
                    writer.writerow(("step", "timestamp", "value"))
                writer.writerows(rows)

    def _pictures(self, name: str, operation: operations.LogImages) -> Iterator[JournalRecord]:
        for point in operation.values:
            picture = point.value if isinstance(point.value, operations.Picture) else operations.Picture(point.value)
            step = self._step(name, point.step)
            content = _decoded(picture.data or "")
            if step is None:
                continue
            if not content:
                # The client writes an empty one for a picture that is over its limit.
                self._findings.missing("pictures that are empty or damaged", f"{name} at step {step}")
                continue
            time_ns = time_ns_of(point.ts, self._now_ns, self._findings)
            caption = "\n\n".join(clean_text(text) for text in (picture.name, picture.description) if text)
            if caption:
                file = self._blobs.store(caption.encode(), ".txt", "text/plain")
                yield TextLogged(time_ns, f"{name}/caption", file, step)
            try:
                image = values.encode_image(content, name)
            except ValueError:
                self._findings.changed("pictures that are neither PNG nor JPEG, kept as files", name)
                file = self._blobs.store(content, ".bin", "application/octet-stream")
                yield ArtifactLogged(time_ns, f"{clean_path(name)}/step-{step}", file)
            else:
                file = self._blobs.store(image.data, image.suffix, image.media_type)
                yield ImageLogged(time_ns, name, file, image.width, image.height, step)

    def _step(self, name: str, given: float | None) -> int | None:
        """A step as a whole number. Where none was given the server would have counted; None where it is none."""
        if given is None:
            step = self._next_step.get(name, 0)
        else:
            try:
                step = plain.step_of(math.floor(given))
            except (ValueError, OverflowError):
                self._findings.missing("points whose step does not fit 64 bits", name)
                return None
            if step != given:
                self._findings.changed("steps that were no whole numbers, rounded down", name)
        self._next_step[name] = min(step + 1, 2**63 - 1)
        return step

    # --- files

    def _artifacts(
        self, name: str, operation: operations.UploadFile | operations.UploadFileContent | operations.UploadFileSet
    ) -> Iterator[JournalRecord]:
        if isinstance(operation, operations.UploadFileContent):
            content = _decoded(operation.file_content)
            if content is None:
                self._findings.missing("files whose content is damaged", name)
            else:
                file = self._blobs.store(content, ".bin", "application/octet-stream")
                yield ArtifactLogged(self._now_ns, _file_name(name, operation.ext), file)
        elif isinstance(operation, operations.UploadFile):
            if operation.file_path:
                yield from self._file(name, operation.ext, operation.file_path, copied=False)
            elif operation.tmp_file_name:
                yield from self._file(name, operation.ext, operation.tmp_file_name, copied=True)
            else:
                self._findings.missing(_GONE, name)
        else:
            for pattern in operation.file_globs:
                yield from self._file_set(name, pattern)

    def _file(self, name: str, ext: str, source: str, *, copied: bool) -> Iterator[JournalRecord]:
        shown = clean_name(source)
        try:
            path = self._files.copy(source) if copied else self._files.original(source)
            yield ArtifactLogged(self._now_ns, _file_name(name, ext), self._snapshot(path))
        except NotAllowedError:
            self._findings.missing("copies whose name leads elsewhere" if copied else _OUTSIDE, shown)
        except FileNotFoundError:
            self._findings.missing(_GONE, shown)
        except (PermissionError, ValueError) as error:
            self._findings.missing("files that cannot be read", f"{shown}: {error}")

    def _snapshot(self, path: Path) -> StoredFile:
        """A copy of a file; the same one as long as the file stays what it was: one can be named any number of times.

        Args:
            path: The file, without links.
        """
        status = path.stat()
        key = str(path), status.st_size, status.st_mtime_ns
        if key not in self._stored:
            self._stored[key] = self._blobs.snapshot(path)
        return self._stored[key]

    def _file_set(self, name: str, pattern: str) -> Iterator[JournalRecord]:
        shown = clean_name(pattern)
        try:
            for count, (path, below) in enumerate(self._files.matching(pattern)):
                if count == MAX_FILES:
                    self._findings.missing(f"sets of files cut off after {MAX_FILES:,}", shown)
                    return
                artifact = f"{clean_path(name)}/{clean_path(below)}"
                yield ArtifactLogged(self._now_ns, artifact, self._snapshot(path))
        except NotAllowedError:
            self._findings.missing(_OUTSIDE, shown)
        except FileNotFoundError:
            self._findings.missing(_GONE, shown)
        except (PermissionError, ValueError) as error:
            self._findings.missing("files that cannot be read", f"{shown}: {error}")


def _iso(milliseconds: float) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _file_name(name: str, ext: str) -> str:
    path, ext = clean_path(name), clean_path(ext).replace("/", "_")
    return path if ext == "_" or path.endswith(f".{ext}") else f"{path}.{ext}"
