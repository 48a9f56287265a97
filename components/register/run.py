"""Registers a model in MLflow and gives it an alias: champion or challenger."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.common.runs import storage
from components.common.runs.lineage import tags as lineage
from components.common.runs.params import Register
from components.common.runs.stage_run import StageRun, stage_run
from components.common.runs.storage import write_json
from components.register import card, gate
from components.register.candidate import REPORT, Candidate, read_candidate
from components.register.packing import pack
from components.register.registry import PREDICTIONS, WITHDRAWN, Registry, Version
from components.register.task import TASKS, Champion

REGISTRATION = "registration.json"
EXPORT = "model"
"""Folder of the output: the packed model, as the registry holds it."""

log = logging.getLogger(__name__)


def run(*, model: str, evaluation: str, out: str, params: Register) -> None:
    """Packs and registers a model, decides on its alias, and writes registration.json.

    A model that is registered already, with the same predictions and evaluation, keeps its version; its alias is
    decided anew, against the champion of the day.

    Args:
        model: output folder of classify, detect or invert.
        evaluation: output folder of evaluate, which read that model's predictions.
        out: output folder.
        params: the section `register`.

    Raises:
        UserError: inputs that are not what they should be or do not belong together; MLflow cannot be reached.
    """
    candidate = read_candidate(model, evaluation, {name: (task.METRIC, task.NEEDED) for name, task in TASKS.items()})
    with stage_run("register", out, params, candidate.inputs, upstream=candidate.upstream) as job:
        registry = Registry(name_of(params, candidate.task))
        registry.check_task(candidate.task)
        known = registry.find(_identity(job))
        version = known or _add(registry, candidate, job)
        registry.download(version, job.folder / EXPORT)
        decision, champion = _settle(registry, candidate, version, params)
        registration = _registration(version, candidate, params, champion, decision) | {"reused": known is not None}
        _tell(registration)
        write_json(job.folder / REGISTRATION, registration)
        job.attach(REGISTRATION)
        job.tracker.tag({f"registered.{name}": str(registration[name]) for name in ("name", "version", "alias")})
        job.publish(_metrics(version, candidate, decision))


def rollback(*, params: Register, out: str | None = None) -> None:
    """Makes the version that was champion before the present one the champion again.

    Args:
        params: `register.name` says of which model.
        out: gets a registration.json, too; the registry's tags say what was done, and when.

    Raises:
        UserError: there is no champion, or none before it; MLflow cannot be reached.
    """
    registry = Registry(name_of(params))
    was, now = registry.rollback()
    log.info("register: %s version %s is the champion again, version %s a challenger", registry.name, now, was)
    _record(out, params, Version(registry.name, now), "champion", was)


def demote(*, params: Register, out: str | None = None) -> None:
    """Makes the champion a challenger; until a model passes the gate there is no champion.

    Args:
        params: `register.name` says of which model.
        out: gets a registration.json, too.

    Raises:
        UserError: there is no champion; MLflow cannot be reached.
    """
    registry = Registry(name_of(params))
    was = registry.demote()
    log.info("register: %s version %s is no longer the champion", registry.name, was)
    _record(out, params, Version(registry.name, was), "challenger", was)


def name_of(settings: Register, task: str = "classify") -> str:
    """Name of the registered model: that of the parameters, else cxr-classify, cxr-detect or cxr-invert."""
    return settings.name or f"cxr-{task}"


def _record(out: str | None, settings: Register, version: Version, alias: str, champion_before: str) -> None:
    """What was done by hand, as an output."""
    if out:
        with stage_run("register", out, settings, {}, depends={"version": version, "alias": alias}, connect=False) as job:
            content = {"name": version.name, "version": version.number, "model_uri": version.uri, "alias": alias}
            write_json(job.folder / REGISTRATION, content | {"reason": "by hand", "champion_before": champion_before})
            job.publish({"version": float(version.number), "champion": float(alias == "champion")})


def _identity(job: StageRun) -> dict[str, str]:
    """Tags that make a version the same: of model, predictions and evaluation; not of when, where or with which floor."""
    return {f"input.{name}.sha256": value for name, value in job.inputs.items()}


def _add(registry: Registry, candidate: Candidate, job: StageRun) -> Version:
    """A new version. What later ones are compared with is attached first: without it a version could not be judged."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        task = TASKS[candidate.task]
        text = card.render(candidate, registry.name, job.params["licence"], registry.history(task.METRIC))
        pack(candidate.copy_weights(folder), candidate.description, text, folder / "packed")
        pq.write_table(candidate.test_predictions, folder / PREDICTIONS)
        (folder / REPORT).write_bytes(storage.read(storage.join(candidate.evaluation, REPORT)))
        job.tracker.attach(folder / PREDICTIONS)
        job.tracker.attach(folder / REPORT)
        job.tracker.flush()
        tags = lineage(job) | candidate.tags(task.METRIC)
        return registry.add(folder / "packed", job.tracker.run_id, tags, _summary(candidate), task.KIND)


def _summary(candidate: Candidate) -> str:
    """What users should know of the model, in Markdown."""
    about, task = candidate.description, TASKS[candidate.task]
    value, low, high = (candidate.metrics.get(f"{task.METRIC}{end}") for end in ("", "_low", "_high"))
    interval = "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"
    what, output = task.summary(about)
    return (
        f"{what} on frontal chest radiographs.\n\n"
        f"{task.MEASURE[0].upper()}{task.MEASURE[1:]} on the test split {'not known' if value is None else f'{value:.3f}'}{interval}. "
        f"Input: DICOM files, or (N, H, W) uint{about['bits']} pixels of shards; output: {output}. "
        "For research; not a medical device. The model card is README.md among the model's files."
    )


def _settle(registry: Registry, candidate: Candidate, version: Version, settings: Register) -> tuple[gate.Decision, str | None]:
    """Decides and sets the alias; decides again when another process made a champion meanwhile.

    Returns:
        The decision and the version that was champion until then.
    """
    while True:
        champion = registry.holder("champion")
        decision = _decide(registry, candidate, version, champion, settings)
        if registry.holder("champion") == champion:
            registry.assign(decision.alias, version.number, decision.reason)
            return decision, champion
        log.info("register: the champion changed meanwhile; comparing again")


def _decide(registry: Registry, candidate: Candidate, version: Version, champion: str | None, settings: Register) -> gate.Decision:
    if champion == version.number:
        return gate.Decision("champion", registry.tag(champion, "champion.reason") or f"version {champion} was made the champion by hand")
    if withdrawn := registry.tag(version.number, WITHDRAWN):
        return gate.Decision("challenger", f"it was {withdrawn}; only by hand does it become champion again")
    task = TASKS[candidate.task]
    if champion is None:
        return gate.first(task.floor(candidate.metrics, settings))
    with tempfile.TemporaryDirectory() as folder:
        path = registry.predictions(champion, Path(folder))
        if path is None:
            return gate.Decision("challenger", f"champion version {champion} has no {PREDICTIONS} in MLflow to be compared with")
        theirs = Champion(pq.read_table(path), registry.description(champion, Path(folder)))
    try:
        difference = task.compare(candidate, theirs, settings)
    except gate.NotComparable as refusal:
        return gate.Decision("challenger", str(refusal))
    return gate.against(champion, task.MEASURE, difference)


def _registration(
    version: Version, candidate: Candidate, settings: Register, champion: str | None, decision: gate.Decision
) -> dict[str, Any]:
    difference, metric = decision.difference, TASKS[candidate.task].METRIC
    return {
        "name": version.name,
        "task": candidate.task,
        "version": version.number,
        "model_uri": version.uri,
        "alias": decision.alias,
        "reason": decision.reason,
        "metric": metric,
        "value": candidate.metrics[metric],
        **({"min_auroc": settings.min_auroc} if candidate.task == "classify" else {}),
        "champion_before": champion,
        "difference": {"estimate": difference.estimate, "low": difference.low, "high": difference.high} if difference else None,
    }


def _tell(registration: dict[str, Any]) -> None:
    known = " (registered before)" if registration["reused"] else ""
    log.info("register: %(name)s version %(version)s" + known + ": %(alias)s, since %(reason)s", registration)


def _metrics(version: Version, candidate: Candidate, decision: gate.Decision) -> dict[str, float]:
    metric = TASKS[candidate.task].METRIC
    value = candidate.metrics[metric]
    metrics = {"version": float(version.number), "champion": float(decision.alias == "champion")}
    metrics[metric] = float("nan") if value is None else value
    if decision.difference:
        metrics |= {f"difference_{name}": getattr(decision.difference, name) for name in ("estimate", "low", "high")}
    return metrics
