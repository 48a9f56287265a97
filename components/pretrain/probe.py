"""Tracks whether pretraining helps: k nearest neighbours among labelled training images predict findings of the val split.

The test split is not read, and no choice depends on the result.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from components.common.errors import UserError
from components.common.runs.shards import Shards
from components.common.statistics.arrays import has_both
from components.common.statistics.ranking import auroc
from components.common.training import devices, processes
from components.common.training.neighbours import nearest_neighbours
from components.common.training.reader import Batch, Reader

MOST_IMAGES = 10_000  # of each split, so that a probe stays cheap compared with an epoch

Floats = npt.NDArray[np.float64]
Features = Callable[[Batch], Tensor]


class Labelled:
    """The images of a split with a known label; of many, those of evenly spaced row groups."""

    def __init__(self, shards: Shards, split: str):
        self.reader = Reader(shards, split)
        labels = self.reader.labels().astype(np.float64)
        known = np.flatnonzero(~np.isnan(labels).all(axis=1))
        self.rows = self.reader.thin_out(known, MOST_IMAGES)
        self.labels = labels[self.rows]
        self.reader.keep(self.rows)


class Probe:
    """Labelled images of the train and val splits, with `width` features each; raises UserError if no finding can be evaluated."""

    def __init__(self, shards: Shards, width: int, device: torch.device):
        self._width, self._device = width, device
        self._bank, self._val = Labelled(shards, "train"), Labelled(shards, "val")
        self._findings = np.flatnonzero(has_both(self._bank.labels) & has_both(self._val.labels))
        if not len(self._findings):
            raise UserError("no finding has both classes in the train and in the val split")

    @torch.no_grad()
    @devices.exact()
    def __call__(self, features: Features, batch_size: int) -> float:
        """Computes the macro AUROC on the val split, over the findings with both classes; `batch_size` is that of all processes."""
        bank, val = (_all_features(images, features, self._width, batch_size, self._device) for images in (self._bank, self._val))
        scores = nearest_neighbours(val, bank, self._bank.labels)
        return float(np.mean([auroc(self._val.labels[:, i], scores[:, i]) for i in self._findings]))


def _all_features(images: Labelled, features: Features, width: int, batch_size: int, device: torch.device) -> Tensor:
    """Computes (N, C), L2-normalised, in the order of `images.rows`, on the device; each process computes its share."""
    parts, rows = [torch.empty(0, width, device=device)], [np.empty(0, np.int64)]
    with processes.shared_errors():
        for batch in devices.on_device(images.reader.in_order(batch_size), device):
            parts.append(F.normalize(features(batch).float(), dim=1))
            rows.append(np.searchsorted(images.rows, batch.rows))
    return processes.assemble(torch.cat(parts), np.concatenate(rows), len(images.rows))
