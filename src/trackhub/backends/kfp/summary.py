"""Writes a run as markdown: the texts and tables it has logged, or a summary of it where it has logged none.

Apart from the page because markdown is text: no drawing, and everything a person typed must show as it was typed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from trackhub.backends.kfp.contents import Contents
from trackhub.backends.kfp.page import MOST_ROWS, Note, cell_text, child_table
from trackhub.errors import RecordRejected
from trackhub.records import TableLogged, TextLogged

MOST_BYTES = 1024 * 1024
"""Of one document: KFP's page reads it whole."""

_MARKUP = frozenset("&<>|\\`*_~[]$#")


def write_document(contents: Contents, note: Note) -> bytes:
    """The texts and tables that were logged, a section each, a single text as it is; or else a summary.

    Args:
        contents: The run.
        note: Told as `(reason, subject, detail)` of what there was no room for.
    """
    records = list(contents.texts.values())
    if not records:
        return _summary(contents).encode(errors="replace")
    if len(records) == 1 and isinstance(records[0], TextLogged):
        return render(contents, records[0], note)
    parts = []
    room = MOST_BYTES
    for record in records:
        heading = f"## {escaped(record.name)}{'' if record.step is None else f' (step {record.step})'}\n\n"
        section = heading.encode() + render(contents, record, note).strip() + b"\n\n"
        if len(section) > room:
            note("shortened", record.name, f"a markdown document holds {MOST_BYTES:,} bytes; this is left out")
            continue
        room -= len(section)
        parts.append(section)
    return b"".join(parts)


def render(contents: Contents, record: TextLogged | TableLogged, note: Note) -> bytes:
    """One text or table as markdown.

    Raises:
        RecordRejected: Its file is gone or not what it should be.
    """
    try:
        content = contents.run.path_of(record.file).read_bytes()
        if isinstance(record, TableLogged):
            rows = json.loads(content)["data"]
            if len(rows) > MOST_ROWS:
                note("shortened", record.name, f"the first {MOST_ROWS} of {len(rows)} rows are shown")
                rows = rows[:MOST_ROWS]
            content = markdown_table(record.columns, rows).encode(errors="replace")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordRejected(f"{record.name!r} cannot be read: {error}") from error
    if len(content) > MOST_BYTES:
        note("shortened", record.name, f"the first {MOST_BYTES:,} of {len(content):,} bytes are shown")
        content = content[:MOST_BYTES].decode(errors="ignore").encode()
    return content


def markdown_table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in GitHub's markdown.

    >>> print(markdown_table(["name", "a|b"], [["x", 0.5]]), end="")
    | name | a&#124;b |
    | --- | --- |
    | x | 0.5 |
    """
    lines = [[escaped(cell_text(column)) for column in columns], ["---"] * len(columns)]
    lines += [[escaped(cell_text(cell)) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escaped(text: str) -> str:
    """A text that shows as it is, on one line, in a table or outside of one."""
    plain = " ".join(text.split())
    return "".join(f"&#{ord(character)};" if character in _MARKUP else character for character in plain)


def _summary(contents: Contents) -> str:
    run = contents.run
    parts = [f"# {escaped(run.name)}\n\nproject {escaped(run.project)}, run {escaped(run.id)}, {contents.status}\n"]
    metrics = [
        [name, series.last, series.least, series.greatest, series.count]
        for name, series in sorted(contents.series.items())
        if series.count
    ]
    if metrics:
        table = markdown_table(["metric", "last", "min", "max", "values"], metrics[:MOST_ROWS])
        parts.append(f"## Metrics\n\n{table}{_more(metrics)}")
    columns, rows = child_table(contents)
    if rows:
        parts.append(f"## Child runs\n\n{markdown_table(columns, rows)}")
    for title, values in (("Params", contents.params), ("Tags", contents.tags)):
        if values:
            pairs = list(values.items())
            parts.append(f"## {title}\n\n{markdown_table(['name', 'value'], pairs[:MOST_ROWS])}{_more(pairs)}")
    return "\n".join(parts)


def _more(rows: Sequence[object]) -> str:
    left_out = len(rows) - MOST_ROWS
    return f"\n{left_out} more are not shown.\n" if left_out > 0 else ""
