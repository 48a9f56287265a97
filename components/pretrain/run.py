"""The pretraining loop: shards to `backbone.safetensors`, with checkpoints, history and an MLflow run."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from components.common.errors import UserError
from components.common.runs.params import Runtime
from components.common.runs.shards import Shards, open_shards
from components.common.runs.stage_run import StageRun, stage_run
from components.common.training import backbones, checkpoints, loop, processes
from components.common.training.progress import VOLATILE
from components.common.training.reader import Batch, Reader
from components.pretrain import augment, picture, watch
from components.pretrain import start as starting
from components.pretrain.align import Geometry
from components.pretrain.moco import MoCo
from components.pretrain.objective import Objective
from components.pretrain.params import Pretrain
from components.pretrain.probe import Probe

VIEWS = "figures/views.png"
Encoded = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]

log = logging.getLogger(__name__)


def run(*, shards: list[str], out: str, params: Pretrain, runtime: Runtime, start: str | None = None) -> None:
    """Pretrains a backbone on the train split.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `pretrain`.
        runtime: the section `runtime`.
        start: weights to start from (components/pretrain/start.py); None: random ones.

    Raises:
        UserError: shards or weights that cannot be used, or fewer training images than a batch.
        Interrupted: a signal came; the checkpoint is written.
    """
    with processes.joined(params.device), ExitStack() as stack:
        with processes.together():
            task = Pretraining(params, runtime, open_shards(shards), starting.read(start, params.arch) if start else None)
        # Only the main process writes; the others have neither a work folder nor an MLflow run.
        job = processes.on_main(lambda: stack.enter_context(_open(task, runtime, out)))
        if job:
            picture.write(job.folder / VIEWS, *task.examples(picture.PAIRS))
            job.attach(VIEWS, "figures")
        task.start()
        epochs = 0 if params.preset == "scratch" else params.epochs
        fit = loop.Fit(task, "pretrain", job.folder if job else None, epochs, runtime)
        history = fit.run(job.log if job else None)
        processes.on_main(lambda: _finish(task, job, history))


def _open(task: "Pretraining", runtime: Runtime, out: str) -> AbstractContextManager[StageRun]:
    ranks = {"ranks": processes.ranks()}
    return stage_run("pretrain", out, task.params, task.inputs, runtime=runtime, depends=ranks, upstream=task.upstream)


def _finish(task: "Pretraining", job: StageRun | None, history: list[dict[str, float]]) -> None:
    assert job, "the main process writes"
    task.export(job)
    if not history:
        (job.folder / loop.HISTORY).write_text("epoch\n")
    job.attach(loop.HISTORY)
    last = history[-1] if history else {}
    job.publish({name: value for name, value in last.items() if name not in ("epoch", *VOLATILE)}, drop=(checkpoints.FOLDER,))


class Pretraining(loop.Task):
    """The model and its optimizer.

    Whatever is random is a function of the seed, the epoch and the image's or the batch's number: no generator's state is kept.
    """

    def __init__(self, params: Pretrain, runtime: Runtime, shards: Shards, start: starting.Start | None = None):
        """Prepares this process's share of the training.

        Raises:
            UserError: parameters that do not fit the shards, the device or the number of processes.
        """
        self.params, self.runtime, self.shards = params, runtime, shards
        self.inputs, self.upstream = shards.inputs, shards.upstream
        self.device = loop.set_up(params.device, params.seed)
        self.reader = Reader(shards, "train", rank=processes.rank(), ranks=processes.ranks())
        _check(params, len(self.reader), self.device)
        self.mean, self.std = shards.mean_std
        self.objective = Objective(params)
        groups = params.shuffle_groups // processes.ranks()
        self.model = MoCo(params.arch, params.dim, params.queue_size, params.key_momentum, groups, params.batch_norm, self.objective.stages)
        if start is not None:
            self.inputs, self.upstream = {**self.inputs, "start": start.sha256}, {**self.upstream, **start.upstream}
            starting.load(self.model, start)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        weights = list(self.model.query.parameters())
        self.optimizer = torch.optim.SGD(weights, params.lr, params.momentum, weight_decay=params.weight_decay, fused=True)
        self.probe = _probe(shards, backbones.width(self.model.query.backbone)) if params.probe_epochs else None
        self.batch_size, self.patience = params.batch_size, runtime.collapse_epochs
        self.steps_per_epoch = len(self.reader) // params.batch_size
        self.step = 0

    def start(self) -> None:
        """Makes all processes begin with the same weights, whatever their processors make of the seed."""
        processes.copy_from_main(list(self.model.state_dict().values()))
        if self.runtime.compile:
            self.model.query.compile()
            self.model.key.compile()

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, of which this process has its share."""
        return loop.on_device(self.reader.shuffled(self.batch_size, self.params.seed, epoch, start), self.device)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step of the optimizer, the key encoder and the queue."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.lr * loop.cosine(progress)
        self.model.move_key_encoder()
        self.optimizer.zero_grad(set_to_none=True)
        q, k, numbers = self._backward(*self._views(batch, epoch))
        gradients = [weight.grad for weight in self.model.query.parameters() if weight.grad is not None]
        processes.average([*gradients, *self.model.statistics()])
        self.optimizer.step()
        watched = watch.projections(q, k, self.model.queue)
        self.model.enqueue(k)
        age = watch.queue_age(self.step, self.params.queue_size // self.batch_size)
        self.step += 1
        # One message and one wait for the GPU.
        names, values = [*numbers, *watched], torch.stack([*numbers.values(), *watched.values()])
        processes.average([values])
        return {**dict(zip(names, values.tolist(), strict=True)), "queue_age": age}

    def _backward(
        self, query: torch.Tensor, key: torch.Tensor, geometry: Geometry
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Forward and backward, a part of the batch at a time.

        InfoNCE compares with the queue and not within the batch, so that the loss is a mean over images, and the parts' gradients
        add up to the batch's.

        Returns:
            Queries and keys of the global batch, and the loss's numbers of this process's share.
        """
        count = self.params.accumulate
        with loop.autocast(self.device, self.params.precision):
            keys = self.model.encode_keys(key, self._order(), count)
        queries, found = [], []
        for image, part, warps in zip(query.chunk(count), keys.chunk(count), geometry.chunk(count), strict=True):
            with loop.autocast(self.device, self.params.precision):
                views = self.model.encode_queries(image, part, count)
            loss, numbers = self.objective(views, self.model.queue, warps)
            torch.autograd.backward(loss / count)
            queries.append(views.q.detach())
            found.append(numbers)
        mean = {name: torch.stack([numbers[name] for numbers in found]).mean(0) for name in found[0]}
        return processes.gather(torch.cat(queries)), processes.gather(keys.k), mean

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Every few epochs, and after the last, what nearest neighbours make of the features."""
        if self.probe is None:
            return {}
        if (epoch + 1) % self.params.probe_epochs and epoch + 1 < self.params.epochs:
            return {"knn_auroc_macro": math.nan}
        self.model.eval()
        value = self.probe(self._features, self.batch_size)
        self.model.train()
        return {"knn_auroc_macro": value}

    def doubt(self, row: dict[str, float]) -> str | None:
        """Whether the projections have collapsed."""
        if row["feature_std"] >= self.runtime.collapse_std:
            return None
        return (
            f"the projections have collapsed to a point: feature_std is {row['feature_std']:.2g}, below runtime.collapse_std for "
            f"{self.patience} epochs; raise pretrain.key_momentum or lower pretrain.lr, or go on with runtime.collapse_std=0"
        )

    def state(self) -> dict[str, Any]:
        """Both encoders, the queue and its position, and the optimizer."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def export(self, job: StageRun) -> None:
        """Writes the query encoder's backbone and what a user of it must know."""
        description = {
            "arch": self.params.arch,
            "method": self.params.preset,
            "epochs": 0 if self.params.preset == "scratch" else self.params.epochs,
            "images": len(self.reader),
            "size": self.reader.size,
            "normalisation": {"mean": self.mean, "std": self.std},
            "inputs": job.inputs,
        }
        backbones.export(self.model.query.backbone, job.folder, description)

    def _order(self) -> torch.Tensor:
        """How the keys of the global batch are shuffled; a function of seed and step."""
        rng = np.random.default_rng([self.params.seed, self.step])
        return torch.from_numpy(rng.permutation(self.batch_size))

    def _features(self, batch: Batch) -> torch.Tensor:
        """Pooled features (B, C) of images as they are."""
        image = (loop.to_unit(batch.images, self.device) - self.mean) / self.std
        with loop.autocast(self.device, self.params.precision):
            features: torch.Tensor = self.model.query.backbone(image.contiguous(memory_format=torch.channels_last))
        return features

    def examples(self, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], list[str]]:
        """The first views of the training: queries and keys, (N, H, W) in [0, 1], and their images' ids, N at most `count`."""
        images, rows = next(self.reader.shuffled(self.batch_size, self.params.seed, 0))
        views = self._views(Batch(images[:count], rows[:count]), 0)[:2]
        queries, keys = ((view[:, 0] * self.std + self.mean).cpu().numpy() for view in views)
        return queries, keys, self.reader.table["image_id"].take(rows[:count]).to_pylist()

    def _views(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor, Geometry]:
        """Query and key, (B, 1, H, W), normalised, and how they were made."""
        image = loop.to_unit(batch.images, self.device)
        seed = self.params.seed
        query = augment.view(image, batch.rows, seed, epoch, 0) if self.params.augment_query else augment.untouched(image)
        key = augment.view(image, batch.rows, seed, epoch, 1)
        ready = [((view.image - self.mean) / self.std).contiguous(memory_format=torch.channels_last) for view in (query, key)]
        return ready[0], ready[1], Geometry(query.warp, key.warp, (image.shape[-2], image.shape[-1]))


def _check(params: Pretrain, images: int, device: torch.device) -> None:
    """Raises UserError for what only shows here: the number of images, of processes, and the device."""
    ranks = processes.ranks()
    if images < params.batch_size:
        raise UserError(f"pretrain.batch_size: {params.batch_size}, but the train split has {images} images; make it smaller")
    name = "shuffle_groups" if params.batch_norm == "shuffle" else "batch_size"
    if getattr(params, name) % (ranks * params.accumulate) or params.batch_size % ranks:
        divisor = f"{ranks} processes" + (f" times pretrain.accumulate ({params.accumulate})" if params.accumulate > 1 else "")
        raise UserError(f"pretrain.{name}: {getattr(params, name)} is no multiple of {divisor}; change it or torchrun's --nproc-per-node")
    if params.batch_norm == "sync" and device.type == "cpu":
        raise UserError("pretrain.batch_norm: sync needs GPUs; use shuffle on a CPU")


def _probe(shards: Shards, width: int) -> Probe | None:
    try:
        return Probe(shards, width)
    except UserError as error:
        if processes.is_main():
            log.info("pretrain: no probe on the val split (%s)", error)
        return None
