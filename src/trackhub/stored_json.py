"""JSON as run directories hold it, with paths that need not be UTF-8.

Apart from the two files that are written so, the manifest and the cursors: such a path has lone surrogates in Python,
and JSON has them as escapes, which msgspec neither writes nor reads.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

ValueT = TypeVar("ValueT")


def encode(value: Any, *, indent: int | None = None) -> bytes:
    """A value that msgspec can encode, as JSON; in lines for people where `indent` is given."""
    try:
        content = msgspec.json.encode(value)
        return content if indent is None else msgspec.json.format(content, indent=indent)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), indent=indent).encode()


def decode(content: bytes, kind: type[ValueT]) -> ValueT:
    """The value of that type that was encoded.

    Raises:
        ValueError: It is no JSON, or no such value.
        RecursionError: It is nested too deeply.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(content), type=kind)
