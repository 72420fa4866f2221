"""Fixtures for pytest. Enable them in a conftest.py: `pytest_plugins = ["trackhub.testing.fixtures"]`.

Apart, and not an entry point of pytest's, because that would be imported in every run of pytest wherever trackhub is
installed, also where no test uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trackhub.rundir import new_run_id
from trackhub.start import init
from trackhub.tracker import Tracker


@pytest.fixture
def tracker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tracker]:
    """A run that records below `tmp_path` and goes nowhere else, whatever the environment says.

    It is in force: `trackhub.current()` is this tracker. Read it back with `trackhub.testing.recorded(tracker)`.
    """
    with init(
        project="tests",
        name=request.node.name,
        run_id=new_run_id(),
        backends=(),
        dir=tmp_path / "trackhub",
        mode="offline",
    ) as started:
        yield started
