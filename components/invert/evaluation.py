"""Evaluation of an inversion: one column per error of the reconstructions."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from components.common.errors import UserError
from components.common.formats.model import DESCRIPTION
from components.common.formats.predictions import PREDICTIONS, matrix, rows_of
from components.common.head import CsvTable, HeadOutput
from components.common.runs.params import Evaluate
from components.common.statistics.bootstrap import patient_indices
from components.common.statistics.differences import Difference, paired_differences
from components.common.statistics.intervals import Interval
from components.invert import report
from components.invert.metrics import ERRORS, GAIN, MEAN_IMAGE, NAMES, InversionSplit, Reconstructions, evaluate

DESCRIBED = ("generator_size", "judge", "perceptual", "ms_ssim_scales", "kid_samples", "kid_reconstructions")
"""Required keys of model.json."""


def read(table: pa.Table, model: HeadOutput, params: Evaluate) -> "Inversion":
    """Evaluates the reconstructions of one model; raises UserError if columns or keys of model.json are missing, or errors not finite."""
    if missing := [name for name in (*ERRORS, MEAN_IMAGE) if name not in table.column_names]:
        raise UserError(f"{model.path(PREDICTIONS)}: lacks the column {missing[0]}; run invert again")
    if missing := [name for name in DESCRIBED if name not in model.description]:
        raise UserError(f"{model.path(DESCRIPTION)}: lacks {missing[0]}; run invert again")
    table = table.sort_by("image_id")  # so that models tested on the same images have them in the same order
    val, test = (_split(rows_of(table, name), model.path(PREDICTIONS)) for name in ("val", "test"))
    return Inversion(model, params, evaluate(val, test, model.description, params))


@dataclass(frozen=True)
class Inversion:
    """The evaluation of one model."""

    model: HeadOutput
    params: Evaluate
    found: Reconstructions

    def metrics(self, prefix: str = "invert") -> dict[str, float]:
        """Returns flat numbers for metrics.json."""
        found = self.found
        flat = {f"{prefix}_val_psnr": found.val_psnr, f"{prefix}_test_images": float(len(found.test.errors))}
        flat[f"{prefix}_test_patients"] = float(len(np.unique(found.test.patients)))
        for name, interval in found.intervals.items():
            flat |= interval.flat(f"{prefix}_test_{name}")
        return flat | {f"{prefix}_test_kid_samples": found.kid_samples, f"{prefix}_test_kid_reconstructions": found.kid_reconstructions}

    def headline(self) -> dict[str, Interval]:
        """Returns all errors."""
        return {NAMES[name]: interval for name, interval in self.found.intervals.items()}

    def curves(self) -> dict[str, CsvTable]:
        """Returns no curves."""
        return {}

    def sections(self) -> list[Markup]:
        """Renders the sections of the report on this model."""
        return report.sections(self.found, self.params)

    def warnings(self) -> list[str]:
        """Returns warnings about reconstructions that are no better than a guess, and about a missing KID."""
        guess = not self.found.intervals[GAIN].low > 0
        found = ["reconstructions are not clearly closer to the originals than the mean training image is"] if guess else []
        kid = "no KID: the test split has fewer than two images, or predict made the predictions"
        return [*found, kid] if math.isnan(self.found.kid_samples) else found

    def compare(self, baseline: "Inversion") -> list[Difference]:
        """Compares all errors with Holm's correction; feature distances only if both models have the same judge."""
        mine, theirs = self.found, baseline.found
        pair = f"{self.model.path(PREDICTIONS)} and {baseline.model.path(PREDICTIONS)}"
        if mine.size != theirs.size:
            raise UserError(f"{pair}: have images of {mine.size} and {theirs.size} pixels; compare models of one invert.size")
        if not np.array_equal(mine.test.image_ids, theirs.test.image_ids):
            raise UserError(f"{pair}: were tested on other images; compare models of the same shards")
        names = [name for name in ERRORS if name != "feature_distance" or mine.judge == theirs.judge]
        estimates = [mine.intervals[name].estimate - theirs.intervals[name].estimate for name in names]
        samples = (mine.samples - theirs.samples)[:, [list(NAMES).index(name) for name in names]].T
        return paired_differences([(name, NAMES[name]) for name in names], estimates, samples, self.params.confidence)


def _split(rows: pa.Table, source: str) -> InversionSplit:
    errors = matrix(rows, [*ERRORS, MEAN_IMAGE])
    if not np.isfinite(errors).all():
        raise UserError(f"{source}: an error is not a finite number; run invert again")
    gain = errors[:, ERRORS.index("psnr")] - errors[:, -1]
    image_ids = np.array(rows["image_id"].to_pylist(), dtype=np.str_)
    return InversionSplit(np.column_stack([errors, gain]), patient_indices(rows["patient_id"].to_pylist()), image_ids)
