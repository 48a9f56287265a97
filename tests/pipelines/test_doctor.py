"""The command `doctor` against a double of the Kubernetes API that knows a namespace, and refuses what the user may not see."""

import base64
import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import torch
import yaml
from kubernetes.config import kube_config

from components.common.training import devices
from pipelines.__main__ import main
from pipelines.doctor import checks, pod, probe
from pipelines.doctor.rights import NEEDED, Right
from pipelines.settings import EXAMPLE, Affinity, Pool
from tests import ROOT
from tests.http_server import in_background
from tests.pipelines import double
from tests.pipelines.test_deploy import allowed

SPACE = "/api/v1/namespaces/cxr"
ACCOUNT = "rights of cxr-pipelines"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
AUTHORIZATION = "/apis/authorization.k8s.io/v1"
STRATEGY = {"limit": "2", "retryPolicy": "Always", "expression": "lastRetry.exitCode == '143'"}


def secret(**values: str) -> dict[str, Any]:
    return {"data": {key.replace("_", "-"): base64.b64encode(value.encode()).decode() for key, value in values.items()}}


def node(taints: list[dict[str, str]], gpus: str = "4") -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": {"cxr/pool": "gpu", "nvidia.com/gpu.memory": "81000"}},
        "spec": {"taints": taints},
        "status": {"allocatable": {"nvidia.com/gpu": gpus}},
    }


def argo(**changes: str) -> dict[str, Any]:
    defaults = {"spec": {"templateDefaults": {"retryStrategy": STRATEGY | changes}}}
    return {"/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap": {"data": {"workflowDefaults": json.dumps(defaults)}}}


def complete() -> dict[str, Any]:
    """Returns what the API answers to GET if nothing is missing."""
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    return {
        f"{SPACE}/serviceaccounts/cxr-pipelines": {"metadata": {"name": "cxr-pipelines"}},
        f"{SPACE}/secrets/cxr-s3": secret(access_key="a", secret_key="b"),
        f"{SPACE}/secrets/cxr-mlflow": secret(username="a", password="b"),
        f"{SPACE}/secrets/cxr-pseudonyms": secret(key="a"),
        f"{SPACE}/secrets/mlpipeline-minio-artifact": secret(accesskey="a", secretkey="b"),
        f"{SPACE}/persistentvolumeclaims/cxr-work": {"spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Bound"}},
        "/api/v1/nodes": {"items": [node([taint])]},
        f"{TRAINER}/namespaces/cxr/trainingruntimes/cxr-pretrain": {"metadata": {"name": "cxr-pretrain"}},
        **argo(),
    }


def container(name: str, **state: Any) -> dict[str, Any]:
    return {"name": name, "image": f"registry/{name}:1", "imageID": "", "ready": False, "restartCount": 0, "state": state}


NOT_FOUND = {"reason": "ErrImagePull", "message": "not\nfound"}
DONE = {"terminated": {"exitCode": 0}}
FOUND_GPU = '{"what": "GPU", "fine": true, "said": "NVIDIA H100 with driver 580.95.05"}\n'
FOUND = '{"what": "S3", "fine": true, "said": "s3://cxr/artifacts can be written to"}\n'


class Kubernetes(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = complete()
        self.hidden: set[str] = set()
        """Paths that are answered with 403."""
        self.denied: set[tuple[str, str]] = set()
        """Verb and resource of the rights that the account lacks."""
        self.pods: dict[str, dict[str, Any]] = {name: {"containerStatuses": [container(name, **DONE)]} for name in ("cpu", "gpu")}
        """Status by image."""
        self.logs = {"cpu": f"a line of a library\n{FOUND}", "gpu": FOUND_GPU}
        self.created: list[dict[str, Any]] = []
        self.deleted = 0

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path in self.hidden:
            return 403, {"message": "forbidden"}
        match method, path.rpartition("/")[2]:
            case "POST", "localsubjectaccessreviews" | "subjectaccessreviews" | "selfsubjectaccessreviews":
                wanted = body["spec"]["resourceAttributes"]
                name = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
                everywhere = not wanted.get("namespace")
                right = Right(wanted["verb"], name, wanted.get("group") or "", wanted.get("name") or "", everywhere=everywhere)
                return 201, {
                    "spec": body["spec"],
                    "status": {"allowed": allowed(right) and (right.verb, right.resource) not in self.denied},
                }
            case "POST", "pods":
                self.created.append(body)
                return 201, {"metadata": {"name": f"{body['metadata']['generateName']}1"}}
            case "GET", "cxr-doctor-cpu-1" | "cxr-doctor-gpu-1" as name:
                return 200, {"metadata": {"name": name}, "status": self.pods[name.split("-")[2]]}
            case "GET", "log":
                return 200, self.logs[path.split("-")[-2]]
            case "DELETE", name if name.startswith("cxr-doctor-"):
                self.deleted += 1
                return 200, {"metadata": {"name": name}}
        return (200, self.objects[path]) if path in self.objects else (404, {"message": "not found"})


class _Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def _handle(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        status, content = self.server.answer(self.command, urlsplit(self.path).path, body or {})
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content.encode() if isinstance(content, str) else json.dumps(content).encode())

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(pod, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(ROOT)
    running = Kubernetes()
    with in_background(running):
        content = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{running.server_port}"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "c",
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(content))
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))  # read when imported
        yield running


def doctor(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, str]]:
    """Runs the command; returns its exit code, and the lines by what they are about."""
    with double.serve() as kubeflow:
        code = main(["doctor", "--host", kubeflow.url, *options])
    out, err = capsys.readouterr()
    assert not err
    return code, {line[6:].partition(":")[0]: line for line in out.splitlines()}


def test_a_complete_cluster(cluster: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = doctor(capsys)
    assert code == 0
    assert {line[:5].strip() for line in lines.values()} == {"ok"}
    assert lines["rights of cxr-pipelines"] == f"ok    rights of cxr-pipelines: may do the {len(NEEDED)} things that a step does"
    assert lines["GPU nodes"].startswith("ok    GPU nodes: 1 of 1 nodes have 1 nvidia.com/gpu")
    assert {"Kubeflow", "secret cxr-s3", "volume cxr-work", "Trainer", "lost pods", "image cpu", "image gpu", "S3", "GPU"} <= lines.keys()
    for made in cluster.created:
        made["metadata"]["name"] = "cxr-doctor-1"
        kubernetes_validate.validate(made, "1.34", strict=True)
    on_gpu = cluster.created[1]["spec"]
    assert on_gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert on_gpu["nodeSelector"] == {"cxr/pool": "gpu"}
    assert {taint["key"] for taint in on_gpu["tolerations"]} == {"nvidia.com/gpu", "cxr/spot"}
    assert cluster.deleted == 2


@pytest.mark.parametrize(
    ("change", "what", "said"),
    [
        (lambda it: it.denied.add(("get", "secrets")), ACCOUNT, "may not get secrets mlpipeline-minio-artifact (for Kube"),
        (lambda it: it.objects.pop(f"{SPACE}/serviceaccounts/cxr-pipelines"), ACCOUNT, "does not exist in cxr; run `kubectl apply -k"),
        (lambda it: it.objects.pop(f"{SPACE}/secrets/cxr-s3"), "secret cxr-s3", "does not exist in cxr; fill in deploy/secrets.yaml"),
        (
            lambda it: it.objects.update({f"{SPACE}/secrets/cxr-mlflow": secret(username="REPLACE-ME")}),
            "secret cxr-mlflow",
            "has no value for username, password; fill in",
        ),
        (lambda it: it.objects.pop(f"{SPACE}/persistentvolumeclaims/cxr-work"), "volume cxr-work", "does not exist in cxr"),
        (
            lambda it: it.objects[f"{SPACE}/persistentvolumeclaims/cxr-work"]["spec"].update(accessModes=["ReadWriteOnce"]),
            "volume cxr-work",
            "is ReadWriteOnce; steps run on several nodes",
        ),
        (lambda it: it.objects.update({"/api/v1/nodes": {"items": [node([], "0")]}}), "GPU nodes", "0 of 1 nodes have 1 nvidia.com/gpu"),
        (lambda it: it.objects.update(argo(retryPolicy="OnError")), "lost pods", "change its configuration with deploy/retries.sed"),
        *(
            (lambda it, data=data: it.objects[next(iter(argo()))].update(data=data), "lost pods", "change its configuration with")
            for data in (None, {"workflowDefaults": "spec:"}, {"workflowDefaults": "a: ["})
        ),
        (
            lambda it: it.pods["cpu"].update(containerStatuses=[container("cpu", waiting=NOT_FOUND)]),
            "image cpu",
            "registry/cpu:1: ErrImagePull, not found",
        ),
        (lambda it: it.logs.update(cpu='{"what": "MLflow", "fine": false, "said": "answers 401"}'), "MLflow", "answers 401"),
        (lambda it: it.logs.update(gpu='{"what": "GPU", "fine": false, "said": "sees none"}'), "GPU", "sees none"),
    ],
)  # fmt: skip
def test_what_is_wrong(cluster: Kubernetes, capsys: pytest.CaptureFixture[str], change: Any, what: str, said: str) -> None:
    change(cluster)
    code, lines = doctor(capsys)
    assert code == 1
    assert "image gpu" in lines, "one broken image does not keep the other from being looked at"
    assert lines[what].startswith("WRONG")
    assert said in lines[what]
    assert [line[:5] for line in lines.values()].count("WRONG") == 1


def test_nodes_of_the_spot_pool_are_for_steps_that_may_run_there(cluster: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """In the example settings, pretraining may run on spot nodes, and heads may not."""
    cluster.objects["/api/v1/nodes"]["items"][0]["spec"]["taints"] += [{"key": "cxr/spot", "value": "true", "effect": "NoSchedule"}]
    with double.serve() as kubeflow:
        main(["doctor", "--host", kubeflow.url])
    found = [line for line in capsys.readouterr().out.splitlines() if "GPU nodes" in line]
    assert [line[:5].strip() for line in found] == ["WRONG", "ok"]
    assert "the labels of `gpu` and `spot` in the settings" in found[1]


def test_a_namespace_in_which_the_user_has_no_rights(cluster: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    with double.serve() as kubeflow:
        kubeflow.foreign = {"cxr"}
        assert main(["doctor", "--host", kubeflow.url]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("WRONG Kubeflow: ")
    assert "answers 403, User is not authorized" in first


def test_a_user_with_few_rights_learns_what_could_not_be_looked_at(cluster: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.hidden = {
        *cluster.objects,
        f"{SPACE}/pods",
        f"{AUTHORIZATION}/subjectaccessreviews",
        f"{AUTHORIZATION}/namespaces/cxr/localsubjectaccessreviews",
    }
    code, lines = doctor(capsys)
    assert code == 0
    assert lines.pop("Kubeflow").startswith("ok")
    assert {line[:5].strip() for line in lines.values()} == {"?"}
    assert "you may do all" in lines["rights of cxr-pipelines"]
    assert lines["image cpu"].endswith("no pod can be started there; Kubernetes: answers 403, forbidden")


@pytest.mark.parametrize(("target", "state"), [("cpu", "WRONG"), ("gpu", "?")])
def test_a_pod_without_a_place_is_reported_at_once(
    cluster: Kubernetes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: str, state: str
) -> None:
    """All GPUs may be in use."""
    monkeypatch.setattr(pod, "PATIENCE_SECONDS", 0.1)
    reason = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims"
    cluster.pods[target] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": reason}]}
    with double.serve() as kubeflow:
        assert main(["doctor", "--host", kubeflow.url]) == (state == "WRONG")
    first, second = [line for line in capsys.readouterr().out.splitlines() if reason in line]
    assert first.startswith(f"?     pod cxr-doctor-{target}-1: waits for a place")
    assert second.startswith(f"{state:5} pod cxr-doctor-{target}-1: has not run")
    assert cluster.deleted == 2


def test_ctrl_c_deletes_the_pods(cluster: Kubernetes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    cluster.pods["cpu"] = {"phase": "Pending"}
    monkeypatch.setattr(pod, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
    with double.serve() as kubeflow:
        assert main(["doctor", "--host", kubeflow.url]) == 130
    assert capsys.readouterr().err == "doctor: interrupted\n"
    assert cluster.deleted == 2


def test_without_a_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.chdir(ROOT)
    assert main(["doctor", "--host", "http://127.0.0.1:9"]) == 2
    assert "no kubeconfig" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("affinity", "fits"),
    [
        (Affinity(key="nvidia.com/gpu.memory", operator="Gt", values=("40000",)), True),
        (Affinity(key="nvidia.com/gpu.memory", operator="Lt", values=("40000",)), False),
        (Affinity(key="zone", operator="Exists"), False),
        (Affinity(key="zone", operator="DoesNotExist"), True),
        (Affinity(key="zone", operator="In", values=("a",)), False),
        (Affinity(key="zone", operator="NotIn", values=("a",)), True),
        (Affinity(key="zone", operator="In", values=("a",), weight=1), True),
    ],
)
def test_affinities(affinity: Affinity, fits: bool) -> None:
    class Meta:
        labels = {"nvidia.com/gpu.memory": "81000"}  # noqa: RUF012

    class Node:
        metadata = Meta
        spec = type("Spec", (), {"taints": None})

    assert checks.fits(Node, [Pool(affinity=(affinity,))]) == fits


def test_the_probe_tries_what_the_steps_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path / "work"))
    assert probe.main([str(tmp_path / "root")]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["what"], one["fine"]) for one in found] == [("S3", True), ("MLflow", True), ("volume", True)]
    (tmp_path / "file").touch()
    probe.main([str(tmp_path / "file")])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["fine"] is False


@pytest.mark.parametrize(
    ("path", "what", "said"),
    [
        (
            f"{TRAINER}/namespaces/cxr/trainingruntimes/cxr-pretrain",
            "Trainer",
            "has no runtime cxr-pretrain; apply deploy/training",
        ),
        (f"{SPACE}/serviceaccounts/nodes", "service account nodes of the training nodes", "or correct trainer.service_account"),
    ],
)
@pytest.mark.parametrize(("nodes", "state"), [("1", "?"), ("2", "WRONG")])
def test_what_several_nodes_need(
    cluster: Kubernetes, capsys: pytest.CaptureFixture[str], tmp_path: Path, path: str, what: str, said: str, nodes: str, state: str
) -> None:
    """It is wrong only if the parameters ask for several nodes."""
    (tmp_path / "settings.yaml").write_text(EXAMPLE.read_text().replace("service_account: cxr-pipelines}", "service_account: nodes}"))
    cluster.objects[f"{SPACE}/serviceaccounts/nodes"] = {"metadata": {"name": "nodes"}}
    del cluster.objects[path]
    code, lines = doctor(capsys, "--settings", str(tmp_path / "settings.yaml"), "--set", f"runtime.nodes={nodes}")
    assert code == (state == "WRONG")
    assert lines[what].startswith(f"{state:5} {what}: ")
    assert said in lines[what]


def test_the_probe_of_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert probe.main([]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["what"], found["fine"]) == ("GPU", False)
    assert "needs driver 580 or newer" in found["said"]


def test_the_driver_that_the_gpu_image_needs_is_documented() -> None:
    (major,) = re.findall(r"(?m)^nvidia-cuda-runtime==(\d+)\.", (ROOT / "docker" / "gpu.lock").read_text())
    assert f"driver {devices.OLDEST_DRIVERS[major]} or newer" in (ROOT / "docs" / "kubernetes.md").read_text()
