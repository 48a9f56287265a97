"""Estimates with percentile intervals, and the names under which they are written to metrics.json."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from components.common.formats.documents import mlflow_key
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


def read_interval(metrics: Mapping[str, float | None], name: str) -> Interval:
    """Reads an interval that `flat` wrote; what is missing or null is NaN."""
    values = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    estimate, low, high = (float("nan") if value is None else value for value in values)
    return Interval(estimate, low, high, 0)


UNDEFINED = Interval(float("nan"), float("nan"), float("nan"), 0)


def percentile_interval(estimate: float, samples: Floats, confidence: float) -> Interval:
    """Percentile interval (Efron) of (B,) bootstrap samples around the estimate on the whole sample; NaN is left out."""
    defined = samples[~np.isnan(samples)]
    if not len(defined) or np.isnan(estimate):
        return Interval(estimate, float("nan"), float("nan"), len(defined))
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high), len(defined))


def first_clash(names: Iterable[str], reserved: Iterable[str] = ()) -> str | None:
    """Returns the first finding or class whose entries of metrics.json would replace others, such as `A_low` after `A`."""
    taken = {entry for name in reserved for entry in UNDEFINED.flat(name)}
    for name in names:
        entries = UNDEFINED.flat(mlflow_key(name)).keys()
        if taken & entries:
            return name
        taken |= entries
    return None
