"""Weights & Biases: each run as one of wandb's, written by its own SDK and read back from the file that it makes.

Apart from the hook because this is what there is to test; the SDK is imported when a run is opened.
"""

from __future__ import annotations

import contextlib
import html
import json
import math
import os
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from trackhub import Backend, BackendUnavailable, OpenedRun, RecordRejected, RunInfo
from trackhub.records import (
    ArtifactLogged,
    EndStatus,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ParamsLogged,
    StepValueLogged,
    StoredFile,
    TableLogged,
    TagsSet,
    TextLogged,
)
from trackhub_wandb.names import OURS, to_metric, to_param, to_project
from trackhub_wandb.options import WandbOptions
from trackhub_wandb.past import STEP, TIME, Past, Row, row_of
from trackhub_wandb.service import Service
from trackhub_wandb.transactions import TransactionFile

EXIT_CODES: Mapping[EndStatus, int] = {"finished": 0, "failed": 1, "killed": 137}

_DELIVERED = f"{OURS}/delivered"
_FLUSH_SECONDS = 0.02
_MAX_BINS = 512
_MAX_ROWS = 10_000
_MAX_LABEL_LENGTH = 64
_BAD_PICTURE_ERRORS = (OSError, KeyError, ValueError, SyntaxError, AssertionError, EOFError, struct.error)
"""What Pillow's readers let out where a picture is slightly broken."""


class WandbBackend(Backend):
    """Params as the config, metrics and media as the history, files as files, the end as an exit code."""

    name = "wandb"
    Options = WandbOptions

    _service: Service | None = None
    _run: Any = None

    @classmethod
    def resolve(cls, options: WandbOptions, working_directory: Path) -> WandbOptions:
        """Make the directory absolute: the delivery process works elsewhere."""
        return options.model_copy(update={"directory": working_directory / options.directory})

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Begin a file of this run; earlier ones are read, to know what was written and not remembered."""
        self._info = run
        self._state = dict(state)
        self._connect()
        link = self._run.url if self.options.mode == "online" else self._run.settings.sync_dir
        return OpenedRun(remote_id=run.id, link=link, state=self._state)

    def checkpoint(self) -> Mapping[str, Any]:
        """How many rows there are, and up to where the run's files have been accounted for."""
        return self._state

    def close(self, status: EndStatus) -> None:
        """Finish the run with an exit code, as its own process would have."""
        run, service = self._connected()

        def finish() -> None:
            run.finish(exit_code=EXIT_CODES[status])
            self._wait_for_exit()

        self._within(service, finish)
        self._run = None
        self._let_go()

    def disconnect(self) -> None:
        """Leave the run as it is: without an exit code, so that it is not taken for one that has ended."""
        run, service = self._run, self._service
        if run is not None and service is not None and service.runs:
            with contextlib.suppress(BackendUnavailable):
                service.within(self.options.timeout_seconds, lambda: self._leave_unfinished(run))
        self._run = None
        self._let_go()

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Metrics: a row of the history for each call."""

        def write() -> None:
            for one in points:
                self._log(one.time_ns, one.step, one.values)

        self._write(write)

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Params: the config, later ones over earlier ones."""
        config: dict[str, Any] = {}
        for record in params:
            for key, value in record.params.items():
                config[self._renamed(key, to_param(key))] = self._json(key, value)
        self._write(lambda: self._run.config.update(config, allow_val_change=True))

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Tags: in the config, for W&B's tags have no values; and those that are short as W&B's tags, too."""

        def write() -> None:
            for record in tags:
                self._past.tags |= record.tags
            labels = {key: f"{key}:{value}" for key, value in self._past.tags.items()}
            self._run.tags = tuple(label for label in labels.values() if len(label) <= _MAX_LABEL_LENGTH)
            self._describe()
            for key in {key for record in tags for key in record.tags}:
                if len(labels[key]) > _MAX_LABEL_LENGTH:
                    self.notes.add("too long for a label", key, f"only in the config, under {OURS!r}")

        self._write(write)

    def write_artifacts(self, artifacts: Sequence[ArtifactLogged]) -> None:
        """Files and directories: files of the run, below `artifacts`."""

        def write() -> None:
            for one in artifacts:
                self._store(one.name, one.file)

        self._write(write)

    def write_text(self, texts: Sequence[TextLogged]) -> None:
        """Texts: as preformatted HTML, for W&B has no text."""

        def page(file: Path) -> Any:
            return self._html(f"<pre>{html.escape(file.read_text(encoding='utf-8'))}</pre>")

        self._show("text", texts, page)

    def write_html(self, pages: Sequence[HtmlLogged]) -> None:
        """HTML pages, as they are."""
        self._show("html", pages, lambda file: self._html(file.read_text(encoding="utf-8")))

    def write_images(self, images: Sequence[ImageLogged]) -> None:
        """Pictures."""
        self._show("images", images, self._image)

    def write_figures(self, figures: Sequence[FigureLogged]) -> None:
        """Figures: pictures, or HTML where they are drawn by the browser."""
        for figure in figures:
            if figure.file.media_type == "image/png":
                self._show("figures", [figure], self._image)
            else:
                self._show("figures", [figure], lambda file: self._html(file.read_text(encoding="utf-8")))

    def write_tables(self, tables: Sequence[TableLogged]) -> None:
        """Tables; of a long one the beginning, and all of it as a file."""
        for table in tables:
            if table.row_count > _MAX_ROWS:
                self.notes.add("shortened", table.name, f"to {_MAX_ROWS} rows; all of them are in the run's files")
                step = "" if table.step is None else f"-{table.step}"
                whole = ArtifactLogged(table.time_ns, f"tables/{table.name}{step}.json", table.file)
                self.write_artifacts([whole])
            self._show("tables", [table], self._table)

    def write_histograms(self, histograms: Sequence[HistogramLogged]) -> None:
        """Histograms; neighbouring bins are added up where there are too many."""

        def write() -> None:
            for one in histograms:
                counts, edges = _at_most(_MAX_BINS, one.counts, one.edges)
                if len(counts) < len(one.counts):
                    self.notes.add("shortened", one.name, f"from {len(one.counts)} to {len(counts)} bins")
                self._log(
                    one.time_ns,
                    one.step,
                    {f"histograms/{one.name}": lambda c=counts, e=edges: self._wandb.Histogram(np_histogram=(c, e))},
                )

        self._write(write)

    # --- the history

    def _log(self, time_ns: int, step: int | None, values: Mapping[str, Any]) -> None:
        """Write one row, unless it is there; what has to be made for it is made then."""
        seconds, step = time_ns / 10**9, step or 0
        values = {self._renamed(name, to_metric(name)): value for name, value in values.items()}
        row = row_of(seconds, step, values)
        if self._past.knows(row):
            self._unsettled.append(row)
            return
        made = {name: value() if callable(value) else value for name, value in values.items()}
        self._unsettled.append(row)
        # Rows are numbered through all files of a run: W&B drops those whose number does not grow.
        self._run.log({**made, STEP: step, TIME: seconds}, step=self._past.rows, commit=True)
        self._past.rows += 1

    def _show(self, kind: str, records: Sequence[StepValueLogged], make: Callable[[Path], Any]) -> None:
        def write() -> None:
            for record in records:
                path = self._found(record.name, record.file)

                def made(path: Path = path, name: str = record.name) -> Any:
                    try:
                        return make(path)
                    except (ValueError, OSError) as error:
                        raise RecordRejected(f"{name!r} cannot be read: {error}") from error

                self._log(record.time_ns, record.step, {f"{kind}/{record.name}": made})

        self._write(write)

    def _html(self, content: str) -> Any:
        return self._wandb.Html(content, inject=False, data_is_not_path=True)

    def _image(self, file: Path) -> Any:
        from PIL import Image

        try:
            # wandb would leave a picture open that it cannot read.
            with Image.open(file) as picture:
                picture.load()
        except (*_BAD_PICTURE_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            why = str(error) or type(error).__name__
            raise RecordRejected(f"the picture {file.name} cannot be read: {why}") from error
        return self._wandb.Image(str(file))

    def _table(self, file: Path) -> Any:
        content = json.loads(file.read_bytes())
        return self._wandb.Table(columns=content["columns"], data=content["data"][:_MAX_ROWS], allow_mixed_types=True)

    # --- files

    def _store(self, name: str, file: StoredFile) -> None:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
            raise RecordRejected(f"{name!r} would lie outside of the run's files")
        source = self._found(name, file)
        files = Path(self._run.settings.files_dir)
        target = files.joinpath("artifacts", *parts)
        # Those of a linked folder, too, which `rglob` leaves out.
        below = [Path(folder, one) for folder, _, names in os.walk(source, followlinks=True) for one in names]
        inside = below if source.is_dir() else [source]
        try:
            for path in inside:
                copy = target / path.relative_to(source) if source.is_dir() else target
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                self._run.save(str(copy), base_path=str(files), policy="now", glob=False)
        except (OSError, ValueError) as error:
            if isinstance(error, ConnectionError):
                raise
            raise RecordRejected(f"{name!r} cannot be written: {error}") from error

    def _found(self, name: str, file: StoredFile) -> Path:
        path = self._info.path_of(file)
        if not path.exists():
            raise RecordRejected(f"the file of {name!r} is gone: {path}")
        return path

    # --- names and values

    def _renamed(self, name: str, new: str) -> str:
        if new != name:
            self.notes.add("renamed", name, f"to {new!r}, for W&B does not keep that name")
        return new

    def _json(self, key: str, value: Any) -> Any:
        """A param as JSON has it: without NaN and infinities."""
        if isinstance(value, float) and not math.isfinite(value):
            self.notes.add("not finite", key, f"written as the text {str(value)!r}")
            return str(value)
        if isinstance(value, list):
            return [self._json(key, one) for one in value]
        if isinstance(value, dict):
            return {name: self._json(key, one) for name, one in value.items()}
        return value

    # --- wandb

    def _connect(self) -> None:
        folder = self.options.directory / "wandb"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendUnavailable(f"{folder} cannot be made: {error.strerror}") from error
        self._service = Service.join(str(folder / "staging"))
        import wandb

        self._wandb = wandb
        self._past = Past(folder, self._info.id, self._state)
        self._unsettled: list[Row] = []
        self._batch = 0
        self._session = secrets.token_hex(8)
        self._within(self._service, self._begin)

    def _begin(self) -> None:
        info, options = self._info, self.options
        project = options.project or info.project
        if to_project(project) != project:
            self.notes.add("renamed", project, f"the project, to {to_project(project)!r}")
        settings = {
            "mode": options.mode,
            "root_dir": str(options.directory),
            "use_dot_wandb": False,
            "base_url": options.base_url,
            "api_key": options.api_key.get_secret_value() if options.api_key else None,
            "init_timeout": options.timeout_seconds,
            "x_service_wait": options.timeout_seconds,
            "x_transaction_log_flush_interval": _FLUSH_SECONDS,
            # Nothing of the process in which this happens belongs to the run.
            "host": "",
            "console": "off",
            "silent": True,
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
        }
        self._run = self._wandb.init(
            id=info.id,
            name=info.name,
            project=to_project(project),
            entity=options.entity,
            group=info.parent_remote_id,
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(**{key: value for key, value in settings.items() if value is not None}),
        )
        self._file = TransactionFile(Path(self._run.settings.sync_file))
        if not self._file.path.is_relative_to(options.directory):
            raise BackendUnavailable(f"{options.directory} cannot be written: wandb chose {self._file.path.parent}")
        # The step that users gave, which may go backwards.
        self._run.define_metric("*", step_metric=STEP)
        self._describe()
        self._settle()

    def _describe(self) -> None:
        facts = {"run_id": self._info.id, "parent": self._info.parent_remote_id, "tags": self._past.tags}
        self._run.config.update({OURS: facts}, allow_val_change=True)

    def _connected(self) -> tuple[Any, Service]:
        if self._run is None:
            self._connect()
        assert self._service is not None
        return self._run, self._service

    def _write(self, write: Callable[[], Any]) -> None:
        """Write a batch, and wait until it is in the file."""
        _, service = self._connected()

        def all_of_it() -> None:
            write()
            self._settle()

        self._within(service, all_of_it)

    def _within(self, service: Service, call: Callable[[], None]) -> None:
        try:
            service.within(self.options.timeout_seconds, call)
        except RecordRejected:
            # Those before it are in the file, and come again.
            self._past.forgotten.update(self._unsettled)
            self._unsettled.clear()
            raise
        except BaseException:
            # What has got into the file is found there, when it is read before the next attempt.
            self.disconnect()
            raise

    def _settle(self) -> None:
        """Wait until all that was written is in the file, and remember its place."""
        self._batch += 1
        token = f"{self._session}-{self._batch}"
        self._run.summary[_DELIVERED] = token
        self._wait(lambda content: token.encode() in content)
        self._unsettled.clear()
        self._state = {"rows": self._past.rows, "tags": dict(self._past.tags), **self._place()}

    def _place(self) -> dict[str, Any]:
        # As long as there are rows that may still come again, the next delivery has to find them, too.
        if self._past.forgotten:
            return {key: self._state[key] for key in ("folder", "offset") if key in self._state}
        return {"folder": self._file.path.parent.name, "offset": self._file.offset}

    def _wait_for_exit(self) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        # The file is written to its end when wandb has been told that nothing else comes.
        self._wait(lambda content: Record.FromString(content).HasField("exit"))

    def _wait(self, is_it: Callable[[bytes], bool]) -> None:
        until = time.monotonic() + self.options.timeout_seconds
        while not any(is_it(content) for content in self._file.read()):
            assert self._service is not None
            if not self._service.runs:
                raise ConnectionError("it ended while a batch was written")
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(_FLUSH_SECONDS / 4)

    def _leave_unfinished(self, run: Any) -> None:
        if self.options.mode == "online":
            # Only a run that is finished has sent all there is.
            run.finish(exit_code=0)
        else:
            run._wl.assert_service().inform_finish(run_id=self._info.id)

    def _let_go(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            service.leave()


def _at_most(limit: int, counts: list[float], edges: list[float]) -> tuple[list[float], list[float]]:
    """The histogram with neighbouring bins added up until there are no more than that."""
    width = -(-len(counts) // limit) or 1
    summed = [sum(counts[at : at + width]) for at in range(0, len(counts), width)]
    return summed, [*edges[:-1:width], edges[-1]]
