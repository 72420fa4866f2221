"""The place of this process among those that a launcher started: its rank, and an id that all of them come to alone.

Apart because launchers are many and say little: what each variable means, and which of them can be believed, is known
here and nowhere else. Nothing here talks to another process. The environment is passed in.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from trackhub.errors import SettingsError
from trackhub.records import ParamsLogged, Record, TagsSet

RecordT = TypeVar("RecordT", bound=Record)

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_DIGEST_LENGTH = 10
_LONGEST_WORDS = 80
# A batch script, or a shell that people type into: one process, whatever has been allocated.
_STEPS_OF_SHELLS = ("4294967290", "4294967291")


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started with it.

    Args:
        rank: From 0.
        count: How many there are.
        variable: What says so, for messages.
        local_rank: The rank among those of the same machine; None if nothing tells.
        job: A word that all of them, and only they, come to by themselves, and after a restart again; None if what the
            launcher says may be said of another job as well.
        restarts: Whether the launcher starts failed processes again by itself.
    """

    rank: int
    count: int
    variable: str
    local_rank: int | None = None
    job: str | None = None
    restarts: bool = False

    @property
    def prefix(self) -> str:
        """What the names of this process's metrics begin with: nothing for rank 0, `rank3/` for rank 3."""
        return f"rank{self.rank}/" if self.rank else ""


_VARIABLES: tuple[tuple[str, str, str], ...] = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", ""),
    ("JAX_PROCESS_INDEX", "JAX_PROCESS_COUNT", ""),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
"""Of rank, number and local rank; the innermost launcher first, for torchrun may run below MPI or SLURM. JAX finds
SLURM and MPI by their own variables; its own are a convention of people who pass them to `jax.distributed.initialize`.
SLURM's number is that of the step: SLURM_NTASKS, and a SLURM_PROCID of 0, are there in a batch script too."""
RANK_VARIABLES = tuple(variable for variable, _, _ in _VARIABLES)
"""Without these a process stands alone."""


def detect(environment: Mapping[str, str]) -> Place | None:
    """The place of this process; None if no launcher started it beside others, or might start it again.

    Args:
        environment: The process's variables.
    """
    for variable, count_variable, local_variable in _VARIABLES:
        rank, count = _number(environment.get(variable)), _number(environment.get(count_variable))
        if rank is None or count is None or rank >= count or (variable == "SLURM_PROCID" and _is_no_step(environment)):
            continue
        restarts = variable == "RANK" and "TORCHELASTIC_RUN_ID" in environment
        # Alone among the inner launcher's, it may be one of the outer launcher's.
        if count > 1 or restarts:
            return Place(rank, count, variable, _number(environment.get(local_variable)), _job(environment), restarts)
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


def _is_no_step(environment: Mapping[str, str]) -> bool:
    return environment.get("SLURM_STEP_ID", "") in ("", *_STEPS_OF_SHELLS)


def _job(environment: Mapping[str, str]) -> str | None:
    """What tells this job from every other, also at the same addresses and under the same name another day."""
    for source in (_torch_job, _slurm_job, _mpi_job):
        if found := source(environment):
            words, *rest = found
            digest = hashlib.blake2s("\0".join(found).encode(errors="replace")).hexdigest()[:_DIGEST_LENGTH]
            return f"{_UNSAFE.sub('-', words).strip('.-')[:_LONGEST_WORDS]}-{digest}" if rest else words
    return None


def _torch_job(environment: Mapping[str, str]) -> list[str] | None:
    name = environment.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    try:
        # Made by `--standalone`, or by somebody who means one job.
        return ["torchrun", "rendezvous", str(UUID(name))]
    except ValueError:
        pass
    # The default name is "none", and people write down names of their own once and for all. With one agent its
    # directory of logs tells; it has a random name, which stays when processes are started again.
    folder = PurePosixPath(environment.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent
    if environment.get("GROUP_WORLD_SIZE") == "1" and folder.name.startswith("attempt_"):
        return ["torchrun", "agent", str(folder.parent)]
    if step := _slurm_job(environment):
        return [*step, name]
    return None


def _slurm_job(environment: Mapping[str, str]) -> list[str] | None:
    job, step = environment.get("SLURM_JOB_ID"), environment.get("SLURM_STEP_ID")
    if not job or _is_no_step(environment):
        return None
    # Two clusters count the same numbers, and may share a server.
    where = [environment.get(name, "") for name in ("SLURM_CLUSTER_NAME", "SLURM_SUBMIT_HOST", "SLURM_JOB_USER")]
    return [f"slurm-{job}.{step}", *where]


def _mpi_job(environment: Mapping[str, str]) -> list[str] | None:
    # With the port of mpirun. What Open MPI 5 and Hydra say (a host and a process id) comes again in every container.
    uri = environment.get("OMPI_MCA_orte_hnp_uri")
    return ["openmpi", uri, environment.get("OMPI_MCA_ess_base_jobid", "")] if uri else None


def check_agreement(place: Place) -> None:
    """Check that all processes come to the same run without being given one.

    Raises:
        SettingsError: They cannot.
    """
    if place.job is None and place.count > 1:
        raise SettingsError(
            f"ranks = 'all', and this is rank {place.rank} of {place.count} (by {place.variable}), but nothing that "
            "its launcher says is this job's alone, so the processes cannot agree on a run: set TRACKHUB_RUN_ID to the "
            "same new value for all of them, such as the scheduler's job id, or pass init(run_id=...)"
        )


_begun: Counter[str] = Counter()
"""Job -> number of runs that this process has begun in it."""


def next_run_id(place: Place, is_taken: Callable[[str], bool] = lambda _: False) -> str | None:
    """The id of the next run of this process's job: the same in every process that has begun as many.

    Args:
        place: The process's place.
        is_taken: Whether a run cannot be meant. All processes must come to the same answer.
    """
    if place.job is None:
        return None
    while True:
        _begun[place.job] += 1
        count = _begun[place.job]
        run_id = place.job if count == 1 else f"{place.job}-{count}"
        if not is_taken(run_id):
            return run_id


def forget_runs_begun() -> None:
    """Begin to count anew, as a process that was just started would."""
    _begun.clear()


def own_name(record: RecordT, prefix: str) -> RecordT:
    """A record under the name that tells whose it is.

    Args:
        record: Any record that is not metrics.
        prefix: As `Place.prefix` gives it.
    """
    changed: dict[str, Any] = {}
    if isinstance(record, ParamsLogged):
        changed["params"] = {prefix + name: value for name, value in record.params.items()}
    elif isinstance(record, TagsSet):
        changed["tags"] = {prefix + name: value for name, value in record.tags.items()}
    elif hasattr(record, "name"):
        changed["name"] = prefix + record.name
    return msgspec.structs.replace(record, **changed)
