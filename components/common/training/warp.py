"""Moves the images of a batch, each by numbers of its own, in one pass over the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(image_B1SS: Tensor, moves_B4: Tensor) -> Tensor:
    """Scales and rotates square images about the centre and then shifts them, with zeros around.

    Moves are scale, shift right, shift down (fractions of the side) and clockwise angle (radians).
    """
    scale, right, down, angle = moves_B4.to(image_B1SS).unbind(1)
    cos, sin = angle.cos(), angle.sin()
    # The grid locates the source of each pixel, in a square from -1 to 1.
    x = [cos / scale, sin / scale, -2 * (cos * right + sin * down) / scale]
    y = [-sin / scale, cos / scale, -2 * (cos * down - sin * right) / scale]
    grid = F.affine_grid(torch.stack([*x, *y], dim=1).view(-1, 2, 3), list(image_B1SS.shape), align_corners=False)
    return F.grid_sample(image_B1SS, grid, align_corners=False)
