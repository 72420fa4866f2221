"""Tracking URIs: which MLflow can serve, made absolute, and shown without credentials.

Apart from the backend because it is checked in `init`, where MLflow must not be imported.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from trackhub.backends.mlflow.errors import without_secrets
from trackhub.errors import BackendUnavailable, SettingsError

DEFAULT_URI = "sqlite:///mlflow.db"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
PROBE_SECONDS = 5.0
_SERVERS = ("http", "https", "databricks")
_ACCEPTED = ", ".join(f"{scheme}://" for scheme in ("http", "https", *DATABASES)) + ", databricks"
_DEFAULT_DRIVERS = {"sqlite": "sqlite3", "postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}
_DRIVER_DISTRIBUTIONS = {
    "psycopg": '"psycopg[binary]"',
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "mysql": "mysql-connector-python",
}


def scheme_of(uri: str) -> str:
    """The URI's scheme, without a driver.

    Raises:
        SettingsError: If MLflow has nothing for it.
    """
    if uri == "databricks":
        return uri
    scheme, colon, _ = uri.partition("://")
    scheme = scheme.partition("+")[0].lower()
    if not colon or scheme == "file":
        raise SettingsError(
            f"mlflow tracking_uri {without_secrets(uri)!r} is a directory, which MLflow no longer writes to; "
            f"write sqlite:///<path>/mlflow.db, or one of {_ACCEPTED}"
        )
    # Other schemes come with MLflow's own plugins.
    if scheme in (*_SERVERS, *DATABASES) or any(p.name == scheme for p in entry_points(group="mlflow.tracking_store")):
        return scheme
    raise SettingsError(f"mlflow tracking_uri {without_secrets(uri)!r} is none of {_ACCEPTED}")


def driver_of(uri: str) -> tuple[str, str]:
    """The Python package that speaks to the URI's database, or server, and the distribution that brings it."""
    default = _DEFAULT_DRIVERS.get(scheme_of(uri), "mlflow")
    if default == "psycopg2" and _sqlalchemy_version() >= (2, 1):
        default = "psycopg"
    named = uri.partition("://")[0].partition("+")[2].lower()
    driver = {"pysqlite": "sqlite3", "mysqldb": "MySQLdb", "mysqlconnector": "mysql"}.get(named, named) or default
    return driver, _DRIVER_DISTRIBUTIONS.get(driver, driver)


def _sqlalchemy_version() -> tuple[int, ...]:
    """Its first two numbers: from 2.1 on it speaks to PostgreSQL by another package unless the URI names one."""
    try:
        return tuple(map(int, version("sqlalchemy").split(".")[:2]))
    except (PackageNotFoundError, ValueError):
        return (2, 1)


def absolute_uri(uri: str, working_directory: Path) -> str:
    """`uri`, with the path of an SQLite file made absolute.

    Raises:
        SettingsError: If it names no file, or MLflow cannot serve it.
    """
    if scheme_of(uri) != "sqlite":
        return uri
    match = re.fullmatch(r"([^:]+)://(?:/([^?]*))?(\?.*)?", uri)
    if match is None or match[2] in {None, "", ":memory:"}:
        raise SettingsError(f"mlflow tracking_uri {uri!r} names no file; write sqlite:///<path>/mlflow.db")
    path = os.path.normpath(working_directory.absolute() / match[2])
    return f"{match[1]}:///{path}{match[3] or ''}"


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite URI."""
    return Path(uri.partition(":///")[2].partition("?")[0]) if scheme_of(uri) == "sqlite" else None


def probe(uri: str) -> str | None:
    """What answers at a tracking URI, without importing MLflow; None where only MLflow itself could ask.

    Raises:
        BackendUnavailable: Nothing does.
    """
    where = without_credentials(uri)
    if scheme_of(uri) == "sqlite":
        path = sqlite_path(uri)
        assert path is not None
        target = path if path.exists() else path.parent
        if not os.access(target, os.W_OK):
            raise BackendUnavailable(f"{target} cannot be written")
        return f"{path} {'can be written' if path.exists() else 'will be created'}"
    if scheme_of(uri) not in ("http", "https"):
        return None
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{where.rstrip('/')}/health", timeout=PROBE_SECONDS) as answer:
            return f"{where} answers ({answer.status})"
    except urllib.error.HTTPError as error:
        return f"{where} answers ({error.code})"
    except OSError as error:
        raise BackendUnavailable(f"{where} cannot be reached: {getattr(error, 'reason', error)}") from error


def without_credentials(uri: str) -> str:
    """`uri` as it may be shown and opened: without user and password."""
    before, at, after = uri.rpartition("@")
    return f"{before.partition('://')[0]}://{after}" if at and "://" in before else uri
