import numpy as np
import pytest
from sklearn import metrics as sklearn

from components.common.statistics import metrics
from components.common.statistics.metrics import Floats, Integers

RESAMPLES = 600  # more than a chunk
N, F, P = 90, 3, 37


@pytest.fixture(params=["continuous", "ties", "all tied", "with unknowns"])
def sample(request: pytest.FixtureRequest) -> tuple[Floats, Floats, Integers]:
    """Targets, scores and patients; finding 2 is so rare that many resamples lack it."""
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
    return targets, scores, metrics.patient_indices(rng.integers(0, P, N).astype(str))


def known(targets: Floats, scores: Floats) -> tuple[Floats, Floats]:
    there = ~np.isnan(targets)
    return targets[there], scores[there]


def duplicated_rows(patients: Integers, resamples: int, seed: int) -> list[Integers]:
    """The bootstrap written out: for each resample, the rows of every draw of a patient."""
    generator = np.random.default_rng(seed)
    count = len(set(patients.tolist()))
    rows = []
    for _ in range(resamples):
        drawn = generator.integers(0, count, count)
        rows.append(np.concatenate([np.flatnonzero(patients == patient) for patient in drawn]))
    return rows


def test_auroc_and_average_precision_are_scikit_learns(sample: tuple[Floats, Floats, Integers]) -> None:
    targets, scores, _ = sample
    for target, score in zip(targets.T, scores.T, strict=True):
        t, s = known(target, score)
        assert metrics.auroc(target, score) == pytest.approx(sklearn.roc_auc_score(t, s), abs=1e-14)
        assert metrics.average_precision(target, score) == pytest.approx(sklearn.average_precision_score(t, s), abs=1e-14)


def test_roc_curve_is_scikit_learns(sample: tuple[Floats, Floats, Integers]) -> None:
    curve = metrics.roc_curve(sample[0][:, 0], sample[1][:, 0])
    fpr, tpr, thresholds = sklearn.roc_curve(*known(sample[0][:, 0], sample[1][:, 0]), drop_intermediate=False)
    np.testing.assert_allclose(curve.x, fpr, atol=1e-15)
    np.testing.assert_allclose(curve.y, tpr, atol=1e-15)
    np.testing.assert_array_equal(curve.thresholds, thresholds)


def test_precision_recall_curve_is_scikit_learns(sample: tuple[Floats, Floats, Integers]) -> None:
    curve = metrics.precision_recall_curve(sample[0][:, 1], sample[1][:, 1])
    precision, recall, thresholds = sklearn.precision_recall_curve(*known(sample[0][:, 1], sample[1][:, 1]))
    np.testing.assert_allclose(curve.x, recall[::-1], atol=1e-15)
    np.testing.assert_allclose(curve.y, precision[::-1], atol=1e-15)
    np.testing.assert_array_equal(curve.thresholds[1:], thresholds[::-1])


def test_one_class_has_no_auroc() -> None:
    for target in (np.ones(4), np.zeros(4), np.full(4, np.nan)):
        assert np.isnan(metrics.auroc(target, np.linspace(0, 1, 4)))
        assert np.isnan(metrics.average_precision(target, np.linspace(0, 1, 4)))
        assert np.isnan(metrics.youden_threshold(target, np.linspace(0, 1, 4)))


def test_bootstrap_equals_the_metric_on_duplicated_rows(sample: tuple[Floats, Floats, Integers]) -> None:
    targets, scores, patients = sample
    samples = metrics.bootstrap_ranking(targets, scores, patients, RESAMPLES, seed=5)
    one_class = 0
    for b, rows in enumerate(duplicated_rows(patients, RESAMPLES, seed=5)):
        for f in range(F):
            t, s = known(targets[rows, f], scores[rows, f])
            if len(np.unique(t)) < 2:
                one_class += 1
                assert np.isnan(samples.auroc[b, f]) and np.isnan(samples.average_precision[b, f])
                continue
            if b % 5:  # scikit-learn takes a millisecond each
                continue
            assert samples.auroc[b, f] == pytest.approx(sklearn.roc_auc_score(t, s), abs=1e-14)
            assert samples.average_precision[b, f] == pytest.approx(sklearn.average_precision_score(t, s), abs=1e-14)
    assert 0 < one_class < RESAMPLES


def test_order_of_the_images_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    targets, scores, ids = rng.integers(0, 2, (50, 2)).astype(float), rng.random((50, 2)), rng.integers(0, 20, 50).astype(str)
    order = rng.permutation(50)
    one = metrics.bootstrap_ranking(targets, scores, metrics.patient_indices(ids), 100, seed=1)
    other = metrics.bootstrap_ranking(targets[order], scores[order], metrics.patient_indices(ids[order]), 100, seed=1)
    np.testing.assert_array_equal(one.auroc, other.auroc)
    np.testing.assert_array_equal(one.average_precision, other.average_precision)


def test_youden_threshold_by_trying_all_scores() -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 60).astype(float)
    score = np.round(np.clip(rng.normal(0.4 + 0.2 * target, 0.2), 0, 1), 1)
    by_hand = {t: (score[target == 1] >= t).mean() + (score[target == 0] < t).mean() for t in score}
    assert metrics.youden_threshold(target, score) in [t for t in by_hand if by_hand[t] == pytest.approx(max(by_hand.values()), abs=1e-12)]


def test_youden_threshold_takes_the_highest_of_equals_and_is_a_score_even_below_chance() -> None:
    # Youden's index is 0.5 at 0.8 and at 0.2.
    assert metrics.youden_threshold(np.array([1, 0, 1, 0.0]), np.array([0.8, 0.5, 0.2, 0.1])) == 0.8
    assert metrics.youden_threshold(np.array([0, 1.0]), np.array([0.9, 0.1])) == 0.1


def test_sensitivity_threshold_is_the_highest_that_reaches_it() -> None:
    rng = np.random.default_rng(7)
    target = rng.integers(0, 2, 80).astype(float)
    score = np.round(np.clip(rng.normal(0.4 + 0.2 * target, 0.2), 0, 1), 2)
    for wanted in (0.5, 0.9, 1.0):
        reaching = [t for t in score if (score[target == 1] >= t).mean() >= wanted]
        assert metrics.sensitivity_threshold(target, score, wanted) == max(reaching)
    assert np.isnan(metrics.sensitivity_threshold(np.ones(3), np.ones(3), 0.9))


def test_correct_counts_the_threshold_itself_as_positive() -> None:
    targets, scores = np.array([[1, 0], [0, 1], [np.nan, 1.0]]), np.array([[0.5, 0.5], [0.4, 0.9], [0.9, 0.9]])
    np.testing.assert_array_equal(metrics.correct(targets, scores, np.array([0.5, np.nan])), [[1, np.nan], [1, np.nan], [np.nan, np.nan]])


def test_bootstrap_mean_equals_the_mean_of_duplicated_rows() -> None:
    rng = np.random.default_rng(2)
    values, patients = rng.integers(0, 2, (40, 2)).astype(float), metrics.patient_indices(rng.integers(0, 12, 40))
    values[::4, 0] = np.nan
    means = metrics.bootstrap_mean(values, patients, 100, seed=9)
    expected = [np.nanmean(values[rows], axis=0) for rows in duplicated_rows(patients, 100, seed=9)]
    np.testing.assert_allclose(means, expected, atol=1e-15)


def test_interval_covers_at_its_level() -> None:
    """Of intervals for the mean of patients with several equal images, about 95 % hold the truth; by image it would be far fewer."""
    rng = np.random.default_rng(4)
    hits = 0
    for seed in range(200):
        values = np.repeat(rng.normal(size=60), 4)[:, None]
        samples = metrics.bootstrap_mean(values, np.repeat(np.arange(60), 4), 300, seed)[:, 0]
        interval = metrics.percentile_interval(float(values.mean()), samples, 0.95)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 < hits / 200 < 0.99


def test_percentile_interval_leaves_out_what_is_undefined() -> None:
    interval = metrics.percentile_interval(0.5, np.array([np.nan, *np.linspace(0, 1, 101)]), 0.9)
    assert interval == (0.5, pytest.approx(0.05), pytest.approx(0.95), 101)
    assert np.isnan(metrics.percentile_interval(0.5, np.array([np.nan]), 0.9).low)


def test_paired_difference_equals_the_naive_loop(sample: tuple[Floats, Floats, Integers]) -> None:
    targets, scores, patients = sample
    other = np.clip(scores + np.random.default_rng(8).normal(0, 0.2, scores.shape), 0, 1)
    found = metrics.paired_auroc_difference(targets, scores, other, patients, resamples=100, seed=6, min_positives=3)
    differences = []
    for rows in [np.arange(N), *duplicated_rows(patients, 100, seed=6)]:
        macro = [
            np.mean([sklearn.roc_auc_score(*known(targets[rows, f], each[rows, f])) for f in (0, 1)])  # 2 has two positives
            for each in (scores, other)
        ]
        differences.append(macro[0] - macro[1])
    assert found.estimate == pytest.approx(differences[0], abs=1e-14)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(differences[1:], [2.5, 97.5])), abs=1e-14)
    assert found.used == 100


def test_paired_difference_of_a_model_to_itself_is_zero() -> None:
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, (40, 2)).astype(float), rng.random((40, 2))
    assert metrics.paired_auroc_difference(targets, scores, scores, np.arange(40), 100, 0) == (0, 0, 0, 100)


def test_paired_difference_without_a_finding_that_counts() -> None:
    found = metrics.paired_auroc_difference(np.zeros((9, 1)), np.zeros((9, 1)), np.zeros((9, 1)), np.arange(9), 100, 0)
    assert np.isnan(found.estimate) and found.used == 0
