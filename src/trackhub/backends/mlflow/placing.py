"""Which path has what was logged under a name, so that no two names share one.

Apart from the names because it remembers: `notes` and `notes.txt` are both called `notes.txt` as texts, and which of
them was first is known only to the run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from trackhub.backends.mlflow.names import escape_first, to_artifact_path

_STEP = re.compile(r"step--?[0-9]+")


class Placing:
    """The paths of one run's texts, pages, figures and tables.

    Args:
        owners: Path -> who has it, as an earlier `owners`.
    """

    def __init__(self, owners: Mapping[str, str]) -> None:
        self.owners = dict(owners)

    def path(self, folder: str, name: str, step: int | None, suffix: str) -> str:
        """Where the value of a name and a step is put; the second of two names that would share a path is marked."""
        path = to_artifact_path(name)
        if step is not None:
            return f"{folder}/{path}/step-{step:08d}{suffix}"
        parent, slash, last = path.rpartition("/")
        stem = last.removesuffix(suffix)
        if slash and _STEP.fullmatch(stem):
            # As a step of its parent would be called.
            stem = escape_first(stem)
        path = f"{folder}/{parent}{slash}{stem}"
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        owner = self.owners.setdefault(f"{path}{suffix}", digest)
        return f"{path}{suffix}" if owner == digest else f"{path}_xh{digest}_{suffix}"
