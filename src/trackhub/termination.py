"""SIGTERM: the runs of this process end as killed, and what is journaled is delivered in the grace that is left.

Apart from `active.py` because a signal comes in the middle of anything, also of our own code, and may find handlers of
others in place: theirs still run, and the process ends as it would have without us.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from trackhub import active
from trackhub.host import host

INLINE_PATIENCE_SECONDS = 1.0
"""How long a delivery that SIGTERM has interrupted in the main thread is let go on first."""


def watch() -> None:
    """Act on SIGTERM from now on.

    Where it is ignored, or handled by something outside of Python, that stays so. Only the main thread can do this:
    where other threads alone start runs, these end as those of a process that vanished.
    """
    earlier = signal.getsignal(signal.SIGTERM)
    if isinstance(earlier, _Handler) or earlier in (None, signal.SIG_IGN):
        return
    if earlier is signal.SIG_DFL and _is_handled():
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _Handler(earlier))


class _Handler:
    """What happens on SIGTERM.

    Args:
        earlier: What would have happened.
    """

    def __init__(self, earlier: Any) -> None:
        self.earlier = earlier
        self._process_id = os.getpid()
        self._ending = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:
            # A forked child; the runs are its parent's.
            signal.signal(number, self.earlier)
            os.kill(os.getpid(), number)
            return
        active.note_termination()
        if host().delivers_below and (active.seconds_since_termination() or 0.0) < INLINE_PATIENCE_SECONDS:
            # What a handler raises would be taken for an error of the backend, and the rest could not be delivered.
            with contextlib.suppress(RuntimeError):
                _put_off()
                return
        if callable(self.earlier):
            # It knows how this process ends: at once, or after the checkpoint of this epoch.
            self.earlier(number, frame)
        elif not self._ending:
            self._ending = True
            try:
                active.end_runs(*active.end_of(None))
            finally:
                _die(number)


def _is_handled() -> bool:
    """Whether there is a handler for SIGTERM, also one that C code has put in place: Python does not know of those."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _put_off() -> None:
    """Have SIGTERM come again when the delivery in this thread is done, or when there is no more patience with it.

    Raises:
        RuntimeError: There can be no more threads.
    """
    again = threading.Timer(INLINE_PATIENCE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True
    again.start()

    def now() -> None:
        again.cancel()
        os.kill(os.getpid(), signal.SIGTERM)

    host().after_delivery(now)


def _die(number: int) -> None:
    """End as by the signal, so that whoever waits for this process sees what it would have seen without us."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # Process 1 of a container is not ended by its own signals.
    os._exit(128 + number)


_masks = threading.local()


def _hold_back() -> None:
    """Before a fork: a child that is told to end before it has left our handler would forget about it (CPython drops
    the signals that come first thing in a child), and whoever waits for it would wait for ever."""
    if isinstance(signal.getsignal(signal.SIGTERM), _Handler):
        _masks.before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_through() -> None:
    mask = _masks.__dict__.pop("before_fork", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _leave_to_parent() -> None:
    """In a forked child: as if we had never been there, also where C code would keep our handler waiting."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, _Handler):
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, handler.earlier)
    _let_through()


os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_leave_to_parent)
