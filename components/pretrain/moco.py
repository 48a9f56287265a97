"""MoCo v2: a query encoder, a momentum encoder and a queue of keys (Chen et al. 2020, arXiv 2003.04297)."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.common.training import backbones, processes
from components.pretrain.batch_norm import GroupedBatchNorm2d, update_statistics


class Encodings(NamedTuple):
    """Outputs of both encoders for a batch."""

    q: Tensor  # (B, dim), L2-normalised
    k: Tensor  # (B, dim), L2-normalised, without gradient
    query_maps: dict[str, Tensor]  # by stage, (B, C_l, H_l, W_l)
    key_maps: dict[str, Tensor]  # those of the key encoder, without gradient


class Keys(NamedTuple):
    """Outputs of the key encoder for a batch."""

    k: Tensor  # (B, dim), L2-normalised, without gradient
    maps: dict[str, Tensor]  # by stage, (B, C_l, H_l, W_l), without gradient

    def chunk(self, parts: int) -> "list[Keys]":
        """Splits the batch, as Tensor.chunk does."""
        maps = {stage: key_map.chunk(parts) for stage, key_map in self.maps.items()}
        return [Keys(k, {stage: chunks[i] for stage, chunks in maps.items()}) for i, k in enumerate(self.k.chunk(parts))]


class Encoder(nn.Module):
    """A backbone and its projection head."""

    def __init__(self, arch: str, dim: int, stages: tuple[str, ...] = backbones.STAGES):
        super().__init__()
        self.backbone = backbones.build(arch, GroupedBatchNorm2d)
        width = backbones.width(self.backbone)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.stages = stages

    def forward(self, image_B1HW: Tensor, groups: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes normalised projections (B, dim) and the maps after `stages`, with separate batch statistics per group."""
        for module in self.modules():
            if isinstance(module, GroupedBatchNorm2d):
                module.groups = groups
        features, found = backbones.forward_stages(self.backbone, image_B1HW)
        maps = {stage: found[stage] for stage in self.stages}
        return F.normalize(self.head(features).float(), dim=1), maps


class MoCo(nn.Module):
    """Both encoders and a queue, which starts with `queue_size` random keys (dim,).

    `groups` is the number of groups of this process's images that have batch statistics of their own. `batch_norm` is shuffle (keys
    between groups and processes), sync (statistics over all processes) or frozen. The maps after `stages` are returned; those of keys that
    another process of the node has encoded after `sent` only.
    """

    queue: Tensor  # (dim, K), L2-normalised keys

    def __init__(
        self,
        arch: str,
        dim: int,
        queue_size: int,
        key_momentum: float,
        groups: int = 1,
        batch_norm: str = "shuffle",
        stages: tuple[str, ...] = backbones.STAGES,
        sent: tuple[str, ...] = backbones.STAGES,
    ):
        super().__init__()
        self.groups, self.batch_norm, self.sent = groups, batch_norm, sent
        self.query = Encoder(arch, dim, stages)
        for module in self.query.modules():
            if isinstance(module, GroupedBatchNorm2d):
                module.sync = batch_norm == "sync"
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.key_momentum = key_momentum
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))
        self.train()

    def train(self, mode: bool = True) -> "MoCo":
        """Sets the mode as in any module, but frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, query_B1HW: Tensor, key_B1HW: Tensor, order: Tensor) -> Encodings:
        """Encodes a query and a key view of each image, (B, 1, H, W); `order` as for `shuffle`."""
        return self.encode_queries(query_B1HW, self.encode_keys(self.shuffle(key_B1HW, order), order))

    def shuffle(self, rows: Tensor, order: Tensor) -> Tensor:
        """Shuffles rows (B, ...), one per image, by `order` (N B,), int64, over the N processes of a node, before keys are encoded.

        A query and its key must not share batch statistics: an encoder could then minimise the loss by encoding nothing but these,
        which are the same for the whole batch and differ from those of the queue, and would learn nothing. Hence shuffling batch
        norm (He et al. 2020, section 3.3), before the images are divided into groups, so that the result depends neither on the number
        of processes of a node nor on that of parts.
        """
        shuffled = self.batch_norm == "shuffle" and self.groups * processes.node().size > 1
        return processes.permute(rows, order) if shuffled else rows

    @torch.no_grad()
    def encode_keys(self, shuffled_B1HW: Tensor, order: Tensor, parts: int = 1) -> Keys:
        """Computes keys and maps of shuffled images, in `parts` parts one after the other, and undoes the shuffling.

        Several processes send each other the maps after the stages in `sent` only; the others are not returned.
        """
        found = [self.key(part, self._groups(parts)) for part in shuffled_B1HW.chunk(parts)]
        k = _concatenate([k for k, _ in found])
        stages = self.sent if processes.node().size > 1 and self.batch_norm == "shuffle" else self.query.stages
        maps = {stage: _concatenate([maps[stage] for _, maps in found]) for stage in stages}
        back = order.argsort()
        return Keys(self.shuffle(k, back), {stage: self.shuffle(key_map, back) for stage, key_map in maps.items()})

    def encode_queries(self, query_B1HW: Tensor, keys: Keys, parts: int = 1) -> Encodings:
        """Computes the queries of one of `parts` parts of a batch, and returns them with the keys of the same images."""
        q, maps = self.query(query_B1HW, self._groups(parts))
        return Encodings(q, keys.k, maps, keys.maps)

    def _groups(self, parts: int) -> int:
        return self.groups // parts if self.batch_norm == "shuffle" else 1

    def update_statistics(self, parts: int = 1) -> None:
        """Updates the running statistics of both encoders by those of a step, whose batch was computed in `parts` parts."""
        update_statistics(self, self.groups if self.batch_norm == "shuffle" else parts)

    def statistics(self) -> list[Tensor]:
        """Returns the running means and variances of batch norm."""
        return [tensor for name, tensor in self.named_buffers() if name.endswith(("running_mean", "running_var"))]

    @torch.no_grad()
    def move_key_encoder(self) -> None:
        """Updates theta_k <- m theta_k + (1 - m) theta_q (He et al. 2020, equation 2), but not its batch norm statistics."""
        torch._foreach_lerp_(list(self.key.parameters()), list(self.query.parameters()), 1 - self.key_momentum)

    @torch.no_grad()
    def enqueue(self, k: Tensor, step: int) -> None:
        """Replaces the oldest keys by those of the given step, (B, dim), where B divides the length of the queue."""
        length = self.queue.shape[1]
        assert length % len(k) == 0, "the queue holds whole batches"
        start = step * len(k) % length
        self.queue[:, start : start + len(k)] = k.T


def _concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenates parts of a batch; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
