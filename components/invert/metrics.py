"""Errors of reconstructions, their means over the test images, and intervals by a bootstrap over patients."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Floats, Integers
from components.common.statistics.bootstrap import bootstrap_mean
from components.common.statistics.intervals import Interval, percentile_interval

ERRORS = ("psnr", "ssim", "ms_ssim", "mse", "feature_distance")
"""Of each reconstruction, as the columns of the predictions; models are compared by them."""
MEAN_IMAGE = "mean_image_psnr"
"""The column with the PSNR of the mean training image in place of a reconstruction."""
GAIN = "psnr_gain"
NAMES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "mse": "Mean squared error",
    "feature_distance": "Feature distance",
    MEAN_IMAGE: "PSNR of the mean image",
    GAIN: "PSNR above the mean image's",
}
"""All that is averaged, for readers."""


@dataclass(frozen=True)
class InversionSplit:
    """The images of one split."""

    errors: Floats
    """(n, F), in the order of NAMES."""
    patients: Integers
    """(n,), index of each image's patient, 0 ... P - 1."""
    image_ids: npt.NDArray[np.str_]
    """(n,), ascending."""


@dataclass(frozen=True)
class Reconstructions:
    """The evaluation of a model's reconstructions."""

    test: InversionSplit
    val_psnr: float
    intervals: dict[str, Interval]
    """By error, its mean over the test images."""
    samples: Floats
    """(B, F), the means in each resample of the patients."""
    kid_samples: float
    """Kernel inception distance of generated images to the test images; NaN when these are fewer than two."""
    kid_reconstructions: float
    """The same of their reconstructions."""
    size: int
    """Side of the images in pixels."""
    scales: int
    """Of MS-SSIM."""
    judge: str
    """The backbone whose features were compared."""
    perceptual: str
    """The backbone of the perceptual loss."""


def evaluate(val: InversionSplit, test: InversionSplit, model: dict[str, Any], params: Evaluate) -> Reconstructions:
    """Means and intervals.

    Args:
        val: for the mean PSNR only.
        test: at least one image.
        model: model.json.
        params: resamples, seed and confidence.
    """
    samples = bootstrap_mean(test.errors, test.patients, params.resamples, params.seed)
    found = zip(NAMES, test.errors.mean(axis=0), samples.T, strict=True)
    kid = [float("nan") if model[name] is None else float(model[name]) for name in ("kid_samples", "kid_reconstructions")]
    return Reconstructions(
        test=test,
        val_psnr=float(val.errors[:, 0].mean()) if len(val.errors) else float("nan"),
        intervals={name: percentile_interval(float(mean), drawn, params.confidence) for name, mean, drawn in found},
        samples=samples,
        kid_samples=kid[0],
        kid_reconstructions=kid[1],
        size=int(model["size"]),
        scales=int(model["ms_ssim_scales"]),
        judge=str(model["judge"]),
        perceptual=str(model["perceptual"]),
    )
