"""The training loop of the detector: shards and a backbone to `model.safetensors`, `predictions.parquet` and `figures/`.

The best epoch is the one with the highest mAP@50 on the validation split; the test split is read once, at the end.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from components.common.errors import UserError
from components.common.formats.predictions import META
from components.common.runs import storage
from components.common.runs.inputs import upstream_run_id
from components.common.runs.params import Runtime
from components.common.runs.shards import Shards, open_shards
from components.common.runs.stage_run import StageRun, stage_run
from components.common.runs.storage import write_json
from components.common.statistics.detection_matching import mean_average_precision
from components.common.training import backbones, checkpoints, loop
from components.common.training.progress import VOLATILE
from components.common.training.reader import Batch, Reader
from components.common.training.subsets import labelled_rows
from components.detect import annotations, augment, figures, network
from components.detect.annotations import Annotations, annotate, choose_classes
from components.detect.params import Detect
from components.detect.predictions import Found, compared, operating_threshold, table_of, to_numpy

WARMUP = 0.1
"""Share of the steps with a rising learning rate."""


def run(*, shards: list[str], out: str, params: Detect, runtime: Runtime, backbone: str | None = None) -> None:
    """Trains a detector of the classes that have boxes.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `detect`.
        runtime: the section `runtime`.
        backbone: output folder of pretrain; None trains from scratch.

    Raises:
        UserError: shards or a backbone that cannot be used, such as shards without boxes.
        Interrupted: a signal came; the checkpoint is written.
    """
    task = Detection(params, open_shards(shards), backbone)
    with stage_run("detect", out, params, task.inputs, runtime=runtime, upstream=task.upstream) as job:
        history = loop.Fit(task, "detect", job.folder, params.epochs, runtime).run(job.log)
        task.finish(job)
        chosen = {name: value for name, value in history[task.best["epoch"] - 1].items() if name not in VOLATILE}
        metrics = {"best_epoch": chosen.pop("epoch"), **task.counts(), **chosen}
        job.attach(loop.HISTORY)
        job.attach("figures")
        job.publish(metrics, drop=(checkpoints.FOLDER,))


class Detection(loop.Task):
    """The detector, its optimizer, and the best weights so far."""

    def __init__(self, params: Detect, shards: Shards, folder: str | None):
        self.params, self.shards = params, shards
        self.device = loop.set_up(params.device, params.seed)
        self.inputs, self.upstream = dict(shards.inputs), shards.upstream
        self.train, self.val = (Reader(shards, split, annotations.COLUMNS) for split in ("train", "val"))
        self.classes = choose_classes(self.train, params.classes)
        self.known, self.val_known = self._annotate(self.train), self._annotate(self.val)
        self.rows = self._choose_rows()
        self.train.keep(self.rows)
        self.mean, self.std = shards.mean_std
        self.network = self._start_network(folder).to(self.device).to(memory_format=torch.channels_last)
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=params.lr, weight_decay=params.weight_decay)
        self.batch_size = min(params.batch_size, len(self.rows))
        self.steps_per_epoch = len(self.rows) // self.batch_size
        self.best: dict[str, Any] = {"map_50": -1.0, "epoch": 0, "weights": {}}

    def _annotate(self, reader: Reader) -> Annotations:
        return annotate(reader, self.classes, self.shards.findings)

    def _choose_rows(self) -> annotations.Rows:
        """Images of the train split that are known, of a share of the patients."""
        patients, present = self.train.table["patient_id"].to_pylist(), self.known.present(len(self.classes))
        if not self.known.known.any():
            raise UserError(
                "detect: in no image of the train split all classes are known; add labels, or name the classes in detect.classes"
            )
        rows = labelled_rows(patients, present, self.params.label_fraction, self.params.seed)
        if len(rows) < 2 or not np.nansum(present[rows]):
            raise UserError(
                f"detect.label_fraction: {self.params.label_fraction:g} leaves no boxes or a single image to train on; raise it"
            )
        return rows

    def _start_network(self, folder: str | None) -> network.Detector:
        """A detector on the pretrained backbone, whose normalisation it takes over, or on a new one."""
        if folder is None:
            if self.params.batch_norm == "frozen":
                raise UserError("detect.batch_norm: frozen needs a pretrained --backbone; from scratch its statistics must be trained")
            resnet = backbones.build(self.params.arch)
        else:
            resnet, description, self.inputs["backbone"] = backbones.load(folder, self.params.arch)
            self.mean, self.std = description["normalisation"]["mean"], description["normalisation"]["std"]
            if run_id := upstream_run_id(folder):
                self.upstream["backbone"] = run_id
        return network.build(resnet, self.params, len(self.classes), self.shards.size, self.mean, self.std)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        network.train_mode(self.network, self.params)
        return loop.on_device(self.train.shuffled(self.batch_size, self.params.seed, epoch, start), self.device)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step of the optimizer."""
        torch.manual_seed(hash((self.params.seed, epoch, *batch.rows.tolist())))  # Faster R-CNN draws the boxes that it learns from
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.lr * loop.cosine(progress, WARMUP)
        image, boxes, labels = self._examples(batch, epoch)
        with loop.autocast(self.device):
            terms = self.network.losses(image, boxes, labels)
            loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in {"loss": loss, **terms}.items()}

    def _examples(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Images, corners of the boxes and their classes, augmented."""
        image = loop.to_unit(batch.images, self.device)
        corners = [corners_of(self.known.boxes[row]) for row in batch.rows]
        labels = [self.known.labels[row] for row in batch.rows]
        if self.params.augment:
            drawn = augment.draw(batch.rows, self.params.seed, epoch)
            image = augment.warp_images(image, drawn)
            corners = [augment.warp_boxes(each, one, self.shards.size) for each, one in zip(corners, drawn, strict=True)]
        visible = [((each[:, 2:] - each[:, :2]) >= 1).all(axis=1) for each in corners]
        boxes = [torch.from_numpy(each[keep]).to(self.device, torch.float32) for each, keep in zip(corners, visible, strict=True)]
        return image, boxes, [torch.from_numpy(each[keep]).to(self.device) for each, keep in zip(labels, visible, strict=True)]

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Predicts the validation split, and keeps the weights if they are the best so far."""
        images = compared(self.predict(self.val, self.val_known), self.val_known)
        map_50, map_all = mean_average_precision(images, len(self.classes))
        # Of equals the later one, which has seen more; and without a box in the validation split it is the last epoch.
        if not map_50 < self.best["map_50"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.network.model.state_dict().items()}
            self.best = {"map_50": map_50, "epoch": epoch + 1, "weights": weights}
        return {"val_map_50": map_50, "val_map": map_all}

    @torch.no_grad()
    def predict(self, reader: Reader, known: Annotations) -> list[Found]:
        """What is found in each image, in the order of the reader's table, clipped to the image."""
        self.network.eval()
        found: list[Found] = []
        for batch in loop.on_device(reader.in_order(self.params.batch_size), self.device):
            for row, each in zip(batch.rows, self.network(loop.to_unit(batch.images, self.device)), strict=True):
                found.append(to_numpy(each, known.origin[row], known.extent[row]))
        return found

    def counts(self) -> dict[str, float]:
        """Of the images trained on, and of those left out because a class is not known."""
        boxes = sum(len(self.known.boxes[row]) for row in self.rows)
        return {"train_images": len(self.rows), "train_boxes": boxes, "train_images_unknown": int((~self.known.known).sum())}

    def finish(self, job: StageRun) -> None:
        """Writes the best epoch's model, its predictions for val and test, and pictures of some."""
        self.network.model.load_state_dict(self.best["weights"])
        save_file({name: value.contiguous() for name, value in self.best["weights"].items()}, job.folder / "model.safetensors")
        readers = {split: Reader(self.shards, split, (*annotations.COLUMNS, *META)) for split in ("val", "test")}
        known = {split: self._annotate(reader) for split, reader in readers.items()}
        found = {split: self.predict(reader, known[split]) for split, reader in readers.items()}
        threshold = operating_threshold(compared(found["val"], known["val"]), len(self.classes))
        write_json(job.folder / "model.json", self._description(job, threshold))
        tables = [table_of(readers[split], split, found[split], known[split], self.classes) for split in readers]
        pq.write_table(pa.concat_tables(tables), job.folder / "predictions.parquet")
        figures.draw(job.folder / "figures", readers["test"], found["test"], known["test"], self.classes, threshold)

    def _description(self, job: StageRun, threshold: float) -> dict[str, Any]:
        return {
            "task": "detect",
            **{name: getattr(self.params, name) for name in network.SETTINGS},
            "classes": self.classes,
            "size": self.shards.size,
            "bits": self.shards.bits,
            "normalisation": {"mean": self.mean, "std": self.std},
            "threshold": threshold,
            "best_epoch": self.best["epoch"],
            "preprocessing": self.shards.preprocessing,
            "inputs": job.inputs,
            "sha256": storage.digest_file(job.folder / "model.safetensors"),
        }

    def state(self) -> dict[str, Any]:
        """The model, the optimizer and the best weights so far."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]


def corners_of(boxes: annotations.Array) -> annotations.Array:
    """(G, 4) left, top, right, bottom of x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
