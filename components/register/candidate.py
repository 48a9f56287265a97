"""What is about to be registered: a classifier and the evaluation of its predictions, checked against each other."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.common import storage
from components.common.errors import UserError
from components.common.job import METRICS_FILE, RUN_FILE, flat, read_input, upstream_run_id

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
PREDICTIONS = "predictions.parquet"
REPORT = "report.html"
METRIC = "classify_test_auroc_macro"


@dataclass(frozen=True)
class Candidate:
    """The outputs of classify and evaluate for one model."""

    model: str
    evaluation: str
    """Their folders."""
    description: dict[str, Any]
    """Content of model.json."""
    metrics: dict[str, float | None]
    """Content of the evaluation's metrics.json."""
    record: dict[str, Any]
    """Content of the model's run.json."""
    training: dict[str, float | None]
    """Content of the model's metrics.json, where there is one."""
    min_positives: int
    """With which the macro average was computed."""
    inputs: dict[str, str]
    """SHA-256 by name."""
    upstream: dict[str, str]
    """MLflow run id by name."""

    @property
    def auroc(self) -> float:
        """Macro test AUROC; NaN when no finding could be evaluated."""
        value = self.metrics[METRIC]
        return float("nan") if value is None else value

    @property
    def tags(self) -> dict[str, str]:
        """The macro average and its interval, and all that it takes to train the model again, for the registry."""
        wanted = ("fingerprint", "params", "inputs", "git", "packages", "python", "threads", "upstream_mlflow_run_ids")
        training = flat({name: self.record[name] for name in wanted if name in self.record}, "train.")
        results = {name: self.metrics.get(name) for name in (METRIC, f"{METRIC}_low", f"{METRIC}_high")}
        return {name: str(value) for name, value in training.items()} | {k: f"{v:.6g}" for k, v in results.items() if v is not None}

    @staticmethod
    def key(finding: str) -> str:
        """A finding's name within evaluate's metric names."""
        return re.sub(r"[^\w. -]", "_", finding)

    @property
    def summary(self) -> str:
        """What users should know of the model, in Markdown."""
        low, high = (self.metrics.get(f"{METRIC}_{side}") for side in ("low", "high"))
        interval = "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"
        about = self.description
        return (
            f"{about['arch']} for {', '.join(about['findings'])} on frontal chest radiographs.\n\n"
            f"Macro test AUROC {self.auroc:.3f}{interval}. Input: DICOM files, or (N, H, W) uint{about['bits']} pixels of shards; output: "
            "a probability a finding. For research; not a medical device. The model card is README.md among the model's files."
        )

    @cached_property
    def test_predictions(self) -> pa.Table:
        """The test rows of predictions.parquet."""
        table = pq.read_table(pa.BufferReader(storage.read(storage.join(self.model, PREDICTIONS))))
        return table.filter(pa.compute.equal(table["split"], "test"))

    def copy_weights(self, folder: Path) -> Path:
        """A local copy of model.safetensors, checked against its digest.

        Raises:
            UserError: the weights are not those that model.json describes.
        """
        weights = storage.read(storage.join(self.model, WEIGHTS))
        if storage.digest(weights) != self.description["sha256"]:
            raise UserError(f"{storage.join(self.model, WEIGHTS)}: does not match {DESCRIPTION}; run classify again")
        (folder / WEIGHTS).write_bytes(weights)
        return folder / WEIGHTS


def read_candidate(model: str, evaluation: str) -> Candidate:
    """Reads and checks the outputs of classify and evaluate.

    Raises:
        UserError: a folder is not what it should be, or the evaluation is of other predictions than the model's.
    """
    description, model_digest = read_input(model, DESCRIPTION, "classify")
    if description.get("task") != "classify":
        task = description.get("task")
        raise UserError(f"{storage.join(model, DESCRIPTION)}: is of a {task} model; give --model the output folder of classify")
    metrics, metrics_digest = read_input(evaluation, METRICS_FILE, "evaluate")
    if METRIC not in metrics:
        raise UserError(f"{storage.join(evaluation, METRICS_FILE)}: has no {METRIC}; give --evaluation the output folder of evaluate")
    evaluated, trained = (json.loads(storage.read(storage.join(folder, RUN_FILE))) for folder in (evaluation, model))
    predictions_digest = storage.digest(storage.read(storage.join(model, PREDICTIONS)))
    if predictions_digest != evaluated["inputs"].get("predictions"):  # those of the first model, which METRIC is about
        path = storage.join(model, PREDICTIONS)
        raise UserError(f"{evaluation}: evaluates other predictions than {path}; run evaluate with {model} as the first of --predictions")
    inputs = {"model": model_digest, "predictions": predictions_digest, "evaluation": metrics_digest}
    upstream = {name: run_id for name, uri in (("model", model), ("evaluation", evaluation)) if (run_id := upstream_run_id(uri))}
    training = storage.join(model, METRICS_FILE)
    counts = json.loads(storage.read(training)) if storage.exists(training) else {}
    return Candidate(model, evaluation, description, metrics, trained, counts, evaluated["params"]["min_positives"], inputs, upstream)
