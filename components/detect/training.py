"""Training of a detector on the images of the train split in which all classes are known."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.common.errors import UserError
from components.common.formats.predictions import META
from components.common.runs.shards import Shards
from components.common.statistics.detection_matching import mean_average_precision
from components.common.training import backbones, devices, loop, optimization, processes
from components.common.training.batch_norm import synchronise
from components.common.training.checkpoints import copy_weights
from components.common.training.reader import Batch, Reader
from components.common.training.seeds import seed_for
from components.common.training.subsets import labelled_rows
from components.common.training.warp import warp
from components.detect import annotations, augment, network
from components.detect.annotations import Annotations, annotate, choose_classes
from components.detect.params import Detect
from components.detect.predictions import Found, compared, to_numpy


class Detection(loop.Trainable):
    """The detector, its optimizer, and the best weights so far. The test split is not opened."""

    metric = "val_map_50"
    stateful = ("network", "optimizer", "best")

    def __init__(self, params: Detect, shards: Shards, folder: str | None):
        if folder is None and params.batch_norm == "frozen":
            raise UserError("detect.batch_norm: frozen needs a pretrained --backbone; from scratch its statistics must be trained")
        self.params, self.shards = params, shards
        self.device = devices.set_up(params.device, params.seed)
        self.train, self.val = (Reader(shards, split, (*annotations.COLUMNS, *META)) for split in ("train", "val"))
        self.classes = choose_classes(self.train, params.classes)
        self.known, self.val_known = self.annotate(self.train), self.annotate(self.val)
        self.rows = self._choose_rows()
        self.train.keep(self.rows)
        resnet, self.mean, self.std, self.inputs, self.upstream = backbones.start(folder, params.arch, shards)
        detector = network.build(resnet, params, len(self.classes), shards.size, self.mean, self.std)
        self.network = detector.to(self.device).to(memory_format=torch.channels_last)
        self.compiled = (detector.model.backbone,)  # type: ignore[assignment]
        synchronise(self.network)
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=params.lr, weight_decay=params.weight_decay)
        self.batch_size = min(params.batch_size, len(self.rows))
        processes.check_batch("detect.batch_size", self.batch_size)
        self.steps_per_epoch = len(self.rows) // self.batch_size
        self.best: dict[str, Any] = {"map_50": -1.0, "epoch": 0, "weights": {}}

    def annotate(self, reader: Reader) -> Annotations:
        """Places the boxes of a reader's split on the square images."""
        return annotate(reader, self.classes, self.shards.findings)

    def _choose_rows(self) -> annotations.Rows:
        patients, present = self.train.table["patient_id"].to_pylist(), self.known.present(len(self.classes))
        if not self.known.known.any():
            raise UserError("detect: no image of the train split is known for all classes; add labels, or name classes in detect.classes")
        rows = labelled_rows(patients, present, self.params.label_fraction, self.params.seed)
        if len(rows) < 2 or not np.nansum(present[rows]):
            found = f"detect.label_fraction: {self.params.label_fraction:g} leaves no boxes or only one training image"
            raise UserError(f"{found}; raise it or add patients with boxes")
        return rows

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches of an epoch from number `start` on."""
        network.train_mode(self.network, self.params)
        return devices.on_device(self.train.shuffled(self.batch_size, self.params.seed, epoch, start), self.device)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> loop.Numbers:
        """Takes one step of the optimizer."""
        optimization.set_learning_rate(self.optimizer, self.params.lr, progress)
        image, boxes, labels = self._examples(batch, epoch)
        with devices.autocast(self.device):
            seeds = [seed_for(self.params.seed, epoch, int(row)) for row in batch.rows]
            terms = self.network.losses(image, boxes, labels, seeds, len(batch.rows) / self.batch_size)
            loss = torch.stack(list(terms.values())).sum()
        return {**optimization.step_together(self.optimizer, loss, terms)}

    def _examples(self, batch: Batch, epoch: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns images, corners of the boxes and their classes, augmented, without boxes that are no longer visible."""
        image = devices.to_unit(batch.images, self.device)
        corners = [corners_of(self.known.boxes[row]) for row in batch.rows]
        labels = [self.known.labels[row] for row in batch.rows]
        if self.params.augment:
            drawn = augment.draw(batch.rows, self.params.seed, epoch)
            image = warp(image, processes.on_device(torch.from_numpy(drawn), self.device))
            corners = [augment.warp_boxes(each, one, self.shards.size) for each, one in zip(corners, drawn, strict=True)]
        visible = [((each[:, 2:] - each[:, :2]) >= 1).all(axis=1) for each in corners]
        counts = [int(keep.sum()) for keep in visible]

        def copied(parts: list[npt.NDArray[Any]], dtype: torch.dtype) -> list[Tensor]:
            """Copies all images' boxes or classes in one message."""
            kept = np.concatenate([each[keep] for each, keep in zip(parts, visible, strict=True)])
            return list(torch.split(processes.on_device(torch.from_numpy(kept).to(dtype), self.device), counts))

        return image, copied(corners, torch.float32), copied(labels, torch.int64)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluates the validation split and keeps the weights if they are the best so far."""
        images = compared(self.predict(self.val, self.val_known), self.val_known)
        map_50, map_all = mean_average_precision(images, len(self.classes))
        # On a tie the later epoch wins, which has seen more images; without boxes in the validation split mAP is NaN, and the last one.
        if not map_50 < self.best["map_50"]:
            self.best = {"map_50": map_50, "epoch": epoch + 1, "weights": copy_weights(self.network.model)}
        return {"val_map_50": map_50, "val_map": map_all}

    @torch.no_grad()
    @devices.exact()
    def predict(self, reader: Reader, known: Annotations) -> list[Found]:
        """Detects in each image, in the order of the reader's table, and clips boxes to the image."""
        self.network.eval()
        found: dict[int, Found] = {}
        with processes.shared_errors():
            for batch in devices.on_device(reader.in_order(self.params.batch_size), self.device):
                for row, each in zip(batch.rows, self.network(devices.to_unit(batch.images, self.device)), strict=True):
                    found[int(row)] = to_numpy(each, known.origin[row], known.extent[row])
        every = {row: each for part in processes.gather_objects(found) for row, each in part.items()}
        return [every[row] for row in range(len(reader))]

    def counts(self) -> dict[str, float]:
        """Counts the training images and boxes, and the images left out because a class is not known."""
        boxes = sum(len(self.known.boxes[row]) for row in self.rows)
        return {"train_images": len(self.rows), "train_boxes": boxes, "train_images_unknown": int((~self.known.known).sum())}


def corners_of(boxes: annotations.Array) -> annotations.Array:
    """Converts (G, 4) x, y, width, height to left, top, right, bottom."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
