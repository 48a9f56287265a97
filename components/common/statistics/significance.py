"""P-values of paired bootstrap differences, and Holm's correction for several of them.

Plain DeLong (Biometrics 1988) takes images for independent, which several images of a patient are not; a bootstrap over
patients serves every metric alike.
"""

import numpy as np

from components.common.statistics.metrics import Floats


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p-value of "no difference", from the percentile bootstrap.

    The smallest level at which the percentile interval leaves out 0: twice the smaller tail beyond 0, where a difference of
    exactly 0 belongs to both. One resample is added to the tail and to all, so that p is never 0 (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, section 4.2).

    Args:
        differences: (B,), of a metric in each resample, one model minus another; NaN is left out.

    Returns:
        In (0, 1]; NaN when no resample is defined.
    """
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return float("nan")
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(defined) + 1)))


def holm(p_values: Floats) -> Floats:
    """Adjusted p-values that control the chance of any false positive (Holm, Scand J Stat 1979).

    Args:
        p_values: (m,); NaN is no comparison and stays NaN.

    Returns:
        (m,): sorted ascending, the k-th p is multiplied by m + 1 - k, and none is below the one before it.
    """
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted
