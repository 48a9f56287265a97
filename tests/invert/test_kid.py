import itertools

import numpy as np
import pytest

from components.invert import kid as module
from components.invert.kid import kid


def by_loops(x: np.ndarray, y: np.ndarray) -> float:
    """Computes the unbiased estimate of Binkowski et al. 2018, equation 4, with loops over pairs."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3)

    within = [sum(kernel(s[i], s[j]) for i, j in itertools.permutations(range(len(s)), 2)) / (len(s) * (len(s) - 1)) for s in (x, y)]
    across = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    return sum(within) - 2 * across


def features(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)) + shift


def test_kid_agrees_with_the_unbiased_estimator() -> None:
    x, y = features(9), features(7, 0.5, seed=1)
    assert kid(x, y) == pytest.approx(by_loops(x, y), rel=1e-9)


def test_the_mean_over_draws_of_one_distribution_is_zero() -> None:
    values = [kid(features(20, seed=2 * i), features(20, seed=2 * i + 1)) for i in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0 < max(values)


def test_kid_grows_with_the_distance() -> None:
    values = [kid(features(200), features(200, shift, seed=1)) for shift in (0, 0.5, 1)]
    assert values[0] < values[1] < values[2]


def test_a_set_is_at_no_distance_from_itself_when_paired() -> None:
    x = features(30)
    assert kid(x, x, paired=True) == pytest.approx(0, abs=1e-9)
    assert kid(x, x) < -0.1  # unpaired, the similarity of each image to itself biases the estimate


def test_paired_estimate_is_unbiased_for_sets_that_depend_on_each_other() -> None:
    """Shifted copies of x must give the same estimate as independent samples."""
    paired = [kid(x := features(20, seed=i), x + 0.5, paired=True) for i in range(300)]
    independent = [kid(features(20, seed=i), features(20, 0.5, seed=1000 + i)) for i in range(300)]
    spread = np.hypot(np.std(paired), np.std(independent)) / np.sqrt(300)
    assert abs(np.mean(paired) - np.mean(independent)) < 3 * spread


def test_large_sets_are_compared_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 10)
    x, y = features(20), features(19, seed=1)
    assert kid(x, y) == pytest.approx((by_loops(x[:10], y[:10]) + by_loops(x[10:], y[10:])) / 2, rel=1e-9)
