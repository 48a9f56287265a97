"""Numbers, intervals and curves of a classifier's findings: everything is chosen on val and measured on test."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Flags, Floats, Integers, has_both
from components.common.statistics.bootstrap import bootstrap_mean
from components.common.statistics.calibration import Reliability, reliability
from components.common.statistics.curves import Curve, precision_recall_curve, roc_curve, sensitivity_threshold, youden_threshold
from components.common.statistics.intervals import Interval, percentile_interval
from components.common.statistics.ranking import auroc, average_precision, bootstrap_ranking

METRICS = ("auroc", "ap", "accuracy", "sensitivity", "specificity", "brier")
PAIRED = ("auroc", "ap")
"""Metrics of which the samples are kept, for differences to another model."""


@dataclass(frozen=True)
class ClassificationSplit:
    """The images of one split."""

    targets: Floats
    """(n, F), 1, 0 or NaN (unknown)."""
    scores: Floats
    """(n, F), probabilities."""
    patients: Integers
    """(n,), index of each image's patient, 0 ... P - 1."""
    image_ids: npt.NDArray[np.str_]
    """(n,), ascending."""

    @property
    def patient_count(self) -> int:
        """P."""
        return len(np.unique(self.patients))


@dataclass(frozen=True)
class Finding:
    """The evaluation of one finding."""

    name: str
    counted: bool
    """Whether it is part of the macro averages."""
    intervals: dict[str, Interval]
    """By metric, on the test split."""
    val_auroc: float
    threshold: float
    """Chosen on the validation split; NaN when that has one class only."""
    counts: dict[str, tuple[int, int, int]]
    """Positives, negatives and unknown by split."""
    roc: Curve | None
    pr: Curve | None
    """On the test split; None when that has one class only."""
    reliability: Reliability
    """On the test split."""


@dataclass(frozen=True)
class Findings:
    """The evaluation of all findings."""

    val: ClassificationSplit
    test: ClassificationSplit
    each: list[Finding]
    macro: dict[str, Interval]
    """By metric, over the counted findings."""
    val_auroc_macro: float
    samples: dict[str, Floats]
    """By metric of PAIRED, (B, F)."""

    @property
    def counted(self) -> list[Finding]:
        """Those in the macro averages."""
        return [finding for finding in self.each if finding.counted]

    @property
    def ece_macro(self) -> float:
        """Mean expected calibration error of the counted findings; NaN if there are none."""
        errors = [finding.reliability.error for finding in self.counted]
        return float(np.mean(errors)) if errors else float("nan")


def evaluate(names: list[str], val: ClassificationSplit, test: ClassificationSplit, params: Evaluate) -> Findings:
    """Evaluates scores of findings.

    Args:
        names: of the F findings.
        val: thresholds are chosen here.
        test: everything else is measured here.
        params: of the bootstrap, the thresholds and the macro average.
    """
    thresholds = np.array([_threshold(target, score, params) for target, score in zip(val.targets.T, val.scores.T, strict=True)])
    estimates, samples = _measure(test, thresholds, params)
    counted = has_both(test.targets, params.min_positives)
    intervals = [
        {metric: percentile_interval(float(estimates[metric][index]), samples[metric][:, index], params.confidence) for metric in METRICS}
        for index in range(len(names))
    ]
    each = [
        _finding(val, test, index, name, bool(counted[index]), intervals[index], float(thresholds[index]))
        for index, name in enumerate(names)
    ]
    macro = {metric: macro_interval(estimates[metric], samples[metric], counted, params.confidence) for metric in METRICS}
    return Findings(val, test, each, macro, _macro_val(val, counted), {metric: samples[metric] for metric in PAIRED})


def macro_interval(estimates: Floats, samples: Floats, counted: Flags, confidence: float) -> Interval:
    """The mean over counted findings; a resample in which one of them is undefined is left out, lest it average something else.

    Args:
        estimates: (F,); one that is NaN is left out, such as the accuracy of a finding without a threshold.
        samples: (B, F).
        counted: (F,).
        confidence: level.
    """
    chosen = counted & ~np.isnan(estimates)
    if not chosen.any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    return percentile_interval(float(estimates[chosen].mean()), samples[:, chosen].mean(axis=1), confidence)


def each_of(metric: Callable[[Floats, Floats], float], split: ClassificationSplit) -> Floats:
    """(F,): a metric of targets and scores, of each finding."""
    return np.array([metric(target, score) for target, score in zip(split.targets.T, split.scores.T, strict=True)])


def correct(targets: Floats, scores: Floats, thresholds: Floats) -> Floats:
    """Whether each known target is on the right side of its finding's threshold.

    Args:
        targets: (n, F).
        scores: (n, F).
        thresholds: (F,).

    Returns:
        (n, F), 1, 0, or NaN where the target or the threshold is unknown.
    """
    right = (scores >= thresholds) == (targets == 1)
    return np.where(np.isnan(targets) | np.isnan(thresholds), np.nan, right)


def _threshold(target: Floats, score: Floats, params: Evaluate) -> float:
    if params.threshold == "youden":
        return youden_threshold(target, score)
    return sensitivity_threshold(target, score, params.target_sensitivity)


def _measure(test: ClassificationSplit, thresholds: Floats, params: Evaluate) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """By metric, the estimates (F,) and the samples (B, F)."""
    right = correct(test.targets, test.scores, thresholds)
    means = {
        "accuracy": right,
        "sensitivity": np.where(test.targets == 1, right, np.nan),
        "specificity": np.where(test.targets == 0, right, np.nan),
        "brier": (test.scores - test.targets) ** 2,
    }
    resampled = bootstrap_mean(np.concatenate(list(means.values()), axis=1), test.patients, params.resamples, params.seed)
    samples = dict(zip(means, np.split(resampled, len(means), axis=1), strict=True))
    estimates = {name: _mean(values) for name, values in means.items()}
    ranking = bootstrap_ranking(test.targets, test.scores, test.patients, params.resamples, params.seed)
    samples |= {"auroc": ranking.auroc, "ap": ranking.average_precision}
    return estimates | {"auroc": each_of(auroc, test), "ap": each_of(average_precision, test)}, samples


def _finding(
    val: ClassificationSplit,
    test: ClassificationSplit,
    index: int,
    name: str,
    counted: bool,
    intervals: dict[str, Interval],
    threshold: float,
) -> Finding:
    target, score = test.targets[:, index], test.scores[:, index]
    both = bool(has_both(target))
    return Finding(
        name=name,
        counted=counted,
        intervals=intervals,
        val_auroc=auroc(val.targets[:, index], val.scores[:, index]),
        threshold=threshold,
        counts={"val": _count(val.targets[:, index]), "test": _count(target)},
        roc=roc_curve(target, score) if both else None,
        pr=precision_recall_curve(target, score) if both else None,
        reliability=reliability(target, score),
    )


def _mean(values: Floats) -> Floats:
    """Column means, NaN left out; NaN for a column without numbers."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    means: Floats = np.divide(np.where(known, values, 0).sum(axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return means


def _macro_val(val: ClassificationSplit, counted: Flags) -> float:
    """Over those of the counted findings that have both classes in val."""
    values = each_of(auroc, val)[counted]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _count(targets: Floats) -> tuple[int, int, int]:
    return int((targets == 1).sum()), int((targets == 0).sum()), int(np.isnan(targets).sum())
