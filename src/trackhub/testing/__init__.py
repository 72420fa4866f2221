"""For the tests of users and of plugin authors; nothing that runs in training imports it.

    class TestLab(BackendConformance): ...          every promise a backend makes, as tests
    recorded(tracker).metrics["loss"]               what a run in a test has recorded
    MemoryBackend, FlakyBackend                     a backend to look into, and one that fails as told
    pytest_plugins = ["trackhub.testing.fixtures"]  the fixture `tracker`

Names are imported when they are first used: only the conformance suite and the fixtures need pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trackhub.testing.conformance import BackendConformance
    from trackhub.testing.flaky import FlakyBackend, Script
    from trackhub.testing.memory import MemoryBackend
    from trackhub.testing.recorded import recorded
    from trackhub.testing.shown import Point, Shown

_home_of = {
    "BackendConformance": "conformance",
    "FlakyBackend": "flaky",
    "MemoryBackend": "memory",
    "Point": "shown",
    "Script": "flaky",
    "Shown": "shown",
    "recorded": "recorded",
}

__all__ = [
    "BackendConformance",
    "FlakyBackend",
    "MemoryBackend",
    "Point",
    "Script",
    "Shown",
    "recorded",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _home_of:
        raise AttributeError(f"module 'trackhub.testing' has no attribute {name!r}")
    if name == "BackendConformance":
        import pytest

        # Otherwise a failed assertion of the suite would not say what was compared.
        pytest.register_assert_rewrite("trackhub.testing.conformance")
    value = getattr(importlib.import_module(f"trackhub.testing.{_home_of[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
