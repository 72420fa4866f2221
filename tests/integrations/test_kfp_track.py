import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import trackhub
from trackhub import plugins
from trackhub.settings import backend_options, load

pytest.importorskip("kfp", reason="what is tested is what KFP's own compiler makes of it")

from kfp import __version__, compiler, dsl, kubernetes

from trackhub.backends.mlflow import MlflowOptions
from trackhub.integrations.kfp import track

KFP_VERSION = tuple(map(int, __version__.split(".")[:2]))
IMAGE = "python:3.12"
POD_FIELDS = {
    "TRACKHUB_KFP_RUN_ID": "metadata.labels['pipeline/runid']",
    "TRACKHUB_KFP_NAMESPACE": "metadata.namespace",
}


@dsl.component(base_image=IMAGE)
def train(lr: float) -> float:
    return lr


@dsl.component(base_image=IMAGE)
def name_it() -> str:
    return "digits"


@dsl.container_component
def train_in_image():
    return dsl.ContainerSpec(image=IMAGE, command=["python", "train.py"])


@dsl.pipeline
def train_inside() -> None:
    train(lr=0.1)


class Compiled:
    """A compiled pipeline: what its file says of each executor, in the first document and in the second."""

    def __init__(self, pipeline: Any, path: Path) -> None:
        compiler.Compiler().compile(pipeline, str(path))
        self.text = path.read_text()
        self.spec, *platforms = yaml.safe_load_all(self.text)
        self.containers = {
            name: executor["container"]
            for name, executor in self.spec["deploymentSpec"]["executors"].items()
            if "container" in executor
        }
        self.configs: dict[str, dict[str, Any]] = {}
        for document in platforms:
            self.configs |= document["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    def env(self, executor: str = "exec-train") -> dict[str, str]:
        pairs = [(one["name"], one["value"]) for one in self.containers[executor].get("env", [])]
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    def from_objects(self, kind: str, executor: str = "exec-train") -> list[tuple[str, str, str]]:
        return [
            (one[f"{kind}Name"], pair[f"{'secret' if kind == 'secret' else 'configMap'}Key"], pair["envVar"])
            for one in self.configs[executor].get(f"{kind}AsEnv", [])
            for pair in one["keyToEnv"]
        ]

    def from_pod(self, executor: str = "exec-train") -> dict[str, str]:
        pairs = [(one["name"], one["fieldPath"]) for one in self.configs[executor]["fieldPathAsEnv"]]
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    def volumes(self, executor: str = "exec-train") -> list[tuple[str, str]]:
        return [
            (one["pvcNameParameter"]["runtimeValue"]["constant"], one["mountPath"])
            for one in self.configs[executor].get("pvcMount", [])
        ]


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[Callable[[Any], object]], Compiled]:
    """Compiles a pipeline of one task, after something was done to the task."""

    def compiled(wire: Callable[[Any], object]) -> Compiled:
        @dsl.pipeline(name="p")
        def pipeline() -> None:
            wire(train(lr=0.1))

        return Compiled(pipeline, tmp_path / "pipeline.yaml")

    return compiled


Compile = Callable[[Callable[[Any], object]], Compiled]


def test_a_task_with_no_choice_is_told_its_run_and_namespace_and_nothing_else(compiled: Compile) -> None:
    result = compiled(track)
    assert result.env() == {}
    assert result.configs["exec-train"] == {
        "fieldPathAsEnv": [{"name": name, "fieldPath": path} for name, path in POD_FIELDS.items()]
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"backends": ["mlflow", "tensorboard"]}, {"TRACKHUB_BACKENDS": "mlflow,tensorboard"}),
        ({"backends": "mlflow, tensorboard,mlflow"}, {"TRACKHUB_BACKENDS": "mlflow,tensorboard"}),
        ({"project": "digits"}, {"TRACKHUB_PROJECT": "digits"}),
        ({"name": "first", "mode": "offline"}, {"TRACKHUB_NAME": "first", "TRACKHUB_MODE": "offline"}),
        ({"finish_timeout": 20}, {"TRACKHUB_FINISH_TIMEOUT": "20.0"}),
        ({"dir": Path("/data/runs")}, {"TRACKHUB_DIR": "/data/runs"}),
        (
            {"mlflow": {"tracking_uri": "http://mlflow:5000", "request_timeout_seconds": 5}},
            {"TRACKHUB_MLFLOW_TRACKING_URI": "http://mlflow:5000", "TRACKHUB_MLFLOW_REQUEST_TIMEOUT_SECONDS": "5"},
        ),
        ({"tensorboard": {"logdir": Path("/logs")}}, {"TRACKHUB_TENSORBOARD_LOGDIR": "/logs"}),
        ({"project": None, "mode": None}, {}),
    ],
)
def test_settings_and_options_become_static_variables(
    arguments: dict[str, Any], expected: dict[str, str], compiled: Compile
) -> None:
    assert compiled(lambda task: track(task, **arguments)).env() == expected


def test_secrets_and_config_maps_become_references(compiled: Compile) -> None:
    result = compiled(
        lambda task: track(
            task,
            secrets={"mlflow": {"user": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}},
            config_map={"sites": {"mlflow.uri": "TRACKHUB_MLFLOW_TRACKING_URI"}, "more": {"ca": "SSL_CERT_FILE"}},
        )
    )
    assert result.env() == {}
    assert result.from_objects("secret") == [
        ("mlflow", "user", "MLFLOW_TRACKING_USERNAME"),
        ("mlflow", "password", "MLFLOW_TRACKING_PASSWORD"),
    ]
    assert result.from_objects("configMap") == [
        ("sites", "mlflow.uri", "TRACKHUB_MLFLOW_TRACKING_URI"),
        ("more", "ca", "SSL_CERT_FILE"),
    ]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [({}, "/trackhub"), ({"dir": "/data/runs"}, "/data/runs"), ({"dir": None}, "/trackhub")],
)
def test_a_volume_is_mounted_where_the_run_directories_are(
    arguments: dict[str, Any], path: str, compiled: Compile
) -> None:
    result = compiled(lambda task: track(task, directory_volume="runs", **arguments))
    assert result.volumes() == [("runs", path)]
    assert result.env() == {"TRACKHUB_DIR": path}


def test_a_volume_that_the_pipeline_makes_is_waited_for(tmp_path: Path) -> None:
    @dsl.pipeline(name="p")
    def pipeline() -> None:
        claim = kubernetes.CreatePVC(pvc_name_suffix="-runs", access_modes=["ReadWriteMany"], size="1Gi")
        track(train(lr=0.1), directory_volume=claim.outputs["name"])

    result = Compiled(pipeline, tmp_path / "pipeline.yaml")
    [mount] = result.configs["exec-train"]["pvcMount"]
    assert mount["mountPath"] == "/trackhub"
    assert mount["taskOutputParameter"] == {"producerTask": "createpvc", "outputParameterKey": "name"}
    assert result.spec["root"]["dag"]["tasks"]["train"]["dependentTasks"] == ["createpvc"]


def everything(task: Any) -> Any:
    return track(
        task,
        ["mlflow", "tensorboard"],
        project="digits",
        mode="online",
        secrets={"mlflow": {"token": "MLFLOW_TRACKING_TOKEN"}},
        config_map={"sites": {"uri": "TRACKHUB_MLFLOW_TRACKING_URI"}},
        directory_volume="runs",
        mlflow={"experiment": "digits"},
        tensorboard={"logdir": "/trackhub/logs"},
    )


def check_everything(result: Compiled, executor: str) -> None:
    assert result.env(executor) == {
        "TRACKHUB_BACKENDS": "mlflow,tensorboard",
        "TRACKHUB_PROJECT": "digits",
        "TRACKHUB_MODE": "online",
        "TRACKHUB_DIR": "/trackhub",
        "TRACKHUB_MLFLOW_EXPERIMENT": "digits",
        "TRACKHUB_TENSORBOARD_LOGDIR": "/trackhub/logs",
    }
    assert result.from_objects("secret", executor) == [("mlflow", "token", "MLFLOW_TRACKING_TOKEN")]
    assert result.from_objects("configMap", executor) == [("sites", "uri", "TRACKHUB_MLFLOW_TRACKING_URI")]
    assert result.from_pod(executor) == POD_FIELDS
    assert result.volumes(executor) == [("runs", "/trackhub")]


def test_tasks_are_tracked_wherever_in_a_pipeline_they_are_and_no_others(tmp_path: Path) -> None:
    @dsl.pipeline
    def inner() -> None:
        everything(train(lr=0.3))

    @dsl.pipeline(name="p")
    def pipeline() -> None:
        train(lr=0.0)
        everything(train(lr=0.1))
        with dsl.ParallelFor([0.1, 0.2]) as lr:
            everything(train(lr=lr))
        with dsl.If(name_it().output == "digits"):
            everything(train(lr=0.2))
        with dsl.ExitHandler(everything(train_in_image())):
            name_it()
        inner()

    result = Compiled(pipeline, tmp_path / "pipeline.yaml")
    tracked = {name for name in result.containers if result.env(name)}
    assert tracked == set(result.configs)
    assert len(tracked) == 5
    assert "exec-train" not in tracked
    for executor in tracked:
        check_everything(result, executor)


def test_it_returns_the_task_so_that_calls_chain(compiled: Compile) -> None:
    result = compiled(lambda task: everything(task).set_env_variable("OMP_NUM_THREADS", "2").set_retry(2))
    assert result.env()["OMP_NUM_THREADS"] == "2"
    assert result.spec["root"]["dag"]["tasks"]["train"]["retryPolicy"]["maxRetryCount"] == 2


# --- twice


def test_twice_is_the_same_as_once(compiled: Compile) -> None:
    once = compiled(everything).text
    assert compiled(lambda task: everything(everything(task))).text == once


def test_a_second_call_changes_what_it_is_given_and_keeps_the_rest(compiled: Compile) -> None:
    def wire(task: Any) -> None:
        track(
            task,
            "mlflow",
            project="digits",
            secrets={"mlflow": {"user": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}},
            directory_volume="runs",
        )
        track(
            task,
            "tensorboard",
            secrets={"other": {"user": "MLFLOW_TRACKING_USERNAME"}},
            config_map={"sites": {"project": "TRACKHUB_PROJECT"}},
            directory_volume="scratch",
        )

    result = compiled(wire)
    assert result.env() == {"TRACKHUB_BACKENDS": "tensorboard", "TRACKHUB_DIR": "/trackhub"}
    assert sorted(result.from_objects("secret")) == [
        ("mlflow", "password", "MLFLOW_TRACKING_PASSWORD"),
        ("other", "user", "MLFLOW_TRACKING_USERNAME"),
    ]
    assert result.from_objects("configMap") == [("sites", "project", "TRACKHUB_PROJECT")]
    assert result.volumes() == [("scratch", "/trackhub")]


def test_what_the_author_has_set_stays(compiled: Compile) -> None:
    def wire(task: Any) -> None:
        task.set_env_variable("OMP_NUM_THREADS", "2")
        kubernetes.use_secret_as_env(task, "bucket", {"key": "AWS_SECRET_ACCESS_KEY"})
        kubernetes.use_field_path_as_env(task, "NODE", "spec.nodeName")
        kubernetes.mount_pvc(task, "data", "/data")
        kubernetes.empty_dir_mount(task, "scratch", "/scratch")
        kubernetes.add_pod_label(task, "team", "vision")
        everything(task)

    result = compiled(wire)
    assert result.env()["OMP_NUM_THREADS"] == "2"
    assert ("bucket", "key", "AWS_SECRET_ACCESS_KEY") in result.from_objects("secret")
    assert result.from_pod() == {"NODE": "spec.nodeName", **POD_FIELDS}
    assert result.volumes() == [("data", "/data"), ("runs", "/trackhub")]
    config = result.configs["exec-train"]
    assert config["emptyDirMounts"] == [{"volumeName": "scratch", "mountPath": "/scratch"}]
    assert config["podMetadata"] == {"labels": {"team": "vision"}}


# --- at the door


def refusal(error: type[Exception], arguments: dict[str, Any], compiled: Compile) -> str:
    """The message of what is refused; the task is as it was."""
    messages = []

    def wire(task: Any) -> None:
        with pytest.raises(error) as refused:
            track(task, **arguments)
        messages.append(str(refused.value))

    result = compiled(wire)
    assert result.env() == {}
    assert result.configs == {}
    return messages[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backends": []}, "backends is empty: leave it out"),
        ({"backends": " , "}, "backends is empty: leave it out"),
        ({"backends": ["mlflow", 3]}, "backends is not accepted"),
        ({"project": ""}, "project is not accepted"),
        ({"project": "a\0b"}, "TRACKHUB_PROJECT has a NUL character"),
        ({"name": ""}, "TRACKHUB_NAME is empty"),
        ({"mode": "onlin"}, "mode is not accepted: Input should be 'online', 'offline' or 'disabled'"),
        ({"finish_timeout": -1}, "finish_timeout is not accepted"),
        ({"run_id": "mine"}, "it would be the same for every run of the pipeline"),
        ({"mlflow": {"tracking_url": "http://x"}}, "TRACKHUB_MLFLOW_TRACKING_URL; did you mean 'tracking_uri'?"),
        ({"directory_volume": "Runs"}, "directory_volume = 'Runs' is not accepted"),
        ({"directory_volume": "runs", "dir": "runs"}, "dir = 'runs' is not accepted: the volume is mounted there"),
        (
            {"project": "digits", "config_map": {"sites": {"project": "TRACKHUB_PROJECT"}}},
            "more than one value for TRACKHUB_PROJECT",
        ),
        (
            {"secrets": {"a": {"t": "TOKEN"}}, "config_map": {"b": {"t": "TOKEN"}}},
            "more than one value for TOKEN",
        ),
        ({"secrets": {"a": {"t": "TRACKHUB_KFP_RUN_ID"}}}, "more than one value for TRACKHUB_KFP_RUN_ID"),
    ],
)
def test_what_is_not_accepted_is_refused_before_the_task_is_touched(
    arguments: dict[str, Any], message: str, compiled: Compile
) -> None:
    assert message in refusal(trackhub.SettingsError, arguments, compiled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"projct": "digits"}, "track() has no argument 'projct'"),
        ({"mlflow": "http://mlflow:5000"}, "a backend's options are given as mlflow={...}"),
        ({"mlflow": {"experiment": {"name": "digits"}}}, "TRACKHUB_MLFLOW_EXPERIMENT must be text or a number"),
        ({"directory_volume": 3}, "directory_volume must be the name of a PersistentVolumeClaim, not int"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(arguments: dict[str, Any], message: str, compiled: Compile) -> None:
    assert message in refusal(TypeError, arguments, compiled)


@pytest.mark.parametrize(
    "options",
    [
        {"mlflow": {"tracking_uri": "https://user:s3cr3t-text@mlflow.example/api"}},
        {"mlflow": {"tracking_uri": "https://mlflow.example/api?access_token=s3cr3t-text"}},
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(options: dict[str, Any], compiled: Compile) -> None:
    message = refusal(trackhub.SettingsError, options, compiled)
    assert "secrets={'name-of-the-secret': {'key-in-it': 'TRACKHUB_MLFLOW_TRACKING_URI'}}" in message
    assert "s3cr3t" not in message


@pytest.mark.parametrize("option", ["api_token", "password", "key", "secret_access_key", "credentials", "API_KEY"])
@pytest.mark.filterwarnings("ignore:.*no backend is called 'elsewhere'")
def test_an_option_that_is_a_secret_by_its_name_is_refused_and_not_repeated(option: str, compiled: Compile) -> None:
    message = refusal(trackhub.SettingsError, {"elsewhere": {option: "s3cr3t-text"}}, compiled)
    assert f"TRACKHUB_ELSEWHERE_{option.upper()} would stand in the compiled pipeline in clear text" in message
    assert "s3cr3t" not in message


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed plugin, whose backend `vault` has options that the built-in ones have not."""
    (tmp_path / "vault_plugin.py").write_text(
        """
from pydantic import SecretStr
from trackhub import Backend, BackendOptions, hookimpl

class Options(BackendOptions):
    access: SecretStr | None = None
    hosts: tuple[str, ...] = ()
    in_order: bool = True

class Vault(Backend):
    name = "vault"
    Options = Options
    def open(self, run, state): ...

@hookimpl
def trackhub_backends():
    return [Vault]
"""
    )
    information = tmp_path / "vault_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vault-plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[trackhub]\nvault = vault_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.delitem(sys.modules, "vault_plugin", raising=False)


@pytest.mark.usefixtures("plugin")
def test_an_option_that_is_a_secret_by_its_type_is_refused_and_not_repeated(compiled: Compile) -> None:
    message = refusal(trackhub.SettingsError, {"vault": {"access": "s3cr3t-text"}}, compiled)
    assert "TRACKHUB_VAULT_ACCESS would stand in the compiled pipeline in clear text" in message
    assert "s3cr3t" not in message


@pytest.mark.usefixtures("plugin")
def test_options_of_a_plugin_that_are_lists_and_truths_come_back_as_they_were_given(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"hosts": ["a:1", "b:2"], "in_order": False, "processors": ["every:10", "redact:off"]}
    for variable, text in compiled(lambda task: track(task, "vault", vault=given)).env().items():
        monkeypatch.setenv(variable, text)
    found, _ = backend_options("vault", plugins.find_backend("vault").Options, {}, {}, None)
    assert found.model_dump(exclude={"access"}) == {
        "processors": ("every:10", "redact:off"),
        "hosts": ("a:1", "b:2"),
        "in_order": False,
    }


@pytest.mark.usefixtures("plugin")
def test_a_list_whose_members_hold_the_comma_that_parts_them_is_refused(compiled: Compile) -> None:
    message = refusal(trackhub.SettingsError, {"vault": {"hosts": ["a,b", "c"]}}, compiled)
    assert "TRACKHUB_VAULT_HOSTS is a list with commas between, and 'a,b' has one in it" in message


@pytest.mark.parametrize(
    "given",
    [
        {"MLFLOW_TRACKING_TOKEN": "s3cr3t-text"},
        {"MLFLOW_TRACKING_TOKEN": {"mlflow": "token"}},
        {"mlflow": {"MLFLOW_TRACKING_TOKEN": "s3cr3t-text"}},
        {"mlflow": "s3cr3t-text"},
        {"mlflow": {}},
        {"mlflow": {"token": 3}},
        "s3cr3t-text",
    ],
)
@pytest.mark.parametrize("argument", ["secrets", "config_map"])
def test_references_of_another_form_are_refused_and_not_repeated(argument: str, given: Any, compiled: Compile) -> None:
    message = refusal(TypeError, {argument: given}, compiled)
    assert f"{argument}={{'name-of-the-object': {{'key-in-it': 'VARIABLE'}}}}" in message
    assert "s3cr3t" not in message


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (lambda value: {"project": value}, "project"),
        (lambda value: {"project": f"digits-{value}"}, "project"),
        (lambda value: {"backends": value}, "backends"),
        (lambda value: {"backends": ["mlflow", value]}, "backends"),
        (lambda value: {"dir": value, "directory_volume": "runs"}, "dir"),
        (lambda value: {"mlflow": {"experiment": value}}, "'experiment' of mlflow"),
    ],
)
def test_what_is_known_only_when_the_pipeline_runs_is_refused_with_the_way_out(
    arguments: Callable[[Any], dict[str, Any]], named: str, tmp_path: Path
) -> None:
    messages = []

    @dsl.pipeline(name="p")
    def pipeline(parameter: str) -> None:
        with dsl.ParallelFor(["a", "b"]) as item:
            for value in (parameter, name_it().output, item, dsl.PIPELINE_JOB_ID_PLACEHOLDER):
                task = train(lr=0.1)
                with pytest.raises(TypeError) as refused:
                    track(task, **arguments(value))
                messages.append(str(refused.value))

    result = Compiled(pipeline, tmp_path / "pipeline.yaml")
    assert len(messages) == 4
    for message in messages:
        assert message.startswith(f"{named} cannot be a parameter of the pipeline")
        assert "Make it an input of the component" in message
    assert result.configs == {}


def test_only_tasks_of_components_are_taken(tmp_path: Path) -> None:
    messages = []

    @dsl.pipeline(name="p")
    def pipeline() -> None:
        importer = dsl.importer(artifact_uri="s3://bucket/model", artifact_class=dsl.Model)
        for wrong in (train, train(lr=0.1).output, None, train_inside(), importer):
            with pytest.raises(TypeError) as refused:
                track(wrong, project="digits")
            messages.append(str(refused.value))

    Compiled(pipeline, tmp_path / "pipeline.yaml")
    assert [message.rpartition(", not ")[2] for message in messages[:3]] == [
        "PythonComponent",
        "PipelineParameterChannel",
        "NoneType",
    ]
    assert "cannot take 'train-inside'" in messages[3]
    assert "cannot take 'importer'" in messages[4]


def test_a_backend_that_is_not_installed_here_warns_and_is_set(compiled: Compile) -> None:
    with pytest.warns(UserWarning, match="no backend is called 'mlfow'; did you mean 'mlflow'") as warned:
        result = compiled(lambda task: track(task, ["mlfow", "tensorboard"], mlfow={"anything": 1}))
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert "must be in the image of the task" in str(warned[0].message)
    assert result.env() == {"TRACKHUB_BACKENDS": "mlfow,tensorboard", "TRACKHUB_MLFOW_ANYTHING": "1"}


# --- in the pod


def in_a_pod(result: Compiled, program: str, directory: Path, **objects: str) -> str:
    """Run a program with the environment that the compiled task has, and with nothing else of trackhub's."""
    kept = {name: one for name, one in os.environ.items() if not name.startswith(("TRACKHUB_", "MLFLOW_"))}
    values = {one: objects[one] for kind in ("secret", "configMap") for _, _, one in result.from_objects(kind)}
    fields = dict.fromkeys(result.from_pod(), "from-the-pod")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, **result.env(), **values, **fields},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_started_with_what_the_compiled_environment_says(compiled: Compile, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    result = compiled(
        lambda task: track(
            task,
            ["mlflow", "tensorboard"],
            project="digits",
            name="from the pipeline",
            mode="offline",
            finish_timeout=3,
            dir=runs,
            config_map={"sites": {"uri": "TRACKHUB_MLFLOW_TRACKING_URI"}},
            mlflow={"experiment": "of the author", "request_timeout_seconds": 7},
            tensorboard={"logdir": tmp_path / "logs"},
        )
    )
    program = (
        "import trackhub\nwith trackhub.init() as tracker:\n    tracker.log_metrics({'loss': 0.5})\nprint(tracker.id)"
    )
    printed = in_a_pod(result, program, tmp_path, TRACKHUB_MLFLOW_TRACKING_URI="http://mlflow:5000").split()
    manifest = json.loads((runs / printed[0] / "run.json").read_text())
    assert manifest["project"] == "digits"
    assert manifest["name"] == "from the pipeline"
    assert manifest["backends"] == {
        "mlflow": {"tracking_uri": "http://mlflow:5000", "experiment": "of the author", "request_timeout_seconds": 7},
        "tensorboard": {"logdir": str(tmp_path / "logs")},
    }


# No surrogates and no NUL, which no environment holds; no URLs and nothing that looks like KFP's placeholders.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda text: "://" not in text and "{{" not in text
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    project=TEXTS,
    experiment=TEXTS,
    timeout=st.integers(min_value=1, max_value=10**9),
    finish_timeout=st.floats(min_value=0, max_value=1e9),
)
@example(project="'\": {} #\n", experiment="no", timeout=1, finish_timeout=1e-7)
@example(project="\x85\u2028\ufeff", experiment="1e3", timeout=1, finish_timeout=0.1)
def test_any_text_comes_back_as_it_was_given(
    project: str, experiment: str, timeout: int, finish_timeout: float, compiled: Compile, tmp_path: Path
) -> None:
    options = {"experiment": experiment, "request_timeout_seconds": timeout}
    env = compiled(lambda task: track(task, project=project, finish_timeout=finish_timeout, mlflow=options)).env()
    with pytest.MonkeyPatch.context() as patch:
        for variable, text in env.items():
            patch.setenv(variable, text)
        loaded = load({}, tmp_path)
        found, _ = backend_options("mlflow", MlflowOptions, {}, {}, None)
    assert loaded.settings.project == project
    assert loaded.settings.finish_timeout == finish_timeout
    assert found.experiment == experiment
    assert found.request_timeout_seconds == timeout


@pytest.mark.skipif(KFP_VERSION < (2, 17), reason="before, kfp.local did not pass on the environment of a task")
def test_a_tracked_task_runs_under_kfp_local(tmp_path: Path) -> None:
    program = tmp_path / "pipeline.py"
    program.write_text(
        """
import sys, warnings
warnings.simplefilter("ignore")
from kfp import dsl, local
from trackhub.integrations.kfp import track

@dsl.component(base_image="python:3.12", install_kfp_package=False)
def train(lr: float):
    import trackhub
    with trackhub.init() as tracker:
        tracker.log_metrics({"loss": lr})

@dsl.pipeline
def pipeline():
    track(train(lr=0.1), "tensorboard", project="digits", mode="offline", directory_volume="runs", dir=sys.argv[1])

local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
pipeline()
done = train(lr=0.3)
try:
    track(done, "mlflow")
except TypeError as error:
    print(error)
"""
    )
    kept = {name: one for name, one in os.environ.items() if not name.startswith("TRACKHUB_")}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "runs"), str(tmp_path / "root")],
        cwd=tmp_path,
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "track() cannot take 'train'" in done.stdout
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/run.json")]
    assert [(one["project"], list(one["backends"])) for one in manifests] == [("digits", ["tensorboard"])]


def test_a_module_that_tracks_can_be_imported_in_a_pod_where_kfp_has_no_dependencies() -> None:
    program = "import sys; sys.modules['yaml'] = sys.modules['google.protobuf'] = sys.modules['kubernetes'] = None\n"
    program += "from trackhub.integrations.kfp import track; print('kfp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")
