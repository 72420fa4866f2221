"""Small backends of our own for the tests of delivery: what they are given they write to a file, a JSON line a call.

In-process tests have them fail with `trackhub.testing.FlakyBackend`; delivery processes find them as a plugin (see
`install_plugins`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

import trackhub
from trackhub import Backend, BackendOptions, BackendUnavailable, OpenedRun, RunInfo
from trackhub.records import EndStatus, MetricsLogged, Record

HERE = Path(__file__).parent


class LinesOptions(BackendOptions):
    path: str = ""
    state: str = ""


class LinesBackend(Backend):
    """Shows params, metrics, tags and artifacts."""

    name = "lines"
    Options = LinesOptions

    checkpoints: ClassVar[list[Mapping[str, Any]]] = []
    """What `checkpoint` gives, one after the other."""

    def _call(self, method: str, records: Sequence[Record] = (), **more: Any) -> None:
        line = {"call": method, "records": [_plain(record) for record in records], **more}
        with Path(self.options.path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        self._call("open", run=run.id, attempt=run.attempt, parent=run.parent_remote_id, state=dict(state))
        return OpenedRun(remote_id=f"remote-{run.id}", link=f"lines:{run.id}", state={"opened": True})

    def checkpoint(self) -> Mapping[str, Any] | None:
        return self.checkpoints.pop(0) if self.checkpoints else None

    def close(self, status: EndStatus) -> None:
        self._call("close", status=status)

    def disconnect(self) -> None:
        self._call("disconnect")

    def write_params(self, params: Sequence[Any]) -> None:
        self._call("write_params", params)

    def write_metrics(self, points: Sequence[Any]) -> None:
        self._call("write_metrics", points)

    def write_tags(self, tags: Sequence[Any]) -> None:
        self._call("write_tags", tags)

    def write_artifacts(self, artifacts: Sequence[Any]) -> None:
        self._call("write_artifacts", artifacts)


class MetricsOnlyBackend(Backend):
    """Has no place for anything but metrics."""

    name = "metrics_only"
    Options = LinesOptions
    written: list[MetricsLogged]

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        self.written = []
        return OpenedRun()

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        self.written.extend(points)


class OrderedBackend(LinesBackend):
    """Wants records of different kinds in the order they were logged."""

    name = "ordered"
    keeps_order = True


class SleepingBackend(LinesBackend):
    """A black hole: never comes back."""

    name = "sleeping"

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        while True:
            time.sleep(3600)


class RaisingBackend(LinesBackend):
    """A bug in `open`, as long as the file `options.path` is not there."""

    name = "raising"

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        if not Path(self.options.path).exists():
            raise KeyError("a bug of the plugin")
        return super().open(run, state)

    def disconnect(self) -> None:
        if Path(self.options.path).exists():
            super().disconnect()


class ExitingBackend(LinesBackend):
    """Takes its process along when it is given metrics."""

    name = "exiting"

    def write_metrics(self, points: Sequence[Any]) -> None:
        os._exit(3)


class UnavailableBackend(LinesBackend):
    """Is unavailable as long as the file `options.path` is not there; then it writes to it."""

    name = "unavailable"

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        if not Path(self.options.path).exists():
            raise BackendUnavailable("the vendor does not answer")
        return super().open(run, state)

    def disconnect(self) -> None:
        if Path(self.options.path).exists():
            super().disconnect()


class InlineOptions(LinesOptions):
    seconds: float = 0.0


class InlineBackend(LinesBackend):
    """Lives in the training process, and takes its time there to write metrics."""

    name = "inline"
    Options = InlineOptions
    needs_training_process = True

    def write_metrics(self, points: Sequence[Any]) -> None:
        self._call("begin")
        time.sleep(self.options.seconds)
        super().write_metrics(points)


class SpyBackend(LinesBackend):
    """Says what its process has: open descriptors, their number, where its standard streams lead."""

    name = "spy"

    def open(self, run: RunInfo, state: Mapping[str, Any]) -> OpenedRun:
        descriptors = {}
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                descriptors[entry.name] = str(entry.readlink())
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        self._call("spy", pid=os.getpid(), descriptors=descriptors, status=status, warnings=sys.warnoptions)
        return super().open(run, state)


BACKENDS = [
    LinesBackend,
    MetricsOnlyBackend,
    OrderedBackend,
    SleepingBackend,
    RaisingBackend,
    ExitingBackend,
    UnavailableBackend,
    InlineBackend,
    SpyBackend,
]


@trackhub.hookimpl
def trackhub_backends() -> list[type[Backend]]:
    return list(BACKENDS)


def install_plugins(directory: Path) -> None:
    """Make the backends of this module known to every process that has `directory` on its path, and a broken plugin."""
    metadata = directory / "trackhub_test_plugins-1.2.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: trackhub-test-plugins\nVersion: 1.2.3\n", encoding="utf-8"
    )
    names = "".join(f"{backend.name} = {__name__}\n" for backend in BACKENDS)
    (metadata / "entry_points.txt").write_text(
        f"[trackhub]\n{names}broken = broken_plugin_of_a_stranger\n", encoding="utf-8"
    )
    (directory / "broken_plugin_of_a_stranger.py").write_text("import a_package_that_is_not_there\n", encoding="utf-8")


def lay_out_distribution(site: Path, distribution: str, module: str, code: str, *names: str) -> None:
    """Lay a distribution out as an installer does: version 1.5, with one module that brings backends of these names."""
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(code, encoding="utf-8")
    metadata = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n", encoding="utf-8")
    points = "".join(f"{name} = {module}\n" for name in names)
    (metadata / "entry_points.txt").write_text(f"[trackhub]\n{points}", encoding="utf-8")


def calls_in(path: Path) -> list[dict[str, Any]]:
    """What a backend was called with; a line that is being written does not count yet."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


def _plain(record: Record) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(msgspec.json.encode(msgspec.structs.asdict(record)))
    return plain
