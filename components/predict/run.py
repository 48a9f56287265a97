"""Scoring of another cohort with a trained model: `python -m components predict --model URI --raw DIR --out DIR`.

Raw files are preprocessed with the parameters of the model's training and end as rows, duplicates or quarantine entries. All rows are
in the `test` split, since the model was trained and calibrated elsewhere. Images that earlier runs have scored with the same model can be
left out. If no image is new, predictions.parquet has no rows, and only the columns that the predictions of all heads share.
"""

import logging
import shutil
from collections import Counter
from typing import Any

import pyarrow as pa
import torch

from components.common.errors import UserError
from components.common.formats import appearance
from components.common.formats.documents import RUN_RECORD
from components.common.formats.history import HISTORY, write_history
from components.common.formats.labels import IMAGE, LABELS
from components.common.formats.manifest import MANIFEST
from components.common.formats.model import DESCRIPTION, preprocessing_of
from components.common.formats.pages import REPORT
from components.common.formats.predictions import META, common_columns, write_predictions
from components.common.formats.quarantine import QUARANTINE
from components.common.formats.shards import SCHEMA
from components.common.runs import scored as earlier
from components.common.runs import storage
from components.common.runs.cores import threads
from components.common.runs.lineage import HEADLINE
from components.common.runs.params import Evaluate, Runtime
from components.common.runs.registered_models import SCHEMES, find_version, is_version
from components.common.runs.shards import Shards, open_shards
from components.common.runs.stage_run import StageRun, stage_run
from components.common.runs.storage import write_json
from components.common.training.features import Extractor
from components.common.training.inference import pixel_digest
from components.predict import page, source
from components.predict.appearance import describe
from components.predict.source import Source
from components.preprocess import run as preprocess
from components.preprocess.deidentify import load_pseudonyms
from components.preprocess.index import Index
from components.preprocess.params import Preprocess
from components.preprocess.parts import Partition

SHARDS = "shards"  # folder in the work folder with the output of preprocess, of which only the manifest and the quarantine are kept

log = logging.getLogger(__name__)


def run(
    *,
    model: str,
    out: str,
    params: Preprocess,
    runtime: Runtime,
    raw: str | None = None,
    shards: list[str] | None = None,
    backbone: str | None = None,
    evaluate: Evaluate | None = None,
    dicom: str | None = None,
    scored: list[str] | None = None,
) -> None:
    """Scores every image of a folder, or of shards.

    Args:
        model: `models:/NAME@ALIAS`, or the output folder of a head or of register.
        out: output folder, which `evaluate --predictions` takes.
        params: the section `preprocess`, for the layout of the raw folder; size and the like are those of the model.
        runtime: the section `runtime`.
        raw: folder of DICOM, PNG or JPEG files and the tables of its layout, whose labels become targets.
        shards: output folders of preprocess instead of `raw`; all of their splits are scored.
        backbone: output folder of pretrain, whose features `monitor` is to compare.
        evaluate: the section `evaluate`, if the predictions are to be evaluated; labels are then required.
        dicom: local folder for the results as DICOM objects, which name patients; not for shards.
        scored: output folders of predict, or folders that hold such; images that the same model has scored there are left out. `out`
            itself does not count, so that the same command can be run again.

    Raises:
        UserError: there is no such model, no usable file, or no pseudonym key; the shards are of another size, or of the training;
            labels are required, and there are none of the model's findings; `dicom` is not a folder for such results.
    """
    if (raw is None) == (shards is None):
        raise UserError("give either --raw or --shards")
    if dicom:
        from components.predict import dicom_results  # imports highdicom, which takes a second

        dicom_results.prepare(dicom, raw, out)
    torch.set_num_threads(threads())
    version = find_version(model) if is_version(model) else None
    model = version.uri if version else model  # an alias may move while this runs
    loaded = source.read(model, evaluate)
    if dicom and not loaded.network.labels:
        raise UserError(f"{model}: a model of {loaded.head} has no findings to be reported; run it without --dicom")
    params = Preprocess.model_validate({**params.model_dump(), **preprocessing_of(loaded.description)})
    given = open_shards(shards) if shards else None
    inputs = {"model": loaded.digest, **(given.inputs if given else {})}
    skip = earlier.scored_images(scored or (), loaded.digest, apart_from=out)
    features = Extractor(backbone, loaded.network.size, loaded.network.bits) if backbone else None
    if features:
        inputs["backbone"] = features.digest
    depends: dict[str, Any] = {"training": loaded.external["training"]} | ({"scored": earlier.digest(skip)} if skip else {})
    index = Index()
    if raw:
        index.add_files(storage.walk(raw, faults=True), 1, Partition())
        depends |= {"raw": index.digest(), "pseudonym_key": load_pseudonyms().key_id}
    upstream = ({"model": version.run_id} if version and version.run_id else {}) | (given.upstream if given else {})
    with stage_run("predict", out, params, inputs, runtime=runtime, depends=depends, upstream=upstream) as job:
        opened = given or _preprocess(str(raw), job, params, runtime, skip)
        job.upstream |= opened.upstream
        _check(loaded, opened, labelled=evaluate is not None)
        table, described = predict(loaded, opened, skip, features)
        write_predictions(job.folder, [table])
        appearance.write_appearance(job.folder, described)
        write_json(job.folder / DESCRIPTION, _described(loaded))
        write_history(job.folder / HISTORY, [])  # nothing was trained here
        if dicom and len(table):
            dicom_results.write(dicom, str(raw), index, opened, table, loaded)
        if raw:
            for name in (MANIFEST, QUARANTINE):
                shutil.copyfile(job.folder / SHARDS / name, job.folder / name)
        metrics = _metrics(opened, table, loaded)
        _warn(metrics, opened, loaded)
        storage.write(str(job.folder / REPORT), page.render(table, loaded, metrics, _reasons(opened), job.inputs).encode())
        job.attach(REPORT)
        job.tracker.tag({HEADLINE: "{rows} images scored, {skipped} scored before, {quarantined} files quarantined".format(**metrics)})
        if model.startswith(SCHEMES) and "://" not in model:  # a folder or a server could name a hospital
            job.tracker.tag({"model": model})
        job.publish(metrics, drop=(SHARDS, f"{SHARDS}.partial"))


def _check(loaded: Source, shards: Shards, labelled: bool) -> None:
    """Refuses shards that the model cannot take and, to evaluate it, those of its training and those without labels of its findings."""
    where, network = ", ".join(shards.folders), loaded.network
    if (shards.size, shards.bits) != (network.size, network.bits):
        expected = f"preprocess.size={network.size} and preprocess.bits={network.bits}"
        raise UserError(f"{where}: images of {shards.size} pixels and {shards.bits} bits; run preprocess with {expected}, or give --raw")
    if labelled and set(shards.digests) & set(loaded.description.get("inputs", {}).values()):
        raise UserError(f"the model was trained on these images ({where}); give a cohort from elsewhere")
    missing = network.unlabelled(shards.findings)
    if labelled and missing and len(missing) == len(network.labels):
        names = ", ".join(network.labels)
        if not shards.findings:
            raise UserError(f"the cohort has no labels; add {LABELS} with the columns {IMAGE}, {names}, or choose the layout of its tables")
        have = ", ".join(shards.findings)
        todo = f"rename the columns of {LABELS}, or the class folders, to the model's findings"
        raise UserError(f"the cohort has labels of {have}, the model predicts {names}; {todo}")


def predict(loaded: Source, shards: Shards, skip: frozenset[str], features: Extractor | None) -> tuple[pa.Table, pa.Table]:
    """Scores and describes the rows of the shards but those of the images to `skip`, and counts those of the training.

    Returns:
        The rows of predictions.parquet, with the common columns only if there are none, and those of appearance.parquet.
    """
    tables, described = [], [appearance.SCHEMA.empty_table()]
    columns = ["patient_id", "labels", "boxes", *META, *appearance.HEADER]
    for rows, images in shards.scan(columns, lambda image_id: image_id not in skip):
        if loaded.images is not None:
            loaded.external["seen"] = (loaded.external["seen"] or 0) + sum(pixel_digest(image) in loaded.images for image in images)
        tables.append(pa.table({**common_columns(rows, "test", loaded.head), **loaded.network.columns(images, rows, shards.findings)}))
        described.append(describe(rows, images, features))
    table = pa.concat_tables(tables) if tables else pa.table(common_columns(SCHEMA.empty_table(), "test", loaded.head))
    return table, pa.concat_tables(described)


def _described(loaded: Source) -> dict[str, Any]:
    """Returns the model.json of the output, without the distances between image sets, which are of the training's test images."""
    known = {name: None if name.startswith("kid_") else value for name, value in loaded.description.items()}
    return {**known, "external": loaded.external}


def _preprocess(raw: str, job: StageRun, params: Preprocess, runtime: Runtime, skip: frozenset[str]) -> Shards:
    """Preprocesses the raw files into the work folder, unless an earlier attempt has."""
    folder = job.folder / SHARDS
    if not (folder / RUN_RECORD).is_file():
        preprocess.run(raw=raw, out=str(folder), params=params, runtime=runtime, to_train=False, skip=skip)
    return open_shards(str(folder))


def _metrics(shards: Shards, table: pa.Table, loaded: Source) -> dict[str, float]:
    """Counts files and rows, those that were left out (`skipped`), and known targets."""
    counts = [manifest.get("counts", {}) for manifest in shards.manifests]
    found: dict[str, float] = {
        name: sum(each.get(name, 0) for each in counts) for name in ("files", "quarantined", "duplicates", "skipped")
    }
    found["skipped"] += sum(part.rows for part in shards.parts()) - len(table)
    return {**found, "rows": len(table), **(loaded.network.counts(table) if len(table) else {})}


def _reasons(shards: Shards) -> dict[str, int]:
    """Counts the quarantined files by reason."""
    counts = (Counter(manifest.get("counts", {}).get("reasons", {})) for manifest in shards.manifests)
    return dict(sum(counts, Counter()))


def _warn(metrics: dict[str, float], shards: Shards, loaded: Source) -> None:
    log.info("predict: %d images scored, %d left out that this model has scored before", metrics["rows"], metrics["skipped"])
    if not metrics["rows"]:
        log.info("predict: there is nothing new to score, and predictions.parquet has no rows")
    if metrics["quarantined"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in _reasons(shards).items())
        log.warning("predict: %d files are not scored (%s); %s lists them", metrics["quarantined"], reasons, QUARANTINE)
    if metrics["rows"] and (missing := loaded.network.unlabelled(shards.findings)):
        have = ", ".join(shards.findings) or "none"
        log.warning("predict: no labels of %s: scored, but not to be evaluated (labels: %s)", ", ".join(missing), have)
    if seen := loaded.external["seen"]:
        log.warning("predict: %d images are in the model's training cohort, so that it looks better than on others", seen)
    if unknown := metrics.get("images_unknown"):
        log.warning("predict: %d images are scored, but not to be evaluated: which of the classes they show is not known", unknown)
