"""Metrics, intervals and curves of a classifier: everything is chosen on val and measured on test."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Flags, Floats, Integers, divide, has_both
from components.common.statistics.bootstrap import bootstrap_mean
from components.common.statistics.calibration import Reliability, recalibration, reliability
from components.common.statistics.curves import Curve, precision_recall_curve, roc_curve, sensitivity_threshold, youden_threshold
from components.common.statistics.intervals import UNDEFINED, Interval, percentile_interval
from components.common.statistics.ranking import auroc, average_precision, bootstrap_ranking

METRICS = ("auroc", "ap", "accuracy", "sensitivity", "specificity", "brier")
CALIBRATION = ("calibration_intercept", "calibration_slope")  # of each finding; their averages would hide errors in both directions
PAIRED = ("auroc", "ap")  # metrics that models are compared by; their samples are kept


@dataclass(frozen=True)
class ClassificationSplit:
    """The images of one split."""

    targets: Floats  # (n, F), 1, 0 or NaN (unknown)
    scores: Floats  # (n, F)
    patients: Integers  # (n,), number of each image's patient, from 0 to P - 1
    image_ids: npt.NDArray[np.str_]  # (n,), ascending

    @property
    def patient_count(self) -> int:
        """The number of patients, P."""
        return len(np.unique(self.patients))

    def each(self, metric: Callable[[Floats, Floats], float]) -> Floats:
        """Returns a metric of targets and scores for every finding, (F,)."""
        return np.array([metric(target, score) for target, score in zip(self.targets.T, self.scores.T, strict=True)])

    def counts(self, index: int) -> tuple[int, int, int]:
        """Counts positives, negatives and unknown targets of a finding."""
        target = self.targets[:, index]
        return int((target == 1).sum()), int((target == 0).sum()), int(np.isnan(target).sum())


@dataclass(frozen=True)
class Finding:
    """The evaluation of one finding."""

    name: str
    counted: bool  # whether it is part of the macro averages
    intervals: dict[str, Interval]  # by metric, of METRICS and CALIBRATION, on the test split
    val_auroc: float
    threshold: float  # chosen on the validation split, of the model's own cohort; NaN if that has one class only
    counts: dict[str, tuple[int, int, int]]  # positives, negatives and unknown by split
    roc: Curve | None
    pr: Curve | None  # on the test split, like roc; None if that has one class only
    reliability: Reliability  # on the test split


@dataclass(frozen=True)
class Findings:
    """The evaluation of all findings."""

    val: ClassificationSplit
    test: ClassificationSplit
    each: list[Finding]
    macro: dict[str, Interval]  # by metric, over the counted findings
    val_auroc_macro: float
    samples: dict[str, Floats]  # by metric of PAIRED, (B, F)

    @property
    def counted(self) -> list[Finding]:
        """The findings in the macro averages."""
        return [finding for finding in self.each if finding.counted]

    @property
    def ece_macro(self) -> float:
        """Mean expected calibration error of the counted findings; NaN if there are none."""
        errors = [finding.reliability.error for finding in self.counted]
        return float(np.mean(errors)) if errors else float("nan")


def evaluate(
    names: list[str], val: ClassificationSplit, test: ClassificationSplit, params: Evaluate, thresholds: Floats | None = None
) -> Findings:
    """Evaluates the scores of F findings: thresholds (F,) are chosen on val unless given, everything else is measured on test."""
    if thresholds is None:
        thresholds = val.each(lambda target, score: _threshold(target, score, params))
    estimates, samples = _measure(test, thresholds, params)
    counted = has_both(test.targets, params.min_positives)
    val_auroc = val.each(auroc)
    each = []
    for index, name in enumerate(names):
        target, score = test.targets[:, index], test.scores[:, index]
        both = bool(has_both(target))
        finding = Finding(
            name=name,
            counted=bool(counted[index]),
            intervals={
                metric: percentile_interval(float(estimates[metric][index]), samples[metric][:, index], params.confidence)
                for metric in (*METRICS, *CALIBRATION)
            },
            val_auroc=float(val_auroc[index]),
            threshold=float(thresholds[index]),
            counts={"val": val.counts(index), "test": test.counts(index)},
            roc=roc_curve(target, score) if both else None,
            pr=precision_recall_curve(target, score) if both else None,
            reliability=reliability(target, score),
        )
        each.append(finding)
    macro = {metric: macro_interval(estimates[metric], samples[metric], counted, params.confidence) for metric in METRICS}
    known = val_auroc[counted & ~np.isnan(val_auroc)]
    val_auroc_macro = float(known.mean()) if len(known) else float("nan")
    return Findings(val, test, each, macro, val_auroc_macro, {metric: samples[metric] for metric in PAIRED})


def macro_interval(estimates: Floats, samples: Floats, counted: Flags, confidence: float) -> Interval:
    """Averages (F,) estimates and (B, F) samples over the counted findings, without those whose estimate is NaN.

    A resample in which one of them is undefined is left out, since it would average other findings than the rest.
    """
    chosen = counted & ~np.isnan(estimates)
    if not chosen.any():
        return UNDEFINED
    return percentile_interval(float(estimates[chosen].mean()), samples[:, chosen].mean(axis=1), confidence)


def correct(targets: Floats, scores: Floats, thresholds: Floats) -> Floats:
    """Tells whether each target (n, F) is on the right side of its finding's threshold (F,): 1, 0, or NaN where either is unknown."""
    right = (scores >= thresholds) == (targets == 1)
    return np.where(np.isnan(targets) | np.isnan(thresholds), np.nan, right)


def _threshold(target: Floats, score: Floats, params: Evaluate) -> float:
    if params.threshold == "youden":
        return youden_threshold(target, score)
    return sensitivity_threshold(target, score, params.target_sensitivity)


def _measure(test: ClassificationSplit, thresholds: Floats, params: Evaluate) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Returns by metric the estimates (F,), and the samples (B, F)."""
    right = correct(test.targets, test.scores, thresholds)
    means = {
        "accuracy": right,
        "sensitivity": np.where(test.targets == 1, right, np.nan),
        "specificity": np.where(test.targets == 0, right, np.nan),
        "brier": (test.scores - test.targets) ** 2,
    }
    line = recalibration(test.targets, test.scores)
    columns = means | line.terms
    resampled = bootstrap_mean(np.concatenate(list(columns.values()), axis=1), test.patients, params.resamples, params.seed)
    ranking = bootstrap_ranking(test.targets, test.scores, test.patients, params.resamples, params.seed)
    samples = dict(zip(columns, np.split(resampled, len(columns), axis=1), strict=True))
    samples |= {"auroc": ranking.auroc, "ap": ranking.average_precision}
    samples |= dict(zip(CALIBRATION, line.resampled(samples), strict=True))
    estimates = {name: divide(np.nansum(values, axis=0), (~np.isnan(values)).sum(axis=0)) for name, values in means.items()}
    estimates |= dict(zip(CALIBRATION, line[:2], strict=True))
    return estimates | {"auroc": test.each(auroc), "ap": test.each(average_precision)}, samples
