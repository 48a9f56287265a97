"""MoCo v2: a query encoder, a momentum encoder and a queue of keys (Chen et al. 2020, arXiv 2003.04297)."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.common.training import backbones, processes


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


class Keys(NamedTuple):
    """What the key encoder makes of a batch."""

    k: Tensor
    """(B, dim), L2-normalised, without gradient."""
    maps: dict[str, Tensor]
    """By stage, (B, C_l, H_l, W_l), without gradient."""

    def chunk(self, parts: int) -> "list[Keys]":
        """The same in parts, as Tensor.chunk."""
        maps = {stage: key_map.chunk(parts) for stage, key_map in self.maps.items()}
        return [Keys(k, {stage: chunks[i] for stage, chunks in maps.items()}) for i, k in enumerate(self.k.chunk(parts))]


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with statistics of each of `groups` parts of a batch apart, as if each were in a process of its own.

    The convolutions around it still see the whole batch, which on a CPU takes a quarter less time than batches of a few images.
    """

    groups = 1

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The batch, normalised."""
        groups = self.groups if self.training else 1
        return _joined([super(GroupedBatchNorm2d, self).forward(part) for part in x_BCHW.chunk(groups)])


class Encoder(nn.Module):
    """A backbone and its projection head."""

    def __init__(self, arch: str, dim: int, stages: tuple[str, ...] = backbones.STAGES):
        super().__init__()
        self.backbone = backbones.build(arch, GroupedBatchNorm2d)
        width = backbones.width(self.backbone)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.stages = stages

    def forward(self, image_B1HW: Tensor, groups: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised projections (B, dim) and the maps after `stages`, with batch statistics of each of `groups` apart."""
        for module in self.modules():
            if isinstance(module, GroupedBatchNorm2d):
                module.groups = groups
        features, found = backbones.forward_stages(self.backbone, image_B1HW)
        maps = {stage: found[stage] for stage in self.stages}
        return F.normalize(self.head(features).float(), dim=1), maps


class MoCo(nn.Module):
    """Both encoders and the queue.

    Attributes:
        queue: (dim, K), L2-normalised keys.
        position: () int64, where the next keys go.
    """

    queue: Tensor
    position: Tensor

    def __init__(
        self,
        arch: str,
        dim: int,
        queue_size: int,
        key_momentum: float,
        groups: int = 1,
        batch_norm: str = "shuffle",
        stages: tuple[str, ...] = backbones.STAGES,
    ):
        """Builds both encoders, alike, and a queue of random keys.

        Args:
            arch: of the backbone.
            dim: of the projections.
            queue_size: K, keys in the queue.
            key_momentum: m of the momentum update.
            groups: of this process's images, with batch statistics of their own.
            batch_norm: shuffle (keys between groups and processes), sync (statistics of all processes), or frozen.
            stages: whose maps are returned.
        """
        super().__init__()
        self.groups, self.batch_norm = groups, batch_norm
        self.query = Encoder(arch, dim, stages)
        if batch_norm == "sync":
            nn.SyncBatchNorm.convert_sync_batchnorm(self.query)  # type: ignore[no-untyped-call]
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.key_momentum = key_momentum
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.train()

    def train(self, mode: bool = True) -> "MoCo":
        """As in any module, but frozen batch norm stays as it is."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, query_B1HW: Tensor, key_B1HW: Tensor, order: Tensor) -> Views:
        """Encodes a view of each image with either encoder.

        Args:
            query_B1HW: (B, 1, H, W).
            key_B1HW: (B, 1, H, W).
            order: as of `encode_keys`.
        """
        return self.encode_queries(query_B1HW, self.encode_keys(key_B1HW, order))

    @torch.no_grad()
    def encode_keys(self, key_B1HW: Tensor, order: Tensor, parts: int = 1) -> Keys:
        """Keys and their maps, in the order of the images.

        A query and its key must not share batch statistics: these are the same for the whole batch and other than those
        of the queue, so that an encoder which puts nothing but them into its output has an easy loss and learns nothing.
        Hence shuffling batch norm (He et al. 2020, section 3.3), here between the groups of a batch, in whichever process they
        are: what comes out does not depend on the number of processes and parts. An image's maps come back to the process that
        has the image, and go to no other.

        Args:
            key_B1HW: (B, 1, H, W), this process's images.
            order: (R B,) int64, a permutation: how the keys of all R processes are shuffled before they are divided into groups.
            parts: in which the batch is encoded, one after the other.
        """
        shuffled = self.batch_norm == "shuffle" and self.groups * processes.ranks() > 1
        if shuffled:
            key_B1HW = processes.permute(key_B1HW, order)
        found = [self.key(part, self._groups(parts)) for part in key_B1HW.chunk(parts)]
        k = _joined([k for k, _ in found])
        maps = {stage: _joined([maps[stage] for _, maps in found]) for stage in found[0][1]}
        if shuffled:
            back = order.argsort()
            k, maps = processes.permute(k, back), {stage: processes.permute(key_map, back) for stage, key_map in maps.items()}
        return Keys(k, maps)

    def encode_queries(self, query_B1HW: Tensor, keys: Keys, parts: int = 1) -> Views:
        """The queries of one of the `parts` of a batch, beside the keys of the same images."""
        q, maps = self.query(query_B1HW, self._groups(parts))
        return Views(q, keys.k, maps, keys.maps)

    def _groups(self, parts: int) -> int:
        return self.groups // parts if self.batch_norm == "shuffle" else 1

    def statistics(self) -> list[Tensor]:
        """Running means and variances of batch norm."""
        return [tensor for name, tensor in self.named_buffers() if name.endswith(("running_mean", "running_var"))]

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


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts of a batch as one, which copies nothing if there is but one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
