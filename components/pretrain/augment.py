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
BLUR_SIGMA = 1.1
"""Of that kernel."""
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


class View(NamedTuple):
    """Views of a batch."""

    image: Tensor
    """(B, 1, H, W), in [0, 1]."""
    warp: Warp
    """How each was moved."""


class Tone(NamedTuple):
    """Intensities of a view, a value a sample; 0 changes nothing."""

    brightness: Tensor
    contrast: Tensor
    blur: Tensor
    """1: blurred; -1: as much sharpened."""
    noise: Tensor
    """(B, 1, H, W), to be added."""


def view(image_B1HW: Tensor, indices: npt.NDArray[np.int64], seed: int, epoch: int, number: int) -> View:
    """A random view of each image.

    Args:
        image_B1HW: (B, 1, H, W), in [0, 1].
        indices: (B,), which image of the split each is.
        seed: of the run.
        epoch: counts from 0.
        number: 0 for the query, 1 for the key.
    """
    warp, tone = draw(indices, image_B1HW.shape[-1], seed, epoch, number)
    device = image_B1HW.device
    warp, tone = Warp(*(value.to(device) for value in warp)), Tone(*(value.to(device) for value in tone))
    return View(apply_tone(apply_warp(image_B1HW, warp), tone), warp)


def untouched(image_B1HW: Tensor) -> View:
    """The images as views of themselves."""
    batch = len(image_B1HW)
    zero, one = image_B1HW.new_zeros(batch), image_B1HW.new_ones(batch)
    return View(image_B1HW, Warp(shift=image_B1HW.new_zeros(batch, 2), scale=one, angle=zero, distortion=zero))


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
    return to_image(warp, x[None, None, :], y[None, :, None])


def to_image(warp: Warp, x: Tensor, y: Tensor) -> Tensor:
    """Points of the view, in the image: unshifted, rotation and scale undone, then distorted radially.

    Args:
        warp: of the view.
        x: of the points, in [-1, 1] from border to border; to be broadcast to (B, H, W) together with `y`.
        y: likewise.

    Returns:
        (B, H, W, 2), likewise.
    """
    shift_x, shift_y = (2 * warp.shift)[:, None, None].unbind(-1)
    cos = (warp.angle.cos() / warp.scale)[:, None, None]
    sin = (warp.angle.sin() / warp.scale)[:, None, None]
    x, y = x - shift_x, y - shift_y
    x, y = cos * x + sin * y, cos * y - sin * x
    radial = 1 + warp.distortion[:, None, None] * (x.square() + y.square())
    return torch.stack([x * radial, y * radial], dim=-1)


def apply_warp(image_B1HW: Tensor, warp: Warp) -> Tensor:
    """The image, moved; what lies outside of it is 0."""
    grid = sampling_grid(warp, *image_B1HW.shape[-2:])
    return F.grid_sample(image_B1HW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def apply_tone(image_B1HW: Tensor, tone: Tone) -> Tensor:
    """The image with other intensities, in [0, 1]."""
    image_B1HW = torch.lerp(image_B1HW, blur(image_B1HW), tone.blur[:, None, None, None])
    mean = image_B1HW.mean(dim=(1, 2, 3), keepdim=True)
    image_B1HW = mean + (image_B1HW - mean) * (1 + tone.contrast[:, None, None, None])
    return (image_B1HW + tone.brightness[:, None, None, None] + tone.noise).clamp(0, 1)


def blur(image_B1HW: Tensor) -> Tensor:
    """The image through a Gaussian kernel, mirrored at its borders.

    Sums of shifted images: a convolution with one channel keeps a CPU busy ten times as long.
    """
    reach = BLUR_KERNEL // 2
    weights = np.exp(-0.5 * (np.arange(reach + 1) / BLUR_SIGMA) ** 2)
    weights /= 2 * weights.sum() - weights[0]
    for dim, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        padded, size = F.pad(image_B1HW, padding, mode="reflect"), image_B1HW.shape[dim]
        image_B1HW = float(weights[0]) * padded.narrow(dim, reach, size)
        for offset in range(1, reach + 1):
            for start in (reach - offset, reach + offset):
                image_B1HW.add_(padded.narrow(dim, start, size), alpha=float(weights[offset]))
    return image_B1HW
