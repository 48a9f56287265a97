import numpy as np
import pytest
from scipy.stats import bootstrap, kstest

from components.common.statistics.differences import bootstrap_p, holm


def test_p_is_the_level_at_which_the_percentile_interval_of_scipy_reaches_zero() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(0.0, 1, 80)
    samples = bootstrap((data,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)).bootstrap_distribution
    p = bootstrap_p(samples)
    for level, inside in ((1 - 1.1 * p, False), (1 - 0.9 * p, True)):
        result = bootstrap((data,), np.mean, n_resamples=4000, method="percentile", confidence_level=level, rng=np.random.default_rng(1))
        assert bool(result.confidence_interval.low <= 0 <= result.confidence_interval.high) is inside


def test_p_by_counting() -> None:
    assert bootstrap_p(np.array([-0.1, 0.2, 0.3, 0.4, np.nan])) == pytest.approx(2 * (1 + 1) / (4 + 1))
    assert bootstrap_p(np.array([0.1, 0.2, 0.3])) == pytest.approx(2 * 1 / 4)
    assert bootstrap_p(np.zeros(9)) == 1
    assert np.isnan(bootstrap_p(np.array([np.nan])))


def test_p_is_uniform_when_there_is_no_difference() -> None:
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(300):
        data = rng.normal(size=60)
        p_values.append(bootstrap_p(data[rng.integers(0, 60, (500, 60))].mean(axis=1)))
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_holm_step_by_step() -> None:
    """Sorted: 0.01 * 4 = 0.04, 0.02 * 3 = 0.06, 0.03 * 2 = 0.06, and 0.04 * 1, raised to 0.06 to keep the order."""
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, np.nan, 0.03, 0.02])), [0.06, 0.04, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1, 1])
    assert holm(np.array([])).size == 0


def test_holm_rejects_exactly_what_its_definition_rejects() -> None:
    """Step-down procedure of Holm (1979): go through the sorted p-values, stop at the first above alpha / (m - k)."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        p = rng.random(6) ** 3
        rejected = set()
        for k, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - k):
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(holm(p) <= 0.05).tolist()) == rejected
