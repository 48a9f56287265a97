import numpy as np
import torch
from torchvision.transforms import v2

from components.classify import augment
from components.common.training.seeds import seed_for
from components.common.training.warp import warp

ROWS, SIZE = np.arange(5), 64


def test_images_are_moved_as_by_torchvision() -> None:
    transform = v2.RandomAffine(degrees=7, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    torch.manual_seed(0)
    image = torch.rand(len(ROWS), 1, SIZE, SIZE)
    moves = torch.from_numpy(augment.draw(ROWS, SIZE, seed=3, epoch=1))
    found, covered = warp(image, moves), warp(torch.ones_like(image), moves) > 1 - 1e-4
    for ours, each, inside, row in zip(found, image, covered, ROWS, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(3, 1, int(row)))
            theirs = transform(each)
        # At the border of the image torchvision counts the zeros around it twice.
        torch.testing.assert_close(ours[inside], theirs[inside], atol=1e-3, rtol=0)
        assert inside.float().mean() > 0.7
        assert (ours - each).abs().mean() > 0.05


def test_draws_depend_on_row_epoch_and_seed_alone() -> None:
    drawn = augment.draw(ROWS, SIZE, 0, 0)
    np.testing.assert_array_equal(augment.draw(ROWS[::-1], SIZE, 0, 0), drawn[::-1])
    assert not np.isclose(augment.draw(ROWS, SIZE, 0, 1), drawn).all(axis=1).any()
    assert not np.isclose(augment.draw(ROWS, SIZE, 1, 0), drawn).all(axis=1).any()
