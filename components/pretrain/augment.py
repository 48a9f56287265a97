"""Makes the two views of an image: mild, without crop or flip, since the sides and borders of a radiograph carry meaning.

The ranges are those of the authors' code (shift 6 %, scale 20 %, rotation 10 degrees; brightness, contrast, blur or sharpening,
noise, optical distortion). Every sample has its own parameters, drawn from (seed, epoch, index, view), so that a view depends
neither on its batch nor on the number of ranks.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from components.common.training.seeds import image_generator

SHIFT = 0.0625  # largest shift, as a fraction of the side
SCALE = 0.2  # largest relative change of scale
ROTATE = 10.0  # largest rotation, in degrees
DISTORT = 0.05  # largest radial distortion: relative displacement at the centre of a border
BRIGHTNESS = 0.2  # largest shift of brightness, as a fraction of the full range
CONTRAST = 0.2  # largest relative change of contrast
NOISE = 0.04  # largest standard deviation of the noise, as a fraction of the full range
BLUR_KERNEL = 5  # side in pixels of the Gaussian kernel that blurs or, subtracted, sharpens
BLUR_SIGMA = 1.1  # its standard deviation in pixels
PROBABILITY = 0.5  # probability of the distortion and of each change of intensity


class Warp(NamedTuple):
    """Geometry of a view, one value per sample."""

    shift: Tensor  # (B, 2), x and y, as a fraction of the side
    scale: Tensor  # (B,), above 1 enlarges
    angle: Tensor  # (B,), in radians
    distortion: Tensor  # (B,), radial


class View(NamedTuple):
    """Views of a batch."""

    image: Tensor  # (B, 1, H, W), in [0, 1]
    warp: Warp  # how each was warped


class Tone(NamedTuple):
    """Changes of intensity of a view, one value per sample; 0 changes nothing."""

    brightness: Tensor
    contrast: Tensor
    blur: Tensor  # 1: blurred; -1: sharpened as much
    noise: Tensor  # (B, 1, H, W), added to the image


def view(image_B1HW: Tensor, indices: npt.NDArray[np.int64], seed: int, epoch: int, number: int) -> View:
    """Makes a random view in [0, 1] of each image at positions `indices` (B,) of the split; `number` is 0 for queries, 1 for keys."""
    warp, tone = draw(indices, image_B1HW.shape[-1], seed, epoch, number)
    device = image_B1HW.device
    warp, tone = Warp(*(value.to(device) for value in warp)), Tone(*(value.to(device) for value in tone))
    return View(apply_tone(apply_warp(image_B1HW, warp), tone), warp)


def untouched(image_B1HW: Tensor) -> View:
    """Returns the images as views of themselves."""
    batch = len(image_B1HW)
    zero, one = image_B1HW.new_zeros(batch), image_B1HW.new_ones(batch)
    return View(image_B1HW, Warp(shift=image_B1HW.new_zeros(batch, 2), scale=one, angle=zero, distortion=zero))


def draw(indices: npt.NDArray[np.int64], size: int, seed: int, epoch: int, number: int) -> tuple[Warp, Tone]:
    """Draws the parameters of the views of a batch; arguments as for `view`, `size` is the side in pixels."""
    generators = [image_generator(seed, number, epoch, index) for index in indices]
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
    """Locates each pixel of the view in the image: (B, H, W, 2), in [-1, 1] as `torch.nn.functional.grid_sample` takes it."""
    device = warp.scale.device
    y = torch.linspace(-1, 1, height, device=device) * (1 - 1 / height)
    x = torch.linspace(-1, 1, width, device=device) * (1 - 1 / width)
    return to_image(warp, x[None, None, :], y[None, :, None])


def to_image(warp: Warp, x: Tensor, y: Tensor) -> Tensor:
    """Maps points of the view to the image, (B, H, W, 2): undoes shift, rotation and scale, then distorts radially.

    Coordinates are in [-1, 1] from border to border; x and y broadcast to (B, H, W).
    """
    shift_x, shift_y = (2 * warp.shift)[:, None, None].unbind(-1)
    cos = (warp.angle.cos() / warp.scale)[:, None, None]
    sin = (warp.angle.sin() / warp.scale)[:, None, None]
    x, y = x - shift_x, y - shift_y
    x, y = cos * x + sin * y, cos * y - sin * x
    radial = 1 + warp.distortion[:, None, None] * (x.square() + y.square())
    return torch.stack([x * radial, y * radial], dim=-1)


def apply_warp(image_B1HW: Tensor, warp: Warp) -> Tensor:
    """Warps the image, with 0 outside it."""
    grid = sampling_grid(warp, *image_B1HW.shape[-2:])
    return F.grid_sample(image_B1HW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def apply_tone(image_B1HW: Tensor, tone: Tone) -> Tensor:
    """Changes the intensities; the result is in [0, 1]."""
    image_B1HW = torch.lerp(image_B1HW, blur(image_B1HW), tone.blur[:, None, None, None])
    mean = image_B1HW.mean(dim=(1, 2, 3), keepdim=True)
    image_B1HW = mean + (image_B1HW - mean) * (1 + tone.contrast[:, None, None, None])
    return (image_B1HW + tone.brightness[:, None, None, None] + tone.noise).clamp(0, 1)


def blur(image_B1HW: Tensor) -> Tensor:
    """Applies a Gaussian kernel, with reflection at the borders."""
    reach = BLUR_KERNEL // 2  # a sum of shifted images: a convolution with one channel takes a CPU ten times as long
    weights = np.exp(-0.5 * (np.arange(reach + 1) / BLUR_SIGMA) ** 2)
    weights /= 2 * weights.sum() - weights[0]
    for dim, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        padded, size = F.pad(image_B1HW, padding, mode="reflect"), image_B1HW.shape[dim]
        image_B1HW = float(weights[0]) * padded.narrow(dim, reach, size)
        for offset in range(1, reach + 1):
            for start in (reach - offset, reach + offset):
                image_B1HW.add_(padded.narrow(dim, start, size), alpha=float(weights[offset]))
    return image_B1HW
