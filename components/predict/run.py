"""Raw files and a model to `predictions.parquet`: `python -m components predict --model URI --raw DIR --out DIR`.

The files go through preprocess with the parameters of the model's training, and end as rows, duplicates or quarantine entries as
they do there. Every row counts as `test`: the model has been trained and calibrated elsewhere.
"""

import logging
import shutil
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.common.formats.predictions import META, common_columns
from components.common.formats.shards import MANIFEST, Shards, open_part, open_shards
from components.common.runs import storage, tracking
from components.common.runs.job import RUN_FILE, Job, open_job, threads, write_json
from components.common.runs.params import Params
from components.common.training.inference import PIXELS
from components.predict import source
from components.predict.source import Source
from components.preprocess import run as preprocess
from components.preprocess.deidentify import load_pseudonyms
from components.preprocess.index import Index
from components.preprocess.merge import QUARANTINE
from components.preprocess.parts import Partition

SHARDS = "shards"
"""In the work folder, what preprocess makes; only its lists are kept."""
ROWS = 256
"""Read at a time."""

log = logging.getLogger(__name__)


def run(*, model: str, raw: str, out: str, params: Params) -> None:
    """Scores every image of a folder.

    Args:
        model: `models:/NAME@ALIAS`, or the output folder of classify, detect, invert or register.
        raw: folder of DICOM, PNG or JPEG files, with the tables of the layout, whose labels become targets.
        out: output folder, which `evaluate --predictions` takes.
        params: the section `preprocess` says how the folder is laid out; size and the like are the model's.

    Raises:
        UserError: no such model, a folder without usable files, no pseudonym key.
    """
    torch.set_num_threads(threads())
    loaded = source.read(model)
    section = params.preprocess.model_validate({**params.preprocess.model_dump(), **_of_training(loaded)})
    depends = {"raw": _listing_digest(raw), "pseudonym_key": load_pseudonyms().key_id}
    job = open_job("predict", out, section, {"model": loaded.digest}, extra=depends)
    with tracking.run(job) as tracker:
        shards = _preprocess(raw, job, params.model_copy(update={"preprocess": section}))
        job.upstream |= shards.upstream
        table = predict(loaded, shards)
        pq.write_table(table, job.work / "predictions.parquet")
        write_json(job.work / source.DESCRIPTION, _described(loaded))
        (job.work / tracking.HISTORY).write_text("epoch\n")  # nothing was trained here
        for name in (MANIFEST, QUARANTINE):
            shutil.copyfile(job.work / SHARDS / name, job.work / name)
        metrics = _metrics(shards.manifests[0]["counts"], table, loaded)
        _warn(metrics, shards, loaded)
        tracker.log(metrics)
        if model.startswith(source.SCHEMES):  # a folder's name could name a hospital
            tracker.tag({"model": model})
        job.publish(metrics, tracker.run_id, drop=(tracking.RUN_ID_FILE, SHARDS, f"{SHARDS}.partial"))


def predict(loaded: Source, shards: Shards) -> pa.Table:
    """The rows of predictions.parquet: who, what kind, and what the model finds beside what is there, unknown where nobody says."""
    tables = []
    for batch in _batches(shards):
        tables.append(pa.table({**common_columns(batch, "test", loaded.task), **loaded.network.columns(batch, shards.findings)}))
    return pa.concat_tables(tables)


def _batches(shards: Shards) -> Iterator[pa.Table]:
    columns = [*PIXELS, "patient_id", "labels", "boxes", *META]
    for part in shards.parts():
        with pq.ParquetFile(open_part(part)) as file:
            yield from (pa.Table.from_batches([batch]) for batch in file.iter_batches(ROWS, columns=columns))


def _of_training(loaded: Source) -> dict[str, Any]:
    """What the model's training decides about the pixels, as far as model.json says."""
    names = ("clip_percentile", "views")
    known = loaded.description.get("preprocessing", {})
    return {"size": loaded.network.size, "bits": loaded.network.bits, **{name: known[name] for name in names if name in known}}


def _described(loaded: Source) -> dict[str, Any]:
    """The model.json of the output, without what the training found in its own test images: distances between sets of images."""
    return {name: None if name.startswith("kid_") else value for name, value in loaded.description.items()}


def _listing_digest(raw: str) -> str:
    """SHA-256 of which files there are, with their sizes and times."""
    index = Index()
    index.add_files(storage.walk(raw), 1, Partition())
    return index.digest()


def _preprocess(raw: str, job: Job, params: Params) -> Shards:
    """Rows of the raw files, in the work folder; what an earlier attempt has made stays."""
    folder = job.work / SHARDS
    if not (folder / RUN_FILE).is_file():
        preprocess.run(raw=raw, out=str(folder), params=params)
    return open_shards(str(folder))


def _metrics(counts: dict[str, Any], table: pa.Table, loaded: Source) -> dict[str, float]:
    """Counts of files, and of what is known to be there."""
    found: dict[str, float] = {name: counts[name] for name in ("files", "rows", "quarantined", "duplicates")}
    if loaded.task == "classify":
        found |= {f"positives_{name}": sum(value == 1 for value in table[f"target_{name}"].to_pylist()) for name in loaded.network.labels}
    if loaded.task == "detect":
        known = [boxes for boxes in table["targets"].to_pylist() if boxes is not None]
        found |= {f"boxes_{name}": sum(box["label"] == name for boxes in known for box in boxes) for name in loaded.network.labels}
        found["images_unknown"] = len(table) - len(known)
    return found


def _warn(metrics: dict[str, float], shards: Shards, loaded: Source) -> None:
    if metrics["quarantined"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in shards.manifests[0]["counts"]["reasons"].items())
        log.warning("predict: %d files are not scored (%s); %s lists them", metrics["quarantined"], reasons, QUARANTINE)
    if missing := [name for name in loaded.network.labels if loaded.task == "classify" and name not in shards.findings]:
        log.warning("predict: the raw folder has no labels of %s: scored, but not to be evaluated", ", ".join(missing))
    if unknown := metrics.get("images_unknown"):
        log.warning("predict: %d images are scored, but not to be evaluated: which of the classes they show is not known", unknown)
