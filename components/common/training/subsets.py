"""Label fractions: shares of the patients that are nested, stratified by finding and seeded.

The patients are halved again and again, and a share is made of whole halves of halves: so a smaller share lies within a
larger one. A halving pairs patients with like findings and gives one of each pair to either half, such that no finding
gathers in one; which half a patient comes to is a toss-up for each of them, also for those with rare findings or many. (To
put next, greedily, whoever brings all findings closest to their share would put patients with several findings last.)
"""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Traits = npt.NDArray[np.float64]


def labelled_rows(patients: npt.ArrayLike, targets: npt.ArrayLike, fraction: float, seed: int) -> Rows:
    """Images with a known label of a share of the patients.

    Args:
        patients: (N,) ids of the images' patients.
        targets: (N, F), 1, 0 or NaN for unknown. Where labels are boxes: whether an image has a box of each kind.
        fraction: share of the patients with a known label, in (0, 1]; at least one patient.
        seed: another seed draws other patients. The order of the images does not matter.

    Returns:
        Ascending positions of the images; those of a smaller fraction are a subset.
    """
    ids, labels = np.asarray(patients), np.asarray(targets, np.float64)
    known = ~np.isnan(labels).all(axis=1)
    names, who = np.unique(ids[known], return_inverse=True)
    chosen = stratified(_traits(labels[known], who, len(names)), max(1, round(fraction * len(names))), seed)
    return np.flatnonzero(known & np.isin(ids, names[chosen]))


def stratified(traits: Traits, count: int, seed: int) -> Rows:
    """The first `count` patients of an order whose beginnings have nearly the traits of the whole.

    Args:
        traits: (P, K), 1 where a patient has a trait, else 0.
        count: at most P.
        seed: with the halves chosen so far it determines each halving, whatever the count.

    Returns:
        (count,) positions.
    """
    taken: list[Rows] = [np.empty(0, np.int64)]
    rest, path = np.arange(len(traits)), [seed]
    while count > 0:
        first, second = _halves(traits, rest, np.random.default_rng(path))
        inside = count >= len(first)
        taken += [first] if inside else []
        count -= len(first) if inside else 0
        rest = second if inside else first
        path.append(int(inside))
    return np.concatenate(taken)


def _halves(traits: Traits, members: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Two halves with nearly the same traits; an odd one is in the first."""
    ordered = rng.permutation(members)
    odd, ordered = ordered[: len(ordered) % 2], ordered[len(ordered) % 2 :]
    rare_first = np.argsort(-traits[members].mean(axis=0), kind="stable")  # lexsort takes the last key first
    ordered = ordered[np.lexsort(traits[ordered][:, rare_first].T)] if traits.shape[1] else ordered
    pairs = ordered.reshape(-1, 2)
    pairs = pairs[rng.permutation(len(pairs))]
    side = rng.integers(0, 2, len(pairs))
    # A rare trait's deviation weighs as much as a frequent one's: both in standard deviations.
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
    """(P, 2 F): whether a patient has a positive image of each finding, and whether any image with a known label."""
    found = np.zeros((count, 2 * labels.shape[1]))
    np.maximum.at(found, who, np.concatenate([labels == 1, ~np.isnan(labels)], axis=1).astype(np.float64))
    return found
