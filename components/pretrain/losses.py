"""InfoNCE and IFA, the two terms of the pretraining loss."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE with a queue of negatives (He et al. 2020, arXiv 1911.05722, equation 1).

    Args:
        q: (B, C) queries, L2-normalised.
        k: (B, C) keys of the same images, L2-normalised; no gradient flows into them.
        queue: (C, K) keys of earlier images, L2-normalised.
        temperature: T.

    Returns:
        Scalar: -log of the softmax share of the positive among 1 + K logits, averaged over the batch.
    """
    positive = (q * k.detach()).sum(1, keepdim=True)
    negative = q @ queue.detach()
    logits = torch.cat([positive, negative], dim=1).float() / temperature
    # The positive is the first of each row.
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def similarity_map(query_map: Tensor, key_map: Tensor) -> Tensor:
    """Cosine similarity over channels at each position, s_l(p); no gradient flows into the key.

    Args:
        query_map: (B, C, H, W).
        key_map: (B, C, H, W).

    Returns:
        (B, H, W) in [-1, 1]; 0 where a map is all zero.
    """
    query, key = query_map.float(), key_map.detach().float()
    # One dot and the squared norms: no normalised copies of the maps are kept for the backward pass.
    dot = (query * key).sum(1)
    squares = query.square().sum(1) * key.square().sum(1)
    return dot * squares.clamp_min(1e-12).rsqrt()


def ifa(query_map: Tensor, key_map: Tensor, target: float) -> Tensor:
    """Intermediate feature approximation (Cho et al. 2024, doi 10.1007/s10278-024-01032-x).

    Args:
        query_map: (B, C, H, W), map of the query encoder after a stage.
        key_map: (B, C, H, W), map of the key encoder after the same stage.
        target: similarity that each position is pulled to (the authors' epsilon 0.3, or 1).

    Returns:
        Scalar: mean over batch and positions of |target - s(p)|.
    """
    return (target - similarity_map(query_map, key_map)).abs().mean()
