"""What tells whether the projections learn: their spread, and how close positives lie beside negatives."""

import torch
from torch import Tensor


@torch.no_grad()
def projections(q: Tensor, k: Tensor, queue: Tensor) -> dict[str, Tensor]:
    """Scalars by name.

    Args:
        q: (B, C) queries of the global batch, L2-normalised.
        k: (B, C) their keys, L2-normalised.
        queue: (C, K) keys of earlier images, L2-normalised.
    """
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
    """Mean squared distance of positives, 0 at best (Wang and Isola 2020, arXiv 2005.10242, section 4.1, alpha = 2).

    Args:
        q: (B, C), L2-normalised.
        k: (B, C), L2-normalised.
    """
    return (q - k).square().sum(1).mean()


def uniformity(q: Tensor) -> Tensor:
    """Log of the mean Gaussian potential over pairs, 0 when all are one point (ibidem, section 4.1, t = 2).

    Args:
        q: (B, C), L2-normalised, B at least 2.
    """
    return torch.pdist(q).square().mul(-2).exp().mean().log()


def queue_age(step: int, batches: int) -> float:
    """Mean age, in steps, of the keys that a step compares with; the random ones of the start do not count.

    Args:
        step: steps done before.
        batches: how many the queue holds.
    """
    filled = min(step, batches)
    return (filled + 1) / 2 if filled else 0.0
