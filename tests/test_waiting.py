from __future__ import annotations

import time
from pathlib import Path

import pytest

from trackhub import waiting
from trackhub.cursor import BackendReport, Cursor
from trackhub.host import Host
from trackhub.journal import JournalWriter
from trackhub.rundir import Manifest, RunDirectory
from trackhub.waiting import Awaited, has_given_up, wait_for_deliveries


def test_a_wait_leaves_the_processor_to_the_delivery_however_much_there_is_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest(id="r", name="r", project="p", created_ns=1, backends={"far": {}}, working_directory="/")
    run = RunDirectory.create(tmp_path, manifest)
    names = [f"model/layers/{index:06}/gradient_norm" for index in range(100_000)]
    writer = JournalWriter(run.journal, "owner", 1)
    writer.append_metrics(dict.fromkeys(names, 1.0), 0, 2**61)
    writer.close()
    run.cursor_file("far").save(Cursor(state={"tags": {name: name for name in names}}))
    pauses: list[float] = []
    sleep = time.sleep

    class Clock:
        """The real one, which also tells how long it was asked to sleep."""

        monotonic, time_ns = staticmethod(time.monotonic), staticmethod(time.time_ns)

        @staticmethod
        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            sleep(seconds)

    monkeypatch.setattr(waiting, "time", Clock)
    used = time.process_time()
    wait_for_deliveries(Host(), [Awaited(run, "far")], 8.0)
    used = time.process_time() - used
    # The last pause is cut short by the end of the wait. Without pauses in proportion they are a third of what is used.
    assert sum(pauses) > 1.5 * used


def test_who_stands_by_does_not_believe_what_came_of_an_earlier_attempt(tmp_path: Path) -> None:
    manifest = Manifest(id="r", name="r", project="p", created_ns=1, backends={"far": {}}, working_directory="/")
    run = RunDirectory.create(tmp_path, manifest)
    past = Cursor(report=BackendReport(suspended="a bug, mended since", updated_ns=time.time_ns()))
    host = Host()
    assert has_given_up(host, run, "far", past)
    host.stand_by(run, "far", {})
    assert not has_given_up(host, run, "far", past)
    now = Cursor(report=BackendReport(suspended="the bug is back", updated_ns=time.time_ns()))
    assert has_given_up(host, run, "far", now)
