"""Trains a classifier: shards and a backbone to `model.safetensors` and `predictions.parquet`.

The best epoch, the strength of a penalty, the number of neighbours, early stopping and the temperature are decided on the
validation split; the test split is read once, at the end.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torchvision

from components.classify.frozen import LinearProbe, NearestNeighbours
from components.classify.network import scale_logits
from components.classify.params import Classify
from components.classify.task import Array, Task
from components.classify.training import FineTuning
from components.common.errors import UserError
from components.common.formats.labels import LABELS
from components.common.formats.pages import FIGURES
from components.common.formats.predictions import META, common_columns, score_column, target_column, write_predictions
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import StageRun
from components.common.statistics.calibration import fit_temperature, negative_log_likelihood
from components.common.training import checkpoints, processes
from components.common.training.inference import write_model
from components.common.training.reader import Reader, require_splits
from components.common.training.stage import training_run

MODES: dict[str, type[Task]] = {"finetune": FineTuning, "linear": LinearProbe, "knn": NearestNeighbours}


def run(*, shards: list[str], out: str, params: Classify, runtime: Runtime, backbone: str | None = None) -> None:
    """Trains a classifier of all findings of the shards, on a backbone of pretrain or from random weights."""

    def prepare() -> Task:
        opened = open_shards(shards)
        if not opened.findings:
            found = f"{', '.join(shards)}: the shards have no findings"
            raise UserError(f"{found}; put a {LABELS} into the raw folder and run preprocess again")
        require_splits(opened)
        return MODES[params.mode](params, opened, backbone)

    with training_run("classify", out, params, runtime, prepare) as (task, job):
        fitted = task.fit(job, runtime)
        _finish(task, job, {"train_images": len(task.rows), "findings_trained": int(task.trained.sum()), **fitted})


def _finish(task: Task, job: StageRun | None, metrics: dict[str, float]) -> None:
    """Calibrates a network on val and scores val and test, in all processes; the main one writes them with the metrics."""
    shards, val, test = task.shards, task.val, Reader(task.shards, "test", META)
    description: dict[str, Any] = {
        "arch": task.params.arch,
        "findings": shards.findings,
        "size": shards.size,
        "bits": shards.bits,
        "normalisation": {"mean": task.mean, "std": task.std},
        "mode": task.params.mode,
    }
    weights = None
    if isinstance(task, NearestNeighbours):
        # The model would be the features and labels of the training patients, so nothing but the predictions leaves this stage.
        scores = [task.scores(reader) for reader in (val, test)]
    else:
        assert isinstance(task, FineTuning | LinearProbe)
        network = task.best_network()
        logits = task.predict(network, val)
        metrics |= _calibrate(network, logits, val)
        description |= {"tta_flip": task.params.tta_flip, "temperature": metrics["temperature"]}  # the head is divided by it already
        if isinstance(task, FineTuning):
            description["best_epoch"] = task.best["epoch"]
        weights = checkpoints.copy_weights(network)
        logits /= np.float32(metrics["temperature"])
        scores = [torch.sigmoid(torch.from_numpy(each)).numpy() for each in (logits, task.predict(network, test))]
    splits = list(zip((val, test), ("val", "test"), scores, strict=True))

    def write() -> None:
        assert job, "the main process writes"
        write_model(job, weights, shards, description)
        (job.folder / FIGURES).mkdir(exist_ok=True)
        write_predictions(job.folder, [table_of(*each, shards.findings) for each in splits])
        job.publish(metrics, drop=(checkpoints.FOLDER,))

    processes.on_main(write)


def _calibrate(network: torchvision.models.ResNet, val_logits: Array, val: Reader) -> dict[str, float]:
    """Divides the head by the temperature that fits the validation split; returns it, and the likelihoods before and after."""
    logits, targets = val_logits.astype(np.float64), val.labels().astype(np.float64)
    temperature = fit_temperature(targets, logits)
    scale_logits(network.fc, temperature)
    divisors = {"val_nll_uncalibrated": 1.0, "val_nll": temperature}
    return {"temperature": temperature, **{name: negative_log_likelihood(targets, logits / value) for name, value in divisors.items()}}


def table_of(reader: Reader, split: str, scores: Array, findings: list[str]) -> pa.Table:
    """Makes the rows of predictions.parquet for a split: the common columns, and score and target of each finding."""
    columns = common_columns(reader.table, split, "classify")
    targets = reader.labels()
    for index, finding in enumerate(findings):
        columns[score_column(finding)] = pa.array(scores[:, index])
        columns[target_column(finding)] = pa.array(targets[:, index])
    return pa.table(columns)
