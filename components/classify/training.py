"""What classify trains: a whole network, or a linear probe on the features of a frozen one."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import v2

from components.classify import losses
from components.classify.imbalance import thin_labels
from components.classify.network import attach_head, fold_standardisation, parameter_groups
from components.classify.params import Classify
from components.common.errors import UserError
from components.common.runs.inputs import upstream_run_id
from components.common.runs.shards import Shards
from components.common.statistics.arrays import has_both
from components.common.statistics.ranking import auroc
from components.common.training import backbones, loop
from components.common.training.reader import Batch, Reader
from components.common.training.subsets import labelled_rows

WARMUP = 0.1
"""Share of the steps with a rising learning rate."""
SMALLEST_STD = 1e-4
"""Of a feature: one that hardly varies is not blown up."""

Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Classification(loop.Task):
    """The labels, the optimizer, and the best weights so far. The test split is not opened."""

    trained: nn.Module
    """What the optimizer changes."""

    def __init__(self, params: Classify, shards: Shards, folder: str | None):
        self.params, self.shards = params, shards
        self.device = loop.set_up(params.device, params.seed)
        self.inputs, self.upstream = dict(shards.inputs), shards.upstream
        self.mean, self.std = shards.mean_std
        self.network = self._start_network(folder)
        self.train, self.val = Reader(shards, "train"), Reader(shards, "val")
        self.targets, self.rows = self._labels()
        self.train.keep(self.rows)
        self.batch_size = min(params.batch_size, len(self.rows))
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
        """Sets `trained` and returns its parameters in groups, each with `scale`, the factor of its learning rate."""

    @abstractmethod
    def logits(self, batch: Batch, epoch: int) -> Tensor:
        """(B, findings), of training images."""

    @abstractmethod
    def val_logits(self) -> Array:
        """(N, findings), of the validation split."""

    @abstractmethod
    def best_network(self) -> torchvision.models.ResNet:
        """The whole network with the best weights."""

    def _start_network(self, folder: str | None) -> torchvision.models.ResNet:
        """The pretrained backbone, or a new one, with a new head; the normalisation is the backbone's."""
        arch, findings = self.params.arch, len(self.shards.findings)
        if folder is None:
            return attach_head(backbones.build(arch), findings)
        resnet, description, self.inputs["backbone"] = backbones.load(folder, arch)
        self.mean, self.std = description["normalisation"]["mean"], description["normalisation"]["std"]
        if run_id := upstream_run_id(folder):
            self.upstream["backbone"] = run_id
        return attach_head(resnet, findings)

    def _labels(self) -> tuple[Array, Rows]:
        """Labels of the train split, unknown where the parameters leave them out, and the images that have one."""
        params, patients = self.params, np.array(self.train.table["patient_id"].to_pylist())
        labels = self.train.labels()
        chosen = labelled_rows(patients, labels, params.label_fraction, params.seed)
        targets = np.full_like(labels, np.nan)
        targets[chosen] = thin_labels(labels[chosen], patients[chosen], self.shards.findings, params.positive_rate, params.seed)
        rows = np.flatnonzero(~np.isnan(targets).all(axis=1))
        if len(rows) < 2:
            raise UserError("classify: fewer than two labelled images to train on; raise classify.label_fraction or add labels")
        return targets, rows

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.lr * group["scale"] * loop.cosine(progress, WARMUP)
        targets = torch.from_numpy(self.targets[batch.rows]).to(self.device)
        with loop.autocast(self.device):
            loss = self.loss(self.logits(batch, epoch), targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return {"loss": float(loss.detach())}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Judges the validation split, and keeps the weights if they are the best so far."""
        macro = macro_auroc(self.val.labels(), self.val_logits())
        self.epochs_done = epoch + 1
        # Without both classes of any finding in the validation split there is nothing to choose by: the last epoch it is.
        if not macro <= self.best["auroc"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.trained.state_dict().items()}
            self.best = {"auroc": macro, "epoch": epoch + 1, "weights": weights}
        return {"val_auroc_macro": macro}

    @property
    def finished(self) -> bool:
        """Whether so many epochs have passed without a better one that training stops early."""
        return 0 < self.params.patience <= self.epochs_done - int(self.best["epoch"])

    @torch.no_grad()
    def predict(self, network: nn.Module, reader: Reader) -> Array:
        """Logits, (N, findings), in the order of the reader's table; with `tta_flip` the mean of an image's and its mirror image's."""
        network.eval()
        return self._collect(reader, lambda image: self._mirrored(network, image))

    def _mirrored(self, network: nn.Module, image: Tensor) -> Tensor:
        logits: Tensor = network(image)
        return (logits + network(image.flip(-1))) / 2 if self.params.tta_flip else logits

    def _collect(self, reader: Reader, function: Any) -> Array:
        """Rows of what a function makes of normalised images, in the order of the reader's table."""
        parts: list[Array] = []
        rows: list[Rows] = []
        for batch in reader.in_order(self.params.batch_size):
            with loop.autocast(self.device):
                parts.append(function(self.normalise(loop.to_unit(batch.images, self.device))).float().cpu().numpy())
            rows.append(batch.rows)
        out = np.zeros((len(reader), parts[0].shape[1]), np.float32)
        out[np.concatenate(rows)] = np.concatenate(parts)
        return out

    def normalise(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) fractions of the full range, as the backbone wants them."""
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def state(self) -> dict[str, Any]:
        """What is trained, the optimizer, and the best weights so far."""
        return {
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "epochs_done": self.epochs_done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.epochs_done = state["best"], state["epochs_done"]


class FineTuning(Classification):
    """All weights are trained, on augmented images."""

    def _prepare(self) -> list[dict[str, Any]]:
        self.trained = self.network
        return parameter_groups(self.network, self.params.layer_decay)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        self.network.train()
        return self.train.shuffled(self.batch_size, self.params.seed, epoch, start)

    def logits(self, batch: Batch, epoch: int) -> Tensor:
        """(B, findings), of training images."""
        image = augment(loop.to_unit(batch.images, self.device), batch.rows, self.params.seed, epoch)
        logits: Tensor = self.network(self.normalise(image))
        return logits

    @torch.no_grad()
    def val_logits(self) -> Array:
        """(N, findings), of the validation split."""
        self.network.eval()
        return self._collect(self.val, self.network)

    def best_network(self) -> torchvision.models.ResNet:
        """The whole network with the best weights."""
        self.network.load_state_dict(self.best["weights"])
        return self.network


class LinearProbe(Classification):
    """The head alone is trained, on features that are computed once: the backbone is frozen, its batch statistics too.

    Features are standardised, or the learning rate would have to fit their scale, which differs between pretrainings (as He et
    al., CVPR 2022, put a BatchNorm without affine before the probe); the standardisation is folded into the head in the end.
    """

    def _prepare(self) -> list[dict[str, Any]]:
        self.trained = head = self.network.fc
        self.network.fc = nn.Identity()
        self.network.eval().requires_grad_(False)
        train, self.val_features = self._features(self.train), self._features(self.val)
        labelled = train[self.rows].astype(np.float64)
        self.feature_mean = labelled.mean(axis=0)
        self.feature_std = np.maximum(labelled.std(axis=0), SMALLEST_STD)
        self.train_features = train
        return [{"params": list(head.parameters()), "scale": 1.0}]

    @torch.no_grad()
    def _features(self, reader: Reader) -> Array:
        return self._collect(reader, self.network)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Rows alone: the images have been looked at."""
        order = np.random.default_rng([self.params.seed, epoch]).permutation(self.rows)
        for first in range(start * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size):
            yield Batch(np.empty((0, 0, 0), np.uint8), order[first : first + self.batch_size])

    def logits(self, batch: Batch, epoch: int) -> Tensor:
        """(B, findings), of training images."""
        return self._head(self.train_features[batch.rows])

    @torch.no_grad()
    def val_logits(self) -> Array:
        """(N, findings), of the validation split."""
        logits: Array = self._head(self.val_features).float().cpu().numpy()
        return logits

    def _head(self, features: Array) -> Tensor:
        standard = ((features - self.feature_mean) / self.feature_std).astype(np.float32)
        logits: Tensor = self.trained(torch.from_numpy(standard).to(self.device))
        return logits

    def best_network(self) -> torchvision.models.ResNet:
        """The whole network with the best weights."""
        self.trained.load_state_dict(self.best["weights"])
        assert isinstance(self.trained, nn.Linear)
        self.network.fc = fold_standardisation(self.trained, torch.from_numpy(self.feature_mean), torch.from_numpy(self.feature_std))
        return self.network.to(self.device)


MODES: dict[str, type[Classification]] = {"finetune": FineTuning, "linear": LinearProbe}


def augment(image_B1HW: Tensor, rows: Rows, seed: int, epoch: int) -> Tensor:
    """A small shift, rotation and scale of each image, the same whenever a step is repeated."""
    transform = v2.RandomAffine(degrees=7, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    moved = []
    with torch.random.fork_rng(devices=[]):
        for image, row in zip(image_B1HW, rows, strict=True):
            torch.manual_seed(hash((seed, epoch, int(row))))
            moved.append(transform(image))
    return torch.stack(moved)


def macro_auroc(targets: Array, scores: Array) -> float:
    """Mean AUROC over the findings with both classes among the known labels; NaN if there is none.

    Args:
        targets: (N, findings): 1, 0 or NaN.
        scores: (N, findings).
    """
    wanted = targets.astype(np.float64)
    both = has_both(wanted)
    values = [auroc(target, score) for target, score in zip(wanted[:, both].T, scores[:, both].T.astype(np.float64), strict=True)]
    return float(np.mean(values)) if values else float("nan")
