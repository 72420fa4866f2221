"""Confusion matrices and ROC curves as KFP's classification metrics hold them.

Apart from the backend because these are plain rules about numbers: thresholds must be finite, for KFP's servers read
strict JSON, and a curve of many thousand points would make the task's output too large to be sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MOST_CURVE_POINTS = 2000


def confusion_matrix(labels: Sequence[str], matrix: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A confusion matrix, `matrix[actual][predicted]`, as KFP holds it; whole numbers as such.

    >>> confusion_matrix(["no"], [[3.0]])
    {'annotationSpecs': [{'displayName': 'no'}], 'rows': [{'row': [3]}]}
    """
    return {
        "annotationSpecs": [{"displayName": label} for label in labels],
        "rows": [{"row": [int(value) if value == int(value) else value for value in row]} for row in matrix],
    }


def roc_curve(fpr: Sequence[float], tpr: Sequence[float], thresholds: Sequence[float]) -> list[dict[str, float]]:
    """A ROC curve as KFP holds it, in the order of the curve, with finite thresholds.

    >>> roc_curve([0.0, 1.0], [0.0, 1.0], [math.inf, 0.5])[0]
    {'confidenceThreshold': 1.5, 'recall': 0.0, 'falsePositiveRate': 0.0}
    """
    points = _fewer(list(zip(fpr, tpr, finite_thresholds(thresholds), strict=True)))
    return [
        {"confidenceThreshold": threshold, "recall": recall, "falsePositiveRate": false_positive_rate}
        for false_positive_rate, recall, threshold in points
    ]


def finite_thresholds(thresholds: Sequence[float]) -> list[float]:
    """Thresholds with those that are infinite a little beyond all others, where they mean the same.

    scikit-learn begins a curve with an infinite threshold, at which nothing is predicted to be positive; up to its
    version 1.2 that was the greatest score plus one.

    >>> finite_thresholds([math.inf, 0.75, 0.25, -math.inf])
    [1.75, 0.75, 0.25, -0.75]
    """
    finite = [threshold for threshold in thresholds if math.isfinite(threshold)] or [0.0]
    above, below = _beyond(max(finite), 1.0), _beyond(min(finite), -1.0)
    return [
        float(threshold) if math.isfinite(threshold) else below if threshold == -math.inf else above
        for threshold in thresholds
    ]


def repair(points: object) -> int:
    """Make the thresholds of a curve finite that somebody logged to an artifact directly.

    Args:
        points: What is at `confidenceMetrics`; changed in place.

    Returns:
        How many were not finite.
    """
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        return 0
    thresholds = [_number(point.get("confidenceThreshold")) for point in points]
    infinite = sum(not math.isfinite(threshold) for threshold in thresholds)
    if infinite:
        for point, threshold in zip(points, finite_thresholds(thresholds), strict=True):
            point["confidenceThreshold"] = threshold
    return infinite


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _beyond(extreme: float, by: float) -> float:
    """A finite number beyond another one, if there is any; adding one to a large number may not change it."""
    beyond = extreme + by
    if beyond == extreme:
        beyond = math.nextafter(extreme, math.copysign(math.inf, by))
    return beyond if math.isfinite(beyond) else extreme


def _fewer(points: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """The points without those that lie so close together that the curve looks the same without them."""
    distance = 1e-4
    while len(points) > MOST_CURVE_POINTS:
        kept = points[:1]
        for point in points[1:-1]:
            if math.hypot(point[0] - kept[-1][0], point[1] - kept[-1][1]) >= distance:
                kept.append(point)
        points = [*kept, points[-1]]
        distance *= 2
    return points
