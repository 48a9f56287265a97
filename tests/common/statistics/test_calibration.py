import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import binary_cross_entropy_with_logits

from components.common.statistics.bootstrap import bootstrap_mean, patient_indices, resampled_weights
from components.common.statistics.calibration import BINS, fit_temperature, negative_log_likelihood, recalibration, reliability


def overconfident(scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns targets and logits that are `scale` times the true ones; 10 % of the targets are unknown."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1.5, (4000, 3))
    targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    return targets, scale * logits


def test_temperature_is_what_scipy_finds_and_undoes_the_scale() -> None:
    targets, logits = overconfident()
    found = fit_temperature(targets, logits)

    def likelihood(temperature: float) -> float:
        return negative_log_likelihood(targets, logits / temperature)

    best = minimize_scalar(likelihood, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(best.x, abs=1e-5)
    assert found == pytest.approx(3.0, rel=0.05)


def test_likelihood_agrees_with_torch() -> None:
    targets, logits = overconfident()
    known = ~np.isnan(targets)
    expected = binary_cross_entropy_with_logits(torch.from_numpy(logits[known]), torch.from_numpy(targets[known]))
    assert negative_log_likelihood(targets, logits) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_likelihood_never_gets_worse(seed: int) -> None:
    """Includes logits that contradict the targets or separate them perfectly."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (8, 1)).astype(float)
    logits = rng.normal(0, 3, (8, 1)) + rng.choice([-9, 0, 9]) * (targets - 0.5)
    temperature = fit_temperature(targets, logits)
    assert 0.05 <= temperature <= 20
    assert negative_log_likelihood(targets, logits / temperature) <= negative_log_likelihood(targets, logits) + 1e-12


def test_temperature_is_one_without_known_targets() -> None:
    assert fit_temperature(np.full((3, 2), np.nan), np.ones((3, 2))) == 1


def test_reliability_curve_agrees_with_scikit_learn() -> None:
    targets, logits = overconfident()
    target, score = targets[:, 0], 1 / (1 + np.exp(-logits[:, 0]))
    found = reliability(target, score)
    known = ~np.isnan(target)
    share, mean = calibration_curve(target[known], score[known], n_bins=BINS)
    np.testing.assert_allclose(found.share, share, atol=1e-14)
    np.testing.assert_allclose(found.score, mean, atol=1e-14)
    assert found.images.sum() == known.sum()


def test_expected_calibration_error_written_out() -> None:
    """Bins: [0, 0.1) has 2 scores and no positive, [0.7, 0.8) has 3 scores and 2 positives, [0.9, 1] has 1 score and 1 positive."""
    targets = np.array([0, 0, 1, 1, 0, 1, np.nan])
    scores = np.array([0.02, 0.04, 0.7, 0.7, 0.76, 1.0, 0.5])
    found = reliability(targets, scores)
    assert found.images.tolist() == [2, 3, 1]
    assert found.error == pytest.approx((2 * 0.03 + 3 * abs(0.72 - 2 / 3) + 1 * 0) / 6)
    assert np.isnan(reliability(np.array([np.nan]), np.array([0.5])).error)


def by_scikit_learn(targets: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Returns calibration intercept and slope of (n,) targets and scores; the intercept is where the mean score is the prevalence."""
    odds = np.log(scores / (1 - scores))
    slope = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds[:, None], targets).coef_[0, 0]
    return brentq(lambda shift: (1 / (1 + np.exp(-odds - shift)) - targets).sum(), -20, 20), slope


def test_intercept_and_slope_agree_with_scikit_learn() -> None:
    targets, logits = overconfident()
    scores = 1 / (1 + np.exp(-logits + 0.5))
    found = recalibration(targets, scores)
    for index in range(3):
        known = ~np.isnan(targets[:, index])
        intercept, slope = by_scikit_learn(targets[known, index], scores[known, index])
        assert found.intercept[index] == pytest.approx(intercept, abs=1e-6)
        assert found.slope[index] == pytest.approx(slope, abs=1e-4)
    assert found.slope == pytest.approx(1 / 3, rel=0.1)


def test_intervals_of_intercept_and_slope_are_those_of_complete_fits() -> None:
    targets, logits = overconfident()
    targets, scores = targets[:300, :1], 1 / (1 + np.exp(-logits[:300, :1]))
    patients = patient_indices(np.arange(300) // 2)
    found = recalibration(targets, scores)
    names = list(found.terms)
    means = bootstrap_mean(np.concatenate(list(found.terms.values()), axis=1), patients, 200, 0)
    samples = found.resampled(dict(zip(names, np.split(means, len(names), axis=1), strict=True)))
    weights = np.concatenate(list(resampled_weights(150, 200, 0)), axis=1)[patients]
    known = ~np.isnan(targets[:, 0])
    drawn = [np.repeat(np.flatnonzero(known), column[known]) for column in weights.T]
    complete = np.array([by_scikit_learn(targets[rows, 0], scores[rows, 0]) for rows in drawn]).T
    for fast, slow in zip(samples, complete, strict=True):
        assert np.corrcoef(fast[:, 0], slow)[0, 1] > 0.98
        np.testing.assert_allclose(np.quantile(fast, [0.025, 0.975]), np.quantile(slow, [0.025, 0.975]), atol=0.15 * np.ptp(slow))


def test_intercept_and_slope_may_be_undefined() -> None:
    targets = np.array([[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1], [0, 1, 1, 0]], float)
    scores = np.array([[0.1, 0.1, 0.5, 0.0], [0.2, 0.2, 0.5, 1.0], [0.3, 0.8, 0.5, 1.0], [0.4, 0.9, 0.5, 0.0]])
    found = recalibration(targets, scores)  # one class; separated; constant; scores of 0 and 1
    assert np.isnan(found.slope).tolist() == [True, True, True, False]
    assert np.isnan(found.intercept).tolist() == [True, False, False, False]
    assert found.intercept[2] == pytest.approx(0) and found.slope[3] == pytest.approx(0)
