"""The task `classify`: numbers, intervals and curves of one model's predictions."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.common.errors import UserError
from components.common.metrics import (
    Curve,
    Floats,
    Interval,
    auroc,
    average_precision,
    bootstrap_mean,
    bootstrap_ranking,
    correct,
    has_both,
    paired_auroc_difference,
    percentile_interval,
    precision_recall_curve,
    roc_curve,
    youden_threshold,
)
from components.common.params import Evaluate
from components.evaluate.predictions import Predictions, Split

METRICS = ("auroc", "ap", "accuracy")
MOST_POINTS = 200  # of a curve


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
    sensitivity: float
    specificity: float
    counts: dict[str, tuple[int, int, int]]
    """Positives, negatives and unknown by split."""
    roc: Curve | None
    pr: Curve | None
    """On the test split; None when that has one class only."""


@dataclass(frozen=True)
class Classification:
    """The evaluation of one model."""

    predictions: Predictions
    findings: list[Finding]
    macro: dict[str, Interval]
    """By metric, over the counted findings."""
    val_auroc_macro: float

    @property
    def counted(self) -> list[Finding]:
        """The findings in the macro averages."""
        return [finding for finding in self.findings if finding.counted]

    def metrics(self, prefix: str = "classify") -> dict[str, float]:
        """Flat, for metrics.json.

        Raises:
            UserError: two findings whose names differ only in characters that a metric's name cannot have.
        """
        flat = {f"{prefix}_val_auroc_macro": self.val_auroc_macro, f"{prefix}_test_findings_counted": float(len(self.counted))}
        for split, images in (("val", self.predictions.val), ("test", self.predictions.test)):
            flat |= {f"{prefix}_{split}_images": len(images.targets), f"{prefix}_{split}_patients": images.patient_count}
        for metric in METRICS:
            flat |= _flat(f"{prefix}_test_{metric}_macro", self.macro[metric])
        keys = [_key(finding.name) for finding in self.findings]
        for key, finding in zip(keys, self.findings, strict=True):
            if keys.count(key) > 1 or key == "macro":
                raise UserError(f"finding {finding.name}: cannot be told from another in metric names; rename its column in labels.csv")
            for metric in METRICS:
                flat |= _flat(f"{prefix}_test_{metric}_{key}", finding.intervals[metric])
            positives, negatives, _ = finding.counts["test"]
            flat |= {f"{prefix}_test_positives_{key}": positives, f"{prefix}_test_negatives_{key}": negatives}
        return flat


def evaluate(predictions: Predictions, params: Evaluate) -> Classification:
    """Evaluates a classifier: everything is chosen on val and measured on test."""
    val, test = predictions.val, predictions.test
    thresholds = np.array([youden_threshold(target, score) for target, score in zip(val.targets.T, val.scores.T, strict=True)])
    right = correct(test.targets, test.scores, thresholds)
    ranking = bootstrap_ranking(test.targets, test.scores, test.patients, params.resamples, params.seed)
    samples = {
        "auroc": ranking.auroc,
        "ap": ranking.average_precision,
        "accuracy": bootstrap_mean(right, test.patients, params.resamples, params.seed),
    }
    estimates = {"auroc": _each(auroc, test), "ap": _each(average_precision, test), "accuracy": _mean(right)}
    counted = has_both(test.targets, params.min_positives)
    findings = []
    for index, name in enumerate(predictions.findings):
        intervals = {
            metric: percentile_interval(float(estimates[metric][index]), samples[metric][:, index], params.confidence) for metric in METRICS
        }
        findings.append(_finding(predictions, index, name, bool(counted[index]), intervals, thresholds[index]))
    macro = {}
    for metric in METRICS:
        # A finding without a threshold has no accuracy, and the others still have.
        chosen = counted & ~np.isnan(estimates[metric])
        macro[metric] = _macro(estimates[metric][chosen], samples[metric][:, chosen], params.confidence)
    return Classification(predictions, findings, macro, _macro_val(val, counted))


def difference(one: Classification, other: Classification, params: Evaluate) -> Interval | None:
    """Macro AUROC of `one` minus that of `other` in a paired bootstrap; None when images, targets or findings differ."""
    a, b = one.predictions.test, other.predictions.test
    if one.predictions.findings != other.predictions.findings or set(a.image_ids) != set(b.image_ids):
        return None
    order_a, order_b = np.argsort(a.image_ids), np.argsort(b.image_ids)
    if not np.array_equal(a.targets[order_a], b.targets[order_b], equal_nan=True):
        return None
    return paired_auroc_difference(
        a.targets[order_a],
        a.scores[order_a],
        b.scores[order_b],
        a.patients[order_a],
        params.resamples,
        params.seed,
        params.min_positives,
        params.confidence,
    )


def curve_rows(classification: Classification, which: str, label: str = "") -> list[tuple[str, float, float]]:
    """The points of all findings' curves as rows (finding, x, y), thinned.

    Args:
        classification: the evaluation.
        which: `roc` or `pr`.
        label: put before the finding's name, to tell models apart.
    """
    rows = []
    for finding in classification.findings:
        curve: Curve | None = getattr(finding, which)
        if curve is not None:
            rows += [(label + finding.name, round(x, 6), round(y, 6)) for x, y in thin(curve)]
    return rows


def thin(curve: Curve, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points of a curve, its ends among them.

    Points in the middle of a straight run are left out first, which changes nothing; of the rest, every k-th stays.
    """
    xy = np.stack([curve.x, curve.y], axis=1)
    before, after = np.diff(xy[:-1], axis=0), np.diff(xy[1:], axis=0)
    bends = np.concatenate([[True], np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-12, [True]])
    kept = np.flatnonzero(bends)
    if len(kept) > most:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]
    return [(float(x), float(y)) for x, y in xy[kept]]


def _finding(predictions: Predictions, index: int, name: str, counted: bool, intervals: dict[str, Interval], threshold: float) -> Finding:
    val, test = predictions.val, predictions.test
    target, score = test.targets[:, index], test.scores[:, index]
    both = bool(has_both(target))
    return Finding(
        name=name,
        counted=counted,
        intervals=intervals,
        val_auroc=auroc(val.targets[:, index], val.scores[:, index]),
        threshold=float(threshold),
        sensitivity=_share(score[target == 1] >= threshold, threshold),
        specificity=_share(score[target == 0] < threshold, threshold),
        counts={"val": _count(val.targets[:, index]), "test": _count(target)},
        roc=roc_curve(target, score) if both else None,
        pr=precision_recall_curve(target, score) if both else None,
    )


def _each(metric: Callable[[Floats, Floats], float], split: Split) -> Floats:
    """The metric of each finding."""
    return np.array([metric(target, score) for target, score in zip(split.targets.T, split.scores.T, strict=True)])


def _mean(values: Floats) -> Floats:
    """Column means, NaN left out; NaN for a column without numbers."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    means: Floats = np.divide(np.where(known, values, 0).sum(axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return means


def _macro(estimates: Floats, samples: Floats, confidence: float) -> Interval:
    """Over the findings; a resample in which one of them is undefined is left out, lest it average something else."""
    if not len(estimates):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    return percentile_interval(float(estimates.mean()), samples.mean(axis=1), confidence)


def _macro_val(val: Split, counted: npt.NDArray[np.bool_]) -> float:
    """Over those of the counted findings that have both classes in val."""
    values = _each(auroc, val)[counted]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _share(right: npt.NDArray[np.bool_], threshold: float) -> float:
    return float(right.mean()) if len(right) and not np.isnan(threshold) else float("nan")


def _count(targets: Floats) -> tuple[int, int, int]:
    return int((targets == 1).sum()), int((targets == 0).sum()), int(np.isnan(targets).sum())


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _key(finding: str) -> str:
    """A finding's name in the characters that MLflow's metric names may have."""
    return re.sub(r"[^\w. -]", "_", finding)
