"""Errors and features of the reconstructions of a split."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.common.training import backbones, devices, processes
from components.common.training.progress import track
from components.common.training.reader import Reader
from components.invert.inverter import ERRORS, TrainedInverter
from components.invert.pixels import to_images

SHOWN = 8  # images in the figure of reconstructions


@dataclass
class Measured:
    """The images of a split and their reconstructions."""

    errors: dict[str, npt.NDArray[np.float32]]  # (N,) by name, in the order of the reader's table
    originals: npt.NDArray[np.float64]  # (N, C): their features in the judge
    reconstructions: npt.NDArray[np.float64]  # (N, C): features of the reconstructions in the judge
    shown: list[Tensor]  # the first originals, their reconstructions, and the absolute differences: each (SHOWN, 1, S, S) in [0, 1]


@devices.exact()
def measure(trained: TrainedInverter, reader: Reader, batch_size: int, split: str) -> Measured:
    """Reconstructs all images of a split, each process its share."""
    judge, size = trained.judge, trained.inverter.params.size
    device, width, count = trained.mean_image.device, backbones.width(judge.resnet), len(reader)
    errors, shown = [torch.empty(0, len(ERRORS), device=device)], [torch.empty(0, 3, 1, size, size, device=device)]
    features, rows = [torch.empty(0, 2, width, device=device)], [np.empty(0, np.int64)]
    batches = devices.on_device(reader.in_order(batch_size), device)
    with processes.shared_errors():
        for batch in track(batches, "invert", f"reconstructs the {split} split, batch", math.ceil(count / batch_size)):
            image = to_images(batch.images, size, device)
            made = trained.reconstruct(image)
            errors.append(torch.stack(list(trained.errors(image, made).values()), dim=1))
            features.append(torch.stack([judge.pooled(image), judge.pooled(made)], dim=1))
            shown.append(torch.stack([image, made, (image - made).abs()], dim=1)[: (batch.rows < SHOWN).sum()])
            rows.append(batch.rows)
    all_rows = np.concatenate(rows)
    found = processes.assemble(torch.cat(errors), all_rows, count).cpu().numpy()
    both = processes.assemble(torch.cat(features), all_rows, count).double().cpu().numpy()
    pictures = processes.assemble(torch.cat(shown), all_rows[all_rows < SHOWN], min(SHOWN, count))
    return Measured(dict(zip(ERRORS, found.T, strict=True)), both[:, 0], both[:, 1], list(pictures.unbind(1)))
