"""The fine-tuning loop: shards and a backbone to `model.safetensors` and `predictions.parquet`.

The best epoch is the one with the highest macro AUROC on the validation split; the test split is read once, at the end.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.transforms import v2

from components.classify.network import attach_head, masked_bce, prior_logits
from components.common import backbone, checkpoint, loop, storage, tracking
from components.common.errors import UserError
from components.common.job import Job, open_job, upstream_run_id, write_json
from components.common.metrics import auroc
from components.common.params import Classify as ClassifyParams
from components.common.params import Params
from components.common.reader import Batch, Reader
from components.common.shards import Shards, open_shards

META = ("view", "sex", "age", "manufacturer")
WARMUP = 0.1
"""Share of the steps with a rising learning rate."""

Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def run(*, shards: list[str], out: str, params: Params, backbone: str | None = None) -> None:
    """Fine-tunes a classifier of all findings of the shards.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `classify` is used.
        backbone: output folder of pretrain; None trains from scratch.

    Raises:
        UserError: shards or a backbone that cannot be used.
        Interrupted: a signal came; the checkpoint is written.
    """
    opened = open_shards(shards)
    if not opened.findings:
        raise UserError(f"{', '.join(shards)}: the shards have no findings; put a labels.csv into the raw folder and run preprocess again")
    task = Classification(params.classify, opened, backbone)
    job = open_job("classify", out, params.classify, task.inputs, upstream=task.upstream)
    with tracking.run(job) as tracker:
        history = loop.Fit(task, job, params.classify.epochs, params.classify.checkpoint_minutes).run(tracker.log)
        task.finish(job)
        chosen = {name: value for name, value in history[task.best["epoch"] - 1].items() if name != "images_per_second"}
        metrics = {"best_epoch": chosen.pop("epoch"), "train_images": len(task.rows), **chosen}
        tracker.log(metrics)
        tracker.attach(job.work / loop.HISTORY)
        job.publish(metrics, tracker.run_id, drop=(checkpoint.FOLDER, tracking.RUN_ID_FILE))


class Classification(loop.Task):
    """The model, its optimizer, and the best weights so far."""

    def __init__(self, params: ClassifyParams, shards: Shards, folder: str | None):
        self.params, self.shards = params, shards
        self.device = loop.set_up(params.device, params.seed)
        self.inputs, self.upstream = dict(shards.inputs), shards.upstream
        self.mean, self.std = shards.mean_std
        self.network = self._start_network(folder)
        self.train, self.val = Reader(shards, "train"), Reader(shards, "val")
        self.targets = self.train.labels()
        self.rows = labelled_rows(self.train, params.label_fraction)
        if len(self.rows) < params.batch_size:
            raise UserError(f"classify.batch_size: {params.batch_size}, but only {len(self.rows)} images are to train on; make it smaller")
        self.train.keep(self.rows)
        with torch.no_grad():
            self.network.fc.bias.copy_(prior_logits(torch.from_numpy(self.targets[self.rows])))
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=params.lr, weight_decay=params.weight_decay)
        self.batch_size = params.batch_size
        self.steps_per_epoch = len(self.rows) // params.batch_size
        self.best: dict[str, Any] = {"auroc": -1.0, "epoch": 0, "weights": {}}

    def _start_network(self, folder: str | None) -> torchvision.models.ResNet:
        """The pretrained backbone, or a new one, with a new head; the normalisation is the backbone's."""
        arch, findings = self.params.arch, len(self.shards.findings)
        if folder is None:
            return attach_head(backbone.build(arch), findings)
        resnet, description, self.inputs["backbone"] = backbone.load(folder, arch)
        self.mean, self.std = description["normalisation"]["mean"], description["normalisation"]["std"]
        if run_id := upstream_run_id(folder):
            self.upstream["backbone"] = run_id
        return attach_head(resnet, findings)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        self.network.train()
        return self.train.shuffled(self.batch_size, self.params.seed, epoch, start)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.lr * loop.cosine(progress, WARMUP)
        image = augment(loop.to_unit(batch.images, self.device), batch.rows, self.params.seed, epoch)
        targets = torch.from_numpy(self.targets[batch.rows]).to(self.device)
        with loop.autocast(self.device):
            loss = masked_bce(self.network(self._normalise(image)), targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return {"loss": float(loss.detach())}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Predicts the validation split, and keeps the weights if they are the best so far."""
        scores, targets = self.predict(self.val), self.val.labels()
        macro = macro_auroc(targets, scores)
        # Without both classes of any finding in the validation split there is nothing to choose by: the last epoch it is.
        if not macro <= self.best["auroc"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
            self.best = {"auroc": macro, "epoch": epoch + 1, "weights": weights}
        return {"val_auroc_macro": macro}

    @torch.no_grad()
    def predict(self, reader: Reader) -> Array:
        """Probabilities, (N, findings), in the order of the reader's table."""
        self.network.eval()
        scores = np.empty((len(reader), len(self.shards.findings)), np.float32)
        for batch in reader.in_order(self.params.batch_size):
            with loop.autocast(self.device):
                logits = self.network(self._normalise(loop.to_unit(batch.images, self.device)))
            scores[batch.rows] = torch.sigmoid(logits.float()).cpu().numpy()
        return scores

    def finish(self, job: Job) -> None:
        """Writes the best epoch's model and its predictions for val and test."""
        self.network.load_state_dict(self.best["weights"])
        weights = {name: value.contiguous() for name, value in self.best["weights"].items()}
        save_file(weights, job.work / "model.safetensors")
        (job.work / "figures").mkdir(exist_ok=True)
        write_json(job.work / "model.json", self._description(job))
        tables = []
        for split in ("val", "test"):
            reader = Reader(self.shards, split, META)
            tables.append(predictions(reader, split, self.predict(reader), self.shards.findings))
        pq.write_table(pa.concat_tables(tables), job.work / "predictions.parquet")

    def _description(self, job: Job) -> dict[str, Any]:
        return {
            "task": "classify",
            "arch": self.params.arch,
            "findings": self.shards.findings,
            "size": self.shards.size,
            "bits": self.shards.manifests[0]["bits"],
            "normalisation": {"mean": self.mean, "std": self.std},
            "best_epoch": self.best["epoch"],
            "inputs": job.inputs,
            "sha256": storage.digest_file(job.work / "model.safetensors"),
        }

    def _normalise(self, image: torch.Tensor) -> torch.Tensor:
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def state(self) -> dict[str, Any]:
        """The model, the optimizer and the best weights so far."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]


def labelled_rows(reader: Reader, fraction: float) -> Rows:
    """Rows with a known label of a share of the patients; a smaller share is a subset of a larger one.

    A patient's pseudonym is an HMAC, so that its order is as good as random and does not change as patients are added.
    """
    patients = np.array(reader.table["patient_id"].to_pylist())
    known = ~np.isnan(reader.labels()).all(axis=1)
    chosen = np.unique(patients[known])
    chosen = chosen[: max(1, round(fraction * len(chosen)))]
    return np.flatnonzero(known & np.isin(patients, chosen))


def augment(image_B1HW: torch.Tensor, rows: Rows, seed: int, epoch: int) -> torch.Tensor:
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
    values = []
    for target, score in zip(targets.T, scores.T, strict=True):
        known = ~np.isnan(target)
        if len(np.unique(target[known])) == 2:
            values.append(auroc(target[known], score[known]))
    return float(np.mean(values)) if values else float("nan")


def predictions(reader: Reader, split: str, scores: Array, findings: list[str]) -> pa.Table:
    """The rows of predictions.parquet of a split: who, what kind, and score and target of each finding."""
    columns: dict[str, Any] = {
        "image_id": reader.table["image_id"],
        "patient_id": reader.table["patient_id"],
        "split": pa.array([split] * len(reader)),
        "task": pa.array(["classify"] * len(reader)),
        **{name: reader.table[name] for name in META},
    }
    targets = reader.labels()
    for index, finding in enumerate(findings):
        columns[f"score_{finding}"] = pa.array(scores[:, index])
        columns[f"target_{finding}"] = pa.array(targets[:, index])
    return pa.table(columns)
