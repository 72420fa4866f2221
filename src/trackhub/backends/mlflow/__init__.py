"""Runs in MLflow: on a tracking server, or in a local SQLite file.

One vendor a folder: everything MLflow calls differently, limits, or draws in its own places is known here, and in what
stands beside it: `names` (its keys), `placing` (who has which path), `claiming` (which run is ours),
`uris`, `artifacts` and `errors`.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple
from urllib.parse import quote, urlsplit

from pydantic import Field

from trackhub.backend import Backend, BackendOptions, OpenedRun, Rewind, RunInfo, VendorVariable, hookimpl
from trackhub.backends.mlflow.artifacts import RunArtifacts, path_of_only_file, thumbnail
from trackhub.backends.mlflow.claiming import CLAIM_TAG, UNUSED_TAG, Claiming
from trackhub.backends.mlflow.errors import Translated
from trackhub.backends.mlflow.names import is_shortened, to_artifact_path, to_image_key, to_mlflow_key, to_model_name
from trackhub.backends.mlflow.placing import Placing
from trackhub.backends.mlflow.reading import MlflowReadBack
from trackhub.backends.mlflow.uris import (
    DATABASES,
    DEFAULT_URI,
    absolute_uri,
    driver_of,
    probe,
    scheme_of,
    sqlite_path,
    without_credentials,
)
from trackhub.errors import BackendUnavailable, MissingPackageError, RecordRejected, StateLost
from trackhub.readback import ReadBack
from trackhub.records import (
    ArtifactLogged,
    Deliverable,
    EndStatus,
    FigureLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    Record,
    StepValueLogged,
    TableLogged,
    TagsSet,
    TextLogged,
)

_RUN_TAG, _VERSION_TAG = "trackhub.run_id", "trackhub.version"
_ATTEMPT_TAG, _SUPERSEDED_TAG = "trackhub.attempt", "trackhub.superseded"
_OUR_TAGS = frozenset({_RUN_TAG, _VERSION_TAG, _ATTEMPT_TAG, _SUPERSEDED_TAG, CLAIM_TAG, UNUSED_TAG})
_TABLES_TAG, _IMAGES_TAG = "mlflow.loggedArtifacts", "mlflow.loggedImages"
_STATUSES: Mapping[EndStatus, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_FIGURE_SUFFIXES = {"image/png": ".png", "text/html": ".html", "image/svg+xml": ".svg"}
_FOLDERS: Mapping[type[Record], tuple[str, Callable[[StepValueLogged], str]]] = {
    TextLogged: ("text", lambda _: ".txt"),
    HtmlLogged: ("html", lambda _: ".html"),
    FigureLogged: ("figures", lambda record: _FIGURE_SUFFIXES.get(record.file.media_type, ".bin")),
    TableLogged: ("tables", lambda _: ".json"),
}
_MAX_METRICS, _LEAST_METRICS = 1000, 10
_MAX_PAIRS = 100
_MAX_REQUEST_BYTES = 900_000
"""MLflow takes a million; the run id and the braces need their share."""
_MAX_PARAM_LENGTH = 6000
_MAX_TAG_LENGTH = 8000
_MAX_NAME_LENGTH = 250


class MlflowOptions(BackendOptions):
    """Where and how runs are kept in MLflow."""

    tracking_uri: Annotated[str | None, VendorVariable("MLFLOW_TRACKING_URI")] = Field(
        default=None, description="Tracking server or database; default `sqlite:///mlflow.db` in the working directory."
    )
    experiment: Annotated[str | None, VendorVariable("MLFLOW_EXPERIMENT_NAME")] = Field(
        default=None, description="Experiment, by name; default: the project."
    )
    experiment_id: Annotated[str | None, VendorVariable("MLFLOW_EXPERIMENT_ID")] = Field(
        default=None, description="Experiment, by id; `experiment` is stronger."
    )
    run_id: Annotated[str | None, VendorVariable("MLFLOW_RUN_ID")] = Field(
        default=None, description="An MLflow run to write into, which someone else ends."
    )
    request_timeout_seconds: int = Field(default=30, ge=1, description="How long one request to a server may take.")


class MlflowBackend(Backend):
    """Writes a run into MLflow. Metrics, params and tags as such, everything else in MLflow's conventional places."""

    name = "mlflow"
    Options: ClassVar[type[BackendOptions]] = MlflowOptions
    distributions: ClassVar[tuple[str, ...]] = ("mlflow", "mlflow-skinny")

    def __init__(self, options: MlflowOptions) -> None:
        super().__init__(options)
        self._uri = options.tracking_uri or DEFAULT_URI
        self._where = without_credentials(self._uri)
        self._secrets: tuple[str, ...] = tuple(p for p in (urlsplit(self._uri).password,) if p)
        self._client: Any = None
        self._artifacts: RunArtifacts
        self._placing = Placing({})
        self._remembered_places = 0
        self._run: RunInfo
        self._run_id = ""
        self._experiment = ""
        self._artifact_uri = ""
        self._joined = False
        self._ended_ms: int | None = None
        self._params: dict[str, str] = {}
        self._tables: list[dict[str, str]] = []
        self._has_image_tag = False
        self._told_images: set[str] = set()
        self._keys: dict[str, tuple[str, int]] = {}
        self._metrics_a_request = _MAX_METRICS
        self._arrived: Sequence[MetricsLogged] = ()
        """Of points whose sending has failed, the first ones, which MLflow had taken by then."""

    @classmethod
    def check(cls, options: MlflowOptions) -> None:
        """Refuse a tracking URI that MLflow cannot serve, and a missing package."""
        scheme = scheme_of(options.tracking_uri or DEFAULT_URI)
        needed, extra = ["mlflow"], "mlflow-skinny"
        if scheme in DATABASES:
            needed, extra = [*needed, "sqlalchemy", "alembic"], "mlflow"
        if any(find_spec(package) is None for package in needed):
            raise MissingPackageError(
                f"the mlflow backend with a {scheme} tracking URI needs a package that is not installed: "
                f'pip install "trackhub-sdk[{extra}]"'
            )
        driver, distribution = driver_of(options.tracking_uri or DEFAULT_URI)
        if find_spec(driver) is None:
            raise MissingPackageError(
                f"the mlflow backend needs the driver {driver} for a {scheme} tracking URI: pip install {distribution}"
            )

    @classmethod
    def resolve(cls, options: MlflowOptions, working_directory: Path) -> MlflowOptions:
        """Make the path of an SQLite file absolute."""
        uri = absolute_uri(options.tracking_uri or DEFAULT_URI, working_directory)
        return options.model_copy(update={"tracking_uri": uri})

    @classmethod
    def probe(cls, options: MlflowOptions) -> str | None:
        """Ask a server for its health, or look whether a database file can be written.

        Raises:
            BackendUnavailable: It does not answer, or cannot be written.
        """
        return probe(options.tracking_uri or DEFAULT_URI)

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Connect, and create the MLflow run, find it again by its tag, or join the one that `run_id` names."""
        self._run, self._arrived = run, ()
        with self._translated("open the run", may_reject=False):
            self._connect()
            self._joined = bool(self.options.run_id) and run.parent_remote_id is None
            found = self._find(state)
            if found.info.lifecycle_stage == "deleted":
                raise BackendUnavailable(
                    f"MLflow run {found.info.run_id} at {self._where} is deleted; restore it with "
                    f"`mlflow runs restore --run-id {found.info.run_id}` to let the delivery go on"
                )
            self._run_id = found.info.run_id
            self._experiment = found.info.experiment_id
            self._artifact_uri = found.info.artifact_uri
            self._artifacts = RunArtifacts(self._client, self._run_id, self.notes, self._translated)
            self._remember(found)
            if not self._joined and found.info.status != "RUNNING":
                self._client.update_run(self._run_id, status="RUNNING")
        link = self._link(found.info.experiment_id)
        self._placing = Placing(state.get("places", {}))
        return OpenedRun(remote_id=self._run_id, link=link, state=self._state())

    def checkpoint(self) -> Mapping[str, Any] | None:
        """Which name has which path, if some have been added."""
        return self._state() if len(self._placing.owners) > self._remembered_places else None

    def _state(self) -> dict[str, Any]:
        self._remembered_places = len(self._placing.owners)
        return {"run_id": self._run_id, "places": dict(self._placing.owners)}

    def close(self, status: EndStatus) -> None:
        """End the run, unless it was joined: then whoever started it ends it."""
        if self._joined:
            return
        with self._translated("end the run", may_reject=False):
            self._delete_ghosts()
            self._client.set_terminated(self._run_id, _STATUSES[status], self._ended_ms or int(time.time() * 1000))

    def rewind(self, rewind: Rewind) -> bool:
        """Say in tags which points are superseded: MLflow can delete a run, but no point of it."""
        with self._translated("read what is superseded", may_reject=False):
            data = self._client.get_run(self._run_id).data
        began_ms = rewind.time_ns // 1_000_000
        limits = {self._key(name): rewind.last_kept_step(name) for name in rewind.metrics}
        # The last point of each metric. Where it is of the new attempt, this has been here before.
        lasts = {
            last.key: last
            for last in data._metric_objs
            if (kept := limits.get(last.key, rewind.after_step)) is not None
            and last.step > kept
            and last.timestamp < began_ms
        }
        if lasts:
            found = {key: limits.get(key, rewind.after_step) for key in lasts}
            logged_ms = max(last.timestamp for last in lasts.values())
            entries = _with_superseded(data.tags.get(_SUPERSEDED_TAG, ""), rewind, logged_ms, found)
            attempt = max(rewind.attempt, len(entries) + 1)
            self._send_pairs({}, {_SUPERSEDED_TAG: json.dumps(entries), _ATTEMPT_TAG: str(attempt)})
        return False

    def disconnect(self) -> None:
        """Close the connections to a database; those to a server are pooled by MLflow."""
        store = getattr(getattr(self._client, "_tracking_client", None), "store", None)
        self._client = None
        if (engine := getattr(store, "engine", None)) is not None:
            engine.dispose()

    def read_back(self, run: RunInfo, state: Mapping[str, Any]) -> ReadBack:
        """Look at the MLflow run, and list its artifacts; nothing is downloaded.

        Raises:
            StateLost: The run or the database is gone.
        """
        self._run = run
        database = sqlite_path(self._uri)
        if database is not None and not database.exists():
            raise StateLost(f"there is no database {database}")
        with self._translated("read the run", may_reject=False):
            self._connect()
            self._joined = bool(self.options.run_id) and run.parent_remote_id is None
            self._run_id = str(self.options.run_id if self._joined else state.get("run_id", ""))
            if not self._run_id:
                raise StateLost(f"no MLflow run was made at {self._where}")
            self._artifacts = RunArtifacts(self._client, self._run_id, self.notes, self._translated)
            self._placing = Placing(state.get("places", {}))
            return MlflowReadBack(
                self._client,
                self._where,
                self._run_id,
                self._translated,
                self._places_of,
                self._as_tag,
                self._as_param,
                is_shared=self._joined,
            )

    # What is a number or a text

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Log step metrics. The journal's time goes with them, so that a point sent twice is stored once."""
        metric, keys = self._metric, self._keys
        before = done = _common(self._arrived, points)
        batch: list[Any] = []
        size = 0
        try:
            for at in range(before, len(points)):
                point = points[at]
                time_ms = point.time_ns // 1_000_000
                for key, value in point.values.items():
                    known = keys.get(key) or self._register_key(key)
                    if len(batch) >= self._metrics_a_request or size + known[1] > _MAX_REQUEST_BYTES:
                        self._send_metrics(batch)
                        batch, size, done = [], 0, at
                    batch.append(metric(known[0], value, time_ms, point.step))
                    size += known[1]
            self._send_metrics(batch)
        except BackendUnavailable:
            self._arrived = points[:done]
            raise
        self._arrived = ()
        # Only now: what is given again, because it did not arrive, is counted once.
        for point in points:
            for key, value in point.values.items():
                if math.isinf(value):
                    self.notes.add("infinite", key, "MLflow stores infinities as the largest float")
        self._saw(points)

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Log params. The first value of a param stands, in MLflow; a later one is noted, and kept as a tag."""
        fresh: dict[str, str] = {}
        kept_apart: list[_ParamKeptApart] = []
        for record in params:
            for key, value in record.params.items():
                name, text = self._key(key), self._clean(key, str(value))
                if self._is_reserved(key):
                    # Whoever made the run logs it too, at its end; logged in another spelling, that would fail.
                    kept_apart.append(_reserved(key, text))
                    continue
                short, path = _shorten(text, _MAX_PARAM_LENGTH, "params", name)
                stored = self._params.get(name, fresh.get(name))
                if stored is None:
                    self._keep_whole(key, text, path)
                    fresh[name] = short
                elif stored != short and not _same_json(stored, value, text):
                    kept_apart.append(_changed(key, stored, text))
        kept_apart += self._send_params(fresh)
        self._send_pairs({}, {one.tag: one.text for one in kept_apart})
        self._params |= fresh
        # Only now: what is given again, because it did not arrive, is counted once.
        for one in kept_apart:
            self.notes.add(*one.note)
        self._saw(params)

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Set tags."""
        latest: dict[str, str] = {}
        for record in tags:
            latest |= record.tags
        pairs: dict[str, str] = {}
        for key, value in latest.items():
            name, text = self._key(key), self._clean(key, value)
            if key in _OUR_TAGS:
                # In other hands it would make the next `open` create a second run.
                name = f"{name}.user"
                self.notes.add("renamed", key, f"called {name!r} in MLflow")
            pairs[name], path = _shorten(text, _MAX_TAG_LENGTH, "tags", name)
            self._keep_whole(key, text, path)
        self._send_pairs({}, pairs)
        self._saw(tags)

    # What is a file

    def write_artifacts(self, artifacts: Sequence[ArtifactLogged]) -> None:
        """Upload files and directories under their names."""
        for record in artifacts:
            self._artifacts.put(self._run.path_of(record.file), self._artifacts.path_for(record.name))
        self._saw(artifacts)

    def write_models(self, models: Sequence[ModelLogged]) -> None:
        """Upload models, each into a directory of its name, and register those that are to be."""
        for record in models:
            source, folder, target = (
                self._run.path_of(record.file),
                self._artifacts.path_for(record.name),
                self._model_path(record),
            )
            if not record.file.is_directory and target != f"{folder}/{to_artifact_path(source.name)}":
                self.notes.add("renamed", folder[:200], f"its file is called {target} in MLflow")
            self._artifacts.put(source, target)
            if record.register_as is not None:
                self._register_model(record, record.register_as, folder)
        self._saw(models)

    def write_text(self, texts: Sequence[TextLogged]) -> None:
        """Upload texts to `text/`."""
        self._upload_each(texts)

    def write_html(self, pages: Sequence[HtmlLogged]) -> None:
        """Upload pages to `html/`, where the UI shows them rendered."""
        self._upload_each(pages)

    def write_figures(self, figures: Sequence[FigureLogged]) -> None:
        """Upload figures to `figures/`."""
        self._upload_each(figures)

    def write_tables(self, tables: Sequence[TableLogged]) -> None:
        """Upload tables to `tables/`, and list them in the tag by which the UI's evaluation view finds tables."""
        self._upload_each(tables)
        listed = list(self._tables)
        for record in tables:
            entry = {"path": self._step_path("tables", record, ".json"), "type": "table"}
            if entry in listed:
                continue
            if len(json.dumps([*listed, entry])) > _MAX_TAG_LENGTH:
                self.notes.add("not listed", record.name, "MLflow's list of tables is full; the artifact is there")
            else:
                listed.append(entry)
        if listed != self._tables:
            self._send_pairs({}, {_TABLES_TAG: json.dumps(listed)})
            self._tables = listed

    def write_images(self, images: Sequence[ImageLogged]) -> None:
        """Upload images under the names by which the UI's image grid finds them; without a step they are at step 0.

        The grid gives up on a run that has any other file directly in `images/`, so no image may be put there plainly.
        """
        for record in images:
            key = to_image_key(record.name)
            if key != record.name and record.name not in self._told_images:
                self._told_images.add(record.name)
                self.notes.add("renamed", record.name[:200], f"the image is called {key!r} in MLflow")
            source, target = self._run.path_of(record.file), self._image_path(record)
            small = thumbnail(source)
            self._artifacts.put(source, f"{target}.png")
            if small is None:
                self._artifacts.put(source, f"{target}+compressed.webp")
            else:
                self._artifacts.put_bytes(small, f"{target}+compressed.webp")
        if images and not self._has_image_tag:
            self._send_pairs({}, {_IMAGES_TAG: "True"})
            self._has_image_tag = True
        self._saw(images)

    # Opening

    def _connect(self) -> None:
        """Import MLflow, and make it leave retries, printing and telemetry to us."""
        import mlflow.environment_variables as settings
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        # The delivery backs off by itself; MLflow's own retries would block it for four minutes.
        settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
        settings.MLFLOW_HTTP_REQUEST_TIMEOUT.set(self.options.request_timeout_seconds)
        settings.MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT.set(self.options.request_timeout_seconds)
        settings.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)
        settings.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
        if not settings.MLFLOW_DISABLE_TELEMETRY.is_set():
            settings.MLFLOW_DISABLE_TELEMETRY.set(True)
        # News of a new database is none, and failures are ours to tell, once and without the data in question.
        logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        hidden = (settings.MLFLOW_TRACKING_TOKEN.get(), settings.MLFLOW_TRACKING_PASSWORD.get())
        self._secrets += tuple(secret for secret in hidden if secret)
        self._metric = Metric
        if (database := sqlite_path(self._uri)) is not None and not database.exists():
            database.parent.mkdir(parents=True, exist_ok=True)
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            # Whoever creates the database fixes where its default experiment keeps artifacts.
            SqlAlchemyStore(self._uri, self._artifact_root())
        self._client = MlflowClient(tracking_uri=self._uri)

    def _find(self, state: Mapping[str, Any]) -> Any:
        """The MLflow run of this run; created if there is none."""
        if self._joined:
            return self._client.get_run(self.options.run_id)
        if run_id := state.get("run_id"):
            return self._client.get_run(run_id)
        experiment_id = self._experiment_id()
        claiming = self._claiming(experiment_id)
        return claiming.find() or claiming.claim(self._create(experiment_id))

    def _claiming(self, experiment_id: str) -> Claiming:
        from mlflow.entities import ViewType

        def search(but: str | None) -> Sequence[Any]:
            wanted = f"tags.`{_RUN_TAG}` = '{self._run.id}'"
            if but is not None:
                wanted += f" AND attributes.run_id != '{but}'"
            return list(self._client.search_runs([experiment_id], wanted, ViewType.ALL))

        return Claiming(self._client, search)

    def _delete_ghosts(self) -> None:
        """Delete the run that a server made when it carried out, late, what had been given up and asked for again."""
        claiming = self._claiming(self._experiment)
        for other in claiming.others(self._run_id):
            if self._is_written_to(other):
                self.notes.add("a second run", other.info.run_id, "somebody has written to it, so it stays")
                continue
            claiming.delete(other.info.run_id)
            self.notes.add("deleted", other.info.run_id, "an empty second run, which the server had made late")

    def _is_written_to(self, run: Any) -> bool:
        """Whether a run has more than what it was made with: another machine may be at work on it."""
        data = run.data
        made_with = {_RUN_TAG, _VERSION_TAG}
        # Servers add tags of their own to every run.
        added = {tag for tag in data.tags if not tag.startswith("mlflow.") or tag in (_TABLES_TAG, _IMAGES_TAG)}
        return bool(data.metrics or data.params or added - made_with or self._client.list_artifacts(run.info.run_id))

    def _create(self, experiment_id: str) -> Any:
        tags = {_RUN_TAG: self._run.id, _VERSION_TAG: version("trackhub-sdk")}
        # A container's user often has no name.
        with suppress(ImportError, KeyError, OSError):
            tags["mlflow.user"] = getpass.getuser()
        if self._run.parent_remote_id is not None:
            tags["mlflow.parentRunId"] = self._run.parent_remote_id
        name = self._clean("name", self._run.name)[:_MAX_NAME_LENGTH]
        return self._client.create_run(experiment_id, self._run.created_ns // 1_000_000, tags, name)

    def _experiment_id(self) -> str:
        if self._run.parent_remote_id is not None:
            # A parent that was joined need not be in the experiment that the options name.
            return str(self._client.get_run(self._run.parent_remote_id).info.experiment_id)
        if self.options.experiment is None and self.options.experiment_id is not None:
            return str(self.options.experiment_id)
        name = self.options.experiment or self._run.project
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return self._create_experiment(name)
        if experiment.lifecycle_stage == "deleted":
            raise BackendUnavailable(
                f"MLflow experiment {name!r} at {self._where} is deleted; restore it with `mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}`, or choose another (TRACKHUB_MLFLOW_EXPERIMENT)"
            )
        return str(experiment.experiment_id)

    def _create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = None
        if scheme_of(self._uri) in DATABASES:
            # By default MLflow takes the working directory of whoever comes first, here the delivery's.
            location = f"{self._artifact_root()}/{quote(name, safe='')[:100]}-{_digest(name)[:8]}"
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # Another run was faster.
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _artifact_root(self) -> str:
        database = sqlite_path(self._uri)
        return ((database.parent if database else self._run.working_directory).absolute() / "mlruns").as_uri()

    def _remember(self, found: Any) -> None:
        self._ended_ms = found.info.end_time
        self._params = dict(found.data.params)
        self._has_image_tag = _IMAGES_TAG in found.data.tags
        try:
            self._tables = list(json.loads(found.data.tags.get(_TABLES_TAG, "[]")))
        except (ValueError, TypeError):
            self._tables = []

    def _link(self, experiment_id: str) -> str:
        if urlsplit(self._uri).scheme in {"http", "https"}:
            return f"{self._where.rstrip('/')}/#/experiments/{experiment_id}/runs/{self._run_id}"
        if scheme_of(self._uri) in DATABASES:
            return f"{self._where} (open with: mlflow ui --backend-store-uri {self._where}), run {self._run_id}"
        return f"{self._where}, run {self._run_id}"

    # Sending

    def _send_metrics(self, batch: list[Any]) -> None:
        """Log metrics in one request, and let the next be smaller if it failed: for each that is stored already, MLflow
        on SQLite looks through the whole run, and many of them may take longer than a request can."""
        if not batch:
            return
        try:
            with self._translated("log metrics"):
                self._client.log_batch(self._run_id, metrics=batch, synchronous=True)
        except BackendUnavailable:
            self._metrics_a_request = max(self._metrics_a_request // 2, _LEAST_METRICS)
            raise
        self._metrics_a_request = min(self._metrics_a_request * 2, _MAX_METRICS)

    def _send_params(self, fresh: dict[str, str]) -> list[_ParamKeptApart]:
        """Log params; those that someone else has set to another value are taken out of `fresh`, and given back."""
        try:
            self._send_pairs(fresh, {})
        except RecordRejected:
            # One that was set meanwhile by someone else makes MLflow refuse its neighbours too.
            with self._translated("read params"):
                self._params = dict(self._client.get_run(self._run_id).data.params)
            clashing = {name for name, text in fresh.items() if self._params.get(name, text) != text}
            if not clashing:
                raise
            changed: list[_ParamKeptApart] = []
            for name in clashing:
                text = fresh.pop(name)
                if not _same_json(self._params[name], text, text):
                    changed.append(_changed(name, self._params[name], text))
            self._send_pairs(fresh, {})
            return changed
        return []

    def _send_pairs(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log params and set tags, in as many requests as MLflow's limits ask for."""
        from mlflow.entities import Param, RunTag

        with self._translated("log params and tags"):
            for part in _chunks(params.items()):
                self._client.log_batch(self._run_id, params=[Param(*pair) for pair in part], synchronous=True)
            for part in _chunks(tags.items()):
                self._client.log_batch(self._run_id, tags=[RunTag(*pair) for pair in part], synchronous=True)

    def _register_model(self, record: ModelLogged, register_as: str, folder: str) -> None:
        """Make a version of a registered model, unless this very record has one."""
        from mlflow.exceptions import MlflowException

        name = to_model_name(register_as)
        if name != register_as:
            self.notes.add("renamed", register_as, f"the registered model is called {name!r} in MLflow")
        mark = {"trackhub.logged_ns": str(record.time_ns), _RUN_TAG: self._run.id}
        with self._translated("register a model"):
            versions = self._client.search_model_versions(f"run_id = '{self._run_id}'")
            if any(v.name == name and mark.items() <= v.tags.items() for v in versions):
                return
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self._artifact_uri.rstrip('/')}/{folder}"
            self._client.create_model_version(name, source, self._run_id, tags=mark, await_creation_for=0)

    # Uploading

    def _upload_each(self, records: Sequence[StepValueLogged]) -> None:
        for record in records:
            folder, suffix_of = _FOLDERS[type(record)]
            self._artifacts.put(self._run.path_of(record.file), self._step_path(folder, record, suffix_of(record)))
        self._saw(records)

    def _step_path(self, folder: str, record: StepValueLogged, suffix: str) -> str:
        path = self._placing.path(folder, record.name, record.step, suffix)
        if record.step is not None:
            self._artifacts.path_for(record.name)
        elif path not in (f"{folder}/{record.name}", f"{folder}/{record.name}{suffix}"):
            self._artifacts.tell_renamed(f"{folder}/{record.name}", path)
        return path

    def _model_path(self, record: ModelLogged) -> str:
        folder = to_artifact_path(record.name)
        if record.file.is_directory:
            return folder
        return path_of_only_file(folder, to_artifact_path(Path(record.file.path).name))

    def _places_of(self, record: Deliverable) -> list[tuple[str, Path]] | None:
        """Where what a record holds is put: artifact path and local file or directory of each part."""
        match record:
            case ArtifactLogged():
                paths = [to_artifact_path(record.name)]
            case ModelLogged():
                paths = [self._model_path(record)]
            case ImageLogged():
                paths = [f"{self._image_path(record)}.png"]
            case TextLogged() | HtmlLogged() | FigureLogged() | TableLogged():
                folder, suffix_of = _FOLDERS[type(record)]
                paths = [self._step_path(folder, record, suffix_of(record))]
            case _:
                return None
        return [(path, self._run.path_of(record.file)) for path in paths]

    def _as_param(self, key: str, value: Any) -> tuple[str, str] | None:
        """The name and text of a param; none of one that is left to whoever made the run."""
        if self._is_reserved(key):
            return None
        name = to_mlflow_key(key)
        return name, _shorten(_without_nul(str(value)), _MAX_PARAM_LENGTH, "params", name)[0]

    def _as_tag(self, key: str, value: str) -> tuple[str, str]:
        name = to_mlflow_key(key) + (".user" if key in _OUR_TAGS else "")
        return name, _shorten(_without_nul(value), _MAX_TAG_LENGTH, "tags", name)[0]

    def _is_reserved(self, key: str) -> bool:
        return self._joined and key in self._run.reserved_params

    def _image_path(self, record: ImageLogged) -> str:
        key, step, time_ms = to_image_key(record.name), record.step or 0, record.time_ns // 1_000_000
        # The same for the same record, so that an image sent twice is there once.
        unique = uuid.uuid5(uuid.NAMESPACE_URL, f"trackhub:{self._run.id}:{record.name}:{step}:{record.time_ns}")
        return f"images/{key.replace('/', '~')}+step+{step}+timestamp+{time_ms}+{unique}"

    def _keep_whole(self, key: str, text: str, path: str | None) -> None:
        if path is not None:
            self._artifacts.put_bytes(text.encode(), path)
            self.notes.add("shortened", key, f"{len(text)} characters; the whole value is the artifact {path}")

    # Names

    def _key(self, key: str) -> str:
        return (self._keys.get(key) or self._register_key(key))[0]

    def _register_key(self, key: str) -> tuple[str, int]:
        """Map a key once: its name in MLflow, and how many bytes one metric of that name takes in a request."""
        name = to_mlflow_key(key)
        if name != key:
            self.notes.add("renamed", key[:200], f"called {name!r} in MLflow")
        if is_shortened(name):
            path = f"trackhub/long_keys/{_digest(key)[:16]}.txt"
            self._artifacts.put_bytes(key.encode(), path)
        known = self._keys[key] = (name, len(json.dumps(name)) + 120)
        return known

    def _clean(self, key: str, text: str) -> str:
        if "\0" in text:
            self.notes.add("changed", key, "NUL characters are written as \\x00: databases refuse them")
            text = _without_nul(text)
        return text

    # The rest

    def _saw(self, records: Sequence[Any]) -> None:
        """Remember the time of the last record: a run delivered a day late ended a day ago."""
        if records:
            self._ended_ms = max(self._ended_ms or 0, records[-1].time_ns // 1_000_000)

    def _translated(self, doing: str, *, may_reject: bool = True) -> Translated:
        return Translated(
            doing,
            self._where,
            may_reject=may_reject,
            run_is_gone=self._run_is_deleted if may_reject else None,
            secrets=self._secrets,
        )

    def _run_is_deleted(self) -> bool:
        with self._translated("read the run", may_reject=False):
            return bool(self._client.get_run(self._run_id).info.lifecycle_stage == "deleted")


class _ParamKeptApart(NamedTuple):
    """A param whose value is in a tag, and what the notes say of it."""

    tag: str
    text: str
    note: tuple[str, str, str]


def _changed(key: str, stored: str, text: str) -> _ParamKeptApart:
    note = ("param changed", key, f"{stored[:80]!r} stands, {text[:80]!r} is in a tag")
    return _kept_apart("trackhub.changed_param", key, text, note)


def _reserved(key: str, text: str) -> _ParamKeptApart:
    note = ("left to others", key, "the run's maker logs that param; the value is in a tag")
    return _kept_apart("trackhub.param", key, text, note)


def _kept_apart(prefix: str, key: str, text: str, note: tuple[str, str, str]) -> _ParamKeptApart:
    tag = to_mlflow_key(f"{prefix}.{key}")
    return _ParamKeptApart(tag, _shorten(text, _MAX_TAG_LENGTH, "tags", tag)[0], note)


def _without_nul(text: str) -> str:
    return text.replace("\0", "\\x00")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _shorten(text: str, limit: int, folder: str, name: str) -> tuple[str, str | None]:
    """A text that fits, and where to keep it whole if it was cut. The hash tells a changed value from the same one."""
    if len(text) <= limit:
        return text, None
    path = f"trackhub/{folder}/{to_artifact_path(name)}.txt"
    ending = f"... [{len(text)} characters, sha256 {_digest(text)[:16]}, whole in artifact {path}]"
    return text[: limit - len(ending)] + ending, path


def _same_json(stored: str, value: Any, text: str) -> bool:
    """Whether a param that someone else wrote as JSON, as the Kubeflow plugin does, says the same."""
    try:
        loaded = json.loads(stored)
    except ValueError:
        return False
    return str(loaded) == text or json.dumps(loaded, sort_keys=True) == json.dumps(value, sort_keys=True)


def _with_superseded(tag: str, rewind: Rewind, logged_ms: int, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the tag says of the points that are superseded, with what has been found now.

    An entry is an attempt: points that were logged before it began (milliseconds since the Unix epoch, as MLflow's own)
    are superseded behind a step, `after_step` for all metrics and those in `metrics` for one each. Ranks begin an
    attempt one by one, and share an entry if what is superseded was logged before the first of them.
    """
    began_ms = rewind.time_ns // 1_000_000
    try:
        entries = [entry for entry in json.loads(tag) if isinstance(entry, dict)]
    except (ValueError, TypeError):
        entries = []
    entry: dict[str, Any] = {"attempt": rewind.attempt, "logged_before": began_ms}
    same = [one for one in entries if entry.items() <= one.items() or _covers(one, rewind, logged_ms)]
    entry = same[0] if same else entry
    if entry not in entries:
        entries.append(entry)
    if rewind.after_step is not None:
        entry["after_step"] = rewind.after_step
    else:
        before = entry.get("metrics", {})
        entry["metrics"] = {**found, **before} if isinstance(before, dict) else before
    if len(json.dumps(entries)) > _MAX_TAG_LENGTH:
        entry["metrics"] = f"more than fit here, from step {min(found.values()) + 1} on"
    return entries


def _covers(entry: Mapping[str, Any], rewind: Rewind, logged_ms: int) -> bool:
    """Whether metrics that were last logged at a time may be added to an entry of the same attempt."""
    if entry.get("attempt") != rewind.attempt or rewind.after_step is not None or "after_step" in entry:
        return False
    before_ms = entry.get("logged_before")
    return isinstance(before_ms, int) and logged_ms < before_ms <= rewind.time_ns // 1_000_000


def _common(some: Sequence[MetricsLogged], others: Sequence[MetricsLogged]) -> int:
    """How many points both begin with."""
    return next(
        (at for at, (one, other) in enumerate(zip(some, others, strict=False)) if one != other),
        min(len(some), len(others)),
    )


def _chunks(pairs: Iterable[tuple[str, str]]) -> Iterable[list[tuple[str, str]]]:
    chunk: list[tuple[str, str]] = []
    size = 0
    for key, value in pairs:
        cost = len(json.dumps(key)) + len(json.dumps(value)) + 60
        if chunk and (len(chunk) == _MAX_PAIRS or size + cost > _MAX_REQUEST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((key, value))
        size += cost
    if chunk:
        yield chunk


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backend of this module."""
    return [MlflowBackend]
