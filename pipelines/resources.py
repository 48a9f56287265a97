"""The resources of each step on the cluster, from the settings: nodes, sizes, secrets, volumes, retries."""

from typing import Any

from kfp import dsl, kubernetes

from components.common.runs.cores import GPUS_VARIABLE
from components.common.runs.provenance import KFP_VARIABLE
from components.common.runs.webhook import FORMAT_VARIABLE, PAGE_VARIABLE
from components.common.runs.work import WORK_VARIABLE
from components.heads import HEADS
from components.params import Params
from components.retry import PAUSE_VARIABLE, RETRIES_VARIABLE
from pipelines.settings import GATED, RUN_PAGE, Affinity, Pool, Secret, Settings, StepResources

RUN_ID_FIELD = "metadata.labels['pipeline/runid']"  # label of each pod that holds the id of the run
SECRETS_FOLDER = "/var/run/secrets/cxr"  # folder with a file per variable, for components/pretrain/trainjob.py
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the pod's own
TOPOLOGY = "kueue.x-k8s.io/podset-required-topology"
SCRATCH = "/tmp/cxr-work"  # noqa: S108 - the pod's own
MAX_PENDING_SECONDS = 24 * 3600  # how long the pod of an attempt may wait for a node
RETRY = ("python3", "-m", "components.retry")
S3_AND_MLFLOW = ("s3", "mlflow")
SECRETS = {"preprocess": (*S3_AND_MLFLOW, "pseudonyms"), "end": ("mlflow", "webhook")}
"""Fields of settings.Secrets by step. Steps that are not named get those for S3 and MLflow: each step asks for the run of the pipeline."""
MOUNTS_WORK = ("preprocess", "merge", "pretrain", *HEADS)  # steps that resume, and therefore need the volume for work in progress


def apply(task: dsl.PipelineTask, name: str, settings: Settings) -> dsl.PipelineTask:
    """Configures a task as the settings say for a step; the base image of its component names the target, cpu or gpu."""
    step = settings.step(name)
    task.set_display_name(name)
    task.set_container_image(settings.image(task.container_spec.image))
    _set_sizes(task, step)
    _set_environment(task, name, settings)
    _set_nodes(task, step, settings)
    _set_queue(task, step, settings)
    _set_work(task, name, settings)
    _set_identity(task, settings)
    _set_patience(task, step)
    return task


def _set_sizes(task: dsl.PipelineTask, step: StepResources) -> None:
    task.set_cpu_request(step.cpu[0]).set_cpu_limit(step.cpu[1])
    task.set_memory_request(step.memory[0]).set_memory_limit(step.memory[1])
    if step.gpus:
        task.set_accelerator_type(step.gpu_type).set_accelerator_limit(step.gpus)
        task.set_env_variable(GPUS_VARIABLE, str(step.gpus))
    if step.shared_memory:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path=SHARED_MEMORY, medium="Memory", size_limit=step.shared_memory)


def _set_environment(task: dsl.PipelineTask, name: str, settings: Settings) -> None:
    for variable, value in sorted(settings.environment.items()):
        task.set_env_variable(variable, value)
    for secret in _secrets(name, settings):
        kubernetes.use_secret_as_env(task, secret.name, dict(secret.keys))
    if name == "end" and settings.secrets.webhook:
        task.set_env_variable(FORMAT_VARIABLE, settings.secrets.webhook.format)
        if settings.server.host:
            task.set_env_variable(PAGE_VARIABLE, settings.server.host.rstrip("/") + RUN_PAGE)
    # From a field of the pod: as a parameter it would defeat the cache.
    kubernetes.use_field_path_as_env(task, KFP_VARIABLE, RUN_ID_FIELD)


def _secrets(name: str, settings: Settings) -> list[Secret]:
    found = [getattr(settings.secrets, field) for field in SECRETS.get(name, S3_AND_MLFLOW)]
    return [secret for secret in found if secret is not None]


def _set_nodes(task: dsl.PipelineTask, step: StepResources, settings: Settings) -> None:
    for pool in _pools(step, settings):
        for key, value in sorted(pool.node_selector.items()):
            kubernetes.add_node_selector(task, key, value)
        for taint in pool.tolerations:
            kubernetes.add_toleration(task, taint.key, taint.operator, taint.value, taint.effect)
        for affinity in pool.affinity:
            kubernetes.add_node_affinity(task, match_expressions=[_expression(affinity)], weight=affinity.weight)


def _set_queue(task: dsl.PipelineTask, step: StepResources, settings: Settings) -> None:
    if step.gpus:
        for key, value in queue_labels(settings).items():
            kubernetes.add_pod_label(task, key, value)


def queue_labels(settings: Settings) -> dict[str, str]:
    """Returns the labels of what Kueue is to admit."""
    if settings.queue is None:
        return {}
    priority = {"kueue.x-k8s.io/priority-class": settings.queue.priority} if settings.queue.priority else {}
    return {"kueue.x-k8s.io/queue-name": settings.queue.name, **priority}


def _pools(step: StepResources, settings: Settings) -> list[Pool]:
    return [pool for pool, wanted in ((settings.gpu, step.gpus > 0), (settings.spot, step.spot)) if wanted]


def _set_work(task: dsl.PipelineTask, name: str, settings: Settings) -> None:
    work = settings.work if name in MOUNTS_WORK else None
    if work:
        kubernetes.mount_pvc(task, work.claim, work.path)
    task.set_env_variable(WORK_VARIABLE, work.path if work else SCRATCH)


def _set_identity(task: dsl.PipelineTask, settings: Settings) -> None:
    kubernetes.set_security_context(task, run_as_user=settings.user.uid, run_as_group=settings.user.gid, run_as_non_root=True)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    if settings.images.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.images.pull_secrets))


def _set_patience(task: dsl.PipelineTask, step: StepResources) -> None:
    """Tries again in the pod (components/retry.py), and in another pod if this one was lost."""
    assert task.container_spec
    task.container_spec.command = [*RETRY, *task.container_spec.command]
    # In the environment: a command with these numbers would defeat the cache.
    task.set_env_variable(RETRIES_VARIABLE, str(step.retries)).set_env_variable(PAUSE_VARIABLE, str(step.backoff_seconds))
    if step.retries:
        # Argo allows the last duration for all attempts together, from the beginning of the first.
        longest = (step.retries + 1) * (_timeout_seconds(step) + step.backoff_seconds + MAX_PENDING_SECONDS)
        task.set_retry(step.retries, f"{step.backoff_seconds}s", 1.0, f"{longest}s")
    kubernetes.set_timeout(task, _timeout_seconds(step))


def _timeout_seconds(step: StepResources) -> int:
    return round(step.timeout_hours * 3600)


def gpus(name: str, settings: Settings, params: Params) -> dict[str, int]:
    """Returns the number of GPUs of each step of a pipeline that uses any, and the most that are in use at a time."""
    if name == "scoring":
        count = settings.step("predict").gpus
        return {"predict": count, "at most": count} if count else {"at most": 0}
    models = settings.parallel_models if name in ("study", "sweep") else 1
    pretrain = settings.step("pretrain").gpus * (models if name == "study" else params.runtime.nodes)
    trained = {"study": [GATED], "sweep": [params.sweep.stage]}.get(name, settings.heads)
    heads = {head: settings.step(head).gpus * models for head in trained}
    return {step: count for step, count in {"pretrain": pretrain, **heads}.items() if count} | {
        "at most": max(pretrain, sum(heads.values()))
    }


def processes(settings: Settings, name: str) -> int:
    """Returns the number of processes of a training step: one per GPU."""
    return max(settings.step(name).gpus, 1)


def describe_nodes(settings: Settings, count: int) -> dict[str, Any]:
    """Describes the nodes of a TrainJob in the terms of Kubernetes, each with the resources of the step `pretrain`."""
    step = settings.step("pretrain")
    gpus = {step.gpu_type: step.gpus} if step.gpus else {}
    requests, limits = ({"cpu": step.cpu[which], "memory": step.memory[which], **gpus} for which in (0, 1))
    return {
        "runtime": settings.trainer.runtime,
        "image": settings.image("gpu"),
        "nodes": count,
        "processes": processes(settings, "pretrain"),
        "resources": {"requests": requests, "limits": limits},
        "labels": queue_labels(settings),
        "annotations": {TOPOLOGY: settings.queue.topology} if settings.queue and settings.queue.topology else {},
        "deadline_seconds": _timeout_seconds(step),
        "environment": {
            GPUS_VARIABLE: str(step.gpus),
            **settings.environment,
            WORK_VARIABLE: settings.work.path if settings.work else SCRATCH,
        },
        "volumes": _volumes(settings, step),
        "service_account": settings.trainer.service_account,
        "image_pull_secrets": [{"name": name} for name in settings.images.pull_secrets],
        "security_context": {"runAsNonRoot": True, "runAsUser": settings.user.uid, "runAsGroup": settings.user.gid},
        **scheduling(_pools(step, settings)),
    }


def _volumes(settings: Settings, step: StepResources) -> list[tuple[dict[str, Any], str]]:
    """Lists volumes and their mount paths."""
    volumes: list[tuple[dict[str, Any], str]] = []
    if step.shared_memory:
        volumes.append(({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": step.shared_memory}}, SHARED_MEMORY))
    if settings.work:
        volumes.append(({"name": "work", "persistentVolumeClaim": {"claimName": settings.work.claim}}, settings.work.path))
    sources = [
        {"secret": {"name": secret.name, "items": [{"key": key, "path": variable} for key, variable in secret.keys.items()]}}
        for secret in _secrets("pretrain", settings)
    ]
    return [*volumes, ({"name": "secrets", "projected": {"sources": sources}}, SECRETS_FOLDER)]


def scheduling(pools: list[Pool]) -> dict[str, Any]:
    """Returns node selector, tolerations and affinity of pools, as in a pod spec."""
    selector = {key: value for pool in pools for key, value in pool.node_selector.items()}
    tolerations = [taint.model_dump(exclude_none=True) for pool in pools for taint in pool.tolerations]
    affinities = [affinity for pool in pools for affinity in pool.affinity]
    required = [_expression(one) for one in affinities if one.weight is None]
    preferred = [{"weight": one.weight, "preference": {"matchExpressions": [_expression(one)]}} for one in affinities if one.weight]
    nodes: dict[str, Any] = {}
    if required:
        nodes["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [{"matchExpressions": required}]}
    if preferred:
        nodes["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    return {"node_selector": selector, "tolerations": tolerations, "affinity": {"nodeAffinity": nodes} if nodes else None}


def _expression(affinity: Affinity) -> dict[str, Any]:
    return {"key": affinity.key, "operator": affinity.operator, "values": list(affinity.values)}
