"""Names that wandb takes, made from any name: the same one wherever it can be, and no two that become one.

Apart from the backend because it is pure text.
"""

from __future__ import annotations

import hashlib
import re

OURS = "trackhub"
"""What this backend adds to a run is called so, or begins with it and a slash."""

# Names that wandb or this backend uses, behind any number of the marks by which such a name is changed.
_TAKEN_METRIC = re.compile(rf"~*(?:$|_|{OURS}/)")
_TAKEN_PARAM = re.compile(rf"~*(?:_wandb|{OURS})?$")
_NOT_IN_PROJECTS = re.compile(r"[/\\#?%:]")
_MAX_LENGTH = 128


def to_metric(name: str) -> str:
    """The name of a metric or of media in the history.

    Args:
        name: Any text.
    """
    # A metric of that name ends wandb's process, which looks for what the backslash escapes.
    safe = name if name != "\\" else _marked("", name)
    return f"~{safe}" if _TAKEN_METRIC.match(safe) else safe


def to_param(name: str) -> str:
    """The key of a param in the config.

    Args:
        name: Any text.
    """
    # wandb itself strips these.
    safe = name if name == name.strip("-") else _marked(name.strip("-"), name)
    return f"~{safe}" if _TAKEN_PARAM.match(safe) else safe


def to_project(name: str) -> str:
    """The name of a project.

    Args:
        name: Any text.
    """
    return _NOT_IN_PROJECTS.sub("_", name)[:_MAX_LENGTH]


def _marked(changed: str, name: str) -> str:
    return f"{changed}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
