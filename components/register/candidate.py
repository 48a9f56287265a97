"""What is about to be registered: a classifier and the evaluation of its predictions, checked against each other."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.common import storage
from components.common.errors import UserError
from components.common.job import METRICS_FILE, RUN_FILE, read_input, upstream_run_id

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
        """The macro average and its interval, for the registry."""
        return {name: f"{value:.6g}" for name, value in self.metrics.items() if name.startswith(METRIC) and value is not None}

    @property
    def summary(self) -> str:
        """What users should know of the model, in Markdown."""
        low, high = (self.metrics.get(f"{METRIC}_{side}") for side in ("low", "high"))
        interval = "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"
        about = self.description
        return (
            f"{about['arch']} for {', '.join(about['findings'])} on frontal chest radiographs.\n\n"
            f"Macro test AUROC {self.auroc:.3f}{interval}. Input: (N, H, W) uint{about['bits']} pixels of shards, H and W at most "
            f"{about['size']}; output: a probability a finding. For research; not a medical device."
        )

    @cached_property
    def test_predictions(self) -> pa.Table:
        """The test rows of predictions.parquet."""
        table = pq.read_table(pa.BufferReader(storage.read(storage.join(self.model, PREDICTIONS))))
        return table.filter(pa.compute.equal(table["split"], "test"))

    def copy_files(self, folder: Path) -> tuple[Path, Path]:
        """Local copies of model.safetensors, checked against its digest, and model.json.

        Raises:
            UserError: the weights are not those that model.json describes.
        """
        weights = storage.read(storage.join(self.model, WEIGHTS))
        if storage.digest(weights) != self.description["sha256"]:
            raise UserError(f"{storage.join(self.model, WEIGHTS)}: does not match {DESCRIPTION}; run classify again")
        (folder / WEIGHTS).write_bytes(weights)
        (folder / DESCRIPTION).write_bytes(storage.read(storage.join(self.model, DESCRIPTION)))
        return folder / WEIGHTS, folder / DESCRIPTION


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
    record = json.loads(storage.read(storage.join(evaluation, RUN_FILE)))
    predictions_digest = storage.digest(storage.read(storage.join(model, PREDICTIONS)))
    if predictions_digest != record["inputs"].get("predictions"):  # those of the first model, which METRIC is about
        path = storage.join(model, PREDICTIONS)
        raise UserError(f"{evaluation}: evaluates other predictions than {path}; run evaluate with {model} as the first of --predictions")
    inputs = {"model": model_digest, "predictions": predictions_digest, "evaluation": metrics_digest}
    upstream = {name: run_id for name, uri in (("model", model), ("evaluation", evaluation)) if (run_id := upstream_run_id(uri))}
    return Candidate(model, evaluation, description, metrics, record["params"]["min_positives"], inputs, upstream)
