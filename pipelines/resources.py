"""What each step may use on the cluster, from the settings: nodes, sizes, secrets, volumes, retries.

`SECRETS` and `MOUNTS_WORK` say who gets what; tests/pipelines/test_packages.py holds them to it.
"""

from typing import Any

from kfp import dsl, kubernetes

from components.common.runs.provenance import KFP_VARIABLE
from components.common.runs.work import WORK_VARIABLE
from pipelines.settings import Affinity, Pool, Secret, Settings, StepName
from pipelines.settings import Step as StepSettings

RUN_ID_FIELD = "metadata.labels['pipeline/runid']"
"""Where Kubeflow notes the id of the run on every pod."""
SECRETS_FOLDER = "/var/run/secrets/cxr"
"""Where components/pretrain/trainjob.py looks for a file a variable."""
SCRATCH = "/tmp/cxr-work"  # noqa: S108 - the pod's own
MAX_BACKOFF_SECONDS = 3600
S3_AND_MLFLOW = ("s3", "mlflow")
SECRETS: dict[StepName, tuple[str, ...]] = {
    "begin": S3_AND_MLFLOW,
    "simulate": ("s3",),
    "preprocess": (*S3_AND_MLFLOW, "pseudonyms"),
    "merge": S3_AND_MLFLOW,
    "pretrain": S3_AND_MLFLOW,
    "launch": S3_AND_MLFLOW,
    "classify": S3_AND_MLFLOW,
    "detect": S3_AND_MLFLOW,
    "invert": S3_AND_MLFLOW,
    "evaluate": S3_AND_MLFLOW,
    "register": S3_AND_MLFLOW,
    "end": ("mlflow",),
}
"""Fields of settings.Secrets by step."""
MOUNTS_WORK: tuple[StepName, ...] = ("preprocess", "merge", "pretrain", "classify", "detect", "invert")
"""Steps whose unfinished work is worth keeping."""


def apply(task: dsl.PipelineTask, name: StepName, settings: Settings) -> dsl.PipelineTask:
    """Gives a task what the settings say of the step of this name.

    Args:
        task: of a component whose base image names the target, cpu or gpu.
        name: the step's.
        settings: checked.

    Returns:
        The task.
    """
    step = settings.step(name)
    task.set_display_name(name)
    task.set_container_image(settings.image(task.container_spec.image))
    _set_sizes(task, step)
    _set_environment(task, name, settings)
    _set_nodes(task, step, settings)
    _set_volumes(task, name, step, settings)
    _set_identity(task, settings)
    _set_patience(task, step)
    return task


def secrets(name: StepName, settings: Settings) -> list[Secret]:
    """The Secrets that a step gets."""
    found = [getattr(settings.secrets, field) for field in SECRETS[name]]
    return [secret for secret in found if secret is not None]


def _set_sizes(task: dsl.PipelineTask, step: StepSettings) -> None:
    task.set_cpu_request(step.cpu[0]).set_cpu_limit(step.cpu[1])
    task.set_memory_request(step.memory[0]).set_memory_limit(step.memory[1])
    if step.gpus:
        task.set_accelerator_type(step.gpu_type).set_accelerator_limit(step.gpus)
    if step.shared_memory:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=step.shared_memory)  # noqa: S108


def _set_environment(task: dsl.PipelineTask, name: StepName, settings: Settings) -> None:
    for variable, value in sorted(settings.environment.items()):
        task.set_env_variable(variable, value)
    for secret in secrets(name, settings):
        kubernetes.use_secret_as_env(task, secret.name, dict(secret.keys))
    # From the pod's own fields: a parameter would spoil the cache.
    kubernetes.use_field_path_as_env(task, KFP_VARIABLE, RUN_ID_FIELD)


def _set_nodes(task: dsl.PipelineTask, step: StepSettings, settings: Settings) -> None:
    for pool in pools(step, settings):
        for key, value in sorted(pool.node_selector.items()):
            kubernetes.add_node_selector(task, key, value)
        for taint in pool.tolerations:
            kubernetes.add_toleration(task, taint.key, taint.operator, taint.value, taint.effect)
        for wish in pool.affinity:
            kubernetes.add_node_affinity(task, match_expressions=[_expression(wish)], weight=wish.weight)


def pools(step: StepSettings, settings: Settings) -> list[Pool]:
    """The kinds of nodes that a step is fit for."""
    return [pool for pool, wanted in ((settings.gpu, step.gpus > 0), (settings.spot, step.spot)) if wanted]


def _set_volumes(task: dsl.PipelineTask, name: StepName, step: StepSettings, settings: Settings) -> None:
    if settings.work and name in MOUNTS_WORK:
        kubernetes.mount_pvc(task, settings.work.claim, settings.work.path)
        task.set_env_variable(WORK_VARIABLE, settings.work.path)
    else:
        task.set_env_variable(WORK_VARIABLE, SCRATCH)


def _set_identity(task: dsl.PipelineTask, settings: Settings) -> None:
    kubernetes.set_security_context(task, run_as_user=settings.user.uid, run_as_group=settings.user.gid, run_as_non_root=True)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    if settings.images.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.images.pull_secrets))


def _set_patience(task: dsl.PipelineTask, step: StepSettings) -> None:
    if step.retries:
        task.set_retry(step.retries, f"{step.backoff_seconds}s", 2.0, f"{MAX_BACKOFF_SECONDS}s")
    kubernetes.set_timeout(task, round(step.timeout_hours * 3600))


def describe_nodes(settings: Settings, count: int) -> dict[str, Any]:
    """What the nodes of a TrainJob are like, in Kubernetes' words; components/pretrain/trainjob.py makes the request of it.

    Args:
        settings: those of the step `pretrain` count for each node.
        count: how many.
    """
    step = settings.step("pretrain")
    return {
        "runtime": settings.trainer.runtime,
        "image": settings.image("gpu"),
        "nodes": count,
        "resources": {"cpu": step.cpu[1], "memory": step.memory[1], **({step.gpu_type: step.gpus} if step.gpus else {})},
        "deadline_seconds": round(step.timeout_hours * 3600),
        "environment": {**settings.environment, WORK_VARIABLE: settings.work.path if settings.work else SCRATCH},
        "volumes": _volumes(settings, step),
        "service_account": settings.trainer.service_account,
        "image_pull_secrets": [{"name": name} for name in settings.images.pull_secrets],
        "security_context": {"runAsNonRoot": True, "runAsUser": settings.user.uid, "runAsGroup": settings.user.gid},
        **_scheduling(pools(step, settings)),
    }


def _volumes(settings: Settings, step: StepSettings) -> list[tuple[dict[str, Any], str]]:
    """Volumes and where they are mounted."""
    found: list[tuple[dict[str, Any], str]] = []
    if step.shared_memory:
        found.append(({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": step.shared_memory}}, "/dev/shm"))  # noqa: S108
    if settings.work:
        found.append(({"name": "work", "persistentVolumeClaim": {"claimName": settings.work.claim}}, settings.work.path))
    sources = [
        {"secret": {"name": secret.name, "items": [{"key": key, "path": variable} for key, variable in secret.keys.items()]}}
        for secret in secrets("pretrain", settings)
    ]
    return [*found, ({"name": "secrets", "projected": {"sources": sources}}, SECRETS_FOLDER)]


def _scheduling(found: list[Pool]) -> dict[str, Any]:
    """Node selector, tolerations and affinity of pools, as a pod has them."""
    tolerations = [taint.model_dump(exclude_none=True) for pool in found for taint in pool.tolerations]
    wishes = [wish for pool in found for wish in pool.affinity]
    required = [_expression(wish) for wish in wishes if wish.weight is None]
    preferred = [{"weight": wish.weight, "preference": {"matchExpressions": [_expression(wish)]}} for wish in wishes if wish.weight]
    affinity: dict[str, Any] = {}
    if required:
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [{"matchExpressions": required}]}
    if preferred:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    selector = {key: value for pool in found for key, value in pool.node_selector.items()}
    return {"node_selector": selector, "tolerations": tolerations, "affinity": {"nodeAffinity": affinity} if affinity else None}


def _expression(wish: Affinity) -> dict[str, Any]:
    return {"key": wish.key, "operator": wish.operator, "values": list(wish.values)}
