"""wandb's own process, `wandb-core`, which all runs of this process share: who needs it, and its end.

Apart from the backend because it outlives a run, and because wandb waits for it without a deadline: what hangs in
there ends when the process is ended.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from trackhub import BackendUnavailable

Result = TypeVar("Result")

_ENDING_SECONDS = 10.0
_lock = threading.RLock()
_current: Service | None = None


class Service:
    """One `wandb-core`, from the first run that needs it to the last, or until it dies."""

    def __init__(self) -> None:
        self._users = 0
        self._ended = False

    @classmethod
    def join(cls, staging: str) -> Service:
        """Need the service from now on; wandb starts it where it does not run yet.

        Args:
            staging: The directory where wandb keeps what tables are sent from.
        """
        global _current
        with _lock:
            if _current is None:
                # Of the training itself, if that uses wandb as well: its service is not ours.
                os.environ.pop("WANDB_SERVICE", None)  # noqa: TID251
                os.environ["WANDB_DATA_DIR"] = staging  # noqa: TID251
                # Its authors would be sent what goes wrong here.
                os.environ["WANDB_ERROR_REPORTING"] = "false"  # noqa: TID251
                _current = cls()
            _current._users += 1
            return _current

    @property
    def runs(self) -> bool:
        """Whether it is there; it may have died."""
        process = None if self._ended else _process()
        return process is not None and process.poll() is None

    def leave(self) -> None:
        """Need it no longer; the last one ends it."""
        with _lock:
            self._users -= 1
            if self._users == 0:
                self._end()

    def within(self, seconds: float, call: Callable[[], Result]) -> Result:
        """Call something that may wait for the service.

        Raises:
            BackendUnavailable: It took too long, or the service is gone. It is ended then, for all who use it.
        """
        from wandb.errors import Error
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
        from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

        try:
            return _in_time(seconds, call)
        except (HandleAbandonedError, MailboxClosedError, ConnectionError) as error:
            self._end()
            raise BackendUnavailable(f"wandb's process is gone: {type(error).__name__} {error}") from error
        except TimeoutError as error:
            self._end()
            raise BackendUnavailable(f"wandb's process did not answer in {seconds:g} s, and was ended") from error
        except (Error, ServerResponseError, OSError) as error:
            raise BackendUnavailable(f"wandb: {error}") from error

    def _end(self) -> None:
        global _current
        with _lock:
            if self._ended:
                return
            self._ended = True
            _current = None
            import wandb
            from wandb.sdk import wandb_setup

            setup = wandb_setup.singleton()
            process = _process()
            # A service that is gone cannot be told to go.
            with contextlib.suppress(ConnectionError, TimeoutError):
                if process is not None and (self._users or process.poll() is not None):
                    process.kill()
                    process.wait()
                _in_time(_ENDING_SECONDS, wandb.teardown)
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            setup.asyncer.join()


def _process() -> Any:
    """The `wandb-core` that wandb has started, if it has; wandb itself gives no way to end it."""
    from wandb.sdk import wandb_setup

    return getattr(getattr(wandb_setup.singleton()._connection, "_proc", None), "_process", None)


def _in_time(seconds: float, call: Callable[[], Result]) -> Result:
    """What the call gives, from a thread that is left behind after that time.

    Raises:
        TimeoutError: It took longer.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="trackhub-wandb", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]
