import numpy as np
import torch
from torchvision.transforms import v2

from components.classify import augment
from components.common.training.seeds import seed_for
from components.common.training.warp import warp

ROWS, SIZE = np.arange(5), 64


def test_images_are_moved_as_by_torchvision() -> None:
    transform = v2.RandomAffine(degrees=7, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    image = torch.rand(len(ROWS), 1, SIZE, SIZE)
    found = warp(image, torch.from_numpy(augment.draw(ROWS, SIZE, seed=3, epoch=1)))
    for ours, each, row in zip(found, image, ROWS, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(3, 1, int(row)))
            theirs = transform(each)
        inside = (theirs > 0) & (ours > 0)
        differs = (ours - theirs).abs() > 1e-3
        # torchvision counts the zeros around the image twice at its border.
        border = torch.nn.functional.max_pool2d((~inside).float(), 5, stride=1, padding=2) > 0
        assert not (differs & ~border).any()
        assert (ours[~border] > 0).float().sum() > 0.7 * SIZE**2
        assert (ours - each).abs().mean() > 0.05


def test_draws_depend_on_row_epoch_and_seed_alone() -> None:
    drawn = augment.draw(ROWS, SIZE, 0, 0)
    np.testing.assert_array_equal(augment.draw(ROWS[::-1], SIZE, 0, 0), drawn[::-1])
    assert not np.isclose(augment.draw(ROWS, SIZE, 0, 1), drawn).all(axis=1).any()
    assert not np.isclose(augment.draw(ROWS, SIZE, 1, 0), drawn).all(axis=1).any()
