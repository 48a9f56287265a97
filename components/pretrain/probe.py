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
from components.common.training import processes
from components.common.training.reader import Batch, Reader

NEIGHBOURS = 200
TEMPERATURE = 0.07  # both as in Wu et al. 2018, arXiv 1805.01978, section 3.4
MOST_IMAGES = 10_000  # evenly spaced images of each split, so that a probe stays cheap compared with an epoch

Floats = npt.NDArray[np.float64]
Features = Callable[[Batch], Tensor]


class Labelled:
    """The images of a split with a known label, evenly subsampled."""

    def __init__(self, shards: Shards, split: str):
        self.reader = Reader(shards, split, rank=processes.rank(), ranks=processes.world_size())
        labels = self.reader.labels().astype(np.float64)
        known = np.flatnonzero(~np.isnan(labels).all(axis=1))
        self.rows = known[np.linspace(0, len(known) - 1, min(len(known), MOST_IMAGES)).astype(int)]
        self.labels = labels[self.rows]
        self.reader.keep(self.rows)


class Probe:
    """Labelled images of the train and val splits, with `width` features each; raises UserError if no finding can be evaluated."""

    def __init__(self, shards: Shards, width: int):
        self._width = width
        self._bank, self._val = Labelled(shards, "train"), Labelled(shards, "val")
        self._findings = np.flatnonzero(has_both(self._bank.labels) & has_both(self._val.labels))
        if not len(self._findings):
            raise UserError("no finding has both classes in the train and in the val split")

    @torch.no_grad()
    def __call__(self, features: Features, batch_size: int) -> float:
        """Computes the macro AUROC on the val split, over the findings with both classes; `batch_size` is that of all processes."""
        bank, val = (_all_features(images, features, self._width, batch_size) for images in (self._bank, self._val))
        scores = nearest_neighbours(val, bank, self._bank.labels)
        return float(np.mean([auroc(self._val.labels[:, i], scores[:, i]) for i in self._findings]))


def nearest_neighbours(features: Tensor, bank: Tensor, labels: Floats, neighbours: int = NEIGHBOURS) -> Floats:
    """Scores each finding by a weighted vote of the nearest images with a known label (Wu et al. 2018, section 3.4).

    From features (N, C) and bank (M, C), L2-normalised, and labels (M, F) of the bank, 1, 0 or NaN, to (N, F) in [0, 1], NaN for a
    finding without known labels.
    """
    similarity = features @ bank.T
    scores = np.full((len(features), labels.shape[1]), np.nan)
    for finding, column in enumerate(labels.T):
        known = torch.from_numpy(np.flatnonzero(~np.isnan(column)))
        if not len(known):
            continue
        nearest = similarity[:, known].topk(min(neighbours, len(known)))
        votes = torch.from_numpy(column)[known][nearest.indices]
        weights = (nearest.values / TEMPERATURE).softmax(1)
        scores[:, finding] = (weights * votes).sum(1).numpy()
    return scores


def _all_features(images: Labelled, features: Features, width: int, batch_size: int) -> Tensor:
    """Computes (N, C), L2-normalised, in the order of `images.rows`, on the CPU; each process computes its share."""
    out = torch.zeros(len(images.rows), width)
    with processes.shared_errors():
        for batch in images.reader.in_order(batch_size):
            out[torch.from_numpy(np.searchsorted(images.rows, batch.rows))] = F.normalize(features(batch).float(), dim=1).cpu()
    return processes.sum_over_ranks(out)
