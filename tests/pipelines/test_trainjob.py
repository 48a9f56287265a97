"""Pretraining on several nodes: the request of the kubeflow SDK, the life of the TrainJob, and its command."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import TrainerClient
from kubernetes import client

from components.common.errors import UserError
from components.params import Params
from components.pretrain import trainjob
from components.pretrain.launch import command
from pipelines import follow as following
from pipelines import resources, settings
from tests import ROOT
from tests.conftest import MakeShards
from tests.pipelines import kubernetes_double

NAME = "pretrain-0123456789abcdef"
CLUSTER = resources.describe_nodes(settings.load(), 2)
COMMAND = command(["s3://b/shards"], "s3://b/pretrain/0123456789abcdef", **Params().arguments("pretrain"))


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> Iterator[kubernetes_double.Kubernetes]:
    monkeypatch.setattr(trainjob, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    with kubernetes_double.serve() as double:
        yield double


def connect(double: kubernetes_double.Kubernetes) -> TrainerClient:
    """Connects the real SDK to another address."""
    configuration = client.Configuration(host=f"http://127.0.0.1:{double.server_port}")
    return TrainerClient(KubernetesBackendConfig(namespace=kubernetes_double.NAMESPACE, client_configuration=configuration))


def follow(double: kubernetes_double.Kubernetes) -> None:
    trainjob.follow(connect(double), NAME, COMMAND, json.loads(json.dumps(CLUSTER)))


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """Merges runtime, patch and trainer into a pod spec."""
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    trainer = job["spec"]["trainer"]
    container = {**pod["containers"][0], "image": trainer["image"], "command": trainer["command"], "env": trainer["env"]}
    return {**pod, "containers": [{**container, "resources": trainer["resourcesPerNode"]}], "restartPolicy": "Never"}


def test_the_request_holds_what_the_settings_say(kubernetes: kubernetes_double.Kubernetes) -> None:
    """The request passes the models of kubeflow-trainer-api, and its pod the schema of Kubernetes."""
    follow(kubernetes)

    (job,) = kubernetes.created
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert job["metadata"]["labels"] == {trainjob.RUN_LABEL: "run-1"}
    assert job["spec"]["activeDeadlineSeconds"] == 72 * 3600
    trainer = job["spec"]["trainer"]
    assert trainer["numNodes"] == 2
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": 1}
    assert {"name": "KFP_RUN_ID", "value": "run-1"} in trainer["env"]
    pod = pod_of(job)
    assert pod["nodeSelector"] == {"cxr/pool": "gpu"}
    assert {taint["key"] for taint in pod["tolerations"]} == {"nvidia.com/gpu", "cxr/spot"}
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {"/dev/shm", "/work", trainjob.SECRETS_FOLDER}
    assert (
        "env"
        not in job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
            "template"
        ]["spec"]["containers"][0]
    ), "Trainer's webhook refuses variables in a patch of the node's container"
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": pod}, "1.31", strict=True)


def test_the_request_contains_no_secret(kubernetes: kubernetes_double.Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    follow(kubernetes)
    assert "hush" not in json.dumps(kubernetes.created)
    assert "cxr-pseudonyms" not in json.dumps(kubernetes.created)


def test_the_trainjob_is_deleted_at_the_end(kubernetes: kubernetes_double.Kubernetes) -> None:
    follow(kubernetes)
    assert kubernetes.deleted == [NAME]


def test_a_failed_trainjob_is_deleted(kubernetes: kubernetes_double.Kubernetes) -> None:
    kubernetes.conditions = ["", "Failed"]
    with pytest.raises(UserError, match="has failed"):
        follow(kubernetes)
    assert kubernetes.deleted == [NAME]


def test_a_cancelled_step_deletes_it(kubernetes: kubernetes_double.Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainjob.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        follow(kubernetes)
    assert kubernetes.deleted == [NAME]


def test_the_trainjob_of_a_preempted_attempt_is_replaced(kubernetes: kubernetes_double.Kubernetes) -> None:
    kubernetes.add({"metadata": {"name": NAME}, "spec": {"runtimeRef": {"name": "torch-distributed"}}})
    follow(kubernetes)
    assert kubernetes.deleted == [NAME, NAME]
    assert len(kubernetes.created) == 1


def test_a_refusal_is_one_line(kubernetes: kubernetes_double.Kubernetes) -> None:
    kubernetes.refuses = True
    with pytest.raises(UserError, match="check Kubeflow Trainer and the permissions") as caught:
        follow(kubernetes)
    assert "forbidden" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_become_variables(tmp_path: Path) -> None:
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("it's $HOME")
    (tmp_path / "..data").mkdir()
    done = subprocess.run(
        ["sh", "-c", trainjob.WITH_SECRETS, "sh", sys.executable, "-c", "import os; print(os.environ['AWS_SECRET_ACCESS_KEY'])"],
        env={**os.environ, trainjob.SECRETS_VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "it's $HOME\n"


@pytest.mark.slow
def test_its_command_trains_in_two_processes(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """Runs the command of the request with the variables that Kubeflow Trainer sets for torchrun."""
    out = tmp_path / "backbone"
    option = trainjob.options(NAME, command([make_shards()], str(out), **tiny.arguments("pretrain")), CLUSTER)[3]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": "2",
        "PET_NODE_RANK": "0",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    environment = {
        **os.environ,
        **torchrun,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        trainjob.SECRETS_VARIABLE: str(tmp_path / "none"),
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(option.command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "backbone.safetensors").is_file()
    assert json.loads((out / "run.json").read_text())["params"]["epochs"] == tiny.pretrain.epochs


def test_constants_that_two_modules_share() -> None:
    """The pipelines compile without the kubeflow SDK, and therefore cannot import them."""
    assert resources.SECRETS_FOLDER == trainjob.SECRETS_FOLDER
    assert following.RUN_LABEL == trainjob.RUN_LABEL
