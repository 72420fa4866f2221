"""What an MLflow run holds, read page by page, and what of it should be there.

Apart from the backend because it only ever reads.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from trackhub.backends.mlflow.names import to_artifact_path, to_mlflow_key
from trackhub.errors import StateLost
from trackhub.readback import Item, KindOfName, Point, ReadBack
from trackhub.records import Deliverable, RunStatus, files_below

_STATUSES: dict[str, RunStatus] = {
    "RUNNING": "running",
    "SCHEDULED": "running",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "killed",
}
_POINTS_A_PAGE = 25_000
_OUR_FOLDER = "trackhub/"
_THUMBNAIL = "+compressed.webp"
_MILLISECOND_NS = 1_000_000


class MlflowReadBack(ReadBack):
    """One MLflow run.

    Args:
        client: An `MlflowClient`.
        where: The server or database, without credentials.
        run_id: The MLflow run.
        translated: Makes the context manager that translates errors, from what is being done.
        places_of: Where the files of a record are put.
        as_tag: The name and text of a tag.
        as_param: The name and text of a param; None for one that is left to others.
        is_shared: Whether somebody else made the run.
    """

    first_param_stands = True
    equal_points_collapse = True

    def __init__(
        self,
        client: Any,
        where: str,
        run_id: str,
        translated: Callable[[str], AbstractContextManager[None]],
        places_of: Callable[[Deliverable], list[tuple[str, Path]] | None],
        as_tag: Callable[[str, str], tuple[str, str]],
        as_param: Callable[[str, Any], tuple[str, str] | None],
        *,
        is_shared: bool,
    ) -> None:
        from mlflow.exceptions import MlflowException

        self._client = client
        self._run_id = run_id
        self._translated = translated
        self._places_of = places_of
        self._as_tag = as_tag
        self._as_param = as_param
        self.is_shared = is_shared
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise StateLost(f"there is no MLflow run {run_id} at {where}") from None
        if found.info.lifecycle_stage == "deleted":
            raise StateLost(f"MLflow run {run_id} at {where} is deleted (`mlflow runs restore --run-id {run_id}`)")
        self.status = None if is_shared else _STATUSES.get(found.info.status)
        self.params = dict(found.data.params)
        self.tags = dict(found.data.tags)
        self._metrics = list(found.data.metrics)

    def metric_names(self) -> Iterable[str]:
        """The metrics of the run."""
        return self._metrics

    def points(self, names: Collection[str]) -> Iterator[tuple[str, Point]]:
        """The history of one metric after the other, in pages."""
        store = self._client._tracking_client.store
        for name in names:
            token = None
            while True:
                with self._translated("read a metric"):
                    page = store.get_metric_history(self._run_id, name, max_results=_POINTS_A_PAGE, page_token=token)
                for one in page:
                    yield name, Point(one.step, one.value, one.timestamp * _MILLISECOND_NS)
                if not page.token or page.token == token:
                    break
                token = page.token

    def items(self) -> Iterator[Item]:
        """The artifacts, with the sizes that the artifact store tells."""
        folders: list[str | None] = [None]
        while folders:
            folder = folders.pop()
            with self._translated("list artifacts"):
                entries = self._client.list_artifacts(self._run_id, folder)
            for entry in entries:
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    yield Item(entry.path, entry.file_size)

    def metric_name(self, name: str) -> str:
        """The metric's key in MLflow."""
        return to_mlflow_key(name)

    def metric_points(self, name: str, logged: Iterable[Point]) -> Iterator[Point | str]:
        """MLflow's times are milliseconds, and its infinities the largest floats."""
        largest = sys.float_info.max
        for step, value, time_ns in logged:
            stored = math.copysign(largest, value) if math.isinf(value) else value
            yield Point(step, stored, None if time_ns is None else time_ns // _MILLISECOND_NS * _MILLISECOND_NS)

    def param(self, name: str, value: Any) -> tuple[str, Any] | None:
        """A param as a text, which may be shortened."""
        return self._as_param(name, value)

    def tag(self, name: str, text: str) -> tuple[str, str] | None:
        """A tag, which may be shortened."""
        return self._as_tag(name, text)

    def items_for(self, record: Deliverable) -> list[Item] | None:
        """The artifacts of a record; none if its local files are gone, whose names would be needed."""
        found: list[Item] = []
        for path, source in self._places_of(record) or ():
            if source.is_file():
                found.append(Item(path, source.stat().st_size))
            elif source.is_dir():
                for file in files_below(source):
                    inside = to_artifact_path(file.relative_to(source).as_posix())
                    found.append(Item(f"{path}/{inside}", file.stat().st_size))
            else:
                return None
        return found

    def adds(self, kind: KindOfName, name: str) -> bool:
        """MLflow's own tags and ours, thumbnails, and where whole values are kept that MLflow holds shortened."""
        if kind == "tag":
            return name.startswith(("mlflow.", "trackhub."))
        if kind == "item":
            return name.startswith(_OUR_FOLDER) or name.endswith(_THUMBNAIL)
        return kind == "metric" and name.startswith("system/")
