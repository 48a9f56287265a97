"""MoCo v2: a query encoder, a momentum encoder and a queue of keys (Chen et al. 2020, arXiv 2003.04297)."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.common import backbone

IFA_TARGETS: dict[str, dict[str, float]] = {
    "moco": {},
    "ifa": {"layer1": 0.3, "layer4": 1.0},
    "ifa-cosine": {"layer1": 1.0, "layer4": 1.0},
    "ifa-layer4": {"layer4": 1.0},
}
"""Target similarity by stage. `ifa` is the authors' code, `ifa-cosine` the paper's abstract."""


class Views(NamedTuple):
    """What both encoders make of a batch."""

    q: Tensor
    """(B, dim), L2-normalised."""
    k: Tensor
    """(B, dim), L2-normalised, without gradient."""
    query_maps: dict[str, Tensor]
    """By stage, (B, C_l, H_l, W_l)."""
    key_maps: dict[str, Tensor]
    """The same of the key encoder, without gradient."""


class Encoder(nn.Module):
    """A backbone and its projection head."""

    def __init__(self, arch: str, dim: int):
        super().__init__()
        self.backbone = backbone.build(arch)
        width = backbone.width(self.backbone)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))

    def forward(self, image_B1HW: Tensor, groups: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised projections (B, dim) and the map after each stage, with batch statistics of each of `groups` apart."""
        parts = [backbone.forward_stages(self.backbone, part) for part in image_B1HW.chunk(groups)]
        features = torch.cat([features for features, _ in parts])
        maps = {stage: torch.cat([maps[stage] for _, maps in parts]) for stage in parts[0][1]}
        return F.normalize(self.head(features).float(), dim=1), maps


class MoCo(nn.Module):
    """Both encoders and the queue.

    Attributes:
        queue: (dim, K), L2-normalised keys.
        position: () int64, where the next keys go.
    """

    queue: Tensor
    position: Tensor

    def __init__(self, arch: str, dim: int, queue_size: int, key_momentum: float, groups: int = 1):
        """Builds both encoders, alike, and a queue of random keys.

        Args:
            arch: of the backbone.
            dim: of the projections.
            queue_size: K, keys in the queue.
            key_momentum: m of the momentum update.
            groups: of a batch, between which keys are shuffled.
        """
        super().__init__()
        self.groups = groups
        self.query = Encoder(arch, dim)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.key_momentum = key_momentum
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def forward(self, query_B1HW: Tensor, key_B1HW: Tensor, order: Tensor) -> Views:
        """Encodes a view of each image with either encoder.

        A query and its key must not share batch statistics: these are the same for the whole batch and other than those
        of the queue, so that an encoder which puts nothing but them into its output has an easy loss and learns nothing.
        Hence shuffling batch norm (He et al. 2020, section 3.3), here between groups of a batch rather than between GPUs.

        Args:
            query_B1HW: (B, 1, H, W).
            key_B1HW: (B, 1, H, W).
            order: (B,) int64, a permutation: how the keys are shuffled before they are divided into groups.
        """
        q, query_maps = self.query(query_B1HW, self.groups)
        with torch.no_grad():
            k, key_maps = self.key(key_B1HW[order], self.groups)
            back = order.argsort()
            return Views(q, k[back], query_maps, {stage: key_map[back] for stage, key_map in key_maps.items()})

    @torch.no_grad()
    def move_key_encoder(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q (He et al. 2020, equation 2). Statistics of batch norm are its own."""
        torch._foreach_lerp_(list(self.key.parameters()), list(self.query.parameters()), 1 - self.key_momentum)

    @torch.no_grad()
    def enqueue(self, k: Tensor) -> None:
        """Replaces the oldest keys by `k`, (B, dim), with B a divisor of the queue's length."""
        start, length = int(self.position), self.queue.shape[1]
        assert length % len(k) == 0, "the queue holds whole batches"
        self.queue[:, start : start + len(k)] = k.T
        self.position.fill_((start + len(k)) % length)
