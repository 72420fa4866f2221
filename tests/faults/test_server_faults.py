"""A real MLflow server (on PostgreSQL and an object store) behind a proxy that fails in every way.

The training never notices, `finish` keeps its timeout, the status names the cause, and when the fault is over MLflow
has every point, every artifact and one run: by the delivery in the background, or by the printed command.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from faulty_proxy import faulty_proxy
from ports import free_port
from real_servers import MlflowOnPostgres, running_mlflow
from stage import Stage, said, staged, tell, wait_until
from three_backends import run_printed_command

from trackhub.report import delivery_report

STEPS = 300
FINISH_SECONDS = 2.0
SLACK_SECONDS = 1.0
ATTEMPT_SECONDS = 2

TRAINING = f"""
import sys, time, trackhub
tracker = trackhub.init(name="faults", backends=["mlflow"], params={{"lr": 0.1}})
if sys.argv[1] == "middle":
    tracker.remote_id("mlflow", timeout=120)
    print("open", flush=True)
    sys.stdin.readline()
longest = 0.0
for step in range({STEPS}):
    started = time.perf_counter()
    tracker.log_metrics({{"loss": step, "accuracy": -step}}, step=step)
    longest = max(longest, time.perf_counter() - started)
    if step % 100 == 0:
        tracker.log_text(f"note {{step}}", f"text {{step}}")
    time.sleep(0.002)
if len(sys.argv) > 2:
    print("logged", flush=True)
    sys.stdin.readline()
started = time.perf_counter()
report = tracker.finish(timeout={FINISH_SECONDS})
print(longest, time.perf_counter() - started, flush=True)
print(report, flush=True)
"""
NOTES = {f"text/note {step}.txt": f"text {step}".encode() for step in range(0, STEPS, 100)}


@dataclass(frozen=True)
class Case:
    """One fault.

    Args:
        cause: What the status says of it, as a regular expression.
        fault: What the proxy does.
        details: And how.
        begins: "start" for before the run is opened, "middle" for after.
        completed_by: "command" for the one that `finish` prints, "delivery" for the one in the background.
        long: Whether it belongs to the long form alone.
    """

    cause: str
    fault: str
    details: dict[str, Any]
    begins: str
    completed_by: str
    long: bool = False


def both(cause: str, fault: str, normally: str, **details: Any) -> dict[str, Case]:
    """A fault from the start and in the middle; the suite has one of them."""
    completed_by = {"start": "command", "middle": "delivery"}
    return {
        begins: Case(cause, fault, details, begins, completed_by[begins], begins != normally)
        for begins in ("start", "middle")
    }


FAULTS = {
    "refused": both("it cannot be reached", "refuse", "start"),
    "black-hole": both("it did not answer in time", "black_hole", "start"),
    "slow-drip": both(r"has been waiting for mlflow [\d.]+ for \d+ s", "drip", "middle"),
    "429": both("429", "status", "middle", status=429, headers={"Retry-After": "1"}, body=b"slow down"),
    "500": both("500", "status", "start", status=500, body=b"a bug"),
    "503": both("503", "status", "middle", status=503, body=b"overloaded"),
    "html": both(
        "not in a valid JSON format",
        "status",
        "start",
        status=200,
        headers={"Content-Type": "text/html"},
        body=b"<html>Please log in</html>",
    ),
}
CASES = {f"{name}-{begins}": case for name, cases in FAULTS.items() for begins, case in cases.items()}


@dataclass
class Outcome:
    """What came of one training."""

    longest_call_seconds: float
    finish_seconds: float
    report: str


def train(stage: Stage, url: str, begins: str, *, pauses: bool = False, **more: str) -> Any:
    environment = {
        "TRACKHUB_MLFLOW_TRACKING_URI": url,
        "TRACKHUB_MLFLOW_REQUEST_TIMEOUT_SECONDS": str(ATTEMPT_SECONDS),
        **more,
    }
    stage.environment |= environment
    (stage.path / "train.py").write_text(TRAINING, encoding="utf-8")
    arguments = ["train.py", begins, *(["pauses"] if pauses else [])]
    with (stage.path / "stderr").open("w") as errors:
        return stage.start(f"import sys; sys.argv = {arguments!r}; exec(open('train.py').read())", stderr=errors)


def outcome(process: Any) -> Outcome:
    """Let it train to its end."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    times, _, report = out.partition("\n")
    return Outcome(*map(float, times.split()), report)


def expect_undisturbed(found: Outcome) -> None:
    # Calls take microseconds; what none may do is wait for the server.
    assert found.longest_call_seconds < 0.75 * ATTEMPT_SECONDS
    assert found.finish_seconds < FINISH_SECONDS + SLACK_SECONDS


def causes(stage: Stage) -> str:
    """What `trackhub status` says of the run."""
    return str(delivery_report(stage.run_directory(), ""))


def expect_everything_once(stage: Stage, served: MlflowOnPostgres, steps: int = STEPS) -> None:
    """MLflow's database and object store have one run, each point, each artifact and the end."""
    run = stage.run_directory()
    ((remote_id, status),) = served.remote_runs(run.manifest.id)
    assert remote_id == run.cursor("mlflow").remote_id
    assert status == "FINISHED"
    assert served.points(remote_id, "loss") == [(step, float(step)) for step in range(steps)]
    assert served.points(remote_id, "accuracy") == [(step, -float(step)) for step in range(steps)]
    assert served.query("select key, value from params where run_uuid = %s", remote_id) == [("lr", "0.1")]
    assert served.objects(remote_id) == NOTES
    report = run.cursor("mlflow").report
    assert (report.delivered["metrics"], report.rejected, report.error) == (steps, 0, None)


def go_through(case: Case, served: MlflowOnPostgres, directory: Path) -> None:
    with faulty_proxy(served.url) as proxy, staged(directory) as stage:
        if case.begins == "start":
            proxy.fail(case.fault, **case.details)
        process = train(stage, proxy.url, case.begins)
        if case.begins == "middle":
            said(process)
            proxy.fail(case.fault, **case.details)
            tell(process)
        found = outcome(process)
        expect_undisturbed(found)
        assert "not delivered yet" in found.report
        wait_until(lambda: re.search(f"mlflow: .*{case.cause}", causes(stage)), f"{case.cause} in {causes(stage)}")
        assert case.fault == "refuse" or proxy.met[case.fault]
        proxy.heal()
        if case.completed_by == "command":
            run_printed_command(stage, found.report)
        stage.wait_closed("mlflow")
        expect_everything_once(stage, served)


def lost_answers(served: MlflowOnPostgres, directory: Path) -> None:
    """The server has done everything that it is asked for again."""
    with faulty_proxy(served.url) as proxy, staged(directory) as stage:
        for asked in ("/experiments/create", "/runs/create", "/log-batch", "/mlflow-artifacts/", "/runs/update"):
            proxy.fail("lose_answer", only=asked, times=1)
        process = train(stage, proxy.url, "start")
        expect_undisturbed(outcome(process))
        stage.wait_closed("mlflow")
        # The experiment is there already, unless this is the first of all runs.
        assert set(proxy.met) - {"lose_answer /experiments/create"} == {
            "lose_answer /runs/create",
            "lose_answer /log-batch",
            "lose_answer /mlflow-artifacts/",
            "lose_answer /runs/update",
        }
        expect_everything_once(stage, served)


def late_requests(served: MlflowOnPostgres, directory: Path) -> None:
    """A request is carried out after its sender has given it up, and has sent it again."""
    with faulty_proxy(served.url) as proxy, staged(directory) as stage:
        proxy.fail("late", only="/runs/create", times=1, seconds=3 * ATTEMPT_SECONDS)
        proxy.fail("late", only="/log-batch", times=1, seconds=3 * ATTEMPT_SECONDS)
        process = train(stage, proxy.url, "start", pauses=True)
        said(process)
        run = stage.run_directory()
        wait_until(lambda: served.points(run.cursor("mlflow").remote_id or "", "loss"), "the first points to arrive")
        wait_until(lambda: len(served.remote_runs(run.manifest.id)) == 2, "the run to be created a second time")
        tell(process)
        expect_undisturbed(outcome(process))
        stage.wait_closed("mlflow")
        assert set(proxy.met) == {"late /runs/create", "late /log-batch"}
        expect_everything_once(stage, served)
        assert [*run.cursor("mlflow").report.notes] == ["deleted"]


def bad_certificate(served: MlflowOnPostgres, directory: Path) -> None:
    """Somebody else answers in the server's place."""
    trusted, stranger = trustme.CA(), trustme.CA()
    with staged(directory) as stage:
        bundle = stage.path / "trusted.pem"
        trusted.cert_pem.write_to_path(str(bundle))
        with faulty_proxy(served.url, tls(stranger, "127.0.0.1")) as proxy:
            process = train(stage, proxy.url, "start", MLFLOW_TRACKING_SERVER_CERT_PATH=str(bundle))
            found = outcome(process)
            expect_undisturbed(found)
            wait_until(lambda: "its certificate is not trusted" in causes(stage), "the cause to be named")
            proxy.certificate = tls(trusted, "another.host")
            met = proxy.met["certificate"]
            wait_until(lambda: proxy.met["certificate"] > met, "another try")
            assert "its certificate is not trusted" in causes(stage)
            assert not served.remote_runs(stage.run_directory().manifest.id)
            proxy.certificate = tls(trusted, "127.0.0.1")
            run_printed_command(stage, found.report)
            stage.wait_closed("mlflow")
            expect_everything_once(stage, served)


def tls(authority: trustme.CA, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


def unknown_host(served: MlflowOnPostgres, directory: Path) -> None:
    """A name that nobody knows; the run is delivered to another one."""
    with staged(directory) as stage:
        process = train(stage, "http://mlflow.invalid:5000", "start")
        found = outcome(process)
        expect_undisturbed(found)
        wait_until(lambda: "its host name is not known" in causes(stage), "the cause to be named")
        run_printed_command(stage, found.report, TRACKHUB_MLFLOW_TRACKING_URI=served.url)
        stage.wait_closed("mlflow")
        expect_everything_once(stage, served)


def restart(served: MlflowOnPostgres, directory: Path) -> None:
    """The server ends in the middle of the training, and comes back at the same place."""
    with staged(directory) as stage:
        port = free_port()
        with running_mlflow(served.database, served.store, directory, port=port) as first:
            process = train(stage, first.url, "middle", pauses=True)
            said(process)
        tell(process)
        said(process)
        wait_until(lambda: "it cannot be reached" in causes(stage), "the cause to be named")
        with running_mlflow(served.database, served.store, directory, port=port):
            tell(process)
            expect_undisturbed(outcome(process))
            stage.wait_closed("mlflow")
            expect_everything_once(stage, served)


ORDEALS: dict[str, Callable[[MlflowOnPostgres, Path], None]] = {
    "an-answer-is-lost": lost_answers,
    "a-request-comes-late": late_requests,
    "the-certificate-is-wrong": bad_certificate,
    "the-host-is-unknown": unknown_host,
    "the-server-restarts": restart,
    **{name: partial(go_through, case) for name, case in CASES.items()},
}


@pytest.fixture(scope="module")
def ordeals(
    request: pytest.FixtureRequest, mlflow_on_postgres: MlflowOnPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], None]]:
    """Goes through the cases that were chosen, a few at a time: most of each is waiting."""
    here = [item for item in request.session.items if item.path == request.path]
    chosen = [item.callspec.params["name"] for item in here if hasattr(item, "callspec")]
    with ThreadPoolExecutor(3) as pool:
        results: dict[str, Future[None]] = {
            name: pool.submit(ORDEALS[name], mlflow_on_postgres, tmp_path_factory.mktemp(name)) for name in chosen
        }
        yield lambda name: results[name].result()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in CASES and CASES[name].long else []) for name in ORDEALS],
)
def test_a_fault_of_the_server_costs_nothing_but_time(name: str, ordeals: Callable[[str], None]) -> None:
    ordeals(name)
