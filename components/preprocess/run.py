"""Raw files to Parquet shards: `python -m components preprocess --raw DIR --out DIR`."""

import json
import logging
from collections import defaultdict
from pathlib import Path

from components.common import shards, storage, tracking
from components.common.errors import UserError
from components.common.job import Job, open_job
from components.common.params import Params
from components.preprocess import dicom, labels, merge
from components.preprocess.deidentify import load_pseudonyms
from components.preprocess.labels import BOXES, LABELS
from components.preprocess.part import Context, Part
from components.preprocess.pool import process_parts
from components.preprocess.split import part_of

WORK_FOLDER = "parts"
"""Of the work folder: parts and notes before the merge."""

log = logging.getLogger(__name__)


def run(*, raw: str, out: str, params: Params) -> None:
    """Turns every file below `raw` into a row or a quarantine entry.

    Args:
        raw: folder of DICOM files, with labels.csv and boxes.csv at its top if there are any.
        out: output folder.
        params: section `preprocess` is used.

    Raises:
        UserError: nothing to read, a mistake in the tables, too many files refused, no pseudonym key.
    """
    section = params.preprocess
    _refuse_nesting(raw, out)
    dicom.check_decoders()
    pseudonyms = load_pseudonyms()
    files = [entry for entry in storage.listing(raw) if entry.path not in (LABELS, BOXES)]
    if not files:
        raise UserError(f"{raw}: holds no files; give the folder of the DICOM files with --raw")
    table = labels.read(raw, section.unknown_labels)
    inputs = {"raw": storage.digest(json.dumps(files).encode()), **table.digests}
    job = open_job("preprocess", out, section, inputs, extra={"pseudonym_key": pseudonyms.key_id})
    with tracking.run(job) as tracker:
        context = Context(raw, job.work / WORK_FOLDER, section, pseudonyms, table)
        parts = _split_into_parts([entry.path for entry in files], section.parts)
        process_parts(context, parts)
        metrics = _merge(job, context, parts)
        tracker.log(metrics)
        tracker.attach(job.work / shards.MANIFEST)
        job.publish(metrics, tracker.run_id, drop=(tracking.RUN_ID_FILE, WORK_FOLDER))


def _refuse_nesting(raw: str, out: str) -> None:
    if not storage.is_s3(raw) and not storage.is_s3(out) and Path(out).resolve().is_relative_to(Path(raw).resolve()):
        raise UserError(f"{out}: lies inside the raw folder {raw}, whose files are all read; choose another --out")


def _split_into_parts(paths: list[str], count: int) -> list[Part]:
    """Parts that have files, in order."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for path in paths:
        groups[part_of(path, count)].append(path)
    return [Part(index, tuple(groups[index])) for index in sorted(groups)]


def _merge(job: Job, context: Context, parts: list[Part]) -> dict[str, float]:
    """Judges the whole, completes the work folder and returns the metrics."""
    ledger = merge.read_ledger(context.folder, parts)
    report = merge.write_quarantine(ledger, job.work)
    merge.check_names(context.table, ledger, context.pseudonyms.image, context.raw)
    merge.check_quarantine(ledger, context.params.max_quarantined, report)
    summary = merge.Summary(context.table.findings)
    for part in parts:
        merge.finish_part(part, ledger, context.folder, job.work)
        summary.add(part, ledger, context.folder, job.work)
    manifest = merge.write_manifest(job.work / shards.MANIFEST, context, ledger, summary)
    rows = manifest["counts"]["rows"]
    log.info("preprocess: %d rows, %d files quarantined %s, %d duplicates", rows, len(ledger.refused), ledger.reasons, ledger.duplicates)
    return _metrics(manifest)


def _metrics(manifest: dict[str, object]) -> dict[str, float]:
    counts = manifest["counts"]
    assert isinstance(counts, dict)
    flat = {name: counts[name] for name in ("files", "rows", "quarantined", "duplicates")}
    flat |= {f"quarantined_{reason}": count for reason, count in counts["reasons"].items()}
    flat |= {f"{kind}_{split}": counts[kind][split] for kind in ("images", "patients") for split in shards.SPLITS}
    pixels = manifest["train_pixels"]
    assert isinstance(pixels, dict)
    return flat | {"train_mean": pixels["mean"], "train_std": pixels["std"]}
