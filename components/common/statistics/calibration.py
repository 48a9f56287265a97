"""Calibration: temperature scaling, the reliability curve and the expected calibration error (Guo et al., ICML 2017)."""

from typing import NamedTuple

import numpy as np

from components.common.statistics.arrays import Floats

BINS = 10
"""Of equal width over [0, 1]."""
LARGEST = 20.0
"""The temperature lies between this and its inverse: perfectly separated validation images would have it at 0."""


class Reliability(NamedTuple):
    """Scores beside what came true, in the bins that hold an image."""

    score: Floats
    """Mean score of each bin."""
    share: Floats
    """Share of positives of each bin."""
    images: Floats
    """Images of each bin."""
    error: float
    """Expected calibration error: the mean distance of score and share, weighted by images; NaN without images."""


def reliability(targets: Floats, scores: Floats) -> Reliability:
    """The reliability curve of (n,) targets, 1, 0 or NaN, and probabilities; a score of 1 belongs to the last bin."""
    known = ~np.isnan(targets)
    targets, scores = targets[known], scores[known]
    number = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    images = np.bincount(number, minlength=BINS).astype(np.float64)
    used = images > 0
    score, share = (np.bincount(number, weights=values, minlength=BINS)[used] / images[used] for values in (scores, targets))
    images = images[used]
    error = float((images * np.abs(score - share)).sum() / images.sum()) if len(images) else float("nan")
    return Reliability(score, share, images, error)


def negative_log_likelihood(targets: Floats, logits: Floats) -> float:
    """Mean over the known targets, in nats; targets 1, 0 or NaN, of the same shape as the logits."""
    known = ~np.isnan(targets)
    signed = np.where(targets == 1, -logits, logits)[known]
    return float(np.logaddexp(0, signed).mean())


def fit_temperature(targets: Floats, logits: Floats) -> float:
    """The temperature T at which sigmoid(logits / T) has the lowest negative log-likelihood.

    One for all findings, as in the paper: a rare finding has too few validation positives for a temperature of its own, and
    any temperature leaves each finding's ranking as it is. The likelihood is convex in 1 / T: its slope is followed to 0.

    Args:
        targets: (n, F), 1, 0 or NaN, of the validation split.
        logits: (n, F).

    Returns:
        T; 1 without known targets.
    """
    known = ~np.isnan(targets)
    z, y = logits[known].astype(np.float64), targets[known]
    if not len(z):
        return 1.0
    low, high = 1 / LARGEST, LARGEST  # of 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        slope = (z * (_sigmoid(middle * z) - y)).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 2 / (low + high)


def _sigmoid(x: Floats) -> Floats:
    value: Floats = 0.5 * (1 + np.tanh(x / 2))  # does not overflow
    return value
