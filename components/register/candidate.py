"""Reading of a candidate for registration: a model and the evaluation of its predictions, checked against each other."""

from pathlib import Path

from components.common.errors import UserError
from components.common.formats.documents import LONGEST_KEY, METRICS, check_metrics, mlflow_key, parse_json
from components.common.formats.model import DESCRIPTION, IMAGES, WEIGHTS
from components.common.formats.predictions import PREDICTIONS, parse_predictions, rows_of
from components.common.head import Candidate
from components.common.runs import storage
from components.common.runs.inputs import read_document, read_model, read_record, upstream_run_ids
from components.common.runs.params import flatten
from components.heads import ANY_HEAD, HEADS, check_description

TRAINING = ("fingerprint", "params", "inputs", "git", "packages", "python", "threads", "upstream_mlflow_run_ids")
"""Entries of run.json that it takes to train the model again."""


def read_candidate(model: str, evaluation: str) -> Candidate:
    """Reads and checks the output folders of a head and of evaluate.

    Raises:
        UserError: a folder is not what it should be, or the evaluation is of other predictions than the model's.
    """
    description, model_digest = read_model(model, ANY_HEAD)
    head = check_description(description, storage.join(model, DESCRIPTION))
    content, metrics_digest = read_document(evaluation, METRICS, "evaluate")
    path = storage.join(evaluation, METRICS)
    metrics = check_metrics(content, path, "evaluate")
    if (metric := HEADS[head].registration.METRIC) not in metrics:
        raise UserError(f"{path}: has no {metric}; give --evaluation an output folder of evaluate that had {model} among its --predictions")
    evaluated, trained = read_record(evaluation, ("inputs", "params")), read_record(model)
    path = storage.join(model, PREDICTIONS)
    predictions = storage.read(path)
    digest = storage.digest(predictions)
    if not _is_evaluated(digest, evaluated["inputs"], any(name.startswith(f"{head}_2_") for name in metrics)):
        raise UserError(f"{evaluation}: evaluates other predictions than {path}; run evaluate with {model} as the first of --predictions")
    training = storage.join(model, METRICS)
    return Candidate(
        model=model,
        evaluation=evaluation,
        head=head,
        description=description,
        metrics=metrics,
        record={**trained},
        training=parse_json(storage.read(training), training, head) if storage.exists(training) else {},
        min_positives=evaluated["params"].get("min_positives", 0),
        test_predictions=rows_of(parse_predictions(predictions, path), "test"),
        inputs={"model": model_digest, "predictions": digest, "evaluation": metrics_digest},
        upstream=upstream_run_ids({"model": model, "evaluation": evaluation}),
    )


def registry_tags(candidate: Candidate, metric: str) -> dict[str, str]:
    """Returns tags for the registry: the head, a metric with its interval, and everything needed to train the model again."""
    training = flatten({name: candidate.record[name] for name in TRAINING if name in candidate.record}, "train.")
    results = {name: candidate.metrics.get(name) for name in (metric, f"{metric}_low", f"{metric}_high")}
    numbers = {name: f"{value:.6g}" for name, value in results.items() if value is not None}
    return {"task": candidate.head, **{mlflow_key(name, LONGEST_KEY): str(value) for name, value in training.items()}, **numbers}


def copy_weights(candidate: Candidate, folder: Path) -> Path:
    """Copies model.safetensors, and images.txt if there is one, into a local folder and checks the digest of the weights.

    Raises:
        UserError: the weights are not those that model.json describes.
    """
    weights = storage.read(storage.join(candidate.model, WEIGHTS))
    if storage.digest(weights) != candidate.description["sha256"]:
        raise UserError(f"{storage.join(candidate.model, WEIGHTS)}: does not match {DESCRIPTION}; run {candidate.head} again")
    (folder / WEIGHTS).write_bytes(weights)
    if storage.exists(images := storage.join(candidate.model, IMAGES)):  # models of early versions have none
        (folder / IMAGES).write_bytes(storage.read(images))
    return folder / WEIGHTS


def _is_evaluated(digest: str, inputs: dict[str, str], several: bool) -> bool:
    """Whether the unnumbered metrics of a head in an evaluation are about these predictions.

    They are about its first model of that head. The record does not say which one that is, unless it is the only or the very
    first one.
    """
    if several:
        return inputs.get("predictions") == digest
    return digest in [value for name, value in inputs.items() if name.partition("_")[0] == "predictions"]
