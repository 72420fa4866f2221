"""Shows a run in TensorBoard: one event file, written with the `tensorboard` package alone.

One vendor, one file: what becomes of each kind of record, and what is remembered so that each is shown exactly once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import Field

from trackhub.backend import Backend, BackendOptions, OpenedRun, Rewind, RunInfo, hookimpl
from trackhub.backends.tensorboard.events import FAILURE, RUNNING, SUCCESS, EventMaker, Hyperparameter, restart_step
from trackhub.backends.tensorboard.file import (
    EventFile,
    copy_file,
    events_in,
    framed,
    replace_file,
    unavailable_on_os_error,
)
from trackhub.backends.tensorboard.reading import TensorBoardReadBack
from trackhub.backends.tensorboard.text import (
    escaped,
    file_name,
    markdown_table,
    may_be_run_directory,
    run_directory_name,
    value_text,
)
from trackhub.errors import MissingPackageError, RecordRejected, SettingsError, StateLost
from trackhub.readback import ReadBack
from trackhub.records import (
    ConfusionMatrixLogged,
    EndStatus,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ParamsLogged,
    PlainValue,
    Record,
    RocCurveLogged,
    StepValueLogged,
    TableLogged,
    TagsSet,
    TextLogged,
)

SHOWN_TABLE_ROWS = 200
SHOWN_TEXT_BYTES = 256 * 1024
"""TensorBoard renders Markdown anew at every look; beyond this a page takes seconds to come."""

_COPIED_AT_ONCE = 1000
_OWN_LENGTH = 100  # of a run's id in the name of its file, where the run directory's origin follows
_LARGEST_EXACT_INTEGER = 2**53  # hyperparameters are 64-bit floats
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_SUFFIXES = {"text/html": ".html", "image/svg+xml": ".svg", "application/json": ".json", "text/plain": ".txt"}

_Note = tuple[str, str, str]


class TensorBoardOptions(BackendOptions):
    """Options of the TensorBoard backend."""

    logdir: Annotated[
        str | Path,
        Field(
            description="The directory to open with `tensorboard --logdir`, relative to the working directory. Every "
            "run gets a directory in it. A local or mounted path, not a URL."
        ),
    ] = "runs"


class TensorBoardBackend(Backend):
    """Writes a run as one TensorBoard event file, each record exactly once.

    What a later attempt supersedes stays in the file, behind which an event then has TensorBoard forget it.

    What counts as delivered is the file's size in the state: `open` cuts the file back to it, and the same records
    then give the same bytes again. A second, small file whose name sorts before the first is written only if params
    are added after the first ones, or the run goes on after its end: TensorBoard believes what it reads first.
    """

    name = "tensorboard"
    Options = TensorBoardOptions
    distributions = ("tensorboard",)
    keeps_order = True

    _file: EventFile | None = None

    @classmethod
    def check(cls, options: TensorBoardOptions) -> None:
        """Refuse a remote directory, and a missing package.

        Raises:
            SettingsError: The directory is a URL.
            MissingPackageError: tensorboard is not installed.
        """
        _refuse_remote(options.logdir)
        spec = importlib.util.find_spec("tensorboard")
        if spec is None or spec.origin is None:  # a mere directory `tensorboard/` full of logs has no origin
            raise MissingPackageError(
                'backend "tensorboard" needs the package tensorboard: pip install "trackhub-sdk[tensorboard]"'
            )

    @classmethod
    def resolve(cls, options: TensorBoardOptions, working_directory: Path) -> TensorBoardOptions:
        """Give back the options with `logdir` absolute.

        Raises:
            SettingsError: The directory is a URL.
        """
        _refuse_remote(options.logdir)
        return TensorBoardOptions(logdir=str(_absolute(options.logdir, working_directory)))

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Open the run's event file and cut it back to what was delivered; with an empty state, start it anew.

        Raises:
            BackendUnavailable: The disk refuses.
            StateLost: The file that the state tells of is gone, or shorter than it was.
        """
        self._run = run
        self._make = EventMaker(state.get("tags", {}), self.notes)
        self._make.stepless.update(state.get("stepless", ()))
        logdir = _absolute(self.options.logdir, run.working_directory)
        parent = "" if run.parent_remote_id is None else f"{run.parent_remote_id}/"
        self._directory = self._place_of_run(logdir, parent, state)
        remote_id = self._directory.relative_to(logdir).as_posix()
        # With an origin, the run may have files of other run directories, on other machines, beside ours.
        own = file_name(f"{file_name(run.id)[:_OWN_LENGTH]}.{run.origin}" if run.origin else run.id)
        path = self._place_of_file(own, run.created_ns // 10**9)
        self._amendment = self._directory / f"events.out.tfevents.0.{own}.trackhub-amendment"

        self._params: dict[str, Hyperparameter] = dict(state.get("params", {}))
        self._counts: dict[str, int] = dict(state.get("counts", {}))
        self._started: bool = state.get("started", False)
        self._amended: bool = state.get("amended", False)
        self._ended: bool = state.get("ended", False)
        self._last_ns: int = state.get("last_ns", run.created_ns)
        self._open_file(path, state.get("size_bytes"))
        link = f"{logdir}  (open with: tensorboard --logdir {shlex.quote(str(logdir))})"
        return OpenedRun(remote_id=remote_id, link=link, state=self.checkpoint())

    def checkpoint(self) -> Mapping[str, Any]:
        """How long the event file is, and what must be known to go on with it."""
        file = self._opened_file()
        return {
            "file": str(file.path),
            "size_bytes": file.size_bytes,
            # There may be a hundred thousand, and few are called otherwise.
            "tags": {
                kind: {name: tag if tag != name else "" for name, tag in names.items()}
                for kind, names in self._make.tags.items()
            },
            "stepless": sorted(self._make.stepless),
            "params": dict(self._params),
            "counts": dict(self._counts),
            "started": self._started,
            "amended": self._amended,
            "ended": self._ended,
            "last_ns": self._last_ns,
        }

    def close(self, status: EndStatus) -> None:
        """Write the run's end for the HPARAMS page, which knows success and failure."""
        shown = SUCCESS if status == "finished" else FAILURE
        events = []
        if not self._started:  # a run without params gets its row, too
            events.append(self._make.session_start(self._last_ns, self._run.created_ns, self._params))
        if not self._ended:
            events.append(self._make.session_end(self._last_ns, shown))
        if self._amended:
            self._amend(self._params, shown)
        self._append(events, ())
        self._started = self._ended = True

    def rewind(self, rewind: Rewind) -> bool:
        """Have TensorBoard forget what is superseded, and give again what it forgets with it.

        It forgets by the step alone: other metrics, and texts that count on a step of their own, are copied.
        """
        limits = [*rewind.metrics.values(), *(() if rewind.after_step is None else (rewind.after_step,))]
        first_step = min(limits) + 1
        found, restarts = False, list[tuple[int, int]]()
        with unavailable_on_os_error("read", self._directory):
            for place, event in self._written():
                restart = restart_step(event)
                if restart is not None:
                    restarts.append((place, restart))
                    found = found and first_step < restart
                elif event.step >= first_step and not found:
                    found = len(event.summary.value) > 0 and self._superseded_in(event, rewind)
            if not found:
                return True
            file = self._opened_file()
            size_bytes = file.size_bytes
            try:
                self._copy_survivors(rewind, first_step, restarts)
            except BaseException:
                # Half of it would look done to the next call, which meets the restart that it began with.
                file.cut_back(size_bytes)
                raise
        return True

    def disconnect(self) -> None:
        """Close the event file."""
        if self._file is not None:
            self._file.close()

    def read_back(self, run: RunInfo, state: Mapping[str, Any]) -> ReadBack:
        """Look at all event files in the run's directory.

        Raises:
            StateLost: The event file is gone.
        """
        if "file" not in state:
            raise StateLost("no event file was written")
        file = Path(state["file"])
        self._run, self._directory = run, file.parent
        return TensorBoardReadBack(
            file,
            state["size_bytes"],
            state["tags"],
            lambda name, value: _hyperparameter(name, value, []),
            self._copy_path,
        )

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Metrics: one event for each record, with all its values."""
        beyond: list[tuple[str, float]] = []
        self._append([self._make.scalars(point.time_ns, point.step, point.values, beyond) for point in points], points)
        for name, value in beyond:
            self.notes.add("beyond float32", name, f"{value!r} is shown as {math.copysign(math.inf, value)}")

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Params: all of them as hyperparameters, and each record's as a text."""
        merged, started, amended = dict(self._params), self._started, self._amended
        count = self._counts.get("params", 0)
        events: list[bytes] = []
        notes: list[_Note] = []
        for record in params:
            before = dict(merged)
            merged |= {name: _hyperparameter(name, value, notes) for name, value in record.params.items()}
            if started:
                amended = amended or merged != before
            else:
                events.append(self._make.session_start(record.time_ns, self._run.created_ns, merged))
                started = True
            table = markdown_table(["param", "value"], list(record.params.items()))
            events.append(self._make.text(record.time_ns, count, "params", table, kind="params"))
            count += 1
        if amended:
            self._amend(merged, RUNNING if self._ended else None)
        self._append(events, params, notes)
        self._params, self._started, self._amended = merged, started, amended
        self._counts["params"] = count

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Tags: each record's as a text."""
        count = self._counts.get("tags", 0)
        tables = [markdown_table(["tag", "value"], list(record.tags.items())) for record in tags]
        events = [
            self._make.text(record.time_ns, step, "tags", table, kind="tags")
            for step, (record, table) in enumerate(zip(tags, tables, strict=True), count)
        ]
        self._append(events, tags)
        self._counts["tags"] = count + len(tags)

    def write_text(self, texts: Sequence[TextLogged]) -> None:
        """Texts, which TensorBoard reads as Markdown."""
        events: list[bytes] = []
        notes: list[_Note] = []
        for record in texts:
            content = self._content(record)
            text = content.decode(errors="replace")
            if len(content) > SHOWN_TEXT_BYTES:
                copy = self._copy(record)
                left_out = len(content) - SHOWN_TEXT_BYTES
                text = content[:SHOWN_TEXT_BYTES].decode(errors="ignore")
                text += f"\n\n… {left_out} bytes more are in {escaped(str(copy))}"
                notes.append(("shortened", record.name, f"{left_out} bytes are left out; the whole text is {copy}"))
            events.append(self._make.text(record.time_ns, record.step, record.name, text))
        self._append(events, texts, notes)

    def write_html(self, pages: Sequence[HtmlLogged]) -> None:
        """HTML pages: copied beside the events, with a text that says where."""
        notes: list[_Note] = []
        self._append([self._pointer(page, notes) for page in pages], pages, notes)

    def write_images(self, images: Sequence[ImageLogged]) -> None:
        """Pictures, as they were encoded."""
        events = [
            self._make.image(image.time_ns, image.step, image.name, self._content(image), image.width, image.height)
            for image in images
        ]
        self._append(events, images)

    def write_figures(self, figures: Sequence[FigureLogged]) -> None:
        """Figures: PNG as images; others are copied beside the events, with a text that says where."""
        events: list[bytes] = []
        notes: list[_Note] = []
        for figure in figures:
            if figure.file.media_type == "image/png":
                picture = self._content(figure)
                events.append(
                    self._make.image(
                        figure.time_ns, figure.step, figure.name, picture, *_png_size(picture, figure.name)
                    )
                )
            else:
                events.append(self._pointer(figure, notes))
        self._append(events, figures, notes)

    def write_tables(self, tables: Sequence[TableLogged]) -> None:
        """Tables: their first rows as a text."""
        events: list[bytes] = []
        notes: list[_Note] = []
        for table in tables:
            try:
                rows = msgspec.json.decode(self._content(table), type=_StoredTable).data
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RecordRejected(f"table {table.name!r} cannot be read: {error}") from error
            events.append(self._rows(table, table.name, table.columns, rows, notes))
        self._append(events, tables, notes)

    def write_histograms(self, histograms: Sequence[HistogramLogged]) -> None:
        """Histograms, with their own edges."""
        events = []
        for record in histograms:
            if len(record.edges) != len(record.counts) + 1:
                raise RecordRejected(f"histogram {record.name!r} must have one more edge than counts")
            _refuse_not_finite("histogram", record.name, [*record.edges, *record.counts])
            events.append(self._make.histogram(record.time_ns, record.step, record.name, record.edges, record.counts))
        self._append(events, histograms)

    def write_confusion_matrices(self, matrices: Sequence[ConfusionMatrixLogged]) -> None:
        """Confusion matrices: a picture, and the numbers as a text."""
        from trackhub.backends.tensorboard.pictures import confusion_matrix_png, drawn_label

        events: list[bytes] = []
        notes: list[_Note] = []
        for record in matrices:
            labels, matrix = record.labels, record.matrix
            if not labels or [len(row) for row in matrix] != [len(labels)] * len(labels):
                raise RecordRejected(f"confusion matrix {record.name!r} must be square, with a label for each class")
            _refuse_not_finite("confusion matrix", record.name, [value for row in matrix for value in row])
            picture = confusion_matrix_png(record.name, labels, matrix)
            if any(drawn_label(label, index) != label for index, label in enumerate(labels)):
                notes.append(("shortened", record.name, f"labels the picture cannot hold are in {record.name}/table"))
            rows: list[list[PlainValue]] = [
                [label, *map(_whole, row)] for label, row in zip(labels, matrix, strict=True)
            ]
            events.append(self._make.image(record.time_ns, record.step, record.name, *picture))
            events.append(self._rows(record, f"{record.name}/table", ["actual \\ predicted", *labels], rows, notes))
        self._append(events, matrices, notes)

    def write_roc_curves(self, curves: Sequence[RocCurveLogged]) -> None:
        """ROC curves: a picture, and the numbers as a text."""
        from trackhub.backends.tensorboard.pictures import roc_curve_png

        columns = ["false positive rate", "true positive rate", "threshold"]
        events: list[bytes] = []
        notes: list[_Note] = []
        for record in curves:
            if not len(record.fpr) == len(record.tpr) == len(record.thresholds):
                raise RecordRejected(f"ROC curve {record.name!r} must have as many rates of both kinds as thresholds")
            _refuse_not_finite("ROC curve", record.name, [*record.fpr, *record.tpr])
            picture = roc_curve_png(record.name, record.fpr, record.tpr)
            rows: list[list[PlainValue]] = [
                list(row) for row in zip(record.fpr, record.tpr, record.thresholds, strict=True)
            ]
            events.append(self._make.image(record.time_ns, record.step, record.name, *picture))
            events.append(self._rows(record, f"{record.name}/table", columns, rows, notes))
        self._append(events, curves, notes)

    def _place_of_run(self, logdir: Path, parent: str, state: Mapping[str, Any]) -> Path:
        """The directory the run has, under whatever name it was begun, or else one that is called by its name."""
        run, folder = self._run, logdir / parent
        named = folder / run_directory_name(run.name, run.id)
        with unavailable_on_os_error("look for the run in", folder):
            file = Path(state.get("file", ""))
            if file.is_relative_to(logdir) and ".." not in file.relative_to(logdir).parts and file.is_file():
                return file.parent
            if named.exists() or not folder.exists():
                return named
            # A directory's name may be that of another run: the names of event files have the whole id.
            own = file_name(run.id)
            owns = rf"{re.escape(own)}|{re.escape(own[:_OWN_LENGTH])}\.[0-9a-f]+"
            event_file = re.compile(rf"events\.out\.tfevents\.[0-9]+\.(?:{owns})\.trackhub")
            found = [
                path
                for path in folder.iterdir()
                if may_be_run_directory(path.name, run.id)
                and any(event_file.fullmatch(one.name) for one in path.glob("*.trackhub"))
            ]
            return min(found, default=named)

    def _place_of_file(self, own: str, seconds: int) -> Path:
        """This directory's event file of the run: where it is, or behind those of other directories."""
        there = sorted(self._directory.glob("events.out.tfevents.*.trackhub"))
        ours = [path for path in there if path.name.split(".", 4)[-1] == f"{own}.trackhub"]
        if ours:
            return ours[-1]
        # TensorBoard reads them in the order of their names.
        latest = max((int(path.name.split(".")[3]) for path in there if path.name.split(".")[3].isdecimal()), default=0)
        return self._directory / f"events.out.tfevents.{max(seconds, latest + 1)}.{own}.trackhub"

    def _written(self) -> Iterator[tuple[int, Any]]:
        """All events of the run so far with their places, in the order in which TensorBoard reads them."""
        own, place = self._opened_file(), 0
        size_bytes = own.size_bytes
        for path in sorted(self._directory.glob("events.out.tfevents.*.trackhub")):
            for serialised in events_in(path, size_bytes if path == own.path else None):
                yield place, self._make.parsed(serialised)
                place += 1

    def _superseded_in(self, event: Any, rewind: Rewind) -> bool:
        """Whether any value of an event is superseded."""
        survivors = self._make.survivors(event, _superseded_by(rewind))
        return survivors is None or len(self._make.parsed(survivors).summary.value) < len(event.summary.value)

    def _copy_survivors(self, rewind: Rewind, first_step: int, restarts: list[tuple[int, int]]) -> None:
        """Write that TensorBoard forgets all from a step on, and again what is not superseded of that.

        Args:
            rewind: What is superseded.
            first_step: The first step that is forgotten.
            restarts: Place and step of the events that have had it forget before.
        """
        events = self._make.restarts(self._last_ns, first_step)
        for place, event in self._written():
            forgotten = any(at > place and step <= event.step for at, step in restarts)
            if event.step < first_step or forgotten or not event.summary.value:
                continue
            survivor = self._make.survivors(event, _superseded_by(rewind))
            if survivor is not None:
                events.append(survivor)
            if len(events) >= _COPIED_AT_ONCE:
                self._append(events, ())
                events = []
        self._append(events, ())

    def _open_file(self, path: Path, size_bytes: int | None) -> None:
        created_ns = self._run.created_ns
        self.disconnect()
        self._file = EventFile(path, size_bytes)
        if size_bytes is None:
            with unavailable_on_os_error("remove", self._amendment):
                self._amendment.unlink(missing_ok=True)
            self._file.append([self._make.version(created_ns)])
        elif self._ended:  # more has come after the end
            self._amended = True
            self._amend(self._params, RUNNING)

    def _opened_file(self) -> EventFile:
        assert self._file is not None, "open() comes first"
        return self._file

    def _append(self, events: list[bytes], records: Sequence[Record], notes: Sequence[_Note] = ()) -> None:
        """Append all or nothing; what depends on it (notes, times) is only changed after that."""
        self._opened_file().append(events)
        if records:
            self._last_ns = max(self._last_ns, records[-1].time_ns)
        for note in notes:
            self.notes.add(*note)

    def _amend(self, params: Mapping[str, Hyperparameter], status: int | None) -> None:
        """Write anew the file that TensorBoard reads first; one that is already looking keeps what it has read."""
        created_ns = self._run.created_ns
        events = [self._make.version(created_ns), self._make.session_start(created_ns, created_ns, params)]
        if status is not None:
            events.append(self._make.session_end(self._last_ns, status))
        replace_file(self._amendment, b"".join(map(framed, events)))

    def _content(self, record: StepValueLogged) -> bytes:
        path = self._run.path_of(record.file)
        with unavailable_on_os_error("read", path):
            try:
                return path.read_bytes()
            except FileNotFoundError as error:
                raise _missing(record.name, path) from error

    def _copy(self, record: StepValueLogged) -> Path:
        """Copy a record's file beside the events: the log directory is often kept longer than the run directory."""
        source, target = self._run.path_of(record.file), self._copy_path(record)
        if not source.is_file():
            raise _missing(record.name, source)
        copy_file(source, target)
        return target

    def _copy_path(self, record: StepValueLogged) -> Path:
        suffix = _SUFFIXES.get(record.file.media_type, Path(record.file.path).suffix)
        return self._beside(record, record.name, suffix)

    def _beside(self, record: Record, name: str, suffix: str) -> Path:
        """A file's place beside the events, the same for the same record."""
        step = getattr(record, "step", None)
        own = hashlib.blake2s(f"{record.time_ns} {name}".encode(), digest_size=4).hexdigest()
        shown = file_name(name) if step is None else f"{file_name(name)}-step{step}"
        return self._directory / "files" / f"{shown}-{own}{suffix}"

    def _pointer(self, record: FigureLogged | HtmlLogged, notes: list[_Note]) -> bytes:
        """A text that says where the file is."""
        copy = self._copy(record)
        notes.append(
            ("shown as text", record.name, f"TensorBoard cannot show {record.file.media_type}; the file is {copy}")
        )
        text = f"TensorBoard cannot show {escaped(record.file.media_type)}. The file is {escaped(str(copy))}"
        return self._make.text(record.time_ns, record.step, record.name, text)

    def _rows(
        self,
        record: TableLogged | ConfusionMatrixLogged | RocCurveLogged,
        name: str,
        columns: Sequence[str],
        rows: list[list[PlainValue]],
        notes: list[_Note],
    ) -> bytes:
        """The first rows as a text; all of them in a file beside the events if there are more."""
        shown = min(len(rows), SHOWN_TABLE_ROWS)
        text = markdown_table(columns, rows[:shown])
        while shown and len(text) > SHOWN_TEXT_BYTES:
            shown //= 2
            text = markdown_table(columns, rows[:shown])
        left_out = len(rows) - shown
        if left_out > 0:
            path = self._beside(record, name, ".json")
            if isinstance(record, TableLogged):
                path = self._copy(record)
            else:
                replace_file(path, json.dumps({"columns": columns, "data": rows}).encode())
            text += f"\n\n… {left_out} rows more are in {escaped(str(path))}"
            notes.append(("shortened", name, f"{left_out} rows are left out; the whole table is {path}"))
        return self._make.text(record.time_ns, record.step, name, text)


def _superseded_by(rewind: Rewind) -> Callable[[str, str, int], bool]:
    """Whether a value of a kind, a name and a step is superseded."""

    def is_superseded(kind: str, name: str, step: int) -> bool:
        if kind == "scalar":
            return rewind.supersedes(name, step)
        return kind != "run" and rewind.after_step is not None and step > rewind.after_step

    return is_superseded


class _StoredTable(msgspec.Struct):
    columns: list[str]
    data: list[list[Any]]


def _absolute(logdir: str | Path, working_directory: Path) -> Path:
    return working_directory.absolute() / Path(logdir).expanduser()


def _refuse_remote(logdir: str | Path) -> None:
    if _REMOTE.match(str(logdir)):
        raise SettingsError(
            f"tensorboard: logdir is {str(logdir)!r}, but events can only be written to a local or mounted path; "
            "mount the bucket, or write to a local path and copy it"
        )


def _hyperparameter(name: str, value: PlainValue, notes: list[_Note]) -> Hyperparameter:
    """A param as the HPARAMS page can hold it: it leaves cells with NaN or infinity empty."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) <= _LARGEST_EXACT_INTEGER else str(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    text = value_text(value)
    if isinstance(value, float):
        notes.append(("not finite", name, f"shown as the text {text!r} among the hyperparameters"))
    return text


def _whole(value: float) -> PlainValue:
    return int(value) if float(value).is_integer() else value


def _refuse_not_finite(kind: str, name: str, values: Sequence[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise RecordRejected(f"{kind} {name!r} has the value {value}, which cannot be drawn")


def _png_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of a PNG, from the header that always comes first."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        raise RecordRejected(f"figure {name!r} is said to be a PNG picture but is not")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def _missing(name: str, path: Path) -> RecordRejected:
    return RecordRejected(f"the file of {name!r} is gone: {path}")


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backend of this module."""
    return [TensorBoardBackend]
