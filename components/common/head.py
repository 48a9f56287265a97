"""What a task gives to evaluate: the contract between run.py and classification.py, detection.py and inversion.py."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
from markupsafe import Markup

from components.common.runs.params import Evaluate
from components.common.statistics.differences import Difference
from components.common.statistics.intervals import Interval
from components.evaluate.predictions import Model


class Points(NamedTuple):
    """A CSV of curves, for `dvc plots` and spreadsheets."""

    header: tuple[str, ...]
    """The first column names the curve: a finding, a label."""
    rows: Sequence[tuple[Any, ...]]


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

    def sections(self) -> list[Markup]:
        """Renders the sections of the report on this model: the headline, then the others (components.common.html.page.render_blocks).

        evaluate adds differences, training curves, figures and provenance.
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
