"""Numbers, times, sizes and series as short text for people.

Apart from the printing because none of it needs rich, and all of it can be checked by its examples.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from datetime import datetime

from trackhub.errors import SettingsError

_BARS = "▁▂▃▄▅▆▇█"


def legible(text: str) -> str:
    r"""A text that cannot steer the terminal: control characters are written out, ends of lines are kept.

    >>> legible("loss\x1b[31m")
    'loss\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def number(value: float) -> str:
    """A metric's value, to six significant digits.

    >>> number(0.1234567), number(float("nan")), number(1e-9)
    ('0.123457', 'NaN', '1e-09')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.6g}"


def span(seconds: float) -> str:
    """A duration.

    >>> span(0.25), span(63), span(7_260), span(200_000)
    ('0.2 s', '1 m 03 s', '2 h 01 m', '2 d 07 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} m {int(seconds) % 60:02d} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} m"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"


def size(count: float) -> str:
    """A number of bytes.

    >>> size(812), size(2_500_000)
    ('812 B', '2.5 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def local_time(time_ns: int) -> str:
    """A time in the time zone of whoever looks."""
    return datetime.fromtimestamp(time_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")


def ago(time_ns: int) -> str:
    """How long ago a time was; beyond two days, the day."""
    seconds = time.time() - time_ns / 1e9
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h ago"
    return local_time(time_ns)[:16]


def sparkline(values: Sequence[float], width: int) -> str:
    """A series as a row of bars; a gap is where nothing is a number, and infinities stand at the edges.

    >>> sparkline([0, 1, 2, float("nan"), 3], 5)
    '▁▃▆ █'
    """
    if not values:
        return ""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    # Halved, so that the distance of the two largest floats is still one.
    reach = high / 2 - low / 2
    bars = []
    count = min(width, len(values))
    for index in range(count):
        inside = values[index * len(values) // count : (index + 1) * len(values) // count]
        there = [value for value in inside if not math.isnan(value)]
        if not there:
            bars.append(" ")
            continue
        middle = sorted(there)[len(there) // 2]
        if math.isinf(middle):
            bars.append(_BARS[-1] if middle > 0 else _BARS[0])
        elif reach <= 0:
            bars.append(_BARS[3])
        else:
            bars.append(_BARS[round((middle / 2 - low / 2) / reach * (len(_BARS) - 1))])
    return "".join(bars)


def seconds_of(age: str) -> float:
    """An age as people write it, in seconds.

    >>> seconds_of("7d"), seconds_of("1.5h")
    (604800.0, 5400.0)

    Raises:
        SettingsError: It is none.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhdw])", age.strip())
    if match is None:
        raise SettingsError(f"{age!r} is no age: write a number with s, m, h, d or w behind it, as in 7d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]
