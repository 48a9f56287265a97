import numpy as np
import pytest

from components.common.training.order import STREAMS, epoch_order

GROUPS = [np.arange(10 * n, 10 * n + 10) for n in range(64)]


def rng(epoch: int = 0) -> np.random.Generator:
    return np.random.default_rng((0, epoch))


@pytest.mark.parametrize("batch_size", [1, 7, 16, 48, 640, 641])
@pytest.mark.parametrize("span", [0, 15, 1000])
@pytest.mark.parametrize("count", [1, 16, 17, 64])
def test_an_epoch_has_each_row_at_most_once(count: int, span: int, batch_size: int) -> None:
    rows = epoch_order(GROUPS[:count], batch_size, span, rng())
    assert rows.shape == (10 * count // batch_size, batch_size)
    assert len(np.unique(rows)) == rows.size
    assert set(rows.flat) <= set(range(10 * count))


def test_a_slice_of_the_batches_comes_from_its_own_row_groups() -> None:
    rows = epoch_order(GROUPS, 32, 15, rng())
    for ranks in (2, 4, 8, 16):
        groups = [set((part // 10).flat) for part in np.split(rows, ranks, axis=1)]
        assert sum(map(len, groups)) <= len(GROUPS) + STREAMS - 1


def test_a_row_moves_by_no_more_than_the_span() -> None:
    """So that no more than the rows of a span, and of a row group, wait at a time."""
    groups = [np.arange(10 * n, 10 * n + 10) for n in range(1600)]
    rows = epoch_order(groups, 16, 50, rng())
    for stream in rows.T:
        first = {group: place for place, group in reversed(list(enumerate(stream // 10)))}
        last = {group: place for place, group in enumerate(stream // 10)}
        waits = [last[group] - first[group] for group in first]
        assert 40 < np.median(waits) < max(waits) <= 2 * 60


def test_rows_that_are_left_out_are_any() -> None:
    missed = [np.setdiff1d(np.arange(640), epoch_order(GROUPS, 600, 15, rng(epoch))) for epoch in range(100)]
    counts = np.bincount(np.concatenate(missed), minlength=640)
    assert counts.max() < 20  # 6.25 on average
    assert abs(np.bincount(np.concatenate(missed) % 10).mean() - 400) < 1e-9
    assert np.bincount(np.concatenate(missed) % 10).max() < 480
