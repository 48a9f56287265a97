"""The settings file: where the cluster is, and what each step may use there. pipelines/settings.yaml is the example.

Everything is checked here, before anything is compiled: a malformed quantity would compile, and crash the cluster's driver.
"""

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.common.errors import UserError
from components.common.runs.provenance import git_state

EXAMPLE = Path(__file__).with_name("settings.yaml")
COMMIT = "{commit}"
"""In the name of an image: stands for the git commit."""
UNKNOWN_COMMIT = "unknown"
NOTHING_SPECIAL = {"gpus": 0, "shared_memory": None, "spot": False}

StepName = Literal[
    "begin", "simulate", "preprocess", "merge", "pretrain", "launch", "classify", "detect", "invert", "evaluate", "register", "end"
]
Head = Literal["classify", "detect", "invert"]

_UNITS: dict[str, int] = {
    "": 1,
    **{unit: 1000**n for n, unit in enumerate("KMGTPE", 1)},
    **{f"{unit}i": 1024**n for n, unit in enumerate("KMGTPE", 1)},
}
_MEMORY = re.compile(r"([1-9][0-9]*)([KMGTPE]i?)?")
_CPU = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|[1-9][0-9]*m)")
_IMAGE = re.compile(r"[^\s:@/]+(:[0-9]+(?=/))?(/[^\s:@/]+)*(:(?P<tag>[\w{}][\w.{}-]{0,127}))?(@sha256:(?P<digest>[0-9a-f]{64}))?")


def memory_bytes(quantity: str) -> int:
    """Bytes of a quantity of memory, such as 16Gi."""
    found = _MEMORY.fullmatch(quantity)
    assert found, "checked when the settings are read"
    return int(found[1]) * _UNITS[found[2] or ""]


def cpu_cores(quantity: str) -> Decimal:
    """Cores of a quantity of processors, such as 500m or 4."""
    return Decimal(quantity[:-1]) / 1000 if quantity.endswith("m") else Decimal(quantity)


def _check_memory(value: str) -> str:
    if not _MEMORY.fullmatch(value):
        raise ValueError("must be a whole number of bytes with a unit of Kubernetes, such as 512Mi or 16Gi")
    return value


def _check_cpu(value: str) -> str:
    if not _CPU.fullmatch(value) or not cpu_cores(value):
        raise ValueError("must be a number of cores or of thousandths, such as 4, 0.5 or 500m")
    return value


def _check_image(value: str) -> str:
    found = _IMAGE.fullmatch(value)
    if not found:
        raise ValueError("must be the name of an image, such as registry/name:tag")
    if not found["digest"] and found["tag"] in (None, "latest"):
        raise ValueError(f"needs a tag that never moves, such as {COMMIT}, or a digest: Kubeflow's cache goes by the image's name")
    return value


def _check_s3(value: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/.*)?", value):
        raise ValueError("must be an s3:// URI")
    return value.rstrip("/")


Memory = Annotated[str, AfterValidator(_check_memory)]
Cpu = Annotated[str, AfterValidator(_check_cpu)]
Image = Annotated[str, AfterValidator(_check_image)]
Prefix = Annotated[str, AfterValidator(_check_s3)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]


class Model(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True)


class Server(Model):
    """Kubeflow Pipelines. The command line's --host, --namespace and --experiment win."""

    host: str | None = None
    """Address of its UI or API, such as https://kubeflow.example.org/pipeline."""
    namespace: str | None = None
    """The profile's namespace; leave it out where Kubeflow has a single user."""
    experiment: str = "cxr"
    """What runs are listed under."""


class Images(Model):
    """The two targets of docker/Dockerfile. `{commit}` becomes the git commit."""

    cpu: Image
    """Without torch."""
    gpu: Image
    """With torch; runs on CPUs as well."""
    pull_secrets: tuple[Name, ...] = ()
    """Secrets of the registry."""


class Secret(Model):
    """A Kubernetes Secret, and which of its keys become which environment variables."""

    name: Name
    """Of the Secret."""
    keys: Annotated[dict[str, Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]], Field(min_length=1)]
    """Key in the Secret -> environment variable."""


class Secrets(Model):
    """Each goes to the steps that need it, and to no other."""

    s3: Secret
    """To every step that reads or writes data."""
    mlflow: Secret | None = None
    """To every step that has an MLflow run; none where the server asks for no password."""
    pseudonyms: Secret | None = None
    """To preprocess alone; only simulated cohorts do without."""


class Toleration(Model):
    """Of a node's taint."""

    key: str
    """Of the taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether the value counts."""
    value: str | None = None
    """Of the taint, with Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None: any."""

    @model_validator(mode="after")
    def _value_goes_with_equal(self) -> "Toleration":
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("a toleration has a value with operator Equal, and only then")
        return self


class Affinity(Model):
    """A wish, or a demand, for nodes by label."""

    key: str
    """Of the node's label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    """How values are compared."""
    values: tuple[str, ...] = ()
    """Of the label."""
    weight: Annotated[int, Field(ge=1, le=100)] | None = None
    """Of a wish; None: a demand."""


class Pool(Model):
    """A kind of nodes."""

    node_selector: dict[str, str] = {}
    """Labels that the nodes have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that the nodes have."""
    affinity: tuple[Affinity, ...] = ()
    """Further wishes and demands."""


class Step(Model):
    """What a step may use."""

    cpu: tuple[Cpu, Cpu] = ("1", "2")
    """Cores, request and limit."""
    memory: tuple[Memory, Memory] = ("2Gi", "4Gi")
    """Request and limit; shared memory counts towards the limit."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """With one or more the step runs in the pool `gpu`."""
    gpu_type: str = "nvidia.com/gpu"
    """Kubernetes' name of the resource."""
    shared_memory: Memory | None = None
    """Size of /dev/shm, in memory; the container runtime's 64Mi are too little for torch's workers."""
    spot: bool = False
    """May run in the pool `spot`, whose nodes can go away at any time."""
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    """After any failure: Kubeflow cannot tell preemption from a mistake."""
    backoff_seconds: Annotated[int, Field(ge=0)] = 60
    """Before the first retry; doubles each time, up to an hour."""
    timeout_hours: Annotated[float, Field(gt=0)] = 12
    """After which an attempt is stopped, and retried if retries are left."""

    @model_validator(mode="after")
    def _limits_hold(self) -> "Step":
        if cpu_cores(self.cpu[0]) > cpu_cores(self.cpu[1]):
            raise ValueError(f"cpu: the request {self.cpu[0]} is above the limit {self.cpu[1]}")
        if memory_bytes(self.memory[0]) > memory_bytes(self.memory[1]):
            raise ValueError(f"memory: the request {self.memory[0]} is above the limit {self.memory[1]}")
        if self.shared_memory and memory_bytes(self.shared_memory) >= memory_bytes(self.memory[1]):
            raise ValueError(f"shared_memory: {self.shared_memory} must be below the limit of memory, {self.memory[1]}, it counts towards")
        return self


class Work(Model):
    """A volume for work in progress: where a retried step finds its checkpoint."""

    claim: Name
    """PersistentVolumeClaim, ReadWriteMany where steps run on several nodes."""
    path: Annotated[str, Field(pattern=r"^/[^/].*$")] = "/work"
    """Where it is mounted."""


class Trainer(Model):
    """Kubeflow Trainer, for pretraining on several nodes."""

    runtime: Name = "torch-distributed"
    """A ClusterTrainingRuntime, or a TrainingRuntime of the namespace."""
    service_account: Name | None = None
    """Of the training pods; None: the namespace's default."""


class User(Model):
    """Whom the containers run as."""

    uid: Annotated[int, Field(ge=1)] = 1000
    """Never root."""
    gid: Annotated[int, Field(ge=1)] = 1000
    """Group."""


class Settings(Model):
    """The whole file."""

    server: Server = Server()
    raw: Prefix | None = None
    """Raw files; --raw wins."""
    root: Prefix
    """Prefix below which every step has its outputs."""
    heads: tuple[Head, ...] = ("classify", "detect", "invert")
    """What the backbone is fine-tuned for; detect needs boxes."""
    partitions: Annotated[int, Field(ge=1, le=1000)] = 4
    """Preprocessing steps that run side by side; the shards do not depend on it."""
    parallel_models: Annotated[int, Field(ge=1)] = 4
    """Models of a study that are trained side by side."""
    images: Images
    service_account: Name | None = None
    """Of the run's pods; None: Kubeflow's default."""
    user: User = User()
    secrets: Secrets
    environment: dict[str, str] = {}
    """Of every step, such as AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI."""
    gpu: Pool = Pool()
    """Where steps with GPUs run."""
    spot: Pool = Pool()
    """What steps with `spot` get in addition."""
    work: Work | None = None
    """None: a preempted step starts again."""
    trainer: Trainer = Trainer()
    steps: dict[StepName, Step] = {}
    """By name; a step that is not named has the defaults."""

    @model_validator(mode="after")
    def _classify_is_there(self) -> "Settings":
        if "classify" not in self.heads:
            raise ValueError("heads must have classify, which the gate judges by")
        if len(set(self.heads)) < len(self.heads):
            raise ValueError("heads names one twice")
        return self

    def step(self, name: StepName) -> Step:
        """What a step may use. The one that launches a TrainJob waits as long as pretraining takes, and does nothing else."""
        if name == "launch" and name not in self.steps:
            return self.step("pretrain").model_copy(update={"cpu": ("500m", "1"), "memory": ("1Gi", "2Gi"), **NOTHING_SPECIAL})
        return self.steps.get(name, Step())

    def image(self, target: str) -> str:
        """Name of an image.

        Args:
            target: cpu or gpu.
        """
        name: str = getattr(self.images, target)
        return name.replace(COMMIT, commit())


def commit() -> str:
    """The git commit of this code, as far as it is known."""
    return git_state()["commit"] or UNKNOWN_COMMIT


def load(path: str | Path = EXAMPLE) -> Settings:
    """Reads and checks a settings file.

    Raises:
        UserError: names the file and the key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file with --settings") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error.errors()[0])}") from None


def _explain(mistake: Any) -> str:
    name = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        return f"{name} is not a setting; see {EXAMPLE.name}"
    if mistake["type"] == "missing":
        return f"{name} is missing; see {EXAMPLE.name}"
    reason = mistake["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(mistake["input"], dict | BaseModel) else f", not {mistake['input']!r}"
    return f"{name}: {reason}{shown}" if name else f"{reason}{shown}"
