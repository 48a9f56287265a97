"""Fine-tuning of the whole network on augmented images."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torchvision

from components.classify import augment, losses
from components.classify.network import parameter_groups
from components.classify.params import Classify
from components.classify.task import Task, macro_auroc
from components.common.formats.history import metrics_of
from components.common.runs.params import Runtime
from components.common.runs.shards import Shards
from components.common.runs.stage_run import StageRun
from components.common.training import devices, loop, optimization, processes
from components.common.training.batch_norm import synchronise
from components.common.training.checkpoints import copy_weights
from components.common.training.reader import Batch
from components.common.training.stage import attach_results, train
from components.common.training.warp import warp

log = logging.getLogger(__name__)


class FineTuning(Task, loop.Trainable):
    """The network, the optimizer, and the best weights so far."""

    metric = "val_auroc_macro"
    stateful = ("network", "optimizer", "best", "epochs_done")

    def __init__(self, params: Classify, shards: Shards, folder: str | None):
        super().__init__(params, shards, folder)
        self.batch_size = min(params.batch_size, len(self.rows))
        if self.batch_size < params.batch_size:
            log.warning("classify: batches of %d images, since there are no more training images", self.batch_size)
        processes.check_batch("classify.batch_size", self.batch_size)
        self.steps_per_epoch = len(self.rows) // self.batch_size
        self.loss, bias = losses.make(params, losses.prior_logits(torch.from_numpy(self.targets[self.rows])))
        with torch.no_grad():
            self.network.fc.bias.copy_(bias)
        self.compiled = (self.network,)
        synchronise(self.network)
        groups = parameter_groups(self.network, params.layer_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=params.lr, weight_decay=params.weight_decay)
        self.epochs_done = 0
        self.best: dict[str, Any] = {"auroc": -1.0, "epoch": 0, "weights": {}}

    def fit(self, job: StageRun | None, runtime: Runtime) -> dict[str, float]:
        """Trains until the last epoch, or until `patience` is exhausted."""
        history = train(self, "classify", job, self.params.epochs, runtime)
        if job:
            attach_results(job)
        return {"best_epoch": self.best["epoch"], **metrics_of(history[self.best["epoch"] - 1])}

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches of an epoch from number `start` on."""
        self.network.train()
        loaded = self.train.shuffled(self.batch_size, self.params.seed, epoch, start)
        return devices.on_device((self._with_draws(batch, epoch) for batch in loaded), self.device)

    def _with_draws(self, batch: Batch, epoch: int) -> Batch:
        return batch._replace(draws=augment.draw(batch.rows, self.train.size, self.params.seed, epoch))

    def train_step(self, batch: Batch, epoch: int, progress: float) -> loop.Numbers:
        """Takes one step of the optimizer."""
        optimization.set_learning_rate(self.optimizer, self.params.lr, progress)
        targets = processes.on_device(torch.from_numpy(self.targets[batch.rows]), self.device)
        with devices.autocast(self.device):
            image = warp(devices.to_unit(batch.images, self.device), torch.as_tensor(batch.draws, device=self.device))
            loss = self.loss(self.network(self.normalise(image)), targets)
        return {**optimization.step_together(self.optimizer, loss)}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluates the validation split and keeps the weights if they are the best so far."""
        self.network.eval()
        macro = macro_auroc(self.val.labels(), self.collect(self.val, self.network, len(self.shards.findings)).cpu().numpy())
        self.epochs_done = epoch + 1
        # If no finding has both classes in the validation split, the AUROC is NaN and the last epoch is kept.
        if not macro <= self.best["auroc"]:
            self.best = {"auroc": macro, "epoch": epoch + 1, "weights": copy_weights(self.network)}
        return {"val_auroc_macro": macro}

    @property
    def finished(self) -> bool:
        """Whether to stop early: `patience` epochs have passed without a better one."""
        return 0 < self.params.patience <= self.epochs_done - int(self.best["epoch"])

    def best_network(self) -> torchvision.models.ResNet:
        """Returns the network with the best weights."""
        self.network.load_state_dict(self.best["weights"])
        return self.network
