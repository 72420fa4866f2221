"""Fixtures for pytest. Enable them in a conftest.py: `pytest_plugins = ["trackhub.testing.fixtures"]`.

Apart, and not an entry point of pytest's, because that would be imported in every run of pytest wherever trackhub is
installed, also where no test uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trackhub import plugins, ranks, settings
from trackhub.rundir import new_run_id
from trackhub.start import init
from trackhub.tracker import Tracker


@pytest.fixture
def tracker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tracker]:
    """A run that records below `tmp_path` and goes nowhere else, whatever the environment says.

    It is in force: `trackhub.current()` is this tracker. Read it back with `trackhub.testing.recorded(tracker)`.
    """
    with _without_a_word_of_the_environment():
        started = init(
            project="tests",
            name=request.node.name,
            run_id=new_run_id(),
            backends=(),
            dir=tmp_path / "trackhub",
            mode="offline",
        )
    with started:
        yield started


@contextmanager
def _without_a_word_of_the_environment() -> Iterator[None]:
    """While a run is started; for the test itself, all that is set stays so."""
    strangers = {*ranks.RANK_VARIABLES, *(sign for signs in plugins.CONTEXTS.values() for sign in signs)}
    with pytest.MonkeyPatch.context() as patch:
        for name in list(settings.environment()):
            if name in strangers or name.startswith(settings.PREFIX):
                patch.delenv(name)
        yield
