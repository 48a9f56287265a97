"""Classification by the nearest neighbours in feature space."""

import numpy as np
import torch
from torch import Tensor

from components.common.statistics.arrays import Floats
from components.common.training import processes

NEIGHBOURS = 200
TEMPERATURE = 0.07  # both as in Wu et al. 2018, arXiv 1805.01978, section 3.4
CHUNK = 4096  # features that are compared with the bank at a time


def nearest_neighbours(features: Tensor, bank: Tensor, labels: Floats, neighbours: int = NEIGHBOURS) -> Floats:
    """Scores each finding by a weighted vote of the nearest images with a known label (Wu et al. 2018, section 3.4).

    From features (N, C) and bank (M, C), L2-normalised, and labels (M, F) of the bank, 1, 0 or NaN, to (N, F) in [0, 1], NaN for a
    finding without known labels. Computed on the device of the features, which the host waits for once.
    """
    votes = torch.from_numpy(labels).to(bank.device)
    scores = features.new_full((len(features), labels.shape[1]), np.nan, dtype=votes.dtype)
    known, same = np.unique(~np.isnan(labels), axis=1, return_inverse=True)
    for start in range(0, len(features), CHUNK):
        similarity = features[start : start + CHUNK] @ bank.T
        for number, mask in enumerate(known.T):
            if not mask.any():
                continue
            rows = processes.on_device(torch.from_numpy(np.flatnonzero(mask)), bank.device)
            nearest = similarity[:, rows].topk(min(neighbours, len(rows)))
            weights, images = (nearest.values / TEMPERATURE).softmax(1), rows[nearest.indices]
            for finding in np.flatnonzero(same == number).tolist():
                shares = (weights * votes[:, finding][images]).sum(1)
                scores[start : start + CHUNK, finding] = shares.clamp(0, 1)  # rounding may exceed 1
    return scores.cpu().numpy()
