"""A canary for every door a secret comes in by: it may not turn up in any file, process list, log or message.

The vendor's HTTP client is at its most talkative here, and the server repeats the credentials it was sent.
"""

from __future__ import annotations

import base64
import http.server
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from backends.mlflow_server import running_server, serving
from backends.neptune_server import SECRET, neptune_server
from stage import Stage, said, tell, wait_until

from trackhub.cursor import Cursor

USER = "someone"
PASSWORD = "c4nary/Pa$$+w@rd"
TOKEN = "c4nary-token-6d1f"
CLOUD_KEY = "c4nary+aws/secret"
CANARIES = {
    "password": PASSWORD,
    "quoted password": quote(PASSWORD, safe=""),
    "basic authorization": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
    "token": TOKEN,
    "cloud key": CLOUD_KEY,
    "key in Neptune's token": SECRET,
    "anything else": "c4nary",
}
DOORS = ("argument", "own variable", "vendor's variable", "file")
STATES = ("401", "500", "down", "up")
SCRIPT = """
import json, sys, trackhub
tracker = trackhub.init(project="p/q", finish_timeout=4, **json.loads(sys.stdin.readline()))
tracker.log_params({"lr": 0.1})
tracker.log_metrics({"loss": 1.0}, step=0)
tracker.log_text("note", "a note")
print("logged", flush=True)
sys.stdin.readline()
tracker.finish()
raise RuntimeError("the training fails, and prints a traceback")
"""
# Every process finds this one; only the delivery's HTTP client is to say all that it sends.
TALKATIVE = """
import sys
if "trackhub.delivery_process" in sys.orig_argv:
    import http.client, logging
    http.client.HTTPConnection.debuglevel = 1
    for name in ("urllib3", "requests", "neptune", "mlflow", "sqlalchemy.engine"):
        logging.getLogger(name).setLevel(logging.DEBUG)
"""
# MLflow tries ten times to reach a database, with 102 s of sleep in between.
IMPATIENT = """
    import time
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.2))
"""


@contextmanager
def parrot(status: int) -> Iterator[str]:
    """A server that refuses everything, and repeats what it was sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            sent = dict(self.headers.items())
            scheme, _, value = sent.get("Authorization", "").partition(" ")
            plain = base64.b64decode(value).decode() if scheme == "Basic" else value
            said = f"you sent {sent}: {plain} and http://{plain}@host"
            body = json.dumps({"error_code": "UNAUTHENTICATED", "message": said, "title": said}).encode()
            self.send_response(status, said.encode("ascii", "replace").decode())
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as url:
        yield url


@contextmanager
def mlflow_server(state: str, directory: Path) -> Iterator[str]:
    if state == "up":
        directory.mkdir()
        with running_server(directory) as url:
            yield url
    elif state == "down":
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    else:
        with parrot(int(state)) as url:
            yield url


def tried(cursor: Cursor) -> bool:
    """Whether the vendor has answered, or it has been noted why not."""
    return bool(cursor.link or cursor.report.error or cursor.report.suspended or cursor.report.rejected)


def is_open(cursor: Cursor) -> bool:
    """Whether the vendor has opened the run."""
    return bool(cursor.link)


class Hideout:
    """A stage with a home of its own, where a training runs with secrets and everything it leaves is searched.

    Args:
        stage: The stage.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.told: set[Path] = set()
        self.printed = ""
        for name in ("home", "tmp", "work"):
            (stage.path / name).mkdir()
        (stage.plugins / "sitecustomize.py").write_text(TALKATIVE)
        stage.environment |= {
            "HOME": str(stage.path / "home"),
            "TMPDIR": str(stage.path / "tmp"),
            "AWS_ACCESS_KEY_ID": "c4nary-key-id",
            "AWS_SECRET_ACCESS_KEY": CLOUD_KEY,
            "HTTPS_PROXY": f"http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:9",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
        }
        stage.environment.pop("TRACKHUB_TENSORBOARD_LOGDIR")

    def give(self, backend: str, option: str, vendor_variable: str, value: str, door: str) -> dict[str, Any]:
        """Set an option the way `door` says; gives the arguments of `init`."""
        if door == "argument":
            return {backend: {option: value}}
        if door == "own variable":
            self.stage.environment[f"TRACKHUB_{backend}_{option}".upper()] = value
        elif door == "vendor's variable":
            self.stage.environment[vendor_variable] = value
        else:
            file = self.stage.path / "work" / "trackhub.toml"
            file.write_text(f"[{backend}]\n{option} = {json.dumps(value)}\n")
            self.told.add(file)
        return {}

    def run(self, backends: list[str], arguments: dict[str, Any], *, until: Callable[[Cursor], bool] = tried) -> None:
        """Train until the backends have been tried, look at all processes meanwhile, and then ask every command."""
        work = self.stage.path / "work"
        process = self.stage.start(SCRIPT, cwd=work, stderr=subprocess.PIPE)
        tell(process, json.dumps({"backends": backends, **arguments}))
        assert said(process) == "logged"
        run = self.stage.run_directory()
        for name in backends:
            wait_until(lambda name=name: until(run.cursor(name)), f"{name} to have been tried", 180)
        listed = b"".join(self._command_lines())
        assert b"trackhub.delivery_process" in listed
        out, err = process.communicate("go on\n", timeout=120)
        assert "the training fails" in err, err
        self.printed += out + err + listed.decode(errors="replace")
        which = [word for name in backends for word in ("--backend", name)]
        for command in (
            ["status"],
            ["status", "--json"],
            ["show", run.path.name],
            ["runs", "--json"],
            ["doctor", *which],
            ["doctor", *which, "--json"],
            ["sync", "--patience", "1", "--timeout", "10"],
            ["cat", run.path.name],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "trackhub", *command],
                cwd=work,
                env=self.stage.environment,
                capture_output=True,
                text=True,
                timeout=180,
            )
            assert done.returncode in (0, 1), (command, done.stderr)
            self.printed += f"\n# {command}\n{done.stdout}{done.stderr}"

    def _command_lines(self) -> Iterator[bytes]:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                yield path.read_bytes()

    def search(self) -> None:
        """Find the canaries, wherever they are."""
        # Nobody writes any more.
        self.stage.end_all()
        found = [f"printed, {what}" for what, canary in CANARIES.items() if canary in self.printed]
        for path in self.stage.path.rglob("*"):
            if path.is_file() and path not in self.told and "server" not in path.parts:
                content = path.read_bytes()
                found += [f"{path}: {what}" for what, canary in CANARIES.items() if canary.encode() in content]
                found += [f"{path}: its name" for canary in CANARIES.values() if canary in path.name]
        assert not found, (found, [line for line in self.printed.splitlines() if "c4nary" in line])

    @property
    def log(self) -> str:
        return self.stage.run_directory().log.read_text()


@pytest.fixture
def hideout(stage: Stage) -> Hideout:
    return Hideout(stage)


def doors_and_states() -> list[Any]:
    """Every door and every state once; all pairs in the long form."""
    first = set(zip(DOORS, STATES, strict=True))
    return [
        pytest.param(door, state, marks=[] if (door, state) in first else [pytest.mark.long], id=f"{door}-{state}")
        for door in DOORS
        for state in STATES
    ]


@pytest.mark.parametrize(("door", "state"), doors_and_states())
def test_the_password_in_a_tracking_uri_is_nowhere(door: str, state: str, hideout: Hideout) -> None:
    pytest.importorskip("mlflow")
    with mlflow_server(state, hideout.stage.path / "server") as url:
        uri = url.replace("://", f"://{USER}:{quote(PASSWORD, safe='')}@")
        arguments = hideout.give("mlflow", "tracking_uri", "MLFLOW_TRACKING_URI", uri, door)
        hideout.run(["mlflow", "tensorboard"], arguments)
        # It was really sent: a test with a backend that knows no password would find nothing either.
        assert state == "down" or "send: b" in hideout.log
    hideout.search()


@pytest.mark.parametrize("state", ["401", "up"])
def test_the_credentials_of_mlflow_s_own_variables_are_nowhere(state: str, hideout: Hideout) -> None:
    pytest.importorskip("mlflow")
    given = {"MLFLOW_TRACKING_TOKEN": TOKEN}
    if state == "401":
        given = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    hideout.stage.environment |= given
    with mlflow_server(state, hideout.stage.path / "server") as url:
        hideout.run(["mlflow"], {"mlflow": {"tracking_uri": url}})
        assert "Authorization: (hidden)" in hideout.log or "Authorization: B" in hideout.log
    hideout.search()


def test_the_password_of_a_database_is_nowhere(hideout: Hideout) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("psycopg2")
    uri = f"postgresql+psycopg2://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:9/runs"
    (hideout.stage.plugins / "sitecustomize.py").write_text(TALKATIVE + IMPATIENT)
    hideout.run(["mlflow"], {"mlflow": {"tracking_uri": uri}})
    assert "MLflow at" in hideout.log
    hideout.search()


@pytest.mark.parametrize(("door", "state"), doors_and_states())
def test_an_api_token_of_neptune_is_nowhere(door: str, state: str, hideout: Hideout) -> None:
    if find_spec("neptune") is None:
        pytest.skip("neptune is not installed")
    server: Any = nullcontext()
    if state == "up":
        server = neptune_server()
    elif state != "down":
        server = parrot(int(state))
    with server as started:
        url = getattr(started, "url", started) or "http://127.0.0.1:9"
        project = started.project if state == "up" else "people/p"
        content = {"api_address": url, "api_url": url, "api_key": TOKEN}
        token = started.api_token if state == "up" else base64.b64encode(json.dumps(content).encode()).decode()
        arguments = hideout.give("neptune", "api_token", "NEPTUNE_API_TOKEN", token, door)
        hideout.stage.environment["NEPTUNE_PROJECT"] = project
        hideout.run(["neptune"], arguments, until=is_open if state == "up" else tried)
        if state == "up":
            assert started.count["exchangeApiToken"], hideout.log[-3000:]
    assert token not in hideout.printed
    hideout.search()


def test_the_secrets_of_a_plugin_are_nowhere_though_it_prints_raises_and_logs_them(hideout: Hideout) -> None:
    (hideout.stage.plugins / "leaky.py").write_text(LEAKY)
    metadata = hideout.stage.plugins / "leaky-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1.0\n")
    names = ("leaky", "raising_leaky", "rejecting_leaky")
    (metadata / "entry_points.txt").write_text("[trackhub]\n" + "".join(f"{name} = leaky\n" for name in names))
    for name in names:
        # Secrets are not stored, so `sync` has to find them again.
        hideout.give(name, "token", "", TOKEN, "own variable")
        hideout.give(name, "password", "", PASSWORD, "own variable")
    headers = {"headers": {"Authorization": f"Bearer {TOKEN}", "x": "y"}}
    hideout.run(list(names), dict.fromkeys(names, headers))
    run = hideout.stage.run_directory()
    assert run.cursor("raising_leaky").report.suspended == (
        "leaky 1.0: RuntimeError: no entry with (hidden) and (hidden) to http://(hidden)@host"
    )
    assert run.cursor("rejecting_leaky").report.rejected == 3
    assert "printed (hidden)" in hideout.log
    assert "Traceback" in hideout.log
    assert run.manifest.backends["leaky"] == {"headers": {"x": "y"}}
    hideout.search()


LEAKY = """
import logging, sys, warnings
import trackhub
from pydantic import SecretStr

class LeakyOptions(trackhub.BackendOptions):
    token: SecretStr | None = None
    password: str = ""
    headers: dict[str, str] = {}

class LeakyBackend(trackhub.Backend):
    name = "leaky"
    Options = LeakyOptions

    def open(self, run, state):
        secret = self.options.token.get_secret_value() + " " + self.options.password
        print("printed", secret)
        print("printed", secret, end="", flush=True, file=sys.stderr)
        warnings.warn("warned " + secret)
        logging.getLogger("leaky").warning("logged %s", secret)
        self.notes.add("changed " + secret, secret, secret)
        self.said = secret.replace(" ", " and ") + " to http://me:" + self.options.password + "@host"
        return trackhub.OpenedRun(link="http://me:%s@host/run" % self.options.password)

    def write_params(self, params):
        pass

class RaisingLeakyBackend(LeakyBackend):
    name = "raising_leaky"

    def write_params(self, params):
        raise RuntimeError("no entry with " + self.said)

class RejectingLeakyBackend(LeakyBackend):
    name = "rejecting_leaky"

    def write_params(self, params):
        raise trackhub.RecordRejected("no entry with " + self.said)

    write_metrics = write_artifacts = write_params

@trackhub.hookimpl
def trackhub_backends():
    return [LeakyBackend, RaisingLeakyBackend, RejectingLeakyBackend]
"""
