"""Predictions to `metrics.json`, curves as CSV, and `report.html`. Needs no torch.

Every task has a module, named in TASKS, that follows the protocol in task.py: `read(table, model, params)` checks and
evaluates the predictions of one model and returns what has

- `.metrics(prefix)`: numbers for metrics.json, named `<prefix>_...`: detect, and detect_2 for a second model of the task;
- `.headline()`: the intervals by which models of the task are laid side by side;
- `.curves()`: CSV files by name; the first column names the curve, and gets `2: ` in front for a second model;
- `.sections()`: HTML of the report;
- `.warnings()`: sentences about what the numbers cannot say;
- `.compare(baseline)`: paired differences to a baseline of the same task.
"""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

from components.classify import evaluation as classification
from components.common.errors import UserError
from components.common.head import Evaluated, Points, Task
from components.common.runs import storage
from components.common.runs.inputs import upstream_run_id
from components.common.runs.params import Evaluate
from components.common.runs.stage_run import stage_run
from components.detect import evaluation as detection
from components.evaluate import study_page
from components.evaluate.params import Study
from components.evaluate.predictions import read_predictions
from components.evaluate.report import Entry, render
from components.evaluate.study import answers_of, find_cells
from components.invert import evaluation as inversion

REPORT = "report.html"
STUDY, STUDY_TEXT = "study.html", "study.md"
TASKS: dict[str, Task] = {"classify": classification, "detect": detection, "invert": inversion}

log = logging.getLogger(__name__)


def run(*, predictions: list[str], out: str, params: Evaluate, baseline: list[str] | None = None) -> None:
    """Evaluates models on the test split.

    Args:
        predictions: output folders of classify, detect and invert. metrics.json and the curves speak of the first model of a
            task under plain names, of a second as classify_2, and so on; the report lays models of a task side by side.
        out: output folder.
        params: the section `evaluate`.
        baseline: output folders that the models are compared with, at most one a task.

    Raises:
        UserError: predictions that cannot be evaluated, or compared.
    """
    models = [_evaluate(folder, params) for folder in predictions]
    baselines = _by_task([_evaluate(folder, params) for folder in baseline or []], models)
    inputs = _digests("predictions", "model", models) | _digests("baseline", "baseline_model", list(baselines.values()))
    upstream = _run_ids("predictions", predictions) | _run_ids("baseline", baseline or [])
    with stage_run("evaluate", out, params, inputs, upstream=upstream) as job:
        entries = _entries(models, baselines)
        metrics = {name: value for entry in entries for name, value in entry.metrics().items()}
        for warning in (f"{entry.prefix}: {warning}" for entry in entries for warning in entry.evaluated.warnings()):
            log.warning("evaluate: %s", warning)
        files = write_curves(job.folder, entries)
        (job.folder / REPORT).write_text(render(entries, params), encoding="utf-8")
        for name in (*files, REPORT):
            job.attach(name)
        job.publish(metrics)


def study(*, cells: str, out: str, params: Study, evaluate: Evaluate) -> None:
    """Compares the arms of a study (components/evaluate/study.py).

    Args:
        cells: folder whose folders CLAIM/CONDITION/ARM/SEED are output folders of classify, detect and invert.
        out: output folder: study.html, the same as text in study.md, and the numbers in metrics.json.
        params: the section `study`.
        evaluate: the section `evaluate`.

    Raises:
        UserError: cells that are missing, or cannot be evaluated or compared.
    """
    models = {cell: _evaluate(storage.join(cells, *cell), evaluate) for cell in find_cells(cells)}
    inputs = {"/".join(cell): model.model.digests["predictions"] for cell, model in models.items()}
    with stage_run("study", out, params, inputs, depends={"evaluate": evaluate.values()}) as job:
        answers = answers_of(models, params, evaluate)
        (job.folder / STUDY).write_text(study_page.render(answers, params, evaluate), encoding="utf-8")
        (job.folder / STUDY_TEXT).write_text(study_page.as_text(answers, params), encoding="utf-8")
        metrics = {name: value for found in answers for name, value in found.metrics().items()}
        job.attach(STUDY)
        for sentence in study_page.summary(answers, params):
            log.info("study: %s", sentence)
        job.publish(metrics)


def write_curves(folder: Path, entries: Sequence[Entry]) -> list[str]:
    """Writes the CSV files, the curves of a task's first model under plain names; returns the names of the files."""
    files: dict[str, Points] = {}
    for entry in entries:
        for name, (header, rows) in entry.evaluated.curves().items():
            label = f"{entry.number}: " if entry.number > 1 else ""
            labelled = [(f"{label}{first}", *others) for first, *others in rows]
            files[name] = Points(header, [*(files[name].rows if name in files else []), *labelled])
    for name, (header, rows) in files.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return list(files)


def numbered(name: str, index: int) -> str:
    """`name` for the first, `name_2` for the second, ..."""
    return f"{name}_{index + 1}" if index else name


def _evaluate(folder: str, params: Evaluate) -> Evaluated:
    table, model = read_predictions(folder)
    if model.task not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"{model.source}: predictions of the task {model.task}, which evaluate does not know; known: {known}")
    return TASKS[model.task].read(table, model, params)


def _by_task(baselines: list[Evaluated], models: list[Evaluated]) -> dict[str, Evaluated]:
    """Each task's baseline."""
    found: dict[str, Evaluated] = {}
    for baseline in baselines:
        task = baseline.model.task
        if task in found:
            raise UserError(f"--baseline: {found[task].model.folder} and {baseline.model.folder} are both of the task {task}; name one")
        if task not in {each.model.task for each in models}:
            raise UserError(f"--baseline: {baseline.model.folder} is of the task {task}, of which --predictions has no model")
        found[task] = baseline
    return found


def _entries(models: list[Evaluated], baselines: dict[str, Evaluated]) -> list[Entry]:
    """The models in order, numbered within their task, with their differences to the baseline."""
    entries: list[Entry] = []
    for evaluated in models:
        task = evaluated.model.task
        number = 1 + sum(entry.evaluated.model.task == task for entry in entries)
        differences = evaluated.compare(baselines[task]) if task in baselines else []
        entries.append(Entry(evaluated, number, numbered(task, number - 1), baselines.get(task), differences))
    return entries


def _digests(first: str, second: str, evaluated: list[Evaluated]) -> dict[str, str]:
    """SHA-256 by name of input."""
    digests: dict[str, str] = {}
    for index, one in enumerate(evaluated):
        digests |= {numbered(first, index): one.model.digests["predictions"], numbered(second, index): one.model.digests["model"]}
    return digests


def _run_ids(name: str, folders: list[str]) -> dict[str, str]:
    """MLflow run id by name of input."""
    found = {numbered(name, index): upstream_run_id(folder) for index, folder in enumerate(folders)}
    return {key: run_id for key, run_id in found.items() if run_id}
