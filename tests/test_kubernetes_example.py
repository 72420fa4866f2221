"""The manifests of examples/kubernetes: valid, complete, and doing what they are for, as far as needs no cluster."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from backends.mlflow_server import wait_for
from ports import free_port
from stage import delivery_processes, records_of, said, wait_until

from trackhub.records import MetricsLogged
from trackhub.rundir import RunDirectory
from trackhub.sync import STOP_SECONDS

EXAMPLE = Path(__file__).parents[1] / "examples" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text(encoding="utf-8"))
MANIFESTS = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((EXAMPLE / name).read_text(encoding="utf-8"))
]
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version().rpartition(".")[0]
SECRETS = {"POSTGRES_PASSWORD": "p0", "AWS_ACCESS_KEY_ID": "k0", "AWS_SECRET_ACCESS_KEY": "s0"}

Manifest = dict[str, Any]


def called(kind: str, name: str) -> Manifest:
    """The one manifest of a kind and a name."""
    (found,) = [one for one in MANIFESTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


WORKLOADS = [one for one in MANIFESTS if "template" in one.get("spec", {})]
SERVICES = [one for one in MANIFESTS if one["kind"] == "Service"]


def pod_of(workload: Manifest) -> Manifest:
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def containers_of(workload: Manifest) -> list[Manifest]:
    return [*pod_of(workload).get("initContainers", []), *pod_of(workload)["containers"]]


JOB = called("Job", "training")
SIDECAR, TRAINER = containers_of(JOB)
SERVER = pod_of(called("Deployment", "mlflow"))["containers"][0]


# --- schema


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=title)
def test_every_manifest_keeps_to_the_schema_of_kubernetes(manifest: Manifest, version: str) -> None:
    assert kubernetes_validate.validate(manifest, version, strict=True) == version


def mistype_restart_policy(job: Manifest) -> None:
    pod_of(job)["initContainers"][0]["restartPolicyy"] = "Always"


def mistype_image(job: Manifest) -> None:
    container = pod_of(job)["containers"][0]
    container["imagee"] = container.pop("image")


def number_as_text(job: Manifest) -> None:
    pod_of(job)["terminationGracePeriodSeconds"] = "150 s"


def variable_without_name(job: Manifest) -> None:
    del pod_of(job)["containers"][0]["env"][0]["name"]


@pytest.mark.parametrize("spoil", [mistype_restart_policy, mistype_image, number_as_text, variable_without_name])
def test_the_schema_check_finds_mistakes(spoil: Callable[[Manifest], None]) -> None:
    job = copy.deepcopy(JOB)
    spoil(job)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, OLDEST, strict=True)


# What the schema calls any text, though Kubernetes knows only these.
WORDS = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "clusterIP": {"None"},
    "accessModes": {"ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany", "ReadOnlyMany"},
}


def unknown_words(part: Any) -> list[str]:
    """Every `key: word` of a manifest with a word that Kubernetes does not know."""
    if isinstance(part, list):
        return [found for one in part for found in unknown_words(one)]
    if not isinstance(part, dict):
        return []
    found = []
    for key, value in part.items():
        words = value if isinstance(value, list) else [value]
        found += (
            [f"{key}: {word}" for word in words if word not in WORDS[key]] if key in WORDS else unknown_words(value)
        )
    return found


@pytest.mark.parametrize("manifest", MANIFESTS, ids=title)
def test_words_that_the_schema_leaves_open_are_known(manifest: Manifest) -> None:
    assert unknown_words(manifest) == []


def test_a_mistyped_word_is_found() -> None:
    job = copy.deepcopy(JOB)
    pod_of(job)["initContainers"][0]["restartPolicy"] = "Alwayss"
    assert unknown_words(job) == ["restartPolicy: Alwayss"]


def test_the_sidecar_is_a_native_one() -> None:
    assert SIDECAR in pod_of(JOB)["initContainers"]
    assert SIDECAR["restartPolicy"] == "Always"
    assert pod_of(JOB)["containers"] == [TRAINER]


# --- references


def test_every_file_is_applied_and_every_name_is_of_one_object() -> None:
    files = {path.name for path in EXAMPLE.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    titles = [title(one) for one in MANIFESTS]
    assert len(titles) == len(set(titles))
    assert called("Namespace", KUSTOMIZATION["namespace"])
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert all((EXAMPLE / file).is_file() for file in generated["files"])
    assert {one["name"] for one in KUSTOMIZATION["images"]} == {SIDECAR["image"], TRAINER["image"]}


@pytest.mark.parametrize("workload", WORKLOADS, ids=title)
def test_what_a_pod_names_is_defined(workload: Manifest) -> None:
    claims = {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])}
    volumes = {one["name"]: one for one in pod_of(workload).get("volumes", [])}
    config_maps = {one["name"] for one in KUSTOMIZATION["configMapGenerator"]}
    (secret,) = KUSTOMIZATION["secretGenerator"]

    mounted = {mount["name"] for one in containers_of(workload) for mount in one["volumeMounts"]}
    assert mounted == claims | set(volumes)
    assert not claims & set(volumes)
    assert {one["configMap"]["name"] for one in volumes.values() if "configMap" in one} <= config_maps
    for container in containers_of(workload):
        before: set[str] = set()
        for variable in container["env"]:
            # Kubernetes leaves $(NAME) as it stands unless NAME is defined further up.
            assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= before
            before.add(variable["name"])
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                assert reference["name"] == secret["name"]
                assert reference["key"] in SECRETS
        assert len(before) == len(container["env"])
        ports = {port["name"] for port in container.get("ports", [])}
        probes = [container[name] for name in container if name.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes if "httpGet" in probe} <= ports


@pytest.mark.parametrize("service", SERVICES, ids=title)
def test_a_service_finds_its_pods_and_their_ports(service: Manifest) -> None:
    selector = service["spec"]["selector"].items()
    (target,) = [one for one in WORKLOADS if selector <= one["spec"]["template"]["metadata"]["labels"].items()]
    assert target["spec"]["selector"]["matchLabels"].items() <= target["spec"]["template"]["metadata"]["labels"].items()
    named = {port["name"]: port["containerPort"] for one in containers_of(target) for port in one.get("ports", [])}
    for port in service["spec"]["ports"]:
        assert named[port["targetPort"]] == port["port"]
    if target["kind"] == "StatefulSet":
        assert target["spec"]["serviceName"] == service["metadata"]["name"]


def test_addresses_in_variables_are_those_of_services() -> None:
    addresses = {f"{one['metadata']['name']}:{port['port']}" for one in SERVICES for port in one["spec"]["ports"]}
    values = [one.get("value", "") for workload in WORKLOADS for each in containers_of(workload) for one in each["env"]]
    used = [found.group(1) for value in values if (found := re.match(r"[\w+]+://(?:[^@/]*@)?([^/]+)", value))]
    assert len(used) == 4
    assert set(used) == addresses


def test_the_bucket_that_is_made_is_the_one_that_is_used() -> None:
    (make_bucket,) = pod_of(called("Deployment", "mlflow"))["initContainers"]
    (destination,) = [one for one in SERVER["args"] if one.startswith("--artifacts-destination=s3://")]
    bucket = destination.partition("s3://")[2].partition("/")[0]
    compile(make_bucket["args"][0], "make-bucket", "exec")
    assert f'create_bucket(Bucket="{bucket}")' in make_bucket["args"][0]


def test_a_database_of_that_name_and_user_is_made() -> None:
    (database,) = containers_of(called("StatefulSet", "postgres"))
    made = variables(database)
    assert variables(SERVER)["MLFLOW_BACKEND_STORE_URI"].startswith(f"postgresql+psycopg2://{made['POSTGRES_USER']}:")
    assert variables(SERVER)["MLFLOW_BACKEND_STORE_URI"].endswith(f"/{made['POSTGRES_DB']}")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_renders_it_and_refuses_to_without_passwords(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("secrets.env"))
    command = ["kubectl", "kustomize", str(folder)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert "secrets.env" in refused.stderr

    (folder / "secrets.env").write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    rendered = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    documents = list(yaml.safe_load_all(rendered))
    assert sorted(title(one) for one in documents) == sorted(
        [*(title(one) for one in MANIFESTS), "Secret/credentials", "ConfigMap/training-code"]
    )
    for document in documents:
        kubernetes_validate.validate(document, OLDEST, strict=True)


# --- what a cluster would let them do


@pytest.mark.parametrize("workload", WORKLOADS, ids=title)
def test_pods_are_restricted(workload: Manifest) -> None:
    pod = pod_of(workload)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    # Variables that Kubernetes makes of service names, as MLFLOW_PORT=tcp://..., are settings to MLflow.
    assert pod["enableServiceLinks"] is False
    for container in containers_of(workload):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_sidecar_reads_what_the_trainer_writes_and_has_the_time_to() -> None:
    def mount(container: Manifest) -> str:
        (path,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "runs"]
        return str(path)

    for container in (SIDECAR, TRAINER):
        assert variables(container)["TRACKHUB_DIR"] == mount(container)
        # Each would have to be the same: the files of a run are for their owner alone.
        assert "runAsUser" not in container["securityContext"]
    (volume,) = [one for one in pod_of(JOB)["volumes"] if one["name"] == "runs"]
    assert volume["emptyDir"] == {}
    (timeout,) = [float(one.partition("=")[2]) for one in SIDECAR["args"] if one.startswith("--timeout=")]
    assert pod_of(JOB)["terminationGracePeriodSeconds"] >= timeout + STOP_SECONDS + 15


# --- the containers, run as processes


def variables(container: Manifest) -> dict[str, str]:
    """The variables of a container that are not made by the cluster."""
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


class Pod:
    """The containers of the Job as processes that share a directory instead of a volume.

    Args:
        path: Stands for the node's disk; its name is the pod's.
        tracking_uri: The tracking server, instead of the Service.
    """

    def __init__(self, path: Path, tracking_uri: str) -> None:
        path.mkdir()
        self.path = path
        self.name = path.name
        self._tracking_uri = tracking_uri
        self._started: list[subprocess.Popen[str]] = []

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.path / "runs" / self.name)

    def start(self, container: Manifest, *arguments: str) -> subprocess.Popen[str]:
        """Start a container by its manifest.

        Args:
            container: It.
            arguments: More arguments of its command.
        """
        folders = {}
        for mount in container["volumeMounts"]:
            folders[mount["mountPath"]] = EXAMPLE if mount["name"] == "code" else self.path / mount["name"]
            folders[mount["mountPath"]].mkdir(exist_ok=True)

        def here(text: str) -> str:
            for inside, outside in folders.items():
                if text == inside or text.startswith(f"{inside}/"):
                    return f"{outside}{text.removeprefix(inside)}"
            return text

        programs = {"python": sys.executable, "trackhub": str(Path(sys.executable).with_name("trackhub"))}
        program, *rest = [here(part) for part in [*container["command"], *container["args"]]]
        environment = {name: here(value) for name, value in variables(container).items()}
        if "TRACKHUB_MLFLOW_TRACKING_URI" in environment:
            environment["TRACKHUB_MLFLOW_TRACKING_URI"] = self._tracking_uri
        for one in container["env"]:
            if one.get("valueFrom") == {"fieldRef": {"fieldPath": "metadata.name"}}:
                environment[one["name"]] = self.name
        process = subprocess.Popen(
            [programs[program], *rest, *arguments],
            cwd=self.path,
            # Nothing of this process's own variables but where programs are: the manifest must say all.
            env={"PATH": os.environ["PATH"], **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def steps(self) -> int:
        """How many steps the journal holds."""
        if not self.run.exists:
            return 0
        return sum(isinstance(record, MetricsLogged) for record in records_of(self.run))

    def end(self) -> None:
        """End what is left."""
        for process in self._started:
            for process_id in [process.pid, *delivery_processes(process.pid).values()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
            process.communicate()


@contextlib.contextmanager
def tracking_server(directory: Path, port: int) -> Iterator[str]:
    """MLflow's server with the arguments of the manifest, but for the stores, which are local, and the address."""
    own = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--artifacts-destination": str(directory / "artifacts"),
    }
    arguments = [
        f"{name}={own.get(name, value)}" if value else name
        for name, _, value in (argument.partition("=") for argument in SERVER["args"])
    ]
    (allowed,) = [position for position, one in enumerate(arguments) if one.startswith("--allowed-hosts=")]
    arguments[allowed] += f",127.0.0.1:{port}"
    store = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{directory}/server.db"}
    url = f"http://127.0.0.1:{port}"
    log = directory / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *SERVER["command"], *arguments],
            cwd=directory,
            env={"PATH": os.environ["PATH"], **variables(SERVER), **store, "HOME": str(directory)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(url, server, log)
            yield url
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("mlflow")
    with tracking_server(tmp_path_factory.mktemp("server"), free_port()) as url:
        yield url


@contextlib.contextmanager
def running_pod(path: Path, tracking_uri: str) -> Iterator[Pod]:
    """A pod of which nothing is left running."""
    pod = Pod(path, tracking_uri)
    try:
        yield pod
    finally:
        pod.end()


def start_sidecar(pod: Pod) -> subprocess.Popen[str]:
    """Start the sidecar, and wait until signals are its own affair, as they are of a container's first process."""
    sidecar = pod.start(SIDECAR)
    assert "delivering the runs in" in said(sidecar)
    return sidecar


def stop_as_kubelet_does(sidecar: subprocess.Popen[str]) -> str:
    """SIGTERM, and SIGKILL if the grace is over; gives back what the sidecar printed."""
    began = time.monotonic()
    sidecar.send_signal(signal.SIGTERM)
    printed, _ = sidecar.communicate(timeout=pod_of(JOB)["terminationGracePeriodSeconds"])
    assert sidecar.returncode == 0, printed
    assert time.monotonic() - began < pod_of(JOB)["terminationGracePeriodSeconds"]
    return printed


def delivered_points(run: RunDirectory) -> int:
    return run.cursor("mlflow").report.points if run.exists else 0


def assert_all_arrived(url: str, run: RunDirectory, status: str) -> list[str]:
    """Compare what MLflow has with the journal; gives back the paths of the artifacts."""
    from mlflow import MlflowClient

    client = MlflowClient(url)
    experiment = client.get_experiment_by_name("kubernetes")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`trackhub.run_id` = '{run.path.name}'")
    assert found.info.status == status
    assert found.info.run_name == run.path.name
    assert found.data.params == {"steps": "600", "lr": "0.2"}
    logged = [record for record in records_of(run) if isinstance(record, MetricsLogged)]
    for name in ("train/loss", "train/accuracy"):
        history = client.get_metric_history(found.info.run_id, name)
        assert [(point.step, point.value) for point in sorted(history, key=lambda point: point.step)] == [
            (record.step, record.values[name]) for record in logged
        ]
    folders = client.list_artifacts(found.info.run_id)
    return [file.path for folder in folders for file in client.list_artifacts(found.info.run_id, folder.path)]


mlflow_warns = pytest.mark.filterwarnings("default")  # MLflow, imported here to read back, warns


@mlflow_warns
def test_a_training_that_ends_is_finished_in_mlflow(server_url: str, tmp_path: Path) -> None:
    with running_pod(tmp_path / "training-ends", server_url) as pod:
        sidecar = start_sidecar(pod)
        trainer = pod.start(TRAINER, "--seconds=3")
        printed, _ = trainer.communicate(timeout=60)
        assert trainer.returncode == 0, printed
        stop_as_kubelet_does(sidecar)
        assert pod.steps() == 600
        assert "tables/weights.json" in assert_all_arrived(server_url, pod.run, "FINISHED")


@mlflow_warns
def test_of_a_training_that_is_killed_everything_arrives_and_it_is_killed_in_mlflow(
    server_url: str, tmp_path: Path
) -> None:
    with running_pod(tmp_path / "training-is-killed", server_url) as pod:
        sidecar = start_sidecar(pod)
        trainer = pod.start(TRAINER)
        wait_until(lambda: delivered_points(pod.run) > 0, "the sidecar to deliver live")
        trainer.send_signal(signal.SIGKILL)
        assert trainer.wait(20) == -signal.SIGKILL
        stop_as_kubelet_does(sidecar)
        assert 0 < pod.steps() < 600
        assert assert_all_arrived(server_url, pod.run, "KILLED") == ["text/data.txt"]


@mlflow_warns
def test_a_tracking_server_that_comes_after_the_training_was_killed_gets_everything(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    port = free_port()
    with running_pod(tmp_path / "server-comes-late", f"http://127.0.0.1:{port}") as pod:
        sidecar = start_sidecar(pod)
        trainer = pod.start(TRAINER)
        wait_until(lambda: pod.run.exists and pod.run.cursor("mlflow").report.error, "the sidecar to find no server")
        trainer.send_signal(signal.SIGKILL)
        assert trainer.wait(20) == -signal.SIGKILL
        assert delivered_points(pod.run) == 0
        with tracking_server(tmp_path, port) as url:
            stop_as_kubelet_does(sidecar)
            assert pod.steps() > 0
            assert_all_arrived(url, pod.run, "KILLED")


@mlflow_warns
def test_a_sidecar_that_is_killed_and_started_again_delivers_nothing_twice(server_url: str, tmp_path: Path) -> None:
    with running_pod(tmp_path / "sidecar-is-killed", server_url) as pod:
        sidecar = start_sidecar(pod)
        trainer = pod.start(TRAINER)
        wait_until(lambda: delivered_points(pod.run) > 0, "the first sidecar to deliver")
        delivering = delivery_processes(sidecar.pid)["mlflow"]
        # When a container is killed, all its processes are.
        for process_id in (sidecar.pid, delivering):
            os.kill(process_id, signal.SIGKILL)
        sidecar.communicate(timeout=20)
        before = delivered_points(pod.run)
        assert trainer.poll() is None
        sidecar = start_sidecar(pod)
        wait_until(lambda: delivered_points(pod.run) > before, "the second sidecar to deliver")
        trainer.send_signal(signal.SIGKILL)
        assert trainer.wait(20) == -signal.SIGKILL
        stop_as_kubelet_does(sidecar)
        assert_all_arrived(server_url, pod.run, "KILLED")


def answer_to(url: str, host: str) -> int:
    """The status of an answer to a request with this Host header."""
    request = urllib.request.Request(f"{url}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_server_answers_to_its_service_names_and_to_no_others(server_url: str) -> None:
    sidecars = variables(SIDECAR)["TRACKHUB_MLFLOW_TRACKING_URI"].removeprefix("http://")
    namespace = KUSTOMIZATION["namespace"]
    for host in (sidecars, f"mlflow.{namespace}:5000", f"mlflow.{namespace}.svc:5000", "localhost:5000"):
        assert answer_to(server_url, host) == 200
    assert answer_to(server_url, "rebound.example:5000") == 403
