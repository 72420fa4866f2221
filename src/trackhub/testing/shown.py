"""What is found of a run when it is read back, in plain dicts and lists: the words in which tests compare backends.

Apart from the suite because readers, `MemoryBackend` and `recorded` all speak it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trackhub.readback import Point

__all__ = ["Point", "Shown"]


@dataclass
class Shown:
    """One run as somebody finds it at a vendor. Leave empty what the vendor has no place for.

    Args:
        metrics: Name -> its points, in any order.
        params: Name -> value, as the vendor shows it.
        tags: Name -> text; without tags that the vendor or the backend adds by itself.
        files: Path -> content.
        others: Names of everything else that is there: pictures, texts, tables, histograms.
        status: "running", "finished", "failed" or "killed"; None where the vendor does not tell.
        parent: The parent's remote id, of a child run.
    """

    metrics: dict[str, list[Point]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    status: str | None = None
    parent: str | None = None
