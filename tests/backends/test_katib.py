from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackhub.backend import RunInfo
from trackhub.backends.katib import KatibBackend, KatibOptions
from trackhub.errors import BackendUnavailable, SettingsError
from trackhub.records import MetricsLogged
from trackhub.settings import backend_options

CREATED_NS = 1_763_717_400_000_000_001
WHEN = "2025-11-21T09:30:00.000000001Z"

# Katib's own, with Go's meaning: \w and \d are ASCII.
COLLECTOR = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)", re.ASCII)
RFC3339_NANO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def collected(printed: str) -> list[tuple[str, str, str]]:
    """What Katib's collector reads: (time, name, value), as its loop over the lines does."""
    found: list[tuple[str, str, str]] = []
    for line in printed.split("\n"):
        when, space, _ = line.partition(" ")
        timed = when if space and RFC3339_NANO.fullmatch(when) else ""
        found += [(timed, match[1], match[2]) for match in COLLECTOR.finditer(line)]
    return found


class Printed:
    """A backend whose standard output is a file."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.file = path.open("w", buffering=8192)
        monkeypatch.setattr(sys, "__stdout__", self.file)
        self.directory = path.parent

    def open(self, state: Mapping[str, Any] | None = None, **changes: Any) -> KatibBackend:
        options = KatibOptions(metrics=changes.pop("metrics", ()))
        backend = KatibBackend(options)
        facts = {"id": "run", "name": "sgd", "project": "p", "created_ns": 1, "directory": self.directory} | changes
        backend.open(RunInfo(**facts), json.loads(json.dumps(state or {})))
        return backend

    @property
    def text(self) -> str:
        return self.path.read_text()


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Printed(tmp_path / "out", monkeypatch)
    yield made
    if not made.file.closed:
        made.file.close()


def metrics(values: Mapping[str, float], step: int = 0) -> MetricsLogged:
    return MetricsLogged(CREATED_NS, step, dict(values))


def notes(backend: KatibBackend) -> list[tuple[str, str]]:
    return [(reason, subject) for reason, subject, _ in backend.notes.drain()]


def test_a_value_is_a_line_that_the_collector_reads(printed: Printed) -> None:
    backend = printed.open()
    backend.write_metrics([metrics({"loss": 0.25, "lr": 1e-05}), metrics({"loss": -3e300}, 1)])
    assert printed.text.strip().splitlines() == [f"{WHEN} loss=0.25", f"{WHEN} lr=1e-05", f"{WHEN} loss=-3e+300"]
    assert collected(printed.text) == [(WHEN, "loss", "0.25"), (WHEN, "lr", "1e-05"), (WHEN, "loss", "-3e+300")]


def test_what_is_not_finite_is_not_printed_but_counted(printed: Printed) -> None:
    backend = printed.open()
    backend.write_metrics([metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})])
    assert collected(printed.text) == [(WHEN, "d", "1.0")]
    assert notes(backend) == [("not finite", "a"), ("not finite", "b"), ("not finite", "c")]


def test_names_become_legal_and_two_are_never_the_same(printed: Printed) -> None:
    backend = printed.open()
    backend.write_metrics([metrics({"train/loss": 1.0, "train.loss": 2.0, "train_loss": 3.0})])
    names = [name for _, name, _ in collected(printed.text)]
    assert names[0] == "train_loss"
    assert len(set(names)) == 3
    assert [reason for reason, _ in notes(backend)] == ["renamed"] * 3
    again = printed.open(backend.checkpoint())
    again.write_metrics([metrics({"train_loss": 3.0, "train/loss": 1.0})])
    assert [name for _, name, _ in collected(printed.text)][3:] == [names[2], names[0]]
    assert notes(again) == []


@settings(max_examples=200, deadline=None)
@given(values=st.dictionaries(st.text(min_size=1, max_size=20), st.floats(), max_size=8))
def test_the_collector_reads_back_every_finite_value_to_the_last_bit(
    values: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        printed = Printed(path, monkeypatch)
        with printed.file:
            backend = printed.open()
            backend.write_metrics([metrics(values)])
            backend.disconnect()
    found = collected(path.read_text())
    finite = [value for value in values.values() if math.isfinite(value)]
    assert [float(value) for _, _, value in found] == finite
    assert all(when == WHEN for when, _, _ in found)
    assert len({name for _, name, _ in found}) == len(finite)


def test_only_chosen_metrics_are_printed(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = printed.open(metrics=("val/acc",))
    backend.write_metrics([metrics({"val/acc": 0.5, "loss": math.nan, "lr": 1.0})])
    assert collected(printed.text) == [(WHEN, "val_acc", "0.5")]
    assert notes(backend) == [("renamed", "val/acc")]
    monkeypatch.setenv("TRACKHUB_KATIB_METRICS", "a, b")
    assert backend_options("katib", KatibOptions, {}, {}, None)[0].metrics == ("a", "b")
    with pytest.raises(SettingsError, match="metrics"):
        backend_options("katib", KatibOptions, {"metric": "a"}, {}, None)


def test_lines_stand_alone_after_what_was_printed_before_them(printed: Printed) -> None:
    backend = printed.open()
    printed.file.write("epoch 1: 50%")
    backend.write_metrics([metrics({"loss": 0.5})])
    printed.file.write(" done\n")
    printed.file.flush()
    assert printed.text == f"epoch 1: 50%\n{WHEN} loss=0.5\n done\n"


def test_lines_go_to_the_first_standard_output_whatever_takes_its_place(printed: Printed, tmp_path: Path) -> None:
    backend = printed.open()
    elsewhere = (tmp_path / "elsewhere").open("w")
    os.dup2(elsewhere.fileno(), printed.file.fileno())
    elsewhere.close()
    backend.write_metrics([metrics({"loss": 0.5})])
    assert collected(printed.text) == [(WHEN, "loss", "0.5")]


def test_metrics_of_a_child_run_are_not_taken_for_the_trials(printed: Printed) -> None:
    backend = printed.open(parent_remote_id="run")
    backend.write_metrics([metrics({"loss": 0.5})])
    backend.write_metrics([metrics({"loss": 0.5})])
    assert printed.text == ""
    assert notes(backend) == [("not printed", "metrics of a child run")]


def test_a_standard_output_that_was_closed_is_noted(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    printed.file.close()
    backend = printed.open()
    backend.write_metrics([metrics({"loss": 0.5, "acc": 1.0})])
    assert notes(backend) == [("not printed", "2 values")]
    monkeypatch.setattr(sys, "__stdout__", None)
    backend = printed.open()
    backend.write_metrics([metrics({"loss": 0.5})])
    assert notes(backend) == [("not printed", "1 values")]


class Pipe:
    """A pipe for a standard output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reader, writer = os.pipe()
        self.file = os.fdopen(writer, "w")
        monkeypatch.setattr(sys, "__stdout__", self.file)

    def backend(self) -> KatibBackend:
        backend = KatibBackend(KatibOptions())
        backend.open(RunInfo("run", "n", "p", 1, Path()), {})
        return backend


def test_a_reader_that_has_gone_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    backend = pipe.backend()
    os.close(pipe.reader)
    backend.write_metrics([metrics({"loss": 0.5})])
    assert notes(backend) == [("not printed", "1 values")]
    backend.disconnect()
    pipe.file.close()


def test_a_reader_that_does_not_read_means_not_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trackhub.backends.katib.PATIENCE_SECONDS", 0.05)
    pipe = Pipe(monkeypatch)
    os.set_blocking(pipe.file.fileno(), False)
    backend = pipe.backend()
    with pytest.raises(BackendUnavailable, match="nobody reads"):
        backend.write_metrics([metrics({"loss": 0.5}, step) for step in range(10_000)])
    backend.disconnect()
    os.close(pipe.reader)
    pipe.file.close()


def test_a_full_disk_means_not_now(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as file:
        monkeypatch.setattr(sys, "__stdout__", file)
        backend = KatibBackend(KatibOptions())
        backend.open(RunInfo("run", "n", "p", 1, Path()), {})
        with pytest.raises(BackendUnavailable, match="cannot be written"):
            backend.write_metrics([metrics({"loss": 0.5})])
        backend.disconnect()


def test_in_a_pipe_as_katib_makes_it_the_lines_keep_their_place() -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from trackhub.backend import RunInfo\n"
        "from trackhub.backends.katib import KatibBackend, KatibOptions\n"
        "from trackhub.records import MetricsLogged\n"
        "backend = KatibBackend(KatibOptions())\n"
        "backend.open(RunInfo('r', 'n', 'p', 1, Path()), {})\n"
        "for step in range(50):\n"
        "    print('epoch', step, 'loss: ' + 'x' * 300)\n"
        "    backend.write_metrics([MetricsLogged(1, step, {'loss': step / 7, 'acc': float(step)})])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    found = collected(done.stdout)
    assert [float(value) for _, name, value in found if name == "loss"] == [step / 7 for step in range(50)]
    assert all(when == "1970-01-01T00:00:00.000000001Z" for when, _, _ in found)
    lines = [line for line in done.stdout.splitlines() if line]
    assert [line.split()[0] for line in lines[:4]] == ["epoch", *["1970-01-01T00:00:00.000000001Z"] * 2, "epoch"]
