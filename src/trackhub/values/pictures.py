"""Images and figures as PNG, JPEG and HTML files.

Apart because this is where pixels are: the encoder is our own, some twenty lines on zlib, so that a pod needs no
imaging library to log an array.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

from trackhub.plain import given, shown
from trackhub.values.arrays import is_array_like, real_array


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
    if not is_array_like(value):
        raise TypeError(
            f"{what} must be an array or tensor, a Pillow image, PNG or JPEG bytes, or the path of such a file, "
            f"not {given(value)}"
        )
    pixels = _pixels(value, what)
    height, width = pixels.shape[:2]
    return EncodedImage(_png(pixels), "image/png", ".png", width, height)


def _pixels(value: Any, what: str) -> Any:
    """The array as uint8 of shape (height, width, channels)."""
    array = real_array(value, what)
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
