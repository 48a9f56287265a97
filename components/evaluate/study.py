"""The paper's claims on one cohort: the cells of a study, each an output folder, to one page.

A claim asks whether pretraining with IFA helps where the paper says so (Cho et al. 2024): with few labels, with rare positives, in
detection, and as the perceptual loss of GAN inversion; and what a linear probe makes of the features as they are. A cell is one
model: an arm (how its backbone was pretrained), a condition (such as the share of labels) and a seed. Arms are compared within a
condition and a seed, on the same test patients.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from components.common.errors import UserError
from components.common.formats.documents import RUN_RECORD
from components.common.head import Evaluated
from components.common.runs import storage
from components.common.runs.params import Evaluate
from components.common.statistics.differences import bootstrap_p, holm
from components.common.statistics.intervals import Interval, percentile_interval
from components.evaluate.params import Study

ALWAYS = "all"
"""The condition of a claim that has only one."""


class Claim(NamedTuple):
    """What is asked, and the number that answers it."""

    title: str
    task: str
    metric: str
    """Its name in the task's headline and differences; `{finding}` is the one whose positives are made rare."""
    condition: str
    """What is varied, for the axis of a plot; empty if nothing is."""
    statement: str
    """What the paper says, as the end of `IFA pretraining ...`."""


CLAIMS = {
    "probe": Claim("Linear probe", "classify", "Macro AUROC", "cohort", "gives features that a linear probe reads better"),
    "scarcity": Claim("Few labels", "classify", "Macro AUROC", "share of the training patients", "helps with few labels"),
    "imbalance": Claim("Rare positives", "classify", "AUROC, {finding}", "share of positives", "helps with rare positives"),
    "detection": Claim("Detection", "detect", "mAP@50", "", "helps detection"),
    "inversion": Claim("GAN inversion", "invert", "MS-SSIM", "", "gives the better perceptual loss for GAN inversion"),
}
"""By name, which is that of the folder with its cells. Of every metric, more is better."""


class Cell(NamedTuple):
    """Where a model stands in the study."""

    claim: str
    condition: str
    arm: str
    seed: str

    @property
    def path(self) -> tuple[str, ...]:
        """Of its folder below that of the study."""
        return tuple(self)


@dataclass(frozen=True)
class Estimate:
    """The metric of an arm under a condition."""

    arm: str
    condition: str
    seeds: tuple[float, ...]
    """Of each seed's model."""
    interval: Interval
    """Of the first seed's model."""
    difference: Interval | None
    """To the reference, the mean over seeds; None for the reference itself."""
    p_adjusted: float
    """After Holm over the claim's comparisons; NaN for the reference."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.seeds))


@dataclass(frozen=True)
class Answer:
    """What the cohort says to a claim."""

    name: str
    """Of the claim, as in CLAIMS."""
    claim: Claim
    metric: str
    """The claim's, with the name of the finding."""
    conditions: tuple[str, ...]
    arms: tuple[str, ...]
    estimates: dict[tuple[str, str], Estimate]
    """By condition and arm."""

    def metrics(self) -> dict[str, float]:
        """Flat, for metrics.json: CLAIM_CONDITION_ARM, and the difference to the reference."""
        flat: dict[str, float] = {}
        for (condition, arm), one in self.estimates.items():
            name = "_".join((self.name, condition, arm)) if condition != ALWAYS else f"{self.name}_{arm}"
            flat |= {name: one.mean, f"{name}_low": one.interval.low, f"{name}_high": one.interval.high}
            if one.difference:
                flat |= {f"{name}_difference": one.difference.estimate, f"{name}_difference_low": one.difference.low}
                flat |= {f"{name}_difference_high": one.difference.high, f"{name}_p_holm": one.p_adjusted}
        return flat


def find_cells(folder: str) -> list[Cell]:
    """The finished cells below a folder, CLAIM/CONDITION/ARM/SEED.

    Raises:
        UserError: there is none.
    """
    paths = [entry.path.split("/") for entry in storage.listing(folder) if entry.path.endswith(f"/{RUN_RECORD}")]
    cells = sorted(Cell(*path[:4]) for path in paths if len(path) == 5 and path[0] in CLAIMS)
    if not cells:
        example = "/".join(Cell("scarcity", "0.1", "ifa", "0").path)
        raise UserError(f"{folder}: holds no cell of a study; their folders are named as {example}")
    return cells


def answers_of(models: dict[Cell, Evaluated], study: Study, evaluate: Evaluate) -> list[Answer]:
    """An answer to each claim that has cells; arguments and errors as of `answer`."""
    claims = [claim for claim in CLAIMS if any(cell.claim == claim for cell in models)]
    return [answer(claim, {cell: model for cell, model in models.items() if cell.claim == claim}, study, evaluate) for claim in claims]


def answer(claim: str, models: dict[Cell, Evaluated], study: Study, evaluate: Evaluate) -> Answer:
    """Compares the arms of a claim with the reference.

    Args:
        claim: its name.
        models: of its cells.
        study: order of arms, and which is the reference.
        evaluate: level of the intervals.

    Raises:
        UserError: an arm lacks a seed that the reference has, or its models cannot be compared.
    """
    metric = CLAIMS[claim].metric.format(finding=_finding(models.values()))
    conditions = tuple(sorted({cell.condition for cell in models}, key=_order))
    arms: tuple[str, ...] = tuple(arm for arm in study.arms if any(cell.arm == arm for cell in models))
    raw = {
        (condition, arm): _estimate(metric, models, condition, arm, study.reference, evaluate) for condition in conditions for arm in arms
    }
    adjusted = holm(np.array([p for _, p in raw.values()]))
    estimates = {
        key: Estimate(one.arm, one.condition, one.seeds, one.interval, one.difference, float(p))
        for (key, (one, _)), p in zip(raw.items(), adjusted, strict=True)
    }
    return Answer(claim, CLAIMS[claim], metric, conditions, arms, estimates)


def verdict(found: Answer, arm: str, level: float = 0.05) -> str:
    """Whether the claim holds for an arm, in a sentence about this cohort and no other.

    Args:
        found: the comparisons.
        arm: other than the reference.
        level: of significance.
    """
    judged = [found.estimates[condition, arm] for condition in found.conditions]
    known = [one for one in judged if one.difference and math.isfinite(one.p_adjusted)]
    better = [one for one in known if one.p_adjusted < level and one.difference and one.difference.estimate > 0]
    worse = [one for one in known if one.p_adjusted < level and one.difference and one.difference.estimate < 0]
    several = f" in {{}} of {len(known)} conditions" if len(found.conditions) > 1 else ""
    if not known:
        return "cannot be judged: too few positives in the test split"
    if better and not worse:
        return f"holds on this cohort: better{several.format(len(better))}"
    if worse and not better:
        return f"does not hold on this cohort: worse{several.format(len(worse))}"
    if better:
        return f"is mixed on this cohort: better in {len(better)}, worse in {len(worse)} of {len(known)} conditions"
    return "is not shown on this cohort: no difference beyond chance"


def _estimate(
    metric: str, models: dict[Cell, Evaluated], condition: str, arm: str, reference: str, evaluate: Evaluate
) -> tuple[Estimate, float]:
    """With its p-value, not adjusted."""
    own = {cell.seed: model for cell, model in models.items() if (cell.condition, cell.arm) == (condition, arm)}
    theirs = {cell.seed: model for cell, model in models.items() if (cell.condition, cell.arm) == (condition, reference)}
    if missing := sorted(set(own) ^ set(theirs)):
        raise UserError(
            f"study: condition {condition}, arm {arm}: seed {missing[0]} is there for one of {arm} and {reference} only; run its cell"
        )
    intervals = [model.headline()[metric] for _, model in sorted(own.items())]
    values = tuple(interval.estimate for interval in intervals)
    if arm == reference:
        return Estimate(arm, condition, values, intervals[0], None, float("nan")), float("nan")
    pairs = [next(d for d in own[seed].compare(theirs[seed]) if d.name == metric) for seed in sorted(own)]
    # The bootstrap's seed is the same: the b-th resample of each seed's models has drawn the same patients.
    samples = np.mean([pair.samples for pair in pairs], axis=0)
    mean = float(np.mean([pair.interval.estimate for pair in pairs]))
    difference = percentile_interval(mean, samples, evaluate.confidence)
    return Estimate(arm, condition, values, intervals[0], difference, float("nan")), bootstrap_p(samples)


def _finding(models: Iterable[Evaluated]) -> str:
    """The one whose positives are made rare."""
    names = {name for model in models for name in model.model.record.get("params", {}).get("positive_rate", {})}
    return " and ".join(sorted(names))


def _order(condition: str) -> tuple[float, str]:
    try:
        return float(condition), ""
    except ValueError:
        return math.inf, condition
