"""The report's sections on reconstructions."""

import math

import numpy as np
from markupsafe import Markup

from components.common.html.charts import UNIT, Axis, Chart, Line, Point, nice_axis
from components.common.html.page import render_blocks
from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Floats
from components.invert.metrics import GAIN, MEAN_IMAGE, NAMES, Reconstructions

BETTER = {"psnr": "higher", "ssim": "higher, at most 1", "ms_ssim": "higher, at most 1", "mse": "lower", "feature_distance": "lower"}
CURVE_POINTS = 100


def sections(found: Reconstructions, params: Evaluate) -> list[Markup]:
    """Renders report.html: the headline, then the other sections."""
    psnr, mean_image = found.intervals["psnr"], found.intervals[MEAN_IMAGE]
    psnrs = [found.test.errors[:, list(NAMES).index(name)] for name in ("psnr", MEAN_IMAGE)]
    return render_blocks(
        "invert/report.html",
        found=found,
        params=params,
        mean_image=mean_image,
        gain=found.intervals[GAIN],
        headline_axis=nice_axis([value for each in (psnr, mean_image) for value in each[:3] if math.isfinite(value)]),
        names=NAMES,
        better=BETTER,
        distribution=_distribution(*psnrs),
        medians=[float(np.median(values)) for values in psnrs],
    )


def _distribution(psnr: Floats, mean_image: Floats) -> Chart:
    ends = [float(end) for values in (psnr, mean_image) for end in (values.min(), values.max())]
    lines = [Line(_survival(mean_image), "chance"), Line(_survival(psnr), "first")]
    return Chart(lines, nice_axis(ends, "PSNR in dB"), Axis(0.0, 1.0, UNIT, "Share of images"), width=420, height=240)


def _survival(values: Floats) -> list[Point]:
    shares = np.linspace(1, 0, CURVE_POINTS)
    return [(float(x), float(share)) for x, share in zip(np.quantile(values, 1 - shares), shares, strict=True)]
