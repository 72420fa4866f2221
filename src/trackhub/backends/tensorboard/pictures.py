"""Draws with Pillow what TensorBoard has no plugin for: confusion matrices and ROC curves.

Apart from the backend because it is all pixels, and so that Pillow is imported only when a picture is drawn.
"""

from __future__ import annotations

import io
import itertools
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

_INK = (38, 38, 38)
_PALE = (150, 150, 150)
_GRID = (225, 225, 225)
_PAPER = (255, 255, 255)
_FULL = (8, 64, 129)  # the colour of the largest cell; an empty one is paper
_MARGIN = 16
_LABEL_LENGTH = 24
_MATRIX_SIDE = 1200
_NUMBERED_CLASSES = 60
_ZEROS_SHOWN_CLASSES = 20
_SMALLEST_NAMED_CELL = 10  # pixels; below that there is no room for names and numbers


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _width(font: Any, text: str) -> int:
    length: float = font.getlength(text)
    return math.ceil(length)


def drawn_label(label: str, number: int) -> str:
    """A label as it is drawn. Pillow brings only a font of ASCII, so accents are left out and other scripts numbered.

    >>> drawn_label("café", 1), drawn_label("猫", 2)
    ('cafe', 'class 2')
    """
    text = "".join(letter for letter in unicodedata.normalize("NFKD", label) if not unicodedata.combining(letter))
    text = " ".join(text.split()) if text.isascii() else f"class {number}"
    return text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 3] + "..."


def _count(value: float) -> str:
    """A cell's number, short; the exact ones are in the table."""
    whole = value == round(value) or abs(value) >= 1000
    return f"{value:.0f}" if whole and abs(value) < 1e6 else f"{value:.3g}"


def _png(image: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=False, compress_level=6)
    return target.getvalue()


def _draw_sideways(image: Any, text: str, font: Any, centre_x: float, bottom: float) -> None:
    """Draw a text that reads upwards and ends at `bottom`."""
    from PIL import Image, ImageDraw

    width, height = _width(font, text) + 2, int(font.size * 1.4)
    strip = Image.new("RGB", (max(1, width), height), _PAPER)
    ImageDraw.Draw(strip).text((0, height / 2), text, fill=_INK, font=font, anchor="lm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (round(centre_x - turned.width / 2), round(bottom - turned.height)))


def confusion_matrix_png(
    title: str, labels: Sequence[str], matrix: Sequence[Sequence[float]]
) -> tuple[bytes, int, int]:
    """Draw a confusion matrix: actual classes down, predicted ones across, each row shaded by its share.

    Args:
        title: Drawn on top.
        labels: One for each class.
        matrix: `matrix[actual][predicted]`, finite.

    Returns:
        The PNG, its width and its height in pixels.
    """
    from PIL import Image, ImageDraw

    count = len(labels)
    cell = max(1, min(64, _MATRIX_SIDE // count))
    named = cell >= _SMALLEST_NAMED_CELL
    font, heading = _font(max(9, min(15, cell // 2))), _font(15)
    names = [drawn_label(label, number) if named else "" for number, label in enumerate(labels)]
    numbers = [[_count(value) for value in row] for row in matrix] if named and count <= _NUMBERED_CLASSES else []
    cell = max([cell, *(_width(font, number) + 6 for row in numbers for number in row)])
    gutter = max(_width(font, name) for name in names) + 8
    left, top, side = _MARGIN + 24 + gutter, _MARGIN + 30, cell * count
    title = drawn_label(title, 0) if title.isascii() else ""
    width = max(left + side, _MARGIN + _width(heading, title), left + _width(heading, "predicted")) + _MARGIN
    height = max(top + side + gutter, top + _width(heading, "actual")) + 24 + _MARGIN

    image = Image.new("RGB", (width, height), _PAPER)
    shades = Image.frombytes("RGB", (count, count), b"".join(_shades(row) for row in matrix))
    image.paste(shades.resize((side, side), Image.Resampling.NEAREST), (left, top))
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=heading, anchor="lt")
    for index, name in enumerate(names):
        middle = (index + 0.5) * cell
        draw.text((left - 6, top + middle), name, fill=_INK, font=font, anchor="rm")
        _draw_sideways(image, name, font, left + middle, top + side + 8 + _width(font, name))
    for line in range(count + 1) if named else (0, count):
        draw.line((left, top + line * cell, left + side, top + line * cell), fill=_GRID)
        draw.line((left + line * cell, top, left + line * cell, top + side), fill=_GRID)
    for y, row in enumerate(numbers):
        for x, number in enumerate(row):
            if number != "0" or count <= _ZEROS_SHOWN_CLASSES:
                dark = shades.getpixel((x, y))[0] < 128
                place = (left + (x + 0.5) * cell, top + (y + 0.5) * cell)
                draw.text(place, number, fill=_PAPER if dark else _INK, font=font, anchor="mm")
    _draw_sideways(image, "actual", heading, _MARGIN + 6, top + (side + _width(heading, "actual")) / 2)
    draw.text((left + side / 2, height - _MARGIN), "predicted", fill=_INK, font=heading, anchor="mb")
    return _png(image), width, height


def _shades(row: Sequence[float]) -> bytes:
    """A matrix row's pixels, each as dark as its share of the row."""
    total = sum(abs(value) for value in row) or 1.0
    shares = (min(1.0, abs(value) / total) for value in row)
    return bytes(round(p + (f - p) * share) for share in shares for p, f in zip(_PAPER, _FULL, strict=True))


def roc_curve_png(title: str, fpr: Sequence[float], tpr: Sequence[float]) -> tuple[bytes, int, int]:
    """Draw a ROC curve with the diagonal of a guess and the area under the curve.

    Args:
        title: Drawn on top.
        fpr: False positive rates, finite, 0 to 1.
        tpr: True positive rates, finite, 0 to 1; as many.

    Returns:
        The PNG, its width and its height in pixels.
    """
    from PIL import Image, ImageDraw

    side, left, top = 420, 72, 52
    width, height = left + side + 24, top + side + 64
    small, normal = _font(12), _font(15)
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + min(1.0, max(0.0, x)) * side, top + (1 - min(1.0, max(0.0, y))) * side

    draw.text((_MARGIN, _MARGIN), title if title.isascii() else "", fill=_INK, font=normal, anchor="lt")
    for tick in range(6):
        place = tick / 5
        draw.line((at(place, 0), at(place, 1)), fill=_GRID)
        draw.line((at(0, place), at(1, place)), fill=_GRID)
        x, _ = at(place, 0)
        _, y = at(0, place)
        draw.text((x, top + side + 6), f"{place:.1f}", fill=_INK, font=small, anchor="mt")
        draw.text((left - 8, y), f"{place:.1f}", fill=_INK, font=small, anchor="rm")
    draw.line((at(0, 0), at(1, 1)), fill=_PALE)
    points = sorted(zip(fpr, tpr, strict=True))
    if len(points) > 1:
        draw.line([at(x, y) for x, y in points], fill=_FULL, width=3)
    area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in itertools.pairwise(points))
    draw.rectangle((left, top, left + side, top + side), outline=_INK)
    draw.text(at(0.97, 0.04), f"area under the curve {area:.4f}", fill=_INK, font=normal, anchor="rb")
    draw.text((left + side / 2, height - 14), "false positive rate", fill=_INK, font=normal, anchor="mb")
    text = "true positive rate"
    _draw_sideways(image, text, normal, _MARGIN + 6, top + side / 2 + _width(normal, text) / 2)
    return _png(image), width, height
