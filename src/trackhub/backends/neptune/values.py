"""Params as Neptune can hold them: 32-bit integers, finite floats, booleans and short strings.

Apart from the backend because it is plain rules, each with the note that tells what was done.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

MAX_TEXT_LENGTH = 16384
MAX_POINT_LENGTH = 1000
_LARGEST_INT = 2**31 - 1
ATOM_TYPES: dict[type, str] = {bool: "Boolean", int: "Integer", float: "Float", str: "String"}


class Atom(NamedTuple):
    """A value that Neptune takes, and what to tell about how it came to be (empty: it is as it was logged)."""

    value: bool | int | float | str
    reason: str = ""
    detail: str = ""


def to_atom(value: Any) -> Atom:
    """What a param becomes.

    >>> to_atom(3)
    Atom(value=3, reason='', detail='')
    >>> to_atom(2**40).value
    1099511627776.0
    >>> to_atom(float("nan")).value, to_atom(None).value, to_atom([1, 2]).value
    ('nan', 'None', '[1, 2]')
    """
    if isinstance(value, bool | str):
        return Atom(value)
    if isinstance(value, int):
        if -_LARGEST_INT - 1 <= value <= _LARGEST_INT:
            return Atom(value)
        if abs(value) <= 2**53:
            return Atom(float(value), "changed", "stored as a float: Neptune's integers have 32 bits")
        return Atom(str(value), "changed", "stored as a text: Neptune's integers have 32 bits")
    if isinstance(value, float):
        if math.isfinite(value):
            return Atom(value)
        return Atom(str(value), "not finite", "stored as a text: Neptune has neither NaN nor infinities")
    if value is None:
        return Atom("None", "changed", "stored as a text: Neptune has no empty values")
    return Atom(json.dumps(value), "changed", "stored as JSON: Neptune's fields hold single values")


def shortened(text: str, limit: int, path: str) -> str:
    """The beginning of a text that is too long, and where the whole of it is."""
    ending = f"... [{len(text)} characters, whole in {path}]"
    return text[: max(limit - len(ending), 0)] + ending
