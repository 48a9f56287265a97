"""Tests the paper's claims on one cohort, from the cells of a study.

The claims are that pretraining with IFA helps a linear probe, with few labels, with rare positives, in detection, and as the
perceptual loss of GAN inversion (Cho et al. 2024). A cell is the output folder of one model: an arm (how its backbone was
pretrained), a condition (such as the fraction of labels) and a seed. Arms are compared within a condition and a seed, on the
same test patients.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from components.common.errors import UserError
from components.common.formats.documents import RUN_RECORD
from components.common.head import Evaluation
from components.common.runs import storage
from components.common.runs.params import Evaluate
from components.common.statistics.differences import bootstrap_p, holm
from components.common.statistics.intervals import Interval, percentile_interval
from components.evaluate.params import Study

ALWAYS = "all"  # condition of a claim that varies nothing


class Claim(NamedTuple):
    """A claim of the paper, and the metric that tests it."""

    title: str
    task: str
    metric: str  # name in the task's headline and differences; `{finding}` is the one whose positives are made rare
    condition: str  # axis label of what is varied; empty if nothing is
    statement: str  # ending of the sentence `IFA pretraining ...`


CLAIMS = {
    "probe": Claim("Linear probe", "classify", "Macro AUROC", "cohort", "gives features that a linear probe reads better"),
    "scarcity": Claim("Few labels", "classify", "Macro AUROC", "share of the training patients", "helps with few labels"),
    "imbalance": Claim("Rare positives", "classify", "AUROC, {finding}", "share of positives", "helps with rare positives"),
    "detection": Claim("Detection", "detect", "mAP@50", "", "helps detection"),
    "inversion": Claim("GAN inversion", "invert", "MS-SSIM", "", "gives the better perceptual loss for GAN inversion"),
}
"""By the name of the folder that holds the cells. Higher is better for every metric."""


class Cell(NamedTuple):
    """Place of a model in the study, which is the path of its folder."""

    claim: str
    condition: str
    arm: str
    seed: str


@dataclass(frozen=True)
class Estimate:
    """Metric of an arm under a condition."""

    arm: str
    condition: str
    seeds: tuple[float, ...]  # one value per seed
    interval: Interval  # interval of the first seed's model
    difference: Interval | None  # difference from the reference, averaged over seeds; None for the reference itself
    p_adjusted: float  # after Holm's correction over the comparisons of the claim; NaN for the reference

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.seeds))


@dataclass(frozen=True)
class Answer:
    """Result of a claim on this cohort."""

    name: str  # key in CLAIMS
    claim: Claim
    metric: str  # metric of the claim, with the name of the finding
    conditions: tuple[str, ...]
    arms: tuple[str, ...]
    estimates: dict[tuple[str, str], Estimate]  # keyed by condition and arm

    def metrics(self) -> dict[str, float]:
        """Entries of metrics.json: CLAIM_CONDITION_ARM, and the difference from the reference."""
        flat: dict[str, float] = {}
        for (condition, arm), one in self.estimates.items():
            name = f"{self.name}_{arm}" if condition == ALWAYS else f"{self.name}_{condition}_{arm}"
            flat |= one.interval._replace(estimate=one.mean).flat(name)
            if one.difference:
                flat |= one.difference.flat(f"{name}_difference") | {f"{name}_p_holm": one.p_adjusted}
        return flat


def find_cells(folder: str) -> list[Cell]:
    """Finds the finished cells CLAIM/CONDITION/ARM/SEED in a folder.

    Raises:
        UserError: there is none.
    """
    paths = [entry.path.split("/") for entry in storage.listing(folder) if entry.path.endswith(f"/{RUN_RECORD}")]
    cells = sorted(Cell(*path[:4]) for path in paths if len(path) == 5 and path[0] in CLAIMS)
    if not cells:
        raise UserError(f"{folder}: contains no cell of a study; name the folders CLAIM/CONDITION/ARM/SEED, such as scarcity/0.1/ifa/0")
    return cells


def answers_of(models: dict[Cell, Evaluation], study: Study, evaluate: Evaluate) -> list[Answer]:
    """Compares the arms of each claim that has cells with the reference.

    Args:
        models: by cell.
        study: order of the arms, and which one is the reference.
        evaluate: confidence level of the intervals.

    Raises:
        UserError: an arm lacks a seed that the reference has, or its models cannot be compared.
    """
    by_claim = {claim: {cell: model for cell, model in models.items() if cell.claim == claim} for claim in CLAIMS}
    return [_answer(claim, cells, study, evaluate) for claim, cells in by_claim.items() if cells]


def _answer(claim: str, models: dict[Cell, Evaluation], study: Study, evaluate: Evaluate) -> Answer:
    metric = CLAIMS[claim].metric.format(finding=_finding(models.values()))
    conditions = tuple(sorted({cell.condition for cell in models}, key=_order))
    arms = tuple(arm for arm in study.arms if any(cell.arm == arm for cell in models))
    keys = [(condition, arm) for condition in conditions for arm in arms]
    raw = [_estimate(metric, models, condition, arm, study.reference, evaluate) for condition, arm in keys]
    adjusted = holm(np.array([p for _, p in raw]))
    estimates = [replace(one, p_adjusted=float(p)) for (one, _), p in zip(raw, adjusted, strict=True)]
    return Answer(claim, CLAIMS[claim], metric, conditions, arms, dict(zip(keys, estimates, strict=True)))


def verdict(found: Answer, arm: str, level: float = 0.05) -> str:
    """Says whether the claim holds on this cohort for an arm other than the reference, at a level of significance."""
    judged = [found.estimates[condition, arm] for condition in found.conditions]
    known = [(one.difference.estimate, one.p_adjusted) for one in judged if one.difference and math.isfinite(one.p_adjusted)]
    better = sum(difference > 0 and p < level for difference, p in known)
    worse = sum(difference < 0 and p < level for difference, p in known)
    several = f" in {better or worse} of {len(known)} conditions" if len(found.conditions) > 1 else ""
    if not known:
        return "cannot be judged: too few positives in the test split"
    if better and worse:
        return f"is mixed on this cohort: better in {better}, worse in {worse} of {len(known)} conditions"
    if better:
        return f"holds on this cohort: better{several}"
    if worse:
        return f"does not hold on this cohort: worse{several}"
    return "is not shown on this cohort: no difference beyond chance"


def _estimate(
    metric: str, models: dict[Cell, Evaluation], condition: str, arm: str, reference: str, evaluate: Evaluate
) -> tuple[Estimate, float]:
    """Estimate of an arm, and its p-value before correction."""
    own = {cell.seed: model for cell, model in models.items() if (cell.condition, cell.arm) == (condition, arm)}
    theirs = {cell.seed: model for cell, model in models.items() if (cell.condition, cell.arm) == (condition, reference)}
    if missing := sorted(set(own) ^ set(theirs)):
        raise UserError(f"study: condition {condition}, arm {arm}: seed {missing[0]} is missing for {arm} or {reference}; run its cell")
    intervals = [model.headline()[metric] for _, model in sorted(own.items())]
    values = tuple(interval.estimate for interval in intervals)
    if arm == reference:
        return Estimate(arm, condition, values, intervals[0], None, float("nan")), float("nan")
    pairs = [next(d for d in own[seed].compare(theirs[seed]) if d.name == metric) for seed in sorted(own)]
    # All models share the seed of the bootstrap, so the b-th resample of each has drawn the same patients.
    samples = np.mean([pair.samples for pair in pairs], axis=0)
    mean = float(np.mean([pair.interval.estimate for pair in pairs]))
    difference = percentile_interval(mean, samples, evaluate.confidence)
    return Estimate(arm, condition, values, intervals[0], difference, float("nan")), bootstrap_p(samples)


def _finding(models: Iterable[Evaluation]) -> str:
    """Finding whose positives are made rare."""
    names = {name for model in models for name in model.model.record.get("params", {}).get("positive_rate", {})}
    return " and ".join(sorted(names))


def _order(condition: str) -> tuple[float, str]:
    try:
        return float(condition), ""
    except ValueError:
        return math.inf, condition
