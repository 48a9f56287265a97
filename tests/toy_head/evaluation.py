"""Evaluation of `toy`: closeness, which is 1 minus the absolute error of the brightness."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from components.common.errors import UserError
from components.common.formats.predictions import matrix, rows_of
from components.common.head import CsvTable, HeadOutput
from components.common.html.charts import unit_axis
from components.common.html.page import render_blocks
from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Floats
from components.common.statistics.bootstrap import bootstrap_mean, patient_indices
from components.common.statistics.differences import Difference, paired_differences
from components.common.statistics.intervals import Interval, percentile_interval


def read(table: pa.Table, model: HeadOutput, params: Evaluate) -> "Regression":
    test = rows_of(table, "test").sort_by("image_id")
    predicted, true = matrix(test, ["predicted", "true"]).T
    closeness, patients = 1 - abs(true - predicted), patient_indices(test["patient_id"].to_pylist())
    samples = bootstrap_mean(closeness[:, None], patients, params.resamples, params.seed)[:, 0]
    return Regression(model, params, test, percentile_interval(float(closeness.mean()), samples, params.confidence), samples)


@dataclass(frozen=True)
class Regression:
    model: HeadOutput
    params: Evaluate
    test: pa.Table
    closeness: Interval
    samples: Floats

    def metrics(self, prefix: str) -> dict[str, float]:
        return {f"{prefix}_test_images": len(self.test), **self.closeness.flat(f"{prefix}_test_closeness")}

    def headline(self) -> dict[str, Interval]:
        return {"Closeness": self.closeness}

    def curves(self) -> dict[str, CsvTable]:
        return {}

    def sections(self) -> list[Markup]:
        axis = unit_axis([self.closeness], 0.0)
        return render_blocks("toy/report.html", closeness=self.closeness, axis=axis, confidence=self.params.confidence)

    def warnings(self) -> list[str]:
        return []

    def compare(self, baseline: "Regression") -> list[Difference]:
        if self.test["true"] != baseline.test["true"]:
            raise UserError(f"{self.model.folder}, {baseline.model.folder}: tested on other images; compare models of the same shards")
        estimate, samples = self.closeness.estimate - baseline.closeness.estimate, self.samples - baseline.samples
        return paired_differences([("closeness", "Closeness")], [estimate], np.array([samples]), self.params.confidence)
