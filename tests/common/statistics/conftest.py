"""A sample with several images per patient, and an explicit bootstrap."""

import numpy as np
import pytest

from components.common.statistics.arrays import Floats, Integers
from components.common.statistics.bootstrap import patient_indices

N, F, P = 90, 3, 37
Sample = tuple[Floats, Floats, Integers]


@pytest.fixture(params=["continuous", "ties", "all tied", "with unknowns"])
def sample(request: pytest.FixtureRequest) -> Sample:
    """Targets, scores and patients. Finding 2 is so rare that many resamples lack it."""
    rng = np.random.default_rng(3)
    targets = (rng.random((N, F)) < [0.5, 0.2, 0]).astype(float)
    targets[:2, 2] = 1
    scores = np.clip(rng.normal(0.4 + 0.2 * targets, 0.2), 0, 1)
    if request.param == "ties":
        scores = np.round(scores, 1)
    if request.param == "all tied":
        scores[:] = 0.5
    if request.param == "with unknowns":
        targets[rng.random((N, F)) < 0.3] = np.nan
        targets[:2, 2] = 1
    return targets, scores, patient_indices(rng.integers(0, P, N).astype(str))


def known(targets: Floats, scores: Floats) -> tuple[Floats, Floats]:
    there = ~np.isnan(targets)
    return targets[there], scores[there]


def duplicated_rows(patients: Integers, resamples: int, seed: int) -> list[Integers]:
    """Returns the row indices of each bootstrap resample of patients, computed with plain loops."""
    generator = np.random.default_rng(seed)
    count = len(set(patients.tolist()))
    rows = []
    for _ in range(resamples):
        drawn = generator.integers(0, count, count)
        rows.append(np.concatenate([np.flatnonzero(patients == patient) for patient in drawn]))
    return rows
