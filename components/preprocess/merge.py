"""Finished parts to the stage's output: duplicates out, quarantine list, statistics, manifest."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.common import shards, storage
from components.common.errors import UserError
from components.common.job import write_json
from components.preprocess.labels import Table
from components.preprocess.part import Context, Note, Part, read_notes

QUARANTINE = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("path", "reason", "detail")])
_COLUMNS = ["patient_id", "split", "labels", "boxes", "view", "sex", "manufacturer"]
_UNKNOWN = "unknown"


@dataclass
class Ledger:
    """What all notes together say."""

    first: dict[str, str] = field(default_factory=dict)
    """Image id -> the first path, in sorted order, of the files that could be rows."""
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    """Path, reason and detail."""
    refused_ids: set[str] = field(default_factory=set)
    contents: list[tuple[str, str]] = field(default_factory=list)
    """Path and SHA-256 of every file."""
    kept: int = 0
    """Files that could be rows, duplicates among them."""

    def is_row(self, note: Note) -> bool:
        """Whether a file that was not refused is the first with its image."""
        return self.first.get(note.image_id or "") == note.path

    @property
    def duplicates(self) -> int:
        """Files whose image is there already."""
        return self.kept - len(self.first)

    @property
    def reasons(self) -> dict[str, int]:
        """Quarantined files by reason."""
        return dict(sorted(Counter(reason for _, reason, _ in self.refused).items()))


def read_ledger(folder: Path, parts: list[Part]) -> Ledger:
    """Reads the notes of all parts."""
    ledger = Ledger()
    for part in parts:
        for note in read_notes(folder, part):
            ledger.contents.append((note.path, note.sha256))
            if note.reason is not None:
                ledger.refused.append((note.path, note.reason, note.detail or ""))
                ledger.refused_ids.update([note.image_id] if note.image_id else [])
            elif note.image_id is not None:
                ledger.kept += 1
                ledger.first[note.image_id] = min(note.path, ledger.first.get(note.image_id, note.path))
    ledger.refused.sort()
    ledger.contents.sort()
    return ledger


def write_quarantine(ledger: Ledger, folder: Path) -> Path:
    """Writes the one file that holds raw paths."""
    rows = [{"path": _printable(path), "reason": reason, "detail": detail} for path, reason, detail in ledger.refused]
    pq.write_table(pa.Table.from_pylist(rows, QUARANTINE_SCHEMA), folder / QUARANTINE, compression="zstd")
    return folder / QUARANTINE


def _printable(path: str) -> str:
    """A path in UTF-8, even where the file's name is not."""
    return path.encode("utf-8", "backslashreplace").decode()


def check_quarantine(ledger: Ledger, max_quarantined: float, report: Path) -> None:
    """Fails when too much was refused.

    Raises:
        UserError: more than the given fraction, or everything.
    """
    files, refused = len(ledger.contents), len(ledger.refused)
    reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.reasons.items())
    if not ledger.kept:
        raise UserError(f"none of the {files} files is a usable radiograph ({reasons}); see {report}")
    if refused > max_quarantined * files:
        limit = f"more than preprocess.max_quarantined = {max_quarantined:g}"
        raise UserError(f"{refused} of {files} files are quarantined ({reasons}), {limit}; see {report}, mend the files or raise the limit")


def check_names(table: Table, ledger: Ledger, pseudonym: Callable[[str], str], raw: str) -> None:
    """Every image that labels.csv or boxes.csv names must be among the files.

    Raises:
        UserError: some are not.
    """
    paths = {path for path, _ in ledger.contents}
    unknown = [(name, file) for name, file in table.names() if name not in paths and not _is_known(pseudonym(name), ledger)]
    if unknown:
        name, file = unknown[0]
        count = sum(source == file for _, source in unknown)
        raise UserError(f"{storage.join(raw, file)}: names {count} images that are not among the files, first {name}; remove these rows")


def _is_known(image_id: str, ledger: Ledger) -> bool:
    return image_id in ledger.first or image_id in ledger.refused_ids


def finish_part(part: Part, ledger: Ledger, folder: Path, out: Path) -> None:
    """Puts a part into the output folder, without the rows of duplicates. Doing it again changes nothing."""
    if (out / part.name).exists() or not (folder / part.name).exists():
        return
    keep = [ledger.is_row(note) for note in read_notes(folder, part) if note.reason is None]
    if all(keep):
        (folder / part.name).rename(out / part.name)
    else:
        shards.write_part(out / part.name, (row for row, kept in zip(_stored_rows(folder / part.name), keep, strict=True) if kept))


def _stored_rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=shards.ROWS_PER_GROUP):
            yield from batch.to_pylist()


@dataclass
class Summary:
    """Counts over all rows, and the sums over the pixels of the train split."""

    findings: tuple[str, ...]
    parts: list[dict[str, Any]] = field(default_factory=list)
    images: Counter[str] = field(default_factory=Counter)
    patients: dict[str, set[str]] = field(default_factory=lambda: {split: set() for split in shards.SPLITS})
    labels: dict[str, Counter[tuple[str, str]]] = field(default_factory=lambda: {split: Counter() for split in shards.SPLITS})
    boxes: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in shards.SPLITS})
    values: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in ("view", "sex", "manufacturer")})
    identities: Counter[str] = field(default_factory=Counter)
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Over the train split: number of pixels, their sum, and the sum of their squares."""

    def add(self, part: Part, ledger: Ledger, folder: Path, out: Path) -> None:
        """Counts a finished part, if it has rows."""
        if not (out / part.name).exists():
            return
        rows = pq.read_table(out / part.name, columns=_COLUMNS).to_pylist()
        notes = (note for note in read_notes(folder, part) if note.reason is None and ledger.is_row(note))
        for row, note in zip(rows, notes, strict=True):
            self._add_row(row)
            self.identities[str(note.identity)] += 1
            if row["split"] == "train":
                self.sums = [mine + more for mine, more in zip(self.sums, note.sums, strict=True)]
        self.parts.append({"name": part.name, "rows": len(rows), "sha256": storage.digest_file(out / part.name)})

    def _add_row(self, row: dict[str, Any]) -> None:
        split = row["split"]
        self.images[split] += 1
        self.patients[split].add(row["patient_id"])
        self.labels[split].update((finding, _label_name(value)) for finding, value in zip(self.findings, row["labels"], strict=True))
        self.boxes[split].update(box["label"] for box in row["boxes"])
        for name, counter in self.values.items():
            counter[row[name] or _UNKNOWN] += 1

    def train_pixels(self, bits: int) -> dict[str, float]:
        """Number, mean and standard deviation of the train split's pixels, the latter as fractions of the full range."""
        full = 2**bits - 1
        count, total, squares = self.sums
        if not count:
            return {"count": 0, "mean": 0.0, "std": 0.0}
        variance = squares * count - total**2  # in integers: no cancellation
        return {"count": count, "mean": total / count / full, "std": math.sqrt(variance) / count / full}

    def counts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "images": {split: self.images[split] for split in shards.SPLITS},
            "patients": {split: len(self.patients[split]) for split in shards.SPLITS},
            "labels": {split: {finding: self._label_counts(split, finding) for finding in self.findings} for split in shards.SPLITS},
            "boxes": {split: dict(sorted(self.boxes[split].items())) for split in shards.SPLITS},
            **{name: dict(sorted(counter.items())) for name, counter in self.values.items()},
        }

    def _label_counts(self, split: str, finding: str) -> dict[str, int]:
        return {name: self.labels[split][finding, name] for name in ("positive", "negative", _UNKNOWN)}


def _label_name(value: float) -> str:
    return _UNKNOWN if math.isnan(value) else "positive" if value else "negative"


def write_manifest(path: Path, context: Context, ledger: Ledger, summary: Summary) -> dict[str, Any]:
    """Writes manifest.json, which describes the shards and holds nothing that changes from run to run."""
    params = context.params
    rows = sum(part["rows"] for part in summary.parts)
    files, refused = len(ledger.contents), len(ledger.refused)
    assert rows + refused + ledger.duplicates == files, "a file was lost or doubled"
    manifest = {
        "schema_version": shards.SCHEMA_VERSION,
        "findings": list(summary.findings),
        "size": params.size,
        "bits": params.bits,
        "train_pixels": summary.train_pixels(params.bits),
        "counts": {
            "files": files,
            "rows": rows,
            "quarantined": refused,
            "reasons": ledger.reasons,
            "duplicates": ledger.duplicates,
            **summary.counts(),
        },
        "patient_id_from": dict(sorted(summary.identities.items())),
        "pseudonym_key_id": context.pseudonyms.key_id,
        "input": input_digest(ledger),
        "labels": context.table.digests,
        "params": params.defining(),
        "parts": summary.parts,
    }
    write_json(path, manifest)
    return manifest


def input_digest(ledger: Ledger) -> str:
    """SHA-256 over the sorted paths and digests of all files."""
    total = hashlib.sha256()
    for path, sha256 in ledger.contents:
        total.update(f"{path}\0{sha256}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
