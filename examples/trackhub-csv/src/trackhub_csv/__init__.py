"""Writes each run as a directory of CSV and JSON files: a whole trackhub plugin."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from trackhub.records import ArtifactLogged, EndStatus, MetricsLogged, ParamsLogged, TagsSet

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
        """Find the run's directory, or make it, and cut off what was written and not remembered."""
        self._run = run
        self._folder = Path(self.options.directory) / run.id
        # The same run may be written from several machines, each into a file of its own.
        path = self._path = self._folder / (f"metrics-{run.origin}.csv" if run.origin else "metrics.csv")
        with self._disk():
            self._folder.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._file = path.open("r+b")
            found_bytes = path.stat().st_size
        self._size_bytes = state.get("size_bytes", 0)
        if found_bytes < self._size_bytes:
            raise StateLost(f"{path} is shorter than it was")
        if self._size_bytes == 0:
            self._append([["step", "name", "value", "time_ns"]])
        self._write_status("running")
        return OpenedRun(remote_id=run.id, link=str(self._folder), state=self.checkpoint())

    def checkpoint(self) -> Mapping[str, Any]:
        """How much of the file counts: after a crash, the same records come again, and go to the same place."""
        return {"size_bytes": self._size_bytes}

    def close(self, status: EndStatus) -> None:
        """Write how the run ended."""
        self._write_status(status)

    def rewind(self, rewind: Rewind) -> bool:
        """Leave out of the file what a later attempt logs anew.

        If this is cut short the file is shorter than remembered, and all is given again.
        """
        new = self._path.with_suffix(".new")
        with self._disk(), self._path.open(newline="", encoding="utf-8") as lines:
            with new.open("w", newline="", encoding="utf-8") as kept:
                reader, writer = csv.reader(lines), csv.writer(kept)
                writer.writerow(next(reader))
                writer.writerows(line for line in reader if not rewind.supersedes(line[1], int(line[0])))
            new.replace(self._path)
            self.disconnect()
            self._file = self._path.open("r+b")
            self._size_bytes = self._path.stat().st_size
        return list(self._folder.glob("metrics*.csv")) == [self._path]

    def disconnect(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        """Metrics: a line for each value."""
        self._append(
            [[point.step, name, value, point.time_ns] for point in points for name, value in point.values.items()]
        )

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        """Params: all of them in one file, later ones over earlier ones."""
        self._update("params.json", [record.params for record in params])

    def write_tags(self, tags: Sequence[TagsSet]) -> None:
        """Tags: all of them in one file, later ones over earlier ones."""
        self._update("tags.json", [record.tags for record in tags])

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
        new = self._folder / "artifact.new"
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

    def _update(self, name: str, updates: list[Mapping[str, Any]]) -> None:
        path = self._folder / name
        with self._disk():
            values: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
            for update in updates:
                values |= {key: self._strict(key, value) for key, value in update.items()}
            _replace(path, values)

    def _strict(self, key: str, value: Any) -> Any:
        """A value as strict JSON has it: without NaN and infinities."""
        if isinstance(value, float) and not math.isfinite(value):
            self.notes.add("not finite", key, f"written as the text {str(value)!r}")
            return str(value)
        if isinstance(value, list):
            return [self._strict(key, one) for one in value]
        if isinstance(value, dict):
            return {name: self._strict(key, one) for name, one in value.items()}
        return value

    def _write_status(self, status: str) -> None:
        run = self._run
        facts = {"name": run.name, "project": run.project, "parent": run.parent_remote_id, "status": status}
        with self._disk():
            _replace(self._folder / "run.json", facts)

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


def _replace(path: Path, values: Mapping[str, Any]) -> None:
    """Write a small file in one step, so that no reader sees half of it."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(values, indent=2, allow_nan=False), encoding="utf-8")
    new.replace(path)


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backends of this package."""
    return [CsvBackend]
