"""What the report says of reconstructions, as HTML."""

import math
from html import escape

import numpy as np

from components.common.html import page
from components.common.html.charts import UNIT, Axis, Line, chart, nice_axis
from components.common.html.forest import scale, strip
from components.common.html.numbers import cell, limits, number, percent, spoken
from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Floats
from components.invert.metrics import GAIN, MEAN_IMAGE, NAMES, Reconstructions

BETTER = {"psnr": "higher", "ssim": "higher, at most 1", "ms_ssim": "higher, at most 1", "mse": "lower", "feature_distance": "lower"}
POINTS = 100
"""Of a curve."""


def sections(found: Reconstructions, params: Evaluate) -> list[str]:
    """All sections, in order."""
    return [_hero(found, params), _errors(found, params), _distribution(found), _sets(found), _method(found)]


def _hero(found: Reconstructions, params: Evaluate) -> str:
    """The headline: PSNR beside that of the mean image."""
    psnr, mean, gain, similarity = (found.intervals[name] for name in ("psnr", MEAN_IMAGE, GAIN, "ms_ssim"))
    axis = nice_axis([value for each in (psnr, mean) for value in each[:3] if math.isfinite(value)])
    picture = strip(spoken("PSNR", psnr, params.confidence), psnr, axis, mean.estimate) + scale("Axis of PSNR", axis)
    main = (
        '<div class="card main"><div class="label">PSNR, test split</div>'
        f'<div class="number">{_decibels(psnr.estimate)}</div>'
        f'<div class="interval">{percent(params.confidence)} interval {limits(psnr)}</div>{picture}'
        f"<p>The mean training image, in place of every reconstruction, reaches {_decibels(mean.estimate)} (dotted).</p></div>"
    )
    distance = found.intervals["feature_distance"]
    cards = [
        page.card("Above the mean image", _decibels(gain.estimate), limits(gain, signs=True)),
        page.card("MS-SSIM", number(similarity.estimate), limits(similarity)),
        page.card("Feature distance", number(distance.estimate), limits(distance)),
        page.card("PSNR, validation split", _decibels(found.val_psnr), "nothing was chosen there"),
    ]
    return f'<section class="hero" aria-label="Headline">{main}{"".join(cards)}</section>'


def _errors(found: Reconstructions, params: Evaluate) -> str:
    rows = [page.row(NAMES[name], [cell(interval), BETTER.get(name, "")]) for name, interval in found.intervals.items()]
    caption = f"Means over the test images, with {percent(params.confidence)} intervals. PSNR is in dB."
    table = page.table(caption, ["Error", "Mean", "Better"], rows)
    return f'<section><h2>Reconstructions</h2><div class="card scroll">{table}</div></section>'


def _distribution(found: Reconstructions) -> str:
    """How many images reach which PSNR, beside the mean image."""
    psnr, mean = (found.test.errors[:, list(NAMES).index(name)] for name in ("psnr", MEAN_IMAGE))
    x = nice_axis([float(each) for values in (psnr, mean) for each in (values.min(), values.max())], "PSNR in dB")
    medians = [_decibels(float(np.median(values))) for values in (psnr, mean)]
    label = f"Share of images by least PSNR: half of the reconstructions reach {medians[0]}, the mean image {medians[1]}"
    lines = [Line(_survival(mean), "chance"), Line(_survival(psnr), "first")]
    picture = chart(label, lines, x, Axis(0.0, 1.0, UNIT, "Share of images"), size=(420, 240))
    text = "The share of the test images whose reconstruction reaches a PSNR. Dashed: the mean training image in place of reconstructions."
    return f'<section><h2>From image to image</h2><p>{text}</p><figure class="card">{picture}</figure></section>'


def _survival(values: Floats) -> list[tuple[float, float]]:
    """Points (x, share of the values that are at least x)."""
    shares = np.linspace(1, 0, POINTS)
    return [(float(x), float(share)) for x, share in zip(np.quantile(values, 1 - shares), shares, strict=True)]


def _sets(found: Reconstructions) -> str:
    values = {"Generated images, of random latents": found.kid_samples, "Reconstructions": found.kid_reconstructions}
    rows = [page.row(name, [number(value)]) for name, value in values.items()]
    caption = "Distance to the test images. 0 is none, and chance can make it negative."
    table = page.table(caption, ["Set", "Kernel inception distance"], rows)
    text = f"Features are those of a {escape(found.judge)}. Distances in other feature spaces do not compare."
    return f'<section><h2>Sets of images</h2><p>{text}</p><div class="card scroll">{table}</div></section>'


def _method(found: Reconstructions) -> str:
    """What the errors are."""
    scales = page.plural(found.scales, "scale")
    text = (
        f"Images are squares of {found.size} pixels, borders of zeros included, with intensities from 0 to 1. SSIM looks through a "
        f"Gaussian window of 11 pixels (Wang et al. 2004); MS-SSIM at {scales} of the five of Wang et al. (2003), as many as the size "
        "allows, and does not compare between sizes. The feature distance adds up squared differences of the maps after each stage of a "
        f"{escape(found.judge)}, their channels scaled to unit length at each position. Backbone of the encoder's perceptual loss: "
        f"{escape(found.perceptual)}."
    )
    return f"<section><h2>How images were compared</h2><p>{text}</p></section>"


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "–"
