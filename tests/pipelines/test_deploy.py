"""The manifests of deploy/ against the schemas of Kubernetes, and against the settings that refer to them."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines import settings
from tests import ROOT

MANIFESTS: list[tuple[Path, dict[str, Any]]] = [
    (path, manifest)
    for path in sorted((ROOT / "deploy").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
    if not manifest["apiVersion"].startswith("trainer.kubeflow.org/")  # test_trainjob.py has a model for these
]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {manifest["metadata"]["name"]: manifest for _, manifest in MANIFESTS if manifest["kind"] == kind}


@pytest.mark.parametrize("manifest", [pytest.param(one, id=f"{path.stem}-{one['metadata']['name']}") for path, one in MANIFESTS])
@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_manifests_are_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_example_settings_refer_to_the_manifests() -> None:
    example = settings.load()
    for secret in (example.secrets.s3, example.secrets.mlflow, example.secrets.pseudonyms):
        assert secret is not None
        assert set(secret.keys) == set(of_kind("Secret")[secret.name]["stringData"])
    assert example.work is not None
    assert example.work.claim in of_kind("PersistentVolumeClaim")
    assert example.service_account in of_kind("ServiceAccount")
    node = of_kind("Node")["gpu-node"]
    assert example.gpu.node_selector.items() <= node["metadata"]["labels"].items()
    assert {taint["key"] for taint in node["spec"]["taints"]} == {taint.key for taint in example.gpu.tolerations}


def test_no_secret_is_filled_in() -> None:
    for manifest in of_kind("Secret").values():
        assert set(manifest["stringData"].values()) == {"REPLACE-ME"}


def test_the_service_account_may_create_trainjobs() -> None:
    rules = {resource: set(rule["verbs"]) for rule in of_kind("Role")["cxr-pipelines"]["rules"] for resource in rule["resources"]}
    assert rules["trainjobs"] >= {"get", "create", "delete"}
    assert rules["pods"] >= {"get", "list"}
    assert "get" in rules["pods/log"]
