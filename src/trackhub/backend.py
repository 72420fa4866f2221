"""The contract a plugin author subclasses: one class, its options, and what it is told about a run.

No machinery lives here. What happens around these methods (batches, retries, the dead letter, lowering a kind
that a backend does not show) is in `delivery.py` and `lowering.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pluggy
from pydantic import BaseModel, ConfigDict, Field, field_validator

from trackhub.errors import CannotReadBack
from trackhub.readback import ReadBack
from trackhub.records import (
    ArtifactLogged,
    ConfusionMatrixLogged,
    EndStatus,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RocCurveLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)

hookimpl = pluggy.HookimplMarker("trackhub")
"""Marks a plugin's hooks: `trackhub_backends()` and `trackhub_processors()`, which return lists of classes."""


class BackendOptions(BaseModel):
    """Base of every backend's options. Unknown names are refused, so that a typing error is found in `init`.

    A field is filled, strongest first, from `init(<backend>={...})`, `TRACKHUB_<BACKEND>_<FIELD>`, the vendor's own
    variable if the field is annotated with `VendorVariable`, the settings file, and its default. Use
    `pydantic.SecretStr` for what must never be written down.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    processors: tuple[str, ...] = Field(
        default=(),
        description="What filters the records on their way to this backend, in this order: `every:10`, "
        "`exclude:grad/*`, `rename:loss=train/loss`. Secrets are redacted first, unless it says `redact:off`.",
    )

    @field_validator("processors", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


@dataclass(frozen=True)
class VendorVariable:
    """Annotates an option with the vendor's own environment variable: `Annotated[str, VendorVariable("X_URL")]`."""

    name: str


@dataclass(frozen=True)
class RunInfo:
    """What a backend is told about the run it delivers.

    Args:
        id: trackhub's id of the run, unique and stable; make run creation idempotent with it.
        name: The name people see.
        project: The project the run belongs to.
        created_ns: When the run was created, nanoseconds since the Unix epoch.
        directory: The run directory; `path_of` finds a record's file in it.
        parent_remote_id: For a child run, what the same backend's `open` gave as the parent's `remote_id`.
        attempt: 1 for the first process that writes this run, 2 for the first that resumes it, and so on.
        working_directory: Where the training process was started; relative paths in options are relative to it.
        reserved_params: Names of params that the place where the run takes place logs by itself at a vendor it knows,
            in a spelling of its own, into a run that it has made.
        origin: What tells this run directory from those of the same run on other machines; may be empty. Whoever
            writes files of its own finds by it those of this directory.
    """

    id: str
    name: str
    project: str
    created_ns: int
    directory: Path
    parent_remote_id: str | None = None
    attempt: int = 1
    working_directory: Path = field(default_factory=Path.cwd)
    reserved_params: frozenset[str] = frozenset()
    origin: str = ""

    def path_of(self, file: StoredFile) -> Path:
        """The file or directory that a record's `file` names."""
        return self.directory / file.path


@dataclass(frozen=True)
class Rewind:
    """What a later attempt at a run supersedes of what earlier ones have written.

    Args:
        attempt: The attempt that goes on from there; its records come next.
        time_ns: When that attempt began: what it supersedes was logged before.
        after_step: Everything that was written with a later step is superseded, of every kind that has steps. None if
            the attempt did not say where it goes on from.
        metrics: Name of a metric -> its points with a step later than this are superseded, because the attempt has
            begun to log them anew.

    >>> rewind = Rewind(attempt=2, time_ns=0, after_step=40, metrics={"loss": 30})
    >>> rewind.supersedes("loss", 31), rewind.supersedes("accuracy", 31), rewind.supersedes("accuracy", 41)
    (True, False, True)
    """

    attempt: int
    time_ns: int
    after_step: int | None = None
    metrics: Mapping[str, int] = field(default_factory=dict)

    def supersedes(self, metric: str, step: int) -> bool:
        """Whether it supersedes a point that an earlier attempt has logged."""
        last_kept = self.last_kept_step(metric)
        return last_kept is not None and step > last_kept

    def last_kept_step(self, metric: str) -> int | None:
        """The step after which a metric's points are superseded; None if none are."""
        limits = [limit for limit in (self.after_step, self.metrics.get(metric)) if limit is not None]
        return min(limits, default=None)


@dataclass(frozen=True)
class OpenedRun:
    """What `Backend.open` answers.

    Args:
        remote_id: The backend's own id of the run, given to users by `tracker.remote_id(...)` and to child runs.
        link: A URL or path where a person can look at the run.
        state: JSON-able state to be handed to the next `open` of this run, after a restart.
    """

    remote_id: str | None = None
    link: str | None = None
    state: Mapping[str, Any] = field(default_factory=dict)


class Notes:
    """Collects what a backend could not show as it was logged. It ends up, counted, in the delivery report."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, str, str]] = []

    def add(self, reason: str, subject: str, detail: str = "") -> None:
        """Report that one thing was changed or left out.

        Args:
            reason: A short fixed phrase, by which notes are counted: "renamed", "shortened", "not finite".
            subject: What it happened to: the key, the file.
            detail: What was done about it, for a person.
        """
        self._pending.append((reason, subject, detail))

    def __len__(self) -> int:
        """How many have been added since the last `drain`."""
        return len(self._pending)

    def drain(self) -> list[tuple[str, str, str]]:
        """Take all notes of `(reason, subject, detail)` added since the last call."""
        taken, self._pending = self._pending, []
        return taken


class Backend(ABC):
    """One vendor. Subclass it, override `open`, and one `write_*` for each kind the vendor can show.

    A `write_*` gets a batch of one kind, in the order it was logged. When it returns, the vendor has accepted the data,
    so buffered SDKs flush inside it. It may be given the same batch again after a crash, and must then show it once.
    A kind that is not overridden is lowered to one that is (a confusion matrix to a table and a picture, those to a
    file artifact) or, where nothing fits, skipped and counted.

    Raise `BackendUnavailable` to be called again later, `RecordRejected` for what the vendor will never take,
    `StateLost` (from `open` or a `write_*`) when what was written before is gone and all must be given again. Anything
    else is taken for a bug of the backend: its delivery is suspended, with name and version in the report; the
    data stays.

    All methods of one object are called one at a time: in a process of its own, or in threads of the training process
    if it `needs_training_process`.
    Import the vendor's SDK inside `open`, never at module level.
    """

    name: ClassVar[str]
    """The backend's name: what users write in `backends=[...]`."""

    Options: ClassVar[type[BackendOptions]] = BackendOptions
    """The options this backend takes; filled and validated in `trackhub.init`."""

    distributions: ClassVar[tuple[str, ...]] = ()
    """Vendor distributions whose version `trackhub backends` shows; the first one installed counts."""

    keeps_order: ClassVar[bool] = False
    """True where records of different kinds must come in the order they were logged, because they end up in one file.
    Batches then end wherever the kind changes; otherwise each kind of a stretch of the journal is one batch."""

    needs_training_process: ClassVar[bool] = False
    """True only where a live object of the training process must be filled."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.notes = Notes()

    @classmethod
    def check(cls, options: Any) -> None:
        """Refuse, in `init` and without importing the SDK, what cannot work: a missing package, an impossible option.

        Args:
            options: The validated `Options`.

        Raises:
            SettingsError: With the fix in the message; `MissingPackageError` with the pip line.
        """

    @classmethod
    def resolve(cls, options: Any, working_directory: Path) -> Any:
        """Give back the options with everything relative made absolute, so that a later `sync` finds the same place.

        Args:
            options: The validated `Options`.
            working_directory: The training process's working directory.

        Returns:
            The options to store with the run.
        """
        return options

    @classmethod
    def probe(cls, options: Any) -> str | None:
        """Say in one line whether the vendor can be reached, within a few seconds; `trackhub doctor` shows it.

        Nothing may be created or changed at the vendor.

        Args:
            options: As `resolve` gave them.

        Returns:
            What answered, for people and without credentials; None if there is nothing to reach.

        Raises:
            BackendUnavailable: It cannot be reached; the message says what was tried and what came of it.
        """
        return None

    @abstractmethod
    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Connect, and create the run or find it again.

        Args:
            run: The run.
            state: What an earlier `open` or `checkpoint` gave to remember; empty the first time, or if it was lost.

        Raises:
            BackendUnavailable: To be called again later.
        """

    def checkpoint(self) -> Mapping[str, Any] | None:
        """New state to remember together with the data just written, or None if nothing changed."""
        return None

    def close(self, status: EndStatus) -> None:
        """End the run with this status; everything has been written. Called again if it raised BackendUnavailable."""

    def rewind(self, rewind: Rewind) -> bool:
        """Take back what a later attempt supersedes: training has gone on from a checkpoint, and logs steps anew.

        Called before the first of the new records, and again with them after a crash. There may be nothing to take
        back. What the attempt itself has written since is given again, and may be taken back, too.

        Args:
            rewind: What is superseded.

        Returns:
            Whether nothing of that is shown any more. If not, the delivery counts in its report what is.

        Raises:
            BackendUnavailable: To be called again later.
            StateLost: Everything has to be given again, from the run's start.
        """
        return False

    def disconnect(self) -> None:
        """Let go of connections and files without ending the run. Always called last; must not raise."""

    def read_back(self, run: RunInfo, state: Mapping[str, Any]) -> ReadBack:
        """Look at what the vendor holds of a run, for `trackhub verify`. Optional; called instead of `open`.

        Nothing may be created or changed at the vendor.

        Args:
            run: The run.
            state: What `open` and `checkpoint` gave to remember.

        Returns:
            What is there. `disconnect` is called when it has been read.

        Raises:
            StateLost: The run is not there any more.
            CannotReadBack: This vendor, or these options, give nothing back; the message says why.
            BackendUnavailable: It cannot be reached.
        """
        raise CannotReadBack(f"backend {self.name!r} has no read_back()")

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Step metrics."""
        raise NotImplementedError

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Params."""
        raise NotImplementedError

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Tags."""
        raise NotImplementedError

    def write_artifacts(self, artifacts: Sequence[ArtifactLogged]) -> None:
        """Files and directories."""
        raise NotImplementedError

    def write_models(self, models: Sequence[ModelLogged]) -> None:
        """Models; lowered to artifacts."""
        raise NotImplementedError

    def write_text(self, texts: Sequence[TextLogged]) -> None:
        """Texts; lowered to artifacts."""
        raise NotImplementedError

    def write_html(self, pages: Sequence[HtmlLogged]) -> None:
        """HTML pages; lowered to artifacts."""
        raise NotImplementedError

    def write_images(self, images: Sequence[ImageLogged]) -> None:
        """PNG and JPEG pictures; lowered to artifacts."""
        raise NotImplementedError

    def write_figures(self, figures: Sequence[FigureLogged]) -> None:
        """Figures; lowered to artifacts."""
        raise NotImplementedError

    def write_tables(self, tables: Sequence[TableLogged]) -> None:
        """Tables; lowered to artifacts."""
        raise NotImplementedError

    def write_histograms(self, histograms: Sequence[HistogramLogged]) -> None:
        """Histograms; lowered to tables."""
        raise NotImplementedError

    def write_confusion_matrices(self, matrices: Sequence[ConfusionMatrixLogged]) -> None:
        """Confusion matrices; lowered to a table and a figure."""
        raise NotImplementedError

    def write_roc_curves(self, curves: Sequence[RocCurveLogged]) -> None:
        """ROC curves; lowered to a table and a figure."""
        raise NotImplementedError
