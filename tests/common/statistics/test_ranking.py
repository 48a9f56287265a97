import numpy as np
import pytest
from sklearn import metrics

from components.common.statistics.bootstrap import patient_indices
from components.common.statistics.ranking import auroc, average_precision, bootstrap_ranking, paired_auroc_difference
from tests.common.statistics.conftest import F, N, Sample, duplicated_rows, known

RESAMPLES = 600  # more than a chunk


def test_auroc_and_average_precision_agree_with_scikit_learn(sample: Sample) -> None:
    targets, scores, _ = sample
    for target, score in zip(targets.T, scores.T, strict=True):
        t, s = known(target, score)
        assert auroc(target, score) == pytest.approx(metrics.roc_auc_score(t, s), abs=1e-14)
        assert average_precision(target, score) == pytest.approx(metrics.average_precision_score(t, s), abs=1e-14)


def test_one_class_has_no_auroc() -> None:
    for target in (np.ones(4), np.zeros(4), np.full(4, np.nan)):
        assert np.isnan(auroc(target, np.linspace(0, 1, 4)))
        assert np.isnan(average_precision(target, np.linspace(0, 1, 4)))


def test_bootstrap_equals_the_metric_on_duplicated_rows(sample: Sample) -> None:
    targets, scores, patients = sample
    samples = bootstrap_ranking(targets, scores, patients, RESAMPLES, seed=5)
    one_class = 0
    for b, rows in enumerate(duplicated_rows(patients, RESAMPLES, seed=5)):
        for f in range(F):
            t, s = known(targets[rows, f], scores[rows, f])
            if len(np.unique(t)) < 2:
                one_class += 1
                assert np.isnan(samples.auroc[b, f]) and np.isnan(samples.average_precision[b, f])
                continue
            if b % 5:  # scikit-learn takes a millisecond per resample
                continue
            assert samples.auroc[b, f] == pytest.approx(metrics.roc_auc_score(t, s), abs=1e-14)
            assert samples.average_precision[b, f] == pytest.approx(metrics.average_precision_score(t, s), abs=1e-14)
    assert 0 < one_class < RESAMPLES


def test_results_do_not_depend_on_the_order_of_the_images() -> None:
    rng = np.random.default_rng(0)
    targets, scores, ids = rng.integers(0, 2, (50, 2)).astype(float), rng.random((50, 2)), rng.integers(0, 20, 50).astype(str)
    order = rng.permutation(50)
    one = bootstrap_ranking(targets, scores, patient_indices(ids), 100, seed=1)
    other = bootstrap_ranking(targets[order], scores[order], patient_indices(ids[order]), 100, seed=1)
    np.testing.assert_array_equal(one.auroc, other.auroc)
    np.testing.assert_array_equal(one.average_precision, other.average_precision)


def test_paired_difference_equals_the_naive_loop(sample: Sample) -> None:
    targets, scores, patients = sample
    other = np.clip(scores + np.random.default_rng(8).normal(0, 0.2, scores.shape), 0, 1)
    found = paired_auroc_difference(targets, scores, other, patients, resamples=100, seed=6, min_positives=3)
    differences = []
    for rows in [np.arange(N), *duplicated_rows(patients, 100, seed=6)]:
        macro = [
            np.mean([metrics.roc_auc_score(*known(targets[rows, f], each[rows, f])) for f in (0, 1)])  # finding 2 has only two positives
            for each in (scores, other)
        ]
        differences.append(macro[0] - macro[1])
    assert found.estimate == pytest.approx(differences[0], abs=1e-14)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(differences[1:], [2.5, 97.5])), abs=1e-14)
    assert found.used == 100


def test_paired_difference_of_a_model_to_itself_is_zero() -> None:
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, (40, 2)).astype(float), rng.random((40, 2))
    assert paired_auroc_difference(targets, scores, scores, np.arange(40), 100, 0) == (0, 0, 0, 100)


def test_paired_difference_without_an_evaluable_finding() -> None:
    found = paired_auroc_difference(np.zeros((9, 1)), np.zeros((9, 1)), np.zeros((9, 1)), np.arange(9), 100, 0)
    assert np.isnan(found.estimate) and found.used == 0
