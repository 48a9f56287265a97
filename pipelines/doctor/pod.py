"""A pod that looks at the cluster from the inside: whether the images can be pulled, and what the probe in it finds."""

import json
import time
from collections.abc import Iterator
from typing import Any

from components.common.errors import UserError
from components.common.runs.work import WORK_VARIABLE
from components.pretrain.nodes import WITHOUT_SIDECAR
from pipelines.cluster import Cluster
from pipelines.doctor.report import FINE, UNKNOWN, WRONG, Finding, unknown
from pipelines.settings import Settings

PATIENCE_SECONDS = 600.0
POLL_SECONDS = 3.0
TARGETS = ("cpu", "gpu")
BROKEN = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError")


def probe(cluster: Cluster, settings: Settings) -> Iterator[Finding]:
    """Runs the pod and deletes it."""
    try:
        name = cluster.call(cluster.core.create_namespaced_pod, cluster.namespace, manifest(settings)).metadata.name
    except UserError as error:
        yield Finding("image pull, S3 and MLflow", UNKNOWN, f"no pod can be started there; {error}")
        return
    try:
        yield from _follow(cluster, name)
    except UserError as error:
        yield unknown(f"pod {name}", error)
    finally:
        cluster.call(cluster.core.delete_namespaced_pod, name, cluster.namespace, grace_period_seconds=0)


def manifest(settings: Settings) -> dict[str, Any]:
    """Returns the pod: a container per image, with the secrets, the environment and the volume of a step."""
    given = [secret for secret in (settings.secrets.s3, settings.secrets.mlflow) if secret]
    secrets = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key}}}
        for secret in given
        for key, variable in secret.keys.items()
    ]
    plain = [{"name": name, "value": value} for name, value in sorted(settings.environment.items())]
    work = settings.work
    commands = {"cpu": ["python3", "-m", "pipelines.doctor.probe", settings.root], "gpu": ["python3", "--version"]}
    containers = [
        {
            "name": target,
            "image": settings.image(target),
            "imagePullPolicy": "IfNotPresent",
            "command": commands[target],
            "env": [*plain, *secrets, *([{"name": WORK_VARIABLE, "value": work.path}] if work else [])],
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "volumeMounts": [{"name": "work", "mountPath": work.path}] if work else [],
        }
        for target in TARGETS
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "cxr-doctor-", "labels": WITHOUT_SIDECAR},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": round(PATIENCE_SECONDS),
            **({"serviceAccountName": settings.service_account} if settings.service_account else {}),
            "automountServiceAccountToken": False,
            "imagePullSecrets": [{"name": name} for name in settings.images.pull_secrets],
            "securityContext": {"runAsNonRoot": True, "runAsUser": settings.user.uid, "runAsGroup": settings.user.gid},
            "containers": containers,
            "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": work.claim}}] if work else [],
        },
    }


def _follow(cluster: Cluster, name: str) -> Iterator[Finding]:
    until, pulled, waits = time.monotonic() + PATIENCE_SECONDS, set[str](), ""
    while time.monotonic() < until:
        status = cluster.call(cluster.core.read_namespaced_pod, name, cluster.namespace).status
        obstacles = [one.message for one in status.conditions or [] if one.type == "PodScheduled" and one.status == "False"]
        if obstacles and not waits:
            yield Finding(f"pod {name}", UNKNOWN, f"waits for a place, for at most {PATIENCE_SECONDS / 60:g} minutes: {obstacles[0]}")
        waits = obstacles[0] if obstacles else ""
        for container in status.container_statuses or []:
            waiting = container.state.waiting
            broken = waiting is not None and waiting.reason in BROKEN
            if container.name not in pulled and (broken or waiting is None):
                pulled.add(container.name)
                why = f"{container.image}: {waiting.reason}, {' '.join((waiting.message or '').split())}" if broken else container.image
                yield Finding(f"image {container.name}", WRONG if broken else FINE, why)
        if "cpu" in pulled and (status.phase in ("Succeeded", "Failed") or len(pulled) == len(TARGETS)) and _ended(status, "cpu"):
            yield from _read(cluster, name)
            return
        if any(one.state.waiting and one.state.waiting.reason in BROKEN for one in status.container_statuses or [] if one.name == "cpu"):
            return
        time.sleep(POLL_SECONDS)
    why = waits or "the image is large, or the volume cannot be mounted: try again, and look at `kubectl describe pod` meanwhile"
    yield Finding(f"pod {name}", WRONG, f"has not run within {PATIENCE_SECONDS / 60:g} minutes; {why}")


def _ended(status: Any, container: str) -> bool:
    return any(one.name == container and one.state.terminated for one in status.container_statuses or [])


def _read(cluster: Cluster, name: str) -> Iterator[Finding]:
    """Reads what the probe has printed."""
    # The client would parse a log that happens to be JSON.
    answer = cluster.call(cluster.core.read_namespaced_pod_log, name, cluster.namespace, container="cpu", _preload_content=False)
    log = answer.data.decode(errors="replace")
    found = [json.loads(line) for line in log.splitlines() if line.startswith('{"what"')]
    for each in found:
        yield Finding(each["what"], FINE if each["fine"] else WRONG, each["said"])
    if not found:
        yield Finding("S3 and MLflow", UNKNOWN, f"the probe failed: {' '.join(log.split())[-300:]}")
