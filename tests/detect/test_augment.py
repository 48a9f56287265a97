import numpy as np
import torch

from components.common.training.warp import warp
from components.detect import augment

SIZE = 64
ROWS = np.arange(6)


def test_boxes_follow_the_pixels() -> None:
    """A warped bright rectangle and its warped box coincide."""
    corners = np.array([[20.0, 24.0, 44.0, 36.0]])
    image = torch.zeros(len(ROWS), 1, SIZE, SIZE)
    image[:, :, 24:36, 20:44] = 1
    drawn = augment.draw(ROWS, seed=3, epoch=1)
    assert np.abs(drawn[:, 0] - 1).max() > 0.03 and np.abs(drawn[:, 1:3]).max() > 0.02  # the warps are large enough to test anything
    for warped, one in zip(warp(image, torch.from_numpy(drawn)), drawn, strict=True):
        rows, columns = np.nonzero(warped[0].numpy() > 0.5)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(augment.warp_boxes(corners, one, SIZE)[0], seen, atol=0.51)


def test_boxes_that_leave_the_image_are_clipped() -> None:
    moved = augment.warp_boxes(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([1.0, -0.05, 0.0, 0.0]), SIZE)
    np.testing.assert_allclose(moved, [[0, 0, 6.8, 10]])


def test_draws_depend_on_row_epoch_and_seed_alone() -> None:
    drawn = augment.draw(ROWS, 0, 0)
    np.testing.assert_array_equal(augment.draw(ROWS[::-1], 0, 0), drawn[::-1])
    assert not np.isclose(augment.draw(ROWS, 0, 1), drawn)[:, :3].any()
    assert not np.isclose(augment.draw(ROWS, 1, 0), drawn)[:, :3].any()
