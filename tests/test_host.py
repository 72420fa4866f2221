"""Delivery processes: that they are there when needed, harm nobody, and end. With real training scripts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from backends_for_tests import calls_in
from stage import DEADLINE_SECONDS, Stage, delivery_processes, exists, records_of, said, scalars, tell, wait_until

from trackhub.records import MetricsLogged

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

WHOLE_FLOW = """
import os, trackhub
with trackhub.init(project="p", params={"lr": 0.1}, backends=["tensorboard"]) as tracker:
    for step in range(200):
        tracker.log_metrics({"x": step}, step=step)
    tracker.log_text("note", "hello")
    child = tracker.child("kid")
    child.log_metrics({"y": 1.0}, step=0)
"""


def expect_whole_flow(stage: Stage) -> None:
    parent, child = sorted(stage.runs(), key=lambda run: run.manifest.parent_id is not None)
    for run in (parent, child):
        stage.wait_closed("tensorboard", run=run)
        assert run.cursor("tensorboard").closed_status == "finished"
    assert scalars(parent) == {"x": [(step, float(step)) for step in range(200)]}
    assert scalars(child) == {"y": [(0, 1.0)]}


def processor_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- beginnings, in all kinds of surroundings


@pytest.mark.parametrize("flags", [(), ("-W", "error", "-X", "dev"), ("-O",)], ids=["plain", "warnings", "optimized"])
def test_the_whole_flow_is_quiet(stage: Stage, flags: tuple[str, ...]) -> None:
    _, errors = stage.run(WHOLE_FLOW, *flags)
    assert errors == ""
    expect_whole_flow(stage)


def test_warnings_that_the_environment_makes_errors_do_not_reach_the_vendors(stage: Stage) -> None:
    code = 'import trackhub; trackhub.init(backends=["spy"]).finish()'
    stage.run(code, environment={"PYTHONWARNINGS": "error"})
    stage.wait_closed("spy")
    (environment,) = [call["warnings"] for call in calls_in(stage.path / "spy.jsonl") if call["call"] == "spy"]
    assert environment == []


def test_files_in_the_working_directory_are_not_taken_for_the_vendors(stage: Stage) -> None:
    for name in ("tensorboard.py", "mlflow.py", "numpy.py", "trackhub_test.py"):
        (stage.path / name).write_text("raise RuntimeError('the file of the user was imported')", encoding="utf-8")
    stage.run(WHOLE_FLOW)
    expect_whole_flow(stage)


def test_a_relative_directory_stays_where_it_was_when_the_process_moves_on(stage: Stage) -> None:
    elsewhere = stage.path / "elsewhere"
    elsewhere.mkdir()
    stage.run(
        f"""
        import os, trackhub
        tracker = trackhub.init(backends=["tensorboard"])
        os.chdir({str(elsewhere)!r})
        tracker.log_metrics({{"x": 1.0}}, step=0)
        assert tracker.finish()
        """,
        environment={"TRACKHUB_DIR": "hub", "TRACKHUB_TENSORBOARD_LOGDIR": "runs"},
    )
    assert scalars(stage.run_directory()) == {"x": [(0, 1.0)]}
    assert list(elsewhere.iterdir()) == []


def test_a_working_directory_that_is_deleted_harms_nothing(stage: Stage) -> None:
    gone = stage.path / "gone"
    gone.mkdir()
    _, errors = stage.run(
        f"""
        import os, shutil, trackhub
        tracker = trackhub.init(backends=["tensorboard"])
        shutil.rmtree({str(gone)!r})
        tracker.log_metrics({{"x": 1.0}}, step=0)
        tracker.child("kid").log_metrics({{"y": 1.0}})
        assert tracker.finish()
        """,
        cwd=gone,
    )
    assert errors == ""


def test_a_script_from_standard_input_is_a_training_process_too(stage: Stage) -> None:
    done = subprocess.run(
        [sys.executable, "-"],
        input=WHOLE_FLOW,
        text=True,
        cwd=stage.path,
        env=stage.environment,
        check=True,
        timeout=60,
    )
    assert done.returncode == 0
    expect_whole_flow(stage)


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_harm_nothing(stage: Stage, closed: str) -> None:
    script = stage.path / "train.py"
    script.write_text(WHOLE_FLOW, encoding="utf-8")
    command = ["bash", "-c", f'exec "$0" "$@" {closed}', sys.executable, str(script)]
    subprocess.run(command, cwd=stage.path, env=stage.environment, check=True, timeout=60)
    expect_whole_flow(stage)


def test_ignored_and_blocked_signals_are_the_training_processs_own(stage: Stage) -> None:
    stage.run(
        """
        import os, signal, trackhub
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
        with trackhub.init(backends=["spy"]) as tracker:
            tracker.log_metrics({"x": 1.0})
        assert tracker.finish()
        """
    )
    (spied,) = [call for call in calls_in(stage.path / "spy.jsonl") if call["call"] == "spy"]
    masks = dict(line.split(":\t") for line in spied["status"].splitlines() if line.startswith("Sig"))
    assert int(masks["SigBlk"], 16) == 0
    ignored = int(masks["SigIgn"], 16)
    assert not ignored & (1 << (signal.SIGCHLD - 1))
    assert not ignored & (1 << (signal.SIGTERM - 1))


def test_a_delivery_process_inherits_no_descriptors(stage: Stage) -> None:
    stage.run(
        """
        import os, socket, trackhub
        kept = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(64)]
        listener = socket.create_server(("127.0.0.1", 0))
        for descriptor in [*kept, listener.fileno()]:
            os.set_inheritable(descriptor, True)
        trackhub.init(backends=["spy"]).finish()
        """
    )
    (spied,) = [call for call in calls_in(stage.path / "spy.jsonl") if call["call"] == "spy"]
    leads_to = spied["descriptors"]
    assert not [target for target in leads_to.values() if target == "/etc/passwd" or target.startswith("socket:")]
    assert leads_to["0"].startswith("pipe:")
    assert leads_to["1"] == leads_to["2"] == str(stage.run_directory().log)
    own = [target for number, target in leads_to.items() if int(number) > 2]
    assert len([target for target in own if target.startswith("pipe:")]) == 2  # its own, to be woken by signals


# --- backends that misbehave


def test_backends_that_misbehave_harm_neither_training_nor_the_others(stage: Stage) -> None:
    out, errors = stage.run(
        """
        import time, trackhub
        tracker = trackhub.init(backends=["raising", "exiting", "sleeping", "tensorboard", "lines"])
        for step in range(10_000):
            tracker.log_metrics({"x": step}, step=step)
        while True:
            report = tracker.finish(timeout=1)
            if sorted(report.undelivered) == ["exiting", "raising", "sleeping"] and "gave up" in str(report):
                break
        print("told")
        """
    )
    assert out == "told"
    assert "raising: delivery gave up because the backend failed: trackhub-test-plugins 1.2.3: KeyError" in errors
    run = stage.run_directory()
    assert scalars(run) == {"x": [(step, float(step)) for step in range(10_000)]}
    assert sum(len(c["records"]) for c in calls_in(stage.lines) if c["call"] == "write_metrics") == 10_000
    assert run.cursor("exiting").report.delivered == {}


def test_no_call_waits_for_a_vendor_that_does_not_answer_and_its_part_arrives_later(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(backends=["unavailable", "tensorboard"])
        for step in range(10_000):
            tracker.log_metrics({"x": step}, step=step)
        print("logged", flush=True)
        sys.stdin.readline()
        assert tracker.finish()
        """
    )
    assert said(process) == "logged"
    run = stage.run_directory()
    wait_until(lambda: run.cursor("tensorboard").report.points == 10_000, "tensorboard to have all")
    wait_until(lambda: run.cursor("unavailable").report.error, "the other to be in trouble")
    (stage.path / "unavailable.jsonl").touch()
    tell(process)
    assert process.wait(60) == 0
    steps = [
        r["step"]
        for c in calls_in(stage.path / "unavailable.jsonl")
        if c["call"] == "write_metrics"
        for r in c["records"]
    ]
    assert steps == list(range(10_000))


def test_what_an_earlier_attempt_left_delivering_in_vain_lets_go_of_the_run(stage: Stage) -> None:
    """It was given an address where nobody is; the attempt after it has a better one."""
    train = """
        import os, signal, trackhub
        tracker = trackhub.init(run_id="again", backends=["unavailable"], finish_timeout=60)
        for step in range(FIRST, FIRST + 100):
            tracker.log_metrics({"x": step}, step=step)
        """
    killed = stage.start(train.replace("FIRST", "0") + "print('logged', flush=True); signal.pause()")
    said(killed)
    run = stage.run_directory()
    wait_until(lambda: run.cursor("unavailable").report.error, "the first attempt's delivery to be in trouble")
    killed.kill()
    (left,) = delivery_processes(killed.pid).values()
    better = stage.path / "better.jsonl"
    better.touch()
    stage.run(
        train.replace("FIRST", "100") + "assert tracker.finish(), tracker.finish()",
        environment={"TRACKHUB_UNAVAILABLE_PATH": str(better)},
    )
    steps = [
        record["step"] for call in calls_in(better) if call["call"] == "write_metrics" for record in call["records"]
    ]
    assert steps == list(range(200))
    assert run.cursor("unavailable").closed_status == "finished"
    wait_until(lambda: not exists(left), "what is left of the first attempt to end")


def test_a_plugin_broken_at_import_raises_in_init_if_it_is_chosen_and_else_nothing(stage: Stage) -> None:
    _, errors = stage.run('import trackhub; trackhub.init(backends=["broken"])', exit_code=1)
    last = errors.strip().splitlines()[-1]
    assert last.startswith(
        "trackhub.errors.SettingsError: the plugin of backend 'broken' (trackhub-test-plugins 1.2.3)"
    )
    assert "a_package_that_is_not_there" in last
    assert not stage.root.exists()
    stage.run('import trackhub; assert trackhub.init(backends=["lines"]).finish()')


def test_a_plugin_that_only_the_training_process_can_find_is_reported(stage: Stage) -> None:
    out, _ = stage.run(
        f"""
        import sys, trackhub
        sys.path[:0] = [{str(stage.plugins)!r}, {stage.environment["PYTHONPATH"].split(":")[1]!r}]
        print(trackhub.init(backends=["lines"]).finish(timeout=30))
        """,
        environment={"PYTHONPATH": ""},
    )
    assert "no backend is called 'lines'" in out


# --- the processes


def test_when_all_is_delivered_the_delivery_processes_end_by_themselves(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(backends=["tensorboard", "lines"])
        print(tracker.remote_id("lines"), tracker.remote_id("tensorboard"), flush=True)
        sys.stdin.readline()
        """
    )
    said(process)
    assert sorted(delivery_processes(process.pid)) == ["lines", "tensorboard"]
    tell(process)
    assert process.wait(60) == 0
    wait_until(lambda: not delivery_processes(process.pid), "the delivery processes to end")
    assert stage.run_directory().cursor("lines").closed_status == "finished"


def test_one_process_a_backend_serves_all_runs_of_a_process(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        for number in range(3):
            with trackhub.init(backends=["lines"], name=str(number)) as tracker:
                tracker.log_metrics({"x": number})
        print("done", flush=True)
        sys.stdin.readline()
        """
    )
    said(process)
    assert len(delivery_processes(process.pid)) == 1
    spawned = [int(entry) for entry in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert spawned == list(delivery_processes(process.pid).values())
    assert len([call for call in calls_in(stage.lines) if call["call"] == "close"]) == 3


@pytest.mark.long
def test_an_idle_delivery_process_ends_while_training_goes_on_and_comes_back_for_the_next_run(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        for number in range(2):
            with trackhub.init(backends=["lines"]) as tracker:
                pass
            print(bool(tracker.finish()), flush=True)
            sys.stdin.readline()
        """
    )
    assert said(process) == "True"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: not children.read_text(encoding="utf-8"), "the process to end and be collected", 60)
    tell(process)
    assert said(process) == "True"


def test_a_delivery_process_that_dies_with_nothing_to_do_leaves_no_zombie(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        trackhub.init(backends=["lines"]).finish()
        print("done", flush=True)
        sys.stdin.readline()
        """
    )
    said(process)
    os.kill(delivery_processes(process.pid)["lines"], signal.SIGKILL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: not children.read_text(encoding="utf-8"), "the dead process to be collected", 60)


def test_a_log_that_cannot_be_opened_does_not_keep_a_delivery_process_from_starting(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(backends=["lines"])
        tracker.remote_id("lines")
        print("open", flush=True)
        sys.stdin.readline()
        tracker.log_metrics({"x": 1.0})
        print(bool(tracker.finish()), flush=True)
        """
    )
    said(process)
    log = stage.run_directory().log
    log.unlink()
    log.mkdir()
    os.kill(delivery_processes(process.pid)["lines"], signal.SIGKILL)
    tell(process)
    assert said(process) == "True"


def test_an_idle_delivery_process_uses_next_to_no_processor_time(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(backends=["lines"])
        tracker.remote_id("lines")
        print("open", flush=True)
        sys.stdin.readline()
        """
    )
    said(process)
    delivery = delivery_processes(process.pid)["lines"]
    before = processor_seconds(delivery), processor_seconds(process.pid)
    time.sleep(4)
    assert processor_seconds(delivery) - before[0] < 0.2
    assert processor_seconds(process.pid) - before[1] < 0.2


@pytest.mark.parametrize("backend", ["lines", "raising"])
def test_a_process_that_has_ended_is_not_started_again_with_nothing_to_do(stage: Stage, backend: str) -> None:
    process = stage.start(
        f"""
        import sys, time, trackhub
        from trackhub import host
        tracker = trackhub.init(backends=["{backend}"])
        tracker.log_metrics({{"x": 1.0}})
        tracker.finish(timeout=0)
        print("finished", flush=True)
        sys.stdin.readline()
        # Every second, as the thread does, and once more.
        for _ in range(3):
            host.host().keep_alive()
            time.sleep(1)
        print("looked", flush=True)
        sys.stdin.readline()
        """
    )
    said(process)
    run = stage.run_directory()
    over = (
        (lambda: run.cursor("lines").closed) if backend == "lines" else lambda: run.cursor("raising").report.suspended
    )
    wait_until(over, "the delivery to be over")
    delivery = delivery_processes(process.pid)[backend]
    # It would end by itself, having been idle for a while.
    os.kill(delivery, signal.SIGTERM)
    wait_until(lambda: not exists(delivery), "the process to end")
    tell(process)
    assert said(process) == "looked"
    assert not delivery_processes(process.pid)


def test_two_hundred_child_runs_are_delivered_by_one_process(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        parent = trackhub.init(backends=["lines"], finish_timeout=200)
        children = [parent.child(f"trial{number}") for number in range(200)]
        for number, child in enumerate(children):
            child.log_metrics({"score": number}, step=0)
        print("logged", flush=True)
        sys.stdin.readline()
        report = parent.finish()
        print(bool(report), len(report.children), flush=True)
        """
    )
    said(process)
    assert len(delivery_processes(process.pid)) == 1
    tell(process)
    assert said(process) == "True 200"
    calls = calls_in(stage.lines)
    scores = sorted(r["values"]["score"] for c in calls if c["call"] == "write_metrics" for r in c["records"])
    assert scores == list(range(200))
    assert [sum(call["call"] == kind for call in calls) for kind in ("open", "close")] == [201, 201]
    (parent,) = [run for run in stage.runs() if run.manifest.parent_id is None]
    opened = {call["run"]: call["parent"] for call in calls if call["call"] == "open"}
    assert {of for run, of in opened.items() if run != parent.manifest.id} == {f"remote-{parent.manifest.id}"}


def test_a_run_directory_that_is_deleted_does_not_keep_a_process_busy(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(backends=["unavailable"])
        print("open", flush=True)
        sys.stdin.readline()
        tracker.finish()
        """,
        stderr=subprocess.PIPE,
    )
    said(process)
    wait_until(lambda: stage.run_directory().cursor("unavailable").report.error, "the delivery to be in trouble")
    shutil.rmtree(stage.run_directory().path)
    tell(process)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    wait_until(lambda: not delivery_processes(process.pid), "the delivery process to end")
    assert stage.runs() == []


# --- forks


def test_a_forked_child_writes_for_itself_and_does_not_end_the_run(stage: Stage) -> None:
    stage.run(
        """
        import os, sys, trackhub
        with trackhub.init(backends=["tensorboard"]) as tracker:
            tracker.log_metrics({"parent": 0.0}, step=0)
            for number in range(3):
                if os.fork() == 0:
                    for step in range(50):
                        trackhub.current().log_metrics({f"child{number}": step}, step=step)
                    tracker.log_text(f"text{number}", "from the child")
                    # Through os._exit, through the interpreter's end, and out of the with block.
                    if number == 0:
                        os._exit(0)
                    sys.exit(0)
            for _ in range(3):
                assert os.wait()[1] == 0
            assert not tracker.finished
            tracker.log_metrics({"parent": 1.0}, step=1)
        assert tracker.finish(), tracker.finish()
        """
    )
    run = stage.run_directory()
    found = scalars(run)
    assert found["parent"] == [(0, 0.0), (1, 1.0)]
    for number in range(3):
        assert found[f"child{number}"] == [(step, float(step)) for step in range(50)]
    assert run.end()[0] == "finished"
    assert run.cursor("tensorboard").report.delivered["text"] == 3


def test_a_worker_that_outlives_the_run_is_still_delivered(stage: Stage) -> None:
    process = stage.start(
        """
        import os, sys, trackhub
        tracker = trackhub.init(backends=["tensorboard"])
        begun = os.pipe()
        if os.fork() == 0:
            tracker.log_metrics({"worker": 0.0}, step=0)
            os.write(begun[1], b"1")
            sys.stdin.readline()
            tracker.log_metrics({"worker": 1.0}, step=1)
            os._exit(0)
        os.read(begun[0], 1)
        tracker.log_metrics({"owner": 0.0}, step=0)
        tracker.finish()
        print("finished", flush=True)
        os._exit(0)
        """
    )
    assert said(process) == "finished"
    run = stage.run_directory()
    wait_until(lambda: run.cursor("tensorboard").closed, "the run to be closed")
    tell(process)
    wait_until(lambda: run.cursor("tensorboard").report.points == 3, "the late record")
    stage.wait_closed("tensorboard")
    wait_until(lambda: not delivery_processes(process.pid), "the delivery process to end")
    assert scalars(run)["worker"] == [(0, 0.0), (1, 1.0)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes_of_multiprocessing_log_into_the_run(stage: Stage, method: str) -> None:
    script = stage.path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, trackhub

            def work(number, run_id):
                inherited = {method!r} == "fork"
                tracker = trackhub.current() if inherited else trackhub.init(run_id=run_id, backends=["tensorboard"])
                for step in range(20):
                    tracker.log_metrics({{f"w{{number}}": step}}, step=step)
                if not inherited:
                    tracker.finish()

            if __name__ == "__main__":
                context = multiprocessing.get_context({method!r})
                with trackhub.init(backends=["tensorboard"]) as tracker:
                    workers = [context.Process(target=work, args=(number, tracker.id)) for number in range(2)]
                    for worker in workers:
                        worker.start()
                    for worker in workers:
                        worker.join()
                        assert worker.exitcode == 0
                assert tracker.finish(), tracker.finish()
            """
        ),
        encoding="utf-8",
    )
    subprocess.run([sys.executable, str(script)], cwd=stage.path, env=stage.environment, check=True, timeout=120)
    run = stage.run_directory()
    assert scalars(run) == {f"w{number}": [(step, float(step)) for step in range(20)] for number in range(2)}
    assert run.end()[0] == "finished"


def test_a_fork_while_threads_log_does_not_hang(stage: Stage) -> None:
    stage.run(
        """
        import os, threading, trackhub
        with trackhub.init(backends=["lines"]) as tracker:
            stop = threading.Event()
            def work():
                # Each text is synced to disk at the end.
                texts = 0
                while not stop.is_set():
                    tracker.log_metrics({"busy": 1.0})
                    if texts < 300:
                        tracker.log_text("t", "x")
                        texts += 1
            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads:
                thread.start()
            for number in range(20):
                child = os.fork()
                if child == 0:
                    tracker.log_metrics({"child": number}, step=number)
                    tracker.log_text("from", "child")
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
            stop.set()
            for thread in threads:
                thread.join()
        """
    )
    points = [r for r in records_of(stage.run_directory()) if isinstance(r, MetricsLogged) and "child" in r.values]
    assert sorted(record.step for record in points) == list(range(20))


def test_a_forked_child_keeps_neither_the_parents_pipes_nor_its_locks(stage: Stage) -> None:
    stage.run(
        """
        import os, pathlib, trackhub
        def held():
            targets = [os.readlink(path) for path in pathlib.Path("/proc/self/fd").iterdir() if os.path.islink(path)]
            return sorted(target for target in targets if target.startswith("pipe:") or target.endswith(".lock"))
        before = held()
        with trackhub.init(backends=["lines", "tensorboard"]) as tracker:
            tracker.log_metrics({"x": 1.0})
            assert len(held()) > len(before)
            child = os.fork()
            if child == 0:
                os._exit(0 if held() == before else 1)
            assert os.waitpid(child, 0)[1] == 0
        """
    )


def test_a_forked_child_does_not_hold_the_parents_run_open(stage: Stage) -> None:
    process = stage.start(
        """
        import os, time, trackhub
        tracker = trackhub.init(backends=["lines"])
        tracker.remote_id("lines")
        child = os.fork()
        if child == 0:
            time.sleep(600)
        print(child, flush=True)
        time.sleep(600)
        """
    )
    child = int(said(process))
    try:
        process.kill()
        stage.wait_closed("lines")
        assert stage.run_directory().cursor("lines").closed_status == "killed"
        wait_until(lambda: not delivery_processes(process.pid), "the delivery process to end")
        assert exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


# --- how the process ends


@pytest.mark.parametrize(
    ("last", "exit_code", "status", "error"),
    [
        ("pass", 0, "finished", None),
        ("raise ValueError('bad batch')", 1, "failed", "ValueError: bad batch"),
        ("raise KeyboardInterrupt", None, "killed", "KeyboardInterrupt"),
        ("sys.exit(0)", 0, "finished", None),
        # As the docs say: outside of a `with` block nobody is told the exit code.
        ("sys.exit(1)", 1, "finished", None),
        ("os._exit(0)", 0, "killed", None),
        ("os.abort()", None, "killed", None),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, "killed", "SIGTERM"),
        ("os.execv('/bin/true', ['true'])", 0, "killed", None),
    ],
)
def test_the_end_of_the_process_is_the_end_of_the_run(
    stage: Stage, last: str, exit_code: int | None, status: str, error: str | None
) -> None:
    stage.run(
        f"""
        import os, signal, sys, trackhub
        tracker = trackhub.init(backends=["lines"])
        tracker.log_metrics({{"x": 1.0}})
        {last}
        """,
        exit_code=exit_code,
    )
    stage.wait_closed("lines")
    run = stage.run_directory()
    assert run.end()[0] == status
    ended = run.end()[1]
    assert (ended.error if ended else None) == error
    assert [call["status"] for call in calls_in(stage.lines) if call["call"] == "close"] == [status]
    assert len([call for call in calls_in(stage.lines) if call["call"] == "write_metrics"]) == 1


def test_an_exception_that_is_no_valid_text_ends_all_runs_as_failed(stage: Stage) -> None:
    _, errors = stage.run(
        """
        import trackhub
        runs = [trackhub.init(), trackhub.init()]
        raise ValueError("bad caf\\udce9.txt")
        """,
        exit_code=1,
    )
    assert errors.strip().endswith("ValueError: bad caf\\udce9.txt")
    ends = [run.end()[1] for run in stage.runs()]
    assert [(end.status, end.error) for end in ends if end] == [("failed", "ValueError: bad caf\\udce9.txt")] * 2


def test_a_run_that_cannot_be_ended_keeps_no_other_from_its_end(stage: Stage) -> None:
    _, errors = stage.run(
        """
        import trackhub
        from trackhub import active
        class Broken:
            finished = False
            def end_records(self, status, error):
                raise OSError("its disk is gone")
            end = end_records
        first = trackhub.init()
        active.enter(Broken())
        last = trackhub.init(backends=["lines"])
        """
    )
    assert errors.count("could not be ended: OSError: its disk is gone") == 2
    assert [run.end()[0] for run in stage.runs()] == ["finished", "finished"]
    stage.wait_closed("lines", run=stage.runs()[1])


def test_the_users_own_exception_hook_and_exit_handlers_still_work(stage: Stage) -> None:
    out, errors = stage.run(
        """
        import atexit, sys
        sys.excepthook = lambda kind, error, trace: print("hook", error)
        import trackhub
        tracker = trackhub.init()
        atexit.register(lambda: tracker.log_metrics({"late": 1.0}))
        raise ValueError("x")
        """,
        exit_code=1,
    )
    assert (out, errors) == ("hook x", "")
    run = stage.run_directory()
    assert run.end()[0] == "failed"
    assert [r.values for r in records_of(run) if isinstance(r, MetricsLogged)] == [{"late": 1.0}]


def test_logging_after_the_run_has_ended_at_exit_is_refused_not_lost_silently(stage: Stage) -> None:
    _, errors = stage.run(
        """
        import atexit
        atexit.register(lambda: tracker.log_metrics({"late": 1.0}))
        import trackhub
        tracker = trackhub.init()
        """,
        exit_code=None,
    )
    assert "RunFinishedError" in errors


def test_random_numbers_are_not_touched(stage: Stage) -> None:
    out, _ = stage.run(
        """
        import random, trackhub
        random.seed(7)
        with trackhub.init(backends=["lines"]) as tracker:
            tracker.log_metrics({"x": 1.0})
            tracker.log_histogram("h", [1.0, 2.0])
        print(random.random())
        """
    )
    assert out == str(random.Random(7).random())


def test_a_delivery_in_a_process_that_is_stopped_goes_on_when_it_is_continued(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(backends=["lines"])
        tracker.remote_id("lines")
        print("open", flush=True)
        sys.stdin.readline()
        for step in range(2000):
            tracker.log_metrics({"x": step}, step=step)
        print(bool(tracker.finish(timeout=1)), flush=True)
        """
    )
    said(process)
    delivery = delivery_processes(process.pid)["lines"]
    os.kill(delivery, signal.SIGSTOP)
    try:
        tell(process)
        assert said(process) == "False"
        assert process.wait(20) == 0
    finally:
        os.kill(delivery, signal.SIGCONT)
    stage.wait_closed("lines")
    steps = [r["step"] for c in calls_in(stage.lines) if c["call"] == "write_metrics" for r in c["records"]]
    assert steps == list(range(2000))


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "terminal-closed"])
def test_what_the_terminal_sends_reaches_the_training_process_alone(stage: Stage, what: signal.Signals) -> None:
    process = stage.start(
        """
        import signal, time, trackhub
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
        with trackhub.init(backends=["lines", "tensorboard"]) as tracker:
            tracker.remote_id("lines"), tracker.remote_id("tensorboard")
            tracker.log_metrics({"x": 1.0}, step=0)
            print("open", flush=True)
            time.sleep(600)
        """,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    said(process)
    deliveries = delivery_processes(process.pid)
    assert len(deliveries) == 2
    os.killpg(process.pid, what)
    process.communicate(timeout=60)
    stage.wait_closed("lines", "tensorboard")
    run = stage.run_directory()
    assert [run.cursor(name).closed_status for name in deliveries] == ["killed", "killed"]
    assert scalars(run) == {"x": [(0, 1.0)]}


def test_a_delivery_process_told_to_terminate_delivers_what_there_is_and_another_takes_over(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(backends=["lines"])
        tracker.remote_id("lines")
        print("open", flush=True)
        sys.stdin.readline()
        tracker.log_metrics({"x": 1.0})
        print(bool(tracker.finish()), flush=True)
        """
    )
    said(process)
    first = delivery_processes(process.pid)["lines"]
    os.kill(first, signal.SIGTERM)
    tell(process)
    assert said(process) == "True"
    wait_until(lambda: not exists(first), "the first process to end", 60)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    assert len([call for call in calls_in(stage.lines) if call["call"] == "write_metrics"]) == 1


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ("TERMINATION_GRACE_SECONDS=0.2, HANGING_AFTER_GRACE_SECONDS=0.2", True),
        ("OUTLIVES_TRAINING_SECONDS=5", False),
    ],
    ids=["told-to-end", "for-ever"],
)
def test_a_delivery_process_whose_backend_never_comes_back_ends_and_the_data_stays(
    stage: Stage, limits: str, told: bool
) -> None:
    stage.run('import trackhub; trackhub.init().log_metrics({"x": 1.0})')
    run = stage.run_directory()
    process = stage.start(
        f"""
        import os
        from trackhub import delivery_process

        vars(delivery_process).update({limits})
        delivery_process.main(["sleeping", str(os.getppid())])
        """,
        stderr=subprocess.PIPE,
    )
    tell(process, json.dumps({"run": str(run.path), "options": {"path": "unused"}, "takes_over": False}))
    if told:
        # Saved right before the backend is called.
        wait_until(run.cursor_file("sleeping").path.exists, "the delivery to begin")
        process.send_signal(signal.SIGTERM)
    errors = process.stderr.read()
    assert process.wait(DEADLINE_SECONDS) == 1
    assert "in open" in errors
    sync = [sys.executable, "-m", "trackhub", "sync", run.path.name, "--to", "lines"]
    subprocess.run(sync, env=stage.environment, check=True, timeout=DEADLINE_SECONDS, stdout=subprocess.DEVNULL)
    assert len([call for call in calls_in(stage.lines) if call["call"] == "write_metrics"]) == 1


# --- the thread that looks after them


def test_whatever_one_part_raises_is_told_once_and_ends_no_other(stage: Stage) -> None:
    _, errors = stage.run(
        """
        import asyncio, pathlib, time, trackhub
        from trackhub import Backend, OpenedRun, host
        from trackhub.inline import InlineDelivery
        from trackhub.rundir import RunDirectory

        class Cancelled(Backend):
            name = "cancelled"
            def open(self, run, state):
                return OpenedRun()
            def write_metrics(self, points):
                raise asyncio.CancelledError("a bug of the plugin")

        def raise_bug():
            raise KeyError("a bug of ours")

        rounds = []
        tracker = trackhub.init(mode="offline")
        tracker.log_metrics({"x": 1.0})
        run = RunDirectory(tracker.directory)
        def meet_stale_handle():
            raise OSError(116, "Stale file handle")

        ours = host.host()
        ours.keep_alive = meet_stale_handle
        ours.deliver_here(run, "cancelled", lambda: InlineDelivery(run, "cancelled", Cancelled, Backend.Options()))
        ours.watch("bug", raise_bug)
        ours.watch("rounds", lambda: rounds.append(0))
        until = time.monotonic() + 40
        while len(rounds) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(rounds) >= 4, rounds
        """
    )
    told = [line for line in errors.splitlines() if line.startswith("trackhub:")]
    assert [(line.partition(" (")[0], line.partition(" (")[2].partition(":")[0]) for line in told] == [
        ("trackhub: run bug cannot be written to disk now", "KeyError"),
        ("trackhub: delivery processes cannot be looked after", "OSError"),
        ("trackhub: nothing can be delivered in this process", "CancelledError"),
    ]
    # The place of a bug is shown, that of a file system that fails is not.
    assert "in raise_bug" in errors
    assert errors.count("Traceback") == 2
