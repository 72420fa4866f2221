"""What a team runs: PostgreSQL, an object store that speaks S3, and `mlflow server` on both, started and stopped here.

All listen on free ports of the loopback interface, keep their files in a temporary directory, and end with it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage import wait_until

sys.path.append(str(Path(__file__).parents[1] / "backends"))

from mlflow_server import wait_for
from ports import free_port

REQUIRED_VARIABLE = "TRACKHUB_TEST_SERVERS"
"""With the value `required`, a server that cannot be started is a failure and no reason to skip."""
BUCKET = "artifacts"
PROXIED, DIRECT = "proxied", "direct"
"""Where in the bucket artifacts are that came through the server, and those that did not."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class NotInstalled(Exception):
    """A server cannot be had here; the message says why."""


def postgres_program(name: str) -> str:
    """Where a program of PostgreSQL is: on the path, or where Debian keeps it.

    Raises:
        NotInstalled: Nowhere.
    """
    newest_first = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    found = shutil.which(name) or next(iter(map(str, newest_first)), None)
    if found is None:
        raise NotInstalled(f"PostgreSQL is not installed: there is no {name}")
    return found


def unprivileged_user() -> str | None:
    """Who PostgreSQL runs as: it refuses root. None for ourselves.

    Raises:
        NotInstalled: We are root and there is nobody else.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NotInstalled("PostgreSQL does not run as root, and there is no other user here")


@contextlib.contextmanager
def running(command: list[str], log: Path, *, stop_signal: int = signal.SIGTERM, **options: Any) -> Iterator[Any]:
    """A server process; it is ended by its id."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
        )
    try:
        yield process
    finally:
        process.send_signal(stop_signal)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            # What it has started, too, or that would keep the port.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """A PostgreSQL of its own; gives the URI of an empty database."""
    initdb, postgres, user = postgres_program("initdb"), postgres_program("postgres"), unprivileged_user()
    # Not below pytest's directories, into which only their owner may look.
    with tempfile.TemporaryDirectory(prefix="trackhub-postgres-") as folder:
        data = Path(folder, "data")
        if user is not None:
            shutil.chown(folder, user)
        person = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user is not None else {}
        environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        options: dict[str, Any] = {"cwd": folder, "env": environment, **person}
        made = subprocess.run(
            [initdb, "--no-sync", "--auth=trust", "--username=trackhub", "--encoding=UTF8", str(data)],
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        port = free_port()
        settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder, "fsync": "off"}
        command = [
            postgres,
            "-D",
            str(data),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ]
        log = Path(folder, "postgres.log")
        # SIGINT is its fast shutdown: it does not wait for clients to leave.
        with running(command, log, stop_signal=signal.SIGINT, **options) as server:
            uri = f"postgresql://trackhub@127.0.0.1:{port}/postgres"
            wait_until(lambda: _accepts(uri) or _ended(server, log), "PostgreSQL to accept connections")
            yield uri


def _accepts(uri: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(uri).close()
    except psycopg2.OperationalError:
        return False
    return True


def _ended(server: Any, log: Path) -> bool:
    assert server.poll() is None, log.read_text()
    return False


@contextlib.contextmanager
def running_object_store(directory: Path) -> Iterator[str]:
    """An S3 server with one bucket; gives its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = directory / "store.log"
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], log) as server:
        wait_until(lambda: _answers(url) or _ended(server, log), "the object store to answer")
        object_client(url).create_bucket(Bucket=BUCKET)
        yield url


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True


def object_client(url: str) -> Any:
    """A client of the object store."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
    )


@dataclass
class MlflowOnPostgres:
    """A running `mlflow server`, and what it keeps its things in.

    Args:
        url: Of the server.
        database: The URI of its database.
        store: The URL of its object store.
        proxied: Whether artifacts go through it.
    """

    url: str
    database: str
    store: str
    proxied: bool = True

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What its database answers: what is really there, whatever the server would make of it."""
        import psycopg2

        connection = psycopg2.connect(self.database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def remote_runs(self, run_id: str) -> list[tuple[str, str]]:
        """Id and status of each MLflow run that a run has; those that were deleted do not count."""
        return self.query(
            "select r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'trackhub.run_id' and t.value = %s and r.lifecycle_stage = 'active'",
            run_id,
        )

    def points(self, remote_id: str, key: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, in the order of the steps, each row of the table once."""
        rows = self.query("select step, value from metrics where run_uuid = %s and key = %s", remote_id, key)
        return sorted((int(step), float(value)) for step, value in rows)

    def objects(self, remote_id: str) -> dict[str, bytes]:
        """Artifact path -> content, of all objects of a run in the store."""
        client, found = object_client(self.store), {}
        ((experiment_id,),) = self.query("select experiment_id from runs where run_uuid = %s", remote_id)
        folder = f"{PROXIED if self.proxied else DIRECT}/{experiment_id}/{remote_id}/artifacts/"
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=folder)
        for entry in (entry for page in pages for entry in page.get("Contents", [])):
            content = client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            found[str(entry["Key"]).removeprefix(folder)] = content
        return found


@contextlib.contextmanager
def running_mlflow(
    database: str, store: str, directory: Path, *, port: int | None = None, proxied: bool = True
) -> Iterator[MlflowOnPostgres]:
    """An `mlflow server` on a database and an object store.

    Args:
        database: URI of the PostgreSQL database.
        store: URL of the object store.
        directory: For its log.
        port: Where it listens; default: a free one.
        proxied: Whether artifacts go through the server; else its clients talk to the store.
    """
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    place = f"s3://{BUCKET}/{'proxied' if proxied else 'direct'}"
    artifacts = (
        ["--artifacts-destination", place] if proxied else ["--no-serve-artifacts", "--default-artifact-root", place]
    )
    command = [
        # Named with its driver: which one SQLAlchemy takes by itself depends on its version.
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri"),
        *(database.replace("postgresql:", "postgresql+psycopg2:"), *artifacts),
        *("--workers", "1", "--host", "127.0.0.1", "--port", str(port)),
    ]
    log = directory / f"mlflow-{port}.log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        **CREDENTIALS,
        "MLFLOW_S3_ENDPOINT_URL": store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with running(command, log, cwd=directory, env=environment) as server:
        wait_for(url, server, log)
        yield MlflowOnPostgres(url, database, store, proxied)


@contextlib.contextmanager
def running_everything(directory: Path) -> Iterator[MlflowOnPostgres]:
    """PostgreSQL, the object store, and `mlflow server` in front of both."""
    try:
        import boto3  # noqa: F401
        import moto.server  # noqa: F401
        import psycopg2  # noqa: F401
    except ImportError as error:
        raise NotInstalled(f"{error.name} is not installed") from error
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(running_postgres())
        store = stack.enter_context(running_object_store(directory))
        yield stack.enter_context(running_mlflow(database, store, directory))
