"""Finds the position of the key's map that shows the same anatomy as a position of the query's map.

The views of an image are warped independently, so equal positions of their maps show anatomy up to a fifth of the image apart.
Both warps are known: a position of the query's map lies at a pixel of the query's view, this at a point of the image, and this,
through the inverse of the key's warp, at a pixel of the key's view and a position of its map.

In a ResNet the receptive field of position (i, j) of a map with stride s is centred on pixel (s i, s j): every strided layer has
an odd kernel, padded by half of it. This is not the centre of the s x s pixels that the position would cover in a downsampled image.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from components.common.training.backbones import STRIDES
from components.pretrain.augment import Warp, to_image

NEWTON_STEPS = 6  # enough for single precision wherever a warp of `augment` can move a pixel
INVERTIBLE = -0.148  # r (1 + d r^2) = R has a solution for d R^2 above -4/27
ROUNDING = 1e-3  # how far outside the map a position may lie, in map positions, and still count as on its border


class Geometry(NamedTuple):
    """How the views of a batch were made."""

    query: Warp
    key: Warp
    size: tuple[int, int]  # height and width of the views in pixels

    def chunk(self, parts: int) -> "list[Geometry]":
        """Splits the batch, as Tensor.chunk does."""
        query, key = (zip(*(value.chunk(parts) for value in warp), strict=True) for warp in (self.query, self.key))
        return [Geometry(Warp(*one), Warp(*other), self.size) for one, other in zip(query, key, strict=True)]


def align(key_map: Tensor, geometry: Geometry, stage: str) -> tuple[Tensor, Tensor]:
    """Samples the key's map after a stage at the anatomy of the query's; returns what `resample` does."""
    return resample(key_map, key_positions(geometry, STRIDES[stage]))


def key_positions(geometry: Geometry, stride: int) -> Tensor:
    """Locates the anatomy at each position of the query's map in the key's map of the given stride.

    Returns (B, H, W, 2), x and y as fractional indices into the key's map; some lie outside it.
    """
    query, key, (height, width) = geometry
    device = query.scale.device
    x, y = ((2 * torch.arange(0, side, stride, device=device) + 1) / side - 1 for side in (width, height))
    moved = to_view(key, to_image(query, x[None, None, :], y[None, :, None]))
    return torch.stack([((moved[..., axis] + 1) * side - 1) / (2 * stride) for axis, side in enumerate((width, height))], dim=-1)


def to_view(warp: Warp, point_BHW2: Tensor) -> Tensor:
    """Maps points of the image to the view, both in [-1, 1] from border to border: the inverse of `augment.to_image`."""
    x, y = (point_BHW2 * _undistortion(warp, point_BHW2.square().sum(-1)).unsqueeze(-1)).unbind(-1)
    cos = (warp.angle.cos() * warp.scale)[:, None, None]
    sin = (warp.angle.sin() * warp.scale)[:, None, None]
    return torch.stack([cos * x - sin * y, cos * y + sin * x], dim=-1) + 2 * warp.shift[:, None, None]


def _undistortion(warp: Warp, square_BHW: Tensor) -> Tensor:
    """Returns the factor f with f R (1 + d (f R)^2) = R, by Newton's method from 1, from where it converges monotonically."""
    cubic = (warp.distortion[:, None, None] * square_BHW).clamp_min(INVERTIBLE)
    factor = torch.ones_like(cubic)
    for _ in range(NEWTON_STEPS):
        factor = factor - (factor + cubic * factor**3 - 1) / (1 + 3 * cubic * factor.square())
    return factor


def _corner(position: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits positions along an axis into the index of the lower neighbour and the distance from it; the third tells which lie inside."""
    clamped = position.clamp(0, side - 1)
    corner = clamped.floor().clamp_max(max(side - 2, 0))
    return corner.long(), clamped - corner, (position > -ROUNDING) & (position < side - 1 + ROUNDING)


def resample(key_map: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Samples the key's map (B, C, H, W), without gradient, at `positions` (B, H', W', 2), x and y as indices, with bilinear interpolation.

    Returns (B, C, H', W') in channels_last, the fastest format for the input too, and (B, H', W') bool, whether a position lies
    inside the key's map. Positions outside, which the key's view does not show, take the value at the border.
    """
    batch, channels, height, width = key_map.shape
    (x, right, inside_x), (y, lower, inside_y) = map(_corner, positions.unbind(-1), (width, height))
    inside = inside_x & inside_y
    sample = height * width * torch.arange(batch, device=positions.device)[:, None, None]
    # A weighted sum of four rows of a table: it reads the maps in place and writes only the result.
    first = sample + y * width + x
    step_x, step_y = int(width > 1), width * int(height > 1)
    rows = torch.stack([first, first + step_x, first + step_y, first + step_x + step_y], dim=-1)
    weights = torch.stack([(1 - right) * (1 - lower), right * (1 - lower), (1 - right) * lower, right * lower], dim=-1)
    table = key_map.permute(0, 2, 3, 1).reshape(-1, channels)
    found = F.embedding_bag(rows.view(-1, 4), table, mode="sum", per_sample_weights=weights.view(-1, 4).to(table.dtype))
    return found.view(*positions.shape[:3], channels).permute(0, 3, 1, 2), inside
