"""What KFP was left with: the output of each task as its server reads it, which refuses what is no strict JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def strictly(text: str) -> Any:
    """Parse JSON in which NaN and infinities are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def metadata_in(task: Path) -> dict[str, dict[str, Any]]:
    """Output -> its metadata, of the task that ran in a directory."""
    written = strictly((task / "executor_output.json").read_text(encoding="utf-8"))
    return {name: one["artifacts"][0]["metadata"] for name, one in written["artifacts"].items()}


def history_in(file: Path) -> list[Any]:
    """The lines of a file that is beside Output[Metrics]."""
    return [strictly(line) for line in file.read_text(encoding="utf-8").splitlines()]
