"""Runs in Neptune: on a self-hosted server, or in directories that `neptune sync` can send later.

One vendor a folder: everything Neptune's client (1.x, or another of the same API) calls differently, limits, or forgets
to say is known here, and in what stands beside it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from trackhub.backend import Backend, BackendOptions, OpenedRun, Rewind, RunInfo, hookimpl
from trackhub.backends.neptune import offline
from trackhub.backends.neptune.appending import Appending, Picture
from trackhub.backends.neptune.connection import Connection
from trackhub.backends.neptune.fields import FLOATS, STRINGS
from trackhub.backends.neptune.names import to_custom_run_id
from trackhub.backends.neptune.options import NeptuneOptions, check, probe
from trackhub.backends.neptune.placing import extension_of, is_in_series, is_large, stepped
from trackhub.backends.neptune.reading import NeptuneReadBack, connect_to_read
from trackhub.backends.neptune.rewinding import SeriesCutter
from trackhub.backends.neptune.session import Session
from trackhub.backends.neptune.uploads import Uploads
from trackhub.backends.neptune.values import ATOM_TYPES, MAX_POINT_LENGTH, MAX_TEXT_LENGTH, shortened, to_atom
from trackhub.errors import CannotReadBack, RecordRejected, StateLost
from trackhub.readback import ReadBack
from trackhub.records import (
    ArtifactLogged,
    EndStatus,
    FigureLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ParamsLogged,
    StepValueLogged,
    TableLogged,
    TagsSet,
    TextLogged,
    files_below,
)


class NeptuneBackend(Backend):
    """Writes a run into Neptune: params and tags as fields, metrics, texts and images as series, the rest as files."""

    name = "neptune"
    Options: ClassVar[type[BackendOptions]] = NeptuneOptions
    distributions: ClassVar[tuple[str, ...]] = ("neptune", "minfx")

    def __init__(self, options: NeptuneOptions) -> None:
        super().__init__(options)
        self._run: RunInfo
        self._session: Session | None = None
        self._uploads: Uploads
        self._series: Appending
        self._images_changed = False
        self._reading: Connection | None = None

    @classmethod
    def check(cls, options: NeptuneOptions) -> None:
        """Refuse a client that is not installed, and a server without project or token."""
        check(options)

    @classmethod
    def probe(cls, options: NeptuneOptions) -> str | None:
        """Ask whether something answers at the address in the token.

        Raises:
            BackendUnavailable: Nothing does.
        """
        return probe(options)

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Create the run or find it again; an offline directory is begun anew."""
        self._run = run
        before = str(state.get("directory", ""))
        if self.options.mode == "offline":
            if before and before in offline.written(run.directory):
                raise StateLost("an offline directory cannot be gone on with, and is written anew")
            offline.remove(run.directory, "offline")
        images = {path: (int(count), float(step)) for path, (count, step) in state.get("images", {}).items()}
        session = self._session = Session(self.options, run, self.notes, str(state.get("run_id", "")))
        self._uploads = Uploads(session, self.options.client, self.notes)
        self._series = Appending(session, self.options.client, self.notes, images)
        session.ensure()
        if not session.offline:
            return OpenedRun(remote_id=session.remote_id, link=session.link, state=self._state())
        if before:
            self.notes.add("continued", run.name, f"{before} was sent or removed; what came later is a run of its own")
        return self._opened_offline()

    def checkpoint(self) -> Mapping[str, Any] | None:
        """How many images each series has: Neptune cannot be asked for their steps."""
        changed, self._images_changed = self._images_changed, False
        return self._state() if changed and self.options.mode == "online" else None

    def close(self, status: EndStatus) -> None:
        """Write down how the run ended."""

        def end(run: Any) -> None:
            run["trackhub/status"] = status
            run["sys/failed"] = status != "finished"

        self._open_session.send("end the run", end)

    def rewind(self, rewind: Rewind) -> bool:
        """Cut series short: deleted, and what is to stay sent again. Series of images are left as they are."""
        session = self._open_session
        session.ensure()
        cutter = SeriesCutter(session, self._run.directory, rewind.attempt)
        for path, last_kept in list(cutter.half_done()):
            self._series.cut(STRINGS if path.startswith("text/") else FLOATS, {path: last_kept}, cutter)
        if rewind.after_step is not None:
            for prefix, kind in (("metrics", FLOATS), ("text", STRINGS)):
                limits = dict.fromkeys(session.fields.of_type(prefix, kind), rewind.after_step)
                self._series.cut(kind, limits, cutter)
        limits = {}
        for name, step in rewind.metrics.items():
            place = session.fields.known_place("metrics", name, FLOATS)
            if place is not None:
                limits[place] = step
        self._series.cut(FLOATS, limits, cutter)
        for path, (_, last_step) in self._series.images.items():
            if rewind.after_step is not None and last_step > rewind.after_step:
                detail = f"images after step {rewind.after_step} stay; those of the same steps are not added to them"
                self.notes.add("superseded and still shown", path.partition("/")[2][:200], detail)
        return True

    def disconnect(self) -> None:
        """Stop the client, or leave it behind if it cannot be stopped."""
        session, self._session = self._session, None
        if session is not None:
            session.disconnect()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.stop()

    def read_back(self, run: RunInfo, state: Mapping[str, Any]) -> ReadBack:
        """Look at the run with a read-only client; files are not downloaded.

        Raises:
            CannotReadBack: It is an offline directory.
            StateLost: The run is gone.
        """
        if self.options.mode == "offline":
            raise CannotReadBack("an offline directory of Neptune's is a queue, which only `neptune sync` reads")
        self._reading = connect_to_read(self.options, run, str(state.get("run_id", "")))
        return NeptuneReadBack(self._reading, run)

    # What is a number or a text

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Assign params, below `parameters/`; the last value of a param stands."""
        self._assign("parameters", {key: value for record in params for key, value in record.params.items()})

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Assign tags, below `tags/`."""
        self._assign("tags", {key: value for record in tags for key, value in record.tags.items()})

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Append to series below `metrics/`, with steps and the journal's times."""
        session = self._open_session
        session.ensure()
        series: dict[str, list[tuple[int, int, Any]]] = {}
        places: dict[str, list[tuple[int, int, Any]] | None] = {}
        left_out: list[tuple[str, str, str]] = []
        for point in points:
            step, time_ms = point.step, point.time_ns // 1_000_000
            for key, value in point.values.items():
                if key in places:
                    place = places[key]
                else:
                    path = session.place("metrics", key, FLOATS)
                    place = places[key] = None if path is None else series.setdefault(path, [])
                if place is None:
                    continue
                if math.isfinite(value):
                    place.append((step, time_ms, value))
                else:
                    left_out.append(("not finite", key, "left out: Neptune's series have no NaN and no infinities"))
        self._series.append("send metrics", FLOATS, series, left_out)

    def write_text(self, texts: Sequence[TextLogged]) -> None:
        """Texts with a step are a series of them below `text/`; a text without is a file there."""
        session = self._open_session
        series: dict[str, list[tuple[int, int, Any]]] = {}
        for record in texts:
            if record.step is None:
                self._upload("text", record, "txt")
                continue
            path = session.place("text", record.name, STRINGS)
            if path is None:
                continue
            text = self._content(record).decode(errors="replace")
            if len(text) > MAX_POINT_LENGTH:
                whole = self._uploads.keep_whole("text", stepped(record), text)
                text = shortened(text, MAX_POINT_LENGTH, whole)
            series.setdefault(path, []).append((record.step, record.time_ns // 1_000_000, text))
        self._series.append("send texts", STRINGS, series, [])

    # What is a file

    def write_artifacts(self, artifacts: Sequence[ArtifactLogged]) -> None:
        """Upload files below `artifacts/`; each file of a directory is a field."""
        for record in artifacts:
            source = self._run.path_of(record.file)
            if not record.file.is_directory:
                self._uploads.put("artifacts", record.name, source)
                continue
            for file in files_below(source):
                self._uploads.put("artifacts", f"{record.name}/{file.relative_to(source).as_posix()}", file)

    def write_html(self, pages: Sequence[HtmlLogged]) -> None:
        """Upload pages below `html/`."""
        for record in pages:
            self._upload("html", record, "html")

    def write_figures(self, figures: Sequence[FigureLogged]) -> None:
        """PNG figures with a step are image series below `figures/`; others are files there."""
        self._show("figures", figures)

    def write_images(self, images: Sequence[ImageLogged]) -> None:
        """Images with a step are image series below `images/`; others are files there."""
        self._show("images", images)

    def write_tables(self, tables: Sequence[TableLogged]) -> None:
        """Upload tables below `tables/` as CSV, which Neptune shows as tables."""
        for record in tables:
            self._uploads.put_content("tables", stepped(record), _to_csv(self._content(record)), "csv")

    # The rest

    @property
    def _open_session(self) -> Session:
        assert self._session is not None
        return self._session

    def _opened_offline(self) -> OpenedRun:
        run, session = self._run, self._open_session
        (directory,) = offline.written(run.directory)
        session.remote_id = to_custom_run_id(run.id)
        project = self.options.project
        sidecar = {
            "run_id": run.id,
            "custom_run_id": session.remote_id,
            "name": run.name,
            "project": project,
            "parent": run.parent_remote_id,
            "directory": directory,
        }
        offline.write_sidecar(run.directory, sidecar)
        path = offline.data_directory(run.directory) / "offline" / directory
        send = f"neptune sync --path {run.directory} --project {project or 'WORKSPACE/PROJECT'} --offline-only"
        return OpenedRun(session.remote_id, f"{path} (send with: {send})", {"directory": directory})

    def _state(self) -> dict[str, Any]:
        images = {path: list(known) for path, known in self._series.images.items()}
        return {"run_id": self._open_session.remote_id, "images": images}

    def _assign(self, prefix: str, values: Mapping[str, Any]) -> None:
        """Assign single values; a field whose type no longer fits is made anew."""
        session = self._open_session
        session.ensure()
        assigned: dict[str, Any] = {}
        notes: list[tuple[str, str, str]] = []
        for key, given in values.items():
            path = session.place(prefix, key)
            if path is None:
                continue
            value, reason, detail = to_atom(given)
            if reason:
                notes.append((reason, key[:200], detail))
            if isinstance(value, str) and len(value) > MAX_TEXT_LENGTH:
                value = shortened(value, MAX_TEXT_LENGTH, self._uploads.keep_whole(prefix, key, value))
            assigned[path] = value
        types = {path: session.fields.type_of(path) or "" for path in assigned}

        def assign(run: Any) -> None:
            for path, value in assigned.items():
                wanted = ATOM_TYPES[type(value)]
                if types[path] == "Float" and wanted == "Integer":
                    value, wanted = float(value), "Float"
                elif types[path] not in ("", wanted):
                    run.pop(path)
                run[path] = value
                session.fields.add(path, wanted)

        if assigned:
            session.send(f"send {prefix}", assign)
        for note in notes:
            self.notes.add(*note)

    def _show(self, prefix: str, records: Sequence[ImageLogged | FigureLogged]) -> None:
        pictures = []
        for record in records:
            source = self._run.path_of(record.file)
            if record.step is None or not is_in_series(record):
                self._upload(prefix, record, extension_of(record))
                if is_large(record) and record.step is not None:
                    self.notes.add("stored as a file", record.name, "Neptune's image series take 32 MB an image")
                continue
            if not source.is_file():
                raise RecordRejected(f"{source} is gone")
            pictures.append(Picture(record.name, record.step, record.time_ns // 1_000_000, source))
        if self._series.append_images(prefix, pictures):
            self._images_changed = True

    def _upload(self, prefix: str, record: StepValueLogged, extension: str) -> None:
        self._uploads.put(prefix, stepped(record), self._run.path_of(record.file), extension)

    def _content(self, record: StepValueLogged) -> bytes:
        source = self._run.path_of(record.file)
        try:
            return source.read_bytes()
        except OSError as error:
            raise RecordRejected(f"{source} cannot be read: {error.strerror}") from error


def _to_csv(table: bytes) -> bytes:
    """The CSV of a table in trackhub's JSON; what is no number or text is JSON in its cell."""
    try:
        content = json.loads(table)
        rows = [content["columns"], *content["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordRejected(f"no table: {error}") from error
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([json.dumps(cell) if isinstance(cell, list | dict | bool) else cell for cell in row])
    return text.getvalue().encode()


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backend of this module."""
    return [NeptuneBackend]
