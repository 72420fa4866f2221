"""The operations of Neptune's 1.x clients, as their JSON has them: names and fields are Neptune's.

Apart from the reading because it is the vocabulary alone; whatever is not in it cannot come through.
"""

from __future__ import annotations

from typing import get_args

import msgspec


class _Operation(msgspec.Struct, tag_field="type"):
    path: list[str]


class AssignFloat(_Operation, tag=True):
    """A field of a number."""

    value: float


class AssignInt(_Operation, tag=True):
    """A field of a whole number."""

    value: int


class AssignBool(_Operation, tag=True):
    """A field of yes or no."""

    value: bool


class AssignString(_Operation, tag=True):
    """A field of text."""

    value: str


class AssignDatetime(_Operation, tag=True):
    """A field of a time: `value` is in milliseconds since the epoch."""

    value: int | float


class AssignArtifact(_Operation, tag=True):
    """A field that is the hash of tracked files."""

    hash: str


class FloatPoint(msgspec.Struct):
    """A point of a float series: `ts` in seconds since the epoch; without a step the server counts up."""

    value: float
    ts: int | float | None = None
    step: int | float | None = None


class StringPoint(msgspec.Struct):
    """A value of a text series, likewise."""

    value: str
    ts: int | float | None = None
    step: int | float | None = None


class Picture(msgspec.Struct):
    """A picture: `data` is base64."""

    data: str | None = None
    name: str | None = None
    description: str | None = None


class PicturePoint(msgspec.Struct):
    """A picture of a series, likewise."""

    value: Picture | str | None
    ts: int | float | None = None
    step: int | float | None = None


class LogFloats(_Operation, tag=True):
    """Points of a float series."""

    values: list[FloatPoint]


class LogStrings(_Operation, tag=True):
    """Values of a text series."""

    values: list[StringPoint]


class LogImages(_Operation, tag=True):
    """Pictures of a series."""

    values: list[PicturePoint]


class UploadFile(_Operation, tag=True):
    """A file: it is at `file_path`, or a copy of it is in `upload_path/` under `tmp_file_name`."""

    ext: str = ""
    file_path: str | None = None
    tmp_file_name: str | None = None


class UploadFileContent(_Operation, tag=True):
    """A file: `file_content` is base64."""

    file_content: str
    ext: str = ""


class UploadFileSet(_Operation, tag=True):
    """Files by absolute paths with wildcards; with `reset` they replace those before."""

    file_globs: list[str]
    reset: str | bool = False


class AddStrings(_Operation, tag=True):
    """Words for a set, such as the tags."""

    values: list[str]


class RemoveStrings(_Operation, tag=True):
    """Words that leave a set."""

    values: list[str]


class ClearStringSet(_Operation, tag=True):
    """A set is emptied."""


class TrackFilesToArtifact(_Operation, tag=True):
    """Where tracked files lie: pairs of path and destination."""

    entries: list[list[str | None]]


class ClearFloatLog(_Operation, tag=True):
    """A float series is emptied."""


class ClearStringLog(_Operation, tag=True):
    """A text series is emptied."""


class ClearImageLog(_Operation, tag=True):
    """A series of pictures is emptied."""


class ClearArtifact(_Operation, tag=True):
    """Tracked files are forgotten."""


class DeleteAttribute(_Operation, tag=True):
    """A field is deleted."""


class OtherOperation(msgspec.Struct):
    """An operation that is not imported, or that a client of another version wrote."""

    type: str
    path: list[str] = []


Assigned = AssignFloat | AssignInt | AssignBool | AssignString | AssignDatetime | AssignArtifact
Emptying = ClearFloatLog | ClearStringLog | ClearImageLog | ClearArtifact | DeleteAttribute
Operation = (
    Assigned
    | LogFloats
    | LogStrings
    | LogImages
    | UploadFile
    | UploadFileContent
    | UploadFileSet
    | AddStrings
    | RemoveStrings
    | ClearStringSet
    | TrackFilesToArtifact
    | Emptying
)

KNOWN = frozenset(kind.__name__ for kind in get_args(Operation))
"""The names of those that are read."""
