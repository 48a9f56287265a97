import numpy as np
import pytest
from sklearn import metrics

from components.common.statistics.curves import Curve, precision_recall_curve, roc_curve, sensitivity_threshold, thin, youden_threshold
from tests.common.statistics.conftest import Sample, known


def test_roc_curve_agrees_with_scikit_learn(sample: Sample) -> None:
    curve = roc_curve(sample[0][:, 0], sample[1][:, 0])
    fpr, tpr, thresholds = metrics.roc_curve(*known(sample[0][:, 0], sample[1][:, 0]), drop_intermediate=False)
    np.testing.assert_allclose(curve.x, fpr, atol=1e-15)
    np.testing.assert_allclose(curve.y, tpr, atol=1e-15)
    np.testing.assert_array_equal(curve.thresholds, thresholds)


def test_precision_recall_curve_agrees_with_scikit_learn(sample: Sample) -> None:
    curve = precision_recall_curve(sample[0][:, 1], sample[1][:, 1])
    precision, recall, thresholds = metrics.precision_recall_curve(*known(sample[0][:, 1], sample[1][:, 1]))
    np.testing.assert_allclose(curve.x, recall[::-1], atol=1e-15)
    np.testing.assert_allclose(curve.y, precision[::-1], atol=1e-15)
    np.testing.assert_array_equal(curve.thresholds[1:], thresholds[::-1])


def test_youden_threshold_by_trying_all_scores() -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 60).astype(float)
    score = np.round(np.clip(rng.normal(0.4 + 0.2 * target, 0.2), 0, 1), 1)
    by_hand = {t: (score[target == 1] >= t).mean() + (score[target == 0] < t).mean() for t in score}
    assert youden_threshold(target, score) in [t for t in by_hand if by_hand[t] == pytest.approx(max(by_hand.values()), abs=1e-12)]


def test_youden_threshold_takes_the_highest_of_equals_and_is_a_score_even_below_chance() -> None:
    # Youden's index is 0.5 at both 0.8 and 0.2.
    assert youden_threshold(np.array([1, 0, 1, 0.0]), np.array([0.8, 0.5, 0.2, 0.1])) == 0.8
    assert youden_threshold(np.array([0, 1.0]), np.array([0.9, 0.1])) == 0.1
    assert np.isnan(youden_threshold(np.ones(4), np.linspace(0, 1, 4)))


def test_sensitivity_threshold_is_the_highest_that_reaches_it() -> None:
    rng = np.random.default_rng(7)
    target = rng.integers(0, 2, 80).astype(float)
    score = np.round(np.clip(rng.normal(0.4 + 0.2 * target, 0.2), 0, 1), 2)
    for wanted in (0.5, 0.9, 1.0):
        reaching = [t for t in score if (score[target == 1] >= t).mean() >= wanted]
        assert sensitivity_threshold(target, score, wanted) == max(reaching)
    assert np.isnan(sensitivity_threshold(np.ones(3), np.ones(3), 0.9))


def test_thin_leaves_out_straight_runs_only() -> None:
    curve = Curve(np.array([0, 0, 0, 0.5, 1.0]), np.array([0, 0.2, 0.6, 0.6, 1.0]), np.zeros(5))
    assert thin(curve) == [(0, 0), (0, 0.6), (0.5, 0.6), (1, 1)]


def test_thin_keeps_the_ends_and_the_area_of_long_curves() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 5000).astype(float)
    curve = roc_curve(target, rng.random(5000) + 0.5 * target)
    points = np.array(thin(curve, 200))
    assert len(points) == 200
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(np.trapezoid(curve.y, curve.x), abs=5e-3)
