"""What the place a process runs in says of the run: a pipeline's task, for instance.

Apart from the backends because it serves all of them: a run in a pod is the same run wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


def _never(_callback: Callable[[], object]) -> None:
    pass


@dataclass(frozen=True)
class RunContext:
    """What a plugin's `trackhub_context` says of the run that is being started.

    Args:
        name: The name people see, unless another is chosen.
        run_id: The run's id, unless another is chosen: the same whenever the same work is tried again, and no other
            run's. None if nothing tells.
        tags: Set on the run; tags of the same name that are given to `init` win.
        reserved_params: Names of params that the place itself logs, as it spells them, where it logs any.
        before_end: Has a callback called when the work is done well and its result is about to be written down: runs
            that are still open then end as finished.
    """

    name: str | None = None
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    reserved_params: frozenset[str] = frozenset()
    before_end: Callable[[Callable[[], object]], object] = _never
