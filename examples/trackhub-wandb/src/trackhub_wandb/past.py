"""What earlier deliveries have written of a run: in files that wandb can only add to, and makes a new one of each time.

Apart from the backend because this alone is why a batch that comes again is shown once. A delivery that is killed has
written more than it remembers; the rows beyond what is remembered are found here, and passed over when they come.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trackhub import StateLost
from trackhub_wandb.names import OURS
from trackhub_wandb.transactions import TransactionFile

TIME = "_timestamp"
ROW = "_step"
STEP = f"{OURS}/step"


class Row(NamedTuple):
    """What tells rows apart. Equal ones come in the same order again, and are counted."""

    time_seconds: float
    step: int
    names: int


def row_of(time_seconds: float, step: int, names: Iterable[str]) -> Row:
    """The row that has values of these names."""
    return Row(time_seconds, step, hash(frozenset(names)))


class Past:
    """What is in the files of one run.

    Args:
        directory: The folder that has the folders of all runs.
        run_id: wandb's id of the run.
        state: What the last delivery remembered: how many rows there were, and the place where its file ended.

    Raises:
        StateLost: What was remembered is not there any more.
    """

    def __init__(self, directory: Path, run_id: str, state: Mapping[str, Any]) -> None:
        self.rows: int = state.get("rows", 0)
        """How many rows there are; the number of the next one."""
        self.forgotten: Counter[Row] = Counter()
        """Rows that are there, and that nobody remembers."""
        self.tags: dict[str, str] = dict(state.get("tags", {}))
        """The run's tags."""
        files = sorted(
            directory.glob(f"*run-[0-9]*/run-{run_id}.wandb"), key=lambda path: order_of(path.parent.name, run_id)
        )
        offset = 0
        if "folder" in state:
            folder, offset = state["folder"], state["offset"]
            names = [path.parent.name for path in files]
            if folder not in names:
                raise StateLost(f"{directory / folder} is gone")
            files = files[names.index(folder) :]
            if files[0].stat().st_size < offset:
                raise StateLost(f"{files[0]} is shorter than it was")
        for path in files:
            self._read(TransactionFile(path, offset))
            offset = 0

    def knows(self, row: Row) -> bool:
        """Whether this row has been written before; asked once for each row that comes."""
        count = self.forgotten.pop(row, 0)
        if count > 1:
            self.forgotten[row] = count - 1
        return count > 0

    def _read(self, file: TransactionFile) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        for content in file.read():
            record = Record.FromString(content)
            if record.HasField("history"):
                values = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                names = [name for name in values if not name.startswith((f"{OURS}/", "_"))]
                self.forgotten[row_of(float(values[TIME]), int(values[STEP]), names)] += 1
                self.rows = max(self.rows, int(values[ROW]) + 1)
            elif record.HasField("config"):
                for item in record.config.update:
                    if item.key == OURS:
                        self.tags = json.loads(item.value_json)["tags"]


def order_of(folder: str, run_id: str) -> tuple[str, int]:
    """What folders of a run are sorted by: wandb numbers those it makes in the same second.

    >>> order_of("offline-run-20261121_211938-fold-7", "fold-7"), order_of("run-20261121_211938-fold-7-1", "fold-7")
    (('20261121_211938', 0), ('20261121_211938', 1))
    """
    found = re.fullmatch(rf"(?:offline-)?run-(\d{{8}}_\d{{6}})-{re.escape(run_id)}(?:-(\d+))?", folder)
    return (found[1], int(found[2] or 0)) if found else (folder, 0)
