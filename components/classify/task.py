"""A classification task: the images, the labels that training may use, and a network that starts from a backbone."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.classify.imbalance import set_positive_rates
from components.classify.network import attach_head
from components.classify.params import Classify
from components.common.errors import UserError
from components.common.formats.predictions import META
from components.common.runs.params import Runtime
from components.common.runs.shards import Shards
from components.common.runs.stage_run import StageRun
from components.common.statistics.arrays import has_both
from components.common.statistics.ranking import auroc
from components.common.training import backbones, devices, processes
from components.common.training.reader import Reader
from components.common.training.subsets import labelled_rows

Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


class Task(ABC):
    """What all modes share. The test split is not opened."""

    def __init__(self, params: Classify, shards: Shards, folder: str | None):
        self.params, self.shards = params, shards
        self.device = devices.set_up(params.device, params.seed)
        resnet, self.mean, self.std, self.inputs, self.upstream = backbones.start(folder, params.arch, shards)
        self.network = attach_head(resnet, len(shards.findings)).to(self.device).to(memory_format=torch.channels_last)
        self.train, self.val = Reader(shards, "train"), Reader(shards, "val", META)
        self.targets, self.rows = self._labels()
        self.train.keep(self.rows)

    @abstractmethod
    def fit(self, job: StageRun | None, runtime: Runtime) -> dict[str, float]:
        """Trains and writes history.csv into the work folder; every choice is made on the validation split. Returns metrics.

        Only the main of several processes has a `job`; all compute the same.
        """

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
        self.trained = has_both(targets.astype(np.float64))
        if not self.trained.all():
            names = [name for name, both in zip(self.shards.findings, self.trained, strict=True) if not both]
            log.warning("classify: %d training images have only one class of %s, and cannot teach it", len(rows), ", ".join(names))
        return targets, rows

    @torch.no_grad()
    def predict(self, network: nn.Module, reader: Reader) -> Array:
        """Computes logits (N, findings) in the order of the reader's table; `tta_flip` averages those of an image and its mirror image."""
        network.eval()

        def logits(image: Tensor) -> Tensor:
            found: Tensor = network(image)
            return (found + network(image.flip(-1))) / 2 if self.params.tta_flip else found

        return self.collect(reader, logits, len(self.shards.findings)).cpu().numpy()

    @torch.no_grad()
    @devices.exact()
    def collect(self, reader: Reader, function: Callable[[Tensor], Tensor], width: int) -> Tensor:
        """Applies a function to batches of normalised images; returns its rows (N, width) in the order of the reader's table."""
        parts, rows = [torch.empty(0, width, device=self.device)], [np.empty(0, np.int64)]
        with processes.shared_errors():
            for batch in devices.on_device(reader.in_order(self.params.batch_size), self.device):
                parts.append(function(self.normalise(devices.to_unit(batch.images, self.device))))
                rows.append(batch.rows)
        return processes.assemble(torch.cat(parts), np.concatenate(rows), len(reader))

    def normalise(self, image: Tensor) -> Tensor:
        """Normalises (B, 1, H, W) in [0, 1] as the backbone expects it."""
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def macro_auroc(targets: Array, scores: npt.NDArray[np.floating]) -> float:
    """Mean AUROC over the findings with both classes among the known labels, NaN if there is none; both arrays are (N, findings)."""
    labels = targets.astype(np.float64)
    both = has_both(labels)
    values = [auroc(target, score) for target, score in zip(labels[:, both].T, scores[:, both].T.astype(np.float64), strict=True)]
    return float(np.mean(values)) if values else float("nan")
