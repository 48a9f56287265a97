"""Shifts and scales each image and its boxes by a little, the same whenever a step is repeated.

No flips, as elsewhere: a heart on the right is a finding. No rotations: the box around a rotated box is too large.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from components.common.training.seeds import generator_for

SHIFT = 0.05  # largest shift, as a fraction of the side
SCALE = 0.1  # largest relative change of scale


def draw(rows: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.float64]:
    """Draws scale, shift right and shift down (fractions of the side) for each image: (B, 3)."""
    low, high = [1 - SCALE, -SHIFT, -SHIFT], [1 + SCALE, SHIFT, SHIFT]
    return np.stack([generator_for(seed, epoch, int(row)).uniform(low, high) for row in rows])


def warp_images(image_B1SS: Tensor, drawn: npt.NDArray[np.float64]) -> Tensor:
    """Scales images (B, 1, S, S) about the centre and then shifts them, with zeros around."""
    scale, right, down = (torch.from_numpy(column).to(image_B1SS) for column in drawn.T)
    zero = torch.zeros_like(scale)
    # The grid locates the source of each pixel, in a square from -1 to 1.
    theta = torch.stack([1 / scale, zero, -2 * right / scale, zero, 1 / scale, -2 * down / scale], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, list(image_B1SS.shape), align_corners=False)
    return F.grid_sample(image_B1SS, grid, align_corners=False)


def warp_boxes(corners: npt.NDArray[np.float64], drawn: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Scales and shifts boxes of one image, (G, 4) left, top, right, bottom, likewise, and clips them to the square."""
    scale, right, down = drawn
    shift = size * np.array([right, down, right, down])
    moved: npt.NDArray[np.float64] = ((corners - size / 2) * scale + size / 2 + shift).clip(0, size)
    return moved
