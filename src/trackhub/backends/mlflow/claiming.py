"""Has all deliveries of one run settle on one MLflow run, also those that begin at the same moment on two machines.

Apart from the backend because it is an algorithm of its own. MLflow has nothing that is made only once for a run's id,
so each delivery first makes its run and then settles as in Lamport's bakery: a run takes a number above all that it
sees, and when every run there is has a number, the lowest is used. One that comes later sees the number, and gets a
higher one. Who made a run that is not used deletes it again, for nothing was written to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

CLAIM_TAG = "trackhub.claim"
UNUSED_TAG = "trackhub.unused"
"""Of runs that a delivery has deleted, because it uses another: they are not waited for to be restored."""

_CLAIM_SECONDS = 3.0
"""How long another delivery may take from making a run to its number; behind that, it has died in between."""
_PAUSE_SECONDS = 0.05


class Claiming:
    """Which of the MLflow runs of one run is used.

    Args:
        client: An `MlflowClient`.
        search: Gives the runs that have the run's id, active ones or deleted ones too; all but one, if it is given one.
    """

    def __init__(self, client: Any, search: Callable[[str | None], Sequence[Any]]) -> None:
        self._client = client
        self._search = search

    def find(self) -> Any | None:
        """The run to use of those that are there; a deleted one if that is all there is, None if there is none."""
        runs = self._search(None)
        if not _active(runs):
            return next((one for one in runs if UNUSED_TAG not in one.data.tags), None)
        return self._first() or self._with_number(min(_active(runs), key=_age))

    def claim(self, made: Any) -> Any:
        """The run to use, once one was made; that one is deleted if it is another."""
        used = self._with_number(made)
        if used.info.run_id != made.info.run_id:
            self.delete(made.info.run_id)
        return used

    def others(self, run_id: str) -> list[Any]:
        """The active runs that are not the one which is used."""
        # That one is not asked for: all its metrics would come with it.
        return _active(self._search(run_id))

    def delete(self, run_id: str) -> None:
        """Delete a run that is not used."""
        self._client.set_tag(run_id, UNUSED_TAG, "another run is used")
        self._client.delete_run(run_id)

    def _with_number(self, run: Any) -> Any:
        """The run to use, after this one has taken a number."""
        number = 1 + max(map(_number, _active(self._search(None))), default=0)
        self._client.set_tag(run.info.run_id, CLAIM_TAG, str(number))
        return self._first() or run

    def _first(self) -> Any | None:
        """The run with the lowest number, when all have one."""
        deadline = time.monotonic() + _CLAIM_SECONDS
        while True:
            runs = _active(self._search(None))
            if all(map(_number, runs)) or time.monotonic() > deadline:
                return min(filter(_number, runs), key=lambda one: (_number(one), one.info.run_id), default=None)
            time.sleep(_PAUSE_SECONDS)


def _active(runs: Sequence[Any]) -> list[Any]:
    return [one for one in runs if one.info.lifecycle_stage == "active"]


def _number(run: Any) -> int:
    """The number that a run has taken; 0 if it has none yet."""
    text = run.data.tags.get(CLAIM_TAG, "")
    return int(text) if text.isdecimal() else 0


def _age(run: Any) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id
