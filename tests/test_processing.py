"""Processors in a delivery: what the backend gets, what the report says, and what happens when one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backends_for_tests import LinesBackend, LinesOptions, OrderedBackend, calls_in, lay_out_distribution
from stage import Stage, scalars, wait_until

import trackhub
from trackhub import BackendUnavailable, Processor, plugins
from trackhub.backend import Backend
from trackhub.delivery import Delivery
from trackhub.errors import SettingsError
from trackhub.journal import JournalWriter
from trackhub.processing import Pipeline
from trackhub.records import ConfusionMatrixLogged, Deliverable, MetricsLogged, ParamsLogged, RunEnded, TagsSet
from trackhub.report import delivery_report
from trackhub.rundir import Manifest, RunDirectory
from trackhub.sync import options_for, sync
from trackhub.testing import FlakyBackend, Script

# TensorBoard's reader, not our code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]


class Scene:
    """One run, and deliveries of it to a backend that writes lines."""

    def __init__(self, root: Path, *chosen: str, kind: type[Backend] = LinesBackend) -> None:
        self.chosen = chosen
        self.kind = kind
        self.run = RunDirectory.create(root, Manifest("run", "run", "p", 1, {"lines": {}}, working_directory=str(root)))
        self.lines = root / "lines"
        self.script = Script()
        self.writer = JournalWriter(self.run.journal, "owner", 1)

    def deliver(self) -> Delivery:
        """Pump until there is nothing to do at once, and let go."""

        def make() -> Backend:
            options = LinesOptions(path=str(self.lines), processors=self.chosen)
            return FlakyBackend.around(self.kind, self.script)(options)

        delivery = Delivery(self.run, "lines", make, "lines 1.0")
        for _ in range(1000):
            if delivery.pump() != 0.0:
                break
        delivery.release()
        return delivery

    def written(self, kind: str) -> list[dict[str, Any]]:
        return [one for call in calls_in(self.lines) if call["call"] == f"write_{kind}" for one in call["records"]]

    @property
    def notes(self) -> dict[str, tuple[int, list[str]]]:
        """Reason -> how often, and of what there are examples."""
        notes = self.run.cursor("lines").report.notes
        return {reason: (note.count, [subject for subject, _ in note.examples]) for reason, note in notes.items()}

    @property
    def sentences(self) -> str:
        return str(delivery_report(self.run, "trackhub sync"))


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Processor]]:
    """Processors that a test adds, by name."""
    found: dict[str, type[Processor]] = {}
    monkeypatch.setattr(plugins, "_loaded_processors", found)
    return found


# --- what the backend gets


def test_the_backend_gets_what_is_left_and_the_report_counts_the_rest(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "every:10", "rename:metrics:loss=train/loss", "exclude:tags:scratch*")
    scene.writer.append(ParamsLogged(1, {"api_key": "k", "loss": "mse"}))
    scene.writer.append(TagsSet(1, {"scratch": "x"}))
    for step in range(100):
        scene.writer.append_metrics({"loss": float(step)}, step, step)
    scene.writer.append(RunEnded(1, "finished"))
    scene.deliver()
    assert [(one["step"], one["values"]) for one in scene.written("metrics")] == [
        (step, {"train/loss": float(step)}) for step in range(0, 100, 10)
    ]
    assert [one["params"] for one in scene.written("params")] == [{"api_key": "(redacted)", "loss": "mse"}]
    assert scene.written("tags") == []
    assert scene.notes == {
        "redacted": (1, ["api_key"]),
        "left out by every:10": (90, ["loss"]),
        "renamed as asked": (10, ["loss"]),
        "left out by exclude:tags:scratch*": (1, ["scratch"]),
    }
    report = scene.run.cursor("lines").report
    assert report.delivered == {"params": 1, "metrics": 10}
    assert scene.run.cursor("lines").closed
    assert "lines: complete (params 1, metrics 10)" in scene.sentences
    assert "lines: 90 left out by every:10: loss" in scene.sentences


def test_rich_values_go_by_their_name_before_they_become_something_simpler(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "exclude:secret/*", "rename:confusion=digits/confusion")
    for name in ("confusion", "secret/confusion"):
        scene.writer.append(ConfusionMatrixLogged(1, name, ["a", "b"], [[1.0, 0.0], [0.0, 1.0]]))
    scene.deliver()
    names = [one["name"] for one in scene.written("artifacts")]
    assert names == ["tables/digits/confusion.json", "figures/digits/confusion.svg"]
    assert scene.notes["left out by exclude:secret/*"] == (1, ["secret/confusion"])


def test_where_order_matters_it_stays(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "exclude:drop", kind=OrderedBackend)
    for at, name in enumerate(["keep", "drop", "keep"]):
        scene.writer.append_metrics({name: 1.0}, at, 1)
        scene.writer.append(TagsSet(1, {f"{name}{at}": "x"}))
    scene.deliver()
    assert [call["call"] for call in calls_in(scene.lines) if call["call"].startswith("write")] == [
        "write_metrics",
        "write_tags",
        "write_metrics",
        "write_tags",
    ]


def test_what_is_delivered_again_is_processed_alike_and_counted_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "every:3", "rename:x=y")
    scene.script.failures["write_metrics"] = [BackendUnavailable("not now", retry_after_seconds=0.0), None]
    for step in range(30):
        scene.writer.append_metrics({"x": float(step)}, step, step)
    first = scene.deliver()
    assert first.pump is not None
    assert scene.notes == {}
    scene.deliver()
    assert [one["step"] for one in scene.written("metrics")] == list(range(0, 30, 3))
    assert scene.notes == {"left out by every:3": (20, ["x"]), "renamed as asked": (10, ["x"])}
    # The same once more, as if the cursor had been lost.
    scene.run.cursor_file("lines").path.unlink()
    before = scene.written("metrics")
    scene.deliver()
    assert scene.written("metrics") == before * 2
    assert scene.notes == {"left out by every:3": (20, ["x"]), "renamed as asked": (10, ["x"])}


def test_metrics_pass_untouched_where_nothing_is_chosen() -> None:
    """What makes it free: a delivery looks at no metric unless a processor wants to."""
    assert not Pipeline([]).handles(MetricsLogged)
    assert not Pipeline(["redact:off", "exclude:params:x"]).handles(MetricsLogged)
    assert Pipeline(["every:2"]).handles(MetricsLogged)


# --- what other packages bring


class Doubling(Processor):
    """Changes values, and says nothing of it."""

    name = "doubling"
    handles = frozenset([MetricsLogged])

    def process(self, record: Deliverable) -> Deliverable | None:
        assert isinstance(record, MetricsLogged)
        if record.step == 0:
            return None
        return msgspec.structs.replace(record, values={name: 2 * value for name, value in record.values.items()})


def test_what_a_processor_does_not_say_the_delivery_does(tmp_path: Path, added: dict[str, type[Processor]]) -> None:
    added["doubling"] = Doubling
    scene = Scene(tmp_path, "doubling:x")
    for step in range(5):
        scene.writer.append_metrics({"a": float(step), "b": 1.0}, step, step)
    scene.deliver()
    assert [one["values"]["a"] for one in scene.written("metrics")] == [2.0, 4.0, 6.0, 8.0]
    assert scene.notes == {"left out by doubling:x": (1, ["a, b"]), "changed by doubling:x": (4, ["a, b"])}


class Failing(Processor):
    name = "failing"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        if argument == "now":
            raise KeyError("a bug in the constructor")

    def process(self, record: Deliverable) -> Deliverable | None:
        what: dict[str, Any] = {
            "raise": ZeroDivisionError("a bug of the plugin"),
            "unavailable": BackendUnavailable("no backend, so this is a bug"),
            "disk": OSError(28, "full"),
            "exit": SystemExit("enough"),
            "wrong": "a text",
            "kind": ParamsLogged(1, {}),
        }
        found = what[self.argument]
        if isinstance(found, BaseException):
            raise found
        return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise", "ZeroDivisionError: a bug of the plugin"),
        ("unavailable", "BackendUnavailable: no backend, so this is a bug"),
        ("disk", "OSError: [Errno 28] full"),
        ("exit", "SystemExit: enough"),
        ("wrong", "TypeError: process() must return a MetricsLogged like the one it was given, or None, not str"),
        (
            "kind",
            "TypeError: process() must return a MetricsLogged like the one it was given, or None, not ParamsLogged",
        ),
    ],
)
def test_one_that_fails_suspends_the_delivery_and_is_named(
    tmp_path: Path, added: dict[str, type[Processor]], what: str, said: str
) -> None:
    added["failing"] = Failing
    scene = Scene(tmp_path, f"failing:{what}")
    scene.writer.append_metrics({"a": 1.0}, 0, 0)
    assert scene.deliver().suspended
    assert calls_in(scene.lines) == []
    sentence = "lines: delivery gave up because the processor failed: processor 'failing:"
    assert sentence in scene.sentences
    assert said in scene.sentences
    # The data stays, and comes once the processor is left out.
    scene.chosen = ()
    scene.deliver()
    assert [one["values"] for one in scene.written("metrics")] == [{"a": 1.0}]
    assert "gave up" not in scene.sentences


def test_one_that_fails_in_its_constructor_is_refused(added: dict[str, type[Processor]]) -> None:
    added["failing"] = Failing
    with pytest.raises(SettingsError, match=r"processor 'failing' of .* failed to take 'failing:now': KeyError"):
        Pipeline(["failing:now"])


# --- the door


def test_init_refuses_with_where_it_came_from_and_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for mode in ("online", "offline", "disabled"):
        with pytest.raises(SettingsError) as refusal:
            trackhub.init(backends="tensorboard", mode=mode, tensorboard={"processors": ["every:10", "evry:3"]})
        assert str(refusal.value).startswith(
            "tensorboard: processors (from init(tensorboard={'processors': ...})): no processor is called 'evry'; "
            "did you mean 'every'? Installed processors: every, exclude, include, redact, rename"
        )
    monkeypatch.setenv("TRACKHUB_TENSORBOARD_PROCESSORS", "every:x")
    with pytest.raises(
        SettingsError, match=r"processors \(from TRACKHUB_TENSORBOARD_PROCESSORS\): 'every:x' is not acc"
    ):
        trackhub.init(backends="tensorboard")
    assert list(tmp_path.iterdir()) == []


def test_they_are_chosen_by_argument_variable_and_file_and_kept_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def stored(**arguments: Any) -> Any:
        with trackhub.init(backends="tensorboard", mode="offline", **arguments) as tracker:
            manifest = json.loads((tracker.directory / "run.json").read_text())
        return manifest["backends"]["tensorboard"].get("processors")

    assert stored() is None
    (tmp_path / "trackhub.toml").write_text('[tensorboard]\nprocessors = ["exclude:a,b"]\n')
    assert stored() == ["exclude:a,b"]
    monkeypatch.setenv("TRACKHUB_TENSORBOARD_PROCESSORS", "every:10:train/*|val/*, rename:a=b ,")
    assert stored() == ["every:10:train/*|val/*", "rename:a=b"]
    assert stored(tensorboard={"processors": ["every:2"]}) == ["every:2"]
    assert stored(tensorboard={"processors": "every:2,exclude:x"}) == ["every:2", "exclude:x"]


def test_a_later_sync_applies_what_the_run_was_started_with(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run(
        """
        import trackhub
        chosen = {"processors": ["every:50", "rename:x=train/x"]}
        with trackhub.init(mode="offline", backends=["tensorboard"], tensorboard=chosen) as tracker:
            for step in range(200):
                tracker.log_metrics({"x": step}, step=step)
        """
    )
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    run = stage.run_directory()
    assert options_for(run, "tensorboard")["processors"] == ["every:50", "rename:x=train/x"]
    assert all(sync([run]))
    assert scalars(run) == {"train/x": [(0, 0.0), (50, 50.0), (100, 100.0), (150, 150.0)]}
    assert run.cursor("tensorboard").report.notes["left out by every:50"].count == 196
    # A variable wins over what is stored, as with every option; and what it says is checked as in init.
    monkeypatch.setenv("TRACKHUB_TENSORBOARD_PROCESSORS", "nope")
    with pytest.raises(SettingsError, match="no processor is called 'nope'"):
        options_for(run, "tensorboard")


# --- a distribution of a stranger, live

PLUGIN = """
import os, time, trackhub

class Processor(trackhub.Processor):
    name = {name!r}

    def process(self, record):
        {body}

@trackhub.hookimpl
def trackhub_processors():
    return [Processor]
"""
TRAINING = """
import sys, trackhub
tracker = trackhub.init(backends=["lines", "tensorboard"], params={"api_key": "k", "lr": 1})
for step in range(500):
    tracker.log_metrics({"loss": step}, step=step)
print(tracker.finish(timeout=50))
print("imported:", ",".join(sorted(module for module in sys.modules if module.startswith("plugin_"))))
"""


def install(stage: Stage, name: str, body: str) -> None:
    lay_out_distribution(stage.plugins, f"lab-{name}", f"plugin_{name}", PLUGIN.format(name=name, body=body), name)
    points = stage.plugins / f"lab_{name}-1.5.dist-info" / "entry_points.txt"
    points.write_text(f"[trackhub.processors]\n{name} = plugin_{name}\n", encoding="utf-8")


def test_a_processor_of_another_package_is_found_by_its_name_and_strangers_are_not_imported(stage: Stage) -> None:
    install(stage, "odd", "return record if getattr(record, 'step', 1) % 2 else None")
    lay_out_distribution(stage.plugins, "lab-stranger", "plugin_stranger", "raise SystemExit('broken')")
    points = stage.plugins / "lab_stranger-1.5.dist-info" / "entry_points.txt"
    points.write_text("[trackhub.processors]\nstranger = plugin_stranger\n", encoding="utf-8")
    said, _ = stage.run(TRAINING, environment={"TRACKHUB_LINES_PROCESSORS": "odd"})
    assert "lines: complete (params 1, metrics 250)" in said
    assert "lines: 250 left out by odd: loss" in said
    assert "lines: 1 redacted: api_key" in said
    assert "tensorboard: complete (params 1, metrics 500)" in said
    assert "tensorboard: 1 redacted: api_key" in said
    assert said.endswith("imported: plugin_odd")
    # The journal has all of it, in a directory that nobody else may read.
    run = stage.run_directory()
    assert any(b"api_key" in path.read_bytes() for path in run.journal.iterdir())
    assert run.path.stat().st_mode & 0o077 == 0
    names = [path for path in run.path.rglob("*") if path.is_file() and path.parent != run.journal]
    assert [path.name for path in names if b'"k"' in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        (
            "raises",
            "raise ZeroDivisionError('a bug')",
            "processor 'raises' of lab-raises 1.5: ZeroDivisionError: a bug",
        ),
        (
            "exits",
            "os._exit(7)",
            "or by a failure of trackhub-test-plugins 1.2.3 with processor 'exits' of lab-exits 1.5",
        ),
    ],
)
def test_a_bad_one_hurts_its_own_delivery_alone_and_is_named_with_its_version(
    stage: Stage, name: str, body: str, said: str
) -> None:
    install(stage, name, body)
    stage.run(TRAINING.replace("timeout=50", "timeout=1"), environment={"TRACKHUB_LINES_PROCESSORS": name})
    stage.wait_closed("tensorboard")
    run = stage.run_directory()
    assert len(scalars(run)["loss"]) == 500
    # Asked while it is being tried once more, it is not at an end.
    wait_until(lambda: said in str(delivery_report(run, "trackhub sync", ["lines"])), f"{name} to be named")
    assert run.remaining(run.cursor("lines")) == 501
    assert calls_in(stage.lines) == []


def test_one_that_is_not_there_any_more_suspends_the_delivery_and_is_named(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "gone:x")
    scene.writer.append_metrics({"a": 1.0}, 0, 0)
    assert scene.deliver().suspended
    assert "SettingsError: no processor is called 'gone'. Installed processors: every, " in scene.sentences


def test_a_backend_in_the_training_process_is_filtered_alike(stage: Stage) -> None:
    said, _ = stage.run(
        """
        import trackhub
        tracker = trackhub.init(backends=["inline"], params={"password": "p"}, inline={"processors": "every:10"})
        child = tracker.child("kid", params={"hf_token": "t"})
        for step in range(30):
            tracker.log_metrics({"x": step}, step=step)
            child.log_metrics({"y": step}, step=step)
        child.finish()
        print(tracker.finish())
        """
    )
    calls = calls_in(stage.path / "inline.jsonl")
    points = [one for call in calls if call["call"] == "write_metrics" for one in call["records"]]
    assert sorted((*one["values"], one["step"]) for one in points) == [
        (name, step) for name in "xy" for step in (0, 10, 20)
    ]
    params = [one["params"] for call in calls if call["call"] == "write_params" for one in call["records"]]
    assert sorted(map(str, params)) == ["{'hf_token': '(redacted)'}", "{'password': '(redacted)'}"]
    assert "inline: 27 left out by every:10: x" in said


def test_doctor_shows_what_is_in_force(stage: Stage) -> None:
    stage.environment["TRACKHUB_TENSORBOARD_PROCESSORS"] = "every:10"
    said, _ = stage.run(
        "import sys; from trackhub.cli import main; sys.argv[1:] = ['doctor', '--backend', 'tensorboard']; main()"
    )
    line = next(line for line in said.splitlines() if "processors" in line)
    assert "redact, every:10" in line
    assert "TRACKHUB_TENSORBOARD_PROCESSORS" in line
