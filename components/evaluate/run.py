"""Predictions to `metrics.json`, curves as CSV, and `report.html`. Needs no torch.

What is particular to a head is in its evaluation.py (see components/common/head.py). Metrics and curves of the first model of a head
have plain names; those of a second model begin with NAME_2, and so on.
"""

import csv
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from components.common.errors import UserError
from components.common.formats.pages import DUPLICATES, REPORT, STUDY, STUDY_TEXT
from components.common.formats.predictions import PREDICTIONS
from components.common.head import CsvTable, Evaluation
from components.common.runs import storage
from components.common.runs.inputs import upstream_run_ids
from components.common.runs.lineage import HEADLINE
from components.common.runs.params import Evaluate
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import stage_run
from components.evaluate import duplicates_page, near_duplicates, study_page
from components.evaluate.params import Duplicates, Study
from components.evaluate.predictions import read_predictions
from components.evaluate.report import Entry, render
from components.evaluate.study import answers_of, find_cells
from components.heads import HEADS

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # beginnings of cells that spreadsheets take for formulas

log = logging.getLogger(__name__)


def run(*, predictions: list[str], out: str, params: Evaluate, baseline: list[str] | None = None) -> None:
    """Evaluates models on the test split.

    Args:
        predictions: output folders of heads; the report compares models of the same head side by side.
        out: output folder.
        params: the section `evaluate`.
        baseline: output folders that the models are compared with, at most one per head.

    Raises:
        UserError: predictions that cannot be evaluated, or compared.
    """
    models = [_evaluate(folder, params) for folder in predictions]
    baselines = _by_head([_evaluate(folder, params) for folder in baseline or []], models)
    inputs = _digests("predictions", "model", models) | _digests("baseline", "baseline_model", list(baselines.values()))
    upstream = _run_ids("predictions", predictions) | _run_ids("baseline", baseline or [])
    with stage_run("evaluate", out, params, inputs, upstream=upstream) as job:
        entries = _entries(models, baselines)
        metrics = {name: value for entry in entries for name, value in entry.metrics().items()}
        for warning in (f"{entry.prefix}: {warning}" for entry in entries for warning in entry.evaluated.warnings()):
            log.warning("evaluate: %s", warning)
        files = write_curves(job.folder, entries)
        storage.write(str(job.folder / REPORT), render(entries, params).encode())
        for name in (*files, REPORT):
            job.attach(name)
        job.tracker.tag({HEADLINE: "; ".join(entry.headline() for entry in entries)})
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
        storage.write(str(job.folder / STUDY), study_page.render(answers, params, evaluate).encode())
        storage.write(str(job.folder / STUDY_TEXT), study_page.as_text(answers, params, evaluate).encode())
        metrics = {name: value for found in answers for name, value in found.metrics().items()}
        job.attach(STUDY)
        for sentence in study_page.summary(answers, params, evaluate):
            log.info("study: %s", sentence)
        job.publish(metrics)


def duplicates(*, shards: list[str], out: str, params: Duplicates, backbone: str | None = None) -> None:
    """Lists images of different files that are nearly the same picture.

    Args:
        shards: output folders of preprocess, searched together.
        out: output folder: duplicates.csv lists the pairs, duplicates.html shows the first ones and stays with the shards.
        params: the section `duplicates`.
        backbone: output folder of pretrain, whose features must agree as well.

    Raises:
        UserError: shards or backbone that cannot be read.
    """
    opened = open_shards(shards)
    features = None
    if backbone:
        from components.common.training.features import Extractor  # imports torch, which the rest of the stage does without

        features = Extractor(backbone, opened.size, opened.bits)
    inputs = opened.inputs | ({"backbone": features.digest} if features else {})
    upstream = opened.upstream | upstream_run_ids({"backbone": backbone} if backbone else {})
    with stage_run("duplicates", out, params, inputs, upstream=upstream) as job:
        found = near_duplicates.find(opened, params, job.folder, duplicates_page.SHOWN, features)
        write_csv(job.folder / near_duplicates.LIST, found.table())
        storage.write(str(job.folder / DUPLICATES), duplicates_page.render(found, params, opened).encode())
        metrics = found.metrics()
        log.info("duplicates: %s", ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in metrics.items()))
        if metrics["pairs_across_splits"]:
            log.warning("duplicates: the splits share pictures; %s/%s lists them, see docs/duplicates.md", out, near_duplicates.LIST)
        job.publish(metrics, drop=(near_duplicates.THUMBNAILS,))


def write_curves(folder: Path, entries: Sequence[Entry]) -> list[str]:
    """Writes the CSV files and returns their names; the curves of a second model of a head are labelled `2: `."""
    files: dict[str, CsvTable] = {}
    for entry in entries:
        for name, (header, rows) in entry.evaluated.curves().items():
            label = f"{entry.number}: " if entry.number > 1 else ""
            labelled = [(f"{label}{first}", *others) for first, *others in rows]
            files[name] = CsvTable(header, [*(files[name].rows if name in files else []), *labelled])
    for name, (header, rows) in files.items():
        write_csv(folder / name, [header, *rows])
    return list(files)


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows, the header first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(map(_cell, row) for row in rows)


def _cell(value: Any) -> Any:
    """Puts an apostrophe before text that spreadsheets would take for a formula, such as the name of a finding."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def numbered(name: str, index: int) -> str:
    """`name` for the first, `name_2` for the second, ..."""
    return f"{name}_{index + 1}" if index else name


def _evaluate(folder: str, params: Evaluate) -> Evaluation:
    table, model = read_predictions(folder)
    if model.head not in HEADS:
        known = ", ".join(HEADS)
        raise UserError(f"{model.path(PREDICTIONS)}: written by {model.head}, which is not a head; known: {known}")
    return HEADS[model.head].evaluation.read(table, model, params)


def _by_head(baselines: list[Evaluation], models: list[Evaluation]) -> dict[str, Evaluation]:
    """Returns the baseline of each head."""
    found: dict[str, Evaluation] = {}
    for baseline in baselines:
        head = baseline.model.head
        if head in found:
            raise UserError(f"--baseline: {found[head].model.folder} and {baseline.model.folder} are both of the head {head}; name one")
        if head not in {each.model.head for each in models}:
            raise UserError(f"--baseline: {baseline.model.folder} is of the head {head}, of which --predictions has no model")
        found[head] = baseline
    return found


def _entries(models: list[Evaluation], baselines: dict[str, Evaluation]) -> list[Entry]:
    """Returns the models in order, numbered per head, with their differences to the baseline."""
    entries: list[Entry] = []
    for evaluated in models:
        head = evaluated.model.head
        number = 1 + sum(entry.evaluated.model.head == head for entry in entries)
        differences = evaluated.compare(baselines[head]) if head in baselines else []
        entries.append(Entry(evaluated, number, numbered(head, number - 1), baselines.get(head), differences))
    return entries


def _digests(first: str, second: str, evaluated: list[Evaluation]) -> dict[str, str]:
    """Returns SHA-256 by name of input."""
    digests: dict[str, str] = {}
    for index, one in enumerate(evaluated):
        digests |= {numbered(first, index): one.model.digests["predictions"], numbered(second, index): one.model.digests["model"]}
    return digests


def _run_ids(name: str, folders: list[str]) -> dict[str, str]:
    """Returns the MLflow run ids by name of input."""
    return upstream_run_ids({numbered(name, index): folder for index, folder in enumerate(folders)})
