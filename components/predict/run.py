"""Scoring of raw files with a trained model: `python -m components predict --model URI --raw DIR --out DIR`.

The files are preprocessed with the parameters of the model's training and end as rows, duplicates or quarantine entries. All rows
are in the `test` split, since the model was trained and calibrated elsewhere.
"""

import logging
import shutil
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch

from components.common.formats.appearance import write_appearance
from components.common.formats.backbone import BACKBONE
from components.common.formats.documents import RUN_RECORD
from components.common.formats.history import HISTORY, write_history
from components.common.formats.manifest import MANIFEST
from components.common.formats.model import DESCRIPTION
from components.common.formats.predictions import META, common_columns, write_predictions
from components.common.formats.quarantine import QUARANTINE
from components.common.formats.shards import PACKED
from components.common.runs import storage
from components.common.runs.cores import threads
from components.common.runs.inputs import read_document
from components.common.runs.params import Runtime
from components.common.runs.registered_models import SCHEMES
from components.common.runs.shards import Shards, open_shards
from components.common.runs.stage_run import StageRun, stage_run
from components.common.runs.storage import write_json
from components.predict import source
from components.predict.appearance import describe
from components.predict.source import Source
from components.preprocess import run as preprocess
from components.preprocess.deidentify import load_pseudonyms
from components.preprocess.index import Index
from components.preprocess.params import Preprocess
from components.preprocess.parts import Partition

SHARDS = "shards"  # folder in the work folder with the output of preprocess, of which only the manifest and the quarantine are kept
ROWS = 256  # rows read at a time

log = logging.getLogger(__name__)


def run(*, model: str, raw: str, out: str, params: Preprocess, runtime: Runtime, backbone: str | None = None) -> None:
    """Scores every image of a folder.

    Args:
        model: `models:/NAME@ALIAS`, or the output folder of a head or of register.
        raw: folder of DICOM, PNG or JPEG files and the tables of its layout, whose labels become targets.
        out: output folder, which `evaluate --predictions` takes.
        params: the section `preprocess`, for the layout of the folder; size and the like are those of the model.
        runtime: the section `runtime`.
        backbone: output folder of pretrain, whose features `monitor` is to compare.

    Raises:
        UserError: there is no such model, no usable file, or no pseudonym key.
    """
    torch.set_num_threads(threads())
    loaded = source.read(model)
    params = Preprocess.model_validate({**params.model_dump(), **_of_training(loaded)})
    depends = {"raw": _listing_digest(raw), "pseudonym_key": load_pseudonyms().key_id}
    inputs = {"model": loaded.digest} | ({"backbone": read_document(backbone, BACKBONE, "pretrain")[1]} if backbone else {})
    with stage_run("predict", out, params, inputs, runtime=runtime, depends=depends) as job:
        shards = _preprocess(raw, job, params, runtime)
        job.upstream |= shards.upstream
        table = predict(loaded, shards)
        write_predictions(job.folder, [table])
        write_appearance(job.folder, describe(shards, backbone=backbone))
        write_json(job.folder / DESCRIPTION, _described(loaded))
        write_history(job.folder / HISTORY, [])  # nothing was trained here
        for name in (MANIFEST, QUARANTINE):
            shutil.copyfile(job.folder / SHARDS / name, job.folder / name)
        metrics = _metrics(shards.manifests[0]["counts"], table, loaded)
        _warn(metrics, shards, loaded)
        if model.startswith(SCHEMES) and "://" not in model:  # a folder or a server could name a hospital
            job.tracker.tag({"model": model})
        job.publish(metrics, drop=(SHARDS, f"{SHARDS}.partial"))


def predict(loaded: Source, shards: Shards) -> pa.Table:
    """Scores all rows of the shards; returns the rows of predictions.parquet."""
    tables = []
    for batch in _batches(shards):
        tables.append(pa.table({**common_columns(batch, "test", loaded.head), **loaded.network.columns(batch, shards.findings)}))
    return pa.concat_tables(tables)


def _batches(shards: Shards) -> Iterator[pa.Table]:
    columns = [*PACKED, "patient_id", "labels", "boxes", *META]
    for part in shards.parts():
        with part.open() as file:
            yield from (pa.Table.from_batches([batch]) for batch in file.iter_batches(ROWS, columns=columns))


def _of_training(loaded: Source) -> dict[str, Any]:
    """Returns the preprocessing parameters of the model's training, as far as model.json has them."""
    names = ("clip_percentile", "views")
    known = loaded.description.get("preprocessing", {})
    return {"size": loaded.network.size, "bits": loaded.network.bits, **{name: known[name] for name in names if name in known}}


def _described(loaded: Source) -> dict[str, Any]:
    """Returns the model.json of the output, without the distances between image sets, which are of the training's test images."""
    return {name: None if name.startswith("kid_") else value for name, value in loaded.description.items()}


def _listing_digest(raw: str) -> str:
    """Returns the SHA-256 of the listing: paths, sizes and times."""
    index = Index()
    index.add_files(storage.walk(raw, faults=True), 1, Partition())
    return index.digest()


def _preprocess(raw: str, job: StageRun, params: Preprocess, runtime: Runtime) -> Shards:
    """Preprocesses the raw files into the work folder, unless an earlier attempt has."""
    folder = job.folder / SHARDS
    if not (folder / RUN_RECORD).is_file():
        preprocess.run(raw=raw, out=str(folder), params=params, runtime=runtime, to_train=False)
    return open_shards(str(folder))


def _metrics(counts: dict[str, Any], table: pa.Table, loaded: Source) -> dict[str, float]:
    """Counts files, and known targets."""
    found: dict[str, float] = {name: counts[name] for name in ("files", "rows", "quarantined", "duplicates")}
    return found | loaded.network.counts(table)


def _warn(metrics: dict[str, float], shards: Shards, loaded: Source) -> None:
    if metrics["quarantined"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in shards.manifests[0]["counts"]["reasons"].items())
        log.warning("predict: %d files are not scored (%s); %s lists them", metrics["quarantined"], reasons, QUARANTINE)
    if missing := loaded.network.unlabelled(shards.findings):
        log.warning("predict: the raw folder has no labels of %s: scored, but not to be evaluated", ", ".join(missing))
    if unknown := metrics.get("images_unknown"):
        log.warning("predict: %d images are scored, but not to be evaluated: which of the classes they show is not known", unknown)
