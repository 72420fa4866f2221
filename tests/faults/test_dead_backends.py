"""Every backend is dead: `finish` returns in time all the same, and what it prints completes the run later."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from faulty_proxy import faulty_proxy
from neptune_server import NeptuneServer, neptune_server
from real_servers import MlflowOnPostgres
from stage import Stage, delivery_processes, said, tell, wait_until
from three_backends import environment, found_in_all, run_printed_command, statuses

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

STEPS = 500
TIMEOUT_SECONDS = 2.0
SLACK_SECONDS = 1.0
BACKENDS = ("mlflow", "tensorboard", "neptune", "raising", "unavailable")

TRAINING = f"""
import sys, time, trackhub
tracker = trackhub.init(backends="{",".join(BACKENDS)}", params={{"lr": 0.1}})
longest = 0.0
for step in range({STEPS}):
    started = time.perf_counter()
    tracker.log_metrics({{"loss": step}}, step=step)
    longest = max(longest, time.perf_counter() - started)
print("logged", flush=True)
sys.stdin.readline()
started = time.perf_counter()
report = tracker.finish(timeout={TIMEOUT_SECONDS})
print(longest, time.perf_counter() - started, flush=True)
print(report, flush=True)
"""


@pytest.fixture
def neptune() -> Iterator[NeptuneServer]:
    with neptune_server() as server:
        # What is sent twice is then there twice.
        server.strict_steps = False
        yield server


@pytest.mark.parametrize("how", ["refused", "black-hole", "suspended"])
def test_finish_keeps_its_timeout_and_the_printed_command_completes_the_run(
    stage: Stage, mlflow_on_postgres: MlflowOnPostgres, neptune: NeptuneServer, how: str
) -> None:
    # A directory that cannot be made.
    logdir = stage.path / "a-file"
    logdir.touch()
    with faulty_proxy(mlflow_on_postgres.url) as proxy, contextlib.ExitStack() as stack:
        served = replace(mlflow_on_postgres, url=proxy.url)
        stage.environment |= {
            **environment(served, neptune),
            "TRACKHUB_MLFLOW_REQUEST_TIMEOUT_SECONDS": "2",
            "TRACKHUB_TENSORBOARD_LOGDIR": str(logdir),
        }
        if how == "refused":
            proxy.fail("refuse")
            neptune.stop()
        elif how == "black-hole":
            proxy.fail("black_hole")
            neptune.fail("hang")
        process = stage.start(TRAINING, stderr=subprocess.DEVNULL)
        assert said(process) == "logged"
        if how == "suspended":
            deliveries = wait_until(
                lambda: (
                    (found := delivery_processes(process.pid)).keys() >= {"mlflow", "tensorboard", "neptune"} and found
                ),
                "the deliveries to begin",
            )
            for delivery in deliveries.values():
                os.kill(delivery, signal.SIGSTOP)
                stack.callback(_go_on, delivery)
        tell(process)
        longest, finish = map(float, said(process).split())
        started = time.monotonic()
        report = process.stdout.read()
        assert process.wait(30) == 0
        assert longest < 1.5
        assert finish < TIMEOUT_SECONDS + SLACK_SECONDS
        # The end of the process does not wait for what has been given up.
        assert time.monotonic() - started < SLACK_SECONDS + TIMEOUT_SECONDS
        for backend in ("mlflow", "tensorboard", "neptune", "unavailable"):
            assert f"{backend}: {STEPS + 1} records are not delivered yet" in report
        stack.close()
        proxy.heal()
        neptune.heal()
        if how == "refused":
            neptune.start()
        logdir.unlink()
        for backend in ("raising", "unavailable"):
            (stage.path / f"{backend}.jsonl").touch()
        run_printed_command(stage, report)
        stage.wait_closed(*BACKENDS)
        expected = [(step, float(step)) for step in range(STEPS)]
        assert found_in_all(stage, served, neptune, "loss") == dict.fromkeys(
            ("mlflow", "tensorboard", "neptune"), expected
        )
        assert set(statuses(stage, served, neptune).values()) == {"finished"}


def _go_on(process_id: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGCONT)
