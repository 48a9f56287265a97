"""`manifest.json`: counts over all rows, pixel statistics of the train split, and the digests of inputs and parts."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.common.formats import croissant, shards
from components.common.formats.manifest import Manifest, Origin, PartEntry, PixelStatistics
from components.common.runs import storage
from components.preprocess import report
from components.preprocess.deidentify import INVENTED
from components.preprocess.ledger import Ledger
from components.preprocess.part_writer import read_notes
from components.preprocess.parts import Part
from components.preprocess.report_statistics import COLUMNS, ReportStatistics
from components.preprocess.rows import Context

_COLUMNS = ["patient_id", "labels", "boxes", *COLUMNS]
_UNKNOWN = "unknown"


@dataclass
class Summary:
    """Counts over all rows, and sums over the pixels of the train split."""

    findings: list[str]
    rows: dict[str, int] = field(default_factory=dict)  # by name of part
    images: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[tuple[str, str]]] = field(default_factory=lambda: {split: Counter() for split in shards.SPLITS})
    boxes: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in shards.SPLITS})
    statistics: ReportStatistics = field(default_factory=ReportStatistics)
    identities: Counter[str] = field(default_factory=Counter)
    unnamed: int = 0  # rows of images that are in no table
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])  # pixels of the train split: number, sum, and sum of squares

    def add(self, part: Part, ledger: Ledger, folder: Path, out: Path) -> None:
        """Counts a finished part, if it has rows."""
        if not (out / part.name).exists():
            return
        before = sum(self.images.values())
        notes = (note for note in read_notes(folder, part) if note.has_row and ledger.is_row(note))
        for number, (row, note) in enumerate(zip(_small_columns(out / part.name), notes, strict=True)):
            split = row["split"]
            self.images[split] += 1
            self.labels[split].update((finding, _label_name(value)) for finding, value in zip(self.findings, row["labels"], strict=True))
            self.boxes[split].update(box["label"] for box in row["boxes"])
            self.statistics.add(row, note, part.name, number)
            ledger.add_row(note.image_id, split, row["patient_id"])
            self.identities[str(note.identity)] += 1
            self.unnamed += not note.named
            if split == "train":
                self.sums = [mine + more for mine, more in zip(self.sums, note.sums, strict=True)]
        self.rows[part.name] = sum(self.images.values()) - before

    def train_pixels(self, bits: int) -> PixelStatistics:
        """Returns number, mean and standard deviation of the train split's pixels, the latter two as fractions of the full range."""
        full = 2**bits - 1
        count, total, squares = self.sums
        if not count:
            return {"count": 0, "mean": 0.0, "std": 0.0}
        variance = squares * count - total**2  # in integers, to avoid cancellation
        return {"count": count, "mean": total / count / full, "std": math.sqrt(variance) / count / full}

    def counts(self, patients: dict[str, int]) -> dict[str, Any]:
        """Returns the counts of the manifest; `patients` are by split."""
        return {
            "images": {split: self.images[split] for split in shards.SPLITS},
            "patients": {split: patients.get(split, 0) for split in shards.SPLITS},
            "labels": {split: {finding: self._label_counts(split, finding) for finding in self.findings} for split in shards.SPLITS},
            "boxes": {split: dict(sorted(self.boxes[split].items())) for split in shards.SPLITS},
            **self.statistics.counts(),
        }

    def _label_counts(self, split: str, finding: str) -> dict[str, int]:
        return {name: self.labels[split][finding, name] for name in ("positive", "negative", _UNKNOWN)}


def _label_name(value: float) -> str:
    return _UNKNOWN if math.isnan(value) else "positive" if value else "negative"


def _small_columns(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(shards.ROWS_PER_GROUP, columns=_COLUMNS):
            yield from batch.to_pylist()


def describe(context: Context) -> Origin:
    """Returns the entries of the manifest that all partitions share."""
    return {
        "schema_version": shards.SCHEMA_VERSION,
        "findings": list(context.table.findings),
        "pseudonym_key_id": context.pseudonyms.key_id,
        "labels": context.table.digests,
        "params": context.params.values(),
    }


def write_manifest(path: Path, shared: Origin, ledger: Ledger, summary: Summary, threads: int) -> Manifest:
    """Writes manifest.json, croissant.json and the report; `shared` is the result of `describe`, ledger and summary are of all parts."""
    size, bits = shared["params"]["size"], shared["params"]["bits"]
    rows = sum(summary.rows.values())
    files, quarantined = ledger.files, ledger.quarantined
    assert rows + quarantined + ledger.duplicates + ledger.skipped == files, "a file was lost or counted twice"
    manifest: Manifest = {
        "schema_version": shared["schema_version"],
        "findings": shared["findings"],
        "size": size,
        "bits": bits,
        "train_pixels": summary.train_pixels(bits),
        "counts": {
            "files": files,
            "rows": rows,
            "quarantined": quarantined,
            "reasons": ledger.reasons,
            "duplicates": ledger.duplicates,
            "same_pixels": ledger.same_pixels(),
            **({"skipped": ledger.skipped} if ledger.skipped else {}),
            "unnamed": summary.unnamed,
            **summary.counts(ledger.patients()),
        },
        "patient_id_from": dict(sorted(summary.identities.items())),
        "patient_id_invented": sum(summary.identities[source] for source in INVENTED),
        "pseudonym_key_id": shared["pseudonym_key_id"],
        "input": input_digest(ledger),
        "labels": shared["labels"],
        "params": shared["params"],
        "parts": _part_entries(path.parent, summary.rows, threads),
    }
    storage.write_json(path, manifest)
    storage.write_json(path.with_name(croissant.CROISSANT), croissant.describe(manifest))
    report.write(path.parent, manifest, summary.statistics)
    return manifest


def _part_entries(folder: Path, rows: dict[str, int], threads: int) -> list[PartEntry]:
    with ThreadPoolExecutor(threads) as pool:
        digests = pool.map(storage.digest_file, [folder / name for name in rows])
        return [{"name": name, "rows": count, "sha256": sha256} for (name, count), sha256 in zip(rows.items(), digests, strict=True)]


def input_digest(ledger: Ledger) -> str:
    """Returns the SHA-256 over the sorted paths and digests of all files."""
    total = hashlib.sha256()
    for path, sha256 in ledger.contents():
        total.update(f"{path}\0{sha256}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
