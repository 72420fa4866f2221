"""SIGTERM, with real processes and real signals: what is delivered, how the run ends, how and when the process ends."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from backends_for_tests import HERE, calls_in
from stage import (
    DEADLINE_SECONDS,
    Stage,
    delivery_processes,
    records_of,
    said,
    scalars,
    staged,
    tell,
    wait_until,
)

from trackhub.records import MetricsLogged
from trackhub.rundir import RunDirectory, runs_in

pytestmark = [
    # MLflow, TensorBoard's reader and what they import; not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]

TIMEOUT_SECONDS = 1.0
PROMPTLY_SECONDS = 5.0
STILL_THERE_SECONDS = 1.0
# Scripts pause in short naps: CPython acts on a signal that comes right before a blocking call only after that call.
SHORT = {"TRACKHUB_TERMINATION_TIMEOUT": str(TIMEOUT_SECONDS)}


def end(process: Any, *signals: signal.Signals, within: float = DEADLINE_SECONDS) -> tuple[str, str]:
    """Signal a process and wait for its end, which must come in time; gives back what it printed."""
    for one in signals:
        process.send_signal(one)
    out, err = process.communicate(timeout=within)
    return out.strip(), err or ""


def steps_of(run: RunDirectory) -> list[int]:
    """The steps in a run's journal."""
    return [record.step for record in records_of(run) if isinstance(record, MetricsLogged)]


def steps_shown(path: Path, *, run: str | None = None) -> list[int]:
    """The steps a backend was given, for all runs or for one; the calls between two `open`s are those of a run."""
    shown, current = [], None
    for call in calls_in(path):
        current = call["run"] if call["call"] == "open" else current
        if call["call"] == "write_metrics" and run in (None, current):
            shown += [record["step"] for record in call["records"]]
    return shown


def ends_shown(path: Path) -> list[str]:
    """How the runs ended at a backend."""
    return [call["status"] for call in calls_in(path) if call["call"] == "close"]


def cut_off(process: Any) -> None:
    """End the delivery processes that a training process has left, as the end of a container does."""
    for process_id in delivery_processes(process.pid).values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    wait_until(lambda: not delivery_processes(process.pid), "the delivery processes to end", 60)


def run_printed_command(stage: Stage, errors: str, environment: Mapping[str, str] | None = None) -> None:
    """Run the command that a training process has printed for what was not delivered."""
    (line,) = [line for line in errors.splitlines() if line.startswith("deliver the rest with: ")]
    program, *arguments = shlex.split(line.removeprefix("deliver the rest with: "))
    assert program == "trackhub"
    subprocess.run(
        [sys.executable, "-m", "trackhub", *arguments],
        cwd=stage.path,
        env=environment or stage.environment,
        check=True,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
    )


# --- with the default action


def test_all_that_is_journaled_is_delivered_before_the_process_ends_as_by_the_signal(stage: Stage) -> None:
    process = stage.start(
        """
        import time, trackhub
        tracker = trackhub.init(backends=["lines", "tensorboard", "inline"])
        child = tracker.child("kid")
        done = tracker.child("done")
        done.log_metrics({"x": 0.0}, step=1000)
        done.finish()
        for step in range(500):
            tracker.log_metrics({"x": step}, step=step)
        child.log_metrics({"x": 0.0}, step=2000)
        print("not flushed yet")
        open("logged", "w").close()
        while True:
            time.sleep(0.05)
        """,
        stderr=subprocess.PIPE,
    )
    wait_until((stage.path / "logged").exists, "all to be logged")
    assert end(process, signal.SIGTERM) == ("not flushed yet", "")
    # Nobody waits here: it is all there when the process has gone.
    assert process.returncode == -signal.SIGTERM
    assert sorted(ends_shown(stage.lines)) == ["finished", "killed", "killed"]
    assert sorted(ends_shown(stage.path / "inline.jsonl")) == ["finished", "killed", "killed"]
    for path in (stage.lines, stage.path / "inline.jsonl"):
        assert sorted(steps_shown(path)) == [*range(500), 1000, 2000]
    for run in stage.runs():
        status, record = run.end()
        assert (status, record.error if record else "") in [("killed", "SIGTERM"), ("finished", None)]
        assert (status == "finished") == (run.manifest.name == "done")
        assert run.cursor("tensorboard").closed_status == status
        if run.manifest.parent_id is None:
            assert scalars(run)["x"] == [(step, float(step)) for step in range(500)]


def test_what_cannot_be_delivered_in_the_grace_is_named_with_the_command_that_delivers_it(stage: Stage) -> None:
    process = stage.start(
        """
        import time, trackhub
        tracker = trackhub.init(name="big one", backends=["lines", "unavailable"])
        child = tracker.child("kid")
        child.log_metrics({"x": 0.0}, step=1000)
        for step in range(50):
            tracker.log_metrics({"x": step}, step=step)
        print("logged", flush=True)
        while True:
            time.sleep(0.05)
        """,
        stderr=subprocess.PIPE,
        # Enough for a backend that works to be told the end.
        environment={"TRACKHUB_TERMINATION_TIMEOUT": "5"},
    )
    said(process)
    wait_until(lambda: len(steps_shown(stage.lines)) == 51, "a backend that works to have it all")
    wait_until(
        lambda: next(run for run in stage.runs() if run.manifest.parent_id is None).cursor("unavailable").report.error,
        "the other to have failed",
    )
    told = time.monotonic()
    _, errors = end(process, signal.SIGTERM)
    assert time.monotonic() - told < 5 + PROMPTLY_SECONDS
    assert process.returncode == -signal.SIGTERM
    assert ends_shown(stage.lines) == ["killed", "killed"]
    parent, child = sorted(stage.runs(), key=lambda run: run.manifest.parent_id is not None)
    assert f"run big one ({parent.manifest.id})" in errors
    assert "lines: complete" in errors
    assert "unavailable: 50 records are not delivered yet\nunavailable: not available: the vendor does not" in errors
    assert f"child run {child.manifest.id}: unavailable: 1 record is not delivered yet" in errors
    # As in a pod, nothing outlives the process. The vendor is back, and another process takes over.
    cut_off(process)
    shown = stage.path / "unavailable.jsonl"
    shown.touch()
    run_printed_command(stage, errors)
    assert sorted(steps_shown(shown)) == [*range(50), 1000]
    assert ends_shown(shown) == ["killed", "killed"]
    assert sorted(steps_shown(stage.lines)) == [*range(50), 1000]


@pytest.mark.parametrize(
    ("command", "to", "exit_code", "printed"),
    [
        ("exec {python} train.py", "group", -signal.SIGTERM, ""),
        ("{python} train.py", "group", -signal.SIGTERM, ""),
        # Argo tells the whole group: the shell is gone at once, and the training goes on alone.
        ("{python} train.py; true", "group", -signal.SIGTERM, ""),
        ("{python} train.py; status=$?; echo status $status; exit $status", "training", 143, "status 143"),
        ("{python} train.py || exit 7", "training", 7, ""),
    ],
)
def test_under_a_shell(stage: Stage, command: str, to: str, exit_code: int, printed: str) -> None:
    (stage.path / "train.py").write_text(
        textwrap.dedent(
            """
            import os, time, trackhub
            tracker = trackhub.init(backends=["lines"])
            for step in range(100):
                tracker.log_metrics({"x": step}, step=step)
            print(os.getpid(), flush=True)
            while True:
                time.sleep(0.05)
            """
        ),
        encoding="utf-8",
    )
    shell = subprocess.Popen(
        ["sh", "-c", command.format(python=shlex.quote(sys.executable))],
        cwd=stage.path,
        env=stage.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with shell:
        training = int(said(shell))
        try:
            if to == "group":
                os.killpg(shell.pid, signal.SIGTERM)
            else:
                os.kill(training, signal.SIGTERM)
            # The pipe is closed when the last of them has gone.
            assert shell.communicate(timeout=DEADLINE_SECONDS)[0].strip() == printed
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == exit_code
    assert stage.run_directory().end()[0] == "killed"
    assert steps_shown(stage.lines) == list(range(100))
    assert ends_shown(stage.lines) == ["killed"]


# --- with handlers of others

EXIT = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))"
FLAG = "stop = []; signal.signal(signal.SIGTERM, lambda *_: stop.append(1))"
RAISE = """
class Preempted(Exception): pass
def preempted(*_): raise Preempted("the node is going away")
signal.signal(signal.SIGTERM, preempted)
"""
LOG = """
def checkpoint(*_):
    pathlib.Path("checkpoint.bin").write_bytes(b"weights")
    trackhub.current().log_artifact("checkpoint.bin")
    trackhub.current().log_metrics({"x": 0.0}, step=1000)
    trackhub.current().log_metrics({"x": 0.0})
    sys.exit(143)
signal.signal(signal.SIGTERM, checkpoint)
"""
CHAIN = """
earlier = signal.getsignal(signal.SIGTERM)
def mine(number, frame):
    print("mine", flush=True)
    earlier(number, frame)
signal.signal(signal.SIGTERM, mine)
"""


HANDLERS = {"": -signal.SIGTERM, EXIT: 143, FLAG: 0}
"""Handler -> the exit code of a training that is signalled while it has that one."""


@pytest.mark.parametrize(
    ("before", "after", "body", "exit_code", "says"),
    [
        (EXIT, "", "plain", 143, ""),
        (EXIT, "", "with", 143, ""),
        (FLAG, "", "plain", 0, "ended by itself"),
        (FLAG, "", "with", 0, "ended by itself"),
        (RAISE, "", "plain", 1, ""),
        (RAISE, "", "with", 1, ""),
        (LOG, "", "plain", 143, ""),
        ("", CHAIN, "plain", -signal.SIGTERM, "mine"),
        (EXIT, CHAIN, "plain", 143, "mine"),
        ("", EXIT, "with", 143, ""),
    ],
    ids=[
        "exit", "exit-with", "flag", "flag-with", "raise", "raise-with", "logs-a-checkpoint", "later-chains",
        "both", "later-exits",
    ],
)  # fmt: skip
def test_handlers_of_others_still_run_and_decide_how_the_process_ends(
    stage: Stage, before: str, after: str, body: str, exit_code: int, says: str
) -> None:
    loop = """
        while not stop:
            tracker.log_metrics({"x": step}, step=step)
            step += 1
            if step == 100:
                print("logged", flush=True)
            if step > 100:
                time.sleep(0.01)
        print("ended by itself", flush=True)
    """
    program = "\n".join(
        [
            "import pathlib, signal, sys, time, trackhub",
            "stop, step = [], 0",
            before,
            'tracker = trackhub.init(backends=["lines"])',
            after,
            "with tracker:" if body == "with" else "if True:",
            textwrap.indent(textwrap.dedent(loop), "    "),
        ]
    )
    process = stage.start(program, stderr=subprocess.PIPE)
    said(process)
    out, errors = end(process, signal.SIGTERM)
    assert (process.returncode, out) == (exit_code, says), errors
    assert ("Preempted: the node is going away" in errors) == (before == RAISE)
    run = stage.run_directory()
    assert run.end()[0] == "killed"
    ended = run.end()[1]
    assert ended is not None
    assert ended.error == "SIGTERM"
    # Nobody waits here: the handlers leave the time for it.
    assert steps_shown(stage.lines) == steps_of(run)
    assert ends_shown(stage.lines) == ["killed"]
    if before == LOG:
        assert steps_of(run)[-2:] == [1000, 1001]
        assert run.cursor("lines").report.delivered["artifacts"] == 1


def test_a_signal_that_is_ignored_stays_ignored(stage: Stage) -> None:
    process = stage.start(
        """
        import signal, sys, trackhub
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with trackhub.init(backends=["lines"]) as tracker:
            tracker.log_metrics({"x": 0.0}, step=0)
            print("logged", flush=True)
            sys.stdin.readline()
            tracker.log_metrics({"x": 1.0}, step=1)
        """
    )
    said(process)
    process.send_signal(signal.SIGTERM)
    tell(process)
    end(process)
    assert process.returncode == 0
    assert steps_shown(stage.lines) == [0, 1]
    assert ends_shown(stage.lines) == ["finished"]


def test_a_handler_of_c_code_stays(stage: Stage) -> None:
    process = stage.start(
        """
        import faulthandler, signal, sys, trackhub
        faulthandler.register(signal.SIGTERM)
        with trackhub.init(backends=["lines"]) as tracker:
            print("logging", flush=True)
            sys.stdin.readline()
            tracker.log_metrics({"x": 1.0}, step=1)
        """,
        stderr=subprocess.PIPE,
    )
    said(process)
    process.send_signal(signal.SIGTERM)
    tell(process)
    _, errors = end(process)
    assert "most recent call first" in errors
    assert process.returncode == 0
    assert ends_shown(stage.lines) == ["finished"]


def test_a_run_started_in_a_thread_changes_nothing_until_the_main_thread_starts_one(stage: Stage) -> None:
    process = stage.start(
        """
        import signal, sys, threading, time, trackhub
        def train():
            tracker = trackhub.init(name="in a thread", backends=["lines"])
            tracker.log_metrics({"x": 0.0}, step=0)
        thread = threading.Thread(target=train)
        thread.start(); thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        print("logged", flush=True)
        if sys.stdin.readline() == "another\\n":
            trackhub.init(name="main", backends=["lines"])
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            print("logged", flush=True)
        while True:
            time.sleep(0.05)
        """
    )
    said(process)
    tell(process, "another")
    said(process)
    end(process, signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
    assert ends_shown(stage.lines) == ["killed", "killed"]
    assert steps_shown(stage.lines) == [0]


def test_without_a_handler_the_run_ends_as_that_of_a_process_that_vanished(stage: Stage) -> None:
    process = stage.start(
        """
        import threading, time, trackhub
        def train():
            tracker = trackhub.init(backends=["lines"])
            for step in range(100):
                tracker.log_metrics({"x": step}, step=step)
            print("logged", flush=True)
            while True:
                time.sleep(0.05)
        threading.Thread(target=train, daemon=True).start()
        while True:
            time.sleep(0.05)
        """
    )
    said(process)
    end(process, signal.SIGTERM, within=PROMPTLY_SECONDS)
    assert process.returncode == -signal.SIGTERM
    stage.wait_closed("lines")
    assert ends_shown(stage.lines) == ["killed"]
    assert steps_shown(stage.lines) == list(range(100))


# --- in the middle of something


WAITS = {
    "finish": "tracker.finish()",
    "flush": "tracker.flush()",
    "finish-timeout": "tracker.finish(timeout=60)",
    "flush-timeout": "tracker.flush(timeout=60)",
    "exit": "pass",
}


@pytest.mark.parametrize(
    ("wait", "handler"),
    [
        *((wait, handler) for wait in ("finish", "flush", "exit") for handler in ("", EXIT, FLAG)),
        # Given a timeout, only what goes on waiting after the signal could tell a difference.
        *((wait, FLAG) for wait in ("finish-timeout", "flush-timeout")),
    ],
    ids=lambda value: {"": "default", EXIT: "exit", FLAG: "flag"}.get(value, value),
)
def test_a_wait_for_a_backend_that_never_answers_is_cut_short(stage: Stage, wait: str, handler: str) -> None:
    process = stage.start(
        f"""
        import signal, sys, trackhub
        {handler}
        tracker = trackhub.init(backends=["sleeping"])
        tracker.log_metrics({{"x": 1.0}})

        def say(frame, event, _):
            if frame.f_code.co_name == "wait_for_deliveries":
                sys.setprofile(None)
                print("waiting", flush=True)

        sys.setprofile(say)
        {WAITS[wait]}
        """,
        stderr=subprocess.PIPE,
        environment=SHORT,
    )
    said(process)
    told = time.monotonic()
    _, errors = end(process, signal.SIGTERM)
    assert time.monotonic() - told < TIMEOUT_SECONDS + PROMPTLY_SECONDS
    # What a handler raises while the interpreter exits is printed by CPython and changes nothing.
    exit_code = 0 if (wait, handler) == ("exit", EXIT) else HANDLERS[handler]
    assert process.returncode == exit_code, errors
    assert "sleeping: 1 record is not delivered yet" in errors
    assert "deliver the rest with: trackhub sync" in errors
    # What the training has ended itself stays as it has ended.
    assert stage.run_directory().end()[0] == ("killed" if wait.startswith("flush") else "finished")


def test_a_second_sigterm_changes_nothing_and_ctrl_c_ends_the_wait(stage: Stage) -> None:
    process = stage.start(
        """
        import time, trackhub
        tracker = trackhub.init(backends=["lines", "sleeping"])
        tracker.log_metrics({"x": 1.0}, step=0)
        print("logged", flush=True)
        while True:
            time.sleep(0.05)
        """,
        stderr=subprocess.PIPE,
    )
    said(process)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: ends_shown(stage.lines), "the run to be ended")
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(STILL_THERE_SECONDS)
    _, errors = end(process, signal.SIGINT, within=PROMPTLY_SECONDS)
    assert process.returncode == -signal.SIGTERM
    assert "Traceback" not in errors
    assert stage.run_directory().end()[0] == "killed"
    assert steps_shown(stage.lines) == [0]


@pytest.mark.parametrize(("handler", "exit_code"), [("", -signal.SIGTERM), (EXIT, 143)], ids=["default", "exit"])
def test_a_delivery_that_goes_on_in_the_main_thread_is_completed_first(
    stage: Stage, handler: str, exit_code: int
) -> None:
    process = stage.start(
        f"""
        import signal, sys, time, trackhub
        {handler}
        tracker = trackhub.init(backends=["inline"], inline={{"seconds": 0.5}})
        tracker.log_metrics({{"x": 1.0}}, step=0)
        tracker.flush()
        while True:
            time.sleep(0.05)
        """,
        stderr=subprocess.PIPE,
    )
    shown = stage.path / "inline.jsonl"
    wait_until(lambda: any(call["call"] == "begin" for call in calls_in(shown)), "the delivery to begin")
    told = time.monotonic()
    _, errors = end(process, signal.SIGTERM)
    assert time.monotonic() - told < 0.5 + PROMPTLY_SECONDS
    assert (process.returncode, errors) == (exit_code, "")
    assert steps_shown(shown) == [0]
    assert ends_shown(shown) == ["killed"]
    assert stage.run_directory().end()[0] == "killed"


def test_a_delivery_that_never_ends_in_the_main_thread_keeps_no_process_alive(stage: Stage) -> None:
    process = stage.start(
        """
        import time, trackhub
        tracker = trackhub.init(backends=["inline"], inline={"seconds": 600})
        tracker.log_metrics({"x": 1.0}, step=0)
        tracker.flush()
        """,
        stderr=subprocess.PIPE,
        environment=SHORT,
    )
    shown = stage.path / "inline.jsonl"
    wait_until(lambda: any(call["call"] == "begin" for call in calls_in(shown)), "the delivery to begin")
    told = time.monotonic()
    _, errors = end(process, signal.SIGTERM)
    assert time.monotonic() - told < TIMEOUT_SECONDS + PROMPTLY_SECONDS
    assert process.returncode == -signal.SIGTERM
    assert "inline: " in errors
    assert stage.run_directory().end()[0] == "killed"


MOMENTS = '''
import os, signal, sys

def arm(number):
    """Have this process signalled at the number-th place from here, in trackhub's code, where handlers may run."""
    global passed
    passed = 0

    def look(frame, event, _):
        global passed
        # Nowhere else: a handler does not come between what has no call.
        if event in ("call", "c_return") and "/trackhub/" in frame.f_code.co_filename:
            passed += 1
            if passed == number:
                sys.setprofile(None)
                open("signalled", "wb").close()
                os.kill(os.getpid(), signal.SIGTERM)

    sys.setprofile(look)

def begin(phase):
    sys.setprofile(None)
    if phase == PHASE:
        arm(NUMBER)
'''

EVERYTHING = """
import pathlib, signal, sys, time
stop = []
returned = open("returned", "wb", buffering=0)
begin("import")
import trackhub
begin("init")
tracker = trackhub.init(backends=["lines", "inline"], params={"lr": 0.1})
begin("log")
for step in range(300):
    if stop:
        break
    tracker.log_metrics({"x": step}, step=step)
    returned.write(b"%d\\n" % step)
    if step % 30 == 0:
        tracker.log_text("note", "hello", step=step)
    if step == 100:
        begin("flush")
        tracker.flush()
        begin("child")
        child = tracker.child("kid")
        child.log_metrics({"x": 0.0}, step=1000)
        returned.write(b"1000\\n")
        child.finish()
        begin("log again")
begin("finish")
tracker.finish()
begin("over")
open("over", "wb").close()
"""
PHASES = ("init", "log", "flush", "child", "log again", "finish")


def everything(handler: str, phase: str, number: int) -> str:
    return "\n".join(
        [
            MOMENTS,
            f"PHASE, NUMBER, passed = {phase!r}, {number}, 0",
            "import signal, sys; stop = []",
            handler,
            EVERYTHING,
        ]
    ).replace("stop = []\nreturned", "returned")


def expect_nothing_lost(stage: Stage, process: Any, handler: str, phase: str, errors: str) -> None:
    """What must hold wherever the signal came: in that phase, or at some time ("")."""
    told = HANDLERS[handler]
    if phase:
        assert process.returncode == (told if (stage.path / "signalled").exists() else 0)
    elif (stage.path / "over").exists():
        # It may still come while the interpreter exits.
        assert process.returncode in (0, told)
    else:
        assert process.returncode == told
    if phase or handler != EXIT:
        # Else CPython may have ignored what the handler raised, aloud: in a callback of its import machinery, say.
        assert "Traceback" not in errors, errors
    returned = [int(line) for line in (stage.path / "returned").read_bytes().split()]
    journaled = []
    for run in stage.runs():
        if not run.cursor("lines").closed:
            # `init`, or `child`, had not returned.
            assert phase in ("init", "child", "")
            assert not steps_of(run)
            continue
        status = run.end()[0]
        journaled += steps_of(run)
        over = run.manifest.parent_id is not None or phase in ("init", "finish", "")
        assert status == "killed" or (status == "finished" and over), (status, phase)
        assert run.cursor("lines").closed_status == status
        assert run.cursor("inline").closed_status == status
    assert set(returned) <= set(journaled)
    assert len(journaled) - len(returned) in (0, 1)
    for path in (stage.lines, stage.path / "inline.jsonl"):
        assert sorted(steps_shown(path)) == sorted(journaled)


def at_moments(tmp_path: Path, rounds: list[tuple[str, str, int | float]]) -> None:
    """Run everything, a round each, signalled at a place in a phase, or at a time where there is none."""

    def play(number: int) -> None:
        handler, phase, moment = rounds[number]
        with staged(tmp_path / f"round{number}") as stage:
            place = moment if phase else 0
            process = stage.start(everything(handler, phase, int(place)), stderr=subprocess.PIPE)
            if not phase:
                wait_until((stage.path / "returned").exists, "the script to begin")
                time.sleep(moment)
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=DEADLINE_SECONDS)
            try:
                expect_nothing_lost(stage, process, handler, phase, errors)
            except AssertionError as error:
                raise AssertionError(f"round {number} {rounds[number]}: {error}\n{errors}") from error

    for number in range(len(rounds)):
        (tmp_path / f"round{number}").mkdir()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(play, range(len(rounds))))


def rounds_of(seed: int, count: int) -> list[tuple[str, str, int | float]]:
    """Two of three at a place in a phase, each as far into it as the next; the others at a time."""
    chance = random.Random(seed)
    # As many places as a phase surely has, for those that wait have as many as the wait is long.
    places = {"init": 640, "log": 1050, "flush": 1000, "child": 1000, "log again": 1900, "finish": 2000}
    rounds: list[tuple[str, str, int | float]] = []
    for number in range(count):
        handler = chance.choice(list(HANDLERS))
        if number % 3:
            phase = PHASES[(number - number // 3) % len(PHASES)]
            rounds.append((handler, phase, chance.randint(1, places[phase])))
        else:
            rounds.append((handler, "", chance.uniform(0.0, 0.6)))
    return rounds


def test_whenever_it_comes_nothing_is_lost_or_shown_twice(tmp_path: Path) -> None:
    at_moments(tmp_path, rounds_of(seed=1, count=24))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 8))
def test_whenever_it_comes_nothing_is_lost_or_shown_twice_many_times(tmp_path: Path, seed: int) -> None:
    at_moments(tmp_path, rounds_of(seed, count=60))


def test_a_signal_while_trackhub_is_loaded_waits_until_it_is(stage: Stage) -> None:
    """What a handler raises while msgspec's C module looks for datetime is lost in it, and NULL is used later."""
    out, _ = stage.run(
        """
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

        def look(frame, event, _):
            if event == "call" and frame.f_code.co_name == "_find_and_load" and frame.f_locals["name"] == "datetime":
                if frame.f_back.f_code.co_name == "_call_with_frames_removed":
                    sys.setprofile(None)
                    print("told", flush=True)
                    os.kill(os.getpid(), signal.SIGTERM)

        sys.setprofile(look)
        import trackhub
        trackhub.init
        print("went on")
        """,
        exit_code=143,
    )
    assert out == "told"


# --- several runs


def test_all_runs_of_a_process_end_and_share_the_grace(stage: Stage) -> None:
    process = stage.start(
        """
        import time, trackhub
        off = trackhub.init(mode="disabled")
        first = trackhub.init(name="first", backends=["lines", "sleeping"])
        second = trackhub.init(name="second", backends=["lines", "sleeping"])
        third = trackhub.init(name="third", mode="offline", backends=["lines"])
        for step, tracker in enumerate([off, first, second, third, first.child("kid")]):
            tracker.log_metrics({"x": 1.0}, step=step)
        done = trackhub.init(name="done", backends=["lines"])
        done.finish()
        print("logged", flush=True)
        while True:
            time.sleep(0.05)
        """,
        stderr=subprocess.PIPE,
        environment=SHORT,
    )
    said(process)
    told = time.monotonic()
    _, errors = end(process, signal.SIGTERM)
    assert time.monotonic() - told < TIMEOUT_SECONDS + PROMPTLY_SECONDS
    assert process.returncode == -signal.SIGTERM
    ends = {run.manifest.name: run.end()[0] for run in stage.runs()}
    assert ends == {"first": "killed", "second": "killed", "third": "killed", "kid": "killed", "done": "finished"}
    # On a busy machine the grace may be over before; the delivery goes on.
    wait_until(lambda: len(ends_shown(stage.lines)) == 4, "the backend that works to have been told all ends")
    assert sorted(ends_shown(stage.lines)) == ["finished", "killed", "killed", "killed"]
    assert sorted(steps_shown(stage.lines)) == [1, 2, 4]
    assert ("run first (" in errors, "run second (" in errors, "run third (" in errors) == (True, True, False)


def test_a_disabled_run_leaves_the_signal_alone(stage: Stage) -> None:
    process = stage.start(
        """
        import signal, time, trackhub
        tracker = trackhub.init(mode="disabled")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        tracker.log_metrics({"x": 1.0})
        print("logged", flush=True)
        time.sleep(600)
        """
    )
    said(process)
    end(process, signal.SIGTERM, within=PROMPTLY_SECONDS)
    assert process.returncode == -signal.SIGTERM


# --- other processes of the training


def test_forked_children_are_ended_at_once_and_the_run_goes_on(stage: Stage) -> None:
    stage.run(
        """
        import multiprocessing, os, signal, time, trackhub

        def work(ready):
            trackhub.current().log_metrics({"x": 0.0}, step=int(ready.fileno() > 0) + 999)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            ready.send("ready")
            time.sleep(600)

        with trackhub.init(backends=["lines"], mode="online") as tracker:
            ours = signal.getsignal(signal.SIGTERM)
            context = multiprocessing.get_context("fork")
            mine, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,))
            process.start()
            mine.recv()
            told = time.monotonic()
            process.terminate()
            process.join()
            assert process.exitcode == -signal.SIGTERM
            assert time.monotonic() - told < 1.0

            # Also one that is told before it has run a single line.
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    time.sleep(600)
                os.kill(child, signal.SIGTERM)
                assert os.waitpid(child, 0)[1] == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) is ours
            assert not tracker.finished
            tracker.log_metrics({"x": 1.0}, step=1)
        assert tracker.finish()
        """
    )
    assert sorted(steps_shown(stage.lines)) == [1, 1000]
    assert ends_shown(stage.lines) == ["finished"]


def test_a_forked_child_with_a_run_of_its_own_delivers_that_one(stage: Stage) -> None:
    stage.run(
        """
        import os, signal, time, trackhub
        with trackhub.init(name="parent", backends=["lines"]) as tracker:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                own = trackhub.init(name="child", backends=["lines"])
                for step in range(50):
                    own.log_metrics({"x": 0.0}, step=step)
                os.write(writer, b".")
                while True:
                    time.sleep(0.05)
            os.read(reader, 1)
            os.kill(child, signal.SIGTERM)
            assert os.waitpid(child, 0)[1] == signal.SIGTERM
            tracker.log_metrics({"x": 0.0}, step=1000)
            assert not tracker.finished
        """
    )
    ends = {run.manifest.name: run.end() for run in stage.runs()}
    assert {name: status for name, (status, _) in ends.items()} == {"parent": "finished", "child": "killed"}
    assert ends["child"][1] is not None
    assert sorted(steps_shown(stage.lines)) == [*range(50), 1000]
    assert sorted(ends_shown(stage.lines)) == ["finished", "killed"]


def test_a_program_that_is_started_has_the_default_action(stage: Stage) -> None:
    out, _ = stage.run(
        """
        import os, subprocess, sys, trackhub
        tracker = trackhub.init()
        print(subprocess.run([sys.executable, "-c", "import signal; print(signal.getsignal(15) is signal.SIG_DFL)"],
                             capture_output=True, text=True, check=True).stdout)
        """
    )
    assert out == "True"


# --- in a container


CONTAINER_USER = 12345
"""Without an entry in any list of users."""


def why_no_containers(*unshare: str) -> str | None:
    """What keeps this machine from giving a process a view of its own; None if nothing does."""
    try:
        tried = subprocess.run(["unshare", *unshare, "true"], capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return "there is no unshare(1)"
    return tried.stderr.strip() or "unshare(1) failed" if tried.returncode else None


@contextlib.contextmanager
def container(command: list[str], stage: Stage, environment: dict[str, str]) -> Iterator[tuple[Any, int]]:
    """Run `unshare ... command`; gives the process, and the id that process 1 in there has out here."""
    process = subprocess.Popen(
        command,
        cwd=stage.path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            first = wait_until(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text, "process 1 to begin")
            yield process, int(first.split()[0])
        finally:
            process.kill()


def test_as_process_1(stage: Stage) -> None:
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    unshare = (*user, "--pid", "--fork", "--mount-proc", "--kill-child")
    if reason := why_no_containers(*unshare):
        pytest.skip(reason)
    code = """
import os, time, trackhub
tracker = trackhub.init(backends=["lines"])
for step in range(100):
    tracker.log_metrics({"x": step}, step=step)
print(os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""
    with container(["unshare", *unshare, sys.executable, "-c", code], stage, stage.environment) as (process, first):
        assert said(process) == "1"
        os.kill(first, signal.SIGTERM)
        assert process.communicate(timeout=DEADLINE_SECONDS) == ("", "")
    # The kernel ignores what a process 1 does to itself by the default action.
    assert process.returncode == 143
    assert stage.run_directory().end()[0] == "killed"
    assert steps_shown(stage.lines) == list(range(100))
    assert ends_shown(stage.lines) == ["killed"]


class Pod:
    """A container as strict as a cluster may have it: everything read-only but a few directories, a user nobody knows.

    Args:
        stage: Where things lie.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.path.chmod(0o755)
        self.volume = self._folder("volume", CONTAINER_USER)
        """Stands for what is outside of the pod: the backends."""
        self.scratch = self._folder("scratch", CONTAINER_USER)
        self.home = self._folder("home", 0)
        self.work = self._folder("work", 0)
        self.environment = {
            name: value for name, value in stage.environment.items() if name not in ("USER", "LOGNAME", "USERNAME")
        } | {
            "HOME": str(self.home),
            "TMPDIR": str(self.scratch),
            "TRACKHUB_LINES_PATH": str(self.volume / "lines.jsonl"),
            "TRACKHUB_UNAVAILABLE_PATH": str(self.volume / "unavailable.jsonl"),
            "TRACKHUB_TENSORBOARD_LOGDIR": str(self.volume / "runs"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.volume}/mlflow.db",
        }
        del self.environment["TRACKHUB_DIR"]

    def _folder(self, name: str, owner: int) -> Path:
        folder = self.stage.path / name
        folder.mkdir()
        os.chown(folder, owner, owner)
        return folder

    def command(self, code: str, work: Path) -> list[str]:
        """The command that runs a script as process 1 of the pod, in that directory."""
        needed = {Path(place).resolve() for place in (sys.prefix, sys.base_prefix, HERE, self.stage.path, *sys.path)}
        closed = {place: above for place in needed if place.is_dir() and (above := _closed_folder(place))}
        shown = [place for place in closed if not any(other in place.parents for other in closed)]
        setup = [
            "set -e",
            "mount -t tmpfs -o mode=755 pod /mnt",
            *(f"mkdir /mnt/{number}; mount --bind {place} /mnt/{number}" for number, place in enumerate(shown)),
            # What only its owner may look into holds nothing else in the pod.
            *(f"mount -t tmpfs -o mode=755 pod {above}" for above in {closed[place] for place in shown}),
            *(f"mkdir -p {place}; mount --bind /mnt/{number} {place}" for number, place in enumerate(shown)),
            *(f"mount --bind {place} {place}" for place in (self.volume, self.scratch)),
            *(f"mount -o remount,bind,ro {place}" for place in shown),
            "mount -o remount,bind,ro /",
            f"cd {work}",
            f'exec setpriv --reuid {CONTAINER_USER} --regid {CONTAINER_USER} --clear-groups --no-new-privs -- "$@"',
        ]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return [*unshare, "sh", "-c", "\n".join(setup), "pod", sys.executable, "-c", textwrap.dedent(code)]

    def runs(self) -> list[RunDirectory]:
        return [run for root in self.scratch.glob("trackhub-*") for run in runs_in(root)]


def _closed_folder(place: Path) -> Path | None:
    """The topmost folder above a place that only its owner may look into."""
    return next((folder for folder in reversed(place.parents) if not folder.stat().st_mode & 0o001), None)


@pytest.fixture
def pod(stage: Stage) -> Pod:
    if os.geteuid() != 0:
        pytest.skip("only root can run a process as somebody else")
    if reason := why_no_containers("--mount", "--pid", "--fork", "--mount-proc", "--kill-child"):
        pytest.skip(reason)
    return Pod(stage)


def test_in_a_strict_pod_the_run_goes_to_a_temporary_directory_and_to_its_backends(pod: Pod) -> None:
    pod.environment["TRACKHUB_DIR"] = str(pod.work / "hub")
    pod.environment["TRACKHUB_TERMINATION_TIMEOUT"] = "4"
    code = """
        import os, time, trackhub
        from pathlib import Path
        for place in (Path.cwd(), Path.home(), Path("/"), Path(os.environ["TRACKHUB_DIR"]).parent):
            assert not os.access(place, os.W_OK), place
        assert os.getuid() == 12345 and os.getpid() == 1
        tracker = trackhub.init(backends=["lines", "unavailable"])
        Path(os.environ["TMPDIR"], "weights.bin").write_bytes(b"weights")
        tracker.log_artifact(Path(os.environ["TMPDIR"], "weights.bin"))
        for step in range(100):
            tracker.log_metrics({"x": step}, step=step)
        tracker.child("kid").log_metrics({"x": 0.0}, step=1000)
        print("logged", flush=True)
        while True:
            time.sleep(0.05)
    """
    with container(pod.command(code, pod.work), pod.stage, pod.environment) as (process, first):
        line = process.stdout.readline()
        assert line == "logged\n", process.communicate(timeout=10)
        shown = pod.volume / "lines.jsonl"
        wait_until(lambda: len(steps_shown(shown)) == 101, "the backend that works to have all but the end")
        os.kill(first, signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 143, errors
    (root,) = pod.scratch.glob("trackhub-*")
    assert f"{pod.work}/hub cannot be written (" in errors
    assert f"is recorded in {root} instead. Set TRACKHUB_DIR" in errors
    lines = pod.volume / "lines.jsonl"
    assert sorted(steps_shown(lines)) == [*range(100), 1000]
    assert ends_shown(lines) == ["killed", "killed"]
    assert [run.end()[0] for run in pod.runs()] == ["killed", "killed"]
    # Of what the backend lacks, the printed command brings it: from the directory that is named in it.
    (pod.volume / "unavailable.jsonl").touch()
    run_printed_command(pod.stage, errors, environment=pod.environment)
    assert sorted(steps_shown(pod.volume / "unavailable.jsonl")) == [*range(100), 1000]
    assert ends_shown(pod.volume / "unavailable.jsonl") == ["killed", "killed"]


def test_in_a_strict_pod_the_vendors_have_it_all_when_the_pod_ends(pod: Pod) -> None:
    # What a cluster gives to a user that the image does not know, and a working directory that is the image builder's.
    pod.environment["HOME"] = "/"
    pod.work.chmod(0o700)
    code = """
        import time, trackhub
        tracker = trackhub.init(project="pods", name="parent", params={"lr": 0.1}, backends=["mlflow", "tensorboard"])
        child = tracker.child("kid")
        for step in range(100):
            tracker.log_metrics({"x": step}, step=step)
        child.log_metrics({"x": 0.0}, step=0)
        tracker.log_text("note", "hello")
        tracker.remote_id("mlflow", timeout=120), child.remote_id("mlflow", timeout=120)
        print("logged", flush=True)
        while True:
            time.sleep(0.05)
    """
    with container(pod.command(code, pod.work), pod.stage, pod.environment) as (process, first):
        line = process.stdout.readline()
        assert line == "logged\n", process.communicate(timeout=10)
        os.kill(first, signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 143, errors
    assert "not delivered" not in errors

    from mlflow import MlflowClient

    client = MlflowClient(pod.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("pods")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in found.items()} == {"parent": "KILLED", "kid": "KILLED"}
    history = client.get_metric_history(found["parent"].info.run_id, "x")
    assert sorted((point.step, point.value) for point in history) == [(step, float(step)) for step in range(100)]
    assert found["kid"].data.tags["mlflow.parentRunId"] == found["parent"].info.run_id
    for run in pod.runs():
        assert run.cursor("tensorboard").closed_status == "killed"
        if run.manifest.parent_id is None:
            assert scalars(run)["x"] == [(step, float(step)) for step in range(100)]


def test_where_nothing_at_all_can_be_written_init_says_so(pod: Pod) -> None:
    pod.environment["TMPDIR"] = str(pod.home)
    code = """
        import trackhub
        try:
            trackhub.init(backends=["lines"])
        except OSError as error:
            print(error)
    """
    with container(pod.command(code, pod.work), pod.stage, pod.environment) as (process, _):
        out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, errors
    assert f"{pod.work}/.trackhub cannot be written (" in out
    assert "and there is no temporary directory that can be: set TRACKHUB_DIR" in out
