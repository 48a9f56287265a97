"""Errors and features of the reconstructions of a split."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.common.training.progress import track
from components.common.training.reader import Reader
from components.invert.inverter import TrainedInverter
from components.invert.pixels import to_images

SHOWN = 8  # images in the figure of reconstructions


@dataclass
class Measured:
    """The images of a split and their reconstructions."""

    errors: dict[str, npt.NDArray[np.float32]]  # (N,) by name, in the order of the reader's table
    originals: npt.NDArray[np.float64]  # (N, C): their features in the judge
    reconstructions: npt.NDArray[np.float64]  # (N, C): features of the reconstructions in the judge
    shown: list[Tensor]  # the first originals, their reconstructions, and the absolute differences: each (SHOWN, 1, S, S) in [0, 1]


def measure(trained: TrainedInverter, reader: Reader, batch_size: int, split: str) -> Measured:
    """Reconstructs all images of a split."""
    judge, size = trained.judge, trained.inverter.params.size
    errors: list[dict[str, Tensor]] = []
    features: list[tuple[Tensor, Tensor]] = []
    shown: list[Tensor] = []
    batches = track(reader.in_order(batch_size), "invert", f"reconstructs the {split} split, batch", math.ceil(len(reader) / batch_size))
    for batch in batches:
        image = to_images(batch.images, size, trained.mean_image.device)
        made = trained.reconstruct(image)
        errors.append(trained.errors(image, made))
        features.append((judge.pooled(image), judge.pooled(made)))
        if sum(part.shape[1] for part in shown) < SHOWN:
            shown.append(torch.stack([image, made, (image - made).abs()]))
    originals, reconstructions = (torch.cat(each).double().cpu().numpy() for each in zip(*features, strict=True))
    return Measured(
        errors={name: torch.cat([row[name] for row in errors]).cpu().numpy() for name in errors[0]},
        originals=originals,
        reconstructions=reconstructions,
        shown=list(torch.cat(shown, dim=1)[:, :SHOWN]),
    )
