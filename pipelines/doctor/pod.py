"""Pods that pull the images and run the probe in them; what the probes find."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from components.common.errors import UserError
from components.common.runs.work import WORK_VARIABLE
from components.pretrain.nodes import WITHOUT_SIDECAR
from pipelines.cluster import Cluster
from pipelines.doctor.report import FINE, UNKNOWN, WRONG, Finding, unknown
from pipelines.resources import queue_labels, scheduling
from pipelines.settings import Settings, StepResources

PATIENCE_SECONDS = 600.0
POLL_SECONDS = 3.0
TARGETS = {"cpu": "S3 and MLflow", "gpu": "GPU"}
"""What the probe tries, by image."""
BROKEN = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError")


def probe(cluster: Cluster, settings: Settings) -> Iterator[Finding]:
    """Runs a pod per image, at the same time, and deletes them."""
    pods: dict[str, str] = {}
    try:
        for target in TARGETS:
            try:
                created = cluster.call(cluster.core.create_namespaced_pod, cluster.namespace, manifest(settings, target))
                pods[target] = created.metadata.name
            except UserError as error:
                yield Finding(f"image {target}", UNKNOWN, f"no pod can be started there; {error}")
        until = time.monotonic() + PATIENCE_SECONDS
        for target, name in pods.items():
            try:
                yield from _follow(cluster, name, target, until)
            except UserError as error:
                yield unknown(f"pod {name}", error)
    finally:
        for name in pods.values():
            with suppress(UserError):  # it ends by itself after PATIENCE_SECONDS
                cluster.call(cluster.core.delete_namespaced_pod, name, cluster.namespace, grace_period_seconds=0)


def manifest(settings: Settings, target: str) -> dict[str, Any]:
    """Returns the pod for an image: with the secrets, the environment and the volume of a step, or on a GPU, if any step has one."""
    step = next((step for step in settings.steps.values() if step.gpus), None) if target == "gpu" else None
    gpu = {step.gpu_type: 1} if step else {}
    limits = {"cpu": "1", "memory": "4Gi" if gpu else "1Gi", **gpu}
    container: dict[str, Any] = {
        "name": target,
        "image": settings.image(target),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "--version"],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi", **gpu}, "limits": limits},
    }
    volumes: list[dict[str, Any]] = []
    if target == "cpu":
        container |= {"command": _command(settings.root), "env": _environment(settings)}
        if work := settings.work:
            container["volumeMounts"] = [{"name": "work", "mountPath": work.path}]
            volumes = [{"name": "work", "persistentVolumeClaim": {"claimName": work.claim}}]
    elif step:
        container["command"] = _command()
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"cxr-doctor-{target}-", "labels": {**WITHOUT_SIDECAR, **(queue_labels(settings) if step else {})}},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": round(PATIENCE_SECONDS),
            **({"serviceAccountName": settings.service_account} if settings.service_account else {}),
            "automountServiceAccountToken": False,
            "imagePullSecrets": [{"name": name} for name in settings.images.pull_secrets],
            "securityContext": {"runAsNonRoot": True, "runAsUser": settings.user.uid, "runAsGroup": settings.user.gid},
            "containers": [container],
            "volumes": volumes,
            **_place(settings, step),
        },
    }


def _command(*arguments: str) -> list[str]:
    return ["python3", "-m", "pipelines.doctor.probe", *arguments]


def _environment(settings: Settings) -> list[dict[str, Any]]:
    given = [secret for secret in (settings.secrets.s3, settings.secrets.mlflow) if secret]
    secrets = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key}}}
        for secret in given
        for key, variable in secret.keys.items()
    ]
    work = {WORK_VARIABLE: settings.work.path} if settings.work else {}
    return [*({"name": name, "value": value} for name, value in sorted({**settings.environment, **work}.items())), *secrets]


def _place(settings: Settings, step: StepResources | None) -> dict[str, Any]:
    """Returns on which nodes the pod may run: for a step with GPUs, those of the pool `gpu`, and those of `spot` if the step may."""
    if step is None:
        return {}
    found = scheduling([settings.gpu, settings.spot] if step.spot else [settings.gpu])
    names = {"node_selector": "nodeSelector", "tolerations": "tolerations", "affinity": "affinity"}
    return {names[key]: value for key, value in found.items() if value}


def _follow(cluster: Cluster, name: str, target: str, until: float) -> Iterator[Finding]:
    pulled, waits = False, ""
    while time.monotonic() < until:
        status = cluster.call(cluster.core.read_namespaced_pod, name, cluster.namespace).status
        obstacles = [one.message for one in status.conditions or [] if one.type == "PodScheduled" and one.status == "False"]
        if obstacles and not waits:
            yield Finding(f"pod {name}", UNKNOWN, f"waits for a place, for at most {PATIENCE_SECONDS / 60:g} minutes: {obstacles[0]}")
        waits = obstacles[0] if obstacles else ""
        for container in status.container_statuses or []:
            waiting = container.state.waiting
            if waiting and waiting.reason in BROKEN:
                why = f"{container.image}: {waiting.reason}, {' '.join((waiting.message or '').split())}"
                yield Finding(f"image {target}", WRONG, why)
                return
            if not waiting and not pulled:
                pulled = True
                yield Finding(f"image {target}", FINE, container.image)
            if container.state.terminated:
                yield from _read(cluster, name, target)
                return
        time.sleep(POLL_SECONDS)
    busy = waits and target == "gpu"  # whether a node fits at all is another finding
    why = waits or "the image is large, or the volume cannot be mounted: try again, and look at `kubectl describe pod` meanwhile"
    yield Finding(f"pod {name}", UNKNOWN if busy else WRONG, f"has not run within {PATIENCE_SECONDS / 60:g} minutes; {why}")


def _read(cluster: Cluster, name: str, target: str) -> Iterator[Finding]:
    """Reads what the probe has printed."""
    log = cluster.log(name, target)
    found = [json.loads(line) for line in log.splitlines() if line.startswith('{"what"')]
    for each in found:
        yield Finding(each["what"], FINE if each["fine"] else WRONG, each["said"])
    if not found and not log.startswith("Python "):
        yield Finding(TARGETS[target], UNKNOWN, f"the probe failed: {' '.join(log.split())[-300:]}")
