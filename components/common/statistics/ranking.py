"""AUROC and average precision, for all resamples of a bootstrap over patients at once.

Scores are sorted once, and each resample costs segment sums over that order. The result equals, resample by resample, the
metric on the duplicated rows.

Shapes: n images, F findings, P patients, B resamples. Targets are 1, 0 or NaN (unknown, left out).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from components.common.statistics.arrays import Floats, Integers, Weights, divide, has_both
from components.common.statistics.bootstrap import patient_count, patient_indices, resampled_weights
from components.common.statistics.intervals import UNDEFINED, Interval, percentile_interval


class RankingSamples(NamedTuple):
    """Metrics of every resample, (B, F) each; NaN where a finding has one class only."""

    auroc: Floats
    average_precision: Floats


class Tally(NamedTuple):
    """Positives and negatives by score in each of B resamples, for G distinct scores of positives and S places of negatives."""

    positives: Weights  # (G, B): drawn positives at each distinct score of a positive, ascending
    detected: Weights  # (G + 1, B): drawn positives at that score or above; a last row of zeros
    negatives: Weights  # (S, B): drawn negatives at each place, ascending
    places: Integers  # (S,): 2 g is right below the g-th score of a positive, 2 g + 1 is tied with it

    def auroc(self) -> Floats:
        """(B,): share of pairs of a positive and a negative in which the positive scores higher; ties count half."""
        above = _dot(self.negatives, self.detected[(self.places + 1) // 2])
        above_or_tied = _dot(self.negatives, self.detected[self.places // 2])
        return divide((above + above_or_tied) / 2, self._pairs())

    def average_precision(self) -> Floats:
        """(B,): sum of precision times step in recall."""
        groups = len(self.positives)
        false = _sum_from_end(self.negatives)
        called = false[np.searchsorted(self.places, 2 * np.arange(groups) + 1)] + self.detected[:-1]
        precision = np.divide(self.detected[:-1], np.maximum(called, 1), dtype=np.float64)
        values = divide(_dot(self.positives, precision), self.detected[0])
        return np.where(self._pairs() > 0, values, np.nan)

    def _pairs(self) -> Floats:
        pairs: Floats = self.detected[0].astype(np.float64) * self.negatives.sum(axis=0)
        return pairs


class Ranking:
    """Images of one finding, sorted once, for any weights of the patients."""

    def __init__(self, targets: Floats, scores: Floats, patients: Integers):
        """Sorts images with (n,) targets, finite scores and indices of patients."""
        positive, negative = targets == 1, targets == 0
        distinct, group = np.unique(scores[positive], return_inverse=True)
        place = np.searchsorted(distinct, scores[negative], "left") + np.searchsorted(distinct, scores[negative], "right")
        self._positives = _Segments(group, patients[positive])
        self._negatives = _Segments(place, patients[negative])

    def tally(self, weights: Weights) -> Tally:
        """Counts positives and negatives in resamples that draw the patients `weights` (P, B) times."""
        positives, negatives = self._positives.sums(weights), self._negatives.sums(weights)
        return Tally(positives, _sum_from_end(positives), negatives, self._negatives.names)


class _Segments:
    """Images by segment, for sums of their patients' weights."""

    def __init__(self, segment: Integers, patients: Integers):
        order = np.argsort(segment, kind="stable")
        patients = patients[order]
        self.names, starts = np.unique(segment[order], return_index=True)
        self._first = patients[starts]
        bounds = [*starts.tolist(), len(order)]
        # Most segments are a single image: one look-up serves them all, the loop in `sums` the others.
        self._longer = [(row, patients[bounds[row] : bounds[row + 1]]) for row in np.flatnonzero(np.diff(bounds) > 1)]

    def sums(self, weights: Weights) -> Weights:
        """Sums the weights of each segment: (S, B) for weights (P, B)."""
        out = weights[self._first]
        for row, patients in self._longer:
            np.add.reduce(weights[patients], axis=0, out=out[row])
        return out


def auroc(targets: Floats, scores: Floats) -> float:
    """Area under the ROC curve of (n,) targets and scores; ties count half; NaN with one class only."""
    return float(_unweighted(targets, scores).auroc()[0])


def average_precision(targets: Floats, scores: Floats) -> float:
    """Average precision of (n,) targets and scores: sum of precision times step in recall; NaN with one class only."""
    return float(_unweighted(targets, scores).average_precision()[0])


def bootstrap_ranking(targets: Floats, scores: Floats, patients: Integers, resamples: int, seed: int) -> RankingSamples:
    """AUROC and average precision for (n, F) targets and scores in every resample of the patients (n,), from patient_indices."""
    rankings = _rankings(targets, scores, patients)
    chunks = []
    for weights in _narrow_weights(patients, resamples, seed):
        tallies = (ranking.tally(weights) for ranking in rankings)  # one at a time: they are large
        chunks.append([(tally.auroc(), tally.average_precision()) for tally in tallies])
    return RankingSamples(*np.concatenate(chunks, axis=2).transpose(1, 2, 0))


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

    Targets (1, 0 or NaN) and scores are (n, F), patients (n,) ids. Both are evaluated on the same resamples, so that what makes images
    hard for both cancels out. Only findings with `min_positives` positives and as many negatives count; the result is NaN without any.
    Resamples in which a counted finding has one class only are left out.
    """
    counted = has_both(targets, min_positives)
    if not counted.any():
        return UNDEFINED
    indices = patient_indices(patients)
    targets = targets[:, counted]
    pair = [_rankings(targets, scores[:, counted], indices) for scores in (scores_a, scores_b)]
    samples = [_macro_difference(pair, weights) for weights in _narrow_weights(indices, resamples, seed)]
    estimate = _macro_difference(pair, np.ones((patient_count(indices), 1), np.int32))
    return percentile_interval(float(estimate[0]), np.concatenate(samples), confidence)


def _narrow_weights(patients: Integers, resamples: int, seed: int) -> Iterator[Weights]:
    """Resampled weights, in 16 bits where no count of drawn images overflows them: tallies are bound by memory bandwidth."""
    images = np.bincount(patients)
    for weights in resampled_weights(patient_count(patients), resamples, seed):
        yield weights.astype(np.int16) if (images @ weights).max() <= np.iinfo(np.int16).max else weights


def _macro_difference(pair: list[list[Ranking]], weights: Weights) -> Floats:
    """(B,): mean over the findings of the first rankings' AUROC minus the second's."""
    first, second = (np.mean([ranking.tally(weights).auroc() for ranking in rankings], axis=0) for rankings in pair)
    difference: Floats = first - second
    return difference


def _rankings(targets: Floats, scores: Floats, patients: Integers) -> list[Ranking]:
    return [Ranking(target, score, patients) for target, score in zip(targets.T, scores.T, strict=True)]


def _unweighted(targets: Floats, scores: Floats) -> Tally:
    return Ranking(targets, scores, np.zeros(len(targets), np.int64)).tally(np.ones((1, 1), np.int32))


def _sum_from_end(counts: Weights) -> Weights:
    """Cumulative sums along the first axis from the end, with a row of zeros after the last."""
    out = np.zeros((len(counts) + 1, counts.shape[1]), counts.dtype)
    for row in range(len(counts) - 1, -1, -1):  # numpy's cumsum over the first axis takes three times as long
        np.add(out[row + 1], counts[row], out=out[row])
    return out


def _dot(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Floats:
    """(B,): products summed along the first axis, exact for integers below 2**53."""
    product: Floats = np.einsum("sb,sb->b", first, second, dtype=np.float64)
    return product
