"""What a reader of another tracker's files must give: runs, their records in a stream, and what could not be had.

Apart from the writing and from the readers so that a format is one more reader, and nothing else changes.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from trackhub import plain
from trackhub.blobs import BlobStore
from trackhub.journal import JournalRecord
from trackhub.records import EndStatus

MAX_EXAMPLES = 5
MAX_REASONS = 200
_MAX_EXAMPLE_CHARACTERS = 200
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Finding(msgspec.Struct):
    """Something of a source that is not in the run as it was.

    Args:
        reason: A short fixed phrase, by which findings are counted.
        count: How often.
        missing: Whether something is not in the run at all; otherwise it is there, in another form.
        examples: The first ones.
    """

    reason: str
    count: int = 0
    missing: bool = True
    examples: list[str] = msgspec.field(default_factory=list)

    def __str__(self) -> str:
        if not self.examples:
            return f"{self.reason}: {self.count:,}"
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.reason}: {self.count:,} ({', '.join(self.examples)}{more})"


class Findings:
    """Counts what is missing or changed, in bounded memory."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def missing(self, reason: str, example: str = "", count: int = 1) -> None:
        """Count what is not in the run."""
        self._add(reason, example, count, missing=True)

    def changed(self, reason: str, example: str = "", count: int = 1) -> None:
        """Count what is in the run in another form than in the source."""
        self._add(reason, example, count, missing=False)

    def all(self) -> list[Finding]:
        """What was counted: first what is missing."""
        return sorted(self._found.values(), key=lambda one: not one.missing)

    def _add(self, reason: str, example: str, count: int, *, missing: bool) -> None:
        if count <= 0:
            return
        if reason not in self._found and len(self._found) >= MAX_REASONS:
            reason, example = "other findings", ""
        one = self._found.setdefault(reason, Finding(reason, missing=missing))
        one.count += count
        example = example[:_MAX_EXAMPLE_CHARACTERS]
        if example and len(one.examples) < MAX_EXAMPLES and example not in one.examples:
            one.examples.append(example)


class SourceRun(ABC):
    """One run in another tracker's files.

    Args:
        id: The run's id here: the same for the same source, wherever that lies.
        name: The name people see.
        created_ns: When the run began.
        path: Where it is read from.
        fingerprint: Changes when the source does.
    """

    id: str
    name: str
    created_ns: int
    path: Path
    fingerprint: str

    def __init__(self) -> None:
        self.findings = Findings()

    @abstractmethod
    def records(self, blobs: BlobStore, scratch: Path) -> Iterator[JournalRecord]:
        """The run's records in a stream, with their original steps and times; its end is not among them.

        Args:
            blobs: Takes the content of files and rich values.
            scratch: An empty directory for what must be gathered first.
        """

    @abstractmethod
    def end(self) -> tuple[EndStatus, int]:
        """How the run ended, and when in nanoseconds since the epoch; asked when the records have been read."""


@dataclass
class Found:
    """What a reader found in a place.

    Args:
        runs: The runs, in the order they are to be imported.
        left_out: A sentence for each thing that looks like a run and is not imported.
    """

    runs: list[SourceRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReadOptions:
    """What a reader is told besides the place.

    Args:
        files_from: Directories whose files may be copied when the source names them by their path.
    """

    files_from: tuple[Path, ...] = ()


def run_id(prefix: str, identity: str) -> str:
    """A run id from what identifies a run in its source: readable if it can be, a hash otherwise.

    >>> run_id("neptune", "d7819eea-62bc")
    'neptune-d7819eea-62bc'
    >>> run_id("neptune", "../../etc")
    'neptune-cdeb4f9ab6375dae'
    """
    if _SAFE_ID.fullmatch(identity):
        return f"{prefix}-{identity}"
    own = hashlib.blake2s(identity.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return f"{prefix}-{own}"


def clean_text(text: str) -> str:
    """A text that can be stored: what no Unicode text may hold becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def clean_name(text: str) -> str:
    r"""A name that can be stored: without control characters, and never empty.

    >>> clean_name("train\n/loss")
    'train_/loss'
    """
    return _CONTROL.sub("_", clean_text(text)) or "_"


def clean_path(text: str) -> str:
    """A name that is also a relative path, for artifacts.

    >>> clean_path("/a/../b//c")
    'a/_/b/c'
    """
    parts = [part for part in clean_name(text).split("/") if part]
    return "/".join("_" if part in (".", "..") else part for part in parts) or "_"


def time_ns_of(seconds: float | None, otherwise: int, findings: Findings | None = None) -> int:
    """Seconds since the epoch as nanoseconds.

    Args:
        seconds: None where the source has no time.
        otherwise: What to take where there is none, or one that does not fit 64 bits.
        findings: Told of the latter.
    """
    if seconds is None:
        return otherwise
    try:
        return plain.time_ns_of(seconds)
    except (TypeError, ValueError, OverflowError):
        if findings is not None:
            findings.changed("times that do not fit 64 bits, replaced by those before", str(seconds))
        return otherwise
