"""Finished parts to the stage's output: duplicates out, quarantine list, statistics, manifest."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats import shards
from components.common.runs import storage
from components.common.runs.storage import write_json
from components.preprocess import report
from components.preprocess.index import connect, to_key, to_text
from components.preprocess.part_writer import read_notes
from components.preprocess.parts import Part, Partition, part_of
from components.preprocess.report_statistics import COLUMNS, ReportStatistics
from components.preprocess.rows import Context, Note

QUARANTINE = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("path", "reason", "detail")])
_COLUMNS = ["patient_id", "labels", "boxes", *COLUMNS]
_UNKNOWN = "unknown"
_QUARANTINE_ROWS = 10_000
COPIES = 2
"""Of parts at a time, since each holds several row groups."""
NAMES = "names.jsonl"

# Paths are not in UTF-8 always, hence blobs; their order is that of their code points.
_LEDGER = """
CREATE TABLE files (path BLOB PRIMARY KEY, sha256 TEXT, reason TEXT, detail TEXT) WITHOUT ROWID;
CREATE TABLE images (id TEXT PRIMARY KEY, path BLOB) WITHOUT ROWID;
CREATE TABLE refused_images (id TEXT PRIMARY KEY);
CREATE TABLE patients (split TEXT, id TEXT, PRIMARY KEY (split, id)) WITHOUT ROWID;
"""
_FIRST_PATH = "INSERT INTO images VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET path = min(path, excluded.path)"


class Ledger:
    """What all notes together say, on disk: memory does not grow with the number of files."""

    def __init__(self, path: Path):
        path.unlink(missing_ok=True)
        self.files = 0
        self.kept = 0
        """Files that could be rows, duplicates among them."""
        self.reasons: dict[str, int] = {}
        """Quarantined files by reason."""
        self._database = connect(path)
        self._database.executescript(_LEDGER)

    def add(self, notes: Iterable[Note]) -> None:
        """Takes in the notes of a part."""
        reasons = Counter(self.reasons)
        for note in notes:
            self.files += 1
            self._database.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (to_key(note.path), note.sha256, note.reason, note.detail))
            if note.reason is not None:
                reasons[note.reason] += 1
                self._database.execute("INSERT OR IGNORE INTO refused_images VALUES (?)", (note.image_id,))
            else:
                self.kept += 1
                self._database.execute(_FIRST_PATH, (note.image_id, to_key(note.path)))
        self._database.commit()
        self.reasons = dict(sorted(reasons.items()))

    def is_row(self, note: Note) -> bool:
        """Whether a file that was not refused is the first with its image, by path."""
        found = self._database.execute("SELECT path FROM images WHERE id = ?", (note.image_id,)).fetchone()
        return found is not None and found[0] == to_key(note.path)

    def is_known(self, image_id: str) -> bool:
        """Whether one of the files has this image, be it a row or not."""
        query = "SELECT 1 FROM images WHERE id = :id UNION ALL SELECT 1 FROM refused_images WHERE id = :id"
        return self._database.execute(query, {"id": image_id}).fetchone() is not None

    def add_patient(self, split: str, patient_id: str) -> None:
        """Notes whom a row is of."""
        self._database.execute("INSERT OR IGNORE INTO patients VALUES (?, ?)", (split, patient_id))

    def patients(self) -> dict[str, int]:
        """Number of patients by split, of the rows so far."""
        return dict(self._database.execute("SELECT split, COUNT(*) FROM patients GROUP BY split"))

    def straddling(self) -> int:
        """Number of patients who are in more than one split."""
        query = "SELECT COUNT(*) FROM (SELECT id FROM patients GROUP BY id HAVING COUNT(*) > 1)"
        count: int = self._database.execute(query).fetchone()[0]
        return count

    @property
    def duplicates(self) -> int:
        """Files whose image is there already."""
        images: int = self._database.execute("SELECT COUNT(*) FROM images").fetchone()[0]
        return self.kept - images

    @property
    def quarantined(self) -> int:
        """Number of files that are refused."""
        return sum(self.reasons.values())

    def refused(self) -> Iterator[dict[str, str]]:
        """Path, reason and detail, by path."""
        for path, reason, detail in self._database.execute("SELECT path, reason, detail FROM files WHERE reason IS NOT NULL ORDER BY path"):
            yield {"path": _printable(to_text(path)), "reason": reason, "detail": detail or ""}

    def close(self) -> None:
        """Lets go of its files, so that nobody else finds them vanishing."""
        self._database.close()

    def contents(self) -> Iterator[tuple[str, str]]:
        """Path and SHA-256 of every file, by path."""
        for path, sha256 in self._database.execute("SELECT path, sha256 FROM files ORDER BY path"):
            yield to_text(path), sha256


def read_ledger(folder: Path, parts: list[Part]) -> Ledger:
    """Reads the notes of all parts."""
    ledger = Ledger(folder / "ledger.sqlite")
    for part in parts:
        ledger.add(read_notes(folder, part))
    return ledger


def write_quarantine(ledger: Ledger, folder: Path) -> Path:
    """Writes the one file that holds raw paths."""
    refused = ledger.refused()
    with pq.ParquetWriter(folder / QUARANTINE, QUARANTINE_SCHEMA, compression="zstd") as writer:
        while rows := list(islice(refused, _QUARANTINE_ROWS)):
            writer.write_table(pa.Table.from_pylist(rows, QUARANTINE_SCHEMA))
    return folder / QUARANTINE


def _printable(path: str) -> str:
    """A path in UTF-8, even where the file's name is not."""
    return path.encode("utf-8", "backslashreplace").decode()


def check_quarantine(ledger: Ledger, max_quarantined: float, report: Path) -> None:
    """Fails when too much was refused.

    Raises:
        UserError: more than the given fraction, or everything.
    """
    files, refused = ledger.files, ledger.quarantined
    reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.reasons.items())
    if not ledger.kept:
        raise UserError(f"none of the {files} files is a usable radiograph ({reasons}); see {report}")
    if refused > max_quarantined * files:
        limit = f"more than runtime.max_quarantined = {max_quarantined:g}"
        raise UserError(f"{refused} of {files} files are quarantined ({reasons}), {limit}; see {report}, mend the files or raise the limit")


def write_names(context: Context, partition: Partition) -> None:
    """Notes which images the tables name that are not among the listed files by path; whether they are by id shows at the merge.

    Every name belongs to one partition, as if it were a path. This file holds raw ids.
    """
    parts = context.params.parts
    with (context.folder / NAMES).open("w", encoding="utf-8") as file:
        for name, table, line in context.table.names():
            if partition.owns(part_of(name, parts)) and not context.index.has_file(name, parts):
                file.write(json.dumps([name, table, line, context.pseudonyms.image(name)]) + "\n")


def check_names(ledger: Ledger, files: list[Path], raw: str) -> None:
    """Every image that the tables name must be among the files.

    Args:
        ledger: of all files.
        files: that `write_names` wrote.
        raw: the raw folder, for the message.

    Raises:
        UserError: some are not.
    """
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
    """No patient may be on two sides of a split; by hash nobody can.

    Raises:
        UserError: the data set's own split has some.
    """
    count = ledger.straddling()
    if count:
        raise UserError(f"{raw}: the data set's own split has {count} patients in more than one of its parts; set preprocess.split to hash")


def finish_parts(parts: list[Part], ledger: Ledger, folder: Path, out: Path, threads: int) -> None:
    """Puts parts into the output folder, without the rows of duplicates. Doing it again changes nothing."""
    pool = ThreadPoolExecutor(min(threads, COPIES))
    try:
        copies = []
        for part in parts:
            if (out / part.name).exists() or not (folder / part.name).exists():
                continue
            keep = np.array([ledger.is_row(note) for note in read_notes(folder, part) if note.reason is None])
            if keep.all():
                (folder / part.name).rename(out / part.name)
            else:
                copies.append(pool.submit(shards.copy_rows, folder / part.name, out / part.name, keep))
        for copy in copies:
            copy.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _small_columns(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(shards.ROWS_PER_GROUP, columns=_COLUMNS):
            yield from batch.to_pylist()


@dataclass
class Summary:
    """Counts over all rows, and the sums over the pixels of the train split."""

    findings: tuple[str, ...]
    parts: list[dict[str, Any]] = field(default_factory=list)
    images: Counter[str] = field(default_factory=Counter)
    patients: dict[str, int] = field(default_factory=dict)
    labels: dict[str, Counter[tuple[str, str]]] = field(default_factory=lambda: {split: Counter() for split in shards.SPLITS})
    boxes: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in shards.SPLITS})
    survey: ReportStatistics = field(default_factory=ReportStatistics)
    """For the report."""
    identities: Counter[str] = field(default_factory=Counter)
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Over the train split: number of pixels, their sum, and the sum of their squares."""

    def add(self, part: Part, ledger: Ledger, folder: Path, out: Path) -> None:
        """Counts a finished part, if it has rows."""
        if not (out / part.name).exists():
            return
        before = sum(self.images.values())
        notes = (note for note in read_notes(folder, part) if note.reason is None and ledger.is_row(note))
        for number, (row, note) in enumerate(zip(_small_columns(out / part.name), notes, strict=True)):
            self._add_row(row)
            self.survey.add(row, note, part.name, number)
            ledger.add_patient(row["split"], row["patient_id"])
            self.identities[str(note.identity)] += 1
            if row["split"] == "train":
                self.sums = [mine + more for mine, more in zip(self.sums, note.sums, strict=True)]
        self.parts.append({"name": part.name, "rows": sum(self.images.values()) - before})

    def digest_parts(self, out: Path, threads: int) -> None:
        """Adds the SHA-256 of every part; hashing lets other threads run."""
        with ThreadPoolExecutor(threads) as pool:
            for part, digest in zip(self.parts, pool.map(storage.digest_file, [out / part["name"] for part in self.parts]), strict=True):
                part["sha256"] = digest

    def _add_row(self, row: dict[str, Any]) -> None:
        split = row["split"]
        self.images[split] += 1
        self.labels[split].update((finding, _label_name(value)) for finding, value in zip(self.findings, row["labels"], strict=True))
        self.boxes[split].update(box["label"] for box in row["boxes"])

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
            "patients": {split: self.patients.get(split, 0) for split in shards.SPLITS},
            "labels": {split: {finding: self._label_counts(split, finding) for finding in self.findings} for split in shards.SPLITS},
            "boxes": {split: dict(sorted(self.boxes[split].items())) for split in shards.SPLITS},
            **self.survey.counts(),
        }

    def _label_counts(self, split: str, finding: str) -> dict[str, int]:
        return {name: self.labels[split][finding, name] for name in ("positive", "negative", _UNKNOWN)}


def _label_name(value: float) -> str:
    return _UNKNOWN if math.isnan(value) else "positive" if value else "negative"


def describe(context: Context) -> dict[str, Any]:
    """What all partitions of one whole have in common, as it stands in the manifest."""
    return {
        "schema_version": shards.SCHEMA_VERSION,
        "findings": list(context.table.findings),
        "pseudonym_key_id": context.pseudonyms.key_id,
        "labels": context.table.digests,
        "params": context.params.values(),
    }


def write_manifest(path: Path, common: dict[str, Any], ledger: Ledger, summary: Summary) -> dict[str, Any]:
    """Writes manifest.json, which describes the shards and holds nothing that changes from run to run, and the report of it.

    Args:
        path: of the manifest.
        common: of `describe`.
        ledger: of all files.
        summary: of all parts.

    Returns:
        Its content.
    """
    size, bits = common["params"]["size"], common["params"]["bits"]
    summary.patients = ledger.patients()
    rows = sum(part["rows"] for part in summary.parts)
    files, refused = ledger.files, ledger.quarantined
    assert rows + refused + ledger.duplicates == files, "a file was lost or doubled"
    manifest = {
        "schema_version": common["schema_version"],
        "findings": common["findings"],
        "size": size,
        "bits": bits,
        "train_pixels": summary.train_pixels(bits),
        "counts": {
            "files": files,
            "rows": rows,
            "quarantined": refused,
            "reasons": ledger.reasons,
            "duplicates": ledger.duplicates,
            **summary.counts(),
        },
        "patient_id_from": dict(sorted(summary.identities.items())),
        "pseudonym_key_id": common["pseudonym_key_id"],
        "input": input_digest(ledger),
        "labels": common["labels"],
        "params": common["params"],
        "parts": summary.parts,
    }
    write_json(path, manifest)
    report.write(path.parent, manifest, summary.survey)
    return manifest


def input_digest(ledger: Ledger) -> str:
    """SHA-256 over the sorted paths and digests of all files."""
    total = hashlib.sha256()
    for path, sha256 in ledger.contents():
        total.update(f"{path}\0{sha256}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
