"""Draws a run as one self-contained HTML page: the curves of its metrics, its pictures, params and child runs.

Apart from the backend because it is plain drawing. KFP shows one value of a metric; a page is the only place for
curves. It needs no network and no script, and its size is bounded, whatever was logged.
"""

from __future__ import annotations

import base64
import html
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence

from trackhub.backends.kfp.contents import Contents
from trackhub.backends.kfp.series import Series
from trackhub.records import PlainValue

MOST_CURVES = 600
MOST_POINTS = 60_000
"""Of all curves together; a curve has at least `FEWEST_POINTS` and at most twice its width in pixels."""
FEWEST_POINTS = 60
MOST_ROWS = 500
MOST_PICTURE_BYTES = 3 * 1024 * 1024
"""Of all pictures together, as files."""
LONGEST_CELL = 200
MOST_CHILD_COLUMNS = 12

_WIDTH, _HEIGHT = 340.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 8.0, 8.0, 22.0
_STYLE = """
body{font:14px/1.4 Helvetica,Arial,sans-serif;color:#222;margin:16px;background:#fff}
h1{font-size:20px;margin:0 0 2px}h2{font-size:16px;margin:24px 0 8px}p{color:#666;margin:0 0 8px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:14px}
figure{margin:0;overflow-wrap:anywhere}figcaption b{font-weight:600}figcaption span{color:#666}
svg,img{max-width:100%;height:auto;display:block}
table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ddd;padding:2px 8px;text-align:left;
overflow-wrap:anywhere}td.n{text-align:right;font-variant-numeric:tabular-nums}
"""

Note = Callable[[str, str, str], object]


def draw_page(contents: Contents, note: Note) -> bytes:
    """A run as an HTML page.

    Args:
        contents: The run.
        note: Told as `(reason, subject, detail)` of what there was no room for.
    """
    run = contents.run
    parts = [
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{_text(run.name)}</title>"
        f"<style>{_STYLE}</style></head><body>\n<h1>{_text(run.name)}</h1>\n"
        f"<p>project {_text(run.project)} · run {_text(run.id)} · {_text(contents.status)}</p>"
    ]
    parts += _curves(contents, note)
    parts += _last_values(contents, note)
    parts += _pictures(contents, note)
    parts += _child_runs(contents, note)
    parts += _mapping("Params", contents.params, note)
    parts += _mapping("Tags", contents.tags, note)
    return "\n".join([*parts, "</body></html>\n"]).encode(errors="replace")


def short_number(value: float) -> str:
    """A number for people, in at most ten characters or so.

    >>> short_number(0.123456789), short_number(1e-9), short_number(3.0)
    ('0.123457', '1e-09', '3')
    """
    return f"{value:.6g}"


def cell_text(value: object) -> str:
    """A param or a cell for people: a text as it is, a number shortened, everything else as JSON."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        text = short_number(value)
    else:
        text = "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}\u2026"


def child_table(contents: Contents) -> tuple[list[str], list[list[object]]]:
    """The child runs, a row each: name, status, the params that differ, the last metrics."""
    trials = list(contents.trials())
    params = dict.fromkeys(name for _, child in trials for name in child.params)
    differing = [name for name in params if len({cell_text(child.params.get(name)) for _, child in trials}) > 1]
    metrics = list(dict.fromkeys(name for _, child in trials for name in child.last_values()))
    differing, metrics = differing[:MOST_CHILD_COLUMNS], metrics[:MOST_CHILD_COLUMNS]
    rows: list[list[object]] = []
    for name, child in trials[:MOST_ROWS]:
        last = child.last_values()
        values = [*(child.params.get(param) for param in differing), *(last.get(metric) for metric in metrics)]
        rows.append([name, child.status, *values])
    return ["run", "status", *differing, *metrics], rows


def _curves(contents: Contents, note: Note) -> list[str]:
    curves = [(name, series) for name, series in sorted(contents.series.items()) if series.count > 1]
    for name, _ in curves[MOST_CURVES:]:
        note("shortened", name, f"the page has the curves of {MOST_CURVES} metrics; this one's is at Output[Metrics]")
    curves = curves[:MOST_CURVES]
    if not curves:
        return []
    most = min(int(2 * _WIDTH), max(FEWEST_POINTS, MOST_POINTS // len(curves)))
    groups: dict[str, list[str]] = {}
    for name, series in curves:
        group, slash, _ = name.partition("/")
        groups.setdefault(group if slash else "", []).append(_curve(name, series, most))
    # A heading over a single curve says nothing that the curve's own name does not say.
    titled = len(groups) > 1 and any(len(drawn) > 1 for drawn in groups.values())
    parts = [] if titled else ["<h2>Metrics</h2><div class='grid'>"]
    for group, drawn in groups.items():
        parts += [f"<h2>{_text(group or 'Metrics')}</h2><div class='grid'>", *drawn, "</div>"] if titled else drawn
    return parts if titled else [*parts, "</div>"]


def _curve(name: str, series: Series, most: int) -> str:
    points = thinned(series.points(), most)
    steps = [step for step, _ in points]
    left, right = float(min(steps)), float(max(steps))
    low, high = series.least, series.greatest
    if left == right:
        # Beyond 2**53 a half is lost, and different steps may be the same number.
        pad = max(0.5, math.ulp(left))
        left, right = left - pad, right + pad
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        low, high = max(low - pad, -sys.float_info.max), min(high + pad, sys.float_info.max)
    ticks = _ticks(low, high)
    across = (_WIDTH - _LEFT - _RIGHT) / (right - left)
    # Halved, because the difference of two finite numbers may be infinite.
    half = high / 2 - low / 2 or 1.0
    tall = (_HEIGHT - _TOP - _BOTTOM) / 2
    middle = low / 2 + high / 2

    def y_of(value: float) -> float:
        return _TOP + tall * (1 - (value - middle) / half)

    base = _HEIGHT - _BOTTOM
    parts = [f"<svg viewBox='0 0 {_WIDTH:g} {_HEIGHT:g}' width='{_WIDTH:g}' height='{_HEIGHT:g}' role='img'>"]
    for tick in ticks:
        y = y_of(tick)
        parts.append(
            f"<path d='M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}' stroke='#e4e4e4'/>"
            f"<text x='{_LEFT - 5:g}' y='{y + 3.5:.1f}' font-size='10' text-anchor='end' fill='#666'>{tick:.4g}</text>"
        )
    for step, anchor in ((left, "start"), (right, "end")):
        x = _LEFT + (step - left) * across
        parts.append(
            f"<text x='{x:.1f}' y='{base + 14:g}' font-size='10' text-anchor='{anchor}' fill='#666'>{step:g}</text>"
        )
    line = "L".join([f"{_LEFT + (step - left) * across:.1f} {y_of(value):.1f}" for step, value in points])
    parts.append(
        f"<path d='M{line}' fill='none' stroke='#1f5fa8' stroke-width='1.4' stroke-linejoin='round'/>"
        f"<path d='M{_LEFT:g} {_TOP:g}V{base:g}H{_WIDTH - _RIGHT:g}' fill='none' stroke='#999'/></svg>"
    )
    caption = (
        f"last {short_number(series.last)} · min {short_number(series.least)} · max {short_number(series.greatest)}"
    )
    caption = f"<b>{_text(name)}</b> <span>{caption}{_gaps(series)}</span>"
    return f"<figure>{''.join(parts)}<figcaption>{caption}</figcaption></figure>"


def thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most so many of the points: of each stretch the smallest and the greatest, and the first and last of all.

    >>> thinned([(step, float(step % 5)) for step in range(20)], 6)
    [(0, 0.0), (4, 4.0), (10, 0.0), (14, 4.0), (19, 4.0)]
    """
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / max((most - 2) // 2, 1))
    kept: list[tuple[int, float]] = []
    for at in range(0, len(points), size):
        values = [value for _, value in points[at : at + size]]
        ends = sorted({values.index(min(values)), values.index(max(values))})
        kept += [points[at + end] for end in ends]
    if kept[0] != points[0]:
        kept.insert(0, points[0])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers in the range; its ends where rounding has lost them."""
    span = high - low
    if not sys.float_info.min * 1e10 < span < math.inf or span <= abs(high) * 1e-12:
        return [low, high]
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * magnitude for unit in (1, 2, 2.5, 5, 10) if span / (unit * magnitude) <= 5)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [index * step for index in range(first, last + 1)] or [low, high]


def _gaps(series: Series) -> str:
    if series.not_finite_steps is None:
        return ""
    first, last = series.not_finite_steps
    where = f"step {first}" if first == last else f"steps {first} to {last}"
    return f" · {series.not_finite} not finite ({where})"


def _last_values(contents: Contents, note: Note) -> list[str]:
    rows = [
        [name, short_number(series.last), short_number(series.least), short_number(series.greatest), str(series.count)]
        if series.count
        else [name, f"not finite ({series.not_finite})", "", "", "0"]
        for name, series in sorted(contents.series.items())
    ]
    if not rows:
        return []
    return ["<h2>Last values</h2>", _table(["metric", "last", "min", "max", "values"], rows, "metrics", note)]


def _pictures(contents: Contents, note: Note) -> list[str]:
    parts: list[str] = []
    room = MOST_PICTURE_BYTES
    for name, record in contents.pictures.items():
        try:
            content = contents.run.path_of(record.file).read_bytes()
        except OSError as error:
            note("missing", name, f"the picture cannot be read: {error.strerror or error}")
            continue
        if len(content) > room:
            note("shortened", name, f"the page has no room for a picture of {len(content):,} bytes")
            continue
        room -= len(content)
        data = base64.b64encode(content).decode()
        step = "" if record.step is None else f" <span>step {record.step}</span>"
        parts.append(
            f"<figure><img alt='{_text(name)}' src='data:{_text(record.file.media_type)};base64,{data}'>"
            f"<figcaption><b>{_text(name)}</b>{step}</figcaption></figure>"
        )
    return ["<h2>Pictures</h2><div class='grid'>", *parts, "</div>"] if parts else []


def _child_runs(contents: Contents, note: Note) -> list[str]:
    columns, rows = child_table(contents)
    if not rows:
        return []
    left_out = sum(1 for _ in contents.trials()) - len(rows)
    if left_out:
        note("shortened", "child runs", f"the table has room for {MOST_ROWS}; {left_out} are left out")
    return [f"<h2>Child runs</h2>{_table(columns, rows, 'child runs', note)}"]


def _mapping(title: str, values: dict[str, PlainValue] | dict[str, str], note: Note) -> list[str]:
    if not values:
        return []
    return [f"<h2>{title}</h2>", _table(["name", "value"], list(values.items()), title.lower(), note)]


def _table(columns: Sequence[str], rows: Sequence[Iterable[object]], what: str, note: Note) -> str:
    if len(rows) > MOST_ROWS:
        note("shortened", what, f"the page's table has room for {MOST_ROWS} of {len(rows)}")
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = ["".join(map(_cell, row)) for row in rows[:MOST_ROWS]]
    return f"<table><tr>{head}</tr>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _cell(value: object) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"<td{' class=n' if is_number else ''}>{_text(cell_text(value))}</td>"


def _text(text: str) -> str:
    return html.escape("".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text))
