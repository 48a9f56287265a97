"""Raw files to Parquet shards: `python -m components preprocess --raw DIR --out DIR`.

In several processes on several machines: `--partition 0/4` to `--partition 3/4`, then `preprocess merge --shards DIR ... --out DIR`
makes of their outputs what a single run would have made.
"""

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

from components.common.dicom import decoders
from components.common.errors import UserError
from components.common.formats.shards import MANIFEST, SPLITS
from components.common.runs import signals, storage
from components.common.runs.job import Job, open_job, upstream_run_id
from components.common.runs.params import Params
from components.preprocess import layouts, merge, partitions
from components.preprocess.deidentify import load_pseudonyms
from components.preprocess.index import Index
from components.preprocess.parts import Part, Partition, parse_partition
from components.preprocess.pool import processing, workers_of
from components.preprocess.rows import Context

WORK_FOLDER = "parts"
"""Of the work folder: parts and notes before the merge."""
INDEX = "index.sqlite"

log = logging.getLogger(__name__)


def run(*, raw: str, out: str, params: Params, partition: str | None = None) -> None:
    """Turns every file below `raw` into a row or a quarantine entry.

    Args:
        raw: folder of DICOM, PNG or JPEG files, and of the tables that the layout has.
        out: output folder.
        params: section `preprocess` is used.
        partition: `i/n`: only the i-th of n slices, whose output `merge` joins with the others'.

    Raises:
        UserError: nothing to read, a mistake in the tables, too many files refused, no pseudonym key.
    """
    section = params.preprocess
    part_of_whole = parse_partition(partition) if partition else Partition()
    _refuse_nesting(raw, out)
    decoders.check_decoders()
    pseudonyms = load_pseudonyms()
    index = Index()
    table = layouts.read(raw, section, index)
    images = (entry for entry in storage.walk(raw) if table.is_image(entry.path))
    count = index.add_files(images, section.parts, part_of_whole)
    if not count:
        raise UserError(f"{raw}: holds no files{table.place}; give the folder of the images with --raw")
    if not table.complete and len(table.records) > count:
        log.warning("preprocess: the data set's tables name %d images, %d are here", len(table.records), count)
    extra = {"pseudonym_key": pseudonyms.key_id} | ({"partition": partition} if partition else {})
    job = open_job("preprocess", out, section, {"raw": index.digest(), **table.digests}, extra)
    folder = job.work / WORK_FOLDER
    folder.mkdir(exist_ok=True)
    index.save(folder / INDEX)
    context = Context(raw, folder, section, pseudonyms, table, index)
    parts = [Part(number, files) for number, files in index.parts().items()]
    with processing(context, parts) as finish:
        with signals.deferred():  # pydantic, which MLflow builds on, turns what a signal raises into an error of its own
            from components.common.runs import tracking  # takes seconds, in which the pool is at work already
        signals.check()
        with tracking.run(job) as tracker:
            finish()
            merge.write_names(context, part_of_whole)
            if partition:
                metrics = partitions.write(context, part_of_whole, parts, job.work)
            else:
                metrics = _complete(job, parts, merge.describe(context), [folder / merge.NAMES], raw)
                tracker.attach(job.work / MANIFEST)
            tracker.log(metrics)
            job.publish(metrics, tracker.run_id, drop=(tracking.RUN_ID_FILE, WORK_FOLDER))


def merge_partitions(*, shards: list[str], out: str, params: Params) -> None:
    """Joins the outputs of all partitions to what a single run would have made, byte for byte.

    Args:
        shards: output folders of `run` with a partition, all n of them.
        out: output folder.
        params: only `preprocess.max_quarantined` is used; all else is as in the partitions.

    Raises:
        UserError: partitions are missing or do not fit together, labels name unknown images, too many files refused.
    """
    outputs = partitions.open_all(shards)
    section = partitions.section(outputs, params.preprocess.max_quarantined)
    upstream = {f"shards.{number}": upstream_run_id(output.folder) for number, output in enumerate(outputs)}
    from components.common.runs import tracking

    job = open_job("preprocess", out, section, partitions.digests(outputs), upstream={k: v for k, v in upstream.items() if v})
    folder = job.work / WORK_FOLDER
    with tracking.run(job) as tracker:
        parts = partitions.gather(outputs, folder)
        metrics = _complete(job, parts, partitions.common(outputs), partitions.names_files(outputs, folder), outputs[0].described["raw"])
        tracker.attach(job.work / MANIFEST)
        tracker.log(metrics)
        job.publish(metrics, tracker.run_id, drop=(tracking.RUN_ID_FILE, WORK_FOLDER))


def _refuse_nesting(raw: str, out: str) -> None:
    if storage.is_s3(raw) != storage.is_s3(out):
        return
    outer, inner = (Path(uri.removeprefix("s3://") if storage.is_s3(uri) else Path(uri).resolve()) for uri in (raw, out))
    if inner.is_relative_to(outer):
        raise UserError(f"{out}: lies inside the raw folder {raw}, whose files are all read; choose another --out")


def _complete(job: Job, parts: list[Part], common: dict[str, Any], names: list[Path], raw: str) -> dict[str, float]:
    """Judges the whole, completes the work folder and returns the metrics."""
    folder = job.work / WORK_FOLDER
    with closing(merge.read_ledger(folder, parts)) as ledger:
        report = merge.write_quarantine(ledger, job.work)
        merge.check_names(ledger, names, raw)
        merge.check_quarantine(ledger, job.params["max_quarantined"], report)
        threads = workers_of(job.params["workers"])
        merge.finish_parts(parts, ledger, folder, job.work, threads)
        summary = merge.Summary(common["findings"])
        for part in parts:
            summary.add(part, ledger, folder, job.work)
        summary.digest_parts(job.work, threads)
        merge.check_patients(ledger, raw)
        manifest = merge.write_manifest(job.work / MANIFEST, common, ledger, summary)
        rows = manifest["counts"]["rows"]
        log.info("preprocess: %d rows, %d files quarantined %s, %d duplicates", rows, ledger.quarantined, ledger.reasons, ledger.duplicates)
        return _metrics(manifest)


def _metrics(manifest: dict[str, object]) -> dict[str, float]:
    counts = manifest["counts"]
    assert isinstance(counts, dict)
    flat = {name: counts[name] for name in ("files", "rows", "quarantined", "duplicates")}
    flat |= {f"quarantined_{reason}": count for reason, count in counts["reasons"].items()}
    flat |= {f"{kind}_{split}": counts[kind][split] for kind in ("images", "patients") for split in SPLITS}
    pixels = manifest["train_pixels"]
    assert isinstance(pixels, dict)
    return flat | {"train_mean": pixels["mean"], "train_std": pixels["std"]}
