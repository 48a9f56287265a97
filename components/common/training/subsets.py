"""Label fractions: subsets of the patients that are nested, stratified by finding and seeded.

The patients are halved again and again, and a subset is made of whole halves, so that a smaller subset lies within a larger one.
A halving pairs patients with similar findings and assigns one of each pair to either half such that no finding accumulates in
one; which half a patient is assigned to is equally likely for every patient, including those with rare or many findings. (Greedy
selection of whoever brings all findings closest to their share would select patients with several findings last.)
"""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from components.common.statistics.arrays import has_both
from components.common.training.seeds import generator_for

Rows = npt.NDArray[np.int64]
Traits = npt.NDArray[np.float64]


def labelled_rows(patients: npt.ArrayLike, targets: npt.ArrayLike, fraction: float, seed: int) -> Rows:
    """Selects images with a known label from a fraction of the patients.

    Args:
        patients: (N,) patient id of each image.
        targets: (N, F), 1, 0 or NaN for unknown. Where labels are boxes: whether an image has a box of each class.
        fraction: fraction of the patients with a known label, in (0, 1]; more of them, if that few have both classes of no finding.
        seed: selects the patients; the order of the images does not matter.

    Returns:
        Ascending positions of the images; those of a smaller fraction are a subset.
    """
    ids, labels = np.asarray(patients), np.asarray(targets, np.float64)
    known = ~np.isnan(labels).all(axis=1)
    names, who = np.unique(ids[known], return_inverse=True)
    traits = _traits(labels[known], who, len(names))

    def rows(count: int) -> Rows:
        return np.flatnonzero(known & np.isin(ids, names[stratified(traits, count, seed)]))

    count = max(1, round(fraction * len(names)))
    if has_both(labels).any():  # the subsets are nested, so that those with both classes of a finding come last
        count += bisect_left(range(count, len(names)), True, key=lambda number: bool(has_both(labels[rows(number)]).any()))
    return rows(count)


def stratified(traits: Traits, count: int, seed: int) -> Rows:
    """Returns `count` positions, or all: the first of an order in which every prefix has nearly the same traits as the whole.

    Traits are (P, K), 1 where a patient has a trait, else 0. The seed and the halves chosen so far determine each halving, whatever
    the count.
    """
    taken: list[Rows] = [np.empty(0, np.int64)]
    rest, path = np.arange(len(traits)), [seed]
    while count > 0 and len(rest):
        first, second = _halves(traits, rest, generator_for(*path))
        inside = count >= len(first)
        taken += [first] if inside else []
        count -= len(first) if inside else 0
        rest = second if inside else first
        path.append(int(inside))
    return np.concatenate(taken)


def _halves(traits: Traits, members: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Splits patients into halves with nearly the same traits; the first takes an odd one."""
    ordered = rng.permutation(members)
    odd, ordered = ordered[: len(ordered) % 2], ordered[len(ordered) % 2 :]
    rare_first = np.argsort(-traits[members].mean(axis=0), kind="stable")  # lexsort takes the last key first
    ordered = ordered[np.lexsort(traits[ordered][:, rare_first].T)] if traits.shape[1] else ordered
    pairs = ordered.reshape(-1, 2)
    pairs = pairs[rng.permutation(len(pairs))]
    side = rng.integers(0, 2, len(pairs))
    # In standard deviations, a rare trait's imbalance counts as much as a frequent one's.
    spread = np.sqrt(traits[members].var(axis=0))
    differences = (traits[pairs[:, 0]] - traits[pairs[:, 1]]) / np.where(spread > 0, spread, 1)
    surplus = np.zeros(traits.shape[1])  # of the first half
    for index in np.flatnonzero(differences.any(axis=1)):
        leaning = surplus @ differences[index]
        side[index] = int(leaning > 0) if leaning else side[index]
        surplus += differences[index] * (1 - 2 * side[index])
    number = np.arange(len(pairs))
    return np.concatenate([odd, pairs[number, side]]), pairs[number, 1 - side]


def _traits(labels: Traits, who: Rows, count: int) -> Traits:
    """Returns (P, 2 F): whether a patient has a positive image of each finding, and whether any image with a known label."""
    found = np.zeros((count, 2 * labels.shape[1]))
    np.maximum.at(found, who, np.concatenate([labels == 1, ~np.isnan(labels)], axis=1).astype(np.float64))
    return found
