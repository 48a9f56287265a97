"""AUROC, average precision and accuracy, their curves, and confidence intervals by a bootstrap over patients.

Images of one patient are alike, so that resampling images would give intervals that are too narrow: patients are drawn
with replacement and bring all of their images along (Field and Welsh, J R Stat Soc B 2007: the cluster bootstrap). A
resample is a vector of weights, how often each patient was drawn; scores are sorted once, and each resample costs
segment sums over that order. What comes out equals, resample by resample, the metric on the duplicated rows.

Shapes: n images, F findings, P patients, B resamples. Targets are 1, 0 or NaN (unknown, left out).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Weights = npt.NDArray[np.signedinteger[Any]]

CHUNK = 512  # resamples at a time: rows long enough to amortise the calls, short enough for memory


class Curve(NamedTuple):
    """Points of a ROC or precision-recall curve, from the highest threshold to the lowest."""

    x: Floats
    """False positive rate, or recall."""
    y: Floats
    """True positive rate, or precision."""
    thresholds: Floats
    """An image counts as positive when its score is at least this; the first is infinite: none is."""


class Interval(NamedTuple):
    """An estimate on the whole sample with a percentile interval."""

    estimate: float
    low: float
    high: float
    used: int
    """Resamples in which the metric is defined."""


class Samples(NamedTuple):
    """A metric of every resample, NaN where a finding has one class only."""

    auroc: Floats
    """(B, F)."""
    average_precision: Floats
    """(B, F)."""


class Tally(NamedTuple):
    """Positives and negatives by score, in each of B resamples; S places of negatives, G of positives."""

    positives: Weights
    """(G, B): drawn positives at each distinct score of a positive, ascending."""
    detected: Weights
    """(G + 1, B): drawn positives at that score or above; a last row of zeros."""
    negatives: Weights
    """(S, B): drawn negatives at each place, ascending."""
    places: Integers
    """(S,), 2 g: right below the g-th score of a positive; 2 g + 1: tied with it."""

    def auroc(self) -> Floats:
        """(B,): the share of pairs of a positive and a negative in which the positive scores higher; ties count half."""
        above = _dot(self.negatives, self.detected[(self.places + 1) // 2])
        above_or_tied = _dot(self.negatives, self.detected[self.places // 2])
        return _divide((above + above_or_tied) / 2, self._pairs(), self._pairs() > 0)

    def average_precision(self) -> Floats:
        """(B,): the sum of precision times step in recall."""
        groups = len(self.positives)
        alarms = _from_above(self.negatives)
        called = alarms[np.searchsorted(self.places, 2 * np.arange(groups) + 1)] + self.detected[:-1]
        precision = np.divide(self.detected[:-1], np.maximum(called, 1), dtype=np.float64)
        return _divide(_dot(self.positives, precision), self.detected[0].astype(np.float64), self._pairs() > 0)

    def _pairs(self) -> Floats:
        pairs: Floats = self.detected[0].astype(np.float64) * self.negatives.sum(axis=0)
        return pairs


class Ranking:
    """The images of one finding, sorted once, for any weights of the patients."""

    def __init__(self, targets: Floats, scores: Floats, patients: Integers):
        """Sorts.

        Args:
            targets: (n,), 1, 0 or NaN.
            scores: (n,), higher means more likely positive; finite.
            patients: (n,), index of each image's patient.
        """
        positive, negative = targets == 1, targets == 0
        distinct, group = np.unique(scores[positive], return_inverse=True)
        place = np.searchsorted(distinct, scores[negative], "left") + np.searchsorted(distinct, scores[negative], "right")
        self._positives = _Segments(group, patients[positive])
        self._negatives = _Segments(place, patients[negative])

    def tally(self, weights: Weights) -> Tally:
        """Counts for resamples that draw the patients `weights` (P, B) times."""
        positives, negatives = self._positives.sums(weights), self._negatives.sums(weights)
        return Tally(positives, _from_above(positives), negatives, self._negatives.names)


class _Segments:
    """Images by segment, for sums of their patients' weights."""

    def __init__(self, segment: Integers, patients: Integers):
        order = np.argsort(segment, kind="stable")
        patients = patients[order]
        self.names, starts = np.unique(segment[order], return_index=True)
        self._first = patients[starts]
        bounds = [*starts.tolist(), len(order)]
        # Most segments are a single image: one look-up serves them all, the loop below the others.
        self._longer = [(row, patients[bounds[row] : bounds[row + 1]]) for row in np.flatnonzero(np.diff(bounds) > 1)]

    def sums(self, weights: Weights) -> Weights:
        """The summed weights of each segment, (S, B) for weights (P, B)."""
        out = weights[self._first]
        for row, patients in self._longer:
            np.add.reduce(weights[patients], axis=0, out=out[row])
        return out


def auroc(targets: Floats, scores: Floats) -> float:
    """Area under the ROC curve of (n,) targets and scores; ties count half; NaN with one class only."""
    return float(_plain(targets, scores).auroc()[0])


def average_precision(targets: Floats, scores: Floats) -> float:
    """Average precision of (n,) targets and scores: sum of precision times step in recall; NaN with one class only."""
    return float(_plain(targets, scores).average_precision()[0])


def roc_curve(targets: Floats, scores: Floats) -> Curve:
    """False positive rate against true positive rate at every distinct score.

    Args:
        targets: (n,), both classes present; NaN is left out.
        scores: (n,), finite.
    """
    false, true, thresholds = _counts(targets, scores)
    return Curve(false / false[-1], true / true[-1], thresholds)


def precision_recall_curve(targets: Floats, scores: Floats) -> Curve:
    """Recall against precision at every distinct score; precision 1 where nothing is called positive.

    Args:
        targets: (n,), a positive present; NaN is left out.
        scores: (n,), finite.
    """
    false, true, thresholds = _counts(targets, scores)
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
    return Curve(true / true[-1], precision, thresholds)


def youden_threshold(targets: Floats, scores: Floats) -> float:
    """The score that maximises sensitivity + specificity - 1 (Youden, Cancer 1950); of equals the highest.

    An image counts as positive when its score is at least the threshold. NaN with one class only.
    """
    if not has_both(targets):
        return float("nan")
    curve = roc_curve(targets, scores)
    return float(curve.thresholds[1:][np.argmax((curve.y - curve.x)[1:])])


def sensitivity_threshold(targets: Floats, scores: Floats, sensitivity: float) -> float:
    """The highest score at which at least this share of the positives counts as positive; NaN with one class only."""
    if not has_both(targets):
        return float("nan")
    curve = roc_curve(targets, scores)
    return float(curve.thresholds[np.argmax(curve.y >= sensitivity)])


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


def has_both(targets: Floats, minimum: int = 1) -> npt.NDArray[np.bool_]:
    """Whether there are at least `minimum` positives and as many negatives, along the first axis."""
    enough: npt.NDArray[np.bool_] = ((targets == 1).sum(axis=0) >= minimum) & ((targets == 0).sum(axis=0) >= minimum)
    return enough


def patient_indices(patients: npt.ArrayLike) -> Integers:
    """(n,) numbers 0 ... P - 1 for (n,) patient ids, in the order of the sorted ids."""
    return np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)


def resampled_weights(count: int, resamples: int, seed: int) -> Iterator[Weights]:
    """How often each of `count` patients is drawn, in chunks (count, up to CHUNK) of resamples.

    The same arguments give the same resamples on any machine.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        weights = np.empty((min(CHUNK, resamples - start), count), np.int32)
        for row in weights:
            row[:] = np.bincount(generator.integers(0, count, count), minlength=count)
        yield np.ascontiguousarray(weights.T)


def bootstrap_ranking(targets: Floats, scores: Floats, patients: Integers, resamples: int, seed: int) -> Samples:
    """AUROC and average precision of every finding in every resample of the patients.

    Args:
        targets: (n, F).
        scores: (n, F).
        patients: (n,), from patient_indices.
        resamples: B.
        seed: of the draws.
    """
    rankings = _rankings(targets, scores, patients)
    chunks = []
    for weights in _narrow_weights(patients, resamples, seed):
        tallies = (ranking.tally(weights) for ranking in rankings)  # one at a time: they are large
        chunks.append([(tally.auroc(), tally.average_precision()) for tally in tallies])
    auroc, average_precision = np.concatenate(chunks, axis=2).transpose(1, 2, 0)
    return Samples(auroc, average_precision)


def bootstrap_mean(values: Floats, patients: Integers, resamples: int, seed: int) -> Floats:
    """The mean over images of (n, F) values, NaN left out, in every resample of the patients: (B, F)."""
    known = ~np.isnan(values)
    sums = _by_patient(np.where(known, values, 0.0), patients)
    counts = _by_patient(known.astype(np.float64), patients)
    means = []
    for weights in resampled_weights(_count(patients), resamples, seed):
        total = weights.T @ counts
        means.append(_divide(weights.T @ sums, total, total > 0))
    return np.concatenate(means)


def percentile_interval(estimate: float, samples: Floats, confidence: float) -> Interval:
    """The percentile interval (Efron) of (B,) samples; those that are NaN are left out.

    Args:
        estimate: the metric on the whole sample.
        samples: (B,).
        confidence: level, such as 0.95.
    """
    defined = samples[~np.isnan(samples)]
    if not len(defined) or np.isnan(estimate):
        return Interval(estimate, float("nan"), float("nan"), len(defined))
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high), len(defined))


def paired_auroc_difference(
    targets: Floats,
    scores_a: Floats,
    scores_b: Floats,
    patients: npt.ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
    min_positives: int = 5,
    confidence: float = 0.95,
) -> Interval:
    """Macro AUROC of scores a minus that of scores b, with the interval of the paired bootstrap over patients.

    Both are evaluated in the same resamples, so that what makes images hard for both cancels out.

    Args:
        targets: (n, F), 1, 0 or NaN; the same images in the same order as the scores.
        scores_a: (n, F).
        scores_b: (n, F).
        patients: (n,) ids.
        resamples: B.
        seed: of the draws.
        min_positives: positives, and negatives, that a finding needs to count in the macro average.
        confidence: level of the interval.

    Returns:
        The difference and its interval; NaN when no finding counts. Resamples in which a counted finding has one
        class only are left out.
    """
    counted = has_both(targets, min_positives)
    if not counted.any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    who = patient_indices(patients)
    targets = targets[:, counted]
    pairs = [_rankings(targets, scores[:, counted], who) for scores in (scores_a, scores_b)]
    samples = [_macro_difference(pairs, weights) for weights in _narrow_weights(who, resamples, seed)]
    estimate = _macro_difference(pairs, np.ones((_count(who), 1), np.int32))
    return percentile_interval(float(estimate[0]), np.concatenate(samples), confidence)


def _narrow_weights(patients: Integers, resamples: int, seed: int) -> Iterator[Weights]:
    """The resampled weights in 16 bits where no count of drawn images overflows them: tallies are bound by memory, and take half."""
    images = np.bincount(patients)
    for weights in resampled_weights(_count(patients), resamples, seed):
        yield weights.astype(np.int16) if (images @ weights).max() <= np.iinfo(np.int16).max else weights


def _macro_difference(pairs: list[list[Ranking]], weights: Weights) -> Floats:
    """(B,): mean over the findings of the first ranking's AUROC minus the second's."""
    first, second = (np.mean([ranking.tally(weights).auroc() for ranking in rankings], axis=0) for rankings in pairs)
    difference: Floats = first - second
    return difference


def _rankings(targets: Floats, scores: Floats, patients: Integers) -> list[Ranking]:
    return [Ranking(target, score, patients) for target, score in zip(targets.T, scores.T, strict=True)]


def _plain(targets: Floats, scores: Floats) -> Tally:
    return Ranking(targets, scores, np.zeros(len(targets), np.int64)).tally(np.ones((1, 1), np.int32))


def _from_above(counts: Weights) -> Weights:
    """Sums along the first axis from the end, with a row of zeros after the last."""
    out = np.zeros((len(counts) + 1, counts.shape[1]), counts.dtype)
    for row in range(len(counts) - 1, -1, -1):  # numpy's cumsum over the first axis takes three times as long
        np.add(out[row + 1], counts[row], out=out[row])
    return out


def _dot(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Floats:
    """(B,): products summed along the first axis, exact for integers (below 2**53)."""
    product: Floats = np.einsum("sb,sb->b", first, second, dtype=np.float64)
    return product


def _counts(targets: Floats, scores: Floats) -> tuple[Floats, Floats, Floats]:
    """False and true positives at each distinct score, from the highest down, after a first point where nothing is positive."""
    known = ~np.isnan(targets)
    values, inverse = np.unique(-scores[known], return_inverse=True)
    true = np.bincount(inverse, weights=targets[known], minlength=len(values))
    false = np.bincount(inverse, weights=1 - targets[known], minlength=len(values))
    zero = np.zeros(1)
    return np.concatenate([zero, np.cumsum(false)]), np.concatenate([zero, np.cumsum(true)]), np.concatenate([zero + np.inf, -values])


def _by_patient(values: Floats, patients: Integers) -> Floats:
    """(P, F): sums of (n, F) values over the images of each patient."""
    return np.stack([np.bincount(patients, weights=column) for column in values.T], axis=1)


def _count(patients: Integers) -> int:
    return int(patients.max()) + 1


def _divide(numerator: Floats, denominator: Floats, defined: npt.NDArray[np.bool_]) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=defined)
