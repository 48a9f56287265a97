"""The pretraining loop: shards to `backbone.safetensors`, with checkpoints, history and an MLflow run."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from components.common import backbone, checkpoint, loop, tracking
from components.common.errors import UserError
from components.common.job import Job, open_job
from components.common.params import Params
from components.common.params import Pretrain as PretrainParams
from components.common.reader import Batch, Reader
from components.common.shards import open_shards
from components.pretrain import augment
from components.pretrain.losses import ifa, info_nce, similarity_map
from components.pretrain.moco import IFA_TARGETS, MoCo, Views


def run(*, shards: list[str], out: str, params: Params) -> None:
    """Pretrains a backbone on the train split.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `pretrain` is used.

    Raises:
        UserError: shards that cannot be used, or fewer training images than a batch.
        Interrupted: a signal came; the checkpoint is written.
    """
    opened = open_shards(shards)
    reader = Reader(opened, "train")
    if len(reader) < params.pretrain.batch_size:
        raise UserError(f"pretrain.batch_size: {params.pretrain.batch_size}, but the train split has {len(reader)} images; make it smaller")
    job = open_job("pretrain", out, params.pretrain, opened.inputs, upstream=opened.upstream)
    with tracking.run(job) as tracker:
        task = Pretraining(params.pretrain, reader, opened.mean_std)
        history = loop.Fit(task, job, params.pretrain.epochs, params.pretrain.checkpoint_minutes).run(tracker.log)
        task.export(job)
        tracker.attach(job.work / loop.HISTORY)
        last = {name: value for name, value in history[-1].items() if name not in ("epoch", "images_per_second")}
        job.publish(last, tracker.run_id, drop=(checkpoint.FOLDER, tracking.RUN_ID_FILE))


class Pretraining(loop.Task):
    """The model and its optimizer."""

    def __init__(self, params: PretrainParams, reader: Reader, mean_std: tuple[float, float]):
        self.params, self.reader = params, reader
        self.device = loop.set_up(params.device, params.seed)
        self.mean, self.std = mean_std
        self.model = MoCo(params.arch, params.dim, params.queue_size, params.key_momentum, params.shuffle_groups)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.query.parameters(), lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay
        )
        self.targets = IFA_TARGETS[params.preset]
        self.batch_size = params.batch_size
        self.steps_per_epoch = len(reader) // params.batch_size

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        return self.reader.shuffled(self.batch_size, self.params.seed, epoch, start)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step of the optimizer, the key encoder and the queue."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.lr * loop.cosine(progress)
        self.model.move_key_encoder()
        query, key = self._views(batch, epoch)
        with loop.autocast(self.device):
            views = self.model(query, key, self._order(batch, epoch))
        loss, numbers = self.loss(views)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.model.enqueue(views.k)
        return numbers

    def loss(self, views: Views) -> tuple[torch.Tensor, dict[str, float]]:
        """The weighted sum of InfoNCE and IFA, and what is worth watching."""
        params, queue = self.params, self.model.queue
        nce = info_nce(views.q, views.k, queue, params.temperature)
        terms = {stage: ifa(views.query_maps[stage], views.key_maps[stage], target) for stage, target in self.targets.items()}
        loss = params.lambda_nce * nce + params.lambda_ifa * sum(terms.values(), nce.new_zeros(()))
        with torch.no_grad():
            numbers = {
                "loss": loss,
                "loss_nce": nce,
                **{f"loss_ifa_{stage}": term for stage, term in terms.items()},
                **{f"similarity_{stage}": mean_similarity(views, stage) for stage in ("layer1", "layer4")},
                "positive_similarity": (views.q * views.k).sum(1).mean(),
                "negative_similarity": (views.q @ queue).mean(),
                # 1 when the projections are spread over the whole sphere, 0 when they have collapsed to a point.
                "feature_std": views.q.std(0).mean() * views.q.shape[1] ** 0.5,
            }
        return loss, {name: float(value.detach()) for name, value in numbers.items()}

    def state(self) -> dict[str, Any]:
        """Both encoders, the queue and the optimizer."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, job: Job) -> None:
        """Writes the query encoder's backbone and what a user of it must know."""
        description = {
            "arch": self.params.arch,
            "method": self.params.preset,
            "epochs": self.params.epochs,
            "images": len(self.reader),
            "size": self.reader.size,
            "normalisation": {"mean": self.mean, "std": self.std},
            "inputs": job.inputs,
        }
        backbone.export(self.model.query.backbone, job.work, description)

    def _order(self, batch: Batch, epoch: int) -> torch.Tensor:
        """How the keys of a batch are shuffled; a function of seed, epoch and batch."""
        rng = np.random.default_rng([self.params.seed, epoch, int(batch.rows[0])])
        return torch.from_numpy(rng.permutation(len(batch.rows))).to(self.device)

    def _views(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = loop.to_unit(batch.images, self.device)
        seed = self.params.seed
        query = augment.view(image, batch.rows, seed, epoch, 0) if self.params.augment_query else image
        key = augment.view(image, batch.rows, seed, epoch, 1)
        normalised = [((view - self.mean) / self.std).contiguous(memory_format=torch.channels_last) for view in (query, key)]
        return normalised[0], normalised[1]


def mean_similarity(views: Views, stage: str) -> torch.Tensor:
    """Mean over batch and positions of s_l(p), also where it is no part of the loss."""
    return similarity_map(views.query_maps[stage], views.key_maps[stage]).mean()
