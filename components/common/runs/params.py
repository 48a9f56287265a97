"""Reading and checking of parameter files, and the sections that more than one stage reads.

Each stage declares its own section in its `params.py`: one frozen model with the name, type, bounds, default and purpose of every
parameter. The defaults are the paper's scale (Cho et al., J Imaging Inform Med 2024, doi 10.1007/s10278-024-01032-x); params.yaml
holds the demo's. `components/params.py` puts the sections together.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.common.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]
Arch = Literal["resnet18", "resnet50"]
Device = Literal["auto", "cpu", "cuda"]

S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """A section of params.yaml: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def values(self) -> dict[str, Any]:
        """The parameters as plain JSON values."""
        return self.model_dump(mode="json")

    def rounding(self) -> tuple[str, ...]:
        """Names of parameters that change nothing in the result but its rounding, or only what is logged."""
        return ()


class Runtime(Section):
    """How the work of all stages is done. Nothing here changes what comes out, so that a change reruns nothing."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Processes of `preprocess`. 0: one per core. 1: the stage's own process; a file that crashes its decoder or takes it too
    long then ends the run, and the next run sets that file aside. The shards do not depend on it."""
    max_quarantined: Fraction = 0.2
    """`preprocess` fails when a larger fraction of the files is quarantined."""
    checkpoint_minutes: NonNegative = 10.0
    """Minutes between checkpoints of a training; 0: one after each step."""
    keep_checkpoints: Positive = 2
    """Number of checkpoints that are kept."""
    collapse_std: NonNegative = 0.01
    """`pretrain` stops when feature_std stays below this value; 0: never."""
    collapse_epochs: Positive = 5
    """Number of consecutive epochs below collapse_std after which `pretrain` stops."""
    compile: bool = False
    """Apply torch.compile to both encoders of `pretrain` and to the backbones of the heads; the first step then takes minutes."""
    profile_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of each training of which torch.profiler writes a trace, trace.json.gz, to the output and MLflow; 0: none."""
    nodes: Positive = 1
    """Nodes for `pretrain` on a cluster. Above 1, the Kubeflow pipeline creates a TrainJob; torchrun started by hand ignores it."""


class Evaluate(Section):
    """Metrics with confidence intervals."""

    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of the test patients."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    min_positives: Positive = 5
    """Positives, and negatives, that a finding needs in the test split to count in the macro average, and that a subgroup needs
    to be judged without a warning."""
    threshold: Literal["youden", "sensitivity"] = "youden"
    """How the threshold of a finding is chosen on the validation split. youden: maximises sensitivity + specificity; sensitivity:
    the highest threshold that reaches target_sensitivity."""
    target_sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sensitivity to reach with threshold: sensitivity."""
    seed: Seed = 0
    """Seed of the bootstrap."""


class Register(Section):
    """The gate in front of the model registry."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    """Name of the registered model; null: cxr-classify, cxr-detect or cxr-invert, by the head. `--rollback` and `--demote` get no
    model and take null for cxr-classify. In a pipeline it applies to the classifier only."""
    min_auroc: Fraction = 0.7
    """A first classifier becomes champion above this macro test AUROC. (A first detector becomes champion if the interval of its
    mAP@50 lies above 0, a first inversion if the interval of its PSNR gain over the mean training image does.)"""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of the paired difference to the champion."""
    seed: Seed = 0
    """Seed of the bootstrap."""
    licence: str = "For internal research; the terms of the training data apply."
    """Terms of use, for the model card."""


def read_yaml(path: Path, option: str = "--params") -> dict[str, Any]:
    """Reads a parameter file.

    Args:
        path: the file.
        option: the option that names it, for messages.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping of sections.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file with {option}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of sections")
    return content


def validate(schema: type[S], sections: Mapping[str, Any], overrides: list[str] | None, source: str) -> S:
    """Checks raw values by section, after overrides `section.key=value` in YAML; what is missing takes its default.

    Args:
        schema: a model with one field per section.
        sections: raw values by section.
        overrides: items `section.key=value`.
        source: name of the file, for messages.

    Raises:
        UserError: an unknown key or a value out of bounds; names the key.
    """
    raw = dict(sections)
    for item in overrides or []:
        section, key, value = _split_override(item)
        known = raw.setdefault(section, {})
        if not isinstance(known, dict):
            raise UserError(f"{source}: {section} must be a mapping of parameters")
        raw[section] = {**known, key: value}
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, schema)}") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns a nested mapping into one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _split_override(item: str) -> tuple[str, str, Any]:
    name, equals, text = item.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {item}: must have the form section.key=value")
    try:
        return section, key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {item}: the value is not valid YAML") from None


def _explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """Describes the first mistake in one sentence."""
    first = error.errors()[0]
    location = first["loc"]
    name = ".".join(str(part) for part in location if part != "[key]")
    if first["type"] == "extra_forbidden":
        if len(location) == 2 and location[1] in Runtime.model_fields:
            return f"{name} has moved; set runtime.{location[1]} instead"
        return f"{name} is not a parameter{_suggestion(location, schema)}"
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "model_type":
        return f"{name} must be a mapping of parameters"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{name}: {reason}" if first["type"] == "value_error" else f"{name}: {reason[0].lower()}{reason[1:]}, not {first['input']!r}"


def _suggestion(location: tuple[int | str, ...], schema: type[BaseModel]) -> str:
    model = schema
    for part in location[:-1]:
        field = next((f for n, f in model.model_fields.items() if (f.alias or n) == part), None)
        model = model if field is None else _model_in(field.annotation) or model
    known = [f.alias or n for n, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Finds the model that a field holds, itself or as values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for model in map(_model_in, get_args(annotation)) if model), None)
