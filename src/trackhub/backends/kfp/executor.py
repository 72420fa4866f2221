"""Finds the KFP executor that runs the component, and has things done before it writes the component's output.

Apart from the backend because it is the one place that knows KFP's machinery: everything else sees plain artifacts.
It goes by names alone, so that a pod's kfp, installed without its dependencies, is enough.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_MODULES = ("kfp.dsl.executor", "kfp.components.executor")
_WRITES = "write_executor_output"
"""The method that KFP calls when the component's function has returned, and that turns metadata into JSON."""

_log = logging.getLogger("trackhub")


def find_executor() -> Any | None:
    """The executor whose component is running: first of this thread, then of the main thread; None outside of KFP."""
    frames = sys._current_frames()
    for thread_id in (threading.get_ident(), threading.main_thread().ident):
        frame = frames.get(thread_id) if thread_id is not None else None
        for outer in _outwards(frame):
            # Only frames of KFP's own are looked into: in CPython before 3.13, to look at a frame's locals is to keep
            # all of them alive until it returns.
            if outer.f_globals.get("__name__") in _MODULES and "self" in outer.f_code.co_varnames:
                found = outer.f_locals.get("self")
                if type(found).__name__ == "Executor" and hasattr(found, "output_artifacts"):
                    return found
    return None


def before_output(callback: Callable[[], object], *, late: bool = False, executor: Any | None = None) -> bool:
    """Have a callback run, once, after the component's function has returned and before its output is written.

    What it raises is logged and harms neither the task nor the other callbacks. When the function raises, KFP writes
    no output and nothing is called.

    Args:
        callback: Called in the executor's thread. The same one is registered only once.
        late: Called after all that are not.
        executor: The executor, if it is known already.

    Returns:
        Whether an executor was found.
    """
    found = find_executor() if executor is None else executor
    if found is None or not hasattr(found, _WRITES):
        return False
    writes = getattr(found, _WRITES)
    if not isinstance(writes, _PreparedOutput):
        writes = _PreparedOutput(writes)
        setattr(found, _WRITES, writes)
    writes.add(callback, late=late)
    return True


class _PreparedOutput:
    """Stands before one executor's method that writes the output."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self._callbacks: list[Callable[[], object]] = []
        self._late: list[Callable[[], object]] = []

    def add(self, callback: Callable[[], object], *, late: bool) -> None:
        """Register a callback, unless it is registered already."""
        if callback not in self._callbacks and callback not in self._late:
            (self._late if late else self._callbacks).append(callback)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run the callbacks, and write the output whatever becomes of them."""
        try:
            for waiting in (self._callbacks, self._late):
                while waiting:
                    with _LogsErrors():
                        waiting.pop(0)()
        finally:
            written = self._original(*arguments, **named)
        return written


class _LogsErrors:
    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        _log.error("trackhub: something failed before the KFP component's output was written", exc_info=error)
        return True


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
