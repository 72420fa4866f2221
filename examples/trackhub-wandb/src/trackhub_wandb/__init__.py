"""The trackhub plugin for Weights & Biases: the hook, and what users can set.

Apart from the backend so that looking for options does not load more than that.
"""

from __future__ import annotations

from trackhub import Backend, hookimpl
from trackhub_wandb.backend import WandbBackend
from trackhub_wandb.options import WandbOptions

__all__ = ["WandbBackend", "WandbOptions", "trackhub_backends"]


@hookimpl
def trackhub_backends() -> list[type[Backend]]:
    """The backends of this package."""
    return [WandbBackend]
