"""Estimates with percentile intervals, and the names under which they are written to metrics.json."""

import re
from typing import NamedTuple

import numpy as np

from components.common.statistics.arrays import Floats


class Interval(NamedTuple):
    """An estimate on the whole sample with a percentile interval."""

    estimate: float
    low: float
    high: float
    used: int  # number of resamples in which the metric is defined

    def flat(self, name: str) -> dict[str, float]:
        """Entries of metrics.json: `name`, `name_low` and `name_high`."""
        return {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}


UNDEFINED = Interval(float("nan"), float("nan"), float("nan"), 0)


def percentile_interval(estimate: float, samples: Floats, confidence: float) -> Interval:
    """Percentile interval (Efron) of (B,) bootstrap samples around the estimate on the whole sample; NaN is left out."""
    defined = samples[~np.isnan(samples)]
    if not len(defined) or np.isnan(estimate):
        return Interval(estimate, float("nan"), float("nan"), len(defined))
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high), len(defined))


def metric_key(name: str) -> str:
    """The name of a finding or class in the characters that MLflow allows in metric names."""
    return re.sub(r"[^\w. -]", "_", name)
