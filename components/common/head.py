"""What a task gives to evaluate: the contract between run.py and classification.py, detection.py and inversion.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from components.common.runs.params import Evaluate
from components.common.statistics.metrics import Floats, Interval, percentile_interval
from components.common.statistics.significance import bootstrap_p, holm
from components.evaluate.predictions import Model


class Points(NamedTuple):
    """A CSV of curves, for `dvc plots` and spreadsheets."""

    header: tuple[str, ...]
    """The first column names the curve: a finding, a label."""
    rows: Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Difference:
    """A metric of a model minus that of its baseline, paired: on the same resamples of the patients."""

    key: str
    """Within metric names: letters, digits and `_. -`."""
    name: str
    """For readers."""
    interval: Interval
    p: float
    """Two-sided, as components.common.statistics.significance makes it."""
    p_adjusted: float
    """After Holm over the comparisons that belong together; equal to `p` for one that stands alone."""
    samples: Floats
    """(B,), the difference in each resample; NaN where it is not defined."""


def family(names: Sequence[tuple[str, str]], estimates: Sequence[float], samples: Floats, confidence: float) -> list[Difference]:
    """Differences that are corrected together.

    Args:
        names: of the m differences: key, and name for readers.
        estimates: on the test split.
        samples: (m, B). Both models have drawn the same patients in each resample.
        confidence: level of the intervals.
    """
    p_values = np.array([bootstrap_p(values) for values in samples])
    rows = zip(names, estimates, samples, p_values, holm(p_values), strict=True)
    return [
        Difference(key, name, percentile_interval(float(estimate), values, confidence), float(p), float(adjusted), values)
        for (key, name), estimate, values, p, adjusted in rows
    ]


class Evaluated(Protocol):
    """One model's evaluation."""

    @property
    def model(self) -> Model:
        """Whose it is."""

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat, for metrics.json: names begin with `prefix`, such as detect or detect_2; NaN where undefined."""

    def headline(self) -> dict[str, Interval]:
        """The numbers that models of this task are laid side by side by, in order, by a name for readers."""

    def curves(self) -> dict[str, Points]:
        """By file name, such as roc.csv; the same files and headers for every model of a task."""

    def sections(self) -> list[str]:
        """HTML of the report, made with components.common.html.page: the headline, then the rest.

        report.py adds differences, history, figures and provenance.
        """

    def warnings(self) -> list[str]:
        """Sentences about what the numbers cannot say, for the log and the report's top."""

    def compare(self, baseline: Any) -> list[Difference]:
        """Paired differences to the evaluation of another model of this task.

        Raises:
            UserError: the two were not tested on the same images with the same targets; says how they differ.
        """


class Task(Protocol):
    """A module of a task."""

    def read(self, table: pa.Table, model: Model, params: Evaluate) -> Evaluated:
        """Evaluates the predictions of one model on the test split.

        Args:
            table: predictions.parquet, its common columns checked: one row an image, splits val and test, no patient in both,
                test not empty.
            model: the folder's other content.
            params: resamples, confidence, seed and what else is asked for.

        Raises:
            UserError: columns of the task that are missing or impossible; names model.source.
        """
