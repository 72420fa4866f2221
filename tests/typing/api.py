"""The public API as users' type checkers see it: checked by mypy (`nox -s types`), never run.

A change that makes a line here fail is a change of the API.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, assert_type

from pydantic import Field, SecretStr

import trackhub
from trackhub.records import Deliverable, EndStatus, MetricsLogged, ParamsLogged


def starting() -> None:
    assert_type(trackhub.__version__, str)
    assert_type(trackhub.init(), trackhub.Tracker)
    trackhub.init("digits", "sgd", {"lr": 0.1})
    trackhub.init(
        project="digits",
        name="sgd",
        params={"optimizer": {"lr": 0.1}, "layers": [64, 32]},
        backends=["mlflow", "tensorboard"],
        tags={"stage": "trial", "attempt": 2},
        run_id="my-run",
        ranks="all",
        resume_step=40,
        dir=Path("runs"),
        mode="offline",
        finish_timeout=5,
        mlflow={"tracking_uri": "http://127.0.0.1:5000", "experiment": "digits"},
        tensorboard={"logdir": Path("logs"), "processors": ["every:10", "redact:off"]},
    )
    trackhub.init(backends="mlflow,tensorboard", dir="somewhere")
    trackhub.init(mlflow="http://127.0.0.1:5000")  # type: ignore[arg-type]
    assert_type(trackhub.current(), trackhub.Tracker)


def the_run(tracker: trackhub.Tracker) -> None:
    assert_type(tracker.id, str)
    assert_type(tracker.name, str)
    assert_type(tracker.project, str)
    assert_type(tracker.directory, Path)
    assert_type(tracker.finished, bool)
    assert_type(tracker.links, dict[str, str])
    assert_type(tracker.remote_id("mlflow"), str)
    assert_type(tracker.remote_id("mlflow", timeout=5), str)


def recording(tracker: trackhub.Tracker, anything: Any) -> None:
    tracker.log_metrics({"train/loss": 0.5, "epoch": 1, "array scalar": anything})
    tracker.log_metrics({"train/loss": 0.5}, step=3, timestamp=1_700_000_000.0)
    tracker.log_metrics({"train/loss": 0.5}, 3, datetime.datetime.now(datetime.UTC))
    tracker.log_params({"optimizer": {"name": "sgd", "lr": 0.1}})
    tracker.set_tags({"stage": "trial"})
    tracker.log_artifact("config.yaml")
    tracker.log_artifact(Path("data"), name="inputs/data", copy=False)
    tracker.log_model("model.joblib")
    tracker.log_model(Path("model"), name="best", register_as="digits")
    tracker.log_text("notes", "all is well", step=1)
    tracker.log_html("page", "<p>all is well</p>", step=1)
    tracker.log_image("sample", anything, step=1)
    tracker.log_figure("curve", anything, step=1)
    tracker.log_table("per class", anything, step=1)
    tracker.log_table("per class", [[1, 2.0], [3, 4.0]], columns=["class", "f1"])
    tracker.log_histogram("weights", anything, step=1, bins=32)
    tracker.log_confusion_matrix("confusion", ["cat", "dog"], [[5, 1], [0, 4]], step=1)
    tracker.log_roc_curve("roc", [0.0, 1.0], [0.0, 1.0], [float("inf"), 0.0], step=1)


def ending(tracker: trackhub.Tracker) -> None:
    with tracker as entered:
        assert_type(entered, trackhub.Tracker)
    with tracker.child("fold-1", params={"fold": 1}, tags={"kind": "fold"}) as child:
        assert_type(child, trackhub.Tracker)
    assert_type(tracker.flush(), trackhub.DeliveryReport)
    assert_type(tracker.flush(timeout=1.5), trackhub.DeliveryReport)
    report = tracker.finish()
    assert_type(report, trackhub.DeliveryReport)
    assert_type(report.run_id, str)
    assert_type(report.complete, bool)
    assert_type(report.undelivered, dict[str, int])
    assert_type(report.command, str)
    tracker.finish("failed")
    tracker.finish(status="killed", timeout=0)
    tracker.finish("done")  # type: ignore[arg-type]


def errors() -> None:
    trees: tuple[type[trackhub.TrackhubError], ...] = (
        trackhub.SettingsError,
        trackhub.UnknownBackendError,
        trackhub.MissingPackageError,
        trackhub.NoActiveRunError,
        trackhub.RunFinishedError,
        trackhub.JournalError,
        trackhub.BackendError,
        trackhub.BackendUnavailable,
        trackhub.RecordRejected,
        trackhub.StateLost,
    )
    assert_type(trees[0], type[trackhub.TrackhubError])
    wrong: type[ValueError] = trackhub.SettingsError
    assert_type(wrong, type[ValueError])
    raise trackhub.BackendUnavailable("the server is down", retry_after_seconds=3)


class PluginOptions(trackhub.BackendOptions):
    url: Annotated[str, trackhub.VendorVariable("VENDOR_URL")] = "http://127.0.0.1"
    token: SecretStr | None = None
    names: list[str] = Field(default=[])


class PluginBackend(trackhub.Backend):
    """What a plugin author writes."""

    name = "plugin"
    Options = PluginOptions
    distributions = ("vendor",)
    needs_training_process: ClassVar[bool] = False

    @classmethod
    def check(cls, options: PluginOptions) -> None:
        raise trackhub.MissingPackageError("pip install vendor")

    @classmethod
    def resolve(cls, options: PluginOptions, working_directory: Path) -> PluginOptions:
        return options

    def open(self, run: trackhub.RunInfo, state: Mapping[str, Any]) -> trackhub.OpenedRun:
        assert_type(run.id, str)
        assert_type(run.name, str)
        assert_type(run.project, str)
        assert_type(run.created_ns, int)
        assert_type(run.directory, Path)
        assert_type(run.parent_remote_id, str | None)
        assert_type(run.attempt, int)
        return trackhub.OpenedRun(remote_id="1", link="http://127.0.0.1/1", state={"id": "1"})

    def write_metrics(self, points: Sequence[MetricsLogged]) -> None:
        for point in points:
            assert_type(point.time_ns, int)
            assert_type(point.step, int)
            assert_type(point.values, dict[str, float])
        self.notes.add("renamed", "a", "called 'b'")

    def write_params(self, params: Sequence[ParamsLogged]) -> None:
        raise trackhub.RecordRejected("no")

    def close(self, status: EndStatus) -> None:
        assert_type(status, EndStatus)

    def disconnect(self) -> None:
        pass


class PluginProcessor(trackhub.Processor):
    """What the author of a processor writes."""

    name = "half"
    handles = frozenset([MetricsLogged, ParamsLogged])

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        assert_type(self.argument, str)

    def process(self, record: Deliverable) -> Deliverable | None:
        if isinstance(record, MetricsLogged):
            self.notes.add("left out", "loss", "it is odd")
            return None if record.step % 2 else MetricsLogged(record.time_ns, record.step // 2, record.values)
        return record


@trackhub.hookimpl
def trackhub_processors() -> list[type[trackhub.Processor]]:
    return [PluginProcessor]


@trackhub.hookimpl
def trackhub_backends() -> list[type[trackhub.Backend]]:
    return [PluginBackend]
