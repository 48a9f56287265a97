import numpy as np
import pytest

from components.classify.imbalance import set_positive_rates
from components.common.errors import UserError

FINDINGS = ["Mass", "Nodule"]


def cohort() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(300), rng.integers(1, 4, 300))
    targets = (rng.random((len(who), 2)) < [0.3, 0.4]).astype(np.float32)
    targets[::10, 0] = np.nan
    return targets, np.array([f"p{index:03d}" for index in who])


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5, 0.9])
def test_the_rate_is_reached_and_the_other_finding_left_alone(rate: float) -> None:
    targets, patients = cohort()
    subsampled = set_positive_rates(targets, patients, FINDINGS, {"Mass": rate}, seed=1)
    assert np.nanmean(subsampled[:, 0]) == pytest.approx(rate, abs=0.005)
    np.testing.assert_array_equal(subsampled[:, 1], targets[:, 1])
    kept = ~np.isnan(subsampled[:, 0])
    np.testing.assert_array_equal(subsampled[kept], targets[kept])
    # One class is subsampled, the other is left as it is.
    assert (subsampled[:, 0] == float(rate < 0.3)).sum() < (targets[:, 0] == float(rate < 0.3)).sum()
    assert (subsampled[:, 0] == float(rate > 0.3)).sum() == (targets[:, 0] == float(rate > 0.3)).sum()


def test_lower_rates_are_nested_and_by_patient() -> None:
    targets, patients = cohort()
    positives = [
        set(np.flatnonzero(set_positive_rates(targets, patients, FINDINGS, {"Nodule": rate}, 0)[:, 1] == 1)) for rate in (0.02, 0.1, 0.3)
    ]
    assert positives[0] < positives[1] < positives[2]
    lost = np.flatnonzero(targets[:, 1] == 1)
    lost = np.setdiff1d(lost, list(positives[1]))
    # A patient's positives are kept or dropped together, except for one patient who may be split to match the rate.
    assert len(set(patients[lost]) & set(patients[list(positives[1])])) <= 1


def test_two_findings_at_once_and_another_seed() -> None:
    targets, patients = cohort()
    rates = {"Mass": 0.1, "Nodule": 0.02}
    subsampled = set_positive_rates(targets, patients, FINDINGS, rates, seed=0)
    np.testing.assert_allclose(np.nanmean(subsampled, axis=0), [0.1, 0.02], atol=0.003)
    assert not np.array_equal(subsampled, set_positive_rates(targets, patients, FINDINGS, rates, seed=1), equal_nan=True)
    np.testing.assert_array_equal(subsampled, set_positive_rates(targets, patients, FINDINGS, rates, seed=0))


def test_impossible_rates_are_refused() -> None:
    targets, patients = cohort()
    with pytest.raises(UserError, match=r"classify\.positive_rate: Hernia is not a finding of the shards; they have Mass, Nodule"):
        set_positive_rates(targets, patients, FINDINGS, {"Hernia": 0.1}, 0)
    targets[:, 1] = 0
    with pytest.raises(UserError, match=r"classify\.positive_rate: .* only one class of Nodule"):
        set_positive_rates(targets, patients, FINDINGS, {"Nodule": 0.1}, 0)
