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

from components.common import storage, tracking
from components.common.job import RUN_FILE, Job, open_job, threads, write_json
from components.common.params import Params
from components.common.predictions import META, common_columns
from components.common.shards import MANIFEST, Shards, decode, open_part, open_shards
from components.predict import source
from components.predict.source import Source
from components.preprocess import run as preprocess
from components.preprocess.deidentify import load_pseudonyms
from components.preprocess.index import Index, Partition
from components.preprocess.merge import QUARANTINE

SHARDS = "shards"
"""In the work folder, what preprocess makes; only its lists are kept."""
PIXELS = ("image_id", "pixels", "codec", "height", "width", "bits")
ROWS = 256
"""Read at a time."""

log = logging.getLogger(__name__)


def run(*, model: str, raw: str, out: str, params: Params) -> None:
    """Scores every image of a folder.

    Args:
        model: `models:/NAME@ALIAS`, or the output folder of classify or register.
        raw: folder of DICOM, PNG or JPEG files, with the tables of the layout, whose labels become targets.
        out: output folder, which `evaluate --predictions` takes.
        params: the section `preprocess` says how the folder is laid out; size and the like are the model's.

    Raises:
        UserError: no such model, a folder without usable files, no pseudonym key.
    """
    torch.set_num_threads(threads())
    loaded = source.read(model)
    section = params.preprocess.model_validate({**params.preprocess.model_dump(), **_of_training(loaded.description)})
    depends = {"raw": _listing_digest(raw), "pseudonym_key": load_pseudonyms().key_id}
    job = open_job("predict", out, section, {"model": loaded.digest}, extra=depends)
    with tracking.run(job) as tracker:
        shards = _preprocess(raw, job, params.model_copy(update={"preprocess": section}))
        job.upstream |= shards.upstream
        table = predict(loaded, shards)
        pq.write_table(table, job.work / "predictions.parquet")
        write_json(job.work / source.DESCRIPTION, loaded.description)
        (job.work / tracking.HISTORY).write_text("epoch\n")  # nothing was trained here
        for name in (MANIFEST, QUARANTINE):
            shutil.copyfile(job.work / SHARDS / name, job.work / name)
        metrics = _metrics(shards.manifests[0]["counts"], table, loaded.network.findings)
        _warn(metrics, shards, loaded)
        tracker.log(metrics)
        if model.startswith(source.SCHEMES):  # a folder's name could name a hospital
            tracker.tag({"model": model})
        job.publish(metrics, tracker.run_id, drop=(tracking.RUN_ID_FILE, SHARDS, f"{SHARDS}.partial"))


def predict(loaded: Source, shards: Shards) -> pa.Table:
    """The rows of predictions.parquet: who, what kind, and score and target of each finding, unknown where nobody says."""
    findings = loaded.network.findings
    places = {finding: shards.findings.index(finding) for finding in findings if finding in shards.findings}
    tables = []
    for batch in _batches(shards):
        scores = loaded.network.score([decode(row) for row in batch.select(PIXELS).to_pylist()])
        labels = batch["labels"].to_pylist()
        columns = common_columns(batch, "test", "classify")
        for index, finding in enumerate(findings):
            known = [row[places[finding]] if finding in places else float("nan") for row in labels]
            columns |= {f"score_{finding}": pa.array(scores[:, index]), f"target_{finding}": pa.array(known, pa.float32())}
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _batches(shards: Shards) -> Iterator[pa.Table]:
    columns = [*PIXELS, "patient_id", "labels", *META]
    for part in shards.parts():
        with pq.ParquetFile(open_part(part)) as file:
            yield from (pa.Table.from_batches([batch]) for batch in file.iter_batches(ROWS, columns=columns))


def _of_training(description: dict[str, Any]) -> dict[str, Any]:
    """What the model's training decides about the pixels, as far as model.json says."""
    names = ("clip_percentile", "views")
    known = description.get("preprocessing", {})
    return {"size": description["size"], "bits": description["bits"], **{name: known[name] for name in names if name in known}}


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


def _metrics(counts: dict[str, Any], table: pa.Table, findings: list[str]) -> dict[str, float]:
    known = {f"positives_{name}": sum(value == 1 for value in table[f"target_{name}"].to_pylist()) for name in findings}
    return {name: counts[name] for name in ("files", "rows", "quarantined", "duplicates")} | known


def _warn(metrics: dict[str, float], shards: Shards, loaded: Source) -> None:
    if metrics["quarantined"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in shards.manifests[0]["counts"]["reasons"].items())
        log.warning("predict: %d files are not scored (%s); %s lists them", metrics["quarantined"], reasons, QUARANTINE)
    if missing := [finding for finding in loaded.network.findings if finding not in shards.findings]:
        log.warning("predict: the raw folder has no labels of %s: scored, but not to be evaluated", ", ".join(missing))
