from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from priority import hurried_deliveries
from stage import Stage, staged

# How long an example takes on a busy machine says nothing.
settings.register_profile("trackhub", deadline=None)
settings.load_profile("trackhub")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path) as one:
        yield one


@pytest.fixture(autouse=True, scope="module")
def deliveries_are_hurried() -> Iterator[None]:
    with hurried_deliveries():
        yield


@pytest.fixture(autouse=True, scope="module")
def no_delivery_process_outlives_its_module() -> Iterator[None]:
    """Delivery processes wait a while for the next run; tests that count processes must not find another module's."""
    from trackhub.host import host

    yield
    host().stop(10.0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("TRACKHUB_LONG_TESTS"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
