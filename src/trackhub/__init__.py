"""trackhub: experiment tracking that never gets in the way of training.

    with trackhub.init(project="digits", params={"lr": 0.1}, backends=["mlflow", "tensorboard"]) as tracker:
        tracker.log_metrics({"train/loss": 0.3}, step=0)

Names are imported when they are first used: `import trackhub` reads nothing and starts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trackhub._version import VERSION as __version__
    from trackhub.backend import Backend, BackendOptions, OpenedRun, Rewind, RunInfo, VendorVariable, hookimpl
    from trackhub.errors import (
        BackendError,
        BackendUnavailable,
        CannotReadBack,
        JournalError,
        MissingPackageError,
        NoActiveRunError,
        RecordRejected,
        RunFinishedError,
        SettingsError,
        StateLost,
        TrackhubError,
        UnknownBackendError,
    )
    from trackhub.processor import Processor
    from trackhub.report import DeliveryReport
    from trackhub.start import current, init
    from trackhub.tracker import Tracker

_HOMES = {
    "start": ("current", "init"),
    "tracker": ("Tracker",),
    "report": ("DeliveryReport",),
    "backend": ("Backend", "BackendOptions", "OpenedRun", "Rewind", "RunInfo", "VendorVariable", "hookimpl"),
    "processor": ("Processor",),
    "errors": (
        "BackendError",
        "BackendUnavailable",
        "CannotReadBack",
        "JournalError",
        "MissingPackageError",
        "NoActiveRunError",
        "RecordRejected",
        "RunFinishedError",
        "SettingsError",
        "StateLost",
        "TrackhubError",
        "UnknownBackendError",
    ),
}
_home_of = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Backend",
    "BackendError",
    "BackendOptions",
    "BackendUnavailable",
    "CannotReadBack",
    "DeliveryReport",
    "JournalError",
    "MissingPackageError",
    "NoActiveRunError",
    "OpenedRun",
    "Processor",
    "RecordRejected",
    "Rewind",
    "RunFinishedError",
    "RunInfo",
    "SettingsError",
    "StateLost",
    "Tracker",
    "TrackhubError",
    "UnknownBackendError",
    "VendorVariable",
    "__version__",
    "current",
    "hookimpl",
    "init",
]


def __getattr__(name: str) -> Any:
    import importlib
    import signal

    if name == "__version__":
        return importlib.import_module("trackhub._version").VERSION
    if name not in _home_of:
        raise AttributeError(f"module 'trackhub' has no attribute {name!r}")
    # Signals wait: what a handler raises in the middle of loading a package in C, as Ctrl-C does, may leave half of it,
    # and with msgspec 0.22 the process then ends by a segmentation fault.
    faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
    try:
        value = getattr(importlib.import_module(f"trackhub.{_home_of[name]}"), name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
