"""Bootstrap over patients.

Images of one patient are alike, so resampling images would give intervals that are too narrow. Patients are drawn with
replacement instead and bring all of their images along (cluster bootstrap: Field and Welsh, J R Stat Soc B 2007). A
resample is a vector of weights: how often each patient was drawn.

Shapes: n images, F findings, P patients, B resamples.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from components.common.statistics.arrays import Floats, Integers, Weights, divide

CHUNK = 512  # resamples per chunk: long enough to amortise the calls, short enough for memory


def patient_indices(patients: npt.ArrayLike) -> Integers:
    """Numbers 0 ... P - 1, (n,), for (n,) patient ids, in the order of the sorted ids."""
    return np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)


def patient_count(patients: Integers) -> int:
    """P, of the numbers that patient_indices gives."""
    return int(patients.max()) + 1


def resampled_weights(count: int, resamples: int, seed: int) -> Iterator[Weights]:
    """Yields how often each of `count` patients is drawn, (count, up to CHUNK) at a time, the same on any machine."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        weights = np.empty((min(CHUNK, resamples - start), count), np.int32)
        for row in weights:
            row[:] = np.bincount(generator.integers(0, count, count), minlength=count)
        yield np.ascontiguousarray(weights.T)


def bootstrap_mean(values: Floats, patients: Integers, resamples: int, seed: int) -> Floats:
    """Mean over the images of (n, F) values, NaN left out, in every resample of the patients: (B, F)."""
    known = ~np.isnan(values)
    sums = _sum_by_patient(np.where(known, values, 0.0), patients)
    counts = _sum_by_patient(known.astype(np.float64), patients)
    chunks = resampled_weights(patient_count(patients), resamples, seed)
    return np.concatenate([divide(weights.T @ sums, weights.T @ counts) for weights in chunks])


def _sum_by_patient(values: Floats, patients: Integers) -> Floats:
    return np.stack([np.bincount(patients, weights=column) for column in values.T], axis=1)
