"""One frozen model per section of params.yaml: names, types and bounds of every parameter, and what it is for.

The defaults are the paper's scale (Cho et al., J Imaging Inform Med 2024, doi 10.1007/s10278-024-01032-x);
params.yaml holds the demo's.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from components.common.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]


def _not_a_yaml_boolean(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


Positive = Annotated[int, Field(ge=1)]
Arch = Literal["resnet18", "resnet50"]
Stage = Literal["layer1", "layer2", "layer3", "layer4"]


class Section(BaseModel):
    """A section of params.yaml: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Parameters that change how the work is done and not what comes out."""

    def defining(self) -> dict[str, Any]:
        """The parameters that the output depends on, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.operational))


class Simulate(Section):
    """The phantom cohort."""

    patients: Positive = 240
    """Number of patients; each has one to three images."""
    size: Annotated[int, Field(ge=64, le=2048)] = 160
    """Longer side of the images, in pixels."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed is another cohort."""


class Preprocess(Section):
    """Raw files to shards."""

    operational = frozenset({"workers", "max_quarantined"})

    layout: Literal["table", "nih", "rsna", "vindr", "chexpert", "folders"] = "table"
    """How the raw folder is laid out; `table`: labels.csv and boxes.csv at its top, both optional; the others: a public set as
    it is downloaded (components/preprocess/layouts), `folders`: a folder for each class."""
    split: Literal["hash", "official"] = "hash"
    """hash: a hash of the patient decides; official: the data set's own split, as far as it has one (the layout's module says)."""
    readers: Literal["majority", "any"] = "majority"
    """What makes a label of several readers' opinions (layout vindr): more than half of them, or one, saw the finding."""
    size: Annotated[int, Field(ge=16, le=4096)] = 512
    """Longer side of a stored image, in pixels; the aspect ratio is kept."""
    bits: Literal[8, 16] = 8
    """Bits of a stored pixel."""
    clip_percentile: Annotated[float, Field(gt=0, le=100)] = 99.0
    """Pixels are clipped to [0, this percentile of the image] and scaled to the full range (the paper's)."""
    parts: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Number of Parquet files. A file belongs to a part by a hash of its path."""
    views: tuple[str, ...] = ("PA", "AP")
    """Accepted views, such as PA, AP, LL, RL; LATERAL accepts laterals of either side. A file that names no view is accepted."""
    val_fraction: Fraction = 0.15
    """Share of the patients in the validation split."""
    test_fraction: Fraction = 0.2
    """Share of the patients in the test split."""
    unknown_labels: Literal["ignore", "ones", "zeros"] = "ignore"
    """What a label of -1 becomes: unknown, positive or negative (CheXpert's U-Ignore, U-Ones, U-Zeros)."""
    text_check: Annotated[Literal["report", "quarantine", "off"], BeforeValidator(_not_a_yaml_boolean)] = "report"
    """What happens to an image with what looks like text near its border: it is counted and listed, or refused."""
    max_quarantined: Fraction = 0.2
    """The stage fails when a larger share of the files is quarantined."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes; 0: one a core. The shards do not depend on it."""

    @model_validator(mode="after")
    def _splits_leave_training(self) -> "Preprocess":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self


class Pretrain(Section):
    """MoCo v2 with the IFA loss (components/pretrain)."""

    operational = frozenset({"checkpoint_minutes"})

    arch: Arch = "resnet50"
    """Backbone, with one input channel."""
    preset: Literal["moco", "ifa", "ifa-cosine", "ifa-layer4"] = "ifa"
    """Which intermediate maps are pulled to which similarity; `moco`: none; `ifa`: the authors' code."""
    lambda_nce: Annotated[float, Field(ge=0)] = 1.0
    """Weight of InfoNCE."""
    lambda_ifa: Annotated[float, Field(ge=0)] = 1.0
    """Weight of each stage's IFA term."""
    augment_query: bool = True
    """False: the query is the image as it is (an earlier version of the authors' code)."""
    epochs: Positive = 200
    """Passes over the train split."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images a step."""
    lr: Annotated[float, Field(gt=0)] = 0.03
    """Initial learning rate of SGD; a cosine takes it to 0."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay of SGD."""
    temperature: Annotated[float, Field(gt=0)] = 0.2
    """T of InfoNCE."""
    queue_size: Positive = 65536
    """Keys kept as negatives; a multiple of batch_size."""
    shuffle_groups: Positive = 8
    """Groups of a batch with batch statistics of their own; keys are shuffled between them, as the paper's between GPUs."""
    key_momentum: Fraction = 0.999
    """Momentum of the key encoder."""
    dim: Positive = 128
    """Dimensions of the projection."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the weights, the order of the images and the views."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints."""

    @model_validator(mode="after")
    def _queue_holds_whole_batches(self) -> "Pretrain":
        if self.queue_size % self.batch_size:
            raise ValueError("queue_size must be a multiple of batch_size")
        if self.batch_size % self.shuffle_groups or self.batch_size == self.shuffle_groups:
            raise ValueError("batch_size must be a multiple of shuffle_groups, of at least two images a group")
        return self


class Classify(Section):
    """Multi-label fine-tuning."""

    operational = frozenset({"checkpoint_minutes"})

    arch: Arch = "resnet50"
    """Backbone when training from scratch; with --backbone it must be the same."""
    epochs: Positive = 50
    """Passes over the train split."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images a step."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of AdamW: linear warm-up, then a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training patients whose images are used; smaller shares are nested in larger ones."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the head, the order of the images and the augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints."""


class Evaluate(Section):
    """Metrics with confidence intervals."""

    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of the test patients."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the intervals."""
    min_positives: Positive = 5
    """Positives, and negatives, that a finding needs in the test split to count in the macro average."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the bootstrap."""


class Register(Section):
    """The gate in front of the model registry."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "cxr-classify"
    """Name of the registered model."""
    min_auroc: Fraction = 0.7
    """A first model becomes champion above this macro test AUROC."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of the paired difference to the champion."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the bootstrap."""


class Params(Section):
    """The whole of params.yaml."""

    simulate: Simulate = Simulate()
    preprocess: Preprocess = Preprocess()
    pretrain: Pretrain = Pretrain()
    classify: Classify = Classify()
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(default=Register(), alias="register")


def load(path: str | Path = "params.yaml", overrides: list[str] | None = None) -> Params:
    """Reads and checks a params file.

    Args:
        path: a YAML file; sections and keys that it lacks take the defaults.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        UserError: a missing file, bad YAML, an unknown key or a value out of bounds, with its name.
    """
    raw = _read_yaml(Path(path))
    source = str(path)
    for item in overrides or []:
        section, key, value = _split_override(item)
        raw.setdefault(section, {})
        if not isinstance(raw[section], dict):
            raise UserError(f"{source}: {section} must be a mapping of parameters")
        raw[section][key] = value
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file with --params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of sections")
    return content


def _split_override(item: str) -> tuple[str, str, Any]:
    name, equals, text = item.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {item}: must read section.key=value")
    try:
        return section, key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {item}: the value is not valid YAML") from None


def _explain(error: ValidationError) -> str:
    """The first mistake, in one sentence."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{name} is not a parameter{_suggestion(first['loc'])}"
    if first["type"] == "model_type":
        return f"{name} must be a mapping of parameters"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{name}: {reason[0].lower()}{reason[1:]}, not {first['input']!r}" if first["type"] != "value_error" else f"{name}: {reason}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = Params
    for part in location[:-1]:
        field = next((f for n, f in model.model_fields.items() if (f.alias or n) == part), None)
        model = field.annotation if field and isinstance(field.annotation, type) else Params
    known = [f.alias or n for n, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
