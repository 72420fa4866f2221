"""What a run at a Neptune server holds, read page by page with a client that cannot write, and what should be there.

Apart from the backend because it only ever reads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any

from trackhub.backend import RunInfo
from trackhub.backends.neptune import offline
from trackhub.backends.neptune.client import allow_plain_http, image_count, load_client
from trackhub.backends.neptune.connection import Connection
from trackhub.backends.neptune.errors import secrets_of
from trackhub.backends.neptune.fields import FILE, FLOATS, IMAGES, STRINGS, Fields
from trackhub.backends.neptune.options import NeptuneOptions, address_of
from trackhub.backends.neptune.placing import is_in_series, stepped
from trackhub.backends.neptune.session import structure_of
from trackhub.backends.neptune.values import MAX_TEXT_LENGTH, shortened, to_atom
from trackhub.errors import StateLost
from trackhub.readback import Item, KindOfName, Point, ReadBack
from trackhub.records import (
    ArtifactLogged,
    Deliverable,
    FigureLogged,
    HtmlLogged,
    ImageLogged,
    RunStatus,
    TableLogged,
    TextLogged,
    files_below,
)

_POINTS_A_PAGE = 1000
"""As the client itself asks for them."""
_OURS = ("parameters", "tags", "metrics")
_NOT_OURS = ("sys/", "trackhub/", "source_code/", "monitoring/")
_MILLISECOND_NS = 1_000_000
_TOO_MANY = "too many fields"


def connect_to_read(options: NeptuneOptions, run: RunInfo, remote_id: str) -> Connection:
    """Open a run so that nothing can be written to it.

    Raises:
        BackendUnavailable: It could not be opened.
        StateLost: It is not there.
    """
    if not remote_id:
        raise StateLost("no run was created at the Neptune server")
    token = options.api_token.get_secret_value().strip() if options.api_token is not None else None
    if (address_of(options) or "").startswith("http://"):
        allow_plain_http()
    data_directory = offline.data_directory(run.directory)
    data_directory.mkdir(mode=0o700, exist_ok=True)
    client = load_client(options.client, options.timeout_seconds)
    arguments = {"project": options.project, "api_token": token, "with_id": remote_id}
    return Connection(
        client,
        options.client,
        "read-only",
        run.directory,
        data_directory,
        options.timeout_seconds,
        secrets_of(token),
        arguments,
    )


class NeptuneReadBack(ReadBack):
    """One run at a server.

    Args:
        connection: To the run.
        run: The run.
    """

    def __init__(self, connection: Connection, run: RunInfo) -> None:
        self._connection = connection
        self._run = run
        self._types = connection.ask("read the run", structure_of)
        self._fields = Fields(self._types)
        self._last_step: dict[str, float] = {}
        self._images: dict[str, int] = {}
        self.params = self._atoms("parameters")
        self.tags = self._atoms("tags")
        self.status = self._status()

    def metric_names(self) -> Iterable[str]:
        """The number series below `metrics/`."""
        return [path for path, kind in self._types.items() if path.startswith("metrics/") and kind == FLOATS]

    def points(self, names: Collection[str]) -> Iterator[tuple[str, Point]]:
        """One series after the other, in pages."""
        for name in names:
            for one in self._series(name):
                yield name, Point(int(one.step), one.value, int(one.timestampMillis) * _MILLISECOND_NS)

    def items(self) -> Iterator[Item]:
        """Files with their sizes, and the points of text and image series."""
        for path, kind in self._types.items():
            if path.startswith(_NOT_OURS) or (path.partition("/")[0] in _OURS and kind != FILE):
                continue
            if kind == FILE:
                yield Item(path, self._connection.ask("read a file's size", partial(_size, path=path)))
            elif kind == STRINGS:
                for one in self._series(path):
                    yield Item(_text_name(path, one.step))
            elif kind == IMAGES:
                for index in range(self._connection.ask("count images", partial(image_count, path=path))):
                    yield Item(_image_name(path, index))
            else:
                yield Item(path)

    def metric_name(self, name: str) -> str:
        """The series of a metric."""
        return self._fields.place("metrics", name, FLOATS) or f"metrics/{name}"

    def metric_points(self, name: str, logged: Iterable[Point]) -> Iterator[Point | str]:
        """Neptune's series have finite values, steps that only grow, and times in milliseconds that never go back."""
        has_place = self._fields.place("metrics", name, FLOATS) is not None
        last_step, last_ms = -math.inf, 0
        for step, value, time_ns in logged:
            if not has_place:
                yield _TOO_MANY
            elif not math.isfinite(value):
                yield "not finite"
            elif float(step) <= last_step:
                yield "step not increasing"
            else:
                last_step, last_ms = float(step), max((time_ns or 0) // _MILLISECOND_NS, last_ms)
                yield Point(int(last_step), value, last_ms * _MILLISECOND_NS)

    def param(self, name: str, value: Any) -> tuple[str, Any] | None:
        """The field of a param, and the single value it can hold."""
        return self._atom("parameters", name, to_atom(value).value)

    def tag(self, name: str, text: str) -> tuple[str, str] | None:
        """The field of a tag."""
        return self._atom("tags", name, text)

    def items_for(self, record: Deliverable) -> list[Item] | None:
        """The fields of a record; none if its local files are gone, whose names would be needed."""
        match record:
            case ArtifactLogged(name=name, file=file) if not file.is_directory:
                return self._file("artifacts", name, file.size_bytes)
            case ArtifactLogged(name=name, file=file):
                source = self._run.path_of(file)
                if not source.is_dir():
                    return None
                return [
                    item
                    for one in files_below(source)
                    for item in self._file(
                        "artifacts", f"{name}/{one.relative_to(source).as_posix()}", one.stat().st_size
                    )
                ]
            case TextLogged(name=name, step=int(step)):
                return self._in_text_series(name, step)
            case TextLogged():
                return self._file("text", record.name, record.file.size_bytes)
            case HtmlLogged():
                return self._file("html", stepped(record), record.file.size_bytes)
            case TableLogged():
                return self._file("tables", stepped(record), None)
            case ImageLogged() | FigureLogged():
                prefix = "images" if isinstance(record, ImageLogged) else "figures"
                if not is_in_series(record):
                    return self._file(prefix, stepped(record), record.file.size_bytes)
                return self._in_image_series(prefix, record.name, record.step or 0)
        return []

    def adds(self, kind: KindOfName, name: str) -> bool:
        """What Neptune and we keep of the run itself."""
        return name.startswith(_NOT_OURS)

    def _status(self) -> RunStatus | None:
        text = self._atoms("trackhub").get("status")
        for known in ("running", "finished", "failed", "killed"):
            if text == known:
                return known
        return None

    def _atoms(self, namespace: str) -> dict[str, Any]:
        """Name -> value of the single values below a namespace."""
        if not any(path.startswith(f"{namespace}/") for path in self._types):
            return {}
        found: dict[str, Any] = {}

        def walk(node: dict[str, Any], above: str) -> None:
            for name, one in node.items():
                if isinstance(one, dict):
                    walk(one, f"{above}{name}/")
                else:
                    found[f"{above}{name}"] = one

        walk(self._connection.ask(f"read {namespace}", lambda run: run[namespace].fetch()), "")
        return found

    def _atom(self, prefix: str, name: str, value: Any) -> tuple[str, Any] | None:
        path = self._fields.place(prefix, name)
        if path is None:
            return None
        if isinstance(value, str) and len(value) > MAX_TEXT_LENGTH:
            whole = self._fields.place("trackhub/long_values", f"{prefix}/{name}", FILE) or "the run directory"
            value = shortened(value, MAX_TEXT_LENGTH, whole)
        return path.removeprefix(f"{prefix}/"), value

    def _file(self, prefix: str, name: str, size_bytes: int | None) -> list[Item]:
        path = self._fields.place(prefix, name, FILE)
        return [] if path is None else [Item(path, size_bytes)]

    def _in_text_series(self, name: str, step: int) -> list[Item]:
        path = self._fields.place("text", name, STRINGS)
        if path is None or not self._grows(path, step):
            return []
        return [Item(_text_name(path, step))]

    def _in_image_series(self, prefix: str, name: str, step: int) -> list[Item]:
        path = self._fields.place(prefix, name, IMAGES)
        if path is None or not self._grows(path, step):
            return []
        index = self._images.get(path, 0)
        self._images[path] = index + 1
        return [Item(_image_name(path, index))]

    def _grows(self, path: str, step: int) -> bool:
        if float(step) <= self._last_step.get(path, -math.inf):
            return False
        self._last_step[path] = float(step)
        return True

    def _series(self, path: str) -> Iterator[Any]:
        offset = 0
        while True:
            page = self._connection.ask(f"read {path}", partial(_page, path=path, offset=offset))
            yield from page.values
            offset += len(page.values)
            if not page.values or offset >= page.totalItemCount:
                return


def _page(run: Any, path: str, offset: int) -> Any:
    return run.get_attribute(path)._fetch_values_from_backend(offset, _POINTS_A_PAGE)


def _size(run: Any, path: str) -> int:
    attribute = run.get_attribute(path)
    found = attribute._backend.get_file_attribute(attribute._container_id, attribute._container_type, attribute._path)
    return int(found.size)


def _text_name(path: str, step: float) -> str:
    return f"{path} at step {int(step)}"


def _image_name(path: str, index: int) -> str:
    return f"{path}, image {index + 1}"
