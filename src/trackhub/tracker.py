"""The Tracker: what training code calls. It checks what it is given, writes it to the journal, and returns.

Apart from delivery on purpose: nothing here waits for a backend except `flush`, `finish` and `remote_id`, and nothing a
backend does can raise here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import struct
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trackhub import active, plain, settings, values
from trackhub._version import VERSION
from trackhub.blobs import BlobStore, NotStoredError, check_regular, describe
from trackhub.cursor import NoteCount
from trackhub.errors import RunFinishedError
from trackhub.host import host
from trackhub.journal import JournalReader, JournalRecord, JournalWriter, Role, writer_is_alive
from trackhub.journal.skim import last_step
from trackhub.lowering import KINDS
from trackhub.plugins import find_backend
from trackhub.ranks import Place, own_name
from trackhub.records import (
    ArtifactLogged,
    ConfusionMatrixLogged,
    Deliverable,
    EndStatus,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    ModelLogged,
    ParamsLogged,
    Record,
    RocCurveLogged,
    RunEnded,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)
from trackhub.report import DeliveryReport, delivery_report
from trackhub.room_note import RoomNote, save_room_note
from trackhub.rundir import Manifest, RunDirectory, check_run_name, new_run_id
from trackhub.waiting import POLL_SECONDS, Awaited, Mark, backends_complete, has_given_up, wait_for_deliveries

if TYPE_CHECKING:
    from trackhub.quota import Quota

_log = logging.getLogger("trackhub")
_now_ns = time.time_ns
# torch warns when C takes a tensor that requires grad for a float. Here it is only looked at, so nothing can go wrong;
# where warnings are errors, the value is converted another way.
warnings.filterwarnings("ignore", "Converting a tensor with requires_grad", UserWarning, r"trackhub\.journal")
# NumPy only warns when C takes a complex number for a float: here that would lose its imaginary part.
warnings.filterwarnings("error", "Casting complex values to real", RuntimeWarning, r"trackhub\.journal")

# What packing raises for a value that is no float yet, or for a mapping that is none.
_NOT_PACKED = (struct.error, TypeError, ValueError, OverflowError, AttributeError, RuntimeError, UserWarning)


class Tracker:
    """One run. Made by `trackhub.init` or `Tracker.child`; use it in a `with` block, or call `finish`.

    Every `log_*` call returns when the record is in the journal, safe from a SIGKILL. It raises TypeError or ValueError
    if the value cannot be logged, RunFinishedError after `finish`, and nothing else. Threads may log at the same time.
    """

    def __init__(self, chosen: settings.Settings, run: RunDirectory | None, parent: Tracker | None = None) -> None:
        self._settings = chosen
        self._run = run
        self._parent = parent
        self._children: list[Tracker] = []
        self._options: Mapping[str, Any] = {}
        self._finished = False
        self._report: DeliveryReport | None = None
        self._next_step = 0
        self._step_lock = threading.RLock()
        self._writer_lock = threading.RLock()
        self._process_id = os.getpid()
        self._role: Role = "owner"
        self._place: Place | None = None
        self._prefix = ""
        self._journal: JournalWriter | None = None
        self._blobs: BlobStore | None = None
        self._quota: Quota | None = None
        self._left_out = RoomNote()
        self._append_metrics: Callable[[Mapping[str, Any], int, int], None] = self._append_metrics_first_time
        self._earlier: active.ActiveRun | None = None
        self._end_mark: Mark | None = None

    @classmethod
    def disabled(cls, chosen: settings.Settings, parent: Tracker | None = None) -> Tracker:
        """A tracker that records nothing and costs next to nothing.

        Args:
            chosen: The settings in force.
            parent: For a child run, the run it belongs to.
        """
        tracker = cls(chosen, None, parent)
        # Instance attributes win over methods: what is left of a call is one look-up and an empty function.
        for method in _RECORDING:
            setattr(tracker, method, _record_nothing)
        tracker._earlier = active.enter(tracker)
        return tracker

    @classmethod
    def start(
        cls,
        run: RunDirectory,
        chosen: settings.Settings,
        options: Mapping[str, Any],
        parent: Tracker | None = None,
        place: Place | None = None,
        resume_step: int | None = None,
    ) -> Tracker:
        """A tracker that records into a run directory, and has it delivered if the mode is online.

        Args:
            run: The run directory, with its manifest.
            chosen: The settings in force.
            options: Backend -> its validated options.
            parent: For a child run, the run it belongs to.
            place: Where several ranks record into the run, this process's place among them.
            resume_step: The step of the checkpoint that is gone on from.

        Raises:
            OSError: The journal cannot be written.
        """
        reader = JournalReader(run.journal)
        holders = reader.holders()
        reader.close()
        tracker = cls(chosen, run, parent)
        tracker._options = options
        tracker._place, tracker._prefix = place, place.prefix if place else ""
        tracker._role = "rank" if tracker._prefix else "owner"
        past = holders.ranks.get(place.rank, 0) if place and place.rank else holders.owner
        if past and past not in holders.ends and writer_is_alive(run.journal, past):
            # A living process holds this run, or its part of it: write into it, and leave its end to that process.
            tracker._role = "worker"
            if resume_step is not None:
                _log.warning(
                    "trackhub: run %s: a process that still runs holds it, so nothing is superseded after step %d; "
                    "end that process first",
                    run.manifest.id,
                    resume_step,
                )
        elif resume_step is not None:
            tracker._next_step = resume_step + 1
        elif past:
            tracker._next_step = last_step(run.journal, only=past if place and place.rank else None) + 1
        tracker._attach(resume_step)
        if chosen.mode == "online":
            for name, option in options.items():
                if tracker._role == "owner":
                    _have_delivered(run, name, option)
                else:
                    _stand_by(run, name, option, place)
        # Last: who ends the run waits for the deliveries, so they have to have been begun.
        tracker._earlier = active.enter(tracker)
        return tracker

    # --- who the run is

    @property
    def id(self) -> str:
        """The run's id, the name of its directory."""
        return self._run.manifest.id if self._run else self._settings.run_id or "disabled"

    @property
    def name(self) -> str:
        """The name people see."""
        return self._run.manifest.name if self._run else self._settings.name or self.id

    @property
    def project(self) -> str:
        """The project the run belongs to."""
        return self._run.manifest.project if self._run else self._settings.project

    @property
    def directory(self) -> Path:
        """The run directory; of a disabled run, where it would be."""
        return self._run.path if self._run else Path.cwd() / self._settings.dir / self.id

    @property
    def finished(self) -> bool:
        """Whether `finish` has been called."""
        return self._finished

    @property
    def links(self) -> dict[str, str]:
        """Backend -> where a person can look at the run, for the backends that have opened it so far."""
        if self._run is None:
            return {}
        found = {name: self._run.cursor(name).link for name in self._options}
        return {name: link for name, link in found.items() if link}

    def remote_id(self, backend: str, timeout: float = 30.0) -> str:
        """The backend's own id of this run, for calls to the vendor's SDK (e.g. the MLflow run id).

        Args:
            backend: A backend of this run.
            timeout: Seconds to wait for the backend to have opened the run.

        Raises:
            ValueError: The run has no such backend.
            TimeoutError: It was not opened in time, or never will be; the message says why, if that is known.
        """
        if self._run is None or backend not in self._options:
            raise ValueError(f"run {self.id} has no backend {backend!r} (it has: {', '.join(self._options) or 'none'})")
        host().wake()
        until = time.monotonic() + timeout
        while True:
            cursor = self._run.cursor(backend)
            host().keep_alive()
            if cursor.remote_id is not None:
                return cursor.remote_id
            if time.monotonic() >= until or has_given_up(host(), self._run, backend, cursor):
                why = cursor.report.suspended or cursor.report.error or f"see {self._run.log}"
                raise TimeoutError(f"{backend} has not opened run {self.id} (waited up to {timeout:g} s): {why}")
            time.sleep(POLL_SECONDS)

    def __repr__(self) -> str:
        state = "finished" if self._finished else "running" if self._run else "disabled"
        return f"<trackhub run {self.id} ({state}) in {self.directory}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"a tracker belongs to its process and cannot be sent to another one: send its id, and there call "
            f"trackhub.init(run_id={self.id!r}, dir={str(self.directory.parent)!r})"
        )

    # --- recording

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        timestamp: float | datetime | None = None,
    ) -> None:
        """Log the metrics of one step.

        Args:
            metrics: Name -> a number: Python, NumPy, torch or JAX scalar; NaN and infinities are kept, None is NaN.
                Stored as float64.
            step: One step for the whole mapping; when left out it is one more than the last one, also of the earlier
                process where this one goes on with a run.
            timestamp: Seconds since the Unix epoch, or a datetime; default: now.
        """
        if step is None:
            with self._step_lock:
                number = self._next_step
                self._next_step = number + 1
        else:
            number = step if type(step) is int else plain.step_of(step)
        try:
            self._append_metrics(metrics, number, _now_ns() if timestamp is None else plain.time_ns_of(timestamp))
        except _NOT_PACKED:
            self._log_metrics_slowly(metrics, number, timestamp, automatic=step is None)
        if step is not None:
            # Only now: what is refused does not count.
            self._next_step = number + 1

    def _log_metrics_slowly(self, metrics: Any, step: int, timestamp: Any, *, automatic: bool) -> None:
        """Convert what C could not take for a float, or say why nobody can."""
        try:
            self._check_running()
            if not isinstance(metrics, Mapping):
                raise TypeError(f"log_metrics takes a mapping of names to numbers, not {type(metrics).__name__}")
            step = plain.step_of(step)
            time_ns = _now_ns() if timestamp is None else plain.time_ns_of(timestamp)
            converted = {plain.metric_name(name): plain.plain_scalar(value, name) for name, value in metrics.items()}
            self._append_metrics(converted, step, time_ns)
        except Exception:
            if automatic:
                self._take_back(step)
            raise

    def _take_back(self, step: int) -> None:
        """Count a step anew that was refused, unless a later one was taken."""
        with self._step_lock:
            if self._next_step == step + 1:
                self._next_step = step

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params: what the run was started with.

        Args:
            params: Nested mappings become names joined with `/`. Values that are no plain data are stored as text.
        """
        self._append(ParamsLogged(_now_ns(), plain.plain_params(params)))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags: words to find the run by. A later value replaces an earlier one."""
        self._append(TagsSet(_now_ns(), plain.plain_tags(tags)))

    def log_artifact(self, path: str | os.PathLike[str], name: str | None = None, copy: bool = True) -> None:
        """Log a file or a directory as it is now; of the directory that holds the runs, what is not a run.

        Args:
            path: What to log.
            name: Its path among the run's artifacts, with `/`; default: its own name.
            copy: False saves the copy of what will not change any more: it is then read when it is delivered, and
                reported if it is gone by then.

        Raises:
            FileNotFoundError: There is nothing at that path.
            ValueError: The name cannot be a path among artifacts, or the path is empty, or no file and no directory.
        """
        source = _source(path)
        name = plain.artifact_name(source.resolve().name if name is None else name)
        if not copy:
            check_regular(source)
            self._append(ArtifactLogged(_now_ns(), name, describe(source, str(source.absolute()))))
        elif (file := self._snapshot(ArtifactLogged, name, source)) is not None:
            self._append_file(ArtifactLogged(_now_ns(), name, file))

    def log_model(self, path: str | os.PathLike[str], name: str = "model", register_as: str | None = None) -> None:
        """Log a model that was saved to a file or a directory.

        Args:
            path: The saved model.
            name: Its path among the run's artifacts.
            register_as: The name to register it under, where a backend has a model registry.

        Raises:
            FileNotFoundError: There is nothing at that path.
            ValueError: The name cannot be a path among artifacts, or the path is empty, or no file and no directory.
        """
        name = plain.artifact_name(name)
        if register_as is not None:
            plain.check_name(register_as, "registered model")
        file = self._snapshot(ModelLogged, name, _source(path))
        if file is not None:
            self._append_file(ModelLogged(_now_ns(), name, file, register_as))

    def log_text(self, name: str, value: str, step: int | None = None) -> None:
        """Log a text."""
        plain.check_name(name, "text")
        step = _optional_step(step)
        file = self._store(TextLogged, name, _utf8(value, name), ".txt", "text/plain")
        if file is not None:
            self._append_file(TextLogged(_now_ns(), name, file, step))

    def log_html(self, name: str, value: str, step: int | None = None) -> None:
        """Log an HTML page or fragment."""
        plain.check_name(name, "html")
        step = _optional_step(step)
        file = self._store(HtmlLogged, name, _utf8(value, name), ".html", "text/html")
        if file is not None:
            self._append_file(HtmlLogged(_now_ns(), name, file, step))

    def log_image(self, name: str, value: Any, step: int | None = None) -> None:
        """Log a picture.

        Args:
            name: Its name.
            value: An array of height x width, or with 1, 3 or 4 channels last or first, of uint8 or of floats from 0 to
                1; a Pillow image; PNG or JPEG bytes; the path of a PNG or JPEG file.
            step: The step it belongs to, if it belongs to one.
        """
        plain.check_name(name, "image")
        step = _optional_step(step)
        image = values.encode_image(value, name)
        file = self._store(ImageLogged, name, image.data, image.suffix, image.media_type)
        if file is not None:
            self._append_file(ImageLogged(_now_ns(), name, file, image.width, image.height, step))

    def log_figure(self, name: str, value: Any, step: int | None = None) -> None:
        """Log a figure: matplotlib's, rendered as a picture now, or plotly's, as a page that needs no network."""
        plain.check_name(name, "figure")
        step = _optional_step(step)
        figure = values.encode_figure(value, name)
        file = self._store(FigureLogged, name, figure.data, figure.suffix, figure.media_type)
        if file is not None:
            self._append_file(FigureLogged(_now_ns(), name, file, step))

    def log_table(self, name: str, value: Any, step: int | None = None, columns: Sequence[str] | None = None) -> None:
        """Log a table.

        Args:
            name: Its name.
            value: A pandas or polars data frame; a list of mappings; a mapping of columns; a list of rows or a
                2-D array, with `columns`.
            step: The step it belongs to, if it belongs to one.
            columns: Names of the columns, for rows that do not bring them.
        """
        plain.check_name(name, "table")
        step = _optional_step(step)
        table = values.encode_table(value, name, columns)
        file = self._store(TableLogged, name, table.data, table.suffix, table.media_type)
        if file is not None:
            self._append_file(TableLogged(_now_ns(), name, file, list(table.columns), table.row_count, step))

    def log_histogram(self, name: str, value: Any, step: int | None = None, bins: int = 64) -> None:
        """Log how values are distributed.

        Args:
            name: Its name.
            value: An array or sequence of samples of any shape, or the pair `(counts, edges)` of `numpy.histogram`.
            step: The step it belongs to, if it belongs to one.
            bins: Number of bins that samples are counted in.
        """
        plain.check_name(name, "histogram")
        step = _optional_step(step)
        histogram = values.histogram_of(value, name, bins)
        self._append(HistogramLogged(_now_ns(), name, histogram.edges, histogram.counts, step, histogram.left_out))

    def log_confusion_matrix(self, name: str, labels: Sequence[Any], matrix: Any, step: int | None = None) -> None:
        """Log a confusion matrix.

        Args:
            name: Its name.
            labels: The classes, in the order of the matrix.
            matrix: `matrix[actual][predicted]`, as scikit-learn's `confusion_matrix` gives it.
            step: The step it belongs to, if it belongs to one.
        """
        plain.check_name(name, "confusion matrix")
        step = _optional_step(step)
        names, rows = values.confusion_matrix_of(labels, matrix, name)
        self._append(ConfusionMatrixLogged(_now_ns(), name, names, rows, step))

    def log_roc_curve(self, name: str, fpr: Any, tpr: Any, thresholds: Any, step: int | None = None) -> None:
        """Log a ROC curve, as scikit-learn's `roc_curve` gives it.

        Args:
            name: Its name.
            fpr: False positive rates, 0 to 1.
            tpr: True positive rates, 0 to 1, of the same length.
            thresholds: The thresholds they belong to; the first may be infinite.
            step: The step it belongs to, if it belongs to one.
        """
        plain.check_name(name, "ROC curve")
        step = _optional_step(step)
        curve = values.roc_curve_of(fpr, tpr, thresholds, name)
        self._append(RocCurveLogged(_now_ns(), name, *curve, step))

    # --- runs

    def child(
        self, name: str, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
    ) -> Tracker:
        """Start a run inside this one, for a trial or a fold.

        It goes to the same backends, nested where they can nest. Its `finish()` does not wait for the delivery; this
        run's does.

        Args:
            name: The name people see.
            params: Logged at once.
            tags: Set at once.

        Raises:
            TypeError: The name is no text, or the params or tags are no mappings.
            ValueError: The name, the params or the tags cannot be stored. Then there is no child run.
        """
        self._check_running()
        name = self._prefix + check_run_name(name)
        chosen = self._settings.model_copy(update={"name": name, "run_id": None})
        if self._run is None:
            child = Tracker.disabled(chosen, self)
            self._children.append(child)
            return child
        # Refused before there is a run, or it would be left behind, and be in force.
        flat, texts = plain.plain_params(params or {}), plain.plain_tags(tags or {})
        own = self._run.manifest
        manifest = Manifest(
            id=new_run_id(),
            name=name,
            project=own.project,
            created_ns=_now_ns(),
            backends=own.backends,
            parent_id=own.id,
            working_directory=own.working_directory,
            version=VERSION,
            in_process=own.in_process,
        )
        child = Tracker.start(RunDirectory.create(self._run.path.parent, manifest), chosen, self._options, self)
        self._children.append(child)
        child.log_first(flat, texts)
        return child

    def log_first(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Log what the run starts with; where that cannot be recorded, the run ends and is not in force."""
        try:
            if params:
                self.log_params(params)
            if tags:
                self.set_tags(tags)
        except BaseException as error:
            self.end_before_waiting(error)
            raise

    def flush(self, timeout: float | None = None) -> DeliveryReport:
        """Wait until all that this process has logged to this run and its children so far has been delivered.

        Args:
            timeout: Seconds to wait; default: as for `finish`.

        Returns:
            The delivery report; true if all of that has arrived.
        """
        if self._run is None:
            return _nothing_to_report(self.id)
        arrived = [] if self._finished else self._wait(self._settings.finish_timeout if timeout is None else timeout)
        return self._read_report(self._run, arrived)

    def finish(self, status: EndStatus = "finished", timeout: float | None = None) -> DeliveryReport:
        """End the run and wait for the deliveries; happens by itself at the end of a `with` block or of the process.

        Args:
            status: "finished", "failed" or "killed". Once the process has been told to end by SIGTERM, what would be
                finished is killed.
            timeout: Seconds to wait at most; default: the setting `finish_timeout`. What has not arrived by then is
                still being delivered in the background, and the message says which command completes it.

        Returns:
            The delivery report; true if everything has arrived.

        Raises:
            TypeError: The timeout is no number.
            ValueError: The status is none of the three.
        """
        if timeout is not None:
            timeout = plain.real_number(timeout, "timeout")
        if status not in ("finished", "failed", "killed"):
            raise ValueError(f"status {status!r} is not one of 'finished', 'failed', 'killed'")
        error = None
        if status == "finished":
            status, error = active.end_of(None)
        return self._finish(status, error, timeout)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._finish(*active.end_of(error), None)

    def end(self, status: EndStatus, error: str | None) -> None:
        """Finish because the process ends; a child run leaves the waiting to its parent."""
        self._finish(status, error, None)

    def end_before_waiting(self, error: BaseException | None = None) -> None:
        """Finish without waiting: what the run takes place in may not be kept from its own end.

        The waiting, and the telling of what has not arrived, is left to the end of the process.

        Args:
            error: What ended the run; None if it ended well.
        """
        if not self._finished:
            self.end_records(*active.end_of(error))
            host().wake()
            active.wait_at_exit(self)

    def _finish(self, status: EndStatus, error: str | None, timeout: float | None) -> DeliveryReport:
        if self._report is not None and self._report.complete:
            return self._report
        # Before the end is written: what SIGTERM finds half done here has to be waited for like the rest.
        with active.settling(self):
            self.end_records(status, error)
            if self._run is None or self._process_id != os.getpid():
                return _nothing_to_report(self.id)
            self._report = self._read_report(self._run, self._wait(self._patience_seconds(timeout)))
        if self._settings.mode == "online" and self._parent is None and self._report.remarkable:
            _log.warning("trackhub: run %s (%s)\n%s", self.name, self.id, self._report)
        return self._report

    def end_records(self, status: EndStatus, error: str | None) -> None:
        """Write the end of this run and its children into their journals."""
        for child in self._children:
            child.end_records(status, error)
        with self._writer_lock:
            if self._finished:
                return
            if self._children and self._run is not None:
                # What is delivered in this process can show the children, all of them, when this run ends.
                host().wake()
            self._write_end(status, error)
            self._finished = True
            active.leave(self, self._earlier)
            self._close_journal()

    def _patience_seconds(self, timeout: float | None) -> float:
        """How long to wait for the deliveries at the end of the run."""
        if timeout is not None:
            return timeout
        return self._settings.finish_timeout if self._parent is None else 0.0

    def _wait(self, timeout: float) -> list[Awaited]:
        if self._settings.mode != "online":
            return []
        return wait_for_deliveries(
            host(), self._awaited(), timeout, termination_timeout_seconds=self._settings.termination_timeout
        )

    def _awaited(self) -> Iterator[Awaited]:
        if self._run is not None:
            mark = self._end_mark if self._finished else self._writing()[0].position
            for name in self._options:
                marks = None if mark is None else (mark,)
                yield Awaited(self._run, name, marks, end=self._finished and self._role != "worker")
        for child in self._children:
            yield from child._awaited()

    def _read_report(self, run: RunDirectory, arrived: Collection[Awaited]) -> DeliveryReport:
        children = [
            child._report if child._report and child._report.complete else child._read_report(child._run, arrived)
            for child in self._children
            if child._run is not None
        ]
        root = run.path.parent
        elsewhere = "" if root == _default_root() else f" --dir {shlex.quote(str(root))}"
        here = backends_complete(run, arrived)
        return delivery_report(run, f"trackhub sync {self.id}{elsewhere}", self._options, children, here)

    # --- the journal of this process

    def _attach(self, resume_step: int | None = None) -> tuple[JournalWriter, BlobStore]:
        """Open a writer of this process's own, and have it synced off this thread."""
        run = self._run
        assert run is not None
        prefix, place = self._prefix, self._place

        def check_names(names: tuple[str, ...]) -> None:
            for name in names:
                plain.metric_name(name.removeprefix(prefix) if prefix and isinstance(name, str) else name)

        journal = JournalWriter(
            run.journal,
            self._role,
            _now_ns(),
            VERSION,
            check_names,
            rank=place.rank if place else 0,
            rank_count=place.count if place else 1,
            # Ranks start in any order: each supersedes what it logs anew, which is under its own names.
            resume_step=None if place else resume_step,
        )
        blobs = BlobStore(run.blobs, f"{journal.writer:04d}")

        def append_own(metrics: Mapping[str, Any], step: int, time_ns: int) -> None:
            journal.append_metrics({prefix + name: value for name, value in metrics.items()}, step, time_ns)

        # First: another thread that sees the journal goes on to this.
        self._append_metrics = append_own if prefix else journal.append_metrics
        self._journal, self._blobs = journal, blobs

        quota = None
        if (limit := self._settings.max_bytes) is not None:
            # Imported late: most runs have no limit.
            from trackhub.quota import quota_of

            quota = quota_of(run.path.parent, int(limit), os.getpid())
        self._quota = quota

        # Each by itself: where one fails, the others go on. Files first, for the journal names them.
        watched = self._watched(journal)
        host().watch(watched[0], blobs.sync)
        host().watch(watched[1], journal.sync)
        if quota is not None:
            host().watch(watched[2], lambda: quota.look(run, f"{journal.writer:04d}"))
        return journal, blobs

    def _watched(self, journal: JournalWriter) -> tuple[str, str, str]:
        """What the host's thread does for this run, by the names it has in messages: files, journal, limit."""
        name = f"{self.id} ({journal.writer})"
        return f"{name}: its files", f"{name}: its journal", f"{name}: what is said of TRACKHUB_MAX_BYTES"

    def _writing(self) -> tuple[JournalWriter, BlobStore]:
        self._check_running()
        journal, blobs = self._journal, self._blobs
        if journal is not None and blobs is not None:
            return journal, blobs
        with self._writer_lock:
            if self._journal is not None and self._blobs is not None:
                return self._journal, self._blobs
            return self._attach()

    def _append(self, record: JournalRecord) -> None:
        self._writing()[0].append(own_name(record, self._prefix) if self._prefix else record)

    def _store(self, kind: type[Record], name: str, content: bytes, suffix: str, media_type: str) -> StoredFile | None:
        """Store a rich value; None if the run directory does not take it."""
        blobs = self._writing()[1]
        if not self._has_room(kind, name, len(content)):
            return None
        try:
            return blobs.store(content, suffix, media_type)
        except NotStoredError as error:
            self._note_not_stored(kind, name, error)
            return None

    def _snapshot(self, kind: type[Record], name: str, source: Path) -> StoredFile | None:
        """Copy a file or directory; None if the run directory does not take it."""
        blobs = self._writing()[1]
        if self._quota is not None and not self._has_room(kind, name, blobs.measure(source)):
            return None
        try:
            return blobs.snapshot(source)
        except NotStoredError as error:
            self._note_not_stored(kind, name, error)
            return None

    def _note_not_stored(self, kind: type[Record], name: str, error: NotStoredError) -> None:
        """Count and tell what is lost: the run must go on, and its metrics wait in memory until the disk takes them."""
        counts = self._left_out.disk_full if error.disk_full else self._left_out.disk_failed
        count = counts.setdefault(KINDS[kind], NoteCount())
        count.add(name, str(error))
        self._save_left_out()
        if count.count == 1:
            _log.error(
                "trackhub: run %s: %r is not recorded: %s (%s). More %s that the disk does not take are counted, and "
                "shown by finish() and trackhub status; params and metrics wait in memory until it takes them.",
                self.id,
                name,
                error,
                "" if self._run is None else self._run.path,
                KINDS[kind].replace("_", " "),
            )

    def _save_left_out(self) -> None:
        note = self._left_out
        if self._run is not None and (note.disk_full or note.disk_failed) and self._journal is not None:
            save_room_note(self._run.path, f"{self._journal.writer:04d}-disk", note)

    def _has_room(self, kind: type[Record], name: str, size_bytes: int) -> bool:
        quota, run = self._quota, self._run
        return quota is None or run is None or quota.admits(run, self._writer_name(), KINDS[kind], name, size_bytes)

    def _append_file(self, record: Deliverable) -> None:
        """Append a record that has a snapshot."""
        self._append(record)
        journal = self._writing()[0]
        if self._quota is not None and self._run is not None:
            path = self._run.path / record.file.path  # type: ignore[union-attr]
            self._quota.took(self._run, self._writer_name(), KINDS[type(record)], path, journal.position)

    def _writer_name(self) -> str:
        return f"{self._writing()[0].writer:04d}"

    def _append_metrics_first_time(self, metrics: Mapping[str, Any], step: int, time_ns: int) -> None:
        self._writing()
        self._append_metrics(metrics, step, time_ns)

    def _refuse_metrics(self, *_: object) -> None:
        self._check_running()

    def _check_running(self) -> None:
        if self._finished:
            raise RunFinishedError(f"run {self.id} has finished; log before finish(), or start another run")

    def _write_end(self, status: EndStatus, error: str | None) -> None:
        """Have the journal end here; before the run counts as finished, for a signal may come between and end it."""
        if self._journal is None:
            return
        if self._role != "worker":
            with contextlib.suppress(RunFinishedError):
                self._journal.append(RunEnded(_now_ns(), status, error))
        self._end_mark = self._journal.position

    def _close_journal(self) -> None:
        self._append_metrics = self._refuse_metrics
        journal, blobs = self._journal, self._blobs
        if journal is None or blobs is None:
            return
        for key in self._watched(journal):
            host().unwatch(key)
        # Again: there may have been no room for this either.
        self._save_left_out()
        # Each, whatever comes of the other: the journal's lock must not be held by a run that has ended.
        try:
            blobs.sync()
        except OSError as problem:
            _log.error("trackhub: run %s: a power failure may still take some of its files: %s", self.id, problem)
        finally:
            try:
                journal.close()
            except OSError as problem:
                _log.error("trackhub: run %s: the end of the journal could not be written: %s", self.id, problem)
        if journal.lost_bytes:
            _log.error(
                "trackhub: run %s: the disk took nothing for so long that %d bytes of records had to be given up",
                self.id,
                journal.lost_bytes,
            )

    def continue_after_fork(self) -> None:
        """In a forked child: leave the parent's files alone, and get a writer of one's own at the first record."""
        if self._finished or self._run is None:
            return
        if self._journal is not None:
            self._journal.abandon_after_fork()
        self._journal = self._blobs = None
        self._role = "worker"
        self._children = []
        self._left_out = RoomNote()
        self._step_lock = threading.RLock()
        self._writer_lock = threading.RLock()
        self._append_metrics = self._append_metrics_first_time


def _source(path: str | os.PathLike[str]) -> Path:
    """The path of what is to be logged; an empty one would be the whole working directory."""
    if not os.fspath(path):
        raise ValueError("the path of what is to be logged is empty (an unset variable?); '.' is the working directory")
    return Path(path)


_RECORDING = (
    "log_metrics",
    "log_params",
    "set_tags",
    "log_artifact",
    "log_model",
    "log_text",
    "log_html",
    "log_image",
    "log_figure",
    "log_table",
    "log_histogram",
    "log_confusion_matrix",
    "log_roc_curve",
)


def _record_nothing(*_: object, **__: object) -> None:
    """What the recording methods of a disabled tracker are."""


def _have_delivered(run: RunDirectory, name: str, options: Any) -> None:
    kind = find_backend(name)
    if not kind.needs_training_process:
        # What an earlier attempt has left may be in vain, with options that this one has mended.
        host().deliver(run, {name: settings.full_options(options)}, takes_over=True)
        return
    # Imported late: most runs are delivered elsewhere.
    from trackhub.inline import InlineDelivery

    host().deliver_here(run, name, lambda: InlineDelivery(run, name, kind, options))


def _stand_by(run: RunDirectory, name: str, options: Any, place: Place | None) -> None:
    # What lives in a training process lives in that of the owner.
    if not find_backend(name).needs_training_process:
        turn = 0 if place is None else place.rank if place.local_rank is None else place.local_rank
        host().stand_by(run, name, settings.full_options(options), turn)


def _nothing_to_report(run_id: str) -> DeliveryReport:
    return DeliveryReport(run_id, "", ())


def _default_root() -> Path | None:
    try:
        return Path.cwd() / ".trackhub"
    except FileNotFoundError:
        # The working directory has been deleted.
        return None


def _optional_step(step: Any) -> int | None:
    return None if step is None else plain.step_of(step)


def _utf8(value: object, name: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{name!r} takes a str, not {type(value).__name__}")
    return value.encode("utf-8", errors="surrogatepass")
