"""A run to four backends at once, with faults at random for as long as one likes: nothing is lost, doubled or leaked.

`TRACKHUB_SOAK_SECONDS` says for how long faults are done: `nox -s soak` for half an hour, else a minute and a half, so
that the test ends within two minutes. `TRACKHUB_SOAK_SEED` chooses which faults.
"""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import sqlite3
import statistics
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from backends.mlflow_server import running_server
from backends.neptune_server import NeptuneServer, neptune_server
from faulty_proxy import FaultyProxy, faulty_proxy
from stage import Stage, exists, records_of, scalars, tell, wait_until

from trackhub.records import MetricsLogged
from trackhub.sync import sync

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

SECONDS = float(os.environ.get("TRACKHUB_SOAK_SECONDS", "75"))
SEED = int(os.environ.get("TRACKHUB_SOAK_SEED", "1"))
STORM = 0.4
"""For this part of the time processes are killed, too. In the rest they live, so that a leak has time to show."""
FAULTS: list[dict[str, Any]] = [
    {"kind": "refuse"},
    {"kind": "status", "status": 503, "headers": {"Retry-After": "1"}},
    {
        "kind": "status",
        "status": 500,
        "headers": {"Content-Type": "text/html"},
        "body": b"<html>Something is wrong</html>",
    },
    {"kind": "black_hole"},
    {"kind": "lose_answer"},
]
BACKENDS = ("mlflow", "tensorboard", "neptune", "csv")
STEPS_PER_SECOND = 100
FIRST_STEP_APART = 10_000_000
SAMPLE_SECONDS = 0.25
MOST_GROWTH = 0.05
MOST_GROWTH_BYTES = 4 << 20
"""More is a leak: memory varies with the size of the batch that an outage has let grow, and with what the allocator has
given back. In half an hour a leak of two hundred bytes a step in the training process is more, and one of half a
kilobyte where a vendor's SDK is loaded."""
MOST_MORE_FILES = 2
"""A connection that is being made anew has two descriptors for a moment."""

TRAINING = """
import os, struct, sys, threading, time, trackhub
first, rate = int(sys.argv[1]), int(sys.argv[2])
mark = os.open("returned", os.O_RDWR | os.O_CREAT)
tracker = trackhub.init(project="soak", name="soak", run_id="soak", params={"lr": 0.1}, finish_timeout=30)
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
began, step = time.monotonic(), first
while not ending.is_set():
    tracker.log_metrics({"a": step % 100_000, "b": -step % 100_000, "c": step % 7, "d": 0.5}, step=step)
    step += 1
    os.pwrite(mark, struct.pack("<q", step), 0)
    time.sleep(max(0.0, began + (step - first) / rate - time.monotonic()))
tracker.finish()
"""
VALUES: dict[str, Callable[[int], float]] = {
    "a": lambda step: float(step % 100_000),
    "b": lambda step: float(-step % 100_000),
    "c": lambda step: float(step % 7),
    "d": lambda step: 0.5,
}


@dataclass
class Watch:
    """What the processes of one part of the soak have held: role -> (time, process, resident bytes, open files)."""

    seen: dict[str, list[tuple[float, int, int, int]]] = field(default_factory=dict)

    def look(self, role: str, pid: int) -> None:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            self.seen.setdefault(role, []).append((time.monotonic(), pid, pages * os.sysconf("SC_PAGE_SIZE"), files))

    def medians(self, role: str) -> list[tuple[float, float]]:
        """Of resident bytes and open files, for each third of the time."""
        seen = self.seen[role]
        began, length = seen[0][0], (seen[-1][0] - seen[0][0]) / 3 + 1e-9
        thirds: list[list[tuple[int, int]]] = [[], [], []]
        for at, _, resident, files in seen:
            thirds[int((at - began) / length)].append((resident, files))
        return [(statistics.median(r for r, _ in one), statistics.median(f for _, f in one)) for one in thirds]


class Soak:
    """The run, its backends, and what is done to them.

    Args:
        stage: Where training runs.
        proxy: Before the MLflow server.
        neptune: The Neptune server.
        chance: Decides.
    """

    def __init__(self, stage: Stage, proxy: FaultyProxy, neptune: NeptuneServer, chance: random.Random) -> None:
        self.stage = stage
        self.proxy = proxy
        self.neptune = neptune
        self.chance = chance
        self.done: Counter[str] = Counter()
        self.training: Any = None
        self.attempts = 0
        self.watch = Watch()
        self._heal: dict[str, tuple[float, Callable[[], None]]] = {}
        self._servers = contextlib.ExitStack()
        (stage.path / "mlflow").mkdir()
        (stage.path / "train.py").write_text(TRAINING, encoding="utf-8")
        stage.environment |= {
            "TRACKHUB_BACKENDS": ",".join(BACKENDS),
            "MLFLOW_TRACKING_URI": proxy.url,
            "NEPTUNE_PROJECT": neptune.project,
            "NEPTUNE_API_TOKEN": neptune.api_token,
            "TRACKHUB_NEPTUNE_TIMEOUT_SECONDS": "5",
            "TRACKHUB_MLFLOW_REQUEST_TIMEOUT_SECONDS": "10",
            "TRACKHUB_CSV_DIRECTORY": str(stage.path / "csv"),
        }

    def start_server(self) -> None:
        address = urlsplit(self._servers.enter_context(running_server(self.stage.path / "mlflow")))
        self.proxy.upstream = str(address.hostname), address.port or 80

    def stop_server(self) -> None:
        self._servers.close()

    def start_training(self) -> None:
        """Go on with the run, at steps that no earlier attempt has come near."""
        before, first = self.returned(), self.attempts * FIRST_STEP_APART
        assert before <= first
        self.training = self.stage.start(
            f"import sys; sys.argv[1:] = ['{first}', '{STEPS_PER_SECOND}']; exec(open('train.py').read())"
        )
        self.attempts += 1
        wait_until(lambda: self.returned() > first, "the training to begin")

    def returned(self) -> int:
        """The step behind the last one whose call has returned."""
        path = self.stage.path / "returned"
        content = path.read_bytes() if path.exists() else b""
        return int(struct.unpack("<q", content)[0]) if len(content) == 8 else 0

    def deliveries(self) -> dict[str, int]:
        """Backend -> the process that delivers to it now."""
        run = self.stage.run_directory()
        holders = {name: run.cursor_file(name).holder() for name in BACKENDS}
        return {name: pid for name, pid in holders.items() if pid is not None and _is_delivery(pid, name)}

    def has_caught_up(self) -> bool:
        """Whether all that was logged until some seconds ago is at every backend."""
        run = self.stage.run_directory()
        behind = [run.remaining(run.cursor(name)) for name in BACKENDS]
        return len(self.deliveries()) == len(BACKENDS) and max(behind) < 3 * STEPS_PER_SECOND

    # What goes wrong. What does not end by itself is ended by `tend`, a moment later.

    def kill_a_delivery(self) -> None:
        self._signal_a_delivery(signal.SIGKILL)

    def freeze_a_delivery(self) -> None:
        frozen = self._signal_a_delivery(signal.SIGSTOP)
        if frozen is not None:

            def thaw() -> None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(frozen, signal.SIGCONT)

            self._until_healed(f"frozen {frozen}", thaw)

    def _signal_a_delivery(self, number: int) -> int | None:
        alive = self.deliveries()
        if not alive:
            return None
        pid = alive[self.chance.choice(sorted(alive))]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def kill_the_training(self) -> None:
        self.training.kill()
        self.training.wait()
        self.start_training()

    def kill_everything(self) -> None:
        victims = [self.training.pid, *self.deliveries().values()]
        self.chance.shuffle(victims)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.training.wait()
        self.start_training()

    def trouble_mlflow(self) -> None:
        self.proxy.fail(**self.chance.choice(FAULTS))
        self._until_healed("mlflow", self.proxy.heal)

    def restart_mlflow(self) -> None:
        self.stop_server()
        self.start_server()

    def trouble_neptune(self) -> None:
        neptune, kind = self.neptune, self.chance.choice(("500", "429", "drop", "lose_answer", "hang", "stop"))
        if kind == "stop":
            neptune.stop()
            self._until_healed("neptune", neptune.start)
            return
        if kind in ("500", "429"):
            neptune.fail("status", status=int(kind), headers={"Retry-After": "1"})
        elif kind == "hang":
            neptune.fail("hang")
        else:
            neptune.fail(kind, only="executeOperations", times=1)
        self._until_healed("neptune", neptune.heal)

    def _until_healed(self, what: str, heal: Callable[[], None]) -> None:
        self._heal[what] = (time.monotonic() + self.chance.uniform(0.5, 3.0), heal)

    def heal(self, now: float = float("inf")) -> None:
        """End what has gone wrong for long enough."""
        for what, (until, heal) in list(self._heal.items()):
            if until <= now:
                del self._heal[what]
                heal()

    def storm(self, seconds: float, faults: dict[Callable[[], None], int]) -> None:
        """Do harm, with these weights, and watch what processes hold."""
        began = time.monotonic()
        next_fault, seen = began + 1, self.returned()
        while (now := time.monotonic()) < began + seconds:
            self.heal(now)
            if now >= next_fault:
                (fault,) = self.chance.choices(list(faults), list(faults.values()))
                if not (fault == self.trouble_mlflow and "mlflow" in self._heal) and not (
                    fault == self.trouble_neptune and "neptune" in self._heal
                ):
                    fault()
                    self.done[fault.__name__] += 1
                next_fault = time.monotonic() + self.chance.uniform(1.0, 4.0)
                # Whatever happens to backends and deliveries, training goes on.
                wait_until(lambda before=seen: self.returned() > before, "the training to go on", 5)
            seen = self.returned()
            assert self.training.poll() is None
            self.watch.look("training", self.training.pid)
            for name, pid in self.deliveries().items():
                self.watch.look(name, pid)
            time.sleep(SAMPLE_SECONDS)
        self.heal()


def _is_delivery(pid: int, backend: str) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        return "trackhub.delivery_process" in words and backend in words and exists(pid)
    return False


@pytest.mark.parametrize(
    ("bytes_a_minute", "files_a_minute", "leaks"), [(0, 0.0, False), (4 << 20, 0.0, True), (0, 1.0, True)]
)
def test_half_an_hour_of_growth_is_told_from_half_an_hour_of_ups_and_downs(
    bytes_a_minute: int, files_a_minute: float, leaks: bool
) -> None:
    chance, watch = random.Random(1), Watch()
    for second in range(1080):
        resident = 200_000_000 + chance.randrange(8 << 20) + bytes_a_minute * second // 60
        files = 12 + chance.randrange(3) + int(files_a_minute * second / 60)
        for role in ("training", *BACKENDS):
            watch.seen.setdefault(role, []).append((float(second), 7, resident, files))
    if leaks:
        with pytest.raises(AssertionError, match="training"):
            expect_nothing_leaked(watch)
    else:
        expect_nothing_leaked(watch)


@pytest.fixture
def soak(stage: Stage) -> Iterator[Soak]:
    with neptune_server() as neptune, faulty_proxy("http://127.0.0.1:1") as proxy:
        one = Soak(stage, proxy, neptune, random.Random(SEED))
        try:
            one.start_server()
            one.start_training()
            yield one
        finally:
            one.heal()
            one.stop_server()


@pytest.mark.timeout(SECONDS * 1.5 + 1200)
def test_whatever_goes_wrong_every_point_is_everywhere_once_and_nothing_leaks(
    soak: Soak, monkeypatch: pytest.MonkeyPatch
) -> None:
    survivable = {soak.freeze_a_delivery: 2, soak.trouble_mlflow: 4, soak.trouble_neptune: 4}
    deadly = {soak.kill_a_delivery: 4, soak.kill_the_training: 2, soak.kill_everything: 2, soak.restart_mlflow: 1}
    soak.storm(SECONDS * STORM, survivable | deadly)
    # Every delivery process that is there now has then loaded all it needs.
    wait_until(soak.has_caught_up, "the deliveries to catch up", 300)
    soak.watch = Watch()
    soak.storm(SECONDS * (1 - STORM), survivable)

    tell(soak.training)
    assert soak.training.wait(120) == 0
    for name, value in soak.stage.environment.items():
        if name.startswith(("TRACKHUB_", "MLFLOW_", "NEPTUNE_")):
            monkeypatch.setenv(name, value)
    run = soak.stage.run_directory()
    (report,) = sync([run], timeout_seconds=600, patience_seconds=120)
    assert report, str(report)
    expect_every_point_once(soak)
    expect_nothing_leaked(soak.watch)


def expect_every_point_once(soak: Soak) -> None:
    run = soak.stage.run_directory()
    steps = [record.step for record in records_of(run) if isinstance(record, MetricsLogged)]
    assert len(set(steps)) == len(steps)
    last = max(steps) // FIRST_STEP_APART
    returned = [step for step in steps if step // FIRST_STEP_APART == last]
    assert last == soak.attempts - 1
    assert soak.returned() - last * FIRST_STEP_APART == len(returned)
    expected = {name: [(step, value(step)) for step in steps] for name, value in VALUES.items()}
    (neptune_run,) = soak.neptune.runs.values()
    arrived = {
        "tensorboard": scalars(run),
        "csv": _in_csv(next((soak.stage.path / "csv" / "soak").glob("metrics*.csv"))),
        "mlflow": _in_mlflow(soak.stage.path / "mlflow" / "server.db"),
        "neptune": {name: [(int(p.step), p.value) for p in neptune_run.series(f"metrics/{name}")] for name in VALUES},
    }
    for backend, found in arrived.items():
        assert set(found) == set(expected), backend
        for name, points in found.items():
            # Told in a few words: the lists have hundreds of thousands of points.
            lost, more = Counter(expected[name]), Counter(points)
            lost, more = lost - more, more - lost
            told = f"{name}: {lost.total()} lost {list(lost)[:5]}, {more.total()} too many {list(more)[:5]}"
            assert lost == more == Counter(), f"{backend}, {told}"
    for name in BACKENDS:
        cursor = run.cursor(name)
        assert (cursor.report.rejected, cursor.report.suspended, cursor.closed_status) == (0, None, "finished"), name
        assert cursor.report.delivered["metrics"] == len(steps), name
    harm = f"{dict(soak.done)}; connections: {dict(soak.proxy.met)}"
    print(f"\n{len(steps):,} steps of {len(VALUES)} metrics, {soak.attempts} attempts; {harm}")


def _in_csv(path: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["name"], []).append((int(line["step"]), float(line["value"])))
    return found


def _in_mlflow(database: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of the one run there is, which must have ended well."""
    found: dict[str, list[tuple[int, float]]] = {}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert [status for (status,) in connection.execute("SELECT status FROM runs")] == ["FINISHED"]
        for key, step, value in connection.execute("SELECT key, step, value FROM metrics"):
            found.setdefault(key, []).append((step, value))
    return found


def expect_nothing_leaked(watch: Watch) -> None:
    assert set(watch.seen) == {"training", *BACKENDS}
    for role, seen in watch.seen.items():
        # The second third beside the last: in the first one they meet each kind of trouble for the first time.
        _, (middle, files), (last, last_files) = watch.medians(role)
        processes = len({pid for _, pid, _, _ in seen})
        print(
            f"{role}: {processes} processes, {middle / 1e6:.1f} -> {last / 1e6:.1f} MB, {files} -> {last_files} files"
        )
        assert last <= middle * (1 + MOST_GROWTH) + MOST_GROWTH_BYTES, (role, middle, last)
        assert last_files <= files + MOST_MORE_FILES, (role, files, last_files)
