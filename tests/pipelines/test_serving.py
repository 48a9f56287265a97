"""The manifests of KServe for a registered model."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import mlflow.pyfunc
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from benchmarks.serve import ask, phantom, request, serve
from components.common.runs import tracking
from components.register.packing import pack
from pipelines.__main__ import main
from pipelines.serving import ACCOUNT, MODEL_FOLDER
from tests.pipelines.test_deploy import of_kind
from tests.register import folders


def _object(needed: dict[str, Any], **allowed: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**needed, **allowed}, "required": [*needed], "additionalProperties": False}


TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
FORMAT = _object({"name": TEXT}, version=TEXT)
METADATA = _object({"name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}}, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
# The fields that are used, from pkg/apis/serving of github.com/kserve/kserve: v1beta1/{predictor,predictor_model}.go and
# v1alpha1/servingruntime_types.go. A container has the schema of Kubernetes.
SCHEMAS = {
    "InferenceService": _object(
        {
            "apiVersion": {"const": "serving.kserve.io/v1beta1"},
            "kind": TEXT,
            "metadata": METADATA,
            "spec": _object(
                {
                    "predictor": _object(
                        {"model": _object({"modelFormat": FORMAT, "runtime": TEXT, "storageUri": {"type": "string", "pattern": "^s3://"}})},
                        serviceAccountName=TEXT,
                        minReplicas={"type": "integer"},
                    )
                }
            ),
        }
    ),
    "ServingRuntime": _object(
        {
            "apiVersion": {"const": "serving.kserve.io/v1alpha1"},
            "kind": TEXT,
            "metadata": METADATA,
            "spec": _object(
                {"containers": {"type": "array", "minItems": 1}, "supportedModelFormats": {"type": "array", "items": FORMAT}},
                imagePullSecrets={"type": "array", "items": _object({"name": TEXT})},
            ),
        }
    ),
}


def registered(name: str, location: str) -> None:
    """Registers a version, the champion, whose files are at an address."""
    client = MlflowClient(tracking.uri())
    client.create_registered_model(name)
    client.set_registered_model_alias(name, "champion", client.create_model_version(name, location).version)


def printed(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, dict[str, Any]]:
    """Returns the manifests by kind."""
    assert main(["serve", *more]) == 0
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(capsys.readouterr().out)}


@pytest.mark.parametrize(
    ("location", "more", "expected"),
    [
        ("s3://mlflow/3/models/m-1/artifacts", [], "s3://mlflow/3/models/m-1/artifacts"),
        ("mlflow-artifacts:/3/models/m-1/artifacts", ["--artifacts", "s3://mlflow/"], "s3://mlflow/3/models/m-1/artifacts"),
    ],
)
def test_manifests_are_valid(
    location: str, more: list[str], expected: str, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    name = f"Chest.Model_{len(more)}"
    registered(name, location)
    found = printed(capsys, "--model", f"models:/{name}@champion", *more)
    for kind, schema in SCHEMAS.items():
        jsonschema.validate(found[kind], schema)
    service, runtime = found["InferenceService"], found["ServingRuntime"]
    assert service["metadata"]["name"] == f"chest-model-{len(more)}"
    assert service["metadata"]["annotations"]["cxr/model"] == f"models:/{name}/1", "the version, whatever the alias means later"
    model = service["spec"]["predictor"]["model"]
    assert (model["storageUri"], model["runtime"]) == (expected, runtime["metadata"]["name"])
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert service["metadata"]["labels"] == {"networking.kserve.io/visibility": "cluster-local"}
    assert service["metadata"]["namespace"] == runtime["metadata"]["namespace"] == "cxr"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": runtime["metadata"], "spec": {"containers": runtime["spec"]["containers"]}}
    for version in ("1.31", "1.34"):
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize(
    ("name", "location", "more", "said"),
    [
        ("proxied", "mlflow-artifacts:/3/models/m-1/artifacts", [], "which KServe can read; give --artifacts s3://..."),
        (
            "local",
            "file:///mlruns/3/models/m-1/artifacts",
            ["--artifacts", "s3://mlflow"],
            "file:///mlruns/3/models/m-1/artifacts: is",
        ),
        ("", "", [], "models:/none@champion: "),
    ],
)
def test_models_that_kserve_cannot_read(name: str, location: str, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name:
        registered(name, location)
    assert main(["serve", "--model", f"models:/{name or 'none'}@champion", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_service_account_has_the_credentials_that_kserve_reads() -> None:
    account = of_kind("ServiceAccount")[ACCOUNT]
    secret = of_kind("Secret")[account["secrets"][0]["name"]]
    assert set(secret["stringData"]) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert all(name.startswith("serving.kserve.io/s3-") for name in secret["metadata"]["annotations"])


@pytest.mark.services
def test_the_command_of_the_container_serves_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the folder of the model and the port of this machine."""
    registered("served", "s3://mlflow/1")
    (container,) = printed(capsys, "--model", "models:/served@champion")["ServingRuntime"]["spec"]["containers"]
    assert container["args"] == ["--port", str(container["readinessProbe"]["httpGet"]["port"])]
    assert container["readinessProbe"]["httpGet"]["path"] == "/ping", "which serve() waits for"
    model = Path(folders.write_model(tmp_path / "model", seed=1, targets=folders.targets_of(1)))
    packed = tmp_path / "packed"
    pack(model / "model.safetensors", json.loads((model / "model.json").read_text()), "# A card\n", packed)
    command = [{MODEL_FOLDER: str(packed), "0.0.0.0": "127.0.0.1"}.get(word, word) for word in container["command"]]
    file = phantom(tmp_path / "raw", 80)
    with serve(packed, tmp_path, command) as address:
        (answer,) = ask(address, request(file))
    expected = mlflow.pyfunc.load_model(str(packed)).predict([file]).iloc[0]
    np.testing.assert_allclose([answer[name] for name in folders.FINDINGS], expected, atol=1e-6)
