"""Every error trackhub raises on purpose.

Kept apart so that each layer, from a plugin to the command line, can name an error without importing machinery.

    TrackhubError
    +-- SettingsError (ValueError)      a setting is wrong; raised in init(), before GPU time is spent
    |   +-- UnknownBackendError         no backend has that name
    |   +-- MissingPackageError         the backend's vendor package is not installed
    +-- NoActiveRunError (RuntimeError) current() was called and no run is in force
    +-- RunFinishedError (RuntimeError) something was logged to a run that has finished
    +-- RunNotFoundError (LookupError)  no run is where the caller looked, or several could be meant
    +-- JournalError                    a journal is of an unknown version, or cannot be opened
    +-- BackendError                    what a backend raises on purpose; training code never sees these
        +-- BackendUnavailable          not now: the delivery keeps its place and tries again
        +-- RecordRejected              never: the delivery sets that record aside and goes on
        +-- StateLost                   what was delivered is gone: the delivery starts over from the first record
        +-- CannotReadBack              what was delivered cannot be read back: there is nothing to verify it with

A value that cannot be logged raises a plain TypeError or ValueError at the call.
"""


class TrackhubError(Exception):
    """The root of every error trackhub raises on purpose."""


class SettingsError(TrackhubError, ValueError):
    """A setting is wrong. The message names the setting, where it came from, and what to write instead."""


class UnknownBackendError(SettingsError):
    """No installed backend has the name that was asked for."""


class MissingPackageError(SettingsError):
    """A backend was chosen whose vendor package is not installed. The message has the pip line."""


class NoActiveRunError(TrackhubError, RuntimeError):
    """`trackhub.current()` was called while no run is in force."""


class RunFinishedError(TrackhubError, RuntimeError):
    """Something was logged to a run that has already finished."""


class RunNotFoundError(TrackhubError, LookupError):
    """No run is where the caller looked, or several could be meant. The message lists those that are there."""


class JournalError(TrackhubError):
    """A journal cannot be opened, or was written by a version this one does not know."""


UNREADABLE = (TrackhubError, OSError, ValueError, OverflowError)
"""What reading a run directory raises that is damaged, foreign, or of a newer version."""


class BackendError(TrackhubError):
    """What a backend raises on purpose. The delivery handles both kinds; training code never sees them."""


class BackendUnavailable(BackendError):
    """The backend cannot take data now. The delivery keeps its place, backs off and tries again, for ever.

    Args:
        message: What happened, for the delivery report.
        retry_after_seconds: How long the backend asked to be left alone, when it said so.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RecordRejected(BackendError):
    """The backend will never take this record (or one of this batch). It is set aside and counted, the rest goes on.

    Raised for a batch of several records, it makes the delivery halve the batch until the bad record is alone.
    """


class StateLost(BackendError):
    """What the backend was given before is no longer there. The delivery starts over from the journal's beginning."""


class CannotReadBack(BackendError):
    """What the backend was given cannot be read back, whether it is there or not. The message says why."""
