"""External validation: a classifier on another cohort than its training's, beside its figures there.

A registered model carries the metrics of its evaluation, from which the thresholds and the figures are taken.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from components.classify.metrics import Findings
from components.common.formats.documents import mlflow_key
from components.common.formats.model import External
from components.common.statistics.arrays import Floats
from components.common.statistics.intervals import Interval, read_interval

METRICS = ("auroc", "sensitivity", "specificity", "brier", "calibration_intercept", "calibration_slope")


class Row(NamedTuple):
    """A finding in one of the cohorts."""

    finding: str
    cohort: str
    positives: float
    negatives: float  # NaN if not known
    intervals: list[Interval]  # of METRICS
    ece: float

    @property
    def prevalence(self) -> float:
        """Fraction of positives; NaN if not known."""
        total = self.positives + self.negatives
        return self.positives / total if total else float("nan")


def thresholds(names: list[str], external: External) -> Floats:
    """Returns the threshold of each finding, chosen on the validation split of the training cohort; NaN if not known."""
    return np.array([read_interval(external["training"], f"classify_val_threshold_{mlflow_key(name)}").estimate for name in names])


def rows(found: Findings, external: External) -> Iterator[Row]:
    """Yields each finding in the test split of the training cohort, as far as known, and in this cohort."""
    training = external["training"]
    for finding in found.each:
        key = mlflow_key(finding.name)
        known = [read_interval(training, f"classify_test_{kind}_{key}").estimate for kind in ("positives", "negatives")]
        if training:
            intervals = [read_interval(training, f"classify_test_{metric}_{key}") for metric in METRICS]
            ece = read_interval(training, f"classify_test_ece_{key}").estimate
            yield Row(finding.name, "training", known[0], known[1], intervals, ece)
        positives, negatives, _ = finding.counts["test"]
        intervals = [finding.intervals[metric] for metric in METRICS]
        yield Row(finding.name, "this one", positives, negatives, intervals, finding.reliability.error)
