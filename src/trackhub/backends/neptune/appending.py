"""Appending to the series of a run, each point once.

Apart from the backend because it knows where every series ends: from what it has sent, and after a new connection from
the server, which may have more than the last answer said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trackhub.backend import Notes
from trackhub.backends.neptune.client import file_type, image_count
from trackhub.backends.neptune.fields import IMAGES
from trackhub.backends.neptune.rewinding import SeriesCutter
from trackhub.backends.neptune.series import End, Growth, grow
from trackhub.backends.neptune.session import Session
from trackhub.errors import StateLost

_IMAGES_AT_ONCE_BYTES = 8 << 20
_NOT_INCREASING = "left out: the steps of Neptune's series only grow"


class Picture(NamedTuple):
    """An image to append: the name of its series, and where it is."""

    name: str
    step: int
    time_ms: int
    source: Path


class Appending:
    """The series of one run.

    Args:
        session: The run.
        client: The client's module.
        notes: Of the backend.
        images: Path -> how many images were in a series, and the last one's step, when that was last remembered.
    """

    def __init__(self, session: Session, client: str, notes: Notes, images: dict[str, tuple[int, float]]) -> None:
        self.images = images
        self._session = session
        self._client = client
        self._notes = notes
        self._connection = 0
        self._ends: dict[str, End | None] = {}
        self._stored: dict[str, End | None] = {}
        self._again: dict[str, int] = {}

    def append(
        self,
        doing: str,
        kind: str,
        series: dict[str, list[tuple[int, int, Any]]],
        extra: Sequence[tuple[str, str, str]],
    ) -> None:
        """Append numbers or texts.

        Args:
            doing: What it is, for messages.
            kind: The type of the fields.
            series: Path -> `(step, time_ms, value)` of its points.
            extra: Notes to add once everything has arrived.
        """
        self._session.ensure()
        self._begin()
        unknown = [path for path in series if path not in self._ends]
        if unknown:
            self._look_up(kind, unknown)
        grown = {path: grow(self._ends[path], self._stored[path], points) for path, points in series.items()}

        def extend(run: Any) -> None:
            for path, growth in grown.items():
                if growth.values:
                    run[path].extend(growth.values, steps=growth.steps, timestamps=growth.times)

        if any(growth.values for growth in grown.values()):
            self._session.send(doing, extend)
        # Only now: what is given again, because it did not arrive, is counted once.
        for path, growth in grown.items():
            self._ends[path] = growth.end
            for _ in range(growth.refused):
                self._notes.add("step not increasing", path.partition("/")[2][:200], _NOT_INCREASING)
        for note in extra:
            self._notes.add(*note)

    def cut(self, kind: str, limits: Mapping[str, int], cutter: SeriesCutter) -> None:
        """Have series end with a step, those that go beyond it.

        Args:
            kind: The type of the fields.
            limits: Path -> the last step that may stay.
            cutter: Does it.

        Raises:
            StateLost: Offline, where nothing can be taken back.
        """
        self._session.ensure()
        self._begin()
        unknown = [path for path in limits if path not in self._ends]
        if unknown:
            self._look_up(kind, unknown)
        for path, last_kept in limits.items():
            end = self._ends[path]
            if self._session.offline:
                if end is not None and end.step > last_kept:
                    raise StateLost("what is superseded cannot be taken back from an offline directory")
                continue
            end, changed = cutter.cut(path, last_kept, end)
            if changed:
                self._ends[path] = self._stored[path] = end

    def append_images(self, prefix: str, pictures: Sequence[Picture]) -> bool:
        """Append images; whether `images` has changed."""
        self._session.ensure()
        waiting: list[tuple[str, Picture]] = []
        size = 0
        for picture in pictures:
            path = self._session.place(prefix, picture.name, IMAGES)
            if path is None:
                continue
            waiting.append((path, picture))
            size += picture.source.stat().st_size
            if size > _IMAGES_AT_ONCE_BYTES:
                self._send_images(waiting, size)
                waiting, size = [], 0
        if waiting:
            self._send_images(waiting, size)
        return bool(pictures)

    def _send_images(self, waiting: Sequence[tuple[str, Picture]], size: int) -> None:
        self._session.ensure()
        self._begin()
        for path in dict.fromkeys(path for path, _ in waiting):
            if path not in self._again:
                self._again[path] = self._images_more_than_known(path)
        known, again = dict(self.images), dict(self._again)
        grown: dict[str, Growth] = {}
        refused: list[str] = []
        for path, picture in waiting:
            count, last = known.get(path, (0, float("-inf")))
            if picture.step <= last:
                refused.append(picture.name)
                continue
            known[path] = (count + 1, float(picture.step))
            if again[path] > 0:
                # The server has more than we remember: these were sent, and the answer or our state was lost.
                again[path] -= 1
                continue
            growth = grown.setdefault(path, Growth(None))
            growth.values.append(picture.source)
            growth.steps.append(picture.step)
            growth.times.append((picture.time_ms + 0.5) / 1000)

        def extend(run: Any) -> None:
            file = file_type(self._client)
            for path, growth in grown.items():
                files = [file.from_path(str(source)) for source in growth.values]
                run[path].extend(files, steps=growth.steps, timestamps=growth.times)

        if grown:
            self._session.send("send images", extend, 2 * size)
        self.images.update(known)
        self._again = again
        for name in refused:
            self._notes.add("step not increasing", name[:200], _NOT_INCREASING)

    def _begin(self) -> None:
        """After a new connection nothing is certain any more but what the server says."""
        if self._connection != self._session.opened:
            self._connection = self._session.opened
            self._ends, self._stored, self._again = {}, {}, {}

    def _look_up(self, kind: str, paths: Sequence[str]) -> None:
        ends: dict[str, End | None] = dict.fromkeys(paths)
        if not self._session.offline:

            def last_points(run: Any) -> dict[str, End | None]:
                return {path: _last_point(run, path) for path in paths if self._session.fields.was_found(path)}

            found = sum(self._session.fields.was_found(path) for path in paths)
            if found:
                ends |= self._session.ask(f"read where {kind} end", last_points, 2 * found)
        self._ends |= ends
        self._stored |= ends

    def _images_more_than_known(self, path: str) -> int:
        if self._session.offline or not self._session.fields.was_found(path):
            # Of a run that was begun anew.
            self.images.pop(path, None)
            return 0
        count = self._session.ask("read how many images there are", lambda run: image_count(run, path))
        return max(count - self.images.get(path, (0, 0.0))[0], 0)


def _last_point(run: Any, path: str) -> End | None:
    attribute = run.get_attribute(path)
    first = attribute._fetch_values_from_backend(0, 1)
    count = first.totalItemCount
    points = first.values if count <= 1 else attribute._fetch_values_from_backend(count - 1, 1).values
    return End(float(points[-1].step), int(points[-1].timestampMillis)) if points else None
