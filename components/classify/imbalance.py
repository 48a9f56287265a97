"""Controlled imbalance: makes training labels of a finding unknown until its positives have a given rate."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from components.common.errors import UserError
from components.common.training.seeds import generator_for

Targets = npt.NDArray[np.float32]


def set_positive_rates(targets: Targets, patients: npt.ArrayLike, findings: list[str], rates: Mapping[str, float], seed: int) -> Targets:
    """Subsamples labels (N, F), 1, 0 or NaN, to the fractions of positives among known labels in `rates`; returns a copy.

    Positives, or negatives if there are too many, become unknown, which every loss ignores: each finding gets its rate whatever the
    others have, and its images still teach the others. Patients leave in a seeded order, the same for all findings; the positives
    of a lower rate are a subset of those of a higher one. Raises UserError if a finding does not exist, or has only one class.
    """
    subsampled = targets.copy()
    names, who = np.unique(np.asarray(patients), return_inverse=True)
    place = generator_for(seed).permutation(len(names))[who]
    for finding, rate in rates.items():
        if finding not in findings:
            raise UserError(f"classify.positive_rate: {finding} is not a finding of the shards; they have {', '.join(findings)}")
        column = subsampled[:, findings.index(finding)]
        positive, negative = (np.flatnonzero(column == value) for value in (1, 0))
        if not len(positive) or not len(negative):
            raise UserError(f"classify.positive_rate: the training images have only one class of {finding}; remove it")
        for rows, kept in zip((positive, negative), _kept(len(positive), len(negative), rate), strict=True):
            column[rows[np.argsort(place[rows], kind="stable")][kept:]] = np.nan
    return subsampled


def _kept(positives: int, negatives: int, rate: float) -> tuple[int, int]:
    """Returns how many of either class stay: all of one, and at least one of the other."""
    if positives > rate * (positives + negatives):
        return max(1, round(negatives * rate / (1 - rate))), negatives
    return positives, max(1, round(positives * (1 - rate) / rate))
