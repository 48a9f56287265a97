"""The command `serve`: manifests of KServe that serve a registered model, with the gpu image of the settings as the server.

The server is `mlflow models serve`, as on one machine. The runtime that KServe brings for MLflow, MLServer, lacks the packages of the
models (docs/adr/0029-serving.md).
"""

import argparse
import re
from typing import Any

import yaml

from components.common.errors import UserError
from components.common.runs import storage, tracking
from components.common.runs.registered_models import find_version
from pipelines.settings import Settings, StepResources, cpu_cores

RUNTIME = "cxr-mlflow"
ACCOUNT = "cxr-serving"  # service account with the credentials of S3, in deploy/serving.yaml
MODEL_FOLDER = "/mnt/models"  # where KServe puts the files of the model
PORT = 8080  # KServe's default
PROXIED = "mlflow-artifacts:/"  # beginning of addresses of files that an MLflow server passes on itself
FORMAT = {"name": "mlflow", "version": "3"}


def serve(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `serve`: prints the manifests."""
    version = find_version(options.model)
    with tracking.reachable():
        location = tracking.client().get_model_version_download_uri(version.name, version.number)
    manifests = [_runtime(settings), _service(version.uri, version.name, _on_s3(location, options.artifacts), settings)]
    print(yaml.safe_dump_all(manifests, sort_keys=False), end="")
    return 0


def _on_s3(location: str, artifacts: str | None) -> str:
    """Returns the address of a model's files that KServe can read, with the folder in which an MLflow server keeps what it passes on."""
    if location.startswith(PROXIED) and artifacts:
        location = storage.join(artifacts, location.removeprefix(PROXIED).lstrip("/"))
    if not storage.is_s3(location):
        remedy = "give --artifacts s3://..., the --artifacts-destination of the MLflow server"
        raise UserError(f"{location}: is where MLflow has the model, and no s3:// URI, which KServe can read; {remedy}")
    return location


def _runtime(settings: Settings) -> dict[str, Any]:
    size = StepResources()
    threads = max(1, int(cpu_cores(size.cpu[1])))
    environment = {
        "HOME": "/tmp",  # noqa: S108 - the pod's own
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": str(threads),
    }
    container = {
        "name": "kserve-container",
        "image": settings.image("gpu"),
        "command": ["mlflow", "models", "serve", "--model-uri", MODEL_FOLDER, "--env-manager", "local", "--host", "0.0.0.0"],  # noqa: S104
        "args": ["--port", str(PORT)],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "readinessProbe": {"httpGet": {"path": "/ping", "port": PORT}},
        "resources": {
            "requests": {"cpu": size.cpu[0], "memory": size.memory[0]},
            "limits": {"cpu": size.cpu[1], "memory": size.memory[1]},
        },
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user.uid,
            "runAsGroup": settings.user.gid,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    secrets = [{"name": name} for name in settings.images.pull_secrets]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": _metadata(RUNTIME, settings),
        "spec": {"supportedModelFormats": [FORMAT], "containers": [container], **({"imagePullSecrets": secrets} if secrets else {})},
    }


def _service(uri: str, name: str, location: str, settings: Settings) -> dict[str, Any]:
    metadata = _metadata(re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-"), settings)
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            **metadata,
            "labels": {"networking.kserve.io/visibility": "cluster-local"},  # the server has no login
            "annotations": {"cxr/model": uri},
        },
        "spec": {
            "predictor": {
                "serviceAccountName": ACCOUNT,
                "minReplicas": 1,  # a new pod takes half a minute to load the model
                "model": {"modelFormat": FORMAT, "runtime": RUNTIME, "storageUri": location},
            }
        },
    }


def _metadata(name: str, settings: Settings) -> dict[str, Any]:
    return {"name": name, **({"namespace": settings.server.namespace} if settings.server.namespace else {})}
