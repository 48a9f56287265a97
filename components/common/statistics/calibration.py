"""Calibration: temperature scaling, reliability curve and expected calibration error (Guo et al., ICML 2017); intercept and slope."""

from typing import NamedTuple

import numpy as np

from components.common.statistics.arrays import Floats, divide, has_both

BINS = 10  # number of bins of equal width over [0, 1]
MAX_TEMPERATURE = 20.0
"""Upper bound; its inverse is the lower bound, since perfectly separated validation images would give a temperature of 0."""
CLIPPED = 1e-8  # scores are kept this far from 0 and 1, where the log-odds would be infinite; float32 resolves 6e-8 below 1


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
        slope = (z * (_sigmoid(middle * z) - y)).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 2 / (low + high)


class Recalibration(NamedTuple):
    """Calibration intercept and slope of F findings (Van Calster et al., BMC Med 2019); perfect scores have 0 and 1.

    The intercept is that of a logistic regression of the targets with the log-odds of the scores as offset: negative if the scores
    are too high on average. The slope is the coefficient of the log-odds in a logistic regression: below 1 if the scores are too
    extreme. Both are NaN with one class only, and if the scores separate the classes.
    """

    intercept: Floats  # (F,)
    slope: Floats  # (F,)
    terms: dict[str, Floats]
    """(n, F) each: the terms of gradient and curvature at the fit, NaN for unknown targets, whose means `resampled` takes."""

    def resampled(self, means: dict[str, Floats]) -> tuple[Floats, Floats]:
        """Intercepts and slopes, (B, F) each, by one Newton step from the fit for each resample, given the means (B, F) of `terms`.

        A complete fit for each resample would take minutes, and differs from the step by much less than resamples differ.
        """
        a, b, c, d, e = (means[name] for name in ("line_0", "line_1", "line_00", "line_01", "line_11"))
        slopes = self.slope + divide(c * b - d * a, c * e - d * d)
        return self.intercept + divide(means["intercept_0"], means["intercept_00"]), slopes


def recalibration(targets: Floats, scores: Floats) -> Recalibration:
    """Fits intercept and slope to targets (n, F), 1, 0 or NaN, and probabilities (n, F)."""
    clipped = np.clip(scores, CLIPPED, 1 - CLIPPED)
    odds = np.log(clipped) - np.log1p(-clipped)
    both = has_both(targets)
    found = [_recalibrate(*columns) if each else (np.nan,) * 3 for *columns, each in zip(targets.T, odds.T, both, strict=True)]
    intercept, first, slope = np.array(found).T
    terms: dict[str, Floats] = {}
    for name, linear in (("intercept", intercept + odds), ("line", first + slope * odds)):
        probability = _sigmoid(linear)
        error, variance = targets - probability, np.where(np.isnan(targets), np.nan, probability * (1 - probability))
        terms |= {f"{name}_0": error, f"{name}_00": variance}
    terms |= {"line_1": terms["line_0"] * odds, "line_01": terms["line_00"] * odds, "line_11": terms["line_00"] * odds**2}
    return Recalibration(intercept, slope, terms)


def _recalibrate(targets: Floats, odds: Floats) -> tuple[float, float, float]:
    """Returns the calibration intercept, and intercept and slope of the regression line, for (n,) targets and log-odds."""
    known = ~np.isnan(targets)
    y, z = targets[known], odds[known]
    ones = np.ones((len(z), 1))
    return (*_logistic(y, ones, z), *_logistic(y, np.column_stack([ones, z]), np.zeros(len(z))))


def _logistic(y: Floats, design: Floats, offset: Floats) -> Floats:
    """Coefficients (k,) of a logistic regression on a design (n, k) by Newton's method with steps of at most 1; NaN if there are none."""
    found = np.zeros(design.shape[1])
    for _ in range(100):
        probability = _sigmoid(design @ found + offset)
        curvature = (design.T * (probability * (1 - probability))) @ design
        if np.linalg.cond(curvature) > 1e12:  # constant scores, or separated classes
            break
        step = np.linalg.solve(curvature, design.T @ (y - probability))
        found += step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-9:
            return found
    return np.full(design.shape[1], np.nan)


def _sigmoid(z: Floats) -> Floats:
    """The logistic function, without overflow."""
    probability: Floats = 0.5 * (1 + np.tanh(z / 2))
    return probability
