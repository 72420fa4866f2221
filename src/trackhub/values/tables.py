"""Tables as strict JSON, from rows, columns, arrays and data frames.

Apart because a table has rules of its own: what names its columns, and what JSON has no word for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from datetime import time as time_of_day
from typing import Any

import msgspec

from trackhub.plain import given, is_array, plain_value, shown
from trackhub.records import PlainValue
from trackhub.values.arrays import array_list, cells_of, is_array_like, is_sequence, numpy_array


@dataclass(frozen=True)
class EncodedTable:
    """A table as the strict JSON object `{"columns": [...], "data": [[row], ...]}`."""

    data: bytes
    columns: list[str]
    row_count: int
    media_type: str = "application/json"
    suffix: str = ".json"


def encode_table(value: object, name: str, columns: Sequence[object] | None = None) -> EncodedTable:
    """A table as JSON that every strict parser reads.

    Cells: JSON has no NaN, so NaN and missing values (NaT, `pandas.NA`, a key a row does not have) become null, and
    infinities the texts "Infinity" and "-Infinity". Times become ISO 8601, what else JSON does not have its `str()`.

    Args:
        value: A sequence of mappings; a mapping of columns; a pandas or polars DataFrame (a pandas index is a column if
            it has a name); or, with `columns`, a sequence of rows or a two-dimensional array.
        name: The table's name, for messages.
        columns: The names of the columns; for a value that has names itself, which of them to take, in this order.

    Raises:
        TypeError: If it is none of these.
        ValueError: If rows or columns differ in length, or column names are missing, unknown or double.

    >>> encode_table([{"id": 1, "loss": 0.5}, {"id": 2}], "results").data
    b'{"columns":["id","loss"],"data":[[1,0.5],[2,null]]}'
    """
    what = f"table {name!r}"
    if columns is not None:
        columns = cells_of(columns, what, "columns")
    keys, rows = _table(value, what, columns)
    names = [str(_cell(str(key), f"{what}, a column's name")) for key in keys]
    double = {key for key in names if names.count(key) > 1} if len(set(names)) < len(names) else set()
    if double:
        raise ValueError(f"{what} has more than one column named {shown(min(double))}; rename all but one")
    data: list[list[PlainValue]] = []
    for row in rows:
        place = f"{what}, row {len(data)}"
        data.append([_cell(cell, place) for cell in row])
    return EncodedTable(msgspec.json.encode({"columns": names, "data": data}), names, len(data))


def _table(value: Any, what: str, columns: list[object] | None) -> tuple[list[object], Sequence[Sequence[object]]]:
    if isinstance(value, Mapping):
        named = {key: cells_of(cells, what, f"column {key!r}") for key, cells in value.items()}
        return _by_column(named, what, columns)
    if hasattr(type(value), "columns") and hasattr(type(value), "__getitem__"):
        return _by_column(_frame_columns(value, what), what, columns)
    if is_array_like(value):
        array = numpy_array(value, what)
        if array.dtype.names:
            return _by_column({key: array_list(array[key]) for key in array.dtype.names}, what, columns)
        if array.ndim != 2:
            raise ValueError(f"{what} must be two-dimensional, not of shape {array.shape}")
        value = array_list(array)
    if not is_sequence(value):
        raise TypeError(
            f"{what} must be a list of dicts, a dict of columns, a DataFrame (collected, if lazy), or with "
            f"columns=[...] a list of rows or a 2-D array; not {given(value)}"
        )
    if value and isinstance(value[0], Mapping):
        return _by_record(value, what, columns)
    if columns is None and value:
        raise ValueError(f"{what}: the rows have no names, so give columns=[...]")
    rows = []
    for number, row in enumerate(value):
        if isinstance(row, Mapping):
            raise TypeError(f"{what}: row {number} is a mapping, and row 0 is not")
        rows.append(cells_of(row, what, f"row {number}"))
        if len(rows[-1]) != len(columns or ()):
            raise ValueError(
                f"{what}: row {number} has {len(rows[-1])} cells, but there are {len(columns or ())} columns"
            )
    return columns or [], rows


def _by_record(
    records: Sequence[object], what: str, columns: list[object] | None
) -> tuple[list[object], list[list[object]]]:
    keys: dict[object, None] = {}
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise TypeError(f"{what}: row {number} is {given(record)}, and row 0 is a mapping")
        keys.update(dict.fromkeys(record))
    chosen = _chosen(list(keys), what, columns)
    return chosen, [[record.get(key) for key in chosen] for record in records if isinstance(record, Mapping)]


def _by_column(
    cells: dict[object, list[object]], what: str, columns: list[object] | None
) -> tuple[list[object], list[tuple[object, ...]]]:
    chosen = _chosen(list(cells), what, columns)
    for key in chosen[1:]:
        if len(cells[key]) != len(cells[chosen[0]]):
            raise ValueError(
                f"{what}: column {key!r} has {len(cells[key])} cells, but {chosen[0]!r} has {len(cells[chosen[0]])}"
            )
    return chosen, list(zip(*(cells[key] for key in chosen), strict=True))


def _chosen(available: list[object], what: str, columns: list[object] | None) -> list[object]:
    unknown = [key for key in columns or () if key not in available]
    if unknown:
        raise ValueError(f"{what} has no column {unknown[0]!r}; it has {shown(available)}")
    return available if columns is None else columns


def _frame_columns(frame: Any, what: str) -> dict[object, list[object]]:
    """The columns of a data frame, after the levels of its index if any of these has a name."""
    cells: dict[object, list[object]] = {}
    index = getattr(frame, "index", None)
    index_names = list(getattr(index, "names", None) or ())
    levels = index_names if any(level is not None for level in index_names) else []
    lazy = callable(getattr(frame, "collect", None))
    keys = [f"level_{number}" if level is None else level for number, level in enumerate(levels)]
    keys += [] if lazy else list(frame.columns)
    double = [key for key in keys if keys.count(key) > 1]
    if double:
        raise ValueError(f"{what} has more than one column or index level named {double[0]!r}; rename all but one")
    try:
        for number, key in enumerate(keys):
            column = index.get_level_values(number) if index is not None and number < len(levels) else frame[key]
            cells[key] = column.to_list()
    except (AttributeError, TypeError) as error:
        raise TypeError(f"{what} must be a pandas or polars DataFrame, not {type(frame)}") from error
    if lazy:
        raise TypeError(f"{what} is a {type(frame)}, which is lazy; .collect() it first")
    return cells


def _cell(value: Any, what: str, depth: int = 0) -> PlainValue:
    kind = type(value)
    if (
        value is None
        or kind is bool
        or (kind is str and value.isascii())
        or (kind is int and -(2**63) <= value < 2**63)
    ):
        return value  # type: ignore[no-any-return]
    if kind is float:
        return _json_float(value)
    if _is_missing(value):
        return None
    if isinstance(value, datetime | date | time_of_day):
        return value.isoformat()
    if depth > 100:
        raise ValueError(f"{what} has a cell that is nested too deep, or contains itself")
    if isinstance(value, list | tuple):
        return [_cell(element, what, depth + 1) for element in value]
    if isinstance(value, Mapping):
        inner = {str(_cell(str(key), what)): _cell(element, what, depth + 1) for key, element in value.items()}
        if len(inner) < len(value):
            raise ValueError(f"{what} has a cell in which two keys are the same when written as text: {shown(value)}")
        return inner
    return _json_value(plain_value(value, what))


def _is_missing(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    if pandas is not None and value is getattr(pandas, "NA", pandas):
        return True
    if isinstance(value, datetime) or getattr(getattr(value, "dtype", None), "kind", None) in ("m", "M"):
        return getattr(value, "shape", ()) == () and bool(value != value)
    return callable(getattr(value, "is_nan", None)) and not is_array(value) and value.is_nan() is True  # a Decimal


def _json_value(value: PlainValue) -> PlainValue:
    if isinstance(value, float):
        return _json_float(value)
    if isinstance(value, list):
        return [_json_value(element) for element in value]
    if isinstance(value, dict):
        return {key: _json_value(element) for key, element in value.items()}
    return value


def _json_float(value: float) -> PlainValue:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
