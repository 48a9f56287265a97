"""Shards and a backbone to `model.safetensors` and `predictions.parquet`.

The best epoch, whether to stop early, and the temperature are chosen on the validation split; the test split is opened once,
when all that is done.
"""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from components.classify.network import scale_logits
from components.classify.params import Classify
from components.classify.training import MODES, Classification
from components.common.errors import UserError
from components.common.formats.predictions import META, common_columns
from components.common.runs import storage
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import StageRun, stage_run
from components.common.runs.storage import write_json
from components.common.statistics.calibration import fit_temperature, negative_log_likelihood
from components.common.training import checkpoints, loop
from components.common.training.progress import VOLATILE
from components.common.training.reader import Reader

Array = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


def run(*, shards: list[str], out: str, params: Classify, runtime: Runtime, backbone: str | None = None) -> None:
    """Trains a classifier of all findings of the shards.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `classify`.
        runtime: the section `runtime`.
        backbone: output folder of pretrain; None starts from random weights.

    Raises:
        UserError: shards or a backbone that cannot be used.
        Interrupted: a signal came; the checkpoint is written.
    """
    opened = open_shards(shards)
    if not opened.findings:
        raise UserError(f"{', '.join(shards)}: the shards have no findings; put a labels.csv into the raw folder and run preprocess again")
    task = MODES[params.mode](params, opened, backbone)
    if task.batch_size < params.batch_size:
        log.warning("classify: batches of %d images, since no more are to train on", task.batch_size)
    with stage_run("classify", out, params, task.inputs, runtime=runtime, upstream=task.upstream) as job:
        history = loop.Fit(task, "classify", job.folder, params.epochs, runtime).run(job.log)
        calibration = finish(task, job)
        chosen = {name: value for name, value in history[task.best["epoch"] - 1].items() if name not in VOLATILE}
        metrics = {"best_epoch": chosen.pop("epoch"), "train_images": len(task.rows), **chosen, **calibration}
        job.attach(loop.HISTORY)
        job.publish(metrics, drop=(checkpoints.FOLDER,))


def finish(task: Classification, job: StageRun) -> dict[str, float]:
    """Writes the best epoch's model, calibrated on val, and its predictions for val and test.

    Returns:
        The temperature, and the validation split's negative log-likelihood before and after.
    """
    network = task.best_network()
    val = Reader(task.shards, "val", META)
    logits, targets = task.predict(network, val), val.labels().astype(np.float64)
    temperature = fit_temperature(targets, logits.astype(np.float64))
    scale_logits(network.fc, temperature)
    save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, job.folder / "model.safetensors")
    write_json(job.folder / "model.json", describe(task, job, temperature))
    (job.folder / "figures").mkdir(exist_ok=True)
    test = Reader(task.shards, "test", META)
    tables = [
        predictions(val, "val", _sigmoid(logits / np.float32(temperature)), task.shards.findings),
        predictions(test, "test", _sigmoid(task.predict(network, test)), task.shards.findings),
    ]
    pq.write_table(pa.concat_tables(tables), job.folder / "predictions.parquet")
    divisors = {"val_nll_uncalibrated": 1.0, "val_nll": temperature}
    likelihoods = {name: negative_log_likelihood(targets, logits.astype(np.float64) / value) for name, value in divisors.items()}
    return {"temperature": temperature, **likelihoods}


def describe(task: Classification, job: StageRun, temperature: float) -> dict[str, Any]:
    """The content of model.json. The head's weights are divided by the temperature already."""
    return {
        "task": "classify",
        "arch": task.params.arch,
        "findings": task.shards.findings,
        "size": task.shards.size,
        "bits": task.shards.bits,
        "normalisation": {"mean": task.mean, "std": task.std},
        "mode": task.params.mode,
        "tta_flip": task.params.tta_flip,
        "temperature": temperature,
        "best_epoch": task.best["epoch"],
        "preprocessing": task.shards.preprocessing,
        "inputs": job.inputs,
        "sha256": storage.digest_file(job.folder / "model.safetensors"),
    }


def predictions(reader: Reader, split: str, scores: Array, findings: list[str]) -> pa.Table:
    """The rows of predictions.parquet of a split: who, what kind, and score and target of each finding."""
    columns = common_columns(reader.table, split, "classify")
    targets = reader.labels()
    for index, finding in enumerate(findings):
        columns[f"score_{finding}"] = pa.array(scores[:, index])
        columns[f"target_{finding}"] = pa.array(targets[:, index])
    return pa.table(columns)


def _sigmoid(logits: Array) -> Array:
    scores: Array = torch.sigmoid(torch.from_numpy(logits)).numpy()
    return scores
