"""Names and Markdown as TensorBoard and file systems take them.

Apart from the backend because these are plain functions of strings, tested on their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from trackhub.records import PlainValue

_UNSAFE_IN_FILE_NAMES = re.compile(r"[^\w.=,+@-]")
_GENERATED_RUN_ID = re.compile(r"\d{8}-\d{6}-([0-9a-f]{6,})")
_MARKDOWN = re.compile(r"[\\`*\[\]]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word means nothing
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"})
_LONGEST_FILE_NAME = 120


def file_name(text: str) -> str:
    """A text as the name of one file or directory: never hidden, never taken for an event file, at most 120 bytes.

    >>> file_name("lr=0.1/seed 3")
    'lr=0.1_seed_3'
    """
    name = _UNSAFE_IN_FILE_NAMES.sub("_", text).lstrip(".").replace("tfevents", "tfevent_")
    name = name.encode()[:_LONGEST_FILE_NAME].decode(errors="ignore")
    return name or "_"


def run_directory_name(name: str, run_id: str) -> str:
    """What the run is called in TensorBoard: its name, and as much of its id as makes it unique.

    >>> run_directory_name("sgd", "20261121-093000-3f9a1c")
    'sgd-3f9a1c'
    >>> run_directory_name("20261121-093000-3f9a1c", "20261121-093000-3f9a1c")
    '20261121-093000-3f9a1c'
    """
    return file_name(name) if name == run_id else f"{file_name(name)}{_end_of_directory_name(run_id)}"


def may_be_run_directory(directory_name: str, run_id: str) -> bool:
    """Whether a directory is called as one of this run would be, under any name that the run may have had.

    >>> may_be_run_directory("sgd-3f9a1c", "20261121-093000-3f9a1c"), may_be_run_directory("sgd-job-7", "job-8")
    (True, False)
    """
    return directory_name == file_name(run_id) or directory_name.endswith(_end_of_directory_name(run_id))


def _end_of_directory_name(run_id: str) -> str:
    generated = _GENERATED_RUN_ID.fullmatch(run_id)
    # An id of the user's own making may have its difference anywhere, so that is taken whole.
    return f"-{generated[1] if generated else run_id}"


def value_text(value: PlainValue) -> str:
    """A param as people read it: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def escaped(text: str) -> str:
    """A text that TensorBoard's Markdown shows as it is, on one line, in a table's cell or outside of one."""
    text = _MARKDOWN.sub(r"\\\g<0>", text).translate(_HTML)
    return " ".join(text.split())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[PlainValue]]) -> str:
    """A Markdown table of plain values."""
    lines = [[escaped(column) for column in columns], ["---"] * len(columns)]
    lines += [[escaped(value_text(value)) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
