"""Kills by the hundred: `python tests/faults/campaign.py --kills 500 --seed 1`, which prints its totals.

A round is one training with three backends: MLflow on PostgreSQL and an object store, TensorBoard, and Neptune. Its
delivery processes are killed again and again, each by a killer of its own, then the training alone or the whole tree.
Beside it, some trainings without deliveries of their own are killed. Then the `trackhub sync` that completes them all
is killed, or what it has started. At the end the last sync is let through, and what is in the journals is compared,
point by point, with what the trainings were told and with what each backend has.

All kills are SIGKILL. What is killed and at which moment is drawn from the seed; where in the code that moment finds a
process depends on the machine, which is why there are many.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "backends"))

from neptune_server import NeptuneServer, neptune_server
from priority import hurried_deliveries
from real_servers import MlflowOnPostgres, running_everything
from stage import Stage, delivery_processes, records_of, scalars, staged, wait_until

from trackhub.backends.neptune.names import to_custom_run_id
from trackhub.records import ArtifactLogged, MetricsLogged, TextLogged
from trackhub.report import delivery_report
from trackhub.rundir import RunDirectory

BACKENDS = ("mlflow", "tensorboard", "neptune")
KILLS_OF_A_DELIVERY = 4
"""At most in one round: the pauses before a process is started again grow."""
DEADLINE_SECONDS = 300.0

# Which calls have returned it writes where a SIGKILL does not wipe it out.
TRAINING = """
import os, struct, time, trackhub
mark = os.open("returned", os.O_RDWR | os.O_CREAT)
calls = [0, 0, 0]
tracker = trackhub.init(name="campaign", backends="mlflow,tensorboard,neptune", params={"lr": 0.1})
step = 0
while True:
    tracker.log_metrics({"x": step, "y": -step}, step=step)
    calls[0] += 1
    if step % 60 == 0:
        tracker.log_text("note", f"text {step}", step=step)
        calls[1] += 1
    if step % 200 == 0:
        with open("weights", "wb") as file:
            file.write(step.to_bytes(8, "little") * 4096)
        tracker.log_artifact("weights", f"weights-{step}")
        calls[2] += 1
    step += 1
    os.pwrite(mark, struct.pack("<3q", *calls), 0)
    time.sleep(0.004)
"""


@dataclass(frozen=True)
class Training:
    """A training that goes on, or has been killed.

    Args:
        stage: Where it runs.
        folder: Its working directory.
        process: It.
    """

    stage: Stage
    folder: Path
    process: Any

    @classmethod
    def start(cls, stage: Stage, name: str, mode: str) -> Training:
        folder = stage.path / name
        folder.mkdir()
        with (folder / "stderr").open("w") as errors:
            process = stage.start(TRAINING, stderr=errors, cwd=folder, environment={"TRACKHUB_MODE": mode})
        training = cls(stage, folder, process)
        wait_until(lambda: training.returned[0] > 0, "the training to begin", DEADLINE_SECONDS)
        return training

    @property
    def returned(self) -> Sequence[int]:
        """How many calls of log_metrics, log_text and log_artifact have returned."""
        path = self.folder / "returned"
        content = path.read_bytes() if path.exists() else b""
        return struct.unpack("<3q", content) if len(content) == 24 else (0, 0, 0)

    @property
    def run(self) -> RunDirectory:
        (run,) = [run for run in self.stage.runs() if run.manifest.working_directory == str(self.folder)]
        return run


@dataclass
class Totals:
    """What a campaign has done and found. Every count of `wrong` has to be 0."""

    kills: Counter[str] = field(default_factory=Counter)
    processes: int = 0
    runs: int = 0
    records: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))

        lines = [
            f"kills: {self.kills.total()} ({listed(self.kills)}); processes killed: {self.processes}",
            f"runs: {self.runs}; calls that had returned, and were looked for: {listed(self.records)}",
            *(f"{what}: {self.wrong[what]}" for what in WRONG),
            *self.details,
            f"in {self.seconds:.0f} s",
        ]
        return "\n".join(lines)


WRONG = (
    "lost: a call had returned, the journal does not have it",
    *(f"lost in {backend}" for backend in BACKENDS),
    *(f"duplicates in {backend}" for backend in BACKENDS),
    "not as logged",
    "rejected or damaged",
    "left running",
    "ghost runs",
)


class Campaign:
    """Rounds until there were enough kills.

    Args:
        served: MLflow.
        neptune: Neptune.
        directory: Where the trainings run.
        kills: How many, at least.
        seed: What everything is drawn from.
        offline_trainings: How many trainings without deliveries are in a round.
    """

    def __init__(
        self,
        served: MlflowOnPostgres,
        neptune: NeptuneServer,
        directory: Path,
        kills: int,
        seed: int,
        offline_trainings: int = 10,
    ) -> None:
        self.totals = Totals()
        self._served = served
        self._neptune = neptune
        self._directory = directory
        self._kills = kills
        self._seed = seed
        self._offline_trainings = offline_trainings
        self._lock = threading.Lock()
        self._run_ids: list[str] = []
        self._until = float("inf")

    def run(self, at_once: int, minutes: float = float("inf")) -> Totals:
        """Go through with it.

        Args:
            at_once: How many rounds go on at the same time.
            minutes: No round begins after that.
        """
        started = time.monotonic()
        self._until = started + minutes * 60
        with ThreadPoolExecutor(at_once) as pool:
            for lane in [pool.submit(self._go_on, number, at_once) for number in range(at_once)]:
                lane.result()
        self._look_for_ghosts()
        self.totals.seconds = time.monotonic() - started
        return self.totals

    def _go_on(self, number: int, stride: int) -> None:
        while self.totals.kills.total() < self._kills and time.monotonic() < self._until:
            self._round(number)
            number += stride

    def _round(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/{number}")
        with staged(self._directory / f"round-{number}") as stage:
            stage.environment |= {
                "TRACKHUB_MLFLOW_TRACKING_URI": self._served.url,
                "TRACKHUB_NEPTUNE_TIMEOUT_SECONDS": "5",
                "NEPTUNE_PROJECT": self._neptune.project,
                "NEPTUNE_API_TOKEN": self._neptune.api_token,
            }
            training = Training.start(stage, "online", "online")
            trainings = [training]
            with ThreadPoolExecutor() as pool:
                killers = [pool.submit(self._kill_deliveries, training, name, chance.random()) for name in BACKENDS]
                for name in range(self._offline_trainings):
                    trainings.append(Training.start(stage, f"offline-{name}", "offline"))
                    time.sleep(chance.uniform(0, 1.5))
                    self._kill("offline training", [trainings[-1].process.pid])
            for killer in killers:
                killer.result()
            time.sleep(chance.uniform(0, 1))
            self._kill_training(training.process, chance)
            for _ in range(chance.randint(1, 3)):
                self._kill_sync(stage, chance)
            self._sync(stage, number)
            # What the training's own deliveries were still at.
            self._await_end(stage, training.process.pid)
            with self._lock:
                for one in trainings:
                    self._check(number, one)
        print(f"round {number}: {self.totals.kills.total()} kills, wrong: {dict(self.totals.wrong)}", file=sys.stderr)

    def _sync(self, stage: Stage, number: int) -> None:
        """Let a sync through to its end."""
        log = stage.path / "last-sync.log"
        with log.open("w") as output:
            syncing = subprocess.Popen(
                sync_command(), cwd=stage.path, env=stage.environment, stdout=output, stderr=output
            )
        if syncing.wait(900) != 0:
            with self._lock:
                self._complain("left running", 1, number, log.read_text())

    # Killing

    def _kill(self, kind: str, victims: Iterable[int]) -> None:
        killed = 0
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed += 1
        if killed:
            with self._lock:
                self.totals.kills[kind] += 1
                self.totals.processes += killed

    def _kill_deliveries(self, training: Training, backend: str, seed: float) -> None:
        chance = random.Random(seed)
        parent, run = training.process.pid, training.run
        killed: set[int] = set()
        for _ in range(chance.randint(1, KILLS_OF_A_DELIVERY)):

            def fresh() -> int | None:
                pid = delivery_processes(parent, backend).get(backend)
                return pid if pid is not None and pid not in killed else None

            victim = wait_until(fresh, f"a delivery process of {backend}", DEADLINE_SECONDS)
            before = run.cursor(backend).position
            if chance.random() < 0.25:
                # While it starts.
                time.sleep(chance.uniform(0, 2))
            else:
                # While it delivers.
                with contextlib.suppress(AssertionError):
                    wait_until(lambda before=before: run.cursor(backend).position != before, "something to arrive", 20)
                time.sleep(chance.uniform(0, 0.7))
            killed.add(victim)
            self._kill(f"{backend} delivery", [victim])

    def _kill_training(self, process: Any, chance: random.Random) -> None:
        if chance.random() < 0.5:
            self._kill("training", [process.pid])
        else:
            victims = [process.pid, *delivery_processes(process.pid).values()]
            chance.shuffle(victims)
            self._kill("whole tree", victims)
        process.wait()

    def _kill_sync(self, stage: Stage, chance: random.Random) -> None:
        with (stage.path / "sync.log").open("a") as output:
            syncing = subprocess.Popen(
                sync_command(), cwd=stage.path, env=stage.environment, stdout=output, stderr=output
            )
        try:
            with contextlib.suppress(AssertionError):
                wait_until(lambda: delivery_processes(syncing.pid) or syncing.poll() is not None, "it to begin", 20)
            time.sleep(chance.uniform(0, 4))
            children = delivery_processes(syncing.pid)
            if syncing.poll() is not None or not children:
                return
            what = chance.choice(("sync", "sync with its deliveries", "delivery of sync"))
            if what == "delivery of sync":
                self._kill(what, [children[chance.choice(sorted(children))]])
                syncing.wait(300)
            else:
                self._kill(what, [syncing.pid, *(children.values() if what != "sync" else [])])
        finally:
            if syncing.poll() is None:
                syncing.kill()
            syncing.wait()
            # Those of a sync that was killed alone deliver what is there, and end.
            self._await_end(stage, syncing.pid)

    def _await_end(self, stage: Stage, parent: int) -> None:
        """Wait for the delivery processes of a parent that has gone; they deliver what is there first."""
        try:
            wait_until(lambda: not delivery_processes(parent), "the delivery processes to end", DEADLINE_SECONDS)
        except AssertionError as error:
            standing = "\n".join(str(delivery_report(run, "")) for run in stage.runs())
            error.add_note(f"{delivery_processes(parent)} go on\n{standing}")
            raise

    # Counting

    def _complain(self, what: str, count: int, number: int, detail: object) -> None:
        if count:
            self.totals.wrong[what] += count
            self.totals.details.append(f"round {number}: {what}: {count}: {detail}")

    def _check(self, number: int, training: Training) -> None:
        run = training.run
        self.totals.runs += 1
        run_id = run.manifest.id
        self._run_ids.append(run_id)
        records = records_of(run)
        steps = [record.step for record in records if isinstance(record, MetricsLogged)]
        texts = [record for record in records if isinstance(record, TextLogged)]
        artifacts = [record for record in records if isinstance(record, ArtifactLogged)]
        calls = training.returned
        for kind, count, there in zip(("metrics", "texts", "artifacts"), calls, (steps, texts, artifacts), strict=True):
            self.totals.records[kind] += count
            self._complain(WRONG[0], max(count - len(there), 0), number, kind)
        self._complain("not as logged", int(steps != list(range(len(steps)))), number, "steps in the journal")
        for sign, key in ((1, "x"), (-1, "y")):
            expected = [(step, float(sign * step)) for step in steps]
            for backend, found in self._found(run, key).items():
                self._complain(f"lost in {backend}", len(set(expected) - set(found)), number, key)
                self._complain(f"duplicates in {backend}", len(found) - len(set(found)), number, key)
                self._complain("not as logged", len(set(found) - set(expected)), number, f"{key} in {backend}")
        files = {
            **{f"text/note/step-{record.step:08d}.txt": f"text {record.step}".encode() for record in texts},
            **{record.name: _weights(record.name) for record in artifacts},
        }
        remote = self._served.remote_runs(run_id)
        self._complain("left running", len([status for _, status in remote if status != "KILLED"]), number, remote)
        objects = self._served.objects(remote[0][0])
        self._complain("lost in mlflow", len(files.keys() - objects.keys()), number, "artifacts")
        same = sum(objects[name] == content for name, content in files.items() if name in objects)
        self._complain("not as logged", len(objects) - same, number, "artifacts in mlflow")
        at_neptune = self._neptune.run(custom_id=to_custom_run_id(run_id))
        uploaded = sum(at_neptune.content(f"artifacts/{record.name}") == _weights(record.name) for record in artifacts)
        self._complain("lost in neptune", len(artifacts) - uploaded, number, "artifacts")
        self._complain("left running", int(at_neptune.value("trackhub/status") != "killed"), number, "neptune")
        for backend in BACKENDS:
            cursor = run.cursor(backend)
            self._complain("left running", int(cursor.closed_status != "killed"), number, backend)
            report = cursor.report
            self._complain("rejected or damaged", report.rejected + len(report.damaged[1:]), number, report)
            off = report.delivered.get("metrics", 0) != len(steps)
            self._complain("not as logged", int(off), number, f"the report of {backend} counts {report.delivered}")

    def _found(self, run: RunDirectory, key: str) -> dict[str, list[tuple[int, float]]]:
        """Steps and values of a metric in each backend."""
        run_id = run.manifest.id
        series = self._neptune.run(custom_id=to_custom_run_id(run_id)).series(f"metrics/{key}")
        return {
            "mlflow": self._served.points(self._served.remote_runs(run_id)[0][0], key),
            "tensorboard": scalars(run)[key],
            "neptune": [(int(point.step), float(point.value)) for point in series],
        }

    def _look_for_ghosts(self) -> None:
        """Runs at a vendor that no run directory stands for, and several for one."""
        known = set(self._run_ids)
        rows = self._served.query(
            "select r.run_uuid, t.value, r.status from runs r left join tags t on t.run_uuid = r.run_uuid "
            "and t.key = 'trackhub.run_id' where r.lifecycle_stage = 'active' and r.name = 'campaign'"
        )
        at_mlflow = Counter(run_id for _, run_id, _ in rows)
        at_neptune = Counter(run.custom_id for run in self._neptune.runs.values())
        for name, found, expected in (
            ("mlflow", at_mlflow, known),
            ("neptune", at_neptune, {to_custom_run_id(run_id) for run_id in known}),
        ):
            strangers = sum(count for run_id, count in found.items() if run_id not in expected)
            doubles = sum(count - 1 for run_id, count in found.items() if run_id in expected)
            self._complain("ghost runs", strangers + doubles, -1, name)
            self._complain("left running", len(expected - found.keys()), -1, f"not at {name}")
        self._complain("left running", len([1 for *_, status in rows if status == "RUNNING"]), -1, "mlflow")


def _weights(name: str) -> bytes:
    return int(name.removeprefix("weights-")).to_bytes(8, "little") * 4096


def sync_command() -> list[str]:
    return [sys.executable, "-m", "trackhub", "sync"]


@contextlib.contextmanager
def own_servers() -> Iterator[tuple[MlflowOnPostgres, Path]]:
    """MLflow of the campaign's own, and a directory."""
    with tempfile.TemporaryDirectory(prefix="trackhub-campaign-") as folder, running_everything(Path(folder)) as served:
        yield served, Path(folder)


def main() -> int:
    """Run a campaign; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Kill trainings and deliveries, and count what is lost or doubled.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after that")
    parser.add_argument("--at-once", type=int, default=2, help="rounds that go on at the same time")
    chosen = parser.parse_args()
    with hurried_deliveries(), own_servers() as (served, directory), neptune_server() as neptune:
        # What is sent twice is then there twice; the vendor would refuse it.
        neptune.strict_steps = False
        totals = Campaign(served, neptune, directory, chosen.kills, chosen.seed).run(chosen.at_once, chosen.minutes)
    print(totals)
    return 1 if totals.wrong or totals.kills.total() < chosen.kills else 0


if __name__ == "__main__":
    sys.exit(main())
