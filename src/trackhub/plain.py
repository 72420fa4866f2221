"""Turns scalars, params, tags, names, steps and times, as users pass them, into plain data, or refuses them by name.

Apart from `values.py` because every call needs this part and no call may be slowed by it: it makes no files, and it
imports no array library; it recognises values of one by their attributes.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import reprlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

from trackhub.records import PlainValue

LARGEST_ARRAY_PARAM = 10_000
"""How many elements an array may have to be a param; a larger one is data, and belongs in an artifact."""

_DEEPEST = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCALARS = "Python, NumPy, torch and JAX scalars, and anything with .item() or __float__"
_NOT_TEXTUAL = (str, bytes, bytearray, memoryview)


def plain_scalar(value: object, name: str) -> float:
    """A metric's value as float64. NaN and infinities are kept; None and a masked NumPy value, no number yet, are NaN.

    Args:
        value: A Python number, Decimal or Fraction, an array of one element, or anything with `__float__`.
        name: The metric's name, for messages.

    Raises:
        TypeError: If it is not one real number.
        ValueError: If it is finite and beyond the range of float64.

    >>> plain_scalar(True, "done")
    1.0
    >>> plain_scalar(None, "recall")
    nan
    """
    if value is None:
        return math.nan
    return value if type(value) is float else real_number(value, f"metric {name!r}")


def real_number(value: object, what: str) -> float:
    """As `plain_scalar`, for a value that is not a metric.

    Args:
        value: As for `plain_scalar`.
        what: What the value is, for messages: `histogram 'weights'`.

    Raises:
        TypeError: If it is not one real number.
        ValueError: If it is finite and beyond the range of float64.
    """
    number = _item(value, what)
    if isinstance(number, _NOT_TEXTUAL) or not (
        hasattr(type(number), "__float__") or hasattr(type(number), "__index__")
    ):
        raise _not_a_number(value, number, what)
    try:
        result = float(number)  # type: ignore[arg-type]
    except OverflowError as error:
        raise _beyond_range(value, what) from error
    except (TypeError, ValueError) as error:
        raise _not_a_number(value, number, what) from error
    if math.isinf(result) and number != result:
        raise _beyond_range(value, what)
    return result


def plain_params(params: object) -> dict[str, PlainValue]:
    """Params as one flat mapping: nested mappings and dataclasses are joined with `/`, leaves become plain.

    Sequences and small arrays become lists, sets become sorted lists, an Enum its value (or its name where the value is
    not plain), classes and functions their qualified name, bytes their repr, and every other object its `str()`.

    Args:
        params: A mapping, a dataclass instance or an `argparse.Namespace`.

    Raises:
        TypeError: If it is none of these.
        ValueError: If two names become one, a part of a name is empty, a container contains itself, an array has more
            than `LARGEST_ARRAY_PARAM` elements, or a text is not valid Unicode.

    >>> plain_params({"optimizer": {"lr": 0.1, "betas": (0.9, 0.999)}, "seed": 1})
    {'optimizer/lr': 0.1, 'optimizer/betas': [0.9, 0.999], 'seed': 1}
    """
    if _members(params) is None:
        raise TypeError(
            f"params must be a mapping, a dataclass instance or an argparse.Namespace, not {given(params)}."
            f"{_dump_hint(params)}"
        )
    flat: dict[str, PlainValue] = {}
    origins: dict[str, str] = {}
    _flatten(params, "", "params", flat, origins, _Nesting())
    return flat


def plain_tags(tags: object) -> dict[str, str]:
    """Tags as texts: a value that is not a text becomes what it would be as a param, written with `str()`.

    Raises:
        TypeError: If `tags` is not a mapping, or one of its values is a mapping.
        ValueError: If two names become one, or a name or text cannot be stored.

    >>> plain_tags({"team": "vision", "fold": 3})
    {'team': 'vision', 'fold': '3'}
    """
    if not isinstance(tags, Mapping):
        raise TypeError(f"tags must be a mapping of names to texts, not {given(tags)}")
    plain: dict[str, str] = {}
    origins: dict[str, str] = {}
    for key, value in tags.items():
        name = check_name(_key_text(key), "tag name")
        _claim(name, f"tags[{key!r}]", origins)
        if _members(value) is not None:
            raise TypeError(f"tag {name!r}: tags are flat, got {given(value)}; log nested values with log_params")
        plain[name] = str(plain_value(value, f"tag {name!r}"))
    return plain


def plain_value(value: object, what: str) -> PlainValue:
    """One param value as plain data; see `plain_params` for what becomes what. Mappings stay nested.

    Args:
        value: Anything.
        what: What the value is, for messages: `param 'lr'`.

    Raises:
        ValueError: As `plain_params`.
    """
    return _plain(value, what, _Nesting())


def check_name(name: object, what: str) -> str:
    """Give back a name that can be stored: a text that is not empty and has no control characters or line breaks.

    Args:
        name: The name as the user gave it. Spaces, slashes, any script and any length are fine; backends map them.
        what: What is named, for messages: `metric name`.

    Raises:
        TypeError: If it is not a text.
        ValueError: If it cannot be stored.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {given(name)}")
    text = _text(name, what)
    if not text:
        raise ValueError(f"{what} must not be empty")
    if not text.isprintable():  # quick, but it also refuses spaces other than U+0020 and the joiners inside emoji
        for character in text:
            if character < " " or "\x7f" <= character <= "\x9f" or character in "\u2028\u2029":
                raise ValueError(
                    f"{what} {shown(text)} must not contain control characters or line breaks, found {character!r}"
                )
    return text


def metric_name(name: object) -> str:
    """Give back a metric's name, if it can be stored; see `check_name`."""
    return check_name(name, "metric name")


def artifact_name(name: object) -> str:
    """Give back an artifact's name, if it is a relative path with `/` between its parts. A backslash is a character.

    Raises:
        TypeError: If it is not a text.
        ValueError: If it is absolute, has an empty, `.` or `..` part, or cannot be stored; with a name that would do.

    >>> artifact_name("plots/loss.png")
    'plots/loss.png'
    """
    text = check_name(name, "artifact name")
    parts = text.split("/")
    if text.startswith("/"):
        problem = "must be relative"
    elif ".." in parts:
        problem = "must not contain '..'"
    elif "." in parts:
        problem = "must not contain '.' as a part"
    elif "" in parts:
        problem = "must not have empty parts"
    else:
        return text
    fixed = "/".join(part for part in parts if part not in ("", ".", ".."))
    raise ValueError(f"artifact name {shown(text)} {problem}" + (f"; use {shown(fixed)}" if fixed else ""))


def time_ns_of(timestamp: object) -> int:
    """A time as nanoseconds since the Unix epoch.

    Args:
        timestamp: Seconds since the epoch, a datetime (without a time zone: local time), or None for now.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it is not finite, or its nanoseconds do not fit 64 bit (the years 1678 to 2261 do).

    >>> time_ns_of(1.5)
    1500000000
    """
    if timestamp is None:
        return time.time_ns()
    if isinstance(timestamp, datetime):
        nanoseconds = _datetime_ns(timestamp)
    elif isinstance(timestamp, bool):
        raise TypeError("timestamp must be seconds since the epoch or a datetime, not a bool")
    elif isinstance(timestamp, int):
        nanoseconds = int(timestamp) * 10**9
    else:
        try:
            seconds = real_number(timestamp, "timestamp")
        except TypeError as error:
            raise TypeError(
                f"timestamp must be seconds since the epoch or a datetime, not {given(timestamp)}"
            ) from error
        if not math.isfinite(seconds):
            raise ValueError(f"timestamp must be finite, not {seconds}")
        # Split first: seconds times 1e9 would round a present-day time to 256 ns.
        whole = math.floor(seconds)
        nanoseconds = whole * 10**9 + round((seconds - whole) * 1e9)
    if not -(2**63) <= nanoseconds < 2**63:
        raise ValueError(
            f"timestamp {shown(timestamp)} is out of range; it is in seconds since the epoch (milliseconds / 1000)"
        )
    return nanoseconds


def step_of(step: object) -> int:
    """A step as int.

    Args:
        step: A Python, NumPy or torch integer.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it does not fit 64 bit.
    """
    if type(step) is not int:
        try:
            whole = operator.index(step)  # type: ignore[arg-type]
        except TypeError as error:
            hint = "; convert it with int(step)" if hasattr(type(step), "__float__") else ""
            raise TypeError(f"step must be an integer, not {given(step)}{hint}") from error
        # torch gives a bool tensor's index as 0 or 1.
        if isinstance(step, bool) or "bool" in str(getattr(step, "dtype", "")):
            raise TypeError(f"step must be an integer, not {given(step)}")
        step = whole
    if not -(2**63) <= step < 2**63:
        raise ValueError(f"step {shown(step)} does not fit 64 bit")
    return step


def is_array(value: object) -> bool:
    """Whether this is an array, tensor or array scalar of some library, by its attributes."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)


def shape_of(array: Any) -> tuple[int, ...] | None:
    """The shape of an array; None where it is unknown."""
    try:
        return tuple(int(length) for length in array.shape)
    except (TypeError, ValueError):
        return None


def shown(value: object) -> str:
    """A value's repr, shortened for a message."""
    return _REPR.repr(value)


def given(value: object) -> str:
    """What was given, for a message: its type, and its shape or a short repr."""
    kind = type(value)
    label = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if value is None:
        return "None"
    if is_array(value) and shape_of(value):
        return f"a {label} of shape {shape_of(value)}"
    return f"a {label}: {shown(value)}"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


class _Nesting:
    """The containers being walked, to refuse those that contain themselves before the stack ends."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    @contextmanager
    def inside(self, container: object, what: str) -> Iterator[None]:
        if id(container) in self._open:
            raise ValueError(f"{what} contains itself: {type(container).__qualname__}")
        if len(self._open) >= _DEEPEST:
            raise ValueError(f"{shown(what)} is nested more than {_DEEPEST} deep")
        self._open.add(id(container))
        yield
        self._open.discard(id(container))


def _members(value: object) -> Iterable[tuple[object, object]] | None:
    """The named members of a mapping, dataclass instance or namespace; None for anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Enum):
        names = [field.name for field in dataclasses.fields(value)]
        unset = [name for name in names if not hasattr(value, name)]
        if unset:
            raise ValueError(f"{type(value).__qualname__} has no value yet for its field {unset[0]!r}")
        return [(name, getattr(value, name)) for name in names]
    argparse = sys.modules.get("argparse")
    if argparse is not None and isinstance(value, argparse.Namespace):
        return list(vars(value).items())
    return None


def _flatten(
    container: object, prefix: str, where: str, flat: dict[str, PlainValue], origins: dict[str, str], nesting: _Nesting
) -> None:
    with nesting.inside(container, where):
        for key, value in _members(container) or ():
            key_text, origin = _key_text(key), f"{where}[{key!r}]"
            if "" in key_text.split("/"):
                raise ValueError(f"{shown(key)} in {where} has an empty name part; name each part between slashes")
            name = check_name(prefix + key_text, "param name")
            if _members(value):
                _flatten(value, f"{name}/", origin, flat, origins, nesting)
                continue
            _claim(name, origin, origins)
            flat[name] = _plain(value, f"param {name!r}", nesting)


def _claim(name: str, origin: str, origins: dict[str, str]) -> None:
    if name in origins:
        raise ValueError(f"{origins[name]} and {origin} are both named {name!r}; rename one of them")
    origins[name] = origin


def _key_text(key: object) -> str:
    if isinstance(key, Enum) and isinstance(key.value, str | int):
        key = key.value
    return str.__str__(key) if isinstance(key, str) else str(key)


def _plain(value: object, what: str, nesting: _Nesting) -> PlainValue:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, what, nesting) if isinstance(value.value, str | int | float | None) else value.name
    if isinstance(value, str):
        return _text(value, what)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else _object_text(int(value), what)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return repr(bytes(value))
    members = _members(value)
    if members is not None:
        return _plain_mapping(value, members, what, nesting)
    if is_array(value):
        return _plain_array(value, what, nesting)
    if isinstance(value, Sequence | Set) and not isinstance(value, range):
        with nesting.inside(value, what):
            elements = [_plain(element, what, nesting) for element in value]
        return sorted(elements, key=repr) if isinstance(value, Set) else elements
    return _object_text(value, what)


def _plain_mapping(
    value: object, members: Iterable[tuple[object, object]], what: str, nesting: _Nesting
) -> dict[str, PlainValue]:
    plain: dict[str, PlainValue] = {}
    origins: dict[str, str] = {}
    with nesting.inside(value, what):
        for key, member in members:
            name = _text(_key_text(key), what)
            _claim(name, f"{what}[{key!r}]", origins)
            plain[name] = _plain(member, what, nesting)
    return plain


def _plain_array(value: Any, what: str, nesting: _Nesting) -> PlainValue:
    shape = shape_of(value)
    if shape is not None and math.prod(shape) > LARGEST_ARRAY_PARAM:
        raise ValueError(f"{what} is {given(value)}, too large for a param; save it to a file and use log_artifact")
    if shape is None or getattr(value, "is_meta", False):
        return _object_text(value, what)
    if not hasattr(value, "tolist") and callable(getattr(value, "numpy", None)):
        value = value.numpy()
    if _holds_times(value) and hasattr(value, "astype"):
        value = value.astype(str)  # tolist() would give nanosecond times as bare integers
    if not hasattr(value, "tolist"):
        return _object_text(value, what)
    plain = value.tolist()
    if is_array(plain):  # a number that Python has no type for, such as a long double
        return float(plain) if hasattr(type(plain), "__float__") else _object_text(plain, what)
    with nesting.inside(value, what):
        return _plain(plain, what, nesting)


def _object_text(value: object, what: str) -> str:
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        # Their str() holds an address, which would differ between two runs of one program.
        return _text(f"{value.__module__}.{value.__qualname__}", what)
    try:
        text = str(value)
    except ValueError as error:  # Python refuses to write integers of more than 4300 digits
        raise ValueError(f"{what} cannot be written as text: {error}") from error
    return _text(text, what)


def _text(value: str, what: str) -> str:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not valid Unicode: {shown(text)} has a lone surrogate at {error.start}") from error
    return text


def _holds_times(value: object) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", None) in ("m", "M")


def _item(value: Any, what: str) -> object:
    """The one element of an array, as a Python value; anything else unchanged."""
    item = getattr(value, "item", None)
    if isinstance(value, type) or not callable(item):
        return value
    shape = shape_of(value) if hasattr(value, "shape") else ()
    # A NumPy time's item may be a bare integer, and a meta tensor has no value at all.
    if (shape is not None and math.prod(shape) != 1) or _holds_times(value):
        raise _not_a_number(value, value, what)
    if getattr(value, "is_meta", False):
        raise _not_a_number(value, value, what)
    masked_arrays = sys.modules.get("numpy.ma")
    if masked_arrays is not None and masked_arrays.is_masked(value):
        return math.nan
    try:
        return item()
    except (TypeError, ValueError) as error:
        raise _not_a_number(value, value, what) from error


def _not_a_number(value: Any, number: object, what: str) -> TypeError:
    shape = shape_of(value) if hasattr(value, "shape") else ()
    hint = ""
    if isinstance(number, str):
        hint = "; convert it with float(...), or use set_tags for text"
    elif isinstance(number, complex):
        hint = "; log .real and .imag under two names"
    elif number is None:
        hint = "; leave it out where there is no value"
    elif isinstance(number, timedelta) or getattr(getattr(value, "dtype", None), "kind", "") == "m":
        hint = "; log its seconds"
    elif isinstance(value, Mapping):
        hint = "; metrics are flat: write the inner names out"
    elif (shape and math.prod(shape) != 1) or isinstance(value, Sequence | Set):
        hint = "; reduce it to one number (mean, max), or use log_histogram"
    elif callable(value):
        hint = "; call it"
    return TypeError(f"{what} must be one real number, not {given(value)}{hint}. Accepted are {_SCALARS}.")


def _beyond_range(value: object, what: str) -> ValueError:
    bits = f" of {value.bit_length()} bit" if isinstance(value, int) else ""
    return ValueError(
        f"{what}: {type(value).__qualname__}{bits} is beyond the range of a 64-bit float; scale it, or log "
        "its logarithm"
    )


def _dump_hint(params: object) -> str:
    for method in ("model_dump", "to_dict", "_asdict"):
        if callable(getattr(params, method, None)):
            return f" Pass its .{method}()."
    return ""


def _datetime_ns(moment: datetime) -> int:
    if moment != moment:  # pandas' NaT is a datetime, too
        raise ValueError("timestamp is NaT, not a time")
    fields = (moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second, moment.microsecond)
    pure = datetime(*fields, tzinfo=moment.tzinfo, fold=moment.fold)
    try:
        aware = pure.astimezone() if pure.utcoffset() is None else pure
        since = aware - _EPOCH
    except (OverflowError, OSError) as error:
        raise ValueError(f"timestamp {moment} is out of range") from error
    return since // timedelta(microseconds=1) * 1000 + int(getattr(moment, "nanosecond", 0))
