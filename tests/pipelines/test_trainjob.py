"""Pretraining on several nodes: the request for the TrainJob, its life, what is told of it, and its command."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models
from kubernetes import client

from components.common.errors import TemporaryError, UserError
from components.common.training import launch
from components.common.training.launch import command
from components.params import Params
from components.pretrain import trainjob
from pipelines import cluster as users_cluster
from pipelines import resources, settings
from tests import ROOT
from tests.conftest import MakeShards
from tests.pipelines import kubernetes_double
from tests.pipelines.conftest import KUBECONFIG
from tests.pipelines.kubernetes_double import condition, ended, log, pod

NAME = "pretrain-0123456789abcdef"
CLUSTER = resources.describe_nodes(settings.load(), 2)
COMMAND = [
    "python3",
    *command("pretrain", {"shards": ["s3://b/shards"]}, "s3://b/pretrain/0123456789abcdef", **Params().arguments("pretrain")),
]
DONE = (condition("Complete"), [pod("p-0", state=ended(0, "Completed"))])


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[kubernetes_double.Kubernetes]:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(trainjob, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    with kubernetes_double.serve() as double:
        yield double


def follow(double: kubernetes_double.Kubernetes) -> None:
    connection = client.ApiClient(client.Configuration(host=double.url))
    trainjob.TrainJob(NAME, kubernetes_double.NAMESPACE, connection).run(COMMAND, json.loads(json.dumps(CLUSTER)))


def earlier(double: kubernetes_double.Kubernetes) -> None:
    """Adds the TrainJob of an earlier attempt."""
    double.add({"metadata": {"name": NAME}, "spec": {"runtimeRef": {"name": "torch-distributed"}}})


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
    assert job["spec"]["runtimeRef"] == {"name": "cxr-pretrain", "kind": "TrainingRuntime"}
    assert job["metadata"]["labels"] == {trainjob.RUN_LABEL: "run-1"}
    assert job["spec"]["activeDeadlineSeconds"] == 72 * 3600
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 1)
    assert trainer["resourcesPerNode"] == {
        "requests": {"cpu": "8", "memory": "48Gi", "nvidia.com/gpu": 1},
        "limits": {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": 1},
    }
    assert {"name": "KFP_RUN_ID", "value": "run-1"} in trainer["env"]
    assert trainer["command"][4:7] == ["python3", "-m", "components.torchrun"]
    pod = pod_of(job)
    assert pod["nodeSelector"] == {"cxr/pool": "gpu"}
    assert {taint["key"] for taint in pod["tolerations"]} == {"nvidia.com/gpu", "cxr/spot"}
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {"/dev/shm", "/work", trainjob.SECRETS_FOLDER}
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    labels = node["template"]["spec"]["template"]["metadata"]["labels"]
    assert labels == {"sidecar.istio.io/inject": "false", trainjob.RUN_LABEL: "run-1"}, "`kubectl get pods -l` finds the nodes"
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    assert "env" not in container, "Trainer's webhook refuses variables in a patch of the node's container"
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": pod}, "1.31", strict=True)


@pytest.mark.parametrize(("runtime", "kind"), [("torch-distributed", "ClusterTrainingRuntime"), ("cxr-pretrain", "TrainingRuntime")])
def test_the_runtime_is_found(kubernetes: kubernetes_double.Kubernetes, monkeypatch: pytest.MonkeyPatch, runtime: str, kind: str) -> None:
    monkeypatch.setitem(CLUSTER, "runtime", runtime)
    follow(kubernetes)
    assert kubernetes.created[0]["spec"]["runtimeRef"] == {"name": runtime, "kind": kind}


def test_a_missing_runtime(kubernetes: kubernetes_double.Kubernetes) -> None:
    kubernetes.runtimes.clear()
    with pytest.raises(UserError, match=r"no training runtime cxr-pretrain; install Kubeflow Trainer"):
        follow(kubernetes)
    assert not kubernetes.created


def test_the_request_contains_no_secret(kubernetes: kubernetes_double.Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    follow(kubernetes)
    assert "hush" not in json.dumps(kubernetes.created)
    assert "cxr-pseudonyms" not in json.dumps(kubernetes.created)


def test_the_trainjob_is_deleted_at_the_end(kubernetes: kubernetes_double.Kubernetes) -> None:
    follow(kubernetes)
    assert kubernetes.deleted == [NAME]


def test_a_cancelled_step_deletes_it(kubernetes: kubernetes_double.Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("components.pretrain.trainjob.time.sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        follow(kubernetes)
    assert kubernetes.deleted == [NAME]


def test_one_that_somebody_deletes_is_not_started_again(kubernetes: kubernetes_double.Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.pretrain.trainjob.time.sleep", lambda seconds: kubernetes.jobs.clear())
    with pytest.raises(UserError, match="was deleted while it ran"):
        follow(kubernetes)
    assert len(kubernetes.created) == 1


def test_the_pods_of_an_earlier_attempt_must_be_gone(kubernetes: kubernetes_double.Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
    """The double asserts it when the new TrainJob is created."""
    earlier(kubernetes)
    gone = pod("old-0")
    gone["metadata"]["deletionTimestamp"] = kubernetes_double.NOW
    kubernetes.lingering = [pod("old-0"), gone, gone]
    follow(kubernetes)
    assert kubernetes.deleted == [NAME, NAME]
    assert len(kubernetes.created) == 1
    assert f"TrainJob {NAME}: node 0 is being removed" in caplog.messages


@pytest.mark.parametrize("phase", ["Pending", "Running"])
def test_the_trainjob_of_another_pipeline_run_is_left_alone(kubernetes: kubernetes_double.Kubernetes, phase: str) -> None:
    """Two runs with the same parameters, inputs and code make the same output; each attempt waits, as for a lock."""
    kubernetes.add({"metadata": {"name": NAME, "labels": {trainjob.RUN_LABEL: "run-0"}}, "spec": {}})
    kubernetes.steps["run-0"] = [{**pod("launch-0"), "status": {"phase": phase}}]
    with pytest.raises(TemporaryError, match=r"the pipeline run run-0 is making the same output; .* `python -m pipelines cancel run-0`"):
        follow(kubernetes)
    assert not kubernetes.created
    assert not kubernetes.deleted


@pytest.mark.parametrize("phases", [[], ["Succeeded", "Failed"]])
def test_a_trainjob_that_a_cancelled_run_has_left_is_replaced(kubernetes: kubernetes_double.Kubernetes, phases: list[str]) -> None:
    kubernetes.add({"metadata": {"name": NAME, "labels": {trainjob.RUN_LABEL: "run-0"}}, "spec": {}})
    kubernetes.steps["run-0"] = [{**pod("launch-0"), "status": {"phase": phase}} for phase in phases]
    follow(kubernetes)
    assert len(kubernetes.created) == 1


def test_pods_that_never_end(kubernetes: kubernetes_double.Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainjob, "PATIENCE_SECONDS", 0.02)
    kubernetes.lingering = [pod("old-0")] * 1000
    with pytest.raises(TemporaryError, match=r"of an earlier attempt do not end \(old-0\); delete them if their node is lost"):
        follow(kubernetes)
    assert not kubernetes.created


def test_logs_are_shown_once_and_across_restarts(kubernetes: kubernetes_double.Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
    """The container of the first pod starts again, and then another pod takes its place, with a shorter log than was shown before."""
    first, again = pod("p-0"), pod("p-0", last=ended(1), restarts=1)
    kubernetes.frames = [(None, [first]), (None, [first]), (None, [again]), (None, [pod("p-0-b"), pod("p-1", 1)]), DONE]
    texts = iter(
        [
            {("p-0", False): log("a", "b", "c")},
            {("p-0", False): log("a", "b", "c", "d")},
            {("p-0", True): log("a", "b", "c", "d", "e"), ("p-0", False): log("f", begin=20)},
            {("p-0-b", False): log("g", begin=40), ("p-1", False): log("other", begin=41)},
            {},
        ]
    )
    advance = kubernetes._advance

    def change(job: dict[str, Any]) -> dict[str, Any]:
        kubernetes.logs = next(texts)
        return advance(job)

    kubernetes._advance = change  # type: ignore[method-assign]
    follow(kubernetes)
    assert [line for line in caplog.messages if "TrainJob" not in line] == [*"abcdefg", "node 1: other"]
    assert f"TrainJob {NAME}: node 0 runs, restarted after Error (1)" in caplog.messages


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (pod("p", unscheduled="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "waits for a place: 0/3 nodes are available: 3"),
        (
            pod("p", state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}),
            "waits: ImagePullBackOff, Back-off",
        ),
        (pod("p", state={"waiting": {"reason": "CrashLoopBackOff"}}, last=ended(137, "OOMKilled"), restarts=3), "OOMKilled (137)"),
        (pod("p", state={"waiting": {"reason": "ContainerCreating"}}), "running"),
        (pod("p", state=ended(0, "Completed")), "has ended, Completed (0)"),
    ],
)
def test_what_a_node_waits_for_is_said_once(
    kubernetes: kubernetes_double.Kubernetes, caplog: pytest.LogCaptureFixture, found: dict[str, Any], said: str
) -> None:
    kubernetes.frames = [*[(None, [found])] * 3, (condition("Complete"), [])]
    follow(kubernetes)
    assert len([line for line in caplog.messages if said in line]) == 1


def test_a_suspended_trainjob_is_reported(kubernetes: kubernetes_double.Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
    kubernetes.frames = [(condition("Suspended", message="waits for quota"), []), DONE]
    follow(kubernetes)
    assert f"TrainJob {NAME}: is suspended: waits for quota" in caplog.messages


def test_an_outage_of_the_api_is_outlasted(kubernetes: kubernetes_double.Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
    earlier(kubernetes)
    kubernetes.lost = 6
    follow(kubernetes)
    assert len(kubernetes.created) == 1
    assert any("the API of Kubernetes does not answer" in line for line in caplog.messages)


def test_a_long_outage_is_temporary_and_no_matter_of_rights(
    kubernetes: kubernetes_double.Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob.TrainJob._call, "__kwdefaults__", {"patience": 0.05})
    kubernetes.lost = 10**6
    with pytest.raises(TemporaryError, match="the API of Kubernetes does not answer") as caught:
        follow(kubernetes)
    assert "rbac" not in str(caught.value)


def test_an_answer_that_was_lost(kubernetes: kubernetes_double.Kubernetes) -> None:
    """The TrainJob was created, but the API could not say so: the next request to create it is refused with 409."""
    create = kubernetes._create

    def lose(body: dict[str, Any]) -> tuple[int, Any]:
        status, content = create(body)
        return (500, {"message": "lost"}) if status == 201 else (status, content)

    kubernetes._create = lose  # type: ignore[method-assign]
    follow(kubernetes)
    assert len(kubernetes.created) == 1


def test_a_refusal_is_one_line(kubernetes: kubernetes_double.Kubernetes) -> None:
    kubernetes.refuses = True
    with pytest.raises(UserError, match=r"Kubernetes refuses \(403, trainjobs is forbidden\); check Kubeflow Trainer and deploy") as caught:
        follow(kubernetes)
    assert not isinstance(caught.value, TemporaryError)
    assert "\n" not in str(caught.value)


def test_a_failure_says_why_and_shows_the_last_log(kubernetes: kubernetes_double.Kubernetes, caplog: pytest.LogCaptureFixture) -> None:
    """The pods are gone by the time the TrainJob has failed; the reason is that of the condition."""
    kubernetes.logs[("p-1", False)] = log("RuntimeError: NCCL")
    failed = condition("Failed", "DeadlineExceeded", "the JobSet was active for too long")
    kubernetes.frames = [(None, [pod("p-0"), pod("p-1", 1, last=ended(1), restarts=1)]), (failed, [])]
    with pytest.raises(SystemExit) as caught:
        follow(kubernetes)
    assert caught.value.code == 1
    assert "node 1: RuntimeError: NCCL" in caplog.messages
    assert "has failed (DeadlineExceeded, the JobSet was active for too long): its nodes are gone" in caplog.messages[-1]
    assert kubernetes.deleted == [NAME]


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_mistake_of_the_user_ends_it_at_once(kubernetes: kubernetes_double.Kubernetes, restarts: int) -> None:
    """Even if the runtime restarts the container: exit code 2 and the message of node 0, which says it for all."""
    kubernetes.logs[("p-0", restarts > 0)] = log("10:00:00 reading", "pretrain: pretrain.batch_size: 7 is not a multiple of 2 processes")
    kubernetes.logs[("p-1", restarts > 0)] = log("10:00:00 reading")
    state = {"last": ended(2), "restarts": 1} if restarts else {"state": ended(2)}
    kubernetes.frames = [(None, [pod("p-1", 1, **state)]), (None, [pod("p-0", **state), pod("p-1", 1, **state)])]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^pretrain.batch_size: 7 is not a multiple of 2 processes$"):
        follow(kubernetes)
    assert kubernetes.deleted == [NAME]


def test_the_runtime_stops_at_a_mistake_and_restarts_all_nodes_together() -> None:
    manifest = yaml.safe_load((ROOT / "deploy/training-runtime.yaml").read_text())
    models.TrainerV1alpha1TrainingRuntime.from_dict(manifest)
    assert settings.load().trainer.runtime == manifest["metadata"]["name"]
    jobset = manifest["spec"]["template"]["spec"]
    (job,) = jobset["replicatedJobs"]
    kubernetes_validate.validate(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **job["template"]}, "1.31", strict=True
    )
    assert job["template"]["spec"]["backoffLimit"] == 0, "a single node would start again beside the others"
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
    assert jobset["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert jobset["failurePolicy"]["restartStrategy"] == "BlockingRecreate"


@pytest.mark.parametrize(("code", "expected"), [("exit 75", 75), ("exit 2", 2), ("exit 1", 1), ("kill -9 $$", 1)])
def test_the_exit_code_of_torchrun_is_that_of_the_step(code: str, expected: int) -> None:
    with pytest.raises(SystemExit) as caught:
        launch._call(["sh", "-c", code])
    assert caught.value.code == expected


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


def test_the_starting_point_is_in_the_command() -> None:
    inputs = {"shards": ["s3://b/shards"], "start": "s3://b/moco.pth"}
    given = command("pretrain", inputs, "s3://b/out", **Params().arguments("pretrain"))
    assert given[given.index("--start") + 1] == "s3://b/moco.pth"
    assert "--start" not in COMMAND


@pytest.mark.slow
def test_its_command_trains_in_two_processes(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """Runs the command of the request with the variables that Kubeflow Trainer sets for torchrun."""
    out = tmp_path / "backbone"
    arguments = command("pretrain", {"shards": [make_shards()]}, str(out), **tiny.arguments("pretrain"))
    request = trainjob.request(NAME, [sys.executable, *arguments], CLUSTER, "TrainingRuntime")
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
    done = subprocess.run(request["spec"]["trainer"]["command"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "backbone.safetensors").is_file()
    assert json.loads((out / "run.json").read_text())["params"]["epochs"] == tiny.pretrain.epochs


@pytest.fixture
def user(kubernetes: kubernetes_double.Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> users_cluster.Cluster:
    """The cluster as a user reaches it, by a kubeconfig."""
    kubernetes_double.write_kubeconfig(tmp_path / "config", kubernetes)
    monkeypatch.setattr(KUBECONFIG, str(tmp_path / "config"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return users_cluster.Cluster(kubernetes_double.NAMESPACE)


def test_users_see_and_delete_the_trainjobs_of_a_run(kubernetes: kubernetes_double.Kubernetes, user: users_cluster.Cluster) -> None:
    for name, run in ((NAME, "run-1"), ("other", "run-2")):
        kubernetes.add({"metadata": {"name": name, "labels": {users_cluster.RUN_LABEL: run}}, "spec": {}})
    ((name, nodes),) = user.trainjobs("run-1").items()
    assert (name, [node.state for node in nodes]) == (NAME, ["runs", "runs"])
    kubernetes.logs["p-0", False] = '{"a": true}'
    assert user.log("p-0") == '{"a": true}', "not as Python writes it"
    user.delete_trainjob(name)
    assert list(kubernetes.jobs) == ["other"]
    with pytest.raises(UserError, match="Kubernetes: answers 404"):
        user.delete_trainjob(name)


def test_constants_that_two_modules_share() -> None:
    """Pipelines compile without the modules that run in the steps, and therefore cannot import them."""
    assert resources.SECRETS_FOLDER == trainjob.SECRETS_FOLDER
    assert users_cluster.RUN_LABEL == trainjob.RUN_LABEL
