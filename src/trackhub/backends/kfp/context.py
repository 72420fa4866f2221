"""Tells who a run inside a KFP component is: its name, an id that a retry finds again, and tags.

Apart from the backend because it serves every backend: a run in a pod is the same run in MLflow and in KFP. The
environment is passed in, and all the rest comes from what the executor was given.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from weakref import WeakKeyDictionary

from trackhub.backend import hookimpl
from trackhub.backends.kfp.executor import before_output, find_executor
from trackhub.context import RunContext

RUN_ID_VARIABLE = "TRACKHUB_KFP_RUN_ID"
"""Set on the task from the pod's label `pipeline/runid`; needed only where no path tells the id of the KFP run."""
NAMESPACE_VARIABLE = "TRACKHUB_KFP_NAMESPACE"
"""Set on the task from the pod's namespace."""

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOCAL_RUN = re.compile(r"(?P<pipeline>.+)-\d{4}(?:-\d\d){5}-\d{6}")
_ILLEGAL = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_ID = 128 - len("-999")
_DIGEST_LENGTH = 10


@dataclass(frozen=True)
class KfpContext:
    """What KFP says about the component that runs.

    Args:
        name: The task's name, as KFP's page shows it; the component's where the task's is unknown.
        run_id: An id for the trackhub run: the same for every attempt of one task of one KFP run, another for every
            other task and for every iteration of a loop. None if nothing tells tasks apart: each attempt is a run then.
        pipeline: The pipeline's name.
        kfp_run_id: The KFP run's id; locally, the directory of the run.
        pod: The pod's name.
        attempt: 1, 2 and so on; None if the task has no retries.
        tags: All of it as tags of the run.
        inputs: Names of the component's inputs that are no artifacts.
    """

    name: str | None
    run_id: str | None
    pipeline: str | None = None
    kfp_run_id: str | None = None
    pod: str | None = None
    attempt: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Place:
    """What a path tells: pipeline, KFP run, task, and all that tells the task apart from others in the same run."""

    pipeline: str
    kfp_run_id: str
    task: str
    rest: str


def detect(environment: Mapping[str, str], executor: Any | None = None) -> KfpContext | None:
    """What KFP says about the component that runs; None outside of KFP.

    In a process that a component has started there is no executor, and only the pod is known.

    Args:
        environment: The process's variables.
        executor: The component's executor; default: the one that is running.
    """
    executor = find_executor() if executor is None else executor
    if executor is None and environment.get("_KFP_RUNTIME") != "true":
        return None
    given: Mapping[str, Any] = getattr(executor, "executor_input", None) or {}
    place = _place(given)
    component = getattr(getattr(executor, "func", None), "__name__", None)
    kfp_run_id = environment.get(RUN_ID_VARIABLE) or (place.kfp_run_id if place else None)
    name = place.task if place else component
    pod = environment.get("KFP_POD_NAME") or None
    retries = environment.get("KFP_RETRY_INDEX", "")
    attempt = int(retries) + 1 if retries.isdecimal() else None
    tags = {
        "kfp.pipeline": place.pipeline if place else None,
        "kfp.run_id": kfp_run_id,
        "kfp.task": name,
        "kfp.pod": pod,
        "kfp.pod_uid": environment.get("KFP_POD_UID"),
        "kfp.namespace": environment.get(NAMESPACE_VARIABLE),
        "kfp.attempt": str(attempt) if attempt else None,
    }
    return KfpContext(
        name=name,
        run_id=_run_id(kfp_run_id, name, place, given),
        pipeline=tags["kfp.pipeline"],
        kfp_run_id=kfp_run_id,
        pod=pod,
        attempt=attempt,
        tags={tag: value for tag, value in tags.items() if value},
        inputs=frozenset(given.get("inputs", {}).get("parameterValues", {})),
    )


_runs_of: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Executor -> number of runs its component has started."""


@hookimpl
def trackhub_context(environment: Mapping[str, str]) -> RunContext | None:
    """The component that runs; None outside of KFP."""
    executor = find_executor()
    context = detect(environment, executor)
    if context is None:
        return None
    run_id = context.run_id
    if run_id is not None:
        # A component may start several runs. Each has its place in their order, also when it is tried again.
        count = _runs_of[executor] = _runs_of.get(executor, 0) + 1
        run_id = run_id if count == 1 else f"{run_id}-{count}"
    return RunContext(
        name=context.name,
        run_id=run_id,
        tags=context.tags,
        reserved_params=context.inputs,
        before_end=lambda callback: before_output(callback, executor=executor),
    )


def _run_id(kfp_run_id: str | None, name: str | None, place: _Place | None, given: Mapping[str, Any]) -> str | None:
    if kfp_run_id is None or name is None or not given:
        return None
    # Every attempt is given the same paths and inputs. The inputs count only where the paths may be those of a whole
    # loop, for an input may be a placeholder that KFP fills anew.
    inputs = given.get("inputs", {}) if place is None or not place.rest else None
    apart = [place.task, place.rest] if place else given.get("outputs", {})
    text = json.dumps([kfp_run_id, apart, inputs], sort_keys=True, default=str)
    digest = hashlib.blake2s(text.encode(errors="replace")).hexdigest()[:_DIGEST_LENGTH]
    words = _ILLEGAL.sub("-", f"kfp-{kfp_run_id}-{name}").strip(".-")
    return f"{words[: _LONGEST_ID - _DIGEST_LENGTH - 1]}-{digest}"


def _place(given: Mapping[str, Any]) -> _Place | None:
    """Read the path of the output file; where a cluster still puts that in a fixed place, those of the artifacts."""
    outputs = given.get("outputs", {})
    folders = [str(PurePosixPath(outputs.get("outputFile", "")).parent)]
    for artifacts in outputs.get("artifacts", {}).values():
        folders += [str(PurePosixPath(one.get("uri", "")).parent) for one in artifacts.get("artifacts", ())]
    for folder in folders:
        parts = [part for part in folder.split("/") if part not in ("", ".")]
        if found := _local(parts) or _cluster(parts):
            return found
    return None


def _local(parts: Sequence[str]) -> _Place | None:
    """`<pipeline root>/<pipeline>-<timestamp>/<task>`; inside a loop or a pipeline in a pipeline, with more folders."""
    for index in range(len(parts) - 2, -1, -1):
        if found := _LOCAL_RUN.fullmatch(parts[index]):
            inside = parts[index + 1 :]
            return _Place(found["pipeline"], parts[index], "/".join(inside), "local")
    return None


def _cluster(parts: Sequence[str]) -> _Place | None:
    """`.../<pipeline>/<run id>/<task>/<uuid>`; before KFP 2.15 without the last."""
    rest = parts[-1:] if len(parts) > 3 and _UUID.fullmatch(parts[-1]) else []
    head = parts[: len(parts) - len(rest)]
    if len(head) >= 3 and _UUID.fullmatch(head[-2]):
        return _Place(head[-3], head[-2], head[-1], "".join(rest))
    return None
