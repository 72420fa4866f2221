"""Names that MLflow accepts, made from any name: reversibly, without two names ever meeting.

Apart from the backend because it is pure text: it needs no SDK, and its promises are checked by property tests.

A name MLflow would take as it is stays as it is. In any other, what is not legal becomes `_x<hex code point>_`
(`=` is `_x3d_`), an empty part `_x_`, and what is too long ends in `_xh<hash>_`. A name that happens to contain such
a token has the token's first `_` escaped too (`_x5f_`), so that decoding is always unambiguous.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

MAX_KEY_LENGTH = 250
MAX_IMAGE_KEY_LENGTH = 120
MAX_PART_BYTES = 200
"""File systems take 255 bytes a name; uploads put a prefix before it."""

_TOKEN = re.compile(r"_x(?:([0-9a-f]{2,6})|h[0-9a-f]{16}|)_")
_HASH_LENGTH = 20
_KEY_CHARACTER = re.compile(r"[\w.\- :]")
_FILE_CHARACTER = re.compile(r"[\w.\- =()@+~!]")
_IMAGE_CHARACTER = re.compile(r"[a-zA-Z0-9_.\- ]")
_MODEL_CHARACTER = re.compile(r"[\w.\- ]")
_RESERVED_FILE_PREFIX = ".artifact.uploading."


def to_mlflow_key(key: str) -> str:
    """The MLflow key of a metric, param or tag.

    Args:
        key: Any text.

    Returns:
        A key that every MLflow store takes; the same one if it already was. `from_mlflow_key` gives back `key`,
        unless it had to be shortened, which `is_shortened` tells.
    """
    return _fit(key, _KEY_CHARACTER, MAX_KEY_LENGTH, len)


def from_mlflow_key(mlflow_key: str) -> str:
    """The key that `to_mlflow_key` was given; the hash of a shortened key is left in place."""
    return _TOKEN.sub(_decode_token, mlflow_key)


def is_shortened(mlflow_key: str) -> bool:
    """Whether `mlflow_key` stands for a longer key that cannot be read back from it."""
    return any(match[0].startswith("_xh") for match in _TOKEN.finditer(mlflow_key))


def to_artifact_path(name: str) -> str:
    """A path that stays inside the run's artifacts, that URLs and file systems take, and that only `name` has."""
    parts = [_fit(part, _FILE_CHARACTER, MAX_PART_BYTES, _byte_length) for part in name.split("/")]
    # MLflow reads a path as a URL, and a URL has no space before it.
    return "/".join(escape_first(part) if part.startswith(" ") else part for part in parts)


def to_image_key(name: str) -> str:
    """The key of an image in MLflow's image grid, which takes ASCII only."""
    return _fit(name, _IMAGE_CHARACTER, MAX_IMAGE_KEY_LENGTH, len)


def to_model_name(name: str) -> str:
    """The name of a registered model, which may hold neither `/` nor `:`."""
    return _fit(name, _MODEL_CHARACTER, MAX_KEY_LENGTH, len, separator=None)


def escape_first(part: str) -> str:
    """A part of a path with its first character escaped, for one that would be taken for something else."""
    return f"_x{ord(part[0]):02x}_{part[1:]}"


def _byte_length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _decode_token(match: re.Match[str]) -> str:
    token, code = match[0], match[1]
    if code is None:
        return "" if token == "_x_" else token
    return chr(int(code, 16)) if int(code, 16) <= 0x10FFFF else token


def _fit(
    name: str, legal: re.Pattern[str], limit: int, measure: Callable[[str], int], separator: str | None = "/"
) -> str:
    """Escape `name` as far as needed, and shorten it if it is then longer than `limit`."""
    escaped = _escape(name, legal, separator, "")
    if measure(escaped) <= limit:
        return escaped
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    kept = min(len(name), limit - _HASH_LENGTH)
    while True:
        shortened = _escape(name[:kept], legal, separator, f"_xh{digest}_")
        excess = measure(shortened) - limit
        if excess <= 0:
            return shortened
        # An escape is at most ten characters, and a character at most four bytes.
        kept -= max(1, excess // 10)


def _escape(name: str, legal: re.Pattern[str], separator: str | None, tail: str) -> str:
    parts = name.split(separator) if separator else [name]
    escaped = [_escape_part(part, legal, "") for part in parts[:-1]]
    escaped.append(_escape_part(parts[-1], legal, tail))
    if escaped[0].startswith(".."):
        escaped[0] = escape_first(escaped[0])
    return "/".join(escaped)


def _escape_part(part: str, legal: re.Pattern[str], tail: str) -> str:
    """Escape what lies between two slashes, from its end, so that each `_` sees the final text that follows it."""
    if not part:
        return tail or "_x_"
    pieces = [tail]
    follows = tail
    for character in reversed(part):
        plain = legal.match(character) is not None
        if plain and character == "_" and _TOKEN.match("_" + follows):
            plain = False
        pieces.append(character if plain else f"_x{ord(character):02x}_")
        follows = (pieces[-1] + follows)[:_HASH_LENGTH]
    escaped = "".join(reversed(pieces))
    return escape_first(escaped) if part in {".", ".."} or part.startswith(_RESERVED_FILE_PREFIX) else escaped
