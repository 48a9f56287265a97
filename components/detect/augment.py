"""Shifts and scales each image and its boxes by a little, the same whenever a step is repeated.

No flips, as elsewhere: a heart on the right is a finding. No rotations: the box around a rotated box is too large.
"""

import numpy as np
import numpy.typing as npt

from components.common.training.seeds import generator_for

SHIFT = 0.05  # largest shift, as a fraction of the side
SCALE = 0.1  # largest relative change of scale


def draw(rows: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.float64]:
    """Draws the moves of each image, (B, 4), as components/common/training/warp.py takes them."""
    low, high = [1 - SCALE, -SHIFT, -SHIFT, 0], [1 + SCALE, SHIFT, SHIFT, 0]
    return np.stack([generator_for(seed, epoch, int(row)).uniform(low, high) for row in rows])


def warp_boxes(corners: npt.NDArray[np.float64], moves: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Scales and shifts boxes of one image, (G, 4) left, top, right, bottom, as `warp` does the image, and clips them to the square."""
    scale, right, down, _ = moves
    shift = size * np.array([right, down, right, down])
    moved: npt.NDArray[np.float64] = ((corners - size / 2) * scale + size / 2 + shift).clip(0, size)
    return moved
