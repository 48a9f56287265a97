"""Parameters of `pretrain`."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from components.common.runs.params import Arch, Device, Fraction, NonNegative, Positive, Section, Seed

Arm = Literal["scratch", "base", "moco", "ifa", "ifa-cosine", "ifa-layer4", "aligned", "mse"]
CONTROLS = ("scratch", "base")
"""Arms of a study without training."""
Stage = Literal["layer1", "layer2", "layer3", "layer4"]
Preset = Literal["authors", "frequent"]
Shift = Annotated[float, Field(ge=-1, le=1)]
Contrast = Annotated[float, Field(gt=-1)]
Factor = Annotated[float, Field(gt=0)]


class Term(Section):
    """The term of the loss on the feature map after one stage of the ResNet."""

    target: Annotated[float, Field(ge=-1, le=1)] = 1.0
    """Cosine similarity that each position is pulled to (the authors' epsilon)."""
    weight: NonNegative = 1.0
    """Weight of the term, multiplied by lambda_ifa."""


class Views(Section):
    """How the views of an image differ from it. Each change is made with a probability; its size is drawn from a uniform distribution.

    The defaults are those of the authors' published code (chokyungjin/MI2RLNet_IFA), in the units of this project. Their noise, with a
    standard deviation below a tenth of a grey level, is left out; their median and motion blur is a Gaussian blur here.
    """

    geometry_probability: Fraction = 0.2
    """Probability of shift, scale and rotation, which are drawn together."""
    shift: Fraction = 0.0625
    """Largest shift, as a fraction of the side."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest relative change of scale."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest rotation, in degrees."""
    distortion_probability: Fraction = 0.2
    """Probability of a radial distortion."""
    distortion: Annotated[float, Field(ge=0, le=0.1)] = 0.05
    """Largest radial distortion: relative displacement at the centre of a border."""
    border: Literal["reflect", "zeros"] = "reflect"
    """How a view continues beyond the border of the image."""
    filter_probability: Fraction = 0.2
    """Probability of either a blur or a sharpening."""
    blur_share: Fraction = 0.6
    """Fraction of the filtered views that are blurred; the others are sharpened."""
    intensity_probability: Fraction = 0.6
    """Probability of a change of brightness and contrast."""
    intensity_together: bool = True
    """Whether brightness and contrast change in the same views; otherwise each is changed with the probability of its own."""
    brightness: tuple[Shift, Shift] = (-0.1, 0.1)
    """Smallest and largest shift of brightness, as a fraction of the full range."""
    contrast: tuple[Contrast, Contrast] = (-0.2, 0.1)
    """Smallest and largest relative change of contrast."""
    gain_probability: Fraction = 0.1
    """Probability of a multiplication of all pixels by one factor."""
    gain: tuple[Factor, Factor] = (0.9, 1.1)
    """Smallest and largest factor."""
    noise_probability: Fraction = 0.0
    """Probability of additive Gaussian noise."""
    noise: Fraction = 0.0
    """Largest standard deviation of the noise, as a fraction of the full range."""

    @model_validator(mode="after")
    def _intervals_ascend(self) -> "Views":
        for name in ("brightness", "contrast", "gain"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low} is above {high}; give the smaller number first")
        return self


PRESETS: dict[Preset, Views] = {
    "authors": Views(),
    "frequent": Views(
        geometry_probability=1.0,
        distortion_probability=0.5,
        border="zeros",
        filter_probability=0.5,
        blur_share=0.5,
        intensity_probability=0.5,
        intensity_together=False,
        brightness=(-0.2, 0.2),
        contrast=(-0.2, 0.2),
        gain_probability=0.0,
        noise_probability=0.5,
        noise=0.04,
    ),
}


class Pretrain(Section):
    """MoCo v2 with the IFA loss."""

    arch: Arch = "resnet50"
    """Backbone, with one input channel."""
    preset: Arm = "ifa"
    """Which intermediate maps are pulled to which similarity. moco: none; ifa: as in the authors' code; ifa-cosine: as in the
    paper's abstract; ifa-layer4: layer4 only; aligned: as ifa, but between positions of the same anatomy; mse: Kaku et al.'s mean
    squared error (components/pretrain/objective.py). The controls of a study are not trained: scratch has random weights whatever
    --start names, base those of --start."""
    terms: dict[Stage, Term] | None = None
    """Terms by stage that replace those of the preset, such as {layer1: {target: 0.3, weight: 0.5}}; null: the preset's."""
    lambda_nce: NonNegative = 1.0
    """Weight of InfoNCE."""
    lambda_ifa: NonNegative = 1.0
    """Weight of all terms on intermediate maps."""
    views: Preset = "authors"
    """How both views differ from the image. authors: the distribution of the authors' code, which leaves 41 % of the pairs unmoved;
    frequent: every view is moved, and each other change is made in half of the views."""
    view_changes: dict[str, Any] = Field(default={})
    """Values of `Views` that replace those of the preset, such as {rotation: 5, noise: 0.02}."""
    augment_query: bool = True
    """False: the query is the image without augmentation (as in an earlier version of the authors' code)."""
    epochs: Positive = 200
    """Passes over the train split."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images per step, over all GPUs."""
    lr: Annotated[float, Field(gt=0)] = 0.03
    """Initial learning rate of SGD; it decays to 0 along a cosine. The default suits batches of 256 (He et al. 2020)."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegative = 1e-4
    """Weight decay of SGD."""
    temperature: Annotated[float, Field(gt=0)] = 0.2
    """Temperature T of InfoNCE."""
    queue_size: Positive = 65536
    """Keys kept as negatives; a multiple of batch_size."""
    shuffle_groups: Positive = 8
    """Number of groups of a batch with batch statistics of their own; keys are shuffled between the groups, as between GPUs in
    the MoCo paper."""
    batch_norm: Literal["shuffle", "sync", "frozen"] = "shuffle"
    """Batch statistics. shuffle: of each group, with keys shuffled between groups and GPUs; sync: of the batch on all GPUs;
    frozen: the running statistics of the starting point."""
    key_momentum: Fraction = 0.999
    """Momentum of the key encoder."""
    dim: Positive = 128
    """Dimensions of the projection."""
    seed: Seed = 0
    """Seed of the weights, the order of the images and the views."""
    device: Device = "auto"
    """auto: a GPU if there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the forward pass; auto: bf16 on a GPU, fp32 on a CPU."""
    accumulate: Positive = 1
    """Gradient accumulation: parts of a GPU's share of the batch that are computed one after another to save memory; a divisor of
    its number of groups."""
    probe_epochs: Annotated[int, Field(ge=0)] = 10
    """Epochs between nearest-neighbour probes on the labelled validation split; 0: no probes."""

    @property
    def passes(self) -> int:
        """Passes over the train split that the preset makes: none for a control."""
        return 0 if self.preset in CONTROLS else self.epochs

    def rounding(self) -> tuple[str, ...]:
        """Names of parameters that change nothing in the result but its rounding, or only what is logged."""
        return ("probe_epochs",) if self.batch_norm == "sync" else ("accumulate", "probe_epochs")

    @property
    def distribution(self) -> Views:
        """The distribution of the views: the preset with its changes."""
        return Views(**PRESETS[self.views].model_dump() | self.view_changes)

    @model_validator(mode="after")
    def _changes_fit_the_views(self) -> "Pretrain":
        try:
            self.distribution  # noqa: B018
        except ValidationError as error:
            first = error.errors()[0]
            place = "".join(f"{part}: " for part in first["loc"])
            raise ValueError(f"view_changes: {place}{first['msg'].removeprefix('Value error, ')}") from None
        return self

    @model_validator(mode="after")
    def _terms_fit_the_preset(self) -> "Pretrain":
        if self.preset in ("moco", *CONTROLS) and self.terms:
            raise ValueError(f"terms: the preset {self.preset} has none; choose ifa, aligned or mse")
        if self.preset == "mse" and any(term.target != Term().target for term in (self.terms or {}).values()):
            raise ValueError("terms: with the preset mse they have a weight and no target")
        return self

    @model_validator(mode="after")
    def _queue_holds_whole_batches(self) -> "Pretrain":
        if self.queue_size % self.batch_size:
            raise ValueError("queue_size must be a multiple of batch_size")
        if self.batch_size % self.shuffle_groups or self.batch_size == self.shuffle_groups:
            raise ValueError("batch_size must be a multiple of shuffle_groups, with at least two images per group")
        if (self.shuffle_groups if self.batch_norm == "shuffle" else self.batch_size) % self.accumulate:
            raise ValueError("accumulate must be a divisor of shuffle_groups, or of batch_size if batch_norm is not shuffle")
        return self
