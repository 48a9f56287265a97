import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import binom, ks_2samp

from components.common.statistics.shift import (
    compare_counts,
    compare_features,
    frechet_distance,
    kolmogorov_smirnov,
    population_stability_index,
)


def counts(values: np.ndarray, bins: int = 20) -> np.ndarray:
    return np.bincount(values, minlength=bins)


@pytest.mark.parametrize("sizes", [(300, 40), (30, 500), (5, 1)])
def test_kolmogorov_smirnov_is_that_of_scipy(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(sizes))
    first, second = rng.binomial(19, 0.4, sizes[0]), rng.binomial(19, 0.5, sizes[1])
    assert kolmogorov_smirnov(counts(first), counts(second)) == pytest.approx(ks_2samp(first, second).statistic)


def test_population_stability_index_by_hand() -> None:
    reference, batch = np.array([49, 30, 19]), np.array([3, 0, 7])
    r, b = [49.5 / 99.5, 30.5 / 99.5, 19.5 / 99.5], [3.5 / 11.5, 0.5 / 11.5, 7.5 / 11.5]
    expected = sum((y - x) * np.log(y / x) for x, y in zip(r, b, strict=True))
    assert population_stability_index(reference, batch) == pytest.approx(expected)


def test_frechet_distance_is_that_of_a_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(30, 4)) @ rng.normal(size=(4, 4)) + 1
    c, d = np.cov(x.T, ddof=0), np.cov(y.T, ddof=0)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert frechet_distance(x, y) == pytest.approx(expected)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("batch", [3, 20, 400])
def test_false_alarms_at_the_stated_rate(batch: int) -> None:
    """Without any change, p is below 0.1 in at most one of ten batches of any size, and not in much fewer."""
    rng = np.random.default_rng(batch)
    draws, level = 300, 0.1
    p_values = []
    for _ in range(draws):
        reference, new = (counts(rng.binomial(19, 0.3, size)) for size in (100, batch))
        p_values.append([compare_counts(f, reference, new, 99, rng).p for f in (population_stability_index, kolmogorov_smirnov)])
    alarms = (np.array(p_values) <= level).sum(0)
    assert (alarms <= binom.ppf(0.999, draws, level)).all()
    assert (alarms >= 0.2 * level * draws).all()  # ties make small batches cautious


def test_false_alarms_of_features() -> None:
    rng = np.random.default_rng(1)
    draws = 100
    alarms = sum(compare_features(rng.standard_t(3, (40, 3)), rng.standard_t(3, (15, 3)), 39, rng).p <= 0.1 for _ in range(draws))
    assert binom.ppf(0.001, draws, 0.1) <= alarms <= binom.ppf(0.999, draws, 0.1)


def test_changes_are_seen() -> None:
    rng = np.random.default_rng(2)
    before, after = counts(rng.binomial(19, 0.3, 100)), counts(rng.binomial(19, 0.6, 30))
    for statistic in (population_stability_index, kolmogorov_smirnov):
        shift = compare_counts(statistic, before, after, 999, rng)
        assert shift.p == 1 / 1000 and shift.value > 2 * shift.expected
    assert compare_features(rng.normal(size=(60, 3)), rng.normal(1, 1, (20, 3)), 199, rng).p == 1 / 200
