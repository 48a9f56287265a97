"""One frozen model per section of params.yaml: names, types and bounds of every parameter, and what it is for.

The defaults are the paper's scale (Cho et al., J Imaging Inform Med 2024, doi 10.1007/s10278-024-01032-x);
params.yaml holds the demo's.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from components.common.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]


def _not_a_yaml_boolean(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


Positive = Annotated[int, Field(ge=1)]
Arch = Literal["resnet18", "resnet50"]
Arm = Literal["scratch", "moco", "ifa", "ifa-cosine", "ifa-layer4", "aligned", "mse"]
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
    """Processes; 0: one a core; 1: the stage's own, which a file that crashes its decoder ends: the next run sets that file aside. The
    shards do not depend on it."""

    @model_validator(mode="after")
    def _splits_leave_training(self) -> "Preprocess":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self


class Term(Section):
    """What is asked of the map after a stage."""

    target: Annotated[float, Field(ge=-1, le=1)] = 1.0
    """Cosine similarity that each position is pulled to (the authors' epsilon)."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Share in the loss, times lambda_ifa."""


class Pretrain(Section):
    """MoCo v2 with the IFA loss (components/pretrain)."""

    operational = frozenset({"checkpoint_minutes", "keep_checkpoints", "collapse_std", "collapse_epochs", "nodes"})

    arch: Arch = "resnet50"
    """Backbone, with one input channel."""
    preset: Arm = "ifa"
    """Which intermediate maps are pulled to which similarity; `moco`: none; `ifa`: the authors' code; `ifa-cosine`: the paper's
    abstract; `aligned`: as `ifa`, but at the same anatomy; `mse`: Kaku et al.'s (components/pretrain/objective.py); `scratch`: no
    training at all, the starting point as it is, with which a study compares."""
    terms: dict[Stage, Term] | None = None
    """By stage, what replaces the preset's terms, such as {layer1: {target: 0.3, weight: 0.5}}; null: the preset's."""
    lambda_nce: Annotated[float, Field(ge=0)] = 1.0
    """Weight of InfoNCE."""
    lambda_ifa: Annotated[float, Field(ge=0)] = 1.0
    """Weight of all terms on intermediate maps."""
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
    batch_norm: Literal["shuffle", "sync", "frozen"] = "shuffle"
    """shuffle: batch statistics of each group, keys shuffled between groups and GPUs; sync: of the batch on all GPUs; frozen: the
    running ones of the starting point."""
    key_momentum: Fraction = 0.999
    """Momentum of the key encoder."""
    dim: Positive = 128
    """Dimensions of the projection."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the weights, the order of the images and the views."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the forward pass; auto: bf16 on a GPU, fp32 on a CPU."""
    compile: bool = False
    """True: torch.compile on both encoders; the first step takes minutes."""
    accumulate: Positive = 1
    """Parts of a GPU's share of the batch that are computed one after the other, to save memory; a divisor of its groups."""
    probe_epochs: Annotated[int, Field(ge=0)] = 10
    """Epochs between probes by nearest neighbours on the labelled val split; 0: none."""
    collapse_std: Annotated[float, Field(ge=0)] = 0.01
    """The run stops when feature_std stays below; 0: never."""
    collapse_epochs: Positive = 5
    """For how many epochs on end."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints."""
    keep_checkpoints: Positive = 2
    """How many are kept."""
    nodes: Positive = 1
    """Of a cluster: above 1 the Kubeflow pipeline pretrains by a TrainJob; by hand torchrun says how many there are."""

    @model_validator(mode="after")
    def _terms_fit_the_preset(self) -> "Pretrain":
        if self.preset in ("moco", "scratch") and self.terms:
            raise ValueError(f"terms: the preset {self.preset} has none; choose ifa, aligned or mse")
        if self.preset == "mse" and any(term.target != Term().target for term in (self.terms or {}).values()):
            raise ValueError("terms: in the preset mse they have a weight and no target")
        return self

    @model_validator(mode="after")
    def _queue_holds_whole_batches(self) -> "Pretrain":
        if self.queue_size % self.batch_size:
            raise ValueError("queue_size must be a multiple of batch_size")
        if self.batch_size % self.shuffle_groups or self.batch_size == self.shuffle_groups:
            raise ValueError("batch_size must be a multiple of shuffle_groups, of at least two images a group")
        if (self.shuffle_groups if self.batch_norm == "shuffle" else self.batch_size) % self.accumulate:
            raise ValueError("accumulate must be a divisor of shuffle_groups, or of batch_size without shuffling")
        return self


class Classify(Section):
    """Multi-label classification."""

    operational = frozenset({"checkpoint_minutes"})

    arch: Arch = "resnet50"
    """Backbone when training from scratch; with --backbone it must be the same."""
    mode: Literal["finetune", "linear"] = "finetune"
    """finetune: all weights; linear: the head on features of the frozen backbone, without augmentation."""
    epochs: Positive = 50
    """Passes over the train split."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images a step; fewer if there are not so many."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of AdamW: linear warm-up, then a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from the head to layer4, from there to layer3, and so on down; 1: one rate for all."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training patients whose images are used: stratified by finding, smaller shares nested in larger ones; another
    seed draws others."""
    positive_rate: dict[str, Annotated[float, Field(gt=0, lt=1)]] = {}
    """Finding -> share of positives among its training labels: labels become unknown, patient by patient, until it holds."""
    loss: Literal["bce", "weighted_bce", "focal", "logit_adjustment"] = "bce"
    """bce; weighted_bce: positives and negatives of a finding weigh the same; focal: easy images weigh less (Lin et al. 2017);
    logit_adjustment: logits are shifted by the prior's while training (Menon et al. 2021)."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Of loss: focal; 0 is bce."""
    adjustment: Annotated[float, Field(ge=0)] = 1.0
    """tau of loss: logit_adjustment; 0 is bce."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after so many epochs without a better validation AUROC; 0: never."""
    tta_flip: bool = False
    """Predictions are the mean of an image's and its mirror image's. Off: a chest is not symmetric."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the head, the order of the images and the augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints."""


class Detect(Section):
    """Detection of findings with boxes (components/detect)."""

    operational = frozenset({"checkpoint_minutes"})

    arch: Arch = "resnet50"
    """Backbone when training from scratch; with --backbone it must be the same."""
    detector: Literal["retinanet", "fasterrcnn"] = "retinanet"
    """torchvision's, in their second versions."""
    classes: tuple[str, ...] = ()
    """Labels of the boxes to detect; none: all that the train split has. Images in which a class is not known are left out."""
    channels: Annotated[int, Field(ge=64, multiple_of=32)] = 256
    """Channels of the feature pyramid and the heads."""
    batch_norm: Literal["train", "frozen"] = "train"
    """frozen: the backbone's batch norm stays as pretrained, for batches of a few images. The default is the same with and without
    a backbone, so that the two differ in their weights alone."""
    epochs: Positive = 50
    """Passes over the images of the train split that are known."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Images a step."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of AdamW: linear warm-up, then a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of AdamW."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training patients whose images are used; smaller shares are nested in larger ones."""
    augment: bool = True
    """Shift and scale the images at random, by little."""
    score_threshold: Fraction = 0.05
    """Detections below are dropped."""
    max_detections: Positive = 100
    """Detections kept of an image, the best."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the heads, the order of the images and the augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints."""


class Invert(Section):
    """GAN inversion (components/invert): a StyleGAN2 generator, then an encoder into its latents."""

    operational = frozenset({"checkpoint_minutes"})

    arch: Arch = "resnet50"
    """Backbone of the encoder, of the perceptual loss and of the judge; what is pretrained must be the same."""
    size: Annotated[int, Field(ge=16, le=1024)] = 256
    """Side of the images in pixels, a power of two; those of the shards are shrunk to it."""
    latent_dim: Positive = 512
    """Dimensions of z and of w."""
    mapping_layers: Positive = 8
    """Layers of the mapping network."""
    channel_base: Positive = 16384
    """Maps of R pixels a side have channel_base / R channels."""
    channel_max: Positive = 512
    """Most channels of a map."""
    gan_epochs: Positive = 100
    """Passes of the generator and the discriminator over the train split."""
    gan_batch_size: Annotated[int, Field(ge=2)] = 32
    """Images a step of the GAN."""
    gan_lr: Annotated[float, Field(gt=0)] = 0.002
    """Learning rate of Adam, for both networks."""
    r1_gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the R1 penalty on the discriminator; larger for larger images."""
    path_weight: Annotated[float, Field(ge=0)] = 2.0
    """Weight of the path length penalty on the generator; 0: without."""
    perceptual: Literal["none", "scratch", "backbone"] = "backbone"
    """Network of the perceptual loss: none, random weights, or the backbone that --perceptual names, else --backbone (without
    either: random weights)."""
    lambda_pixel: Annotated[float, Field(ge=0)] = 4.0
    """Weight of the squared error of pixels in [0, 1]: 4 is 1 for pixels in [-1, 1]."""
    lambda_perceptual: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the distance in the perceptual backbone."""
    lambda_latent: Annotated[float, Field(ge=0)] = 0.005
    """Weight of the squared distance of the latents to the mean latent."""
    epochs: Positive = 100
    """Passes of the encoder over the train split."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Images a step of the encoder."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of the encoder's Adam: linear warm-up, then a cosine."""
    refine_steps: Annotated[int, Field(ge=0)] = 0
    """Steps by which the latents of each val and test image are optimised after the encoder; 0: not at all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the weights, the latents, the noise and the order of the images."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints."""

    @model_validator(mode="after")
    def _sizes_can_be_halved(self) -> "Invert":
        if self.size & (self.size - 1):
            raise ValueError(f"size must be a power of two, such as {2 ** (self.size.bit_length() - 1)}, not {self.size}")
        if self.channel_base < self.size:
            raise ValueError("channel_base must be at least size, or the largest maps have no channel")
        return self


class Evaluate(Section):
    """Metrics with confidence intervals."""

    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of the test patients."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the intervals."""
    min_positives: Positive = 5
    """Positives, and negatives, that a finding needs in the test split to count in the macro average, and that a subgroup needs
    to be judged without a warning."""
    threshold: Literal["youden", "sensitivity"] = "youden"
    """How a finding's threshold is chosen on the validation split: sensitivity + specificity is highest, or the highest threshold
    that reaches target_sensitivity."""
    target_sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Of threshold: sensitivity."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the bootstrap."""


class Study(Section):
    """The paper's claims: which arms are compared, and where (study/dvc.yaml, pipelines/study.py)."""

    arms: tuple[Arm, ...] = ("scratch", "moco", "ifa", "ifa-cosine", "aligned")
    """Values of pretrain.preset."""
    reference: str = "moco"
    """The arm that the others are compared with."""
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.01, 0.05, 0.1, 0.25, 1.0)
    """Values of classify.label_fraction: the claim about few labels."""
    imbalanced: str = "Lung Opacity"
    """The finding of classify.positive_rate: the claim about rare positives."""
    positive_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.02, 0.05, 0.1)
    """Its shares of positives."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2)
    """Each is a cell of its own, pretraining included."""

    @model_validator(mode="after")
    def _reference_is_an_arm(self) -> "Study":
        if self.reference not in self.arms:
            raise ValueError(f"reference: {self.reference} is none of the arms ({', '.join(self.arms)})")
        return self


class Register(Section):
    """The gate in front of the model registry."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    """Name of the registered model; null: cxr-classify, cxr-detect or cxr-invert, by the model's task. `--rollback` and `--demote`
    see no model and take null for cxr-classify. In a pipeline, it is the classifier's alone."""
    min_auroc: Fraction = 0.7
    """A first classifier becomes champion above this macro test AUROC. (A first detector does if the interval of its mAP@50, and a
    first inversion if that of its PSNR over the mean training image's, lies above 0.)"""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of the paired difference to the champion."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the bootstrap."""
    licence: str = "For internal research; the terms of the training data apply."
    """Terms under which the model may be used, for its card."""


class Params(Section):
    """The whole of params.yaml."""

    simulate: Simulate = Simulate()
    preprocess: Preprocess = Preprocess()
    pretrain: Pretrain = Pretrain()
    classify: Classify = Classify()
    detect: Detect = Detect()
    invert: Invert = Invert()
    evaluate: Evaluate = Evaluate()
    study: Study = Study()
    register_: Register = Field(default=Register(), alias="register")


def load(path: str | Path = "params.yaml", overrides: list[str] | None = None) -> Params:
    """Reads and checks a params file.

    Args:
        path: a YAML file; sections and keys that it lacks take the defaults.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        UserError: a missing file, bad YAML, an unknown key or a value out of bounds, with its name.
    """
    return _check(_read_yaml(Path(path)), overrides, str(path))


def _check(raw: dict[str, Any], overrides: list[str] | None, source: str) -> Params:
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


def parse(sections: dict[str, str], overrides: list[str] | None = None) -> Params:
    """Parameters as they travel through a pipeline.

    Args:
        sections: JSON by name of the section; sections that are not there take the defaults.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        UserError: as by `load`.
    """
    return _check({name: yaml.safe_load(text) for name, text in sections.items()}, overrides, "the pipeline's parameters")


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
        model = model if field is None else _model_in(field.annotation) or model
    known = [f.alias or n for n, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, itself or as values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for model in map(_model_in, get_args(annotation)) if model), None)
