"""The manifests of deploy/ as kustomize builds them, against the schemas of Kubernetes, and against the settings that refer to them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines import settings
from pipelines.doctor.rights import NEEDED, Right
from tests import ROOT

DEPLOY = ROOT / "deploy"
MANIFESTS: list[tuple[Path, dict[str, Any]]] = [
    (path, manifest)
    for path in sorted(DEPLOY.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for manifest in yaml.safe_load_all(path.read_text())
    if not manifest["apiVersion"].startswith("trainer.kubeflow.org/")  # test_trainjob.py has a model for these
]
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {manifest["metadata"]["name"]: manifest for _, manifest in MANIFESTS if manifest["kind"] == kind}


def built(folder: Path, **values: str) -> list[dict[str, Any]]:
    """Returns what `kubectl apply -k` would send for a copy of deploy/ in which the values of kustomization.yaml are replaced."""
    copy = folder / "deploy"
    shutil.copytree(DEPLOY, copy)
    path = copy / "kustomization.yaml"
    text = path.read_text()
    for name, value in values.items():
        text = re.sub(rf"(?m)^(\s*{name}:) \S+", rf"\1 {value}", text)
    path.write_text(text.replace("value: REPLACE-ME", "value: nfs"))
    done = subprocess.run(["kubectl", "kustomize", str(copy)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("manifest", [pytest.param(one, id=f"{path.stem}-{one['metadata']['name']}") for path, one in MANIFESTS])
@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_manifests_are_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@needs_kubectl
@pytest.mark.parametrize("namespace", ["cxr", "kubeflow"])
def test_the_namespace_the_image_and_the_storage_class_are_parameters(tmp_path: Path, namespace: str) -> None:
    found = built(tmp_path, namespace=namespace, newName="registry.local/cxr/cpu", newTag='"0123"')
    by_kind = {one["kind"]: one for one in found}
    assert {one["metadata"].get("namespace") for one in found if not one["kind"].startswith("Cluster")} == {namespace}
    assert {one["subjects"][0]["namespace"] for one in found if one["kind"].endswith("Binding")} == {namespace}
    assert by_kind["PersistentVolumeClaim"]["spec"]["storageClassName"] == "nfs"
    assert [one["image"] for one in by_kind["Job"]["spec"]["template"]["spec"]["containers"]] == ["registry.local/cxr/cpu:0123"]
    assert "imagePullSecrets" not in by_kind["ServiceAccount"]
    for manifest in found:
        kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_the_example_settings_refer_to_the_manifests() -> None:
    example = settings.load()
    for secret in (example.secrets.s3, example.secrets.mlflow, example.secrets.pseudonyms):
        assert secret is not None
        assert set(secret.keys) == set(of_kind("Secret")[secret.name]["stringData"])
    assert example.work is not None
    assert example.work.claim in of_kind("PersistentVolumeClaim")
    assert example.service_account in of_kind("ServiceAccount")
    assert not example.images.pull_secrets
    node = of_kind("Node")["gpu-node"]
    assert example.gpu.node_selector.items() <= node["metadata"]["labels"].items()
    assert {taint["key"] for taint in node["spec"]["taints"]} == {taint.key for taint in example.gpu.tolerations}


def test_no_secret_is_filled_in() -> None:
    for manifest in of_kind("Secret").values():
        assert set(manifest["stringData"].values()) == {"REPLACE-ME"}
        assert "namespace" not in manifest["metadata"], "kubectl -n decides"


def allowed(right: Right) -> bool:
    """Answers like a SelfSubjectAccessReview of the service account, from the roles of deploy/ that are bound to it."""
    kinds = ("ClusterRole",) if right.everywhere else ("Role", "ClusterRole")
    bound = [one["roleRef"] for kind in ("RoleBinding", "ClusterRoleBinding") for one in of_kind(kind).values() if binds(one)]
    rules = [rule for ref in bound if ref["kind"] in kinds for rule in of_kind(ref["kind"])[ref["name"]]["rules"]]
    return any(
        right.verb in rule["verbs"]
        and right.resource in rule["resources"]
        and right.group in rule["apiGroups"]
        and (not rule.get("resourceNames") or right.name in rule["resourceNames"])
        for rule in rules
    )


def binds(binding: dict[str, Any]) -> bool:
    return {"kind": "ServiceAccount", "name": "cxr-pipelines", "namespace": "cxr"} in binding["subjects"]


@pytest.mark.parametrize("right", NEEDED, ids=str)
def test_the_service_account_has_the_rights_that_a_step_needs(right: Right) -> None:
    assert allowed(right), f"{right.user} would be refused"


def test_the_service_account_has_no_other_rights() -> None:
    given = {
        (verb, resource, group, name)
        for kind in ("Role", "ClusterRole")
        for role in of_kind(kind).values()
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
        for name in rule.get("resourceNames", [""])
    }
    assert given == {(right.verb, right.resource, right.group, right.name) for right in NEEDED}
    for refused in (
        Right("get", "secrets", name="cxr-s3"),
        Right("create", "pods"),
        Right("create", "pods/exec"),
        Right("list", "secrets"),
    ):
        assert not allowed(refused)


# What Kubeflow Pipelines 2.17 ships; the comment and the second value must survive.
CONFIGURATION = """apiVersion: v1
kind: ConfigMap
metadata:
  name: workflow-controller-configmap
  namespace: kubeflow
data:
  artifactRepository: |
    archiveLogs: true
  workflowDefaults: |
    spec:
      podGC: {strategy: OnPodSuccess}
      templateDefaults:
        retryStrategy:
          limit: "2"
          retryPolicy: OnError
"""


def changed() -> dict[str, Any]:
    """Returns the retry strategy after the change."""
    script = ["sed", "-E", "-f", str(DEPLOY / "retries.sed")]
    done = subprocess.run(script, input=CONFIGURATION, capture_output=True, text=True, check=True)
    manifest = yaml.safe_load(done.stdout)
    defaults = yaml.safe_load(manifest["data"]["workflowDefaults"])["spec"]
    assert defaults["podGC"] == {"strategy": "OnPodSuccess"}
    assert manifest["data"]["artifactRepository"] == "archiveLogs: true\n"
    strategy: dict[str, Any] = defaults["templateDefaults"]["retryStrategy"]
    return strategy


@pytest.mark.parametrize(
    ("status", "exit_code", "message", "again"),
    [
        ("Error", "-1", "pod deleted", True),
        ("Failed", "143", "main: Error (exit code 143)", True),
        ("Failed", "137", "main: OOMKilled (exit code 137)", True),
        ("Failed", "137", "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi.", True),
        ("Failed", "-1", "Pod was terminated in response to imminent node shutdown.", True),
        ("Failed", "-1", "Pod was rejected: Node didn't have enough resource: cpu", True),
        ("Failed", "-1", "pod failed: neither main nor wait container completed successfully", True),
        ("Failed", "1", "main: Error (exit code 1)", False),
        ("Failed", "-1", "", False),  # a pipeline, or a part of it
        ("Failed", "-1", "retryStrategy.expression evaluated to false", False),
    ],
)
def test_argo_replaces_what_was_killed_and_nothing_else(status: str, exit_code: str, message: str, again: bool) -> None:
    """The values of `lastRetry` are those of Argo's inferFailedReason and buildRetryStrategyLocalScope."""
    strategy = changed()
    assert (strategy["limit"], strategy["retryPolicy"]) == ("2", "Always")
    expression = strategy["expression"].replace("||", "or")
    expression = re.sub(r'lastRetry\.message matches ("[^"]*")', r"re.search(\1, message)", expression)
    for ours, theirs in (("lastRetry.status", "status"), ("lastRetry.exitCode", "exit_code")):
        expression = expression.replace(ours, theirs)
    assert bool(eval(expression, {"re": re, "status": status, "exit_code": exit_code, "message": message})) == again
