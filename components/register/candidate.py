"""What is about to be registered: a model and the evaluation of its predictions, checked against each other."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats.documents import METRICS, RUN_RECORD
from components.common.runs import storage
from components.common.runs.inputs import read_document, upstream_run_id
from components.common.runs.params import flatten

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
PREDICTIONS = "predictions.parquet"
REPORT = "report.html"
HEADS = "classify, detect or invert"


@dataclass(frozen=True)
class Candidate:
    """The outputs of classify, detect or invert, and of evaluate, for one model."""

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
    """With which a macro average was computed."""
    inputs: dict[str, str]
    """SHA-256 by name."""
    upstream: dict[str, str]
    """MLflow run id by name."""

    @property
    def task(self) -> str:
        """classify, detect or invert."""
        return str(self.description["task"])

    def tags(self, metric: str) -> dict[str, str]:
        """The task, a metric and its interval, and all that it takes to train the model again, for the registry."""
        wanted = ("fingerprint", "params", "inputs", "git", "packages", "python", "threads", "upstream_mlflow_run_ids")
        training = flatten({name: self.record[name] for name in wanted if name in self.record}, "train.")
        results = {name: self.metrics.get(name) for name in (metric, f"{metric}_low", f"{metric}_high")}
        numbers = {name: f"{value:.6g}" for name, value in results.items() if value is not None}
        return {"task": self.task, **{name: str(value) for name, value in training.items()}, **numbers}

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
            raise UserError(f"{storage.join(self.model, WEIGHTS)}: does not match {DESCRIPTION}; run {self.task} again")
        (folder / WEIGHTS).write_bytes(weights)
        return folder / WEIGHTS


def read_candidate(model: str, evaluation: str, tasks: dict[str, tuple[str, tuple[str, ...]]]) -> Candidate:
    """Reads and checks the outputs of classify, detect or invert, and of evaluate.

    Args:
        model: the former's folder.
        evaluation: the latter's.
        tasks: by name of the task, the metric that the evaluation must have, and the keys that model.json must have.

    Raises:
        UserError: a folder is not what it should be, or the evaluation is of other predictions than the model's.
    """
    description, model_digest = read_document(model, DESCRIPTION, HEADS)
    task = check_description(description, storage.join(model, DESCRIPTION), {name: needed for name, (_, needed) in tasks.items()})
    metrics, metrics_digest = read_document(evaluation, METRICS, "evaluate")
    if (metric := tasks[task][0]) not in metrics:
        path = storage.join(evaluation, METRICS)
        raise UserError(f"{path}: has no {metric}; give --evaluation an output folder of evaluate that had {model} among its --predictions")
    evaluated, trained = (json.loads(storage.read(storage.join(folder, RUN_RECORD))) for folder in (evaluation, model))
    predictions_digest = storage.digest(storage.read(storage.join(model, PREDICTIONS)))
    if not _is_evaluated(predictions_digest, evaluated["inputs"], any(name.startswith(f"{task}_2_") for name in metrics)):
        path = storage.join(model, PREDICTIONS)
        raise UserError(f"{evaluation}: evaluates other predictions than {path}; run evaluate with {model} as the first of --predictions")
    inputs = {"model": model_digest, "predictions": predictions_digest, "evaluation": metrics_digest}
    upstream = {name: run_id for name, uri in (("model", model), ("evaluation", evaluation)) if (run_id := upstream_run_id(uri))}
    training = storage.join(model, METRICS)
    counts = json.loads(storage.read(training)) if storage.exists(training) else {}
    return Candidate(model, evaluation, description, metrics, trained, counts, evaluated["params"]["min_positives"], inputs, upstream)


def check_description(description: dict[str, Any], path: str, needed: dict[str, tuple[str, ...]]) -> str:
    """Checks that a model.json is of a known task and complete, which those of earlier versions of this project may not be.

    Args:
        description: its content.
        path: its name, for the message.
        needed: keys by name of the task.

    Returns:
        The task.

    Raises:
        UserError: it is not.
    """
    task = description.get("task")
    if task not in needed:
        raise UserError(f"{path}: is of a {task} model; give --model the output folder of {HEADS}")
    if missing := [name for name in needed[task] if name not in description]:
        raise UserError(f"{path}: lacks {missing[0]}, without which the network cannot be built; run {task} again")
    return str(task)


def _is_evaluated(digest: str, inputs: dict[str, str], several: bool) -> bool:
    """Whether an evaluation's plain metrics of a task are about these predictions.

    They are about its first model of the task. Which that is the record does not say, unless it is the only or the very first one.
    """
    if several:
        return inputs.get("predictions") == digest
    return digest in [value for name, value in inputs.items() if name.partition("_")[0] == "predictions"]
