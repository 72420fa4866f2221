"""What the Neptune client raises, turned into the errors that a delivery knows.

Apart from the backend so that there is one place to look when a failure was taken for the wrong kind. The client lets
out its own exceptions, bravado's, requests' and urllib3's; they are judged by name, for they cannot be imported
beforehand, and another client has its own classes of the same names.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from types import TracebackType

from trackhub.errors import BackendError, BackendUnavailable, RecordRejected

_LONGEST_MESSAGE = 400
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_GONE = {"MetadataContainerNotFound", "ContainerUUIDNotFound", "ObjectNotFound", "RunNotFound"}
_ADVICE = {
    "the credentials are refused (NEPTUNE_API_TOKEN)": {
        "Unauthorized",
        "Forbidden",
        "NeptuneInvalidApiTokenException",
        "NeptuneMissingApiTokenException",
        "NeptuneAuthTokenExpired",
        "HTTPUnauthorized",
        "HTTPForbidden",
    },
    "there is no such project (NEPTUNE_PROJECT, as workspace/name)": {
        "ProjectNotFound",
        "ProjectNotFoundWithSuggestions",
        "NeptuneMissingProjectNameException",
        "AmbiguousProjectName",
        "NeptuneLegacyProjectException",
    },
    "its host name is not known": {"CannotResolveHostname", "NameResolutionError"},
    "its certificate is not trusted": {"NeptuneSSLVerificationError", "SSLError"},
    "the project is archived": {"WritingToArchivedProjectException"},
    "the run is gone": _GONE,
    "this is no Neptune server": {"JSONDecodeError", "HTTPFound", "HTTPNotFound", "SwaggerMappingError"},
    "it asks to be left alone for a while": {"HTTPTooManyRequests"},
    "it cannot be reached": {
        "ConnectionError",
        "BravadoConnectionError",
        "NewConnectionError",
        "ConnectionRefusedError",
    },
    "it did not answer in time": {"Timeout", "ReadTimeout", "ConnectTimeout", "BravadoTimeoutError"},
    "the connection was ended, from the app or by the client itself": {
        "InactiveRunException",
        "NeptuneSynchronizationAlreadyStoppedException",
    },
    "it is failing": {"HTTPInternalServerError", "HTTPBadGateway", "HTTPServiceUnavailable", "HTTPGatewayTimeout"},
}
_BAD_VALUES = {"OperationNotSupported", "MetadataInconsistency", "FileNotFound", "HTTPRequestEntityTooLarge"}
_BAD_STATUSES = {400, 413}


class Attempt:
    """A `with` block that keeps whatever is raised in it."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True


def translated(error: BaseException, doing: str, secrets: tuple[str, ...] = ()) -> BackendError:
    """The error to raise for one of the client's.

    Args:
        error: What was raised.
        doing: What the client was to do: "send metrics".
        secrets: Texts that no message may have in it.
    """
    if isinstance(error, BackendError):
        return error
    chain = list(_chain(error))
    names = [type(link).__name__ for link in chain]
    advice = next((text for name in names for text, known in _ADVICE.items() if name in known), "")
    # The client's own messages are pages of text; where we know what it is about, ours is enough.
    said = "" if advice else without_secrets(f"{names[0]}: {error}", secrets)
    message = f"Neptune could not {doing}: {advice or said}"
    if names[0] in _BAD_VALUES or getattr(error, "status", None) in _BAD_STATUSES:
        return RecordRejected(without_secrets(f"Neptune could not {doing}: {names[0]}: {error}", secrets))
    return BackendUnavailable(message, retry_after_seconds(chain))


def run_is_gone(error: BaseException | None) -> bool:
    """Whether there is no such run at the server."""
    return any(type(link).__name__ in _GONE for link in _chain(error))


def field_limit(error: BaseException | None) -> int | None:
    """How many fields a run may have, if that is what the server complains of."""
    for link in _chain(error):
        if type(link).__name__ == "NeptuneFieldCountLimitExceedException":
            found = re.search(r"more than (\d+)", str(link))
            return int(found[1]) if found else None
    return None


def retry_after_seconds(chain: list[BaseException]) -> float | None:
    """How long the server asked to be left alone."""
    for link in chain:
        headers = getattr(getattr(link, "response", None), "headers", None) or {}
        value = str(headers.get("Retry-After", headers.get("retry-after", "")))
        if value.strip().isdecimal():
            return float(value)
    return None


def secrets_of(api_token: str | None) -> tuple[str, ...]:
    """The texts in an API token that must not be shown: itself, and the key in it."""
    if not api_token:
        return ()
    try:
        content = json.loads(base64.b64decode(api_token.encode()))
        key = str(content.get("api_key", ""))
    except (ValueError, AttributeError):
        key = ""
    return tuple(text for text in (api_token, key) if text)


def without_secrets(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` on one line, cut to a readable length, without colours and credentials."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = " ".join(_STYLE.sub("", text).split())
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
