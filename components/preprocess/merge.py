"""Finished parts to the stage's output: checks over all files, the quarantine list, and parts without duplicates."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from components.common.errors import UserError
from components.common.formats import shards
from components.common.runs import storage
from components.preprocess.ledger import Ledger
from components.preprocess.matching import found_otherwise
from components.preprocess.part_writer import read_notes
from components.preprocess.parts import Part, Partition, part_of
from components.preprocess.rows import Context

COPIES = 2  # number of parts that are copied at a time, each of which holds several row groups in memory
NAMES = "names.jsonl"


def check_quarantine(ledger: Ledger, max_quarantined: float, quarantine: Path) -> None:
    """Raises UserError if more than the given fraction of the files is quarantined, or all of them."""
    files, quarantined = ledger.files, ledger.quarantined
    reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.reasons.items())
    if not ledger.kept and not ledger.skipped:
        raise UserError(f"none of the {files} files is a usable radiograph ({reasons}); see {quarantine}")
    if quarantined > max_quarantined * files:
        limit = f"more than runtime.max_quarantined = {max_quarantined:g}"
        raise UserError(f"{quarantined} of {files} files are quarantined ({reasons}), {limit}; see {quarantine}, fix the files or raise it")


def write_names(context: Context, partition: Partition) -> None:
    """Lists the images that the tables name and no listed path matches; only the merge knows whether an id does.

    Every name belongs to one partition, as if it were a path. The file holds raw ids.
    """
    parts = context.params.parts
    with (context.folder / NAMES).open("w", encoding="utf-8") as file:
        found = found_otherwise(context.index)
        for name, table, line in context.table.names():
            if partition.owns(part_of(name, parts)) and not context.index.has_file(name, parts) and name not in found:
                file.write(json.dumps([name, table, line, context.pseudonyms.image(name)]) + "\n")


def check_names(ledger: Ledger, files: list[Path], raw: str) -> None:
    """Raises UserError if a table names images that are not among the raw files; `files` are written by `write_names`."""
    unknown = ((line, name, table) for name, table, line, image_id in _read_names(files) if not ledger.is_known(image_id))
    by_table: dict[str, tuple[int, int, str]] = {}
    for line, name, table in unknown:
        count, first, first_name = by_table.get(table, (0, line, name))
        by_table[table] = (count + 1, *min((first, first_name), (line, name)))
    for table, (count, line, name) in by_table.items():
        where = f"{storage.join(raw, table)}: names {count} images that are not among the files"
        raise UserError(f"{where}, first {name} in line {line}; remove these rows")


def _read_names(files: list[Path]) -> Iterator[list[Any]]:
    for path in files:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def check_patients(ledger: Ledger, raw: str) -> None:
    """Raises UserError if the data set's official split has a patient in two splits; a split by hash cannot."""
    count = ledger.patients_in_several_splits()
    if count:
        raise UserError(f"{raw}: the data set's own split has {count} patients in more than one of its parts; set preprocess.split to hash")


def finish_parts(parts: list[Part], ledger: Ledger, folder: Path, out: Path, threads: int) -> None:
    """Moves parts to the output folder, without the rows of duplicates; idempotent."""
    pool = ThreadPoolExecutor(min(threads, COPIES))
    try:
        copies = []
        for part in parts:
            if (out / part.name).exists() or not (folder / part.name).exists():
                continue
            keep = np.array([ledger.is_row(note) for note in read_notes(folder, part) if note.has_row])
            if keep.all():
                (folder / part.name).rename(out / part.name)
            else:
                copies.append(pool.submit(shards.copy_rows, folder / part.name, out / part.name, keep))
        for copy in copies:
            copy.result()
    finally:
        pool.shutdown(cancel_futures=True)
