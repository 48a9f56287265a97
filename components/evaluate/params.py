"""Parameters of `evaluate study` and `evaluate duplicates`, and of the pipeline `sweep`.

Those of `evaluate` itself, which the heads read too, are in components/common/runs/params.py.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from components.common.runs.params import Positive, Section, Seed
from components.heads import ANY_HEAD, HEADS
from components.pretrain.params import Arm


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuses repeated values, whose outputs would have the same folder."""
    if repeated := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"{repeated[0]} is there twice; name each value once")
    return values


Distinct = AfterValidator(_distinct)
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), Distinct]


class Study(Section):
    """The paper's claims: which arms are compared under which conditions (study/dvc.yaml, pipelines/study.py)."""

    arms: Annotated[tuple[Arm, ...], Distinct] = ("scratch", "base", "moco", "ifa", "ifa-cosine", "ifa-layer4", "aligned", "mse")
    """Values of pretrain.preset. Each arm but scratch continues the base of its seed for pretrain.epochs."""
    base_epochs: Positive = 200
    """Passes over the train split by which MoCo makes the base of each seed, from random weights."""
    reference: str = "moco"
    """The arm that the others are compared with."""
    fractions: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Distinct] = (0.01, 0.05, 0.1, 0.25, 1.0)
    """Values of classify.label_fraction, for the claim about few labels."""
    imbalanced: str = "Lung Opacity"
    """Finding whose positives are made rare by classify.positive_rate, for the claim about rare positives."""
    positive_rates: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Distinct] = (0.02, 0.05, 0.1)
    """Fractions of positives of that finding."""
    seeds: Seeds = (0, 1, 2)
    """Each seed repeats the whole study, pretraining included."""

    @model_validator(mode="after")
    def _reference_is_an_arm(self) -> "Study":
        if self.reference not in self.arms:
            raise ValueError(f"reference: {self.reference} is none of the arms ({', '.join(self.arms)})")
        return self


class Sweep(Section):
    """Models that differ in parameters of a head. The best one on the validation split is evaluated (pipelines/sweep.py)."""

    stage: str = "classify"
    """The head."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1), Distinct]] = Field(
        default={"lr": (0.0003, 0.001, 0.003), "weight_decay": (0.01, 0.1)}
    )
    """Values by parameter of the head; each combination is trained."""
    seeds: Seeds = (0,)
    """Each combination is trained once per seed, and judged by the mean."""
    metric: Annotated[str, Field(pattern="^val_")] = "val_auroc_macro"
    """Number of the validation split in metrics.json of the models; higher must be better. detect has val_map_50, invert val_psnr."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "Sweep":
        if self.stage not in HEADS:
            raise ValueError(f"stage: {self.stage} is not a head; choose {ANY_HEAD}")
        known = HEADS[self.stage].params.model_fields.keys() - {"seed"}
        if unknown := sorted(self.grid.keys() - known):
            raise ValueError(f"grid: {unknown[0]} is not one of the parameters of {self.stage} to vary: {', '.join(sorted(known))}")
        return self


class Duplicates(Section):
    """When two images count as nearly the same picture."""

    min_correlation: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Least correlation of the fine structure of two images, once they are aligned. Copies that were compressed, resized, mirrored,
    windowed or slightly cropped reach 0.75 to 1; images of two patients stay below 0.65."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.3
    """Least cosine between their features in the backbone, from which the mean over the cohort is subtracted, where one is given. Copies
    reach 0.45 to 1 in a MoCo backbone, other images mostly less than 0.3, but some more than 0.7: features alone do not tell."""
