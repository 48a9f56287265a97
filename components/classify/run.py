"""Trains a classifier: shards and a backbone to `model.safetensors` and `predictions.parquet`.

The best epoch, early stopping and the temperature are decided on the validation split; the test split is read once, at the end.
"""

import logging

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from components.classify.network import scale_logits
from components.classify.params import Classify
from components.classify.training import MODES, Classification
from components.common.errors import UserError
from components.common.formats.history import HISTORY, metrics_of
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
from components.common.training.stage import train, training_run

Array = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


def run(*, shards: list[str], out: str, params: Classify, runtime: Runtime, backbone: str | None = None) -> None:
    """Trains a classifier of all findings of the shards, on a backbone of pretrain or from random weights."""

    def prepare() -> Classification:
        opened = open_shards(shards)
        if not opened.findings:
            found = f"{', '.join(shards)}: the shards have no findings"
            raise UserError(f"{found}; put a {LABELS} into the raw folder and run preprocess again")
        require_splits(opened)
        return MODES[params.mode](params, opened, backbone)

    with training_run("classify", out, params, runtime, prepare) as (classification, job):
        if classification.batch_size < params.batch_size:
            log.warning("classify: batches of %d images, since there are no more training images", classification.batch_size)
        history = train(classification, "classify", job, params.epochs, runtime)
        finish(classification, job, history)


def finish(classification: Classification, job: StageRun | None, history: list[dict[str, float]]) -> None:
    """Calibrates the best epoch's model on val and scores val and test, in all processes; the main one writes them."""
    network, shards = classification.best_network(), classification.shards
    val = Reader(shards, "val", META)
    logits, targets = classification.predict(network, val), val.labels().astype(np.float64)
    temperature = fit_temperature(targets, logits.astype(np.float64))
    scale_logits(network.fc, temperature)
    description = {
        "arch": classification.params.arch,
        "findings": shards.findings,
        "size": shards.size,
        "bits": shards.bits,
        "normalisation": {"mean": classification.mean, "std": classification.std},
        "mode": classification.params.mode,
        "tta_flip": classification.params.tta_flip,
        "temperature": temperature,  # the weights of the head are divided by it already
        "best_epoch": classification.best["epoch"],
    }
    test = Reader(shards, "test", META)
    rows = [(val, "val", logits / np.float32(temperature)), (test, "test", classification.predict(network, test))]
    divisors = {"val_nll_uncalibrated": 1.0, "val_nll": temperature}
    likelihoods = {name: negative_log_likelihood(targets, logits.astype(np.float64) / value) for name, value in divisors.items()}

    def write() -> None:
        assert job, "the main process writes"
        write_model(job, checkpoints.copy_weights(network), shards, description)
        (job.folder / FIGURES).mkdir(exist_ok=True)
        write_predictions(job.folder, [table_of(*each, shards.findings) for each in rows])
        best = metrics_of(history[classification.best["epoch"] - 1])
        metrics = {"best_epoch": classification.best["epoch"], "train_images": len(classification.rows), **best}
        job.attach(HISTORY)
        job.publish({**metrics, "temperature": temperature, **likelihoods}, drop=(checkpoints.FOLDER,))

    processes.on_main(write)


def table_of(reader: Reader, split: str, logits: Array, findings: list[str]) -> pa.Table:
    """Makes the rows of predictions.parquet for a split: the common columns, and score and target of each finding."""
    columns = common_columns(reader.table, split, "classify")
    scores, targets = torch.sigmoid(torch.from_numpy(logits)).numpy(), reader.labels()
    for index, finding in enumerate(findings):
        columns[score_column(finding)] = pa.array(scores[:, index])
        columns[target_column(finding)] = pa.array(targets[:, index])
    return pa.table(columns)
