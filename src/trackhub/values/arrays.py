"""Arrays, tensors and sequences of any library as NumPy arrays and plain lists.

Apart because pictures, tables and numbers all need it, and because it is the only part that may import NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from trackhub.plain import given, is_array, real_number, shape_of


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a sequence of elements: not a text, not bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def is_array_like(value: object) -> bool:
    """Whether a value is an array or tensor, or says it can be one."""
    return is_array(value) or (hasattr(value, "__array__") and not isinstance(value, type))


def numpy_array(value: Any, what: str) -> Any:
    """An array or tensor of any library, on any device, as a NumPy array; a masked element is NaN."""
    try:
        import numpy as np
    except ImportError as error:
        raise TypeError(f"{what}: arrays need NumPy, which is not installed; give Python lists") from error
    if getattr(value, "is_meta", False):
        raise TypeError(f"{what} must have values; {given(value)} is on the meta device")
    if callable(getattr(value, "detach", None)) and callable(getattr(value, "cpu", None)):
        value = value.detach().cpu()
        try:
            return value.numpy()
        except (TypeError, RuntimeError):  # bfloat16 and sparse tensors have no NumPy form
            value = value.to_dense().double()
    if np.ma.is_masked(value):
        return value.astype("float64").filled(math.nan)
    return np.asarray(value)


def real_array(value: Any, what: str) -> Any:
    """As `_numpy`, of bools, integers or floats."""
    array = numpy_array(value, what)
    if array.dtype.kind == "V" and array.dtype.names is None:  # the small floats that JAX brings, bfloat16 and below
        try:
            array = array.astype("float32")
        except (TypeError, ValueError) as error:
            raise TypeError(f"{what} must have real numbers, not {array.dtype}") from error
    if array.dtype.itemsize > 8 and array.dtype.kind == "f":
        array = array.astype("float64")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{what} must have real numbers, not {array.dtype}; convert it with .astype(float)")
    return array


def length_of(value: Any) -> int | None:
    """The length of a one-dimensional sequence or array; None for anything else."""
    if is_array_like(value):
        shape = shape_of(value) if hasattr(value, "shape") else None
        return shape[0] if shape is not None and len(shape) == 1 else None
    if not is_sequence(value):
        return None
    nested = any(isinstance(element, Sequence) or (is_array(element) and shape_of(element)) for element in value)
    return None if nested else len(value)


def numbers_of(value: Any, what: str) -> list[float]:
    """The numbers of a one-dimensional sequence or array."""
    if is_array_like(value):
        array = real_array(value, what)
        if array.ndim != 1:
            raise ValueError(f"{what}: expected one dimension, not the shape {array.shape}")
        numbers: list[float] = array.astype("float64").tolist()
        return numbers
    if not is_sequence(value):
        raise TypeError(f"{what}: expected a sequence of numbers, not {given(value)}")
    element_of = f"an element of {what}"
    return [element if type(element) is float else real_number(element, element_of) for element in value]


def cells_of(value: Any, what: str, where: str) -> list[object]:
    """One column or row as a list."""
    if is_sequence(value):
        return list(value)
    if callable(getattr(value, "to_list", None)):  # a pandas or polars Series, which may have missing values
        return list(value.to_list())
    if is_array_like(value):
        array = numpy_array(value, what)
        if array.ndim == 1:
            return array_list(array)
    raise TypeError(f"{what}: {where} must be a sequence of cells, not {given(value)}")


def array_list(array: Any) -> list[Any]:
    """An array as nested lists; times keep their unit."""
    if array.dtype.kind in "mM":  # tolist() would give nanosecond times as bare integers
        return [array_list(row) for row in array] if array.ndim > 1 else list(array)
    cells: list[Any] = array.tolist()
    return cells
