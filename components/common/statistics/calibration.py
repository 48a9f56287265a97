"""Calibration: temperature scaling, the reliability curve and the expected calibration error (Guo et al., ICML 2017)."""

from typing import NamedTuple

import numpy as np

from components.common.statistics.arrays import Floats

BINS = 10  # number of bins of equal width over [0, 1]
MAX_TEMPERATURE = 20.0
"""Upper bound; its inverse is the lower bound, since perfectly separated validation images would give a temperature of 0."""


class Reliability(NamedTuple):
    """Mean score, fraction of positives and number of images in each bin that holds an image."""

    score: Floats
    share: Floats
    images: Floats
    error: float  # expected calibration error: mean distance of score and share, weighted by images; NaN without images


def reliability(targets: Floats, scores: Floats) -> Reliability:
    """Reliability curve of (n,) targets, 1, 0 or NaN, and probabilities; a score of 1 belongs to the last bin."""
    known = ~np.isnan(targets)
    targets, scores = targets[known], scores[known]
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    images = np.bincount(bins, minlength=BINS).astype(np.float64)
    used = images > 0
    score, share = (np.bincount(bins, weights=values, minlength=BINS)[used] / images[used] for values in (scores, targets))
    images = images[used]
    error = float((images * np.abs(score - share)).sum() / images.sum()) if len(images) else float("nan")
    return Reliability(score, share, images, error)


def negative_log_likelihood(targets: Floats, logits: Floats) -> float:
    """Mean in nats over the known targets, which are 1, 0 or NaN and have the shape of the logits."""
    known = ~np.isnan(targets)
    signed = np.where(targets == 1, -logits, logits)[known]
    return float(np.logaddexp(0, signed).mean())


def fit_temperature(targets: Floats, logits: Floats) -> float:
    """Finds the temperature T at which sigmoid(logits / T) has the lowest negative log-likelihood; 1 without known targets.

    Targets (1, 0 or NaN) and logits are (n, F), of the validation split. All findings share T, as in the paper: a rare finding has too
    few validation positives for a temperature of its own, and no temperature changes the ranking of a finding. The likelihood is
    convex in 1 / T, so bisection on its slope finds it.
    """
    known = ~np.isnan(targets)
    z, y = logits[known].astype(np.float64), targets[known]
    if not len(z):
        return 1.0
    low, high = 1 / MAX_TEMPERATURE, MAX_TEMPERATURE  # bounds on 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        sigmoid = 0.5 * (1 + np.tanh(middle * z / 2))  # does not overflow
        slope = (z * (sigmoid - y)).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 2 / (low + high)
