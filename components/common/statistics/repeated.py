"""Differences between methods whose training was repeated with several seeds, tested on the same patients.

Two kinds of chance lie between a difference that was measured and the one to be expected elsewhere: which patients are in the test
split, and how the trainings went (weights, order of the images, choice of labels: the seed). Bouthillier et al. 2021 (Accounting for
Variance in Machine Learning Benchmarks) show that leaving out the second gives false findings. `mixed_bootstrap` has both in one sample.

Shapes: A methods, S seeds, B resamples.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from components.common.statistics.arrays import Floats

POWER = 0.8


class SeedChance(NamedTuple):
    """What the choice of the seeds contributes to the difference between two methods' means over them."""

    error: float  # standard error; 0 for a single seed, which says nothing about it
    freedom: float  # degrees of freedom of its estimate; infinite for a single seed


class Repeated(NamedTuple):
    """A difference averaged over seeds."""

    estimate: float
    samples: Floats  # (B,), with both kinds of chance
    error: float  # standard error
    freedom: float  # degrees of freedom of its estimate


def seed_chance(values: Floats) -> SeedChance:
    """Estimates the chance of the seeds from the (A, S) values of all methods under one condition.

    The seeds are the blocks of a randomised block design: what a seed does to all methods alike, such as its choice of labels, cancels in
    their differences. The mean square of the residuals of an additive model, with (A - 1)(S - 1) degrees of freedom, is the variance of
    one value; a difference of two means over S seeds has 2/S of it. With two methods this is the paired t-test. It takes all methods to
    vary alike: one that varies more than the others gets too narrow an interval, and the others too wide ones.
    """
    methods, seeds = values.shape
    if seeds < 2:
        return SeedChance(0.0, math.inf)
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    freedom = (methods - 1) * (seeds - 1)
    return SeedChance(math.sqrt(2 / seeds * float((residuals**2).sum()) / freedom), freedom)


def mixed_bootstrap(estimates: Floats, samples: Floats, chance: SeedChance, seed: int) -> Repeated:
    """Combines (S,) differences, and their (S, B) bootstrap samples over patients, the same patients for all seeds in each resample.

    A resample of the mean over the seeds has the patients of the bootstrap, and a draw from Student's t distribution with the error and
    the degrees of freedom of the seeds: a nonparametric bootstrap of the patients and a parametric one of the seeds (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6). Seeds are not resampled themselves: of three seeds a resample has
    (S - 1)/S = 2/3 of the variance, and none of the long tails that an error estimated from three values has. Three differences of
    one sign, which have a chance of 1/4 where there is no difference, would pass as certain.

    Which patients suit one training and not another (the interaction) is in the spread of the seeds and in that of the patients. The
    latter shrinks towards the centre by its share there, known from how much less the mean over seeds varies than a single seed.

    Limits: one seed has the chance of the patients only. Two or three seeds of few methods give wide intervals, as they must. Seeds are
    taken to be normal. All share the split and the cohort: nothing here is about another hospital.
    """
    mean = samples.mean(axis=0)
    patients, seeds = float(np.nanvar(mean)), chance.error**2
    if not seeds:
        return Repeated(float(estimates.mean()), mean, math.sqrt(patients), math.inf)
    interaction = (float(np.nanvar(samples, axis=1).mean()) - patients) / max(len(samples) - 1, 1)
    alone = max(patients - max(interaction, 0.0), 0.0)
    centre, shrink = float(np.nanmean(mean)), math.sqrt(alone / patients) if patients else 0.0
    draws = np.random.default_rng([seed, 1]).standard_t(chance.freedom, len(mean))  # a stream of its own, unlike the patients'
    freedom = chance.freedom * ((alone + seeds) / seeds) ** 2
    return Repeated(float(estimates.mean()), centre + shrink * (mean - centre) + chance.error * draws, math.sqrt(alone + seeds), freedom)


def smallest_effect(found: Repeated, level: float, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test at `level` finds with the chance `power`.

    It is (t(1 - level/2) + t(power)) * SE, with the quantiles of Student's t distribution (Bloom, Minimum Detectable Effects, Evaluation
    Review 1995). SE is the standard error of the difference from patients and seeds, its degrees of freedom are Satterthwaite's:
    f * SE^4 / SE_seeds^4, where f are those of the seeds and the error from the patients counts as known.
    """
    return float((student.isf(level / 2, found.freedom) + student.isf(1 - power, found.freedom)) * found.error)
