"""The two views of an image: mild, no crop and no flip, since a radiograph's sides and borders mean something.

The ranges are those of the authors' code (shift 6 %, scale 20 %, rotation 10 degrees; brightness, contrast, blur or
sharpening, noise, optical distortion). Every sample has its own parameters, drawn from (seed, epoch, index, view), so
that a view does not depend on the batch it is in or on the number of ranks.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

SHIFT = 0.0625
"""Largest shift, as a share of the side."""
SCALE = 0.2
"""Largest change of scale."""
ROTATE = 10.0
"""Largest rotation, in degrees."""
DISTORT = 0.05
"""Largest radial distortion: relative displacement at the middle of a border."""
BRIGHTNESS = 0.2
"""Largest shift of brightness, as a share of the full range."""
CONTRAST = 0.2
"""Largest relative change of contrast."""
NOISE = 0.04
"""Largest standard deviation of the noise, as a share of the full range."""
BLUR_KERNEL = 5
"""Side of the Gaussian kernel that blurs or, subtracted, sharpens, in pixels."""
PROBABILITY = 0.5
"""Of each change of intensity, and of the distortion."""


class Warp(NamedTuple):
    """Geometry of a view, a value a sample."""

    shift: Tensor
    """(B, 2), x and y, as a share of the side."""
    scale: Tensor
    """(B,), above 1 enlarges."""
    angle: Tensor
    """(B,), in radians."""
    distortion: Tensor
    """(B,), radial."""


class Tone(NamedTuple):
    """Intensities of a view, a value a sample; 0 changes nothing."""

    brightness: Tensor
    contrast: Tensor
    blur: Tensor
    """1: blurred; -1: as much sharpened."""
    noise: Tensor
    """(B, 1, H, W), to be added."""


def view(image_B1HW: Tensor, indices: npt.NDArray[np.int64], seed: int, epoch: int, number: int) -> Tensor:
    """A random view of each image.

    Args:
        image_B1HW: (B, 1, H, W), in [0, 1].
        indices: (B,), which image of the split each is.
        seed: of the run.
        epoch: counts from 0.
        number: 0 for the query, 1 for the key.

    Returns:
        (B, 1, H, W), in [0, 1].
    """
    warp, tone = draw(indices, image_B1HW.shape[-1], seed, epoch, number)
    device = image_B1HW.device
    warped = apply_warp(image_B1HW, Warp(*(value.to(device) for value in warp)))
    return apply_tone(warped, Tone(*(value.to(device) for value in tone)))


def draw(indices: npt.NDArray[np.int64], size: int, seed: int, epoch: int, number: int) -> tuple[Warp, Tone]:
    """Parameters of the views of a batch; arguments as in `view`, `size` the side in pixels."""
    generators = [np.random.Generator(np.random.Philox(key=seed, counter=[0, number, epoch, index])) for index in indices]
    values = np.stack([generator.random(14) for generator in generators])
    signed, chosen = 2 * values[:, :8] - 1, values[:, 8:13] < PROBABILITY
    sigma = NOISE * values[:, 13] * chosen[:, 4]
    noise = np.zeros((len(indices), 1, size, size), np.float32)
    for row in np.flatnonzero(sigma):
        noise[row, 0] = sigma[row] * generators[row].standard_normal((size, size), dtype=np.float32)

    def tensor(array: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(array.astype(np.float32))

    warp = Warp(
        shift=tensor(SHIFT * signed[:, :2]),
        scale=tensor(1 + SCALE * signed[:, 2]),
        angle=tensor(np.deg2rad(ROTATE) * signed[:, 3]),
        distortion=tensor(DISTORT * signed[:, 4] * chosen[:, 0]),
    )
    tone = Tone(
        brightness=tensor(BRIGHTNESS * signed[:, 5] * chosen[:, 1]),
        contrast=tensor(CONTRAST * signed[:, 6] * chosen[:, 2]),
        blur=tensor(signed[:, 7] * chosen[:, 3]),
        noise=torch.from_numpy(noise),
    )
    return warp, tone


def sampling_grid(warp: Warp, height: int, width: int) -> Tensor:
    """Where each pixel of the view lies in the image.

    Returns:
        (B, H, W, 2), x and y in [-1, 1] as `torch.nn.functional.grid_sample` takes them.
    """
    device = warp.scale.device
    y = torch.linspace(-1, 1, height, device=device) * (1 - 1 / height)
    x = torch.linspace(-1, 1, width, device=device) * (1 - 1 / width)
    y_HW, x_HW = torch.meshgrid(y, x, indexing="ij")
    # Pixels of the view are moved back: unshift, undo rotation and scale, then distort radially.
    x_BHW = x_HW - 2 * warp.shift[:, 0, None, None]
    y_BHW = y_HW - 2 * warp.shift[:, 1, None, None]
    cos = (warp.angle.cos() / warp.scale)[:, None, None]
    sin = (warp.angle.sin() / warp.scale)[:, None, None]
    x_BHW, y_BHW = cos * x_BHW + sin * y_BHW, cos * y_BHW - sin * x_BHW
    radial = 1 + warp.distortion[:, None, None] * (x_BHW.square() + y_BHW.square())
    return torch.stack([x_BHW * radial, y_BHW * radial], dim=-1)


def apply_warp(image_B1HW: Tensor, warp: Warp) -> Tensor:
    """The image, moved; what lies outside of it is 0."""
    grid = sampling_grid(warp, *image_B1HW.shape[-2:])
    return F.grid_sample(image_B1HW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def apply_tone(image_B1HW: Tensor, tone: Tone) -> Tensor:
    """The image with other intensities, in [0, 1]."""
    blurred = V.gaussian_blur(image_B1HW, [BLUR_KERNEL, BLUR_KERNEL])
    image_B1HW = torch.lerp(image_B1HW, blurred, tone.blur[:, None, None, None])
    mean = image_B1HW.mean(dim=(1, 2, 3), keepdim=True)
    image_B1HW = mean + (image_B1HW - mean) * (1 + tone.contrast[:, None, None, None])
    return (image_B1HW + tone.brightness[:, None, None, None] + tone.noise).clamp(0, 1)
