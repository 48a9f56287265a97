"""Fine-tuning of a whole network, or a linear probe on the features of a frozen one."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor, nn

from components.classify import augment, losses
from components.classify.imbalance import set_positive_rates
from components.classify.network import attach_head, fold_standardisation, parameter_groups
from components.classify.params import Classify
from components.common.errors import UserError
from components.common.runs.shards import Shards
from components.common.statistics.arrays import has_both
from components.common.statistics.ranking import auroc
from components.common.training import backbones, devices, loop, optimization, processes
from components.common.training.batch_norm import synchronise
from components.common.training.checkpoints import copy_weights
from components.common.training.reader import Batch, Reader
from components.common.training.seeds import generator_for
from components.common.training.subsets import labelled_rows
from components.common.training.warp import warp

SMALLEST_STD = 1e-4  # lower bound on a feature's standard deviation, so that one that hardly varies is not amplified

Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Classification(loop.Trainable):
    """The labels, the optimizer, and the best weights so far. The test split is not opened."""

    metric = "val_auroc_macro"
    stateful = ("trained", "optimizer", "best", "epochs_done")
    trained: nn.Module  # the module that the optimizer updates

    def __init__(self, params: Classify, shards: Shards, folder: str | None):
        self.params, self.shards = params, shards
        self.device = devices.set_up(params.device, params.seed)
        resnet, self.mean, self.std, self.inputs, self.upstream = backbones.start(folder, params.arch, shards)
        self.network = attach_head(resnet, len(shards.findings))
        self.train, self.val = Reader(shards, "train"), Reader(shards, "val")
        self.targets, self.rows = self._labels()
        self.train.keep(self.rows)
        self.batch_size = min(params.batch_size, len(self.rows))
        processes.check_batch("classify.batch_size", self.batch_size)
        self.steps_per_epoch = len(self.rows) // self.batch_size
        self.loss, bias = losses.make(params, losses.prior_logits(torch.from_numpy(self.targets[self.rows])))
        with torch.no_grad():
            self.network.fc.bias.copy_(bias)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        groups = self._prepare()
        self.optimizer = torch.optim.AdamW(groups, lr=params.lr, weight_decay=params.weight_decay)
        self.epochs_done = 0
        self.best: dict[str, Any] = {"auroc": -1.0, "epoch": 0, "weights": {}}

    @abstractmethod
    def _prepare(self) -> list[dict[str, Any]]:
        """Sets `trained` and returns its parameter groups, each with `scale`, the factor of its learning rate."""

    @abstractmethod
    def _logits(self, batch: Batch, epoch: int) -> Tensor:
        """Computes (B, findings) for training images."""

    @abstractmethod
    def val_logits(self) -> Array:
        """Computes (N, findings) for the validation split."""

    @abstractmethod
    def best_network(self) -> torchvision.models.ResNet:
        """Returns the whole network with the best weights."""

    def _labels(self) -> tuple[Array, Rows]:
        """Returns the labels of the train split, unknown where the parameters leave them out, and the images that have one."""
        params, patients = self.params, np.array(self.train.table["patient_id"].to_pylist())
        labels = self.train.labels()
        chosen = labelled_rows(patients, labels, params.label_fraction, params.seed)
        targets = np.full_like(labels, np.nan)
        targets[chosen] = set_positive_rates(labels[chosen], patients[chosen], self.shards.findings, params.positive_rate, params.seed)
        rows = np.flatnonzero(~np.isnan(targets).all(axis=1))
        if len(rows) < 2:
            raise UserError("classify: fewer than two labelled training images; raise classify.label_fraction or add labels")
        return targets, rows

    def train_step(self, batch: Batch, epoch: int, progress: float) -> loop.Numbers:
        """Takes one step of the optimizer."""
        optimization.set_learning_rate(self.optimizer, self.params.lr, progress)
        targets = processes.on_device(torch.from_numpy(self.targets[batch.rows]), self.device)
        with devices.autocast(self.device):
            loss = self.loss(self._logits(batch, epoch), targets)
        return {**optimization.step_together(self.optimizer, loss)}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluates the validation split and keeps the weights if they are the best so far."""
        macro = macro_auroc(self.val.labels(), self.val_logits())
        self.epochs_done = epoch + 1
        # If no finding has both classes in the validation split, the AUROC is NaN and the last epoch is kept.
        if not macro <= self.best["auroc"]:
            self.best = {"auroc": macro, "epoch": epoch + 1, "weights": copy_weights(self.trained)}
        return {"val_auroc_macro": macro}

    @property
    def finished(self) -> bool:
        """Whether to stop early: `patience` epochs have passed without a better one."""
        return 0 < self.params.patience <= self.epochs_done - int(self.best["epoch"])

    @torch.no_grad()
    def predict(self, network: nn.Module, reader: Reader) -> Array:
        """Computes logits (N, findings) in the order of the reader's table; `tta_flip` averages those of an image and its mirror image."""
        network.eval()

        def logits(image: Tensor) -> Tensor:
            found: Tensor = network(image)
            return (found + network(image.flip(-1))) / 2 if self.params.tta_flip else found

        return self._collect(reader, logits, len(self.shards.findings))

    @devices.exact()
    def _collect(self, reader: Reader, function: Callable[[Tensor], Tensor], width: int) -> Array:
        """Applies a function to batches of normalised images; returns its rows (N, width) in the order of the reader's table."""
        parts, rows = [torch.empty(0, width, device=self.device)], [np.empty(0, np.int64)]
        with processes.shared_errors():
            for batch in devices.on_device(reader.in_order(self.params.batch_size), self.device):
                parts.append(function(self.normalise(devices.to_unit(batch.images, self.device))))
                rows.append(batch.rows)
        found: Array = processes.assemble(torch.cat(parts), np.concatenate(rows), len(reader)).cpu().numpy()
        return found

    def normalise(self, image: Tensor) -> Tensor:
        """Normalises (B, 1, H, W) in [0, 1] as the backbone expects it."""
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class FineTuning(Classification):
    """Trains all weights on augmented images."""

    def _prepare(self) -> list[dict[str, Any]]:
        self.trained = self.network
        self.compiled = (self.network,)
        synchronise(self.network)
        return parameter_groups(self.network, self.params.layer_decay)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches of an epoch from number `start` on."""
        self.network.train()
        loaded = self.train.shuffled(self.batch_size, self.params.seed, epoch, start)
        return devices.on_device((self._with_draws(batch, epoch) for batch in loaded), self.device)

    def _with_draws(self, batch: Batch, epoch: int) -> Batch:
        return batch._replace(draws=augment.draw(batch.rows, self.train.size, self.params.seed, epoch))

    def _logits(self, batch: Batch, epoch: int) -> Tensor:
        image = warp(devices.to_unit(batch.images, self.device), torch.as_tensor(batch.draws, device=self.device))
        logits: Tensor = self.network(self.normalise(image))
        return logits

    @torch.no_grad()
    def val_logits(self) -> Array:
        """Computes (N, findings) for the validation split."""
        self.network.eval()
        return self._collect(self.val, self.network, len(self.shards.findings))

    def best_network(self) -> torchvision.models.ResNet:
        """Returns the whole network with the best weights."""
        self.network.load_state_dict(self.best["weights"])
        return self.network


class LinearProbe(Classification):
    """Trains only the head, on features that are computed once: the backbone is frozen, with its batch statistics.

    Features are standardised, since otherwise the learning rate would have to fit their scale, which differs between pretrainings
    (as He et al., CVPR 2022, put a BatchNorm without affine parameters before the probe); in the end the standardisation is folded
    into the head.
    """

    def _prepare(self) -> list[dict[str, Any]]:
        self.trained = head = self.network.fc
        self.network.fc = nn.Identity()
        self.network.eval().requires_grad_(False)
        with torch.no_grad():
            width = backbones.width(self.network)
            self.train_features, self.val_features = (self._collect(reader, self.network, width) for reader in (self.train, self.val))
        labelled = self.train_features[self.rows].astype(np.float64)
        self.feature_mean = labelled.mean(axis=0)
        self.feature_std = np.maximum(labelled.std(axis=0), SMALLEST_STD)
        return [{"params": list(head.parameters()), "scale": 1.0}]

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields only rows, since the features of the images are known."""
        order = generator_for(self.params.seed, epoch).permutation(self.rows)
        for first in range(start * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size):
            yield Batch(np.empty((0, 0, 0), np.uint8), order[first : first + self.batch_size][processes.share(self.batch_size)])

    def _logits(self, batch: Batch, epoch: int) -> Tensor:
        return self._head(self.train_features[batch.rows])

    @torch.no_grad()
    def val_logits(self) -> Array:
        """Computes (N, findings) for the validation split."""
        logits: Array = self._head(self.val_features).float().cpu().numpy()
        return logits

    def _head(self, features: Array) -> Tensor:
        standard = ((features - self.feature_mean) / self.feature_std).astype(np.float32)
        logits: Tensor = self.trained(torch.from_numpy(standard).to(self.device))
        return logits

    def best_network(self) -> torchvision.models.ResNet:
        """Returns the whole network with the best weights."""
        self.trained.load_state_dict(self.best["weights"])
        assert isinstance(self.trained, nn.Linear)
        self.network.fc = fold_standardisation(self.trained, torch.from_numpy(self.feature_mean), torch.from_numpy(self.feature_std))
        return self.network.to(self.device)


MODES: dict[str, type[Classification]] = {"finetune": FineTuning, "linear": LinearProbe}


def macro_auroc(targets: Array, scores: Array) -> float:
    """Mean AUROC over the findings with both classes among the known labels, NaN if there is none; both arrays are (N, findings)."""
    labels = targets.astype(np.float64)
    both = has_both(labels)
    values = [auroc(target, score) for target, score in zip(labels[:, both].T, scores[:, both].T.astype(np.float64), strict=True)]
    return float(np.mean(values)) if values else float("nan")
