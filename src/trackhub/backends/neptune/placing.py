"""Which rich values are points of a series in Neptune, and which are files, and what those are called.

Apart from the backend because writing and reading back go by the same rules.
"""

from __future__ import annotations

from trackhub.records import FigureLogged, ImageLogged, StepValueLogged

_MAX_IMAGE_BYTES = 32 << 20
"""The client leaves larger ones empty."""
_EXTENSIONS = {"image/png": "png", "text/html": "html", "image/svg+xml": "svg", "image/jpeg": "jpg"}


def stepped(record: StepValueLogged) -> str:
    """What a file is called that is not in a series."""
    return record.name if record.step is None else f"{record.name}/step-{record.step:08d}"


def is_large(record: ImageLogged | FigureLogged) -> bool:
    """Whether Neptune's image series do not take it."""
    return record.file.size_bytes > _MAX_IMAGE_BYTES


def is_in_series(record: ImageLogged | FigureLogged) -> bool:
    """Whether it is a point of an image series, and not a file."""
    drawn = record.file.media_type in ("image/png", "image/jpeg")
    return record.step is not None and drawn and not is_large(record)


def extension_of(record: ImageLogged | FigureLogged) -> str:
    """Its extension as a file."""
    return _EXTENSIONS.get(record.file.media_type, "bin")
