"""Plugins that fail in every way: the training and the other backends do not notice, and status names the culprit."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from backends_for_tests import calls_in, lay_out_distribution
from stage import Stage, staged, wait_until

from trackhub.report import SILENT_SECONDS

STEPS = 2_000

PLUGIN = """
import os, time, trackhub

class TheBackend(trackhub.Backend):
    name = {name!r}

    def open(self, run, state):
        {open}
        return trackhub.OpenedRun()

    def write_metrics(self, points):
        {write_metrics}

    def close(self, status):
        {close}

@trackhub.hookimpl
def trackhub_backends():
    return [TheBackend]
"""
FAULTS = {
    "raises": "raise ZeroDivisionError('a bug of the plugin')",
    "exits": "os._exit(7)",
    "sleeps": "time.sleep(1_000_000)",
    "leaves": "raise SystemExit('enough')",
}
METHODS = ("open", "write_metrics", "close")
BAD = {f"{fault}_in_{method}": (fault, method) for fault in FAULTS for method in METHODS}

TRAINING = f"""
import time, trackhub
tracker = trackhub.init()
longest = 0.0
for step in range({STEPS}):
    started = time.perf_counter()
    tracker.log_metrics({{"loss": step}}, step=step)
    longest = max(longest, time.perf_counter() - started)
started = time.perf_counter()
report = tracker.finish(timeout=20)
print(longest, time.perf_counter() - started)
print(report)
"""


def install_bad_plugin(site: Path, name: str, **faults: str) -> None:
    code = PLUGIN.format(name=name, **{method: faults.get(method, "pass") for method in METHODS})
    lay_out_distribution(site, f"lab-{name.replace('_', '-')}", f"plugin_{name}", code, name)


def status(stage: Stage) -> list[str]:
    """What `trackhub status` says, a line each."""
    done = subprocess.run(
        [sys.executable, "-m", "trackhub", "status"],
        cwd=stage.path,
        env=stage.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    return [line.strip(" …✓✗") for line in done.stdout.splitlines()]


def expect_all_lines(stage: Stage) -> None:
    """The good backend has every point once, and the end."""
    calls = calls_in(stage.path / "lines.jsonl")
    points = [record for call in calls if call["call"] == "write_metrics" for record in call["records"]]
    assert [(point["step"], point["values"]) for point in points] == [(step, {"loss": step}) for step in range(STEPS)]
    assert [call["status"] for call in calls if call["call"] == "close"] == ["finished"]


@dataclass
class Ordeal:
    """One training with every bad plugin at once, and a good one."""

    stage: Stage
    longest_call_seconds: float
    finish_seconds: float
    report: str


@pytest.fixture(scope="module")
def ordeal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ordeal]:
    with staged(tmp_path_factory.mktemp("ordeal")) as stage:
        for name, (fault, method) in BAD.items():
            install_bad_plugin(stage.plugins, name, **{method: FAULTS[fault]})
        said, _ = stage.run(TRAINING, environment={"TRACKHUB_BACKENDS": ",".join([*BAD, "lines"])})
        times, _, report = said.partition("\n")
        longest, finish = map(float, times.split())
        yield Ordeal(stage, longest, finish, report)
        # Those that sleep hear no request to end.
        stage.end_all()


def test_the_training_does_not_notice(ordeal: Ordeal) -> None:
    # A dozen processes start on a few cores meanwhile: what may not be is that a call waits for any of them.
    assert ordeal.longest_call_seconds < 1.0
    assert ordeal.finish_seconds < 25.0


def test_the_other_backend_has_everything(ordeal: Ordeal) -> None:
    assert f"lines: complete (metrics {STEPS:,})" in ordeal.report
    expect_all_lines(ordeal.stage)


@pytest.mark.parametrize("method", METHODS)
def test_one_that_raises_is_named_with_its_version_and_what_it_raised(ordeal: Ordeal, method: str) -> None:
    for name, error in (("raises", "ZeroDivisionError: a bug of the plugin"), ("leaves", "SystemExit: enough")):
        sentence = (
            f"{name}_in_{method}: delivery gave up because the backend failed: "
            f"lab-{name}-in-{method.replace('_', '-')} 1.5: {error}"
        )
        assert sentence in ordeal.report
        assert sentence in status(ordeal.stage)


@pytest.mark.parametrize("method", METHODS)
def test_one_that_ends_its_process_is_named_with_its_version(ordeal: Ordeal, method: str) -> None:
    name = f"exits_in_{method}"
    sentence = (
        rf"{name}: process \d+ of its delivery ended before it was done: it was ended from outside, or by a failure of "
        rf"{whose(name)} \(delivery\.log may say more\)"
    )
    # Asked while it is being tried once more, it is not at an end.
    wait_until(lambda: any(re.fullmatch(sentence, line) for line in status(ordeal.stage)), f"{name} to be named", 30)


@pytest.mark.parametrize("method", METHODS)
def test_one_that_never_comes_back_is_named_with_its_version(ordeal: Ordeal, method: str) -> None:
    name = f"sleeps_in_{method}"
    sentence = re.compile(rf"{name}: process \d+ of its delivery has been waiting for {whose(name)} for (\d+) s")
    found = wait_until(
        lambda: next(filter(None, map(sentence.fullmatch, status(ordeal.stage))), None), f"{name} to be named", 30
    )
    assert int(found[1]) >= SILENT_SECONDS


def whose(name: str) -> str:
    """What the sentence calls it: before `open` has returned for the first time, its version is not on disk."""
    return f"lab-{name.replace('_', '-')} 1\\.5"


# --- at import and in the hook

BROKEN = {
    "import": "raise RuntimeError('compiled against another NumPy')",
    "hook": "import trackhub\n@trackhub.hookimpl\ndef trackhub_backends():\n    raise RuntimeError('no licence')",
    "exit": "raise SystemExit('wrong platform')",
}


@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
def test_one_that_is_broken_and_not_asked_for_hurts_nobody(stage: Stage, code: str) -> None:
    lay_out_distribution(stage.plugins, "lab-plugin", "plugin_lab", code, "lab")
    said, _ = stage.run(TRAINING, environment={"TRACKHUB_BACKENDS": "lines"})
    assert said.endswith(f"lines: complete (metrics {STEPS:,})")
    expect_all_lines(stage)


@pytest.mark.parametrize("which", ["import", "hook"])
def test_one_that_is_broken_and_asked_for_raises_in_init_before_there_is_a_run(stage: Stage, which: str) -> None:
    lay_out_distribution(stage.plugins, "lab-plugin", "plugin_lab", BROKEN[which], "lab")
    _, said = stage.run(TRAINING, environment={"TRACKHUB_BACKENDS": "lines,lab"}, exit_code=1)
    last = said.strip().splitlines()[-1]
    assert last.startswith(
        "trackhub.errors.SettingsError: the plugin of backend 'lab' (lab-plugin 1.5) cannot be loaded"
    )
    assert not stage.runs()


def test_one_that_is_broken_in_its_delivery_process_alone_is_named_with_its_version(stage: Stage) -> None:
    good = PLUGIN.format(name="lab", open="pass", write_metrics="pass", close="pass")
    code = f"import sys\nif sys.argv[1:2] == ['lab']:\n    import compiled_for_the_login_node\n{good}"
    lay_out_distribution(stage.plugins, "lab-plugin", "plugin_lab", code, "lab")
    said, _ = stage.run(TRAINING, environment={"TRACKHUB_BACKENDS": "lab,lines"})
    assert f"lines: complete (metrics {STEPS:,})" in said
    expect_all_lines(stage)
    [sentence] = [line for line in status(stage) if line.startswith("lab: delivery gave up")]
    assert "the plugin of backend 'lab' (lab-plugin 1.5) cannot be loaded: ModuleNotFoundError" in sentence


def test_one_that_only_the_training_can_import_is_named(stage: Stage) -> None:
    site = stage.path / "site"
    install_bad_plugin(site, "lab")
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{TRAINING}"
    said, _ = stage.run(code, environment={"TRACKHUB_BACKENDS": "lab,lines"})
    assert f"lines: complete (metrics {STEPS:,})" in said
    expect_all_lines(stage)
    [sentence] = [line for line in status(stage) if line.startswith("lab: delivery gave up")]
    assert "UnknownBackendError: no backend is called 'lab'" in sentence
