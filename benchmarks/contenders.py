"""What is compared: one small class per way of recording metrics, each doing what its users would write.

Apart from the measurements so that all of them call every contender through the same three methods. Vendors are
imported inside `open`, and nothing but cheap modules at the top: the time to a first metric is measured too.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod

EXPERIMENT = "bench"
DATABASE = "mlflow.db"
TENSORBOARD = "tensorboard"


class Contender(ABC):
    """One way of recording metrics, in a directory of its own."""

    name: str
    """What `--only` and the JSON file call it."""
    title: str
    """What the tables call it."""
    modules: tuple[str, ...] = ()
    """What must be installed; the contender is skipped, with the reason, when one is missing."""
    distributions: tuple[str, ...] = ()
    """Whose versions the report names."""
    slow = False
    """Takes milliseconds a call, so it is measured with fewer calls; the report says how many."""
    sinks: dict[str, str] = {}  # noqa: RUF012 - a constant of each class
    """Where its points can be read back: the kind of reader, and the path inside the directory."""
    recovery: tuple[str, ...] = ()
    """Arguments to Python that complete a run whose processes were all killed."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    @property
    def database(self) -> str:
        """The SQLite database that the harness has put in place, as MLflow's tracking URI."""
        return f"sqlite:///{self.directory}/{DATABASE}"

    @abstractmethod
    def open(self) -> None:
        """Import what is needed and start a run."""

    @abstractmethod
    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record the metrics of one step."""

    @abstractmethod
    def close(self) -> None:
        """End the run; return when everything is where it belongs."""


class Nothing(Contender):
    """The control, no recording at all: what the timing itself costs, and how far this machine can be trusted."""

    name = "nothing"
    title = "empty loop"

    def open(self) -> None:
        """Do nothing."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class JsonLines(Contender):
    """The floor: what a script without any tracker would do, one unbuffered write a step."""

    name = "jsonlines"
    title = "plain JSON lines, no tracker"
    sinks = {"jsonlines": "points.jsonl"}  # noqa: RUF012

    def open(self) -> None:
        """Open the file for appending."""
        path = f"{self.directory}/points.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Write one line."""
        os.write(self._file, json.dumps({"step": step, "time": time.time(), **metrics}).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class TensorBoard(Contender):
    """The event file writer of the tensorboard package, used as cheaply as it can be: one event for a whole step."""

    name = "tensorboard"
    title = "TensorBoard EventFileWriter, one event a step"
    modules = ("tensorboard",)
    distributions = ("tensorboard",)
    sinks = {"tensorboard": TENSORBOARD}  # noqa: RUF012

    def open(self) -> None:
        """Start an event file."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(f"{self.directory}/{TENSORBOARD}")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Hand one event to the writer's queue."""
        value = self._summary.Value
        values = [value(tag=key, simple_value=number) for key, number in metrics.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class MlflowSync(Contender):
    """MLflow's fluent calls as its own documentation shows them, to a local SQLite database."""

    name = "mlflow-sync"
    title = "MLflow to SQLite, sync"
    modules = ("mlflow",)
    distributions = ("mlflow",)
    slow = True
    sinks = {"mlflow": DATABASE}  # noqa: RUF012

    def open(self) -> None:
        """Start a run."""
        import mlflow

        self._mlflow = mlflow
        mlflow.set_tracking_uri(self.database)
        mlflow.set_experiment(EXPERIMENT)
        mlflow.start_run(run_name="run")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log a step's metrics in one call."""
        self._mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class MlflowAsync(MlflowSync):
    """The same with MLflow's own queue and thread."""

    name = "mlflow-async"
    title = "MLflow to SQLite, async"

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Queue a step's metrics in one call."""
        self._mlflow.log_metrics(metrics, step=step, synchronous=False)

    def close(self) -> None:
        """Empty the queue, then end the run."""
        self._mlflow.flush_async_logging()
        self._mlflow.end_run()


class Lightning(Contender):
    """The fan-out people have today: Lightning's list of loggers, called one after the other as its Trainer does.

    The `save()` that the Trainer adds after each logger's call is left out; it would only add to Lightning's times.
    """

    name = "lightning"
    title = "Lightning TensorBoard + MLflow + CSV"
    modules = ("lightning", "mlflow", "tensorboard")
    distributions = ("lightning", "torch")
    slow = True
    sinks = {"tensorboard": TENSORBOARD, "mlflow": DATABASE, "csv": "csv"}  # noqa: RUF012

    def open(self) -> None:
        """Build the list of loggers."""
        from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

        self._loggers = [
            TensorBoardLogger(f"{self.directory}/{TENSORBOARD}"),
            MLFlowLogger(EXPERIMENT, run_name="run", tracking_uri=self.database),
            CSVLogger(f"{self.directory}/csv"),
        ]

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log to every logger in turn."""
        for logger in self._loggers:
            logger.log_metrics(metrics, step=step)

    def close(self) -> None:
        """Finalize every logger."""
        for logger in self._loggers:
            logger.finalize("success")


class Trackhub(Contender):
    """trackhub with the two backends that the fan-out above has."""

    name = "trackhub"
    title = "trackhub: TensorBoard + MLflow"
    modules: tuple[str, ...] = ("trackhub", "mlflow", "tensorboard")
    distributions = ("trackhub-sdk",)
    sinks = {"tensorboard": TENSORBOARD, "mlflow": DATABASE}  # noqa: RUF012
    recovery = ("-m", "trackhub", "sync")

    def open(self) -> None:
        """Start a run that is delivered to both."""
        import trackhub

        self._tracker = trackhub.init(
            project=EXPERIMENT,
            name="run",
            backends=["tensorboard", "mlflow"],
            tensorboard={"logdir": f"{self.directory}/{TENSORBOARD}"},
            mlflow={"tracking_uri": self.database},
            dir=f"{self.directory}/trackhub",
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log a step's metrics in one call."""
        self._tracker.log_metrics(metrics, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._tracker.finish()


class TrackhubJournal(Trackhub):
    """trackhub without a backend: the journal alone, which can be delivered at any time later."""

    name = "trackhub-journal"
    title = "trackhub: journal only"
    modules = ("trackhub",)
    sinks = {"journal": "trackhub"}  # noqa: RUF012

    def open(self) -> None:
        """Start a run that stays in its directory."""
        import trackhub

        self._tracker = trackhub.init(project=EXPERIMENT, name="run", backends=[], dir=f"{self.directory}/trackhub")


CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind
    for kind in (Nothing, JsonLines, TensorBoard, MlflowSync, MlflowAsync, Lightning, Trackhub, TrackhubJournal)
}
"""All of them, in the order of the tables; the first is the control and always takes part."""
