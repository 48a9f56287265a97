"""Differences over seeds and patients, on simulated data whose variances are known."""

from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import norm, ttest_rel

from components.common.statistics.arrays import Floats
from components.common.statistics.differences import bootstrap_p
from components.common.statistics.intervals import percentile_interval
from components.common.statistics.repeated import Repeated, SeedChance, mixed_bootstrap, seed_chance, smallest_effect

PATIENTS, RESAMPLES, STUDIES = 80, 400, 400


class Spread(NamedTuple):
    """Standard deviations of what differs between two methods: by patient, by seed, and by both at once."""

    patients: float
    seeds: float
    both: float


MOSTLY_SEEDS, MOSTLY_PATIENTS = Spread(0.3, 0.2, 1), Spread(1, 0.1, 1)


def studies(methods: int, seeds: int, spread: Spread, effect: float = 0.0) -> tuple[list[Repeated], list[Floats]]:
    """Returns the difference of method 1 from method 0 in many studies, mixed, and with the samples of the patients only."""
    rng = np.random.default_rng(0)
    mixed, patients_only = [], []
    for number in range(STUDIES):
        by_patient = rng.normal(0, spread.patients, (methods, 1, PATIENTS)) * (np.arange(methods) > 0)[:, None, None]
        values = by_patient + rng.normal(0, spread.seeds, (methods, seeds, 1)) + rng.normal(0, spread.both, (methods, seeds, PATIENTS))
        difference = values[1] - values[0] + effect
        weights = rng.multinomial(PATIENTS, np.full(PATIENTS, 1 / PATIENTS), RESAMPLES) / PATIENTS
        samples = difference @ weights.T
        mixed.append(mixed_bootstrap(difference.mean(axis=1), samples, seed_chance(values.mean(axis=2)), number))
        patients_only.append(samples.mean(axis=0))
    return mixed, patients_only


@pytest.mark.parametrize(("methods", "seeds"), [(2, 3), (6, 2), (6, 3), (6, 5)])
@pytest.mark.parametrize("spread", [MOSTLY_SEEDS, MOSTLY_PATIENTS])
def test_intervals_cover_and_false_positives_are_rare(methods: int, seeds: int, spread: Spread) -> None:
    found, patients_only = studies(methods, seeds, spread)
    intervals = [percentile_interval(one.estimate, one.samples, 0.95) for one in found]
    assert np.mean([interval.low <= 0 <= interval.high for interval in intervals]) == pytest.approx(0.955, abs=0.035)
    assert false_positives([one.samples for one in found]) < 0.075
    if spread is MOSTLY_SEEDS:
        assert false_positives(patients_only) > 0.25, "what an interval without the chance of the seeds claims"


def false_positives(samples: list[Floats]) -> float:
    return float(np.mean([bootstrap_p(each) < 0.05 for each in samples]))


def test_the_standard_error_is_that_of_the_estimates() -> None:
    """The crossed design's variance, without counting the interaction twice."""
    for spread in (MOSTLY_SEEDS, MOSTLY_PATIENTS):
        found, _ = studies(6, 3, spread)
        expected = spread.patients**2 / PATIENTS + 2 * spread.seeds**2 / 3 + 2 * spread.both**2 / 3 / PATIENTS
        assert np.var([one.estimate for one in found]) == pytest.approx(expected, rel=0.25)
        assert np.mean([one.error**2 for one in found]) == pytest.approx(expected, rel=0.1)


def test_p_and_interval_agree() -> None:
    for one in studies(6, 3, MOSTLY_PATIENTS, effect=0.3)[0][:50]:
        p = bootstrap_p(one.samples)
        for level, inside in ((1 - 1.2 * p - 0.01, False), (1 - 0.8 * p + 0.01, True)):
            if 0 < level < 1:
                interval = percentile_interval(one.estimate, one.samples, level)
                assert (interval.low <= 0 <= interval.high) is inside


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    smallest = float(np.median([smallest_effect(one, 0.05) for one in studies(6, 5, MOSTLY_PATIENTS)[0]]))
    found, _ = studies(6, 5, MOSTLY_PATIENTS, smallest)
    assert np.mean([bootstrap_p(one.samples) < 0.05 for one in found]) == pytest.approx(0.8, abs=0.06)


def test_the_smallest_effect_of_a_known_error_is_that_of_the_normal_distribution() -> None:
    found = Repeated(0.0, np.zeros(1), 0.02, np.inf)
    assert smallest_effect(found, 0.05 / 7) == pytest.approx(0.02 * (norm.ppf(1 - 0.05 / 14) + norm.ppf(0.8)))
    assert smallest_effect(found._replace(freedom=2.0), 0.05) > 1.5 * smallest_effect(found, 0.05)


def test_with_two_methods_and_no_patients_it_is_the_paired_t_test() -> None:
    values = np.random.default_rng(4).normal(size=(2, 4))
    found = mixed_bootstrap(values[1] - values[0], np.repeat((values[1] - values[0])[:, None], 20_000, axis=1), seed_chance(values), 0)
    expected = ttest_rel(values[1], values[0])
    assert found.estimate / found.error == pytest.approx(expected.statistic)
    assert found.freedom == expected.df
    assert bootstrap_p(found.samples) == pytest.approx(expected.pvalue, abs=0.02)


def test_one_seed_has_the_patients_only() -> None:
    samples = np.random.default_rng(5).normal(size=(1, 100))
    chance = seed_chance(np.array([[0.6], [0.7]]))
    assert chance == SeedChance(0.0, np.inf)
    found = mixed_bootstrap(np.array([0.1]), samples, chance, 0)
    np.testing.assert_array_equal(found.samples, samples[0])
    assert found.error == pytest.approx(samples.std())


def test_undefined_resamples_stay_undefined() -> None:
    samples = np.random.default_rng(6).normal(size=(3, 100))
    samples[:, 7] = np.nan
    found = mixed_bootstrap(np.zeros(3), samples, SeedChance(0.1, 4), 0)
    assert np.flatnonzero(np.isnan(found.samples)).tolist() == [7]
    assert np.isfinite(found.error)
