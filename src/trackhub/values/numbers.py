"""Histograms, confusion matrices and ROC curves as plain lists of floats.

Apart because these become no files: their numbers go into the journal, and each backend draws them its own way.
"""

from __future__ import annotations

import itertools
import math
import sys
from bisect import bisect_right
from typing import Any, NamedTuple

from trackhub.plain import given, plain_value, real_number, shape_of, shown
from trackhub.values.arrays import cells_of, is_array_like, is_sequence, length_of, numbers_of, real_array


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
    if is_array_like(value):
        array = real_array(value, what).reshape(-1)
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
    lengths = [length_of(part) for part in value]
    if lengths[0] is None or lengths[1] is None or lengths[1] != lengths[0] + 1:
        return None
    counts, edges = (numbers_of(part, what) for part in value)
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
    texts = [str(plain_value(label, f"{what}, a label")) for label in cells_of(labels, what, "labels")]
    if not texts:
        raise ValueError(f"{what} has no labels")
    if len(set(texts)) < len(texts):
        double = next(text for text in texts if texts.count(text) > 1)
        raise ValueError(f"{what} has more than one label {shown(double)}")
    rows: Any = matrix
    if is_array_like(matrix):
        rows = real_array(matrix, what)
        if rows.ndim != 2:
            raise ValueError(f"{what} must have two dimensions, not the shape {rows.shape}")
        rows = rows.tolist()
    if not is_sequence(rows):
        raise TypeError(f"{what} must be a square matrix, not {given(matrix)}")
    plain = [numbers_of(row, what) for row in rows]
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
    rates = [numbers_of(values, f"{what}, {label}") for label, values in (("fpr", fpr), ("tpr", tpr))]
    plain_thresholds = numbers_of(thresholds, f"{what}, thresholds")
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


def _flat_samples(value: Any, what: str, depth: int) -> list[float]:
    if depth > 100:
        raise ValueError(f"{what} has samples that are nested too deep, or a list that contains itself")
    if is_array_like(value) and shape_of(value) != ():
        flat: list[float] = real_array(value, what).reshape(-1).astype("float64").tolist()
        return flat
    if is_sequence(value):
        return [sample for element in value for sample in _flat_samples(element, what, depth + 1)]
    if depth:
        return [real_number(value, f"a sample of {what}")]
    raise TypeError(f"{what} must be an array or sequence of samples, or a tuple (counts, edges); not {given(value)}")
