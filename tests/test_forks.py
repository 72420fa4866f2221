"""Children of all kinds beside their parent's run: what each logs arrives once, and nobody's journal is another's."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from backends_for_tests import calls_in
from stage import Stage, exists, records_of, said, tell, wait_until

import trackhub
from trackhub.records import MetricsLogged, TextLogged


def delivered(stage: Stage) -> Counter[tuple[str, int]]:
    """How often each (name, step) has been given to the backend `lines`."""
    return Counter(
        (name, record["step"])
        for call in calls_in(stage.lines)
        if call["call"] == "write_metrics"
        for record in call["records"]
        for name in record["values"]
    )


def journaled(stage: Stage) -> Counter[tuple[str, int]]:
    """The same of the journal."""
    records = [record for record in records_of(stage.run_directory()) if isinstance(record, MetricsLogged)]
    return Counter((name, record.step) for record in records for name in record.values)


def test_a_tree_of_forks(stage: Stage) -> None:
    """Children that log before they fork, after, or never; some leave by an exception, some are killed."""
    stage.run(
        """
        import os, signal, sys, trackhub

        def log(who, first):
            for step in range(first, first + 40):
                tracker.log_metrics({who: step}, step=step)

        def grow(who, depth):
            log(who, 0)
            children = []
            if depth:
                for number in range(3):
                    child = os.fork()
                    if child == 0:
                        grow(f"{who}.{number}", depth - 1)
                        if number == 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                        os._exit(0) if number == 1 else sys.exit(0)
                    children.append(child)
                    silent = os.fork()
                    if silent == 0:
                        os._exit(0)
                    children.append(silent)
            log(who, 40)
            for child in children:
                os.waitpid(child, 0)

        with trackhub.init(backends=["lines"]) as tracker:
            grow("0", 2)
            tracker.log_text("note", "x")
        assert tracker.finish(), tracker.finish()
        """
    )
    names = ["0", *(f"0.{one}" for one in range(3)), *(f"0.{one}.{two}" for one in range(3) for two in range(3))]
    expected = Counter({(name, step): 1 for name in names for step in range(80)})
    assert journaled(stage) == expected
    run = stage.run_directory()
    assert run.end()[0] == "finished"
    assert run.cursor("lines").report.damaged == []
    # One a process that logged: those that did not have left nothing behind.
    assert len(list(run.journal.glob("*.lock"))) == len(names)
    assert delivered(stage) == expected


def test_children_go_on_logging_when_their_parent_is_killed(stage: Stage) -> None:
    process = stage.start(
        """
        import os, sys, time, trackhub
        tracker = trackhub.init(backends=["lines"])
        tracker.remote_id("lines", timeout=60)
        children, parent, begun = [], os.getpid(), os.pipe()
        for number in range(4):
            child = os.fork()
            if child == 0:
                for step in range(50):
                    tracker.log_metrics({f"c{number}": step}, step=step)
                os.write(begun[1], b"1")
                while os.getppid() == parent:
                    time.sleep(0.01)
                for step in range(50, 100):
                    tracker.log_metrics({f"c{number}": step}, step=step)
                os._exit(0)
            children.append(child)
        for _ in children:
            os.read(begun[0], 1)
        print(*children, flush=True)
        time.sleep(600)
        """
    )
    children = [int(word) for word in said(process).split()]
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(exists, children)), "the children to end")
    stage.wait_closed("lines")
    expected = Counter({(f"c{number}", step): 1 for number in range(4) for step in range(100)})
    assert journaled(stage) == expected
    wait_until(lambda: delivered(stage) == expected, "all records of the children")
    assert stage.run_directory().end()[0] == "killed"


def test_forks_from_threads_in_the_middle_of_everything(stage: Stage) -> None:
    """While other threads log values and files, sync, start child runs and finish them, threads fork at random."""
    stage.run(
        """
        import os, random, sys, threading, trackhub
        random.seed(3)
        with trackhub.init(backends=["lines"]) as tracker:
            stop = threading.Event()

            def busy():
                step = 0
                while not stop.is_set():
                    tracker.log_metrics({"busy": step}, step=step)
                    # Each is synced to disk in the end.
                    if step < 300:
                        tracker.log_text("text", "x" * random.randrange(5000))
                        if step % 20 == 0:
                            tracker.child("fold").finish()
                    step += 1

            def forking(number):
                for step in range(12):
                    child = os.fork()
                    if child == 0:
                        tracker.log_metrics({f"f{number}": step}, step=step)
                        tracker.log_text(f"f{number}", str(step))
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0

            busy_threads = [threading.Thread(target=busy) for _ in range(2)]
            forking_threads = [threading.Thread(target=forking, args=(number,)) for number in range(3)]
            for thread in [*busy_threads, *forking_threads]:
                thread.start()
            for thread in forking_threads:
                thread.join()
            stop.set()
            for thread in busy_threads:
                thread.join()
        assert tracker.finish(), tracker.finish()
        """
    )
    runs = [run for run in stage.runs() if run.manifest.parent_id is None]
    (run,) = runs
    assert all(one.end()[0] == "finished" for one in stage.runs())
    records = records_of(run)
    points = Counter((name, r.step) for r in records if isinstance(r, MetricsLogged) for name in r.values)
    expected = Counter({(f"f{number}", step): 1 for number in range(3) for step in range(12)})
    assert Counter({key: count for key, count in points.items() if key[0] != "busy"}) == expected
    # Each text lies in a file of its own, with what was logged.
    texts = [r for r in records if isinstance(r, TextLogged)]
    assert len({text.file.path for text in texts}) == len(texts)
    of_forks = Counter((text.name, (run.path / text.file.path).read_text()) for text in texts if text.name != "text")
    assert of_forks == Counter({(f"f{number}", str(step)): 1 for number in range(3) for step in range(12)})
    assert run.cursor("lines").report.damaged == []


def test_a_process_pool_logs_into_the_run(stage: Stage) -> None:
    script = stage.path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, trackhub
            from concurrent.futures import ProcessPoolExecutor

            def work(number):
                trackhub.current().log_metrics({"pool": number}, step=number)
                return os.getpid()

            with trackhub.init(backends=["lines"]) as tracker:
                with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
                    pids = set(pool.map(work, range(200)))
                assert os.getpid() not in pids
                with multiprocessing.get_context("fork").Pool(2) as pool:
                    pool.map(work, range(200, 300))  # ended with SIGTERM
            assert tracker.finish(), tracker.finish()
            """
        ),
        encoding="utf-8",
    )
    subprocess.run([sys.executable, str(script)], cwd=stage.path, env=stage.environment, check=True, timeout=120)
    expected = Counter({("pool", number): 1 for number in range(300)})
    assert journaled(stage) == delivered(stage) == expected
    assert stage.run_directory().end()[0] == "finished"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("logs", [True, False], ids=["logging", "silent"])
def test_workers_of_a_data_loader(stage: Stage, method: str, logs: bool) -> None:
    script = stage.path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import torch, trackhub
            from torch.utils.data import DataLoader, Dataset, get_worker_info

            class Numbers(Dataset):
                def __init__(self, run_id):
                    self.run_id, self.tracker = run_id, None

                def __len__(self):
                    return 24

                def __getitem__(self, index):
                    if {logs}:
                        if self.tracker is None:
                            joins = {method!r} != "fork"
                            self.tracker = trackhub.init(run_id=self.run_id) if joins else trackhub.current()
                        self.tracker.log_metrics({{f"worker{{get_worker_info().id}}/item": index}}, step=index)
                    return torch.tensor(index)

            if __name__ == "__main__":
                with trackhub.init(backends=["lines"]) as tracker:
                    for epoch in range(2):
                        loader = DataLoader(
                            Numbers(tracker.id), batch_size=4, num_workers=2, multiprocessing_context={method!r}
                        )
                        for step, batch in enumerate(loader):
                            tracker.log_metrics({{"sum": batch.sum()}}, step=epoch * 6 + step)
                assert tracker.finish(), tracker.finish()
            """
        ),
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=stage.path,
        env={**stage.environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    expected = Counter({("sum", step): 1 for step in range(12)})
    if logs:
        # The batches go to the workers in turn: each logs its items once an epoch.
        expected += Counter({(f"worker{index // 4 % 2}/item", index): 2 for index in range(24)})
    assert journaled(stage) == delivered(stage) == expected
    run = stage.run_directory()
    assert run.end()[0] == "finished"
    assert run.cursor("lines").report.damaged == []
    if not logs:
        assert len(list(run.journal.glob("*.lock"))) == 1


def test_a_tracker_is_not_sent_to_another_process(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path, run_id="mine") as tracker:
        with pytest.raises(TypeError, match=r"send its id, and there call trackhub.init\(run_id='mine', dir="):
            pickle.dumps(tracker)
        process = multiprocessing.get_context("spawn").Process(target=print, args=(tracker,))
        with pytest.raises(TypeError, match="belongs to its process"):
            process.start()


def test_a_child_forked_while_a_writer_takes_its_number_does_not_keep_it(stage: Stage) -> None:
    """Forked between the creation of the lock file and the lock, the child would hold the parent's lock for ever."""
    process = stage.start(
        """
        import os, sys, time, trackhub
        from trackhub.journal import locks
        real, child = locks.lock_file, None

        def lock_file(descriptor, **more):
            global child
            done = real(descriptor, **more)
            if child is None:
                child = os.fork()
                if child == 0:
                    time.sleep(600)
            return done

        locks.lock_file = lock_file
        tracker = trackhub.init(backends=["lines"])
        tracker.remote_id("lines", timeout=60)
        print(child, flush=True)
        time.sleep(600)
        """
    )
    child = int(said(process))
    try:
        process.kill()
        stage.wait_closed("lines")
        assert stage.run_directory().end()[0] == "killed"
        assert exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_worker_that_joins_by_id_delivers_nothing_while_the_owner_does(stage: Stage) -> None:
    owner = stage.start(
        """
        import sys, trackhub
        with trackhub.init(run_id="mine", backends=["lines"]) as tracker:
            tracker.remote_id("lines", timeout=60)
            print("begun", flush=True)
            sys.stdin.readline()
        """
    )
    assert said(owner) == "begun"
    stage.run(
        """
        import os, trackhub
        with trackhub.init(run_id="mine", backends=["lines"]) as tracker:
            tracker.log_metrics({"x": 1.0}, step=0)
        assert tracker.finish(), tracker.finish()
        from stage import delivery_processes
        assert delivery_processes(os.getpid()) == {}
        """
    )
    assert delivered(stage) == Counter({("x", 0): 1})
    assert stage.run_directory().end() == ("running", None)
    tell(owner)
    owner.communicate(timeout=60)
    assert stage.run_directory().end()[0] == "finished"
