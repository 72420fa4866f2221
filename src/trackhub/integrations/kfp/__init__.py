"""Makes a task of a Kubeflow pipeline a tracked one: where its run goes, with which settings and which secrets.

For authors of pipelines, who have kfp and kfp-kubernetes. Both are imported when a task is tracked, because a pod may
import the author's module, too, and there kfp comes without its dependencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trackhub.backends.kfp.context import NAMESPACE_VARIABLE, RUN_ID_VARIABLE
from trackhub.errors import SettingsError
from trackhub.integrations.kfp.variables import check_volume, referred_variables, static_variables

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

__all__ = ["track"]

MOUNT_PATH = "/trackhub"

_POD_FIELDS = {RUN_ID_VARIABLE: "metadata.labels['pipeline/runid']", NAMESPACE_VARIABLE: "metadata.namespace"}


def track(
    task: PipelineTask,
    backends: Sequence[str] | str | None = None,
    *,
    project: str | None = None,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    config_map: Mapping[str, Mapping[str, str]] | None = None,
    directory_volume: Any | None = None,
    **more: Any,
) -> PipelineTask:
    """Choose, by the environment of a task, what becomes of the run that its component starts with `trackhub.init`.

    The pod is told its KFP run and its namespace, too. Called again, it changes what is given and keeps the rest.

    Args:
        task: A task of one component, in the function of a pipeline.
        backends: Names of the backends. One that is not installed here only warns: the image may have its plugin.
        project: The project the run belongs to.
        secrets: Variables from Kubernetes Secrets: `{secret: {key in it: variable}}`.
        config_map: Variables from ConfigMaps, in the same form.
        directory_volume: The PersistentVolumeClaim that keeps the run directories: its name, or the output of the task
            that makes it. It is mounted at `dir`, which is then `/trackhub` unless given.
        more: Other settings by name (`mode="offline"`), and a mapping of options for each backend that needs some
            (`mlflow={"tracking_uri": ...}`).

    Returns:
        The task.

    Raises:
        SettingsError: A setting or an option is not accepted, or would show a secret.
        TypeError: Something is of the wrong kind, such as a value that is known only when the pipeline runs.

    >>> from kfp import dsl
    >>> @dsl.container_component
    ... def train():
    ...     return dsl.ContainerSpec(image="registry/train", command=["python", "train.py"])
    >>> @dsl.pipeline
    ... def pipeline():
    ...     track(train(), ["mlflow"], project="digits", secrets={"mlflow": {"token": "MLFLOW_TRACKING_TOKEN"}})
    """
    from kfp import dsl, kubernetes

    if not isinstance(task, dsl.PipelineTask):
        raise TypeError(f"track() takes the task that a component gives inside a pipeline, not {type(task).__name__}")
    if task.container_spec is None or task.state.name == "FINAL":
        raise TypeError(
            f"track() cannot take {task.name!r}: it takes tasks of components, before they run; of a pipeline in a "
            "pipeline, track the tasks inside"
        )
    mount_path = None
    if directory_volume is not None:
        more["dir"] = more.get("dir") or MOUNT_PATH
        mount_path = str(more["dir"])
    static = static_variables({"backends": backends, "project": project, **more})
    if mount_path is not None:
        check_volume(directory_volume, mount_path)
    sources = [referred_variables("secrets", secrets), referred_variables("config_map", config_map)]
    variables = [*static, *_POD_FIELDS]
    variables += [one for source in sources for keys in source.values() for one in keys.values()]
    if twice := sorted({one for one in variables if variables.count(one) > 1}):
        raise SettingsError(f"track() is given more than one value for {', '.join(twice)}: leave all but one out")

    _forget(task, variables, mount_path)
    for variable, text in static.items():
        task.set_env_variable(variable, text)
    for use, source in zip((kubernetes.use_secret_as_env, kubernetes.use_config_map_as_env), sources, strict=True):
        for name, keys in source.items():
            use(task, name, keys)
    for variable, field_path in _POD_FIELDS.items():
        kubernetes.use_field_path_as_env(task, variable, field_path)
    if mount_path is not None:
        kubernetes.mount_pvc(task, directory_volume, mount_path)
    return task


def _forget(task: PipelineTask, variables: Sequence[str], mount_path: str | None) -> None:
    """Take back what an earlier call has set: kfp-kubernetes only ever adds."""
    for variable in variables:
        (task.container_spec.env or {}).pop(variable, None)
    config = task.platform_config.get("kubernetes", {})
    for source in ("secretAsEnv", "configMapAsEnv"):
        for one in config.get(source, ()):
            one["keyToEnv"] = [pair for pair in one.get("keyToEnv", ()) if pair["envVar"] not in variables]
        config[source] = [one for one in config.get(source, ()) if one["keyToEnv"]]
    config["fieldPathAsEnv"] = [one for one in config.get("fieldPathAsEnv", ()) if one["name"] not in variables]
    config["pvcMount"] = [one for one in config.get("pvcMount", ()) if one["mountPath"] != mount_path]
