"""Errors of reconstructions: their means over the test images, with intervals by a bootstrap over patients."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Floats, Integers
from components.common.statistics.bootstrap import bootstrap_mean
from components.common.statistics.intervals import Interval, percentile_interval

ERRORS = ("psnr", "ssim", "ms_ssim", "mse", "feature_distance")  # columns of the predictions, and what models are compared by
MEAN_IMAGE = "mean_image_psnr"  # column with the PSNR of the mean training image in place of a reconstruction
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
"""Names for readers of everything that is averaged."""


@dataclass(frozen=True)
class InversionSplit:
    """The images of one split."""

    errors: Floats  # (n, F), in the order of NAMES
    patients: Integers  # (n,), number of each image's patient, from 0 to P - 1
    image_ids: npt.NDArray[np.str_]  # (n,), ascending


@dataclass(frozen=True)
class Reconstructions:
    """The evaluation of a model's reconstructions."""

    test: InversionSplit
    val_psnr: float
    intervals: dict[str, Interval]  # mean over the test images, by error
    samples: Floats  # (B, F), means in each resample of the patients
    kid_samples: float  # kernel inception distance of generated images to the test images; NaN if there are fewer than two
    kid_reconstructions: float  # the same for their reconstructions
    size: int  # side of the images in pixels
    scales: int  # scales of MS-SSIM
    judge: str  # backbone whose features were compared
    perceptual: str  # backbone of the perceptual loss


def evaluate(val: InversionSplit, test: InversionSplit, model: dict[str, Any], params: Evaluate) -> Reconstructions:
    """Computes means and intervals on the test split, and the mean PSNR on val; `model` is model.json."""
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
        size=int(model["generator_size"]),
        scales=int(model["ms_ssim_scales"]),
        judge=str(model["judge"]),
        perceptual=str(model["perceptual"]),
    )
