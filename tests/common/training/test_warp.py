import math

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import affine

from components.common.training.warp import warp

SIZE = 32


def test_a_batch_is_moved_as_torchvision_moves_each_image() -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 1, SIZE, SIZE)
    moves = [(1.1, 2 / SIZE, 0.0, math.radians(7)), (0.9, 0.0, -1 / SIZE, math.radians(-3)), (1.0, 0.0, 0.0, 0.0)]
    found = warp(image, torch.tensor(moves, dtype=torch.float64))
    for ours, each, (scale, right, down, angle) in zip(found, image, moves, strict=True):
        shift = [right * SIZE, down * SIZE]
        expected = affine(each, math.degrees(angle), shift, scale, [0, 0], InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[2], image[2])
