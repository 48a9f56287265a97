"""Whether two samples differ: standard statistics, with p-values by permutation.

If nothing has changed, reference and batch are two parts of one sample, and every division of it is equally likely. The p-value of a
statistic is the share of random divisions, of the same sizes, with a value at least as large. That is exact for given bins, whatever the
distribution and the sizes, so that a small batch raises no more false alarms than a large one (Fisher 1935; Phipson and Smyth 2010 for
the one that is added to both counts). Images of one patient are not independent: give one per patient.

Shapes: K bins, B resamples, d features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from components.common.statistics.arrays import Floats, Integers

SMOOTHING = 0.5  # counts added to each bin, so that empty ones have a finite index
Rows = npt.NDArray[np.floating[Any]]


class Shift(NamedTuple):
    """How far two samples are apart."""

    value: float
    expected: float  # 95th percentile of the values without any change, at these sizes
    p: float


def population_stability_index(reference: Integers, batch: Integers) -> Floats:
    """Returns sum over bins of (b - r) ln(b / r), r and b being the shares of the bins; (..., K) counts to (...)."""
    r, b = ((counts + SMOOTHING) / (counts + SMOOTHING).sum(-1, keepdims=True) for counts in (reference, batch))
    index: Floats = ((b - r) * np.log(b / r)).sum(-1)
    return index


def kolmogorov_smirnov(reference: Integers, batch: Integers) -> Floats:
    """Returns the largest distance between the cumulative shares of ordered bins; (..., K) counts to (...)."""
    r, b = (np.cumsum(counts, axis=-1) / counts.sum(-1, keepdims=True) for counts in (reference, batch))
    distance: Floats = np.abs(r - b).max(-1)
    return distance


def frechet_distance(reference: Rows, batch: Rows) -> float:
    """Returns |m - n|^2 + tr(C + D - 2 (C D)^(1/2)) of the means m, n and covariances C, D of (N, d) and (M, d) features.

    Dowson and Landau, J Multivar Anal 1982.
    """
    c, d = (np.atleast_2d(np.cov(rows, rowvar=False, ddof=0)) for rows in (reference, batch))
    roots = np.sqrt(np.maximum(np.linalg.eigvals(c @ d).real, 0))
    return float(((reference.mean(0) - batch.mean(0)) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * roots.sum())


def compare_counts(
    statistic: Callable[[Integers, Integers], Floats], reference: Integers, batch: Integers, resamples: int, generator: np.random.Generator
) -> Shift:
    """Compares the counts (K,) of the same bins in reference and batch."""
    pooled, size = reference + batch, int(batch.sum())
    drawn = generator.multivariate_hypergeometric(pooled, size, resamples, method="marginals")
    return _shift(float(statistic(reference, batch)), statistic(pooled - drawn, drawn))


def compare_features(reference: Rows, batch: Rows, resamples: int, generator: np.random.Generator) -> Shift:
    """Compares features (N, d) and (M, d) by their Fréchet distance."""
    pooled = np.concatenate([reference, batch])
    values = np.empty(resamples)
    for number in range(resamples):
        order = generator.permutation(len(pooled))
        values[number] = frechet_distance(pooled[order[len(batch) :]], pooled[order[: len(batch)]])
    return _shift(frechet_distance(reference, batch), values)


def _shift(value: float, values: Floats) -> Shift:
    as_large = int((values >= value - 1e-12).sum())  # ties count, whatever their last bits
    return Shift(value, float(np.quantile(values, 0.95)), (1 + as_large) / (1 + len(values)))
