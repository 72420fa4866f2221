"""What launchers say about a process, and what can be believed: by the variables that they really set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trackhub
from trackhub import ranks
from trackhub.errors import SettingsError
from trackhub.ranks import Place, detect
from trackhub.rundir import RunDirectory, check_run_id

STANDALONE = {
    # As torch.distributed.run 2.13 --standalone --nproc-per-node 2 sets them.
    "RANK": "1",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "35775",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "0",
    "TORCHELASTIC_RUN_ID": "81b67786-a8de-40cc-be8c-45c0ca32cf7f",
    "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_309r/81b67786-a8de_khul/attempt_0/1/error.json",
}
PLAIN_TORCHRUN = {
    **STANDALONE,
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_oje6/none_8vqb/attempt_0/1/error.json",
}
TWO_NODES = {**PLAIN_TORCHRUN, "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "4", "RANK": "3", "GROUP_RANK": "1"}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "8652",
    "SLURM_CLUSTER_NAME": "north",
    "SLURM_SUBMIT_HOST": "login1",
    "SLURM_JOB_USER": "ada",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
STEP = {**BATCH_SCRIPT, "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
INTERACTIVE = {**BATCH_SCRIPT, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "34889"}
OPEN_MPI_4 = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_MCA_ess_base_jobid": "1531576321",
}
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "PMIX_NAMESPACE": "prterun-host-17@1",
}


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this process had just been started, by nobody."""
    import os

    for name in list(os.environ):
        if name in {variable for variables in ranks._VARIABLES for variable in variables}:
            monkeypatch.delenv(name)
    ranks.forget_runs_begun()
    yield
    ranks.forget_runs_begun()


@pytest.mark.parametrize(
    ("environment", "rank", "count", "local_rank"),
    [
        (STANDALONE, 1, 2, 1),
        ({**STANDALONE, **STEP}, 1, 2, 1),
        ({**STANDALONE, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, 0, 1, 0),
        ({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "job-master-0"}, 3, 4, None),
        ({"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "h:1234"}, 1, 2, None),
        ({"JAX_PROCESS_INDEX": "1", "JAX_PROCESS_COUNT": "2"}, 1, 2, None),
        (OPEN_MPI_4, 2, 4, 0),
        (OPEN_MPI_5, 2, 4, None),
        ({**OPEN_MPI_4, **BATCH_SCRIPT}, 2, 4, 0),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "1"}, 1, 2, 1),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2, None),
        (STEP, 5, 8, 1),
        # PMI of srun, with one rank an application; the step has more.
        ({**STEP, "PMI_RANK": "0", "PMI_SIZE": "1"}, 5, 8, 1),
    ],
)
def test_the_place_is_what_the_innermost_launcher_says(
    environment: Mapping[str, str], rank: int, count: int, local_rank: int | None
) -> None:
    found = detect(environment)
    assert found is not None
    assert (found.rank, found.count, found.local_rank) == (rank, count, local_rank)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH_SCRIPT,
        INTERACTIVE,
        {**STEP, "SLURM_STEP_ID": "4294967291"},
        {**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"RANK": "gold", "WORLD_SIZE": "4"},
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "-1", "WORLD_SIZE": "4"},
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "\u0661", "WORLD_SIZE": "\u0662"},
        {"RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_one_process_is_no_rank(environment: Mapping[str, str]) -> None:
    assert detect(environment) is None


def job(environment: Mapping[str, str], **changed: str) -> str | None:
    found = detect({**environment, **changed})
    assert found is not None
    return found.job


@pytest.mark.parametrize("environment", [STANDALONE, PLAIN_TORCHRUN])
def test_a_job_of_torchrun_is_the_same_for_all_ranks_and_restarts_and_another_for_another_start(
    environment: dict[str, str],
) -> None:
    mine = job(environment)
    assert mine is not None
    check_run_id(mine)
    again = environment["TORCHELASTIC_ERROR_FILE"].replace("attempt_0/1", "attempt_2/0")
    changed = {"RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "2", "MASTER_PORT": "41000"}
    assert job(environment, **changed, TORCHELASTIC_ERROR_FILE=again) == mine
    other = environment["TORCHELASTIC_ERROR_FILE"].replace("torchelastic_", "torchelastic_x")
    name = environment["TORCHELASTIC_RUN_ID"].replace("81b6", "91b6")
    assert job(environment, TORCHELASTIC_ERROR_FILE=other, TORCHELASTIC_RUN_ID=name) != mine


def test_a_job_of_slurm_is_a_step_of_a_job_of_a_cluster() -> None:
    mine = job(STEP)
    assert mine is not None
    assert mine.startswith("slurm-8652.1-")
    check_run_id(mine)
    assert job(STEP, SLURM_PROCID="0", SLURM_LOCALID="0") == mine
    others = {job(STEP, SLURM_STEP_ID="2"), job(STEP, SLURM_JOB_ID="8653"), job(STEP, SLURM_CLUSTER_NAME="south")}
    assert len({mine, *others}) == 4
    # A requeued job has the same number, and goes on with the same run.
    assert job(STEP, SLURM_RESTART_COUNT="1") == mine


def test_two_starts_of_torchrun_on_several_nodes_of_one_step_share_a_run_only_by_name() -> None:
    assert job({**TWO_NODES, **STEP}) == job({**TWO_NODES, **STEP}, RANK="0", SLURM_PROCID="0")
    assert job({**TWO_NODES, **STEP}) != job({**TWO_NODES, **STEP}, TORCHELASTIC_RUN_ID="second")


def test_a_job_of_open_mpi_is_known_by_its_port() -> None:
    mine = job(OPEN_MPI_4)
    assert mine is not None
    check_run_id(mine)
    assert job(OPEN_MPI_4, OMPI_COMM_WORLD_RANK="0") == mine
    assert job(OPEN_MPI_4, OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1:34912") != mine


@pytest.mark.parametrize(
    "environment",
    [
        # The same for every job that is started like this, at whatever time.
        TWO_NODES,
        {**TWO_NODES, **BATCH_SCRIPT},
        {**TWO_NODES, "TORCHELASTIC_RUN_ID": "100"},
        {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"},
        {"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "h:1234"},
        {"PMI_RANK": "1", "PMI_SIZE": "2"},
        {"PMI_RANK": "1", "PMI_SIZE": "2", **BATCH_SCRIPT},
        OPEN_MPI_5,
    ],
)
def test_what_may_be_said_of_another_job_makes_no_run_id(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job(environment) is None
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="set TRACKHUB_RUN_ID to the same new value for all of them"):
        trackhub.init(dir=tmp_path, ranks="all", mode="offline")
    assert not list(tmp_path.iterdir())
    with trackhub.init(dir=tmp_path, ranks="all", mode="offline", run_id="given") as tracker:
        assert tracker.id == "given"


@given(st.dictionaries(st.sampled_from(sorted({**STANDALONE, **STEP, **OPEN_MPI_4})), st.text(max_size=200)))
def test_no_environment_is_too_odd(odd: dict[str, str]) -> None:
    found = detect({**STANDALONE, **STEP, **OPEN_MPI_4, **odd})
    if found is not None:
        assert 0 <= found.rank < found.count
        if found.job is not None:
            check_run_id(found.job)


def test_runs_of_one_process_are_counted_so_that_all_ranks_come_to_the_same_ids() -> None:
    place = Place(0, 2, "RANK", job="job")
    assert [ranks.next_run_id(place) for _ in range(3)] == ["job", "job-2", "job-3"]
    ranks.forget_runs_begun()
    assert ranks.next_run_id(place, is_taken={"job", "job-2"}.__contains__) == "job-3"
    assert ranks.next_run_id(Place(0, 2, "RANK")) is None


# --- in one process


def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], **more: Any) -> Any:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return trackhub.init(dir=tmp_path, mode=more.pop("mode", "offline"), **more)


def test_by_default_other_ranks_write_nothing_and_check_what_rank_0_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(tmp_path, monkeypatch, STANDALONE, params={"lr": 0.1}) as tracker:
        tracker.log_metrics({"loss": 0.5})
        tracker.log_artifact("nowhere")
        assert trackhub.current() is tracker
        assert tracker.child("fold").finish()
    assert tracker.finish()
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingsError, match="no backend is called"):
        start(tmp_path, monkeypatch, STANDALONE, backends="mlfow")


def test_by_default_rank_0_is_a_run_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path, monkeypatch, {**STEP, "SLURM_PROCID": "0"}, params={"lr": 0.1}) as tracker:
        tracker.log_metrics({"loss": 0.5})
    # Nothing is taken from the job: a shell in it may start one training after the other.
    assert "slurm" not in tracker.id
    assert RunDirectory(tracker.directory).end()[0] == "finished"


def test_what_torchrun_starts_again_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_rank = {**STANDALONE, "RANK": "0"}
    with start(tmp_path, monkeypatch, first_rank) as first, start(tmp_path, monkeypatch, first_rank) as second:
        assert second.id == f"{first.id}-2"
        # What rank 0 starts itself, with its variables, is not its run, as long as that goes on.
        ranks.forget_runs_begun()
        with start(tmp_path, monkeypatch, first_rank) as below:
            assert below.id == f"{first.id}-3"
    ranks.forget_runs_begun()
    with start(tmp_path, monkeypatch, first_rank) as again:
        assert again.id == first.id


def test_the_setting_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="ranks = 'some' is not accepted"):
        start(tmp_path, monkeypatch, {}, ranks="some")
    monkeypatch.setenv("TRACKHUB_RANKS", "ALL")
    with pytest.raises(SettingsError, match="from TRACKHUB_RANKS"):
        start(tmp_path, monkeypatch, {})


def test_without_a_launcher_all_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path, monkeypatch, {}, ranks="all", params={"lr": 1}) as tracker:
        tracker.log_metrics({"loss": 0.5})
    assert RunDirectory(tracker.directory).end()[0] == "finished"


@pytest.mark.parametrize("bad", ["", "a\nb", 3, None])
def test_a_rank_refuses_the_names_that_rank_0_refuses(
    bad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(tmp_path, monkeypatch, STANDALONE, ranks="all") as tracker:
        with pytest.raises((TypeError, ValueError), match="metric name"):
            tracker.log_metrics({bad: 1.0})
        with pytest.raises((TypeError, ValueError), match="text"):
            tracker.log_text(bad, "x")
        with pytest.raises(TypeError, match="takes a mapping"):
            tracker.log_metrics(3)
        tracker.log_metrics({"x": 4.5}, step=1)
