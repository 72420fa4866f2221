"""Paths of Neptune fields, made from any name, without two names ever meeting.

Apart from the backend because it is pure text: it needs no SDK, and its promises are checked by property tests.

Neptune splits a path at `/` and forgets empty parts, so `//x//y` and `x/y` would be one field: an empty part becomes
`_x_`. Control characters and lone surrogates become `_x<hex code point>_`, and a path that is too long ends in
`_xh<hash>_`. A name that happens to contain such a token has the token's first `_` escaped (`_x5f_`).
"""

from __future__ import annotations

import hashlib
import re

MAX_PATH_BYTES = 1000
MAX_FILE_PATH_BYTES = 180
"""The client calls the copy of a file by the field's path and a time, and file systems take 255 bytes."""
SLASH = "_x2f_"
"""Stands for a `/` where a namespace would have to be below a field, and for the end of a field's own name."""

_TOKEN = re.compile(r"_(?=x(?:[0-9a-f]{1,6}|h[0-9a-f]{16}|)_)")
_BAD = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def to_path(prefix: str, name: str, max_bytes: int = MAX_PATH_BYTES) -> str:
    """The path of a field.

    Args:
        prefix: The namespace it is in, of our own choice.
        name: Any text.
        max_bytes: How long the path may be.

    >>> to_path("metrics", "train/loss")
    'metrics/train/loss'
    >>> to_path("metrics", "//x//y")
    'metrics/_x_/_x_/x/_x_/y'
    """
    path = f"{prefix}/" + "/".join(map(_escape, name.split("/")))
    if len(path.encode()) <= max_bytes:
        return path
    ending = f"_xh{digest(name)}_"
    return path.encode()[: max_bytes - len(ending)].decode(errors="ignore").rstrip("/") + ending


def digest(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def to_custom_run_id(run_id: str) -> str:
    """Neptune's custom id of a run: its id, or what fits into the 36 characters that Neptune takes, with a hash."""
    return run_id if len(run_id) <= 36 else f"{run_id[:19]}-{digest(run_id)}"


def _escape(part: str) -> str:
    if not part:
        return "_x_"
    return _BAD.sub(lambda match: f"_x{ord(match[0]):x}_", _TOKEN.sub("_x5f_", part))
