"""The directories that the client writes without a server, and `neptune sync` sends later.

Apart from the backend because they are files of Neptune's, in a place of ours: `.neptune/` in the run directory, so
that whatever is in it is of this run. A directory cannot be gone on with, and two of one run would be two runs at the
server, so a run that is opened again gets a new one, with everything in it from the start, in place of the old.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

DATA_FOLDER = ".neptune"
SIDECAR = "trackhub.json"


def data_directory(run_directory: Path) -> Path:
    """Where the client keeps its files of this run."""
    return run_directory / DATA_FOLDER


def written(run_directory: Path) -> list[str]:
    """The names of the directories of this run that wait to be sent."""
    folder = data_directory(run_directory) / "offline"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def remove(run_directory: Path, kind: str) -> None:
    """Remove what the client has left: "offline", or "async" for what it buffers on the way to a server."""
    shutil.rmtree(data_directory(run_directory) / kind, ignore_errors=True)


def write_sidecar(run_directory: Path, content: dict[str, Any]) -> None:
    """Keep what the client does not: which run this is, and of which project.

    Raises:
        OSError: It cannot be written.
    """
    path = data_directory(run_directory) / SIDECAR
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)
