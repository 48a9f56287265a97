"""The models of a sweep, and the choice among them by a number of the validation split."""

import json
import logging
import math
import statistics
from itertools import product
from typing import Any, NamedTuple

from pydantic import ValidationError

from components.common.errors import UserError
from components.common.formats.documents import METRICS, RUN_RECORD
from components.common.runs import storage
from components.common.runs.lineage import HEADLINE
from components.common.runs.params import Section
from components.common.runs.provenance import git_state
from components.common.runs.step import KEY_DIGITS
from components.evaluate.params import Sweep
from components.params import Params
from pipelines.study_plan import Model

log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """The best combination."""

    values: dict[str, Any]
    metric: float  # mean over the seeds
    folder: str  # of its model with the first seed


def combinations(params: Params) -> list[Section]:
    """Lists the sections of the head, one per combination and seed.

    Raises:
        UserError: a value is out of bounds.
    """
    sweep = params.sweep
    section: Section = params.section(sweep.stage)
    found = []
    for values in product(*sweep.grid.values()):
        for seed in sweep.seeds:
            changed = dict(zip(sweep.grid, values, strict=True)) | {"seed": seed}
            try:
                found.append(type(section).model_validate(section.values() | changed))
            except ValidationError as error:
                first = error.errors()[0]
                raise UserError(f"sweep.grid: {sweep.stage}.{first['loc'][0]}: {first['msg'].lower()}, not {first['input']!r}") from None
    return found


def plan(shards: str, backbone: str, root: str, params: Params) -> list[Model]:
    """Returns the models in the form of pipelines/study_plan.py; each folder is named by a hash of all that the model depends on."""
    stage, inputs = params.sweep.stage, {"shards": [shards], "backbone": backbone}
    models = []
    for section in combinations(params):
        depends = {"stage": stage, "inputs": inputs, "params": section.values(), "commit": git_state()["commit"]}
        key = storage.digest(json.dumps(depends, sort_keys=True).encode())[:KEY_DIGITS]
        folder = storage.join(root, "sweep", key)
        models.append({"stage": stage, "inputs": json.dumps(inputs), "section": json.dumps(section.values()), "folder": folder})
    return models


def choose(folders: list[str], sweep: Sweep) -> Choice:
    """Finds the combination with the highest mean over the seeds. The test split is not looked at.

    Raises:
        UserError: a model has no such number.
    """
    found: dict[str, list[tuple[int, float, str]]] = {}
    for folder in folders:
        record, metrics = (json.loads(storage.read(storage.join(folder, name))) for name in (RUN_RECORD, METRICS))
        if sweep.metric not in metrics:
            known = ", ".join(name for name in metrics if name.startswith("val_"))
            raise UserError(f"{folder}: {METRICS} has no {sweep.metric}; set sweep.metric to one of {known}")
        values = {name: record["params"][name] for name in sorted(sweep.grid)}
        number = -math.inf if metrics[sweep.metric] is None else metrics[sweep.metric]
        found.setdefault(json.dumps(values), []).append((record["params"]["seed"], number, folder))
    means = {values: statistics.fmean(number for _, number, _ in models) for values, models in found.items()}
    best = max(means, key=lambda values: means[values])
    return Choice(json.loads(best), means[best], min(found[best])[2])


def tell(choice: Choice, sweep: Sweep, count: int) -> None:
    """Writes the choice into the MLflow run of the pipeline, the parent of those of the models."""
    from components.common.runs import tracking  # imports MLflow, which a pipeline compiles without

    shown = ", ".join(f"{name} {value}" for name, value in choice.values.items())
    headline = f"{shown}: {sweep.metric} {choice.metric:.4f}, the best of {count // len(sweep.seeds)} combinations"
    log.info("sweep: %s; %s", headline, choice.folder)
    parent, client = tracking.pipeline_run_id(), tracking.client()
    if parent:
        with tracking.reachable():
            for name, value in choice.values.items():
                client.log_param(parent, f"best.{sweep.stage}.{name}", value)
            client.log_metric(parent, f"best_{sweep.metric}", choice.metric)
            client.set_tag(parent, HEADLINE, headline)
