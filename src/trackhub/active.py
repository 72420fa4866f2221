"""The runs that are active in this process: which one is in force, and what happens to them at a fork or at the exit.

Apart from the tracker because it is about the process: one exit handler, one exception hook and one fork handler for
all runs, however many there are. What SIGTERM does is in `termination.py`.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from trackhub import redaction
from trackhub.records import EndStatus

LONGEST_ERROR = 2_000
"""How many characters of an exception are kept with the run that it ended."""
_LONGEST_LOOKED_AT = 10 * LONGEST_ERROR
"""How many are searched for secrets: an exception may hold a whole file, and a process that ends has little time."""
_log = logging.getLogger("trackhub")


class ActiveRun(Protocol):
    """What this module needs of a tracker."""

    @property
    def finished(self) -> bool:
        """Whether the run has been finished in this process."""
        ...

    def end_records(self, status: EndStatus, error: str | None) -> None:
        """Write the end of the run into its journal, without waiting for anything."""
        ...

    def end(self, status: EndStatus, error: str | None) -> None:
        """Finish, because the process ends."""
        ...

    def continue_after_fork(self) -> None:
        """Go on in a forked child."""
        ...


_in_force: contextvars.ContextVar[ActiveRun | None] = contextvars.ContextVar("trackhub_in_force", default=None)
_runs: dict[int, ActiveRun] = {}
"""The runs that have not finished, in the order they started, by `id()`: also one whose tracker nobody holds any more
is ended when the process ends."""
_unsettled: dict[int, ActiveRun] = {}
"""The runs that have finished, and whose deliveries are waited for, or will be when the process ends."""
_uncaught: BaseException | None = None
_terminated_at: float | None = None
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


def wait_at_exit(run: ActiveRun) -> None:
    """Have the deliveries of a run that has finished waited for when the process ends."""
    _unsettled[id(run)] = run


@contextmanager
def settling(run: ActiveRun) -> Iterator[None]:
    """While a run is finished and its deliveries are waited for.

    Where a handler of SIGTERM ends that with an exception, the waiting is gone on with when the process ends.
    """
    _unsettled[id(run)] = run
    try:
        yield
    except BaseException:
        if _terminated_at is None:
            _unsettled.pop(id(run), None)
        raise
    _unsettled.pop(id(run), None)


def all_runs() -> list[ActiveRun]:
    """The runs that have not finished, and then those whose deliveries are still waited for; each of them once."""
    return list({**_runs, **_unsettled}.values())


def note_termination() -> None:
    """The process has been told to end: its runs end as killed, whatever it still does."""
    global _terminated_at
    if _terminated_at is None:
        _terminated_at = time.monotonic()


def seconds_since_termination() -> float | None:
    """How long ago the process was told to end; None if it was not."""
    return None if _terminated_at is None else time.monotonic() - _terminated_at


def in_force() -> ActiveRun | None:
    """The run in force in this context; in a thread that was started without one, the process's last."""
    run = _in_force.get()
    if run is not None and not run.finished:
        return run
    return next((run for run in reversed(list(_runs.values())) if not run.finished), None)


def end_of(error: BaseException | None) -> tuple[EndStatus, str | None]:
    """How a run ends that this ended: Ctrl-C and SIGTERM kill it, `sys.exit()` finishes it, an exception fails it."""
    if _terminated_at is not None or (isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM):
        return "killed", "SIGTERM"
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "finished", None
    if isinstance(error, KeyboardInterrupt):
        return "killed", "KeyboardInterrupt"
    return "failed", _described(error)


def _described(error: BaseException) -> str:
    """What an exception says, as a text that can be stored, whatever the exception is made of."""
    kind = type(error).__name__
    try:
        text = f"{kind}: {error}"
    except Exception:  # noqa: BLE001
        # Its __str__ is the user's code.
        text = f"{kind} (it cannot be written as text)"
    # A file name that is not UTF-8 comes with lone surrogates.
    text = text[:_LONGEST_LOOKED_AT].encode(errors="backslashreplace").decode()
    # In this order: of a secret that is cut in two, the first half would not be known for one.
    return redaction.hide(text)[:LONGEST_ERROR]


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
    end = end_of(_uncaught)
    try:
        end_runs(*end)
    except BaseException:
        # So does a handler of SIGTERM that ends a process which is ending already.
        if _terminated_at is not None:
            end_runs(*end)
        raise


def end_runs(status: EndStatus, error: str | None) -> None:
    """End all runs of the process: first their records, then the waiting for their deliveries."""
    runs = all_runs()
    _for_each(runs, lambda run: run.end_records(status, error))
    _for_each(runs, lambda run: run.end(status, error))


def _for_each(runs: list[ActiveRun], do: Callable[[ActiveRun], None]) -> None:
    """Do something for each run, also where it fails for one of them."""
    terminated_before = _terminated_at
    for run in runs:
        try:
            do(run)
        except Exception as problem:
            if _terminated_at != terminated_before:
                # Raised by a handler of SIGTERM, not by the run.
                raise
            _log.error(
                "trackhub: %r could not be ended: %s. What it has logged is in its directory; the other runs are "
                "ended all the same.",
                run,
                _described(problem),
            )


def _continue_after_fork() -> None:
    global _terminated_at
    # The parent waits for what it has finished; what it was told is not the child's.
    _unsettled.clear()
    _terminated_at = None
    for run in list(_runs.values()):
        run.continue_after_fork()


os.register_at_fork(after_in_child=_continue_after_fork)
