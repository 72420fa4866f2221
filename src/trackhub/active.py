"""The runs that are active in this process: which one is in force, and what happens to them at a fork or at the exit.

Apart from the tracker because it is about the process: one exit handler, one exception hook and one fork handler for
all runs, however many there are.
"""

from __future__ import annotations

import atexit
import contextvars
import os
import sys
from types import TracebackType
from typing import Protocol

from trackhub.records import EndStatus


class ActiveRun(Protocol):
    """What this module needs of a tracker."""

    @property
    def finished(self) -> bool:
        """Whether the run has been finished in this process."""
        ...

    def end_at_exit(self, status: EndStatus, error: str | None) -> None:
        """Finish, because the process ends."""
        ...

    def continue_after_fork(self) -> None:
        """Go on in a forked child."""
        ...


_in_force: contextvars.ContextVar[ActiveRun | None] = contextvars.ContextVar("trackhub_in_force", default=None)
_runs: dict[int, ActiveRun] = {}
"""The runs that have not finished, in the order they started, by `id()`: also one whose tracker nobody holds any more
is ended when the process ends."""
_uncaught: BaseException | None = None
_watching_exceptions = False


def enter(run: ActiveRun) -> ActiveRun | None:
    """Put a run in force; gives back the one that was."""
    global _watching_exceptions
    if not _watching_exceptions:
        _watching_exceptions = True
        _watch_exceptions()
    earlier = _in_force.get()
    _runs[id(run)] = run
    _in_force.set(run)
    return earlier


def leave(run: ActiveRun, earlier: ActiveRun | None) -> None:
    """Take a run out of force, and put the earlier one back in."""
    _runs.pop(id(run), None)
    if _in_force.get() is run:
        _in_force.set(earlier)


def in_force() -> ActiveRun | None:
    """The run in force in this context; in a thread that was started without one, the process's last."""
    run = _in_force.get()
    if run is not None and not run.finished:
        return run
    return next((run for run in reversed(list(_runs.values())) if not run.finished), None)


def end_of(error: BaseException | None) -> tuple[EndStatus, str | None]:
    """How a run ends that this exception ended: Ctrl-C kills it, `sys.exit()` finishes it, others fail it."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "finished", None
    if isinstance(error, KeyboardInterrupt):
        return "killed", "KeyboardInterrupt"
    return "failed", f"{type(error).__name__}: {error}"[:2000]


def _watch_exceptions() -> None:
    """Remember the exception that ends the process, so that runs outside a `with` block end as failed."""
    earlier = sys.excepthook

    def remember(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        global _uncaught
        # At a prompt an exception does not end the process.
        _uncaught = None if hasattr(sys, "ps1") else error
        earlier(kind, error, trace)

    sys.excepthook = remember


@atexit.register
def _end_all() -> None:
    for run in list(_runs.values()):
        if not run.finished:
            run.end_at_exit(*end_of(_uncaught))


def _continue_after_fork() -> None:
    for run in list(_runs.values()):
        run.continue_after_fork()


os.register_at_fork(after_in_child=_continue_after_fork)
