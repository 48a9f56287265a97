"""The settings file: the address of the cluster and the resources of each step. pipelines/settings.yaml is the example.

All values are checked here, before anything is compiled: a malformed quantity compiles, and then crashes the driver on the cluster.
"""

import re
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from components.common.runs.params import Positive, read_yaml, validate
from components.common.runs.provenance import git_state
from components.common.runs.webhook import URL_VARIABLE
from components.heads import HEADS

EXAMPLE = Path(__file__).with_name("settings.yaml")
RUN_PAGE = "/#/runs/details/"
"""Path of the page of a run in the UI of Kubeflow Pipelines, to which its id is added."""
COMMIT = "{commit}"
"""Placeholder for the git commit in the name of an image."""
STEPS = ("begin", "simulate", "preprocess", "merge", "pretrain", "launch", *HEADS, "evaluate", "register", "predict", "monitor", "end")
ALL_HEADS = "heads"
"""Key in `steps` for all heads that have no entry of their own."""
GATED = next(iter(HEADS))
"""The head that the gate of the pipeline judges: the first in the table of heads."""

_MEMORY = re.compile(r"([1-9][0-9]*)([KMGTPE]i?)?")
_CPU = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|[1-9][0-9]*m)")
_IMAGE = re.compile(r"[^\s:@/]+(:[0-9]+(?=/))?(/[^\s:@/]+)*(:(?P<tag>[\w{}][\w.{}-]{0,127}))?(@sha256:(?P<digest>[0-9a-f]{64}))?")


def memory_bytes(quantity: str) -> int:
    """Converts a memory quantity, such as 16Gi, to bytes."""
    found = _MEMORY.fullmatch(quantity)
    assert found, "checked when the settings are read"
    unit = found[2] or " "
    factor: int = (1024 if unit.endswith("i") else 1000) ** " KMGTPE".index(unit[0])
    return int(found[1]) * factor


def cpu_cores(quantity: str) -> Decimal:
    """Converts a CPU quantity, such as 500m or 4, to cores."""
    return Decimal(quantity[:-1]) / 1000 if quantity.endswith("m") else Decimal(quantity)


def _check_memory(value: str) -> str:
    if not _MEMORY.fullmatch(value):
        raise ValueError(f"must be a whole number of bytes with a Kubernetes unit, such as 512Mi or 16Gi, not {value!r}")
    return value


def _check_cpu(value: str) -> str:
    if not _CPU.fullmatch(value) or not cpu_cores(value):
        raise ValueError(f"must be a number of cores or millicores, such as 4, 0.5 or 500m, not {value!r}")
    return value


def _check_image(value: str) -> str:
    found = _IMAGE.fullmatch(value)
    if not found:
        raise ValueError(f"must be the name of an image, such as registry/name:tag, not {value!r}")
    if not found["digest"] and found["tag"] in (None, "latest"):
        reason = "the cache of Kubeflow compares images by name"
        raise ValueError(f"needs a tag that never moves, such as {COMMIT}, or a digest, since {reason}; {value} has none")
    return value


def _check_s3(value: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/.*)?", value):
        raise ValueError(f"must be an s3:// URI, not {value!r}")
    return value.rstrip("/")


def _check_heads(heads: tuple[str, ...]) -> tuple[str, ...]:
    if GATED not in heads:
        raise ValueError(f"must have {GATED}, which the gate judges")
    if len(set(heads)) < len(heads):
        raise ValueError("has a duplicate")
    return heads


def _one_of(names: Collection[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    return AfterValidator(check)


Memory = Annotated[str, AfterValidator(_check_memory)]
Cpu = Annotated[str, AfterValidator(_check_cpu)]
ImageName = Annotated[str, AfterValidator(_check_image)]
Prefix = Annotated[str, AfterValidator(_check_s3)]
ResourceName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
ResourcePath = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*(/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")]
Heads = Annotated[tuple[Annotated[str, _one_of(HEADS)], ...], AfterValidator(_check_heads)]
StepName = Annotated[str, _one_of((*STEPS, ALL_HEADS))]


class _Group(BaseModel):
    """A group of settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True)


class ServerSettings(_Group):
    """Kubeflow Pipelines. The options --host, --namespace and --experiment take precedence."""

    host: str | None = None
    """Address of its UI or API, such as https://kubeflow.example.org/pipeline."""
    namespace: str | None = None
    """Namespace of the profile; None for a single-user installation, which runs everything in its own namespace."""
    experiment: str = "cxr"
    """Experiment that runs are listed under."""


class Images(_Group):
    """The two targets of docker/Dockerfile. `{commit}` becomes the git commit."""

    cpu: ImageName
    """Without torch."""
    gpu: ImageName
    """With torch; also runs on CPUs."""
    pull_secrets: tuple[ResourceName, ...] = ()
    """Secrets of the registry."""


class Secret(_Group):
    """A Kubernetes Secret, and the environment variables that its keys are mapped to."""

    name: ResourceName
    keys: Annotated[dict[str, Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]], Field(min_length=1)]
    """Environment variable by key of the Secret."""


class Webhook(Secret):
    """The address of a webhook, which is a secret, and what the server behind it understands."""

    format: Literal["slack", "teams", "json"]
    """slack: an incoming webhook of Slack; teams: the Workflows app of Microsoft Teams; json: the fields of the message."""

    @model_validator(mode="after")
    def _the_address_has_its_variable(self) -> "Webhook":
        if URL_VARIABLE not in self.keys.values():
            raise ValueError(f"one key must be mapped to {URL_VARIABLE}")
        return self


class Secrets(_Group):
    """The Secrets; each is passed only to the steps that need it."""

    s3: Secret
    """For each step that reads or writes data."""
    mlflow: Secret | None = None
    """For each step that has an MLflow run; None if the server asks for no password."""
    pseudonyms: Secret | None = None
    """For preprocess only; simulated cohorts do not need it."""
    webhook: Webhook | None = None
    """For `end` only, which posts the outcome of a run; None: no message."""


class Toleration(_Group):
    """A toleration of a node taint, as in a pod spec."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _value_goes_with_equal(self) -> "Toleration":
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("a toleration has a value with operator Equal, and only then")
        return self


class Affinity(_Group):
    """A preference or a requirement for nodes with a label, as in a pod spec."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    values: tuple[str, ...] = ()
    weight: Annotated[int, Field(ge=1, le=100)] | None = None
    """Weight of a preference; None: a requirement."""

    @model_validator(mode="after")
    def _values_go_with_the_operator(self) -> "Affinity":
        if self.operator in ("In", "NotIn"):
            fits, wanted = len(self.values) > 0, "one or more values"
        elif self.operator in ("Gt", "Lt"):
            fits, wanted = len(self.values) == 1 and self.values[0].isdigit(), "one value, a whole number"
        else:
            fits, wanted = not self.values, "no values"
        if not fits:
            raise ValueError(f"an affinity with operator {self.operator} needs {wanted}")
        return self


class Pool(_Group):
    """A node pool, by labels and taints of its nodes, and by further preferences."""

    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    affinity: tuple[Affinity, ...] = ()


class Queue(_Group):
    """A queue of Kueue, which admits the pods of steps with GPUs, and TrainJobs, when there is room in its quota."""

    name: ResourceName
    """LocalQueue of the namespace."""
    priority: ResourceName | None = None
    """WorkloadPriorityClass. Kubeflow has no field for the PriorityClass of a pod."""
    topology: ResourcePath | None = None
    """Label of nodes, such as cloud.provider.com/topology-rack, that all pods of a TrainJob must have the same value of."""


class StepResources(_Group):
    """Resources of a step."""

    cpu: tuple[Cpu, Cpu] = ("1", "2")
    """Cores, request and limit."""
    memory: tuple[Memory, Memory] = ("2Gi", "4Gi")
    """Request and limit; shared memory counts towards the limit."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """Number of GPUs; with one or more the step runs in the pool `gpu`."""
    gpu_type: str = "nvidia.com/gpu"
    """Resource name of a GPU in Kubernetes."""
    shared_memory: Memory | None = None
    """Size of /dev/shm, in memory; the default of container runtimes, 64Mi, is too small for the data loader workers of torch."""
    spot: bool = False
    """Whether the step may run in the pool `spot`, whose nodes can be taken away at any time."""
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    """Attempts after a failure that is not the user's mistake, and pods in place of lost ones (components/retry.py)."""
    backoff_seconds: Annotated[int, Field(ge=0)] = 60
    """Delay before each of these."""
    timeout_hours: Annotated[float, Field(gt=0)] = 12
    """Time after which a pod is stopped."""

    @model_validator(mode="after")
    def _limits_hold(self) -> "StepResources":
        if cpu_cores(self.cpu[0]) > cpu_cores(self.cpu[1]):
            raise ValueError(f"cpu: the request {self.cpu[0]} is above the limit {self.cpu[1]}")
        if memory_bytes(self.memory[0]) > memory_bytes(self.memory[1]):
            raise ValueError(f"memory: the request {self.memory[0]} is above the limit {self.memory[1]}")
        if self.shared_memory and memory_bytes(self.shared_memory) >= memory_bytes(self.memory[1]):
            raise ValueError(
                f"shared_memory: {self.shared_memory} must be below the limit of memory, {self.memory[1]}, as it counts towards it"
            )
        return self


class WorkVolume(_Group):
    """A volume for work in progress, on which a retried step finds its checkpoint."""

    claim: ResourceName
    """PersistentVolumeClaim; ReadWriteMany if steps run on several nodes."""
    path: Annotated[str, Field(pattern=r"^/[^/].*$")] = "/work"
    """Mount path."""


class Trainer(_Group):
    """Kubeflow Trainer, for pretraining on several nodes."""

    runtime: ResourceName = "torch-distributed"
    """A ClusterTrainingRuntime, or a TrainingRuntime of the namespace."""
    service_account: ResourceName | None = None
    """Service account of the training pods; None: the default of the namespace."""


class User(_Group):
    """The user and the group that containers run as, never root."""

    uid: Positive = 1000
    gid: Positive = 1000


class Settings(_Group):
    """The whole file."""

    server: ServerSettings = ServerSettings()
    raw: Prefix | None = None
    """Raw files; --raw takes precedence."""
    root: Prefix
    """Prefix of the outputs of all steps."""
    heads: Heads = tuple(HEADS)
    """Heads to train; detect needs boxes."""
    partitions: Annotated[int, Field(ge=1, le=1000)] = 4
    """Preprocessing steps that run in parallel; the shards do not depend on it."""
    parallel_models: Positive = 4
    """Models of a study or a sweep that are trained in parallel."""
    images: Images
    service_account: ResourceName | None = None
    """Service account of the pods of a run; None: the default of Kubeflow."""
    user: User = User()
    secrets: Secrets
    environment: dict[str, str] = {}
    """Environment variables of each step, such as AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI."""
    gpu: Pool = Pool()
    """The node pool of steps with GPUs."""
    spot: Pool = Pool()
    """The node pool of steps with `spot`, in addition."""
    queue: Queue | None = None
    """None: pods with GPUs are scheduled at once, or stay pending."""
    work: WorkVolume | None = None
    """None: a preempted step starts from the beginning."""
    trainer: Trainer = Trainer()
    steps: dict[StepName, StepResources] = {}
    """Resources by step. `heads` stands for all heads that are not named; any other step that is not named has the defaults."""

    def step(self, name: str) -> StepResources:
        """Returns what a step may use.

        `launch` follows a TrainJob: it runs as long as pretraining does, needs next to nothing, and leaves most retries to the TrainJob.
        """
        if name in self.steps:
            return self.steps[name]
        if name == "launch":
            pretrain, small = self.step("pretrain"), StepResources(cpu=("500m", "1"), memory=("1Gi", "2Gi"))
            patience = {"retries": min(pretrain.retries, small.retries), "backoff_seconds": pretrain.backoff_seconds}
            return small.model_copy(update={**patience, "timeout_hours": pretrain.timeout_hours})
        return self.steps.get(ALL_HEADS if name in HEADS else name, StepResources())

    def image(self, target: str) -> str:
        """Returns the name of the image of a target, cpu or gpu."""
        name: str = getattr(self.images, target)
        return name.replace(COMMIT, commit())


def commit() -> str:
    """Returns the git commit of this code, or `unknown`."""
    return git_state()["commit"] or "unknown"


def load(path: str | Path = EXAMPLE) -> Settings:
    """Reads and checks a settings file.

    Raises:
        UserError: the file cannot be read, or a value is wrong; names the file and the key.
    """
    return validate(Settings, read_yaml(Path(path), "--settings"), None, str(path))
