"""Paired differences between two models, their p-values, and Holm's correction for several of them.

Plain DeLong (Biometrics 1988) assumes independent images, which several images of one patient are not; a bootstrap over
patients works for every metric alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.common.statistics.arrays import Floats
from components.common.statistics.intervals import Interval, percentile_interval


@dataclass(frozen=True)
class Difference:
    """A metric of a model minus that of its baseline, on the same resamples of the patients."""

    key: str  # part of metric names: letters, digits and `_. -`
    name: str  # for readers
    interval: Interval
    p: float  # two-sided, see bootstrap_p
    p_adjusted: float  # after Holm's correction over the comparisons made together
    samples: Floats  # (B,), the difference in each resample; NaN where undefined


def paired_differences(
    names: Sequence[tuple[str, str]], estimates: Sequence[float], samples: Floats, confidence: float
) -> list[Difference]:
    """Tests m differences and corrects their p-values together.

    `names` has key and name for readers of each difference. `samples` is (m, B): both models have drawn the same patients in each
    resample.
    """
    p_values = np.array([bootstrap_p(values) for values in samples])
    rows = zip(names, estimates, samples, p_values, holm(p_values), strict=True)
    return [
        Difference(key, name, percentile_interval(float(estimate), values, confidence), float(p), float(adjusted), values)
        for (key, name), estimate, values, p, adjusted in rows
    ]


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p-value, in (0, 1], of "no difference" for (B,) resampled differences; NaN is left out, and returned if nothing is left.

    It is the smallest level at which the percentile interval excludes 0: twice the smaller tail beyond 0, where a difference
    of exactly 0 belongs to both tails. One resample is added to the tail and to the total, so that p is never 0 (Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, section 4.2).
    """
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return float("nan")
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(defined) + 1)))


def smallest_p(resamples: int) -> float:
    """The smallest value of `bootstrap_p`."""
    return 2 / (resamples + 1)


def holm(p_values: Floats) -> Floats:
    """Adjusts (m,) p-values to control the chance of any false positive (Holm, Scand J Stat 1979); NaN stays NaN."""
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted
