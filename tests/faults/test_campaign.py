"""The campaign of kills in short: what `python tests/faults/campaign.py` does with hundreds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from campaign import BACKENDS, Campaign
from neptune_server import neptune_server
from real_servers import MlflowOnPostgres

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

KILLS = 24


def test_kills_lose_nothing_double_nothing_and_leave_no_run_behind(
    mlflow_on_postgres: MlflowOnPostgres, tmp_path: Path
) -> None:
    with neptune_server() as neptune:
        # What is sent twice is then there twice.
        neptune.strict_steps = False
        totals = Campaign(mlflow_on_postgres, neptune, tmp_path, KILLS, seed=7, offline_trainings=3).run(at_once=2)
    assert totals.wrong == Counter(), totals
    assert totals.kills.total() >= KILLS
    assert {f"{backend} delivery" for backend in BACKENDS} <= totals.kills.keys()
