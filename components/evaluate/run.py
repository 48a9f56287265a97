"""Predictions to `metrics.json`, `roc.csv`, `pr.csv` and `report.html`. Needs no torch."""

import csv
import logging
from pathlib import Path

from components.common import tracking
from components.common.job import open_job, upstream_run_id
from components.common.params import Params
from components.evaluate import classification
from components.evaluate.classification import Classification
from components.evaluate.predictions import Predictions, read_predictions
from components.evaluate.report import render

REPORT = "report.html"
CURVES = {"roc.csv": ("roc", ("finding", "fpr", "tpr")), "pr.csv": ("pr", ("finding", "recall", "precision"))}
TASKS = {"classify": classification.evaluate}

log = logging.getLogger(__name__)


def run(*, predictions: list[str], out: str, params: Params) -> None:
    """Evaluates models on the test split.

    Args:
        predictions: output folders of classify. metrics.json and the curves speak of the first under plain names; the
            report sets the others beside it.
        out: output folder.
        params: the section `evaluate` is used.

    Raises:
        UserError: predictions that cannot be evaluated.
    """
    read = [read_predictions(folder) for folder in predictions]
    names = [numbered("predictions", index) for index in range(len(read))]
    upstream = {name: run_id for name, folder in zip(names, predictions, strict=True) if (run_id := upstream_run_id(folder))}
    job = open_job("evaluate", out, params.evaluate, _inputs(read), upstream=upstream)
    with tracking.run(job) as tracker:
        evaluated = [TASKS[one.task](one, params.evaluate) for one in read]
        metrics = {key: value for index, one in enumerate(evaluated) for key, value in one.metrics(numbered("classify", index)).items()}
        _warn(evaluated[0], params.evaluate.min_positives)
        differences = [classification.difference(other, evaluated[0], params.evaluate) for other in evaluated[1:]]
        for name in CURVES:
            write_curves(job.work / name, evaluated)
        (job.work / REPORT).write_text(render(evaluated, differences, params.evaluate), encoding="utf-8")
        tracker.log(metrics)
        for name in (*CURVES, REPORT):
            tracker.attach(job.work / name)
        job.publish(metrics, tracker.run_id, drop=(tracking.RUN_ID_FILE,))


def write_curves(path: Path, evaluated: list[Classification]) -> None:
    """Writes roc.csv or pr.csv, one row a point, the curves of the first model under the findings' plain names."""
    which, header = CURVES[path.name]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for index, one in enumerate(evaluated):
            writer.writerows(classification.curve_rows(one, which, f"{index + 1}: " if index else ""))


def numbered(name: str, index: int) -> str:
    """`name` for the first, `name_2` for the second, ..."""
    return f"{name}_{index + 1}" if index else name


def _inputs(read: list[Predictions]) -> dict[str, str]:
    return {numbered(name, index): digest for index, one in enumerate(read) for name, digest in one.digests.items()}


def _warn(evaluated: Classification, minimum: int) -> None:
    if not evaluated.counted:
        log.warning("evaluate: no finding has %d positives and as many negatives in the test split: no macro average", minimum)
