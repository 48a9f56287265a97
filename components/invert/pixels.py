"""Images as the networks take them, and pictures of them."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.common.formats.shards import Pixels
from components.common.training import loop
from components.common.training.reader import Reader

TILE = 128
"""Least side of an image in a picture, in pixels."""
GAP = 2
"""Between the images of a picture, in pixels."""


def to_images(stored: Pixels, size: int, device: torch.device) -> Tensor:
    """Stored pixels, (B, S, S), as images of the size wanted: (B, 1, size, size), float32 in [0, 1]."""
    return shrink(loop.to_unit(stored, device), size)


def shrink(image_B1SS: Tensor, size: int) -> Tensor:
    """Square images to (B, 1, size, size): each pixel the mean over the area that it covers."""
    weights = area_weights(image_B1SS.shape[-1], size).to(image_B1SS.device)
    return weights @ image_B1SS @ weights.T


@cache
def area_weights(source: int, target: int) -> Tensor:
    """(target, source): the share of each source pixel in the length that a target pixel covers; rows sum to 1."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    left = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    return (overlap.clamp_min(0) * target / source).float()


def mean_image(reader: Reader, size: int, batch_size: int, device: torch.device) -> Tensor:
    """(1, 1, size, size): the mean of the reader's images, the best guess of whoever has not seen an image."""
    total = torch.zeros(1, 1, size, size, dtype=torch.float64, device=device)
    for batch in reader.in_order(batch_size):
        total += to_images(batch.images, size, device).double().sum(0, keepdim=True)
    return (total / len(reader)).float()


def write_picture(path: Path, rows: list[Tensor]) -> None:
    """Writes a PNG of images in rows.

    Args:
        path: of the file.
        rows: each (B, 1, S, S), in [0, 1], all with the same B.
    """
    height = rows[0].shape[-1]
    scale = max(1, TILE // height)
    tiles = [[_tile(image[0], scale) for image in row.cpu().float().numpy()] for row in rows]
    done, content = cv2.imencode(".png", np.vstack([np.hstack(row) for row in tiles]))
    assert done, "PNG takes any 8-bit image"
    path.write_bytes(content.tobytes())


def _tile(image_HW: npt.NDArray[np.float32], scale: int) -> npt.NDArray[np.uint8]:
    pixels = np.rint(255 * image_HW.clip(0, 1)).astype(np.uint8)
    return np.pad(np.kron(pixels, np.ones((scale, scale), np.uint8)), GAP)
