"""Controlled imbalance: training labels of a finding made unknown until positives have a given share."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from components.common.errors import UserError

Targets = npt.NDArray[np.float32]


def thin_labels(targets: Targets, patients: npt.ArrayLike, findings: list[str], rates: Mapping[str, float], seed: int) -> Targets:
    """Labels with the positive rates asked for.

    Positives, or negatives if they are too many, become unknown, which every loss leaves out: so that each finding has its
    rate whatever the others', and its images still teach theirs. Patients leave in a seeded order, the same for all findings;
    those of a lower rate's positives are among those of a higher one's.

    Args:
        targets: (N, F), 1, 0 or NaN.
        patients: (N,) ids.
        findings: names of the F findings.
        rates: share of positives among the known labels, by finding.
        seed: of the order.

    Returns:
        (N, F), a copy.

    Raises:
        UserError: a finding that is not there, or has one class only.
    """
    thinned = targets.copy()
    names, who = np.unique(np.asarray(patients), return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(names))[who]
    for finding, rate in rates.items():
        if finding not in findings:
            raise UserError(f"classify.positive_rate: {finding} is not a finding of the shards; they have {', '.join(findings)}")
        column = thinned[:, findings.index(finding)]
        positive, negative = (np.flatnonzero(column == value) for value in (1, 0))
        if not len(positive) or not len(negative):
            raise UserError(f"classify.positive_rate: the images to train on have one class of {finding} only; leave it out")
        for rows, kept in zip((positive, negative), _kept(len(positive), len(negative), rate), strict=True):
            column[rows[np.argsort(place[rows], kind="stable")][kept:]] = np.nan
    return thinned


def _kept(positives: int, negatives: int, rate: float) -> tuple[int, int]:
    """How many of either class stay: all of one, and at least one of the other."""
    if positives > rate * (positives + negatives):
        return max(1, round(negatives * rate / (1 - rate))), negatives
    return positives, max(1, round(positives * (1 - rate) / rate))
