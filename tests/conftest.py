from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import Stage, staged


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path) as one:
        yield one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("TRACKHUB_LONG_TESTS"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="set TRACKHUB_LONG_TESTS to run it"))
