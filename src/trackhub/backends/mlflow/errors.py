"""What the MLflow stack raises, turned into the two errors that a delivery knows.

Apart from the backend so that there is one place to look when a failure was taken for the wrong kind: its calls raise
MLflow's, requests', SQLAlchemy's and the artifact stores' own exceptions, and none of them is importable beforehand.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType

from trackhub.errors import BackendError, BackendUnavailable, RecordRejected

_STORE_PACKAGES = frozenset(
    {"sqlalchemy", "botocore", "boto3", "s3transfer", "google", "azure", "databricks", "paramiko"}
)
_BAD_DATA_NAMES = frozenset({"DataError", "IntegrityError", "StatementError"})
_CREDENTIALS = re.compile(r"(://)[^/\s]*@")
_SECRET_PAIR = re.compile(
    r"((?:password|passwd|pwd|token|secret|signature|credential|api_?key)\w*\s*[=:]\s*)[^&\s,;'\"]+", re.I
)
_LONGEST_MESSAGE = 400


class Translated:
    """A `with` block that lets out BackendUnavailable and RecordRejected, and no other error of the vendor's stack.

    Args:
        doing: What the block does, for the message: "log metrics".
        where: The server or database, without credentials.
        may_reject: False where nothing can be set aside, as when a run is opened.
        run_is_gone: Asked before a record is rejected: an answer of True means that the run was deleted.
        secrets: Texts that no message may have in it.
    """

    def __init__(
        self,
        doing: str,
        where: str,
        *,
        may_reject: bool = True,
        run_is_gone: Callable[[], bool] | None = None,
        secrets: tuple[str, ...] = (),
    ) -> None:
        self._doing = doing
        self._where = where
        self._may_reject = may_reject
        self._run_is_gone = run_is_gone
        self._secrets = secrets

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, BackendError):
            return
        verdict = _judge(error)
        if verdict is None:
            return
        advice, rejected, retry_after_seconds = verdict
        # SQLAlchemy appends the statement and the data in it.
        said = without_secrets(str(error).partition("[SQL:")[0], self._secrets)
        message = f"MLflow at {self._where} could not {self._doing}: {advice}{': ' if advice and said else ''}{said}"
        # The cause is left out: its text may hold the credentials that the message no longer has.
        if rejected and self._may_reject:
            if self._run_is_gone is not None and self._run_is_gone():
                raise BackendUnavailable(f"{message} (the run was deleted; restore it in MLflow)") from None
            raise RecordRejected(message) from None
        raise BackendUnavailable(message, retry_after_seconds) from None


def without_secrets(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` on one line, cut to a readable length, without passwords and tokens."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _SECRET_PAIR.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."


def _judge(error: Exception) -> tuple[str, bool, float | None] | None:
    """What to tell people, whether the record can never be taken, and when to come back; None for a bug of ours."""
    import requests
    from mlflow.exceptions import MlflowException

    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, requests.exceptions.RequestException):
            return _judge_request(link)
    for link in chain:
        package = type(link).__module__.partition(".")[0]
        if type(link).__name__ in _BAD_DATA_NAMES and package == "sqlalchemy":
            return "the database refuses the data", True, None
        if package in _STORE_PACKAGES:
            return "", False, None
        if isinstance(link, OSError):
            return "", False, None
    if not isinstance(error, MlflowException):
        return None
    if any(isinstance(link, ValueError | TypeError | OverflowError) for link in chain):
        return "the store cannot hold the data", True, None
    answered = re.search(r"failed with error code (\d{3})", str(error))
    return _judge_status(int(answered[1]) if answered else error.get_http_status_code())


def _judge_request(error: Exception) -> tuple[str, bool, float | None]:
    from requests import exceptions
    from urllib3.exceptions import NameResolutionError, NewConnectionError, TimeoutError

    # Where no retries are allowed, urllib3 reports most failures as retries that ran out, for this reason.
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(error, exceptions.SSLError):
        return "its certificate is not trusted (see MLFLOW_TRACKING_SERVER_CERT_PATH), or it speaks no TLS", False, None
    if isinstance(reason, NameResolutionError):
        return "its host name is not known", False, None
    if isinstance(reason, NewConnectionError):
        return "it cannot be reached", False, None
    if isinstance(error, exceptions.Timeout) or isinstance(reason, TimeoutError):
        return "it did not answer in time", False, None
    if isinstance(error, exceptions.RetryError):
        return "it is overloaded or failing", False, _retry_after_seconds(error)
    response = getattr(error, "response", None)
    if response is not None and not isinstance(error, exceptions.JSONDecodeError):
        advice, rejected, _ = _judge_status(response.status_code)
        return advice, rejected, _seconds(response.headers.get("Retry-After"))
    return "it cannot be reached", False, None


def _judge_status(status: int) -> tuple[str, bool, float | None]:
    if status in {401, 403}:
        return "it refuses the credentials (MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD)", False, None
    if status == 404:
        return "the run or experiment was deleted, or this is no MLflow server", False, None
    if status in {405, 407, 408, 425, 429} or status < 400 or status >= 500:
        return "", False, None
    return "", True, None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _retry_after_seconds(error: BaseException) -> float | None:
    """The Retry-After of the answer that made urllib3 give up; it is kept nowhere but in the frame that raised."""
    for link in _chain(error):
        for frame, _ in traceback.walk_tb(link.__traceback__):
            headers = getattr(frame.f_locals.get("response"), "headers", None)
            if headers is not None and (seconds := _seconds(headers.get("Retry-After"))) is not None:
                return seconds
    return None


def _seconds(header: str | None) -> float | None:
    return float(header) if header is not None and header.strip().isdecimal() else None
