"""Drift of scored images from a reference: `python -m components monitor --reference REF --predictions DIR --out DIR`."""

import logging
import os
from typing import Any, NamedTuple

import pyarrow as pa

from components.common.errors import UserError
from components.common.formats.appearance import APPEARANCE, HEADER, SCHEMA, parse_appearance
from components.common.formats.pages import REPORT
from components.common.formats.predictions import PREDICTIONS, parse_predictions
from components.common.formats.reference import MADE_BY, REFERENCE, SCHEMA_VERSION, Reference, check_reference
from components.common.runs import lineage, storage, webhook
from components.common.runs.inputs import read_document, read_model, upstream_run_ids
from components.common.runs.provenance import KFP_VARIABLE
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import stage_run
from components.common.runs.storage import write_json
from components.monitor import drift, page, quantities
from components.monitor.params import Monitor
from components.predict.appearance import describe

ALARM = 3  # exit code
VERSION = "models:/"  # beginning of the address of a registered model
FEWEST = 20  # patients in a reference

log = logging.getLogger(__name__)


def run(*, reference: str | None, predictions: str, out: str, params: Monitor) -> int:
    """Compares a scored batch with a reference. A batch without images is no mistake: nothing new may have been there to score.

    Args:
        reference: output folder of `monitor reference`, or the address of a registered model that one was attached to. None, which a
            pipeline gives if nothing is attached: nothing is compared, and the page says so.
        predictions: output folder of predict.
        out: output folder.
        params: the section `monitor`.

    Returns:
        ALARM if the batch has drifted, else 0.

    Raises:
        UserError: an input is not what it should be, or the scores are of another model than those of the reference.
    """
    description, model_digest = read_model(predictions, "predict")
    if reference is None:
        why = f"the model version has no reference: make one by {MADE_BY} --model models:/NAME/VERSION"
        return _skip(why, predictions, out, params, {"model": model_digest})
    known, digest = _read_reference(reference)
    if description.get("sha256") != known["model"]:
        raise UserError(f"{predictions}: was scored by another model than {reference}; make a reference of its model by {MADE_BY}")
    scores = _read_scores(predictions)
    if not len(scores.table):
        return _skip("no image was scored", predictions, out, params, {"reference": digest, "model": model_digest})
    batch, digests = _read_cohort(scores)
    if known["backbone"] and batch.backbone != known["backbone"]:
        raise UserError(f"{predictions}: lacks the features that {reference} has; run predict with the --backbone of the reference")
    inputs = {"reference": digest, **digests}
    upstream = upstream_run_ids({"predictions": predictions} | ({} if reference.startswith(VERSION) else {"reference": reference}))
    with stage_run("monitor", out, params, inputs, upstream=upstream) as job:
        found = drift.compare(known, batch, params)
        storage.write(str(job.folder / REPORT), page.render(found, known, params, inputs).encode())
        job.attach(REPORT)
        loud, lines = drift.alarm(found)
        job.tracker.tag({lineage.ALARM: "yes" if loud else "no", lineage.HEADLINE: "; ".join(lines) or "no alarm"})
        for line in lines:
            log.warning("monitor: %s", line)
        log.info("monitor: %s; %d patients", "alarm" if loud else "no alarm", batch.images)
        job.publish(found.metrics())
    if loud and not os.environ.get(KFP_VARIABLE):  # in a pipeline, `end` posts it
        webhook.post(webhook.Message("monitor", "succeeded", True, {"changed": "; ".join(lines)}, link=""))
    return ALARM if loud else 0


def _skip(why: str, predictions: str, out: str, params: Monitor, inputs: dict[str, str]) -> int:
    """Makes an output that says why nothing is compared."""
    with stage_run("monitor", out, params, inputs, upstream=upstream_run_ids({"predictions": predictions})) as job:
        storage.write(str(job.folder / REPORT), page.render_skipped(why, inputs).encode())
        job.attach(REPORT)
        job.tracker.tag({lineage.ALARM: "no", lineage.HEADLINE: f"not compared: {why}"})
        log.warning("monitor: nothing is compared, since %s", why)
        job.publish({"alarm": 0.0, "alarms": 0.0, "patients": 0.0})
    return 0


class _Scores(NamedTuple):
    """The predictions of a folder."""

    folder: str
    table: pa.Table
    digest: str


def _read_scores(folder: str) -> _Scores:
    path = storage.join(folder, PREDICTIONS)
    content = storage.read(path)
    return _Scores(folder, parse_predictions(content, path), storage.digest(content))


def reference(
    *,
    predictions: str,
    out: str,
    params: Monitor,
    shards: list[str] | None = None,
    backbone: str | None = None,
    model: str | None = None,
) -> None:
    """Makes a reference of predictions on images that the model was not trained on.

    Args:
        predictions: output folder of a head, whose rows are the validation and test splits, or of predict.
        out: output folder.
        params: the section `monitor`.
        shards: output folders of preprocess with these images; not needed for an output of predict.
        backbone: output folder of pretrain, whose features are to be compared; for an output of predict, its --backbone counts.
        model: address of a registered model; the reference is attached to that version.

    Raises:
        UserError: an input is not what it should be, or too few patients.
    """
    description, model_digest = read_model(predictions, "a head or predict")
    cohort, digests = _read_cohort(_read_scores(predictions), shards, backbone)
    if cohort.images < FEWEST:
        raise UserError(f"{predictions}: holds {cohort.images} patients, too few for a reference; score {FEWEST} or more")
    inputs = {"model": model_digest, **digests}
    with stage_run("reference", out, params, inputs, upstream=upstream_run_ids({"predictions": predictions})) as job:
        content: Reference = {
            "schema_version": SCHEMA_VERSION,
            "task": description["task"],
            "model": description["sha256"],
            "images": cohort.images,
            "variables": {name: quantities.distribution(cohort, name) for name in cohort.values},
            "waves": quantities.sample_of(cohort.waves, params.seed),
            "backbone": cohort.backbone,
            "features": quantities.sample_of(cohort.features, params.seed) if cohort.backbone else [],
        }
        write_json(job.folder / REFERENCE, content)
        job.attach(REFERENCE)
        if model:
            from components.common.runs.registered_models import keep

            keep(model, job.folder / REFERENCE)
        log.info("monitor: a reference of %d patients", cohort.images)
        job.publish({"patients": float(cohort.images)})


def _read_reference(uri: str) -> tuple[Reference, str]:
    if uri.startswith(VERSION):
        from components.common.runs.registered_models import kept  # imports MLflow, which takes seconds

        found = kept(uri, REFERENCE, MADE_BY)
        if found is None:
            raise UserError(f"{uri}: has no {REFERENCE}; make one by {MADE_BY} --model {uri}")
    else:
        found = read_document(uri, REFERENCE, MADE_BY)
    return check_reference(found[0], f"{uri}: {REFERENCE}"), found[1]


def _read_cohort(scores: _Scores, shards: list[str] | None = None, backbone: str | None = None) -> tuple[quantities.Cohort, dict[str, str]]:
    """Reads what belongs to one image per patient of predictions, and returns it with the digests of the inputs."""
    folder, table, digests = scores.folder, scores.table, {"predictions": scores.digest}
    if not len(table):
        raise UserError(f"{storage.join(folder, PREDICTIONS)}: has no rows; score images first")
    if shards:
        opened, features, wanted = open_shards(shards), None, {*table["image_id"].to_pylist()}
        digests |= opened.inputs
        if backbone:
            from components.common.training.features import Extractor  # imports torch

            features = Extractor(backbone, opened.size, opened.bits)
            digests["backbone"] = features.digest
        described = [describe(*each, features) for each in opened.scan(HEADER, wanted.__contains__)]
        appearance = pa.concat_tables([SCHEMA.empty_table(), *described])
    else:
        place = storage.join(folder, APPEARANCE)
        if not storage.exists(place):
            raise UserError(f"{place}: not found; run predict again, or, for the output of a head, name its --shards by {MADE_BY}")
        appearance = parse_appearance(storage.read(place), place)
    return quantities.one_per_patient(table, _in_order(appearance, table, folder)), digests


def _in_order(appearance: pa.Table, predictions: pa.Table, folder: str) -> pa.Table:
    """Returns the rows of the appearance in the order of the predictions."""
    places: dict[Any, int] = {image: row for row, image in enumerate(appearance["image_id"].to_pylist())}
    wanted = predictions["image_id"].to_pylist()
    if missing := sum(image not in places for image in wanted):
        raise UserError(
            f"{folder}: {missing} of {len(wanted)} predictions are of images that {APPEARANCE} or the shards lack; name the shards"
        )
    return appearance.take(pa.array([places[image] for image in wanted], pa.int64()))
