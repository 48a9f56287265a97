"""Makes the two views of an image: mild, without crop or flip, since the sides and borders of a radiograph carry meaning.

`Views` in components/pretrain/params.py holds probabilities and ranges. Every sample has its own numbers, drawn from (seed, epoch,
index, view) on the host, so that a view depends neither on its batch nor on the number of ranks. The noise is computed on the device
from one of these numbers and the position of the pixel, with integers, so that CPUs and GPUs agree.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from components.common.training.seeds import image_generator
from components.pretrain.params import Views

BLUR_KERNEL = 5  # side in pixels of the Gaussian kernel that blurs or, subtracted, sharpens
BLUR_SIGMA = 1.1  # its standard deviation in pixels
BYTE_SUM_MEAN, BYTE_SUM_STD = 510.0, (4 * (2**16 - 1) / 12) ** 0.5  # of the sum of four uniform bytes

Drawn = npt.NDArray[np.float64]


class Warp(NamedTuple):
    """Geometry of a view, one value per sample."""

    shift: Tensor  # (B, 2), x and y, as a fraction of the side
    scale: Tensor  # (B,), above 1 enlarges
    angle: Tensor  # (B,), in radians
    distortion: Tensor  # (B,), radial


class Tone(NamedTuple):
    """Changes of intensity of a view, one value per sample."""

    brightness: Tensor  # added, 0 changes nothing
    contrast: Tensor  # relative change, 0 changes nothing
    blur: Tensor  # 1: blurred; -1: sharpened as much
    gain: Tensor  # factor, 1 changes nothing
    noise: Tensor  # standard deviation
    key: Tensor  # int32, selects the noise


class View(NamedTuple):
    """Views of a batch."""

    image: Tensor  # (B, 1, H, W), in [0, 1]
    warp: Warp  # how each was warped


def view(image_B1HW: Tensor, drawn: Tensor, views: Views) -> View:
    """Makes a view in [0, 1] of each image from the numbers that `draw` drew for it, on the same device."""
    warp, tone = unpack(drawn)
    image_B1HW = apply_tone(apply_warp(image_B1HW, warp, views.border), tone)
    return View(add_noise(image_B1HW, tone) if views.noise_probability else image_B1HW, warp)


def untouched(image_B1HW: Tensor) -> View:
    """Returns the images as views of themselves."""
    batch = len(image_B1HW)
    zero, one = image_B1HW.new_zeros(batch), image_B1HW.new_ones(batch)
    return View(image_B1HW, Warp(shift=image_B1HW.new_zeros(batch, 2), scale=one, angle=zero, distortion=zero))


def draw(views: Views, indices: npt.NDArray[np.int64], seed: int, epoch: int, number: int) -> Drawn:
    """Draws the numbers of a view of each image at positions `indices` (B,) of the split: (B, 11) for `unpack`.

    `number` is 0 for queries and 1 for keys.
    """
    values = np.stack([image_generator(seed, number, epoch, index).random(17) for index in indices])
    sizes, chances = values[:, :9].T, values[:, 9:16].T

    def within(interval: tuple[float, float], size: npt.NDArray[np.float64], chance: npt.NDArray[np.float64], probability: float) -> Drawn:
        drawn: Drawn = np.where(chance < probability, interval[0] + (interval[1] - interval[0]) * size, 0)
        return drawn

    contrast_chance = chances[2] if views.intensity_together else chances[3]
    strength = within((0, 1), sizes[4], chances[1], views.filter_probability)
    drawn = [
        *(within((-views.shift, views.shift), sizes[axis], chances[0], views.geometry_probability) for axis in (0, 1)),
        1 + within((-views.scale, views.scale), sizes[2], chances[0], views.geometry_probability),
        np.deg2rad(within((-views.rotation, views.rotation), sizes[3], chances[0], views.geometry_probability)),
        within((-views.distortion, views.distortion), sizes[8], chances[4], views.distortion_probability),
        within(views.brightness, sizes[5], chances[2], views.intensity_probability),
        within(views.contrast, sizes[6], contrast_chance, views.intensity_probability),
        # Chances below the probability are uniform too: they decide which of the two filters it is.
        np.where(chances[1] < views.blur_share * views.filter_probability, strength, -strength),
        1 + within((views.gain[0] - 1, views.gain[1] - 1), sizes[7], chances[5], views.gain_probability),
        within((0, views.noise), chances[6] / max(views.noise_probability, 1e-9), chances[6], views.noise_probability),
        np.floor(values[:, 16] * 2**32) - 2**31,
    ]
    return np.stack(drawn, axis=1)


def unpack(drawn: Tensor) -> tuple[Warp, Tone]:
    """Splits the numbers of `draw` (B, 11) by their meaning."""
    scale, angle, distortion, *changes = drawn[:, 2:-1].float().unbind(1)
    brightness, contrast, strength, gain, sigma = changes
    warp = Warp(drawn[:, :2].float(), scale, angle, distortion)
    return warp, Tone(brightness, contrast, strength, gain, sigma, drawn[:, -1].to(torch.int32))


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


def apply_warp(image_B1HW: Tensor, warp: Warp, border: str = "zeros") -> Tensor:
    """Warps the image; beyond its border lies 0, or its reflection."""
    grid = sampling_grid(warp, *image_B1HW.shape[-2:])
    padding = {"zeros": "zeros", "reflect": "reflection"}[border]
    return F.grid_sample(image_B1HW, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def apply_tone(image_B1HW: Tensor, tone: Tone) -> Tensor:
    """Changes the intensities; the result is in [0, 1]."""
    brightness, contrast, strength, gain = (value[:, None, None, None] for value in tone[:4])
    image_B1HW = torch.lerp(image_B1HW, blur(image_B1HW), strength)
    mean = image_B1HW.mean(dim=(1, 2, 3), keepdim=True)
    return ((mean + (image_B1HW - mean) * (1 + contrast) + brightness) * gain).clamp_(0, 1)


def add_noise(image_B1HW: Tensor, tone: Tone) -> Tensor:
    """Adds the noise of each view; the result is in [0, 1]."""
    return image_B1HW.addcmul(noise(tone.key, *image_B1HW.shape[-2:]), tone.noise[:, None, None, None]).clamp_(0, 1)


def noise(key_B: Tensor, height: int, width: int) -> Tensor:
    """Computes noise (B, 1, H, W) of mean 0 and standard deviation 1 from int32 keys: the sum of four uniform bytes per pixel.

    The bytes are those of a hash of the key and the position of the pixel, so that the noise of a view is the same on every device.
    """
    position = _hash(torch.arange(height * width, dtype=torch.int32, device=key_B.device))
    bits = _hash(position ^ key_B[:, None])
    pairs = (bits & 0x00FF00FF) + ((bits >> 8) & 0x00FF00FF)
    total = (pairs & 0xFFFF) + (pairs >> 16)
    return total.float().sub_(BYTE_SUM_MEAN).div_(BYTE_SUM_STD).view(-1, 1, height, width)


def _hash(bits: Tensor) -> Tensor:
    """Mixes int32 in place, with the constants of lowbias32 (C. Wellons, hash-prospector, public domain); shifts fill with zeros."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= 0x7FEB352D
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= 0x846CA68B - 2**32
    bits ^= (bits >> 16) & 0xFFFF
    return bits


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
