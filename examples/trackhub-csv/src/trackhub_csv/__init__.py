"""Writes each run as a directory of CSV and JSON files: a whole trackhub plugin."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import shutil
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO

from pydantic import Field

from trackhub import (
    Backend,
    BackendOptions,
    BackendUnavailable,
    OpenedRun,
    RecordRejected,
    Rewind,
    RunInfo,
    StateLost,
    hookimpl,
)
from trackhub.readback import Item, Point, ReadBack
from trackhub.records import ArtifactLogged, Deliverable, EndStatus, MetricsLogged, ParamsLogged, TagsSet

# What a disk says of one name, whenever it is asked; other errors pass: it is full, it is not mounted.
NEVER = {errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


class CsvOptions(BackendOptions):
    """Where runs are written."""

    directory: Annotated[Path, Field(description="Every run gets a directory in it.")] = Path("csv-runs")


class CsvBackend(Backend):
    """Metrics as lines of a CSV file, params and tags as JSON, files as they are."""

    name = "csv"
    Options = CsvOptions

    _file: BinaryIO | None = None

    @classmethod
    def resolve(cls, options: CsvOptions, working_directory: Path) -> CsvOptions:
        """Make the directory absolute: the delivery process works elsewhere."""
        return CsvOptions(directory=working_directory / options.directory)

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        """Find the run's directory, or make it, and look whether what was remembered is still there."""
        self._run = run
        self._folder = Path(self.options.directory) / run.id
        path = self._path = self._folder / _own("metrics.csv", run)
        with self._disk():
            self._folder.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._file = path.open("r+b")
            self._size_bytes, self._crc32 = _measure(self._file, state.get("size_bytes", 0))
        if (self._size_bytes, self._crc32) != (state.get("size_bytes", 0), state.get("crc32", 0)):
            raise StateLost(f"{path} is not what it was")
        if self._size_bytes == 0:
            self._append([["step", "name", "value", "time_ns"]])
        self._write_status("running")
        return OpenedRun(remote_id=run.id, link=str(self._folder), state=self.checkpoint())

    def checkpoint(self) -> Mapping[str, Any]:
        """How much of the file counts: after a crash, the same records come again, and go to the same place.

        And what is in it: a rewind that was not remembered leaves another file, which may be longer.
        """
        return {"size_bytes": self._size_bytes, "crc32": self._crc32}

    def close(self, status: EndStatus) -> None:
        """Write how the run ended."""
        self._write_status(status)

    def rewind(self, rewind: Rewind) -> bool:
        """Leave out of the file what a later attempt logs anew.

        If this is cut short the file is not what is remembered, and all is given again.
        """
        assert self._file is not None, "open() comes first"
        new = self._path.with_suffix(".new")
        with self._disk():
            # What was written and not remembered comes again, and its last line may be torn.
            self._file.truncate(self._size_bytes)
            with (
                self._path.open(newline="", encoding="utf-8") as lines,
                new.open("w", newline="", encoding="utf-8") as kept,
            ):
                reader, writer = csv.reader(lines), csv.writer(kept)
                writer.writerow(next(reader))
                writer.writerows(line for line in reader if not rewind.supersedes(line[1], int(line[0])))
            file = new.open("r+b")
            measured = _measure(file, new.stat().st_size)
            new.replace(self._path)
        # The disk has refused nothing: if it does, all of this is done again.
        self.disconnect()
        self._file, (self._size_bytes, self._crc32) = file, measured
        return list(self._folder.glob("metrics*.csv")) == [self._path]

    def disconnect(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read_back(self, run: RunInfo, state: Mapping[str, Any]) -> ReadBack:  # noqa: ARG002 (needs no state)
        """Look at the run's directory, for `trackhub verify`."""
        folder = Path(self.options.directory) / run.id
        if not folder.is_dir():
            raise StateLost(f"there is no directory {folder}")
        return CsvReadBack(folder, run)

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Metrics: a line for each value."""
        self._append(
            [[point.step, name, value, point.time_ns] for point in points for name, value in point.values.items()]
        )

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Params: all of them in one file, later ones over earlier ones."""
        self._update(_own("params.json", self._run), [record.params for record in params])

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Tags: all of them in one file, later ones over earlier ones."""
        self._update(_own("tags.json", self._run), [record.tags for record in tags])

    def write_artifacts(self, artifacts: Sequence[ArtifactLogged]) -> None:
        """Files and directories: copied."""
        for record in artifacts:
            parts = PurePosixPath(record.name).parts
            if not parts or parts[0] == "/" or ".." in parts:
                raise RecordRejected(f"{record.name!r} would lie outside of the run's artifacts")
            source, target = self._run.path_of(record.file), self._folder.joinpath("artifacts", *parts)
            if not source.exists():
                raise RecordRejected(f"the file of {record.name!r} is gone: {source}")
            with self._disk(record.name):
                if source.is_dir():
                    shutil.copytree(source, target, copy_function=self._copy, dirs_exist_ok=True)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._copy(source, target)

    def _copy(self, source: str | Path, target: str | Path) -> None:
        """Copy a file in one step, so that no reader sees half of it."""
        new = self._folder / _own("artifact.new", self._run)
        shutil.copyfile(source, new)
        new.replace(target)

    def _append(self, lines: list[list[Any]]) -> None:
        """Append all lines or none of them."""
        assert self._file is not None, "open() comes first"
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        content = text.getvalue().encode()
        with self._disk():
            # What an earlier attempt left half written is cut off.
            self._file.truncate(self._size_bytes)
            self._file.seek(self._size_bytes)
            self._file.write(content)
            self._file.flush()
        self._size_bytes += len(content)
        self._crc32 = zlib.crc32(content, self._crc32)

    def _update(self, name: str, updates: list[Mapping[str, Any]]) -> None:
        path = self._folder / name
        with self._disk():
            values: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
            for update in updates:
                values |= {key: self._strict(key, value) for key, value in update.items()}
            _replace(path, values, path.with_suffix(".new"))

    def _strict(self, key: str, value: Any) -> Any:
        """A value as strict JSON has it: without NaN and infinities."""
        finite = _finite(value)
        if finite != value:
            self.notes.add("not finite", key, "NaN and infinities are written as texts")
        return finite

    def _write_status(self, status: str) -> None:
        run = self._run
        facts = {"name": run.name, "project": run.project, "parent": run.parent_remote_id, "status": status}
        with self._disk():
            _replace(self._folder / "run.json", facts, self._folder / _own("run.new", run))

    @contextmanager
    def _disk(self, name: str = "") -> Iterator[None]:
        """Turn what a disk raises into the two errors that the delivery knows: never, and not now."""
        try:
            yield
        except shutil.Error as error:
            raise RecordRejected(f"{name!r} cannot be copied: {error}") from error
        except OSError as error:
            if name and error.errno in NEVER:
                raise RecordRejected(f"{name!r} cannot be written: {error.strerror}") from error
            raise BackendUnavailable(f"{self._folder} cannot be written: {error.strerror}") from error


class CsvReadBack(ReadBack):
    """One run's directory. What was logged is found as it was, so that nothing has to be said about what should be."""

    def __init__(self, folder: Path, run: RunInfo) -> None:
        self._folder = folder
        self._run = run
        self.status = json.loads((folder / "run.json").read_bytes())["status"]
        self.params = self._read(_own("params.json", run))
        self.tags = self._read(_own("tags.json", run))

    def metric_names(self) -> Iterable[str]:
        """The names in the CSV file."""
        return dict.fromkeys(name for name, _ in self._lines())

    def points(self, names: Collection[str]) -> Iterator[tuple[str, Point]]:
        """The lines of these metrics."""
        return ((name, point) for name, point in self._lines() if name in names)

    def items(self) -> Iterator[Item]:
        """The artifacts."""
        yield from _files("", self._folder / "artifacts")

    def items_for(self, record: Deliverable) -> list[Item] | None:
        """The files of an artifact; None if they are gone from the run directory."""
        if not isinstance(record, ArtifactLogged):
            return []
        source = self._run.path_of(record.file)
        return list(_files(record.name, source)) if source.exists() else None

    def param(self, name: str, value: Any) -> tuple[str, Any] | None:
        """A param as strict JSON has it."""
        return name, _finite(value)

    def _lines(self) -> Iterator[tuple[str, Point]]:
        with (self._folder / _own("metrics.csv", self._run)).open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                yield line["name"], Point(int(line["step"]), float(line["value"]), int(line["time_ns"]))

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        return dict(json.loads(path.read_bytes())) if path.exists() else {}


def _own(name: str, run: RunInfo) -> str:
    """The name of a file that no other machine writes: the same run may come from several."""
    path = PurePosixPath(name)
    return f"{path.stem}-{run.origin}{path.suffix}" if run.origin else name


def _measure(file: BinaryIO, size_bytes: int) -> tuple[int, int]:
    """How much of the first so many bytes is there, and its checksum."""
    found_bytes = crc32 = 0
    file.seek(0)
    while content := file.read(min(size_bytes - found_bytes, 1 << 20)):
        found_bytes += len(content)
        crc32 = zlib.crc32(content, crc32)
    return found_bytes, crc32


def _files(name: str, path: Path) -> Iterator[Item]:
    """A file, or all files of a directory, with what tells whether they are the same."""
    # Those of a linked folder, too, as `copytree` takes them.
    below = [Path(folder, one) for folder, _, names in os.walk(path, followlinks=True) for one in names]
    for one in [path] if path.is_file() else sorted(below):
        where = PurePosixPath(name, one.relative_to(path).as_posix()).as_posix()
        with one.open("rb") as file:
            yield Item(where, one.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _finite(value: Any) -> Any:
    """A value without NaN and infinities, which are texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return value


def _replace(path: Path, values: Mapping[str, Any], new: Path) -> None:
    """Write a small file in one step, so that no reader sees half of it."""
    new.write_text(json.dumps(values, indent=2, allow_nan=False), encoding="utf-8")
    new.replace(path)


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backends of this package."""
    return [CsvBackend]
