"""Raw files to Parquet shards: `python -m components preprocess --raw DIR --out DIR`.

On several machines: `--partition 0/4` to `--partition 3/4`, then `preprocess merge --shards DIR ... --out DIR` makes the shards of a
single run from their outputs.
"""

import logging
from contextlib import closing
from pathlib import Path

from components.common.dicom import decoders
from components.common.errors import UserError
from components.common.formats.manifest import MANIFEST, Manifest, Origin
from components.common.formats.quarantine import QUARANTINE, write_quarantine
from components.common.formats.shards import SPLITS
from components.common.runs import scored, storage
from components.common.runs.inputs import upstream_run_ids
from components.common.runs.params import Runtime
from components.common.runs.stage_run import StageRun, stage_run
from components.preprocess import layouts, manifest, merge, partitions, report
from components.preprocess.deidentify import load_pseudonyms
from components.preprocess.index import Index
from components.preprocess.ledger import read_ledger
from components.preprocess.matching import Matching
from components.preprocess.params import Preprocess
from components.preprocess.parts import Part, Partition, parse_partition
from components.preprocess.pool import processing, workers_of
from components.preprocess.rows import Context

WORK_FOLDER = "parts"  # subfolder of the work folder with parts and notes before the merge
INDEX = "index.sqlite"

log = logging.getLogger(__name__)


def run(
    *,
    raw: str,
    out: str,
    params: Preprocess,
    runtime: Runtime,
    partition: str | None = None,
    to_train: bool = True,
    skip: frozenset[str] = frozenset(),
) -> None:
    """Turns every file below `raw` (DICOM, PNG, JPEG, and the tables of the layout) into a row or a quarantine entry.

    With `partition` (`i/n`), only the i-th of n partitions is made; `merge_partitions` joins their outputs. `to_train` warns of splits
    without images. Images whose ids are in `skip` are neither decoded nor in the output, and counted. Raises UserError without files or
    pseudonym key, for a mistake in a table, and if too many files are quarantined.
    """
    this_partition = parse_partition(partition) if partition else Partition()
    _refuse_nesting(raw, out)
    decoders.check_decoders()
    pseudonyms = load_pseudonyms()
    with closing(Index()) as index:
        table = layouts.read(raw, params, index)
        matching = Matching(table, index)
        entries = storage.walk(raw, faults=True, apart_from="" if storage.is_s3(out) else out)
        index.add_files(matching.select(entries), params.parts, this_partition)
        matching.check(raw)
        index.skip(skip)
        inputs = {"raw": index.digest(), **table.digests}
        depends = {"pseudonym_key": pseudonyms.key_id} | ({"partition": partition} if partition else {})
        depends |= {"skip": scored.digest(skip)} if skip else {}
        with stage_run("preprocess", out, params, inputs, runtime=runtime, depends=depends, connect=False) as job:
            folder = job.folder / WORK_FOLDER
            folder.mkdir(exist_ok=True)
            index.save(folder / INDEX)
            context = Context(raw, folder, params, pseudonyms, table, index)
            parts = [Part(number, files) for number, files in index.parts().items()]
            with processing(context, parts, runtime.workers) as finish:
                job.connect()  # importing MLflow takes seconds, during which the pool works
                finish()
            merge.write_names(context, this_partition)
            if partition:
                metrics = partitions.write(context, this_partition, parts, job.folder)
            else:
                metrics = _complete(job, runtime, parts, manifest.describe(context), [folder / merge.NAMES], raw, to_train)
                job.attach(MANIFEST)
            job.publish(metrics, drop=(WORK_FOLDER,))


def merge_partitions(*, shards: list[str], out: str, runtime: Runtime) -> None:
    """Joins the outputs of all partitions, with their parameters, to the shards of a single run, byte for byte.

    Raises UserError if partitions are missing or do not belong together, a table names unknown images, or too many files are quarantined.
    """
    outputs = partitions.open_all(shards)
    params = partitions.section(outputs)
    inputs = {f"shards.{number}": output.digest for number, output in enumerate(outputs)}
    upstream = upstream_run_ids({f"shards.{number}": output.folder for number, output in enumerate(outputs)})
    with stage_run("preprocess", out, params, inputs, runtime=runtime, upstream=upstream) as job:
        folder = job.folder / WORK_FOLDER
        parts, names = partitions.gather(outputs, folder)
        metrics = _complete(job, runtime, parts, partitions.shared(outputs), names, outputs[0].described["raw"])
        job.attach(MANIFEST)
        job.publish(metrics, drop=(WORK_FOLDER,))


def _refuse_nesting(raw: str, out: str) -> None:
    if storage.is_s3(raw) != storage.is_s3(out):
        return
    if storage.is_s3(out):
        outer, *inner = (Path(uri.removeprefix("s3://")) for uri in (raw, out))
    else:  # unfinished work lies beside `out`, which can be a link
        outer, *inner = (path.resolve() for path in (Path(raw), Path(out), Path(out).absolute().parent))
    if any(path.is_relative_to(outer) for path in inner):
        raise UserError(f"{out}: lies inside the raw folder {raw}, whose files are all read; choose another --out")


def _complete(
    job: StageRun, runtime: Runtime, parts: list[Part], shared: Origin, names: list[Path], raw: str, to_train: bool = True
) -> dict[str, float]:
    """Checks all files together, completes the work folder and returns the metrics."""
    folder = job.folder / WORK_FOLDER
    with read_ledger(folder, parts) as ledger:
        ledger.refuse_conflicts()
        write_quarantine(job.folder / QUARANTINE, ledger.refused())
        merge.check_names(ledger, names, raw)
        merge.check_quarantine(ledger, runtime.max_quarantined, job.folder / QUARANTINE)
        threads = workers_of(runtime.workers)
        merge.finish_parts(parts, ledger, folder, job.folder, threads)
        summary = manifest.Summary(shared["findings"])
        for part in parts:
            summary.add(part, ledger, folder, job.folder)
        merge.check_patients(ledger, raw)
        written = manifest.write_manifest(job.folder / MANIFEST, shared, ledger, summary, threads)
        rows = written["counts"]["rows"]
        log.info("preprocess: %d rows, %d files quarantined %s, %d duplicates", rows, ledger.quarantined, ledger.reasons, ledger.duplicates)
        about_splits = [*report.empty_splits(written), *report.shared_pictures(written)] if to_train and not ledger.skipped else []
        for sentence in about_splits + report.unmatched(written):
            log.warning("preprocess: %s", sentence)
        return _metrics(written)


def _metrics(written: Manifest) -> dict[str, float]:
    counts, pixels = written["counts"], written["train_pixels"]
    flat: dict[str, float] = {name: counts[name] for name in ("files", "rows", "quarantined", "duplicates", "skipped") if name in counts}
    flat |= {f"quarantined_{reason}": count for reason, count in counts["reasons"].items()}
    flat |= {f"same_pixels_{name}": count for name, count in counts["same_pixels"].items()}
    flat |= {f"{kind}_{split}": counts[kind][split] for kind in ("images", "patients") for split in SPLITS}
    return flat | {"train_mean": pixels["mean"], "train_std": pixels["std"]}
