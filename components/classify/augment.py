"""Draws a small shift, rotation and scale for each image, the same whenever a step is repeated."""

import math

import numpy as np
import numpy.typing as npt
import torch

from components.common.training.seeds import seed_for

ROTATION = 7.0  # largest angle in degrees
SHIFT = 0.05  # largest shift, as a fraction of the side; shifts are whole pixels
SCALE = 0.1  # largest relative change of scale


def draw(rows: npt.NDArray[np.int64], size: int, seed: int, epoch: int) -> npt.NDArray[np.float64]:
    """Draws the moves of images of a side of `size` pixels, (B, 4), as components/common/training/warp.py takes them."""
    limits = [(-ROTATION, ROTATION), *[(-SHIFT * size, SHIFT * size)] * 2, (1 - SCALE, 1 + SCALE)]
    moves = []
    for row in rows:
        generator = torch.Generator().manual_seed(seed_for(seed, epoch, int(row)))
        angle, right, down, scale = (torch.empty(1).uniform_(*limit, generator=generator).item() for limit in limits)
        moves.append([scale, round(right) / size, round(down) / size, math.radians(angle)])
    return np.array(moves)
