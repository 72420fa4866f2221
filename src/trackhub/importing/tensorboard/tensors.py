"""Numbers and texts out of TensorBoard's tensors, and histograms out of its two forms.

Apart because none of it trusts a shape: the package's own decoder fills as much memory as a shape asks for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

MAX_NUMBERS = 3_000_000
"""In one tensor."""

DT_STRING = 7
_BFLOAT16, _HALF = 14, 19
# dtype -> how it is packed in tensor_content, and the field that has it otherwise.
_TYPES = {
    1: ("f", "float_val"),
    2: ("d", "double_val"),
    3: ("i", "int_val"),
    4: ("B", "int_val"),
    5: ("h", "int_val"),
    6: ("b", "int_val"),
    9: ("q", "int64_val"),
    10: ("?", "bool_val"),
    _BFLOAT16: ("H", "half_val"),
    17: ("H", "int_val"),
    _HALF: ("e", "half_val"),
    22: ("I", "uint32_val"),
    23: ("Q", "uint64_val"),
}


def shape_of(tensor: Any) -> list[int]:
    """The sizes of a tensor's dimensions."""
    return [int(dimension.size) for dimension in tensor.tensor_shape.dim]


def numbers_of(tensor: Any) -> list[float]:
    """The numbers of a tensor.

    Raises:
        ValueError: It has none, or its shape, content and type do not go together.
    """
    shape = shape_of(tensor)
    if tensor.dtype not in _TYPES or any(size < 0 for size in shape) or math.prod(shape) > MAX_NUMBERS:
        raise ValueError("no tensor of numbers")
    count = math.prod(shape)
    code, field = _TYPES[tensor.dtype]
    packed = tensor.tensor_content
    values: Iterable[float]
    if packed:
        if len(packed) != count * struct.calcsize(f"<{code}"):
            raise ValueError("content and shape do not go together")
        values = struct.unpack(f"<{count}{code}", packed)
        if tensor.dtype == _BFLOAT16:
            values = map(_bfloat16, values)
    else:
        values = list(getattr(tensor, field))
        if tensor.dtype in (_BFLOAT16, _HALF):
            values = [_from_bits(tensor.dtype, bits) for bits in values]
        if len(values) > count or (count and not values):
            raise ValueError("content and shape do not go together")
        # What repeats at the end is written once.
        values += values[-1:] * (count - len(values))
    return [float(value) for value in values]


def number_of(tensor: Any) -> float:
    """The number of a tensor that has one.

    Raises:
        ValueError: It has none, or several.
    """
    numbers = numbers_of(tensor)
    if len(numbers) != 1:
        raise ValueError("not one number")
    return numbers[0]


def texts_of(tensor: Any) -> str:
    """The texts of a tensor as one: rows on lines of their own, as a Markdown table where there are columns."""
    parts = [bytes(part).decode("utf-8", "replace") for part in tensor.string_val]
    shape = shape_of(tensor)
    columns = shape[1] if len(shape) == 2 else 0
    if columns < 1 or len(parts) != shape[0] * columns:
        return "\n\n".join(parts)
    rows = ["| " + " | ".join(parts[at : at + columns]) + " |" for at in range(0, len(parts), columns)]
    return "\n".join([rows[0], "|" + "---|" * columns, *rows[1:]])


Bins = tuple[list[float], list[float]]


def bins_of_tensor(tensor: Any) -> Bins | None:
    """Edges and counts of a histogram in the newer form: rows of left edge, right edge, count. None for an empty one.

    Raises:
        ValueError: It is none.
    """
    shape = shape_of(tensor)
    if len(shape) != 2 or shape[1] != 3:
        raise ValueError("no histogram")
    numbers = numbers_of(tensor)
    return _joined([(numbers[at], numbers[at + 1], numbers[at + 2]) for at in range(0, len(numbers), 3)])


def bins_of_proto(histogram: Any) -> Bins | None:
    """The same in the older form: right edges and counts. The outermost edges are what the values really reached.

    Raises:
        ValueError: It is none.
    """
    counts, limits = list(histogram.bucket), list(histogram.bucket_limit)
    if len(counts) != len(limits):
        raise ValueError("no histogram")
    filled = [at for at, count in enumerate(counts) if count > 0]
    if not filled:
        return None
    first, last = filled[0], filled[-1]
    inner = limits[first:last]
    lefts, rights = [histogram.min, *inner], [*inner, histogram.max]
    return _joined(list(zip(lefts, rights, counts[first : last + 1], strict=True)))


def _joined(rows: list[tuple[float, float, float]]) -> Bins | None:
    """Rows as edges and counts; where two rows do not touch there is an empty bin between them."""
    if not rows:
        return None
    edges, counts = [rows[0][0]], []
    for left, right, count in rows:
        if not (math.isfinite(left) and math.isfinite(right) and math.isfinite(count)) or count < 0:
            raise ValueError("numbers that are not finite")
        if left > edges[-1]:
            edges.append(left)
            counts.append(0.0)
        if right < edges[-1]:
            raise ValueError("edges that do not rise")
        edges.append(right)
        counts.append(count)
    return edges, counts


def _bfloat16(bits: float) -> float:
    return float(struct.unpack("<f", struct.pack("<I", int(bits) << 16))[0])


def _from_bits(dtype: int, bits: float) -> float:
    if not 0 <= bits < 1 << 16:
        raise ValueError("no 16 bits")
    return _bfloat16(bits) if dtype == _BFLOAT16 else float(struct.unpack("<e", struct.pack("<H", int(bits)))[0])
