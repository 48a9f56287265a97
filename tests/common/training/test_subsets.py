import numpy as np
import pytest

from components.common.training.subsets import labelled_rows, stratified

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 1.0)
PREVALENCE = np.array([0.4, 0.1, 0.02])


def cohort(patients: int = 800) -> tuple[np.ndarray, np.ndarray]:
    """Returns patient ids and labels of images, one to three per patient. A patient's images share labels; some are unknown."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    targets = (rng.random((patients, 3)) < PREVALENCE).astype(float)[who]
    targets[rng.random(targets.shape) < 0.1] = np.nan
    targets[who % 50 == 7] = np.nan
    return np.array([f"patient{index:04d}" for index in who]), targets


def positives_by_patient(ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.array([(targets[ids == name] == 1).any(axis=0) for name in np.unique(ids)])


def test_fractions_are_nested_whole_patients_of_the_right_number() -> None:
    ids, targets = cohort()
    labelled = np.unique(ids[~np.isnan(targets).all(axis=1)])
    before: set[int] = set()
    for fraction in FRACTIONS:
        rows = labelled_rows(ids, targets, fraction, seed=3)
        assert before < set(rows)
        chosen = np.unique(ids[rows])
        assert len(chosen) == round(fraction * len(labelled))
        known = np.isin(ids, chosen) & ~np.isnan(targets).all(axis=1)
        assert rows.tolist() == np.flatnonzero(known).tolist()
        before = set(rows)


@pytest.mark.parametrize("seed", range(20))
def test_a_small_fraction_of_a_small_cohort_has_both_classes_of_a_finding(seed: int) -> None:
    """One of 60 patients would have one class; whole patients are added, and larger fractions still contain them."""
    ids = np.repeat([f"patient{index:02d}" for index in range(60)], 2)
    targets = np.full((120, 2), np.nan)
    targets[:, 0] = np.arange(120) // 2 < 9
    rows = labelled_rows(ids, targets, 0.01, seed)
    assert set(targets[rows, 0]) == {0, 1}
    assert set(rows) <= set(labelled_rows(ids, targets, 0.2, seed))
    targets[:, 0] = 0
    assert len(labelled_rows(ids, targets, 0.01, seed)) == 2  # no fraction has both


@pytest.mark.parametrize("fraction", FRACTIONS[:-1])
def test_every_finding_keeps_its_prevalence(fraction: float) -> None:
    """Counts may differ by 3 patients; for 200 patients drawn at random, the most frequent finding would have a deviation of about 7."""
    ids, targets = cohort()
    labelled = ~np.isnan(targets).all(axis=1)
    whole = positives_by_patient(ids[labelled], targets[labelled])
    for seed in range(5):
        rows = labelled_rows(ids, targets, fraction, seed)
        part = positives_by_patient(ids[rows], targets[rows])
        assert np.abs(part.sum(axis=0) - len(part) * whole.mean(axis=0)).max() <= 3


def test_every_patient_has_the_same_chance() -> None:
    """This includes patients with a rare finding and those with several findings."""
    rng = np.random.default_rng(1)
    sick = rng.random((120, 1)) < 0.4
    traits = (rng.random((120, 5)) < np.where(sick, 0.5, 0.05) * [1, 1, 0.6, 0.3, 0.1]).astype(float)
    draws, count = 400, 15
    chosen = np.zeros(120)
    for seed in range(draws):
        chosen[stratified(traits, count, seed)] += 1
    expected = draws * count / 120
    assert np.abs(chosen - expected).max() < 4.5 * np.sqrt(expected)
    for findings in range(4):
        assert chosen[traits.sum(axis=1) == findings].mean() == pytest.approx(expected, rel=0.1)


def test_the_order_of_the_images_does_not_matter() -> None:
    ids, targets = cohort(60)
    order = np.random.default_rng(5).permutation(len(ids))
    one = labelled_rows(ids, targets, 0.3, seed=0)
    other = labelled_rows(ids[order], targets[order], 0.3, seed=0)
    assert sorted(order[other].tolist()) == one.tolist()


def test_subsets_have_at_least_one_patient() -> None:
    assert labelled_rows(["a", "b"], [[1.0], [1.0]], 0.01, seed=0).size == 1


def test_a_subset_of_nobody_is_empty() -> None:
    """Patients without a known label are not drawn, and a loop that draws ends when nobody is left."""
    assert labelled_rows(["a", "b"], [[np.nan], [np.nan]], 1.0, seed=0).size == 0
    assert labelled_rows(["a", "b", "c"], [[np.nan], [1.0], [np.nan]], 1.0, seed=0).tolist() == [1]
    assert sorted(stratified(np.eye(3), 5, seed=0)) == [0, 1, 2]
    assert stratified(np.empty((0, 2)), 1, seed=0).size == 0
