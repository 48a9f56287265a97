"""ROC and precision-recall curves, thresholds on them, and their reduction to few points. Targets are 1, 0 or NaN (left out)."""

from typing import NamedTuple

import numpy as np

from components.common.statistics.arrays import Floats, has_both

MOST_POINTS = 200


class Curve(NamedTuple):
    """Points of a ROC or precision-recall curve, from the highest threshold to the lowest."""

    x: Floats  # false positive rate, or recall
    y: Floats  # true positive rate, or precision
    thresholds: Floats  # an image counts as positive if its score is at least the threshold; the first is infinite


def roc_curve(targets: Floats, scores: Floats) -> Curve:
    """False against true positive rate at every distinct score of (n,) targets, with both classes present, and finite scores."""
    false, true, thresholds = _cumulative_counts(targets, scores)
    return Curve(false / false[-1], true / true[-1], thresholds)


def precision_recall_curve(targets: Floats, scores: Floats) -> Curve:
    """Recall against precision, 1 where nothing is called positive, at every distinct finite score of (n,) targets with a positive."""
    false, true, thresholds = _cumulative_counts(targets, scores)
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
    return Curve(true / true[-1], precision, thresholds)


def youden_threshold(targets: Floats, scores: Floats) -> float:
    """Score that maximises sensitivity + specificity - 1 (Youden, Cancer 1950), the highest of ties; NaN with one class only."""
    if not has_both(targets):
        return float("nan")
    curve = roc_curve(targets, scores)
    return float(curve.thresholds[1:][np.argmax((curve.y - curve.x)[1:])])


def sensitivity_threshold(targets: Floats, scores: Floats, sensitivity: float) -> float:
    """Highest score at which at least this share of the positives is called positive; NaN with one class only."""
    if not has_both(targets):
        return float("nan")
    curve = roc_curve(targets, scores)
    return float(curve.thresholds[np.argmax(curve.y >= sensitivity)])


def thin(curve: Curve, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Reduces a curve to at most `most` points, its ends among them.

    Points within straight segments are dropped first, which changes nothing; the rest is subsampled evenly.
    """
    xy = np.stack([curve.x, curve.y], axis=1)
    before, after = np.diff(xy[:-1], axis=0), np.diff(xy[1:], axis=0)
    bends = np.concatenate([[True], np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-12, [True]])
    kept = np.flatnonzero(bends)
    if len(kept) > most:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]
    return [(float(x), float(y)) for x, y in xy[kept]]


def _cumulative_counts(targets: Floats, scores: Floats) -> tuple[Floats, Floats, Floats]:
    """False and true positives at each distinct score in falling order, after a first point where nothing is positive."""
    known = ~np.isnan(targets)
    values, inverse = np.unique(-scores[known], return_inverse=True)
    true = np.bincount(inverse, weights=targets[known], minlength=len(values))
    false = np.bincount(inverse, weights=1 - targets[known], minlength=len(values))
    zero = np.zeros(1)
    return np.concatenate([zero, np.cumsum(false)]), np.concatenate([zero, np.cumsum(true)]), np.concatenate([zero + np.inf, -values])
