"""Metrics that show whether the projections learn or collapse: their spread, and how close positives and negatives lie."""

import torch
from torch import Tensor


@torch.no_grad()
def projection_metrics(q: Tensor, k: Tensor, queue: Tensor) -> dict[str, Tensor]:
    """Computes scalars from L2-normalised queries and keys (B, C) of the global batch and the queue (C, K)."""
    return {
        "positive_similarity": (q * k).sum(1).mean(),
        # The mean of all products is the product of the means.
        "negative_similarity": q.mean(0) @ queue.mean(1),
        # 1 when the projections are spread over the whole sphere, 0 when they have collapsed to a point.
        "feature_std": q.std(0).mean() * q.shape[1] ** 0.5,
        "alignment": alignment(q, k),
        "uniformity": uniformity(q),
    }


def alignment(q: Tensor, k: Tensor) -> Tensor:
    """Mean squared distance of positives, (B, C) each; 0 is best (Wang and Isola 2020, arXiv 2005.10242, section 4.1, alpha = 2)."""
    return (q - k).square().sum(1).mean()


def uniformity(q: Tensor) -> Tensor:
    """Log of the mean Gaussian potential over pairs of (B, C), B at least 2; 0 if all are equal (ibidem, section 4.1, t = 2)."""
    return torch.pdist(q).square().mul(-2).exp().mean().log()


def queue_age(step: int, batches: int) -> float:
    """Returns the mean age in steps of the keys that a step compares with, without random ones; the queue holds so many batches."""
    filled = min(step, batches)
    return (filled + 1) / 2 if filled else 0.0
