import numpy as np
import pytest

from components.common.statistics.bootstrap import bootstrap_mean, patient_indices
from components.common.statistics.intervals import Interval, first_clash, percentile_interval
from tests.common.statistics.conftest import duplicated_rows


def test_bootstrap_mean_equals_the_mean_of_duplicated_rows() -> None:
    rng = np.random.default_rng(2)
    values, patients = rng.integers(0, 2, (40, 2)).astype(float), patient_indices(rng.integers(0, 12, 40))
    values[::4, 0] = np.nan
    means = bootstrap_mean(values, patients, 100, seed=9)
    expected = [np.nanmean(values[rows], axis=0) for rows in duplicated_rows(patients, 100, seed=9)]
    np.testing.assert_allclose(means, expected, atol=1e-15)


def test_interval_covers_at_its_level() -> None:
    """About 95 % of the intervals cover the true mean of patients with several equal images; resampling images would cover far fewer."""
    rng = np.random.default_rng(4)
    hits = 0
    for seed in range(200):
        values = np.repeat(rng.normal(size=60), 4)[:, None]
        samples = bootstrap_mean(values, np.repeat(np.arange(60), 4), 300, seed)[:, 0]
        interval = percentile_interval(float(values.mean()), samples, 0.95)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 < hits / 200 < 0.99


def test_percentile_interval_leaves_out_what_is_undefined() -> None:
    interval = percentile_interval(0.5, np.array([np.nan, *np.linspace(0, 1, 101)]), 0.9)
    assert interval == (0.5, pytest.approx(0.05), pytest.approx(0.95), 101)
    assert np.isnan(percentile_interval(0.5, np.array([np.nan]), 0.9).low)


def test_flat_names_the_ends_of_the_interval() -> None:
    assert Interval(0.5, 0.4, 0.6, 9).flat("auroc") == {"auroc": 0.5, "auroc_low": 0.4, "auroc_high": 0.6}


@pytest.mark.parametrize(
    ("names", "clash"),
    [
        (["Nodule", "nodule", "Nodule [L]", "Nodule (L)", "Nodule_L"], None),
        (["Nodule", "Mass", "Nodule_low"], "Nodule_low"),
        (["Mass_high", "Mass"], "Mass"),
        (["Mass", "Mass"], "Mass"),
        (["Mass", "macro"], "macro"),
    ],
)
def test_findings_whose_entries_would_replace_others(names: list[str], clash: str | None) -> None:
    assert first_clash(names, reserved=("macro",)) == clash
