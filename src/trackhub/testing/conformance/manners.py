"""How a backend behaves beside what it shows: it comes late, says when it cannot, and leaves nothing behind.

A part of the conformance suite.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from trackhub.backend import BackendOptions
from trackhub.lowering import supported_kinds
from trackhub.plugins import find_backend
from trackhub.records import MetricsLogged, ParamsLogged, StoredFile, TagsSet
from trackhub.settings import full_options
from trackhub.testing import samples
from trackhub.testing.conformance.subject import Subject
from trackhub.testing.rehearsal import CREATED_NS, Rehearsal

SETTLING_SECONDS = 10.0
CYCLES = 3

BEFORE_OPEN = """
import contextlib, importlib, json, pathlib, sys
sys.path[:], registered, name, module, qualname, options, vendors = json.loads(sys.argv[1])
import trackhub
from trackhub.plugins import find_backend
from trackhub.settings import storable_options

kind = find_backend(name) if registered else getattr(importlib.import_module(module), qualname)
options = kind.resolve(kind.Options.model_validate(options), pathlib.Path.cwd())
# One that is refused where nothing of its vendor is running is refused; what matters here is what that imports.
with contextlib.suppress(trackhub.SettingsError):
    kind.check(options)
storable_options(options)
kind(options)
print(json.dumps([vendor for vendor in vendors if vendor in sys.modules]))
"""


class NewerMetrics(MetricsLogged, frozen=True, tag=2):
    """Metrics as a later version may have them."""

    unit: str = "s"


class NewerParams(ParamsLogged, frozen=True, tag=3):
    """Params as a later version may have them."""

    origin: str = "cli"


class NewerTags(TagsSet, frozen=True, tag=4):
    """Tags as a later version may have them."""

    origin: str = "cli"


class NewKind(msgspec.Struct, frozen=True, array_like=True, tag=99):
    """A kind of record that this version does not know."""

    time_ns: int
    name: str


class HasManners(Subject):
    """Tests of imports, options, errors and what is left running."""

    def test_it_is_found_by_its_name(self) -> None:
        """The class that is tested is the one users get."""
        if not self.is_registered:
            pytest.skip("no package names it yet")
        assert find_backend(self.kind.name) is self.kind

    def test_nothing_of_the_vendor_is_imported_before_open(self, tmp_path: Path) -> None:
        """Neither by the plugin's module nor by options, `resolve` or `check`: they run in the training process."""
        kind, plain = self.kind, full_options(self.kind.Options.model_validate(dict(self.options(tmp_path))))
        told = [sys.path, self.is_registered, kind.name, kind.__module__, kind.__name__, plain, self.vendor_modules]
        done = subprocess.run(
            [sys.executable, "-c", BEFORE_OPEN, json.dumps(told)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == []

    def test_options_survive_the_way_to_the_delivery(self, tmp_path: Path) -> None:
        """They go as JSON, and `resolve` made everything in them absolute."""
        if self.kind.needs_training_process:
            pytest.skip("its options may hold live objects")
        once = self.rehearse(tmp_path).options
        assert isinstance(once, BackendOptions)
        assert self.kind.Options.model_validate(json.loads(json.dumps(full_options(once)))) == once
        assert self.kind.resolve(once, Path("/")) == once

    def test_options_that_do_not_exist_are_refused(self) -> None:
        """A typing error is found in `init`."""
        with pytest.raises(ValueError, match="no_such_option"):
            self.kind.Options.model_validate({"no_such_option": 1})

    def test_a_vendor_that_cannot_be_reached_is_waited_for(self, tmp_path: Path) -> None:
        """`BackendUnavailable`, with a reason for people; not an error of the backend, which would end the delivery."""
        options = self.options_that_lead_nowhere(tmp_path)
        if options is None:
            pytest.skip("there is nothing that could not be reached")
        run = self.rehearse(tmp_path, options=options)
        run.log(samples.metrics(0, loss=0.5))
        delivery = run.delivery()
        try:
            for _ in range(2):
                delivery.retry_now()
                again = delivery.pump()
                report = run.cursor.report
                assert not delivery.suspended, f"it should have raised BackendUnavailable: {report.suspended}"
                assert delivery.troubled
                assert again
                assert report.error
        finally:
            delivery.release()
        assert run.run.remaining(run.cursor) == 1

    def test_nothing_is_left_running(self, tmp_path: Path) -> None:
        """No thread, no process, and no more open files with every run that comes and goes."""
        # What a vendor's package keeps for the life of the process (pools, caches) is there after the first run.
        self._come_and_go(tmp_path)
        before = _belongings()
        for _ in range(CYCLES):
            self._come_and_go(tmp_path)
        until = time.monotonic() + SETTLING_SECONDS
        while (left := _more_than(before)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left, f"left behind by {CYCLES} runs: {left}"

    def test_letting_go_never_raises(self, tmp_path: Path) -> None:
        """Of a backend that was never opened, and twice."""
        run = self.rehearse(tmp_path)
        backend = self.kind(run.options)
        backend.disconnect()
        with run.opened() as (opened, _):
            opened.disconnect()

    def test_records_of_a_later_version_are_taken(self, tmp_path: Path) -> None:
        """Fields are only ever added to a record: those that are not known are left alone."""
        run = self.rehearse(tmp_path)
        now = CREATED_NS
        with run.opened() as (backend, opened):
            backend.write_metrics([NewerMetrics(now, 1, {"loss": 0.5})])
            if "params" in supported_kinds(self.kind):
                backend.write_params([NewerParams(now, {"lr": 0.1})])
            if "tags" in supported_kinds(self.kind):
                backend.write_tags([NewerTags(now, {"team": "vision"})])
            shown = run.shown(opened)
        assert self.found(shown, "loss") == self.kept([(1, 0.5)])

    def test_a_kind_of_record_that_is_not_known_does_not_stop_the_others(self, tmp_path: Path) -> None:
        """As in a journal that a later version has written."""
        run = self.rehearse(tmp_path)
        run.log(samples.metrics(0, loss=0.5), NewKind(CREATED_NS, "x"), samples.metrics(1, loss=0.25))  # type: ignore[arg-type]
        run.end()
        cursor = run.deliver()
        assert cursor.closed
        assert cursor.report.delivered["metrics"] == 2

    def test_a_file_that_is_gone_is_reported_and_stops_nothing(self, tmp_path: Path) -> None:
        """As one that was logged with `copy=False` and deleted since."""
        run = self.rehearse(tmp_path)
        gone = StoredFile("/no/such/file.bin", 7)
        run.log(samples.metrics(0, loss=0.5), msgspec.structs.replace(samples.artifact(run), file=gone))
        run.log(samples.metrics(1, loss=0.25))
        run.end()
        cursor = run.deliver()
        report = cursor.report
        assert cursor.closed
        assert report.rejected or report.skipped.get("artifacts") or run.notes, report
        assert "loss" in run.shown().metrics

    def _come_and_go(self, directory: Path) -> Rehearsal:
        run = self.rehearse(directory)
        run.log(samples.sample(run, "params"), samples.sample(run, "artifacts"), samples.sample(run, "images"))
        run.log(*[samples.metrics(step, loss=0.5) for step in range(3)])
        run.end()
        run.deliver()
        return run


def _belongings() -> dict[str, list[str]]:
    """What this process has: its threads, its child processes, and its open files."""
    children: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        # One that ends meanwhile has none.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children += (task / "children").read_text(encoding="ascii").split()
    return {
        "threads": [thread.name for thread in threading.enumerate() if thread.is_alive()],
        "processes": children,
        "files": os.listdir("/proc/self/fd"),  # noqa: PTH208
    }


def _more_than(before: dict[str, list[str]]) -> dict[str, list[str]]:
    # Compared by number: what serves the vendor in this process may come and go with other names.
    return {what: now for what, now in _belongings().items() if len(now) > len(before[what])}
