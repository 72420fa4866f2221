"""Draws confusion matrices and ROC curves as SVG, and writes them, histograms and tables as plain tables and markdown.

Apart from `values.py` because it runs in the delivery process, where a backend cannot show such a record itself, and
because it needs no package: a pod that only delivers has no matplotlib.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

MOST_BLOCKS = 100
"""A matrix of more classes is drawn with neighbouring classes summed into at most so many blocks."""

_FONT = "font-family='Helvetica, Arial, sans-serif'"
_CHARACTER_WIDTH = 0.6  # of the font size: Helvetica's digits and lower case, on the generous side
_LONGEST_LABEL = 18
_LIGHT, _DARK = (239, 243, 255), (8, 69, 148)
_INK, _FAINT = "#222222", "#666666"


def confusion_matrix_svg(labels: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    """A confusion matrix as an SVG document: a row per actual class, shaded by its share of the row.

    Args:
        labels: The n classes; long ones are shortened, with the full text as a tooltip.
        matrix: `matrix[actual][predicted]`, n x n, finite and not negative.

    Returns:
        The document. Numbers are written into the cells where they are legible, and are tooltips in any case.
    """
    total = math.fsum(map(math.fsum, matrix))
    right = math.fsum(matrix[index][index] for index in range(len(labels)))
    title = "Confusion matrix" + (f", accuracy {right / total:.3f}" if total > 0 else "")
    note = "shade: share of the actual class"
    per_block = math.ceil(len(labels) / MOST_BLOCKS)
    if per_block > 1:
        note += f"; each cell sums {per_block} x {per_block} of {len(labels)} classes"
        labels, matrix = _blocks(labels, matrix, per_block)
    count = len(labels)
    cell = min(64.0, 880 / count)
    font = 12.0
    short = [_shortened(label, _LONGEST_LABEL) for label in labels]
    label_width = max(map(_columns, short)) * font * _CHARACTER_WIDTH
    every = math.ceil((font + 1) / cell)
    tilted = label_width > cell * every - 4
    left, top = 40 + label_width, 62.0
    side = cell * count
    below = (label_width * 0.71 + 16 if tilted else font + 10) + 22
    width = max(left + side, left + len(title) * 11, left + len(note) * 6) + 20
    height = top + side + below
    # One size for all numbers, or none of them: gaps would look like zeros.
    longest = max(len(_short_number(value)) for cells in matrix for value in cells)
    size = min(13.0, (cell - 4) / (max(longest, 2) * _CHARACTER_WIDTH))
    parts = [
        _open(width, height, title),
        _write(left, 24, title, 16, weight="bold"),
        _write(left, 44, note, 11, fill=_FAINT),
        f"<rect x='{left:g}' y='{top:g}' width='{side:g}' height='{side:g}' fill='{_colour(0)}' stroke='#bbbbbb'/>",
    ]
    for row, cells in enumerate(matrix):
        row_total = math.fsum(cells)
        for column, value in enumerate(cells):
            if value:
                x, y = left + column * cell, top + row * cell
                tip = f"actual {labels[row]}, predicted {labels[column]}: {_short_number(value)}"
                parts.append(_cell(x, y, cell, value, value / row_total, size, tip))
    for index, label in enumerate(labels):
        if index % every == 0:
            middle = (index + 0.5) * cell
            parts.append(_write(left - 6, top + middle + font * 0.35, short[index], font, "end", tip=label))
            x, y = left + middle, top + side + (12 if tilted else font + 4)
            turn = f" transform='rotate(-45 {x + 4:g} {y:g})'" if tilted else ""
            parts.append(
                _write(x + 4 if tilted else x, y, short[index], font, "end" if tilted else "middle", turn, tip=label)
            )
    parts.append(_write(left + side / 2, height - 10, "predicted", 13, "middle", fill=_FAINT))
    x, y = 18, top + side / 2
    parts.append(_write(x, y, "actual", 13, "middle", f" transform='rotate(-90 {x:g} {y:g})'", fill=_FAINT))
    return "\n".join([*parts, "</svg>\n"])


def roc_curve_svg(fpr: Sequence[float], tpr: Sequence[float]) -> str:
    """A ROC curve as an SVG document, with the area under it (by trapezoids) in the title.

    Args:
        fpr: False positive rates in 0..1, in the order of the curve.
        tpr: True positive rates in 0..1, as many.
    """
    side, left, top = 420.0, 64.0, 48.0
    title = f"ROC curve, AUC {_area(fpr, tpr):.4f}"
    parts = [_open(left + side + 24, top + side + 56, title), _write(left, 28, title, 16, weight="bold")]
    for tick in range(6):
        share = tick / 5
        x, y = left + share * side, top + (1 - share) * side
        parts.append(f"<path d='M{x:g} {top:g}V{top + side:g}M{left:g} {y:g}H{left + side:g}' stroke='#e2e2e2'/>")
        parts.append(_write(x, top + side + 18, f"{share:.1f}", 12, "middle"))
        parts.append(_write(left - 8, y + 4, f"{share:.1f}", 12, "end"))
    parts.append(
        f"<path d='M{left:g} {top + side:g}L{left + side:g} {top:g}' stroke='#999999' stroke-dasharray='5 4'/>"
    )
    points = _thinned([(left + x * side, top + (1 - y) * side) for x, y in zip(fpr, tpr, strict=True)])
    line = "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    parts.append(f"<path d='M{line}' fill='none' stroke='{_colour(0.8)}' stroke-width='2.5' stroke-linejoin='round'/>")
    parts.append(f"<rect x='{left:g}' y='{top:g}' width='{side:g}' height='{side:g}' fill='none' stroke='#888888'/>")
    parts.append(_write(left + side / 2, top + side + 42, "false positive rate", 13, "middle", fill=_FAINT))
    x, y = 20, top + side / 2
    turn = f" transform='rotate(-90 {x:g} {y:g})'"
    parts.append(_write(x, y, "true positive rate", 13, "middle", turn, fill=_FAINT))
    return "\n".join([*parts, "</svg>\n"])


def confusion_matrix_table(
    labels: Sequence[str], matrix: Sequence[Sequence[float]]
) -> tuple[list[str], list[list[str | float]]]:
    """A confusion matrix as a table of one row per cell, whose columns do not depend on the labels.

    >>> confusion_matrix_table(["cat", "dog"], [[3, 1], [0, 4]])[1][1]
    ['cat', 'dog', 1]
    """
    rows: list[list[str | float]] = [
        [actual, predicted, value]
        for actual, cells in zip(labels, matrix, strict=True)
        for predicted, value in zip(labels, cells, strict=True)
    ]
    return ["actual", "predicted", "count"], rows


def roc_curve_table(
    fpr: Sequence[float], tpr: Sequence[float], thresholds: Sequence[float]
) -> tuple[list[str], list[list[str | float]]]:
    """A ROC curve as a table of one row per threshold; the first threshold may be infinite."""
    return ["threshold", "fpr", "tpr"], [list(row) for row in zip(thresholds, fpr, tpr, strict=True)]


def histogram_table(edges: Sequence[float], counts: Sequence[float]) -> tuple[list[str], list[list[str | float]]]:
    """A histogram as a table of one row per bin.

    >>> histogram_table([0.0, 1.0, 2.0], [5.0, 3.0])
    (['from', 'to', 'count'], [[0.0, 1.0, 5.0], [1.0, 2.0, 3.0]])
    """
    rows: list[list[str | float]] = [
        [low, high, count] for (low, high), count in zip(pairwise(edges), counts, strict=True)
    ]
    return ["from", "to", "count"], rows


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]], limit: int = 100) -> str:
    """A table as GitHub-flavoured markdown, in which every cell shows exactly its text.

    Args:
        columns: The header.
        rows: As many cells each; None is left empty.
        limit: How many rows to write; a last line says how many more there are.

    >>> print(markdown_table(["name", "a|b"], [["x", None]]), end="")
    | name | a&#124;b |
    | --- | --- |
    | x |  |
    """
    lines = [[_markdown(column) for column in columns], ["---"] * len(columns)]
    lines += [["" if cell is None else _markdown(str(cell)) for cell in row] for row in rows[:limit]]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    more = len(rows) - limit
    return text + (f"\n{more} more of {len(rows)} rows are not shown.\n" if more > 0 else "")


def _markdown(text: str) -> str:
    # Entities rather than backslashes: all dialects agree on them, also inside a table and after a backslash.
    escaped = "".join(f"&#{ord(character)};" if character in _MARKUP else character for character in text)
    return "<br>".join(_legal(line) for line in escaped.splitlines())


_MARKUP = frozenset("&<>|\\`*_~[]{}$!\"'")


def _legal(text: str) -> str:
    """The text with what XML 1.0 forbids even as an entity replaced by U+FFFD."""
    if text.isprintable():
        return text
    return "".join(
        "\ufffd" if unicodedata.category(character) in ("Cc", "Cs") or character in "\ufffe\uffff" else character
        for character in text
    )


def _escaped(text: str) -> str:
    return html.escape(_legal(text))


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes, which is a fair guess at its width in print."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _shortened(text: str, longest: int) -> str:
    """The text in at most `longest` columns; the middle goes, because labels often differ at either end."""
    text = " ".join(_legal(text).split())
    if _columns(text) <= longest:
        return text
    head, tail = text, text
    while _columns(head) > longest * 2 // 3:
        head = head[:-1]
    while _columns(tail) > longest - 1 - longest * 2 // 3:
        tail = tail[1:]
    return f"{head}\u2026{tail}"


def _short_number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def _colour(share: float) -> str:
    channels = (round(light + (dark - light) * share) for light, dark in zip(_LIGHT, _DARK, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _open(width: float, height: float, title: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' "
        f"viewBox='0 0 {width:.0f} {height:.0f}' {_FONT}>\n<title>{_escaped(title)}</title>\n"
        "<rect width='100%' height='100%' fill='#ffffff'/>"
    )


def _write(
    x: float,
    y: float,
    text: str,
    size: float,
    anchor: str = "start",
    turn: str = "",
    *,
    fill: str = _INK,
    weight: str = "normal",
    tip: str | None = None,
) -> str:
    tooltip = f"<title>{_escaped(tip)}</title>" if tip is not None and tip != text else ""
    look = f"font-size='{size:g}' font-weight='{weight}' text-anchor='{anchor}' fill='{fill}'"
    return f"<text x='{x:g}' y='{y:g}' {look}{turn}>{tooltip}{_escaped(text)}</text>"


def _cell(x: float, y: float, side: float, value: float, share: float, size: float, tip: str) -> str:
    square = (
        f"<rect x='{x:g}' y='{y:g}' width='{side:g}' height='{side:g}' fill='{_colour(share)}'>"
        f"<title>{_escaped(tip)}</title></rect>"
    )
    if size < 7.5:
        return square
    ink = "#ffffff" if share > 0.5 else _INK
    return square + _write(x + side / 2, y + side / 2 + size * 0.35, _short_number(value), size, "middle", fill=ink)


def _blocks(
    labels: Sequence[str], matrix: Sequence[Sequence[float]], per_block: int
) -> tuple[list[str], list[list[float]]]:
    starts = range(0, len(labels), per_block)
    ends = [min(start + per_block, len(labels)) for start in starts]
    spans = list(zip(starts, ends, strict=True))
    names = [f"{labels[start]} \u2013 {labels[end - 1]}" if end - start > 1 else labels[start] for start, end in spans]
    sums = [
        [math.fsum(math.fsum(row[left:right]) for row in matrix[start:end]) for left, right in spans]
        for start, end in spans
    ]
    return names, sums


def _area(fpr: Sequence[float], tpr: Sequence[float]) -> float:
    steps = zip(pairwise(fpr), pairwise(tpr), strict=True)
    # A curve may be given from either end.
    return abs(math.fsum((right - left) * (low + high) / 2 for (left, right), (low, high) in steps))


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points without those that lie within a fifth of a pixel of the last one kept; the last point stays."""
    kept = points[:1]
    for x, y in points[1:]:
        if math.hypot(x - kept[-1][0], y - kept[-1][1]) >= 0.2:
            kept.append((x, y))
    return [*kept, points[-1]]
