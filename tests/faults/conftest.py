"""The servers that the tests of faults share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from real_servers import REQUIRED_VARIABLE, MlflowOnPostgres, NotInstalled, running_everything


@pytest.fixture(scope="session")
def mlflow_on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowOnPostgres]:
    """`mlflow server` on PostgreSQL and an object store; one for all tests, as starting it takes seconds."""
    pytest.importorskip("mlflow")
    context = running_everything(tmp_path_factory.mktemp("servers"))
    try:
        served = context.__enter__()
    except NotInstalled as missing:
        if os.environ.get(REQUIRED_VARIABLE) == "required":
            raise
        pytest.skip(str(missing))
    yield served
    context.__exit__(None, None, None)
