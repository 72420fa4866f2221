"""Taking back the end of series: what a later attempt has superseded.

Apart from appending because Neptune can only delete a series as a whole. What is to stay is first fetched into a file
of the run directory, then the series is made anew: if this is cut short, it is done again from that file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from trackhub.backends.neptune.offline import data_directory
from trackhub.backends.neptune.series import End, grow
from trackhub.backends.neptune.session import Session

_POINTS_AT_ONCE = 1000
_FOLDER = "rewound"

Point = tuple[int, int, Any]
"""Step, time in milliseconds, value."""


class SeriesCutter:
    """Cuts series of a run short.

    Args:
        session: The run.
        directory: The run directory.
        attempt: The attempt that supersedes; a later one does not take up what was left of this.
    """

    def __init__(self, session: Session, directory: Path, attempt: int) -> None:
        self._session = session
        self._folder = data_directory(directory) / _FOLDER
        self._attempt = attempt

    def half_done(self) -> Iterator[tuple[str, int]]:
        """Path and last step to keep of the series whose cutting was cut short."""
        for file in sorted(self._folder.glob(f"{self._attempt}-*.jsonl")):
            with file.open(encoding="utf-8") as lines:
                path, last_kept = json.loads(next(lines))
            yield path, last_kept

    def cut(self, path: str, last_kept: int, end: End | None) -> tuple[End | None, bool]:
        """Have a series end with a step.

        Args:
            path: The series.
            last_kept: The last step that may stay.
            end: Where it ends now; None if it is empty.

        Returns:
            Where it ends then, and whether it was changed.
        """
        name = hashlib.sha256(f"{path} {last_kept}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
        file = self._folder / f"{self._attempt}-{name}.jsonl"
        if not file.exists():
            if end is None or end.step <= last_kept:
                return end, False
            self._fetch(path, last_kept, file)
        end = self._send(path, file)
        file.unlink()
        return end, True

    def _fetch(self, path: str, last_kept: int, file: Path) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as out:
            out.write(json.dumps([path, last_kept]) + "\n")
            for step, time_ms, value in self._stored(path):
                if step > last_kept:
                    break
                out.write(json.dumps([step, time_ms, value]) + "\n")
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)

    def _stored(self, path: str) -> Iterator[Point]:
        """The points of a series as the server has them, in their order."""
        offset = 0
        while True:

            def page(run: Any, start: int = offset) -> Any:
                return run.get_attribute(path)._fetch_values_from_backend(start, _POINTS_AT_ONCE).values

            points = self._session.ask("read what is superseded", page)
            for one in points:
                yield int(one.step), int(one.timestampMillis), one.value
            if len(points) < _POINTS_AT_ONCE:
                return
            offset += len(points)

    def _send(self, path: str, file: Path) -> End | None:
        end: End | None = None
        with file.open(encoding="utf-8") as lines:
            next(lines)
            points = (tuple(json.loads(line)) for line in lines)
            batch = _batch(points)
            first = True
            while first or batch:
                growth = grow(end, None, batch)

                def make(run: Any, growth: Any = growth, first: bool = first) -> None:
                    if first and run.exists(path):
                        run.pop(path)
                    if growth.values:
                        run[path].extend(growth.values, steps=growth.steps, timestamps=growth.times)

                self._session.send("take back what is superseded", make)
                end, first, batch = growth.end, False, _batch(points)
        return end


def _batch(points: Iterable[Any]) -> list[Any]:
    return list(islice(iter(points), _POINTS_AT_ONCE))
