"""Turns rich values (images, figures, tables, histograms, matrices, curves) into encoded bytes or plain lists.

Apart from `plain.py` because these values come from array, picture and data frame libraries. Each is recognised by its
protocol, and its library is used only when the value itself comes from it. It happens on the training thread, at the
call: afterwards the user may change the value, and a value that cannot be logged is refused where it was given.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import sys
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from datetime import time as time_of_day
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeGuard

import msgspec

from trackhub.plain import given, is_array, plain_value, real_number, shape_of, shown
from trackhub.records import PlainValue


@dataclass(frozen=True)
class EncodedFile:
    """A value as the content of a file.

    Args:
        data: The content.
        media_type: RFC 6838 media type.
        suffix: What the file's name should end with, with the dot.
    """

    data: bytes
    media_type: str
    suffix: str


@dataclass(frozen=True)
class EncodedImage(EncodedFile):
    """A picture as PNG or JPEG; width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class EncodedTable:
    """A table as the strict JSON object `{"columns": [...], "data": [[row], ...]}`."""

    data: bytes
    columns: list[str]
    row_count: int
    media_type: str = "application/json"
    suffix: str = ".json"


class Binned(NamedTuple):
    """A histogram: `counts[i]` samples lie in `edges[i] <= x < edges[i + 1]`, the last bin with its upper edge.

    Args:
        edges: One more than counts, increasing.
        counts: How many samples are in each bin.
        left_out: How many samples were NaN or infinite, and are in no bin.
    """

    edges: list[float]
    counts: list[float]
    left_out: int


# --- images


def encode_image(value: object, name: str) -> EncodedImage:
    """A picture as PNG, or as the JPEG it already is.

    Args:
        value: An array or tensor of shape (height, width), (height, width, channels) or (channels, height, width), with
            1, 3 or 4 channels: bool, integers in 0..255 or floats in 0..1. Or a Pillow image, a PNG or JPEG
            file's bytes or its path. Where both ends of a shape could be the channels, the last is taken.
        name: The image's name, for messages.

    Raises:
        TypeError: If it is none of these.
        ValueError: If its shape, range or content is not.
    """
    what = f"image {name!r}"
    if isinstance(value, bytes | bytearray | memoryview):
        return _image_file(bytes(value), what)
    if isinstance(value, str | PathLike):
        try:
            return _image_file(Path(value).read_bytes(), f"{what}, {value},")
        except OSError as error:
            raise ValueError(f"{what}: cannot read {shown(str(value))}: {error.strerror}") from error
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(value, pillow.Image):
        return _pillow_image(value, what)
    if not _is_array_like(value):
        raise TypeError(
            f"{what} must be an array or tensor, a Pillow image, PNG or JPEG bytes, or the path of such a file, "
            f"not {given(value)}"
        )
    pixels = _pixels(value, what)
    height, width = pixels.shape[:2]
    return EncodedImage(_png(pixels), "image/png", ".png", width, height)


def _pixels(value: Any, what: str) -> Any:
    """The array as uint8 of shape (height, width, channels)."""
    array = _real_array(value, what)
    shape = array.shape
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    elif array.ndim != 3 or shape[2] not in (1, 3, 4):
        batch = "; log the images of a batch one by one" if array.ndim == 4 else ""
        raise ValueError(f"{what} must have shape HxW, HxWxC or CxHxW with 1, 3 or 4 channels, not {shape}{batch}")
    if 0 in array.shape:
        raise ValueError(f"{what} has no pixels: its shape is {shape}")
    kind = array.dtype.kind
    if kind == "b":
        return array.astype("uint8") * 255
    if array.dtype == "uint8":
        return array
    low, high = float(array.min()), float(array.max())
    if math.isnan(low):
        raise ValueError(f"{what} has NaN pixels")
    limit = 1 if kind == "f" else 255
    if low < 0 or high > limit:
        fix = "floats must be in 0..1: divide by 255, or use .astype('uint8')" if kind == "f" else "scale it to 0..255"
        raise ValueError(f"{what} has {array.dtype} pixels from {low:g} to {high:g}; {fix}")
    return array.astype("uint8") if kind != "f" else (array.astype("float64") * 255).round().astype("uint8")


def _png(pixels: Any) -> bytes:
    """A PNG file (W3C PNG 3rd edition) of 8-bit gray, RGB or RGBA pixels of shape (height, width, channels)."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    # Filter 2 (each row minus the one above) and the fastest level: the best of both on photographs, and no slower.
    filtered = rows.copy()
    filtered[1:] -= rows[:-1]
    lines = b"".join(b"\x02" + row.tobytes() for row in filtered)
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _image_file(data: bytes, what: str) -> EncodedImage:
    if data.startswith(_PNG_SIGNATURE):
        size = struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" and len(data) >= 33 else None
        media_type, suffix = "image/png", ".png"
    elif data.startswith(b"\xff\xd8\xff"):
        size = _jpeg_size(data)
        media_type, suffix = "image/jpeg", ".jpg"
    else:
        raise ValueError(f"{what} is neither a PNG nor a JPEG file; it begins with {data[:8]!r}")
    if size is None or 0 in size:
        raise ValueError(f"{what} is a damaged {suffix[1:].upper()} file: it does not say its size")
    return EncodedImage(data, media_type, suffix, *size)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from a JPEG file's frame header (ITU-T T.81, annex B)."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a body
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _pillow_image(image: Any, what: str) -> EncodedImage:
    if 0 in image.size:
        raise ValueError(f"{what} has no pixels: its size is {image.size}")
    converted = {"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "PA": "RGBA"}
    buffer = io.BytesIO()
    try:
        if image.mode in converted:
            image = image.convert(converted[image.mode])
        elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            raise ValueError(f"PNG has no mode {image.mode!r}; use .convert('L'), .convert('I;16') or .convert('RGB')")
        image.save(buffer, format="PNG")
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError is Pillow's word for a broken file
        raise ValueError(f"{what} cannot be saved as PNG: {error}") from error
    return EncodedImage(buffer.getvalue(), "image/png", ".png", *image.size)


# --- figures


def encode_figure(value: object, name: str) -> EncodedFile:
    """A matplotlib figure as PNG, or a plotly figure as a complete HTML page that needs no network.

    The figure is neither changed nor closed, and no window opens.

    Args:
        value: A matplotlib Figure, Axes or the pyplot module (its current figure), or a plotly figure.
        name: The figure's name, for messages.

    Raises:
        TypeError: If it is none of these.
        ValueError: If pyplot has no figure, or the figure cannot be drawn.
    """
    what = f"figure {name!r}"
    if callable(getattr(value, "to_plotly_json", None)) and callable(getattr(value, "to_html", None)):
        page: str = value.to_html(include_plotlyjs=True, full_html=True)  # type: ignore[attr-defined]
        return EncodedFile(page.encode(), "text/html", ".html")
    figure = _matplotlib_figure(value, what)
    if figure is None:
        raise TypeError(
            f"{what} must be a matplotlib Figure or Axes, or a plotly figure, not {given(value)}; "
            "for pictures there is log_image, for other pages log_html"
        )
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format="png")
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{what} cannot be drawn: {error}") from error
    return EncodedFile(buffer.getvalue(), "image/png", ".png")


def _matplotlib_figure(value: Any, what: str) -> Any:
    """The Figure that a Figure, SubFigure, Axes or seaborn grid belongs to; None for anything else."""
    if isinstance(value, ModuleType):
        if value.__name__ != "matplotlib.pyplot":
            return None
        if not value.get_fignums():  # gcf() would make one
            raise ValueError(f"{what}: pyplot has no open figure")
        return value.gcf()
    for _ in range(8):  # an Axes may lie in a SubFigure of a SubFigure; a Figure is its own figure
        owner = getattr(value, "figure", value)
        if owner is value or owner is None:
            break
        value = owner
    return value if callable(getattr(value, "savefig", None)) and not isinstance(value, type) else None


# --- tables


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
        columns = _cells(columns, what, "columns")
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
        return _by_column({key: _cells(cells, what, f"column {key!r}") for key, cells in value.items()}, what, columns)
    if hasattr(type(value), "columns") and hasattr(type(value), "__getitem__"):
        return _by_column(_frame_columns(value, what), what, columns)
    if _is_array_like(value):
        array = _numpy(value, what)
        if array.dtype.names:
            return _by_column({key: _array_list(array[key]) for key in array.dtype.names}, what, columns)
        if array.ndim != 2:
            raise ValueError(f"{what} must be two-dimensional, not of shape {array.shape}")
        value = _array_list(array)
    if not _is_sequence(value):
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
        rows.append(_cells(row, what, f"row {number}"))
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


def _cells(value: Any, what: str, where: str) -> list[object]:
    """One column or row as a list."""
    if _is_sequence(value):
        return list(value)
    if callable(getattr(value, "to_list", None)):  # a pandas or polars Series, which may have missing values
        return list(value.to_list())
    if _is_array_like(value):
        array = _numpy(value, what)
        if array.ndim == 1:
            return _array_list(array)
    raise TypeError(f"{what}: {where} must be a sequence of cells, not {given(value)}")


def _array_list(array: Any) -> list[Any]:
    if array.dtype.kind in "mM":  # tolist() would give nanosecond times as bare integers
        return [_array_list(row) for row in array] if array.ndim > 1 else list(array)
    cells: list[Any] = array.tolist()
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


# --- numbers


def histogram_of(value: object, name: str, bins: int = 64) -> Binned:
    """The histogram of samples, or one that was counted already.

    Args:
        value: Samples: an array or tensor of any shape, or a sequence of numbers, nested or not. Or, as a tuple
            `(counts, edges)` of n and n + 1 numbers, what `numpy.histogram` returns.
        name: The histogram's name, for messages.
        bins: How many bins of equal width to count samples into.

    Returns:
        The histogram. If no sample is finite, all bins from 0 to 1 are empty and `left_out` counts the samples.

    Raises:
        TypeError: If it is neither.
        ValueError: If there are no samples, or counts or edges are not those of a histogram.

    >>> histogram_of([1, 2, 2, 5], "lengths", bins=2)
    Binned(edges=[1.0, 3.0, 5.0], counts=[3.0, 1.0], left_out=0)
    """
    what = f"histogram {name!r}"
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"{what}: bins must be a positive integer, not {bins!r}")
    counted = _counted(value, what)
    if counted is not None:
        return counted
    if _is_array_like(value):
        array = _real_array(value, what).reshape(-1)
        total = int(array.size)
        finite = array if array.dtype.kind != "f" else array[abs(array) < math.inf]
        extent = (float(finite.min()), float(finite.max())) if finite.size else None
    else:
        samples = _flat_samples(value, what, 0)
        total = len(samples)
        finite = [sample for sample in samples if math.isfinite(sample)]
        extent = (min(finite), max(finite)) if finite else None
    if not total:
        raise ValueError(f"{what} has no samples")
    if extent is None:
        return Binned([index / bins for index in range(bins + 1)], [0.0] * bins, total)
    edges = _edges(*extent, bins)
    if isinstance(finite, list):
        counts = [0.0] * bins
        for sample in finite:
            counts[min(bisect_right(edges, sample) - 1, bins - 1)] += 1
        return Binned(edges, counts, total - len(finite))
    import numpy as np

    places = np.minimum(np.searchsorted(edges, finite, side="right") - 1, bins - 1)
    return Binned(edges, np.bincount(places, minlength=bins).astype(float).tolist(), total - int(finite.size))


def _counted(value: Any, what: str) -> Binned | None:
    """The histogram that a tuple of counts and edges is; None for samples."""
    if not isinstance(value, tuple) or len(value) != 2:
        return None
    lengths = [_length(part) for part in value]
    if lengths[0] is None or lengths[1] is None or lengths[1] != lengths[0] + 1:
        return None
    counts, edges = (_numbers(part, what) for part in value)
    if not counts:
        raise ValueError(f"{what} has no bins")
    if not all(count >= 0 and math.isfinite(count) for count in counts):
        raise ValueError(f"{what}: counts must be finite and not negative")
    if not all(map(math.isfinite, edges)) or not all(low < high for low, high in itertools.pairwise(edges)):
        raise ValueError(f"{what}: edges must be finite and increasing")
    return Binned(edges, counts, 0)


def _edges(low: float, high: float, bins: int) -> list[float]:
    """The edges of bins of equal width, widened where floats lie too far apart to tell so many bins."""
    largest = sys.float_info.max
    narrowest = 4 * bins * math.ulp(max(abs(low), abs(high)))
    if low == high or high / 2 - low / 2 < narrowest:
        half = max(narrowest, 0.5 if low == high else 0.0)
        low, high = max(low - half, -largest), min(high + half, largest)
    # Weighted, because high - low may overflow.
    inner = [low * (1 - index / bins) + high * (index / bins) for index in range(1, bins)]
    return [low, *inner, high]


def confusion_matrix_of(labels: object, matrix: object, name: str) -> tuple[list[str], list[list[float]]]:
    """Labels and matrix of a confusion matrix as plain lists.

    Args:
        labels: The classes; each becomes its `str()`, and all must differ.
        matrix: `matrix[actual][predicted]`, square, in the order of `labels`: counts or shares.
        name: The matrix's name, for messages.

    Raises:
        TypeError: If labels or matrix are not sequences or arrays of their kind.
        ValueError: If there are no labels or two are the same, or the matrix is not square, finite or has negatives.
    """
    what = f"confusion matrix {name!r}"
    texts = [str(plain_value(label, f"{what}, a label")) for label in _cells(labels, what, "labels")]
    if not texts:
        raise ValueError(f"{what} has no labels")
    if len(set(texts)) < len(texts):
        double = next(text for text in texts if texts.count(text) > 1)
        raise ValueError(f"{what} has more than one label {shown(double)}")
    rows: Any = matrix
    if _is_array_like(matrix):
        rows = _real_array(matrix, what)
        if rows.ndim != 2:
            raise ValueError(f"{what} must have two dimensions, not the shape {rows.shape}")
        rows = rows.tolist()
    if not _is_sequence(rows):
        raise TypeError(f"{what} must be a square matrix, not {given(matrix)}")
    plain = [_numbers(row, what) for row in rows]
    if len(plain) != len(texts) or any(len(row) != len(texts) for row in plain):
        wrong = [len(row) for row in plain if len(row) != len(texts)]
        found = f"{len(plain)} rows" + (f", one of {wrong[0]} cells" if wrong else "")
        raise ValueError(f"{what} must be {len(texts)} x {len(texts)}, one row and column per label; it has {found}")
    if not all(cell >= 0 and math.isfinite(cell) for row in plain for cell in row):
        raise ValueError(f"{what} must have finite cells that are not negative")
    return texts, plain


def roc_curve_of(
    fpr: object, tpr: object, thresholds: object, name: str
) -> tuple[list[float], list[float], list[float]]:
    """False positive rates, true positive rates and thresholds of a ROC curve as plain lists.

    Args:
        fpr: Rates in 0..1; what rounding took at most 1e-6 beyond is brought back.
        tpr: As `fpr`, and as many.
        thresholds: As many; the first may be infinite.
        name: The curve's name, for messages.

    Raises:
        TypeError: If one is not a sequence or array of numbers.
        ValueError: If their lengths differ or are below 2, or a number is out of range.
    """
    what = f"ROC curve {name!r}"
    rates = [_numbers(values, f"{what}, {label}") for label, values in (("fpr", fpr), ("tpr", tpr))]
    plain_thresholds = _numbers(thresholds, f"{what}, thresholds")
    lengths = [len(rates[0]), len(rates[1]), len(plain_thresholds)]
    if len(set(lengths)) > 1 or lengths[0] < 2:
        raise ValueError(f"{what} needs fpr, tpr and thresholds of one length, at least 2; got {lengths}")
    for label, values in zip(("fpr", "tpr"), rates, strict=True):
        for place, rate in enumerate(values):
            if not -1e-6 <= rate <= 1 + 1e-6:
                hint = "; NaN means that the data had only one class" if math.isnan(rate) else ""
                raise ValueError(f"{what}: {label}[{place}] is {rate}, and must be in 0..1{hint}")
            values[place] = min(max(rate, 0.0), 1.0)
    if any(map(math.isnan, plain_thresholds)):
        raise ValueError(f"{what} has a threshold that is NaN")
    return rates[0], rates[1], plain_thresholds


def _is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _is_array_like(value: object) -> bool:
    return is_array(value) or (hasattr(value, "__array__") and not isinstance(value, type))


def _numpy(value: Any, what: str) -> Any:
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


def _real_array(value: Any, what: str) -> Any:
    """As `_numpy`, of bools, integers or floats."""
    array = _numpy(value, what)
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


def _length(value: Any) -> int | None:
    """The length of a one-dimensional sequence or array; None for anything else."""
    if _is_array_like(value):
        shape = shape_of(value) if hasattr(value, "shape") else None
        return shape[0] if shape is not None and len(shape) == 1 else None
    if not _is_sequence(value):
        return None
    nested = any(isinstance(element, Sequence) or (is_array(element) and shape_of(element)) for element in value)
    return None if nested else len(value)


def _numbers(value: Any, what: str) -> list[float]:
    """The numbers of a one-dimensional sequence or array."""
    if _is_array_like(value):
        array = _real_array(value, what)
        if array.ndim != 1:
            raise ValueError(f"{what}: expected one dimension, not the shape {array.shape}")
        numbers: list[float] = array.astype("float64").tolist()
        return numbers
    if not _is_sequence(value):
        raise TypeError(f"{what}: expected a sequence of numbers, not {given(value)}")
    element_of = f"an element of {what}"
    return [element if type(element) is float else real_number(element, element_of) for element in value]


def _flat_samples(value: Any, what: str, depth: int) -> list[float]:
    if depth > 100:
        raise ValueError(f"{what} has samples that are nested too deep, or a list that contains itself")
    if _is_array_like(value) and shape_of(value) != ():
        flat: list[float] = _real_array(value, what).reshape(-1).astype("float64").tolist()
        return flat
    if _is_sequence(value):
        return [sample for element in value for sample in _flat_samples(element, what, depth + 1)]
    if depth:
        return [real_number(value, f"a sample of {what}")]
    raise TypeError(f"{what} must be an array or sequence of samples, or a tuple (counts, edges); not {given(value)}")
