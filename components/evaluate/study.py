"""Tests the paper's claims on one cohort, from the cells of a study.

The claims are that pretraining with IFA helps a linear probe, with few labels, with rare positives, in detection, and as the
perceptual loss of GAN inversion (Cho et al. 2024). A cell is the output folder of one model: an arm (how its backbone was
pretrained), a condition (such as the fraction of labels) and a seed. Arms are compared within a condition and a seed, on the
same test patients; the interval of a difference has the chance of both, of the patients and of the seeds.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from components.common.errors import UserError
from components.common.formats.documents import RUN_RECORD
from components.common.head import Evaluation
from components.common.html.numbers import number
from components.common.runs import storage
from components.common.runs.params import Evaluate
from components.common.statistics.differences import bootstrap_p, holm
from components.common.statistics.intervals import Interval, percentile_interval
from components.common.statistics.repeated import SeedChance, mixed_bootstrap, seed_chance, smallest_effect
from components.evaluate.params import Study

ALWAYS = "all"  # condition of a claim that varies nothing
LEVEL = 0.05  # of significance, of all comparisons of a claim together
ENOUGH_SEEDS = 3
UNKNOWN = float("nan")
NOT_SHOWN = "is not shown on this cohort: no difference beyond chance"

log = logging.getLogger(__name__)


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
    difference: Interval | None = None  # difference from the reference, averaged over seeds; None for the reference itself
    p: float = UNKNOWN  # NaN for the reference
    p_adjusted: float = UNKNOWN  # after Holm's correction over the comparisons of the claim
    smallest: float = UNKNOWN  # the smallest true difference that the study would have shown, with a chance of 80 %

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

    @property
    def seed_count(self) -> int:
        """The smallest number of seeds of a condition."""
        return min(len(one.seeds) for one in self.estimates.values())

    def metrics(self) -> dict[str, float]:
        """Entries of metrics.json: CLAIM_CONDITION_ARM, and the difference from the reference."""
        flat: dict[str, float] = {}
        for (condition, arm), one in self.estimates.items():
            name = f"{self.name}_{arm}" if condition == ALWAYS else f"{self.name}_{condition}_{arm}"
            flat |= one.interval._replace(estimate=one.mean).flat(name)
            if one.difference:
                flat |= one.difference.flat(f"{name}_difference")
                flat |= {f"{name}_p_holm": one.p_adjusted, f"{name}_smallest_effect": one.smallest}
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
        UserError: an arm lacks a seed that the reference has, its models cannot be compared, or none is of an arm of the study.
    """
    if others := sorted({cell.arm for cell in models} - set(study.arms)):
        log.warning("study: the cells of %s are left out, since study.arms does not name them", ", ".join(others))
        models = {cell: model for cell, model in models.items() if cell.arm in study.arms}
    if not models:
        raise UserError(f"study: none of the cells is of an arm of study.arms ({', '.join(study.arms)}); name their arms there")
    by_claim = {claim: {cell: model for cell, model in models.items() if cell.claim == claim} for claim in CLAIMS}
    return [_answer(claim, cells, study, evaluate) for claim, cells in by_claim.items() if cells]


def _answer(claim: str, models: dict[Cell, Evaluation], study: Study, evaluate: Evaluate) -> Answer:
    metric = CLAIMS[claim].metric.format(finding=_finding(models.values()))
    for cell, model in models.items():
        if metric not in model.headline():
            raise UserError(f"study: the cell {'/'.join(cell)} has no {metric}; run it as a cell of {claim} again, or delete it")
    conditions = tuple(sorted({cell.condition for cell in models}, key=_order))
    arms = tuple(arm for arm in study.arms if any(cell.arm == arm for cell in models))
    level = LEVEL / max((len(arms) - 1) * len(conditions), 1)
    found = [one for condition in conditions for one in _estimates(metric, models, condition, arms, study.reference, evaluate, level)]
    adjusted = holm(np.array([one.p for one in found]))
    estimates = {(one.condition, one.arm): replace(one, p_adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)}
    return Answer(claim, CLAIMS[claim], metric, conditions, arms, estimates)


def verdict(found: Answer, arm: str) -> str:
    """Says whether the claim holds on this cohort for an arm other than the reference."""
    judged = [found.estimates[condition, arm] for condition in found.conditions]
    known = [(one.difference.estimate, one.p_adjusted) for one in judged if one.difference and math.isfinite(one.p_adjusted)]
    better = sum(difference > 0 and p < LEVEL for difference, p in known)
    worse = sum(difference < 0 and p < LEVEL for difference, p in known)
    several = f" in {better or worse} of {len(known)} conditions" if len(found.conditions) > 1 else ""
    if not known:
        return "cannot be judged: too few positives in the test split"
    if better and worse:
        return f"is mixed on this cohort: better in {better}, worse in {worse} of {len(known)} conditions"
    if better:
        return f"holds on this cohort: better{several}"
    if worse:
        return f"does not hold on this cohort: worse{several}"
    return NOT_SHOWN


def smallest_effects(found: Answer, arms: Iterable[str]) -> str:
    """Returns the range of the smallest effects that the study could have shown for these arms."""
    smallest = [found.estimates[condition, arm].smallest for condition in found.conditions for arm in arms]
    known = [value for value in smallest if math.isfinite(value)]
    return " to ".join(dict.fromkeys(map(number, (min(known), max(known)))))


def _estimates(
    metric: str, models: dict[Cell, Evaluation], condition: str, arms: Sequence[str], reference: str, evaluate: Evaluate, level: float
) -> list[Estimate]:
    """Estimates of the arms under a condition, without Holm's correction; `level` is that of the first comparison that it allows."""
    by_arm = {arm: _by_seed(models, condition, arm, reference) for arm in arms}
    values = {arm: np.array([model.headline()[metric].estimate for model in own]) for arm, own in by_arm.items()}
    chance = seed_chance(np.stack(list(values.values())))
    estimates = []
    for arm, own in by_arm.items():
        found = Estimate(arm, condition, tuple(values[arm].tolist()), own[0].headline()[metric])
        pairs = zip(own, by_arm[reference], strict=True)
        estimates.append(found if arm == reference else _compared(found, metric, pairs, chance, evaluate, level))
    return estimates


def _by_seed(models: dict[Cell, Evaluation], condition: str, arm: str, reference: str) -> list[Evaluation]:
    """Returns the models of an arm in the order of their seeds, which must be those of the reference."""
    own, theirs = ({cell.seed: m for cell, m in models.items() if cell[1:3] == (condition, name)} for name in (arm, reference))
    if missing := sorted(set(own) ^ set(theirs)):
        raise UserError(f"study: condition {condition}, arm {arm}: seed {missing[0]} is missing for {arm} or {reference}; run its cell")
    return [model for _, model in sorted(own.items())]


def _compared(
    found: Estimate, metric: str, pairs: Iterable[tuple[Evaluation, Evaluation]], chance: SeedChance, evaluate: Evaluate, level: float
) -> Estimate:
    """Adds the difference from the reference, given pairs of an arm's model and the reference's by seed."""
    differences = [each for own, theirs in pairs for each in own.compare(theirs) if each.name == metric]
    if not differences:  # too few positives
        return found
    # All models share the seed of the bootstrap, so the b-th resample of each has drawn the same patients.
    samples = np.stack([each.samples for each in differences])
    mean = mixed_bootstrap(np.array([each.interval.estimate for each in differences]), samples, chance, evaluate.seed)
    interval = percentile_interval(mean.estimate, mean.samples, evaluate.confidence)
    return replace(found, difference=interval, p=bootstrap_p(mean.samples), smallest=smallest_effect(mean, level))


def _finding(models: Iterable[Evaluation]) -> str:
    """Finding whose positives are made rare."""
    names = {name for model in models for name in model.model.record.get("params", {}).get("positive_rate", {})}
    return " and ".join(sorted(names)) or "no finding"


def _order(condition: str) -> tuple[float, str]:
    try:
        return float(condition), ""
    except ValueError:
        return math.inf, condition
