"""Keeping secrets out of what is written down: reports, logs and messages.

Apart from the settings, where the secrets come from, because everything that writes a message uses it. A vendor's error
may repeat a password in the form it was sent, so each secret is known in the forms it takes on the way; credentials in
the text of a URL are taken out even if nobody has told of them.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "(hidden)"
SHORTEST_SECRET = 4
"""What is shorter is in every second word, and hiding it would show where it is."""

SECRET_WORDS = ("token", "password", "passwd", "secret", "key", "credential")
_KEY = "(?:api|access|secret|private|auth)[_-]?key"
_SECRET_NAME = re.compile(rf"(.*[_.-])?(token|password|passwd|secret|{_KEY}|credentials?|authorization|cookie)", re.I)
# The whole of a name: TOKENIZERS_PARALLELISM has no token in it, and PWD is a directory.
_SECRET_VARIABLE = re.compile(rf"(.*_)?(token|password|passwd|secret|{_KEY}(_id)?)|.+_(pwd|pass)", re.I)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]*(?:@[^/\s@'\"]*)*@")
# The first part without "?": a text of many of them would be searched from each one to its end, for minutes.
_PARAMETER = re.compile(rf"([?&][^=&?\s#]*(?:{'|'.join(SECRET_WORDS)}|sig)[^=&\s#]*=)[^&\s#'\"]+", re.I)
_HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer)\s+)[\w.~+/=-]+", re.I)

_forms: set[str] = set()
_pattern: re.Pattern[str] | None = None


def is_secret_name(name: str) -> bool:
    """Whether an option of this name holds a secret, whatever its type.

    >>> [is_secret_name(name) for name in ("api_token", "PASSWORD", "max_tokens", "sort_key")]
    [True, True, False, False]
    """
    return _SECRET_NAME.fullmatch(name) is not None


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: `AWS_SECRET_ACCESS_KEY`, `NEPTUNE_API_TOKEN`."""
    return _SECRET_VARIABLE.fullmatch(name) is not None


def learn(secrets: Iterable[str], user: str = "") -> None:
    """Have texts hidden from now on, in all the forms that a vendor may repeat them in.

    Args:
        secrets: The texts; those too short to hide are left alone.
        user: The name that a password goes with: both together are sent encoded.
    """
    global _pattern
    fresh: set[str] = set()
    for secret in secrets:
        secret = secret.strip()
        if len(secret) < SHORTEST_SECRET:
            continue
        plain = {secret, unquote(secret)}
        fresh |= plain
        for text in plain:
            pair = base64.b64encode(f"{user}:{text}".encode(errors="surrogateescape")).decode()
            fresh |= {quote(text, safe="", errors="replace"), quote_plus(text, errors="replace"), pair}
            fresh |= {json.dumps(text)[1:-1], repr(text)[1:-1]}
        fresh |= _inside(secret)
    if not fresh <= _forms:
        _forms.update(fresh)
        # The longest first: one secret may be the beginning of another.
        _pattern = re.compile("|".join(map(re.escape, sorted(_forms, key=len, reverse=True))))


def _inside(secret: str) -> set[str]:
    """The secrets in a token that is an encoded JSON object, as Neptune's is."""
    try:
        content = json.loads(base64.b64decode(secret, validate=True))
    except (ValueError, RecursionError):
        return set()
    if not isinstance(content, dict):
        return set()
    return {
        text
        for name, text in content.items()
        if is_secret_name(name) and isinstance(text, str) and len(text) >= SHORTEST_SECRET
    }


def learn_from_url(url: str) -> None:
    """Have the password of a URL hidden, or the token that stands alone in the place of user and password."""
    for part in re.split(r"[\s,]+(?=[\w+.-]+://)", url):
        scheme, _, rest = part.partition("://")
        credentials = _authority(rest).rpartition("@")[0]
        user, colon, password = credentials.partition(":")
        if colon:
            learn([password], unquote(user))
        elif scheme.lower().endswith(("http", "https")):
            # Elsewhere, as in ssh://me@host or abfss://container@account, what stands alone is a mere name.
            learn([user], unquote(user))


def _authority(rest: str) -> str:
    """What of a URL, behind its scheme, says who goes where; a path may have an "@" too."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    _, colon, port = authority.rpartition(":")
    if "@" not in authority and colon and not port.isdigit() and not authority.startswith("["):
        # No port: a password with an unquoted slash in it.
        return rest
    return authority


def hide(text: str) -> str:
    """A text without secrets.

    >>> hide("no route to postgresql://me:sesame@db/runs?sslpassword=open")
    'no route to postgresql://(hidden)@db/runs?sslpassword=(hidden)'
    """
    if _pattern is not None:
        text = _pattern.sub(HIDDEN, text)
    if "://" in text:
        text = _CREDENTIALS.sub(f"{HIDDEN}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    return _HEADER.sub(rf"\1{HIDDEN}", text)


class HidesSecrets(logging.Filter):
    """Takes secrets out of what a logger says, tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the hidden text in the place of what was to be said."""
        record.msg, record.args = hide(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = hide(logging.Formatter().formatException(record.exc_info))
        return True
