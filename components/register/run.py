"""Registers a model in MLflow and gives it an alias: champion or challenger."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.common.formats.pages import REPORT
from components.common.formats.registration import REGISTRATION, Registration
from components.common.head import Candidate, Champion, NotComparable
from components.common.runs import storage
from components.common.runs.lineage import HEADLINE
from components.common.runs.lineage import tags as lineage
from components.common.runs.params import Register
from components.common.runs.stage_run import StageRun, stage_run
from components.common.runs.storage import write_json
from components.heads import HEADS
from components.register import card, gate
from components.register.candidate import copy_weights, read_candidate, registry_tags
from components.register.packing import pack
from components.register.registry import TEST_PREDICTIONS, WITHDRAWN, Registry, Version

EXPORT = "model"  # folder in the output with the packed model, as in the registry

log = logging.getLogger(__name__)


def run(*, model: str, evaluation: str, out: str, params: Register) -> None:
    """Packs and registers a model, decides on its alias, and writes registration.json.

    A model that is already registered with the same predictions and evaluation keeps its version; its alias is decided again,
    against the present champion.

    Args:
        model: output folder of a head.
        evaluation: output folder of evaluate that had that model among its predictions.
        out: output folder.
        params: the section `register`.

    Raises:
        UserError: inputs that are not what they should be or do not belong together; MLflow cannot be reached.
    """
    candidate = read_candidate(model, evaluation)
    with stage_run("register", out, params, candidate.inputs, upstream=candidate.upstream) as job:
        registry = Registry(name_of(params, candidate.head), job.tracker.client)
        registry.check_head(candidate.head)
        known = registry.find(_identity(job))
        shutil.rmtree(job.folder / EXPORT, ignore_errors=True)  # that of a killed run
        if known:
            registry.download(known, job.folder / EXPORT)
        version = known or _add(registry, candidate, job)
        decision, champion = _settle(registry, candidate, version, params)
        registration = _registration(version, candidate, params, champion, decision) | {"reused": known is not None}
        _tell(registration)
        write_json(job.folder / REGISTRATION, registration)
        job.attach(REGISTRATION)
        job.tracker.tag({f"registered.{name}": str(registration[name]) for name in ("name", "version", "alias")})
        job.tracker.tag({HEADLINE: "{name} version {version} is {alias}".format(**registration)})
        job.publish(_metrics(version, candidate, decision))


def rollback(*, params: Register, out: str | None = None) -> None:
    """Makes the previous champion of the model `register.name` the champion again, and records it in `out` if given.

    Raises:
        UserError: there is no champion, or none before it; MLflow cannot be reached.
    """
    registry = Registry(name_of(params))
    was, now = registry.rollback()
    log.info("register: %s version %s is the champion again, version %s a challenger", registry.name, now, was)
    _record(out, params, Version(registry.name, now), "champion", was)


def demote(*, params: Register, out: str | None = None) -> None:
    """Makes the champion of the model `register.name` a challenger, and records it in `out` if given.

    Raises:
        UserError: there is no champion; MLflow cannot be reached.
    """
    registry = Registry(name_of(params))
    was = registry.demote()
    log.info("register: %s version %s is no longer the champion", registry.name, was)
    _record(out, params, Version(registry.name, was), "challenger", was)


def name_of(settings: Register, head: str = "classify") -> str:
    """Returns the name of the registered model: that of the parameters, else cxr-HEAD."""
    return settings.name or f"cxr-{head}"


def _record(out: str | None, settings: Register, version: Version, alias: str, champion_before: str) -> None:
    """Writes an output for what was done by hand."""
    if out:
        with stage_run("register", out, settings, {}, depends={"version": version, "alias": alias}, connect=False) as job:
            content: Registration = {
                "name": version.name,
                "version": version.number,
                "model_uri": version.uri,
                "alias": alias,
                "reason": "by hand",
                "champion_before": champion_before,
            }
            write_json(job.folder / REGISTRATION, content)
            job.publish({"version": float(version.number), "champion": float(alias == "champion")})


def _identity(job: StageRun) -> dict[str, str]:
    """Returns the tags that identify a version: the digests of its inputs."""
    return {f"input.{name}.sha256": value for name, value in job.inputs.items()}


def _add(registry: Registry, candidate: Candidate, job: StageRun) -> Version:
    """Packs the model into the work folder and adds a version. The predictions that later versions are compared with come first."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        task = HEADS[candidate.head].registration
        text = card.render(candidate, registry.name, job.params["licence"], registry.history(task.METRIC))
        # The thresholds and figures of its own cohort, for a validation elsewhere; no row of a patient.
        content = candidate.description | {"evaluation": candidate.metrics}
        pack(copy_weights(candidate, folder), content, text, folder / EXPORT)
        pq.write_table(candidate.test_predictions, folder / TEST_PREDICTIONS)
        (folder / REPORT).write_bytes(storage.read(storage.join(candidate.evaluation, REPORT)))
        job.tracker.attach(folder / TEST_PREDICTIONS)
        job.tracker.attach(folder / REPORT)
        job.tracker.flush()
        tags = lineage(job) | registry_tags(candidate, task.METRIC)
        # Not in the work folder: MLflow decodes escapes in a path, and that of an output on S3 has some in its name.
        version = registry.add(folder / EXPORT, job.tracker.run_id, tags, _summary(candidate), task.KIND)
        shutil.rmtree(job.folder / EXPORT, ignore_errors=True)
        shutil.move(folder / EXPORT, job.folder / EXPORT)
        return version


def _summary(candidate: Candidate) -> str:
    """Describes the model for its users, in Markdown."""
    about, task = candidate.description, HEADS[candidate.head].registration
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
    """Decides on the alias and sets it, again if another process set a champion meanwhile; returns the champion until then, too."""
    while True:
        champion = registry.holder("champion")
        decision = _decide(registry, candidate, version, champion, settings)
        if registry.holder("champion") == champion:
            registry.assign(decision.alias, version.number, decision.reason, champion)
            return decision, champion
        log.info("register: the champion changed meanwhile; comparing again")


def _decide(registry: Registry, candidate: Candidate, version: Version, champion: str | None, settings: Register) -> gate.Decision:
    if champion == version.number:
        return gate.Decision("champion", registry.tag(champion, "champion.reason") or f"version {champion} was made the champion by hand")
    if withdrawn := registry.tag(version.number, WITHDRAWN):
        return gate.Decision("challenger", f"it was {withdrawn}; only by hand does it become champion again")
    task = HEADS[candidate.head].registration
    if champion is None:
        return gate.first(task.floor(candidate.metrics, settings))
    with tempfile.TemporaryDirectory() as folder:
        path = registry.predictions(champion, Path(folder))
        if path is None:
            return gate.Decision("challenger", f"champion version {champion} has no {TEST_PREDICTIONS} in MLflow to be compared with")
        theirs = Champion(pq.read_table(path), registry.description(champion, Path(folder)))
    try:
        difference = task.compare(candidate, theirs, settings)
    except NotComparable as refusal:
        return gate.Decision("challenger", str(refusal))
    return gate.against(champion, task.MEASURE, difference)


def _registration(
    version: Version, candidate: Candidate, settings: Register, champion: str | None, decision: gate.Decision
) -> dict[str, Any]:
    difference, metric = decision.difference, HEADS[candidate.head].registration.METRIC
    return {
        "name": version.name,
        "task": candidate.head,
        "version": version.number,
        "model_uri": version.uri,
        "alias": decision.alias,
        "reason": decision.reason,
        "metric": metric,
        "value": candidate.metrics[metric],
        **{name: getattr(settings, name) for name in HEADS[candidate.head].registration.FLOOR_PARAMETERS},
        "champion_before": champion,
        "difference": {"estimate": difference.estimate, "low": difference.low, "high": difference.high} if difference else None,
    }


def _tell(registration: dict[str, Any]) -> None:
    known = " (registered before)" if registration["reused"] else ""
    log.info("register: %(name)s version %(version)s" + known + ": %(alias)s, since %(reason)s", registration)


def _metrics(version: Version, candidate: Candidate, decision: gate.Decision) -> dict[str, float]:
    metric = HEADS[candidate.head].registration.METRIC
    value = candidate.metrics[metric]
    metrics = {"version": float(version.number), "champion": float(decision.alias == "champion")}
    metrics[metric] = float("nan") if value is None else value
    if decision.difference:
        metrics |= {f"difference_{name}": getattr(decision.difference, name) for name in ("estimate", "low", "high")}
    return metrics
