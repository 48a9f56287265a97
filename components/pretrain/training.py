"""One training step of MoCo v2 with the pretraining loss, and everything around it: views, probe, health check, export."""

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.common.errors import UserError
from components.common.formats.backbone import Description
from components.common.runs.params import Runtime
from components.common.runs.shards import Shards
from components.common.runs.stage_run import StageRun
from components.common.training import backbones, devices, loop, processes
from components.common.training.optimization import set_learning_rate
from components.common.training.reader import Batch, Reader
from components.common.training.seeds import generator_for
from components.pretrain import augment, initial_weights
from components.pretrain.align import Geometry
from components.pretrain.moco import MoCo
from components.pretrain.objective import Objective
from components.pretrain.params import Pretrain
from components.pretrain.probe import Probe
from components.pretrain.projection_metrics import projection_metrics, queue_age

Floats = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


class Pretraining(loop.Trainable):
    """The model, its optimizer and its data: this process's share of the training."""

    stateful = ("model", "optimizer", "step", "auroc_at_start")
    less_memory = "raise pretrain.accumulate, or lower pretrain.batch_size"

    def __init__(self, params: Pretrain, runtime: Runtime, shards: Shards, start: initial_weights.InitialWeights | None = None):
        self.params, self.runtime, self.shards, self.distribution = params, runtime, shards, params.distribution
        self.inputs, self.upstream = shards.inputs, shards.upstream
        self.device = devices.set_up(params.device, params.seed)
        self.reader = Reader(shards, "train")
        _check(params, len(self.reader))
        self.mean, self.std = shards.mean_std
        self.objective = Objective(params)
        groups = params.shuffle_groups // processes.world_size()
        stages = {"stages": self.objective.stages, "sent": tuple(self.objective.terms)}
        self.model = MoCo(params.arch, params.dim, params.queue_size, params.key_momentum, groups, params.batch_norm, **stages)
        if start is not None:
            self.inputs, self.upstream = {**self.inputs, "start": start.sha256}, {**self.upstream, **start.upstream}
            initial_weights.load(self.model, start)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.compiled = (self.model.query, self.model.key)
        weights = list(self.model.query.parameters())
        self.optimizer = torch.optim.SGD(weights, params.lr, params.momentum, weight_decay=params.weight_decay, fused=True)
        self.probe = _probe(shards, backbones.width(self.model.query.backbone), self.device) if params.probe_epochs else None
        self.metric = "knn_auroc_macro" if self.probe else None
        self.batch_size, self.patience = params.batch_size, runtime.collapse_epochs
        self.steps_per_epoch = len(self.reader) // params.batch_size
        self.step = 0
        self.auroc_at_start = math.nan

    def restore(self, state: dict[str, Any]) -> None:
        """See Trainable."""
        super().restore({"auroc_at_start": math.nan} | state)  # not in checkpoints of 0.1.0

    def before_first_step(self) -> None:
        """Probes the features of the initial weights."""
        if self.probe:
            self.auroc_at_start = self._probe_features(self.probe)
            log.info("pretrain: before the first step, %s %.3f", self.metric, self.auroc_at_start)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields this process's share of the batches of an epoch from number `start` on."""
        loaded = self.reader.shuffled(self.batch_size, self.params.seed, epoch, start)
        return devices.on_device((self._with_draws(batch, epoch) for batch in loaded), self.device)

    def _with_draws(self, batch: Batch, epoch: int) -> Batch:
        """Draws the numbers of both views of a batch, (2, B, 11); on a GPU the loader's thread does this."""
        drawn = [augment.draw(self.distribution, batch.rows, self.params.seed, epoch, number) for number in (0, 1)]
        return batch._replace(draws=np.stack(drawn))

    def train_step(self, batch: Batch, epoch: int, progress: float) -> loop.Numbers:
        """Takes one step of the optimizer, the key encoder and the queue."""
        set_learning_rate(self.optimizer, self.params.lr, progress, warmup=0)
        self.model.move_key_encoder()
        self.optimizer.zero_grad(set_to_none=True)
        order = self._order()
        q, k, numbers = self._backward(*self._views(batch, order), order)
        self.model.update_statistics(self.params.accumulate)
        gradients = [weight.grad for weight in self.model.query.parameters() if weight.grad is not None]
        processes.average_over_ranks([*gradients, *self.model.statistics()])
        self.optimizer.step()
        numbers |= projection_metrics(q, k, self.model.queue)
        self.model.enqueue(k, self.step)
        age = queue_age(self.step, self.params.queue_size // self.batch_size)
        self.step += 1
        values = torch.stack(list(numbers.values()))
        processes.average_over_ranks([values])
        return {**dict(zip(numbers, values, strict=True)), "queue_age": age}

    def _backward(self, query: Tensor, shuffled_key: Tensor, geometry: Geometry, order: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Runs forward and backward, one part of the batch at a time; returns global queries and keys, and the loss's numbers.

        InfoNCE compares with the queue and not within the batch, so the loss is a mean over images, and the gradients of the parts
        add up to those of the batch.
        """
        count = self.params.accumulate
        with devices.autocast(self.device, self.params.precision):
            keys = self.model.encode_keys(shuffled_key, order, count)
        queries, found = [], []
        for image, part, warps in zip(query.chunk(count), keys.chunk(count), geometry.chunk(count), strict=True):
            with devices.autocast(self.device, self.params.precision):
                encodings = self.model.encode_queries(image, part, count)
            loss, numbers = self.objective(encodings, self.model.queue, warps)
            torch.autograd.backward(loss / count)
            queries.append(encodings.q.detach())
            found.append(numbers)
        mean = {name: torch.stack([numbers[name] for numbers in found]).mean(0) for name in found[0]}
        return processes.gather(torch.cat(queries)), processes.gather(keys.k), mean

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Probes the features every few epochs and after the last one."""
        if not self.probe:
            return {}
        due = (epoch + 1) % self.params.probe_epochs == 0 or epoch + 1 == self.params.epochs
        at_start = {} if math.isnan(self.auroc_at_start) else {"knn_auroc_macro_at_start": self.auroc_at_start}
        return {"knn_auroc_macro": self._probe_features(self.probe) if due else math.nan, **at_start}

    def control_metrics(self) -> dict[str, float]:
        """Returns the metrics of a control, whose weights stay the initial ones."""
        return {"knn_auroc_macro": self.auroc_at_start} if self.probe else {}

    def _probe_features(self, probe: Probe) -> float:
        self.model.eval()
        value = probe(self._features, self.batch_size)
        self.model.train()
        return value

    def health_check(self, row: dict[str, float]) -> str | None:
        """Tells whether the projections have collapsed."""
        if row["feature_std"] >= self.runtime.collapse_std:
            return None
        return (
            f"the projections have collapsed to a point: feature_std is {row['feature_std']:.2g}, below runtime.collapse_std for "
            f"{self.patience} epochs; lower pretrain.lr or raise pretrain.key_momentum, or continue with runtime.collapse_std=0"
        )

    def export(self, job: StageRun) -> None:
        """Writes the query encoder's backbone and its description."""
        description: Description = {
            "arch": self.params.arch,
            "method": self.params.preset,
            "epochs": self.params.passes,
            "images": len(self.reader),
            "size": self.reader.size,
            "normalisation": {"mean": self.mean, "std": self.std},
            "inputs": job.inputs,
        }
        backbones.export(self.model.query.backbone, job.folder, description)

    def examples(self, count: int) -> tuple[dict[str, Floats], list[str]]:
        """Returns the first images with their queries and keys, (N, H, W) in [0, 1], and their ids; N is at most `count`."""
        images, rows, _ = next(self.reader.shuffled(self.batch_size, self.params.seed, 0))
        few = self._with_draws(Batch(images[:count], rows[:count]), 0)
        untouched = self._normalise(devices.to_unit(few.images, self.device))
        shown = dict(zip(("image", "query", "key"), (untouched, *self._views(few)[:2]), strict=True))
        ids = self.reader.table["image_id"].take(few.rows).to_pylist()
        return {name: (value[:, 0] * self.std + self.mean).cpu().numpy() for name, value in shown.items()}, ids

    def _views(self, batch: Batch, order: Tensor | None = None) -> tuple[Tensor, Tensor, Geometry]:
        """Makes queries, and keys shuffled by `order` if given, (B, 1, H, W), normalised, and tells how both were warped, unshuffled.

        To shuffle the keys, processes exchange stored pixels and the numbers that the views are made from.
        """
        stored, drawn = torch.as_tensor(batch.images, device=self.device), torch.as_tensor(batch.draws, device=self.device)
        image = devices.to_unit(stored, self.device)
        query = augment.view(image, drawn[0], self.distribution) if self.params.augment_query else augment.untouched(image)
        others, changes = stored, drawn[1]
        if order is not None:
            others = self.model.shuffle(stored.view(torch.uint8), order).view(stored.dtype)
            changes = self.model.shuffle(changes, order)
        key = augment.view(devices.to_unit(others, self.device), changes, self.distribution)
        geometry = Geometry(query.warp, augment.unpack(drawn[1])[0], (image.shape[-2], image.shape[-1]))
        return self._normalise(query.image), self._normalise(key.image), geometry

    def _normalise(self, image: Tensor) -> Tensor:
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _order(self) -> Tensor:
        """Draws the permutation of the keys of this node."""
        node = processes.node()
        nodes = processes.world_size() // node.size
        keys = (self.params.seed, self.step, node.number) if nodes > 1 else (self.params.seed, self.step)
        return torch.from_numpy(generator_for(*keys).permutation(self.batch_size // nodes))

    def _features(self, batch: Batch) -> Tensor:
        """Computes pooled features (B, C) of unaugmented images."""
        features: Tensor = self.model.query.backbone(self._normalise(devices.to_unit(batch.images, self.device)))
        return features


def _check(params: Pretrain, images: int) -> None:
    """Raises UserError if the parameters do not fit the number of images or of processes."""
    ranks = processes.world_size()
    if images < params.batch_size:
        raise UserError(f"pretrain.batch_size: {params.batch_size}, but the train split has {images} images; lower it or add patients")
    name = "shuffle_groups" if params.batch_norm == "shuffle" else "batch_size"
    if getattr(params, name) % (ranks * params.accumulate) or params.batch_size % ranks:
        divisor = f"{ranks} processes" + (f" times pretrain.accumulate ({params.accumulate})" if params.accumulate > 1 else "")
        found = f"pretrain.{name}: {getattr(params, name)} is not a multiple of {divisor}"
        raise UserError(f"{found}; change it or torchrun's --nproc-per-node")


def _probe(shards: Shards, width: int, device: torch.device) -> Probe | None:
    try:
        return Probe(shards, width, device)
    except UserError as error:
        log.info("pretrain: no probe on the val split (%s)", error)
        return None
