"""The terms of the pretraining loss: InfoNCE, IFA, and the MSE of its closest relative, MoCo-MSE."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SLAB = {"cpu": 2**18, "cuda": 2**27}
"""Elements of a map to multiply at a time: few enough for a core's cache, or to be small compared with a GPU's maps."""
TINY = 1e-30  # squared norm below which a position counts as all zero, since its inverse would overflow
MSE_POOLED = {"layer1": 16, "layer2": 16, "layer3": 4, "layer4": 4}  # side to which `mse` pools the map after each stage


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Computes InfoNCE with a queue of negatives (He et al. 2020, arXiv 1911.05722, equation 1).

    Args:
        q: (B, C) queries, L2-normalised.
        k: (B, C) keys of the same images, L2-normalised; no gradient flows into them.
        queue: (C, K) keys of earlier images, L2-normalised.
        temperature: T of the softmax.

    Returns:
        Scalar: -log of the softmax probability of the positive among 1 + K logits, averaged over the batch.
    """
    positive = (q * k.detach()).sum(1, keepdim=True)
    logits = torch.cat([positive, q @ queue.detach()], dim=1).float() / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def ifa(similarity_BHW: Tensor, target: float, inside_BHW: Tensor | None = None) -> Tensor:
    """Computes intermediate feature approximation (Cho et al. 2024, doi 10.1007/s10278-024-01032-x), the mean of |target - s(p)|.

    s is the `similarity_map` of a stage, `target` the similarity that each position is pulled towards (the authors' epsilon 0.3, or
    1); positions are averaged as in `average`.
    """
    return average((target - similarity_BHW).abs(), inside_BHW)


def similarity_map(query_map: Tensor, key_map: Tensor) -> Tensor:
    """Computes the cosine similarity over channels of two (B, C, H, W) maps, s_l(p); no gradient flows into the key.

    Returns (B, H, W) in [-1, 1], at least single precision; 0, without gradient, where a map is all zero.
    """
    similarity: Tensor = _Similarity.apply(query_map, key_map.detach())
    return similarity


def average(values_BHW: Tensor, inside_BHW: Tensor | None = None) -> Tensor:
    """Averages over batch and positions; if `inside` is given, over these per sample (0 if there are none) and then over samples."""
    if inside_BHW is None:
        return values_BHW.mean()
    # A mean of means, so that the loss of a batch is the mean of the losses of its parts on several devices.
    counts = inside_BHW.sum((1, 2)).clamp_min(1)
    return ((values_BHW * inside_BHW).sum((1, 2)) / counts).mean()


def mse(query_map: Tensor, key_map: Tensor, side: int) -> Tensor:
    """Mean squared error of maps (B, C, H, W) pooled to a side (MoCo-MSE of Kaku et al. 2021, arXiv 2110.14805).

    As in their published code, which minimises InfoNCE + sum over l of lambda_l * MSE(pool_l(z_q,l), pool_l(z_k,l)): the maps
    after the four stages are average-pooled to 16 x 16 (layer1, layer2) and 4 x 4 (layer3, layer4) without normalisation, and the
    mean is over batch, channels and positions; each lambda_l is 0.25. Their other variant replaces the MSE by Barlow Twins' loss.
    """
    query, key = (F.adaptive_avg_pool2d(stage_map, side).float() for stage_map in (query_map, key_map.detach()))
    return F.mse_loss(query, key)


class _Similarity(torch.autograd.Function):
    """Saves the maps themselves and two numbers per position for the backward pass, where autograd would save copies of the maps.

    With a = |q|, b = |k| and s = <q, k> / (a b), the gradient of s with respect to q is k / (a b) - s q / a^2.
    """

    @staticmethod
    def forward(context: Any, query_map: Tensor, key_map: Tensor) -> Tensor:
        dot, query_square, key_square = _products(query_map, key_map)
        query_inverse, key_inverse = (torch.where(square > TINY, square.rsqrt(), 0) for square in (query_square, key_square))
        both = query_inverse * key_inverse
        similarity = dot * both
        context.save_for_backward(query_map, key_map, both, similarity * query_inverse.square())
        return similarity

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        query_map, key_map, both, share = context.saved_tensors
        to_query = torch.empty_like(query_map)
        torch.mul(key_map, (gradient * both).unsqueeze(1), out=to_query)
        return to_query.addcmul_(query_map, (gradient * share).unsqueeze(1), value=-1), None


def _products(query_map: Tensor, key_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes <q, k>, |q|^2 and |k|^2 at each position, (B, H, W), one slab at a time so that no temporary is as large as a map."""
    batch, _, height, width = query_map.shape
    wide = torch.promote_types(query_map.dtype, torch.float32)
    products = query_map.new_empty((3, batch, height, width), dtype=wide)
    zero = query_map.new_zeros(1, dtype=wide)  # makes the products wide, without a wide copy of a map
    for samples, rows in _slabs(query_map):
        query, key = query_map[samples, :, rows], key_map[samples, :, rows]
        for product, (one, other) in zip(products, ((query, key), (query, query), (key, key)), strict=True):
            torch.sum(torch.addcmul(zero, one, other), 1, out=product[samples, rows])
    return products[0], products[1], products[2]


def _slabs(stage_map: Tensor) -> Iterator[tuple[slice, slice]]:
    """Divides a (B, C, H, W) map by samples and rows into slabs of about SLAB elements."""
    batch, channels, height, width = stage_map.shape
    rows = max(1, SLAB.get(stage_map.device.type, SLAB["cuda"]) // (channels * width))
    samples = max(1, rows // height)
    for first in range(0, batch, samples):
        for top in range(0, height, rows):
            yield slice(first, first + samples), slice(top, top + rows)
