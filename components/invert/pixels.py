"""Stored pixels to images of the size that the networks take."""

from functools import cache

import torch
from torch import Tensor

from components.common.formats.shards import Pixels
from components.common.training import devices, processes
from components.common.training.reader import Reader


def to_images(stored: Pixels | Tensor, size: int, device: torch.device) -> Tensor:
    """Converts stored pixels, (B, S, S), to images (B, 1, size, size), float32 in [0, 1]."""
    return shrink(devices.to_unit(stored, device), size)


def shrink(image_B1SS: Tensor, size: int) -> Tensor:
    """Resizes square images to (B, 1, size, size) by area: each pixel is the mean over the area that it covers."""
    weights = area_weights(image_B1SS.shape[-1], size, image_B1SS.device)
    return weights @ image_B1SS @ weights.T


@cache
def area_weights(source: int, target: int, device: torch.device) -> Tensor:
    """Returns (target, source): the fraction of a target pixel's length that each source pixel covers; rows sum to 1."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    left = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    return (overlap.clamp_min(0) * target / source).float().to(device)


def mean_image(reader: Reader, size: int, batch_size: int, device: torch.device) -> Tensor:
    """Averages the reader's images to (1, 1, size, size): the best reconstruction that does not depend on the image."""
    total = torch.zeros(1, 1, size, size, dtype=torch.float64, device=device)
    with processes.shared_errors():
        for batch in devices.on_device(reader.in_order(batch_size), device):
            total += to_images(batch.images, size, device).double().sum(0, keepdim=True)
    return (processes.sum_over_ranks(total) / len(reader)).float()
