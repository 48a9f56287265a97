"""Results as DICOM, inside the hospital: `predict --dicom DIR` writes a report per image and, where there are boxes, a presentation state.

Shards and predictions hold pseudonyms. The link from a row back to its file exists in this process only: each raw file is read once more,
and its pseudonym is computed as preprocess did. Nothing of it is logged or sent anywhere; DIR is as sensitive as the raw folder.
"""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from pydicom.dataset import Dataset

from components.common.dicom import dicom_file, png_jpeg
from components.common.dicom.recipe import MAX_FILE_BYTES
from components.common.dicom.refusal import Refused
from components.common.errors import UserError, disk_errors
from components.common.formats.predictions import DETECTIONS, findings_of, score_column
from components.common.runs import storage
from components.common.runs.shards import Shards
from components.common.runs.work import partial_folder
from components.predict.dicom_documents import Mark, Model, Results, complete, presentation_state, structured_report, uid_of
from components.predict.source import Source
from components.preprocess.deidentify import Pseudonyms, load_pseudonyms
from components.preprocess.index import Index
from components.preprocess.prefetch import contents

_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")  # leading zeros are forbidden (PS3.5 section 9.1), and yet common
_LONGEST_UID = 64
_SIDES = ("height", "width", "source_height", "source_width")

log = logging.getLogger(__name__)


class _LeftOutError(Exception):
    """No report can be made of an image; the message says why, without a value of its header."""


def prepare(folder: str, raw: str | None, out: str) -> None:
    """Creates the folder; raises UserError if results with patients' names must not lie there, or there are no source files."""
    if raw is None:
        raise UserError("--dicom: shards do not name the files that the reports belong to; give --raw instead of --shards")
    if ":/" in folder:
        raise UserError(f"{folder}: results as DICOM name patients and stay on a disk of the hospital; give --dicom a local folder")
    path = Path(folder).resolve()
    for name, other in (("--out", out), ("--out", str(partial_folder(out))), ("--raw", raw)):
        if not storage.is_s3(other) and path.is_relative_to(Path(other).resolve()):
            why = "results as DICOM name patients, and this folder is shared" if name == "--out" else "its files are all read the next time"
            raise UserError(f"{folder}: lies inside {other} of {name}: {why}; choose another folder for --dicom")
    if path.exists() and not path.is_dir():
        raise UserError(f"{folder}: is a file; --dicom must be a folder")
    with disk_errors(folder):
        path.mkdir(parents=True, exist_ok=True)


def write(folder: str, raw: str, index: Index, shards: Shards, table: pa.Table, loaded: Source) -> None:
    """Writes what is not in the folder yet, for every scored image, and logs how many there are and how many had to be left out.

    Args:
        folder: a folder for which `prepare` was called.
        raw: the raw folder.
        index: its files.
        shards: the images.
        table: the rows of predictions.parquet.
        loaded: the model.

    Raises:
        UserError: a file cannot be read or written.
    """
    writer = _Writer(Path(folder), _model(loaded, table))
    rows, pseudonyms = _Rows(shards, table, loaded), load_pseudonyms()
    with closing(contents(raw, (file for part in index.parts() for file in index.files(part)))) as files:
        for file, content in files:
            try:
                _write_one(writer, rows, pseudonyms, file.path, content)
            except _LeftOutError as reason:
                writer.left_out[str(reason)] += 1
    counts, left_out = writer.counts, writer.left_out
    log.info("predict: %d reports and %d presentation states in %s (%d new)", counts["SR"], counts["PR"], folder, counts["new"])
    if left_out:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(left_out.items()))
        log.warning("predict: %d results could not be written as DICOM (%s)", left_out.total(), reasons)


class _Rows:
    """The results by image_id, each of which is taken once: other files with the same id are duplicates."""

    def __init__(self, shards: Shards, table: pa.Table, loaded: Source):
        self._findings = findings_of(table)
        boxes = [name for name in (DETECTIONS,) if name in table.column_names]
        self._labels = loaded.network.labels if boxes else []
        self._least = _threshold(loaded, table) or 0.0
        self._table = table.select([*map(score_column, self._findings), *boxes]).combine_chunks()
        self._places = {image: place for place, image in enumerate(table["image_id"].to_pylist())}
        self._sides: dict[str, list[int]] = {}
        for part in shards.parts() if boxes else ():
            ids, *sides = (column.to_pylist() for column in part.columns(["image_id", *_SIDES]).columns)
            self._sides |= dict(zip(ids, map(list, zip(*sides, strict=True)), strict=True))

    def take(self, image_id: str) -> Results | None:
        """Returns the results of an image; None if it was not scored, or taken before."""
        place = self._places.pop(image_id, None)
        if place is None:
            return None
        row = self._table.slice(place, 1).to_pylist()[0]
        marks: dict[str, list[Mark]] = {label: [] for label in self._labels}
        for box in row.get(DETECTIONS) or []:
            if box["score"] >= self._least:
                height, width, full_height, full_width = self._sides[image_id]
                left, right = (min(max(x / width, 0), 1) * full_width for x in (box["x"], box["x"] + box["width"]))
                top, bottom = (min(max(y / height, 0), 1) * full_height for y in (box["y"], box["y"] + box["height"]))
                marks[box["label"]].append(Mark(box["label"], box["score"], left, top, right, bottom))
        return Results({name: row[score_column(name)] for name in self._findings}, marks)


class _Writer:
    """Writes DICOM files, and counts them."""

    def __init__(self, folder: Path, model: Model):
        self.model = model
        self.counts: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()  # by reason
        self._folder = folder

    def write(self, modality: str, image: Dataset, make: Callable[[], Dataset]) -> None:
        """Writes the object of a modality, SR or PR, for an image, unless it is there."""
        name = f"{modality}.{uid_of(modality, image.SOPInstanceUID, self.model)}.dcm"
        path = self._folder / image.StudyInstanceUID / name
        if not path.exists():
            try:
                content = _encode(make())
            except _LeftOutError:
                raise
            except Exception:  # highdicom and pydicom raise anything, in words that quote the header
                raise _LeftOutError(f"{modality}: an attribute that cannot be used") from None
            storage.write(str(path), content)
            self.counts["new"] += 1
        self.counts[modality] += 1


def _write_one(writer: _Writer, rows: _Rows, pseudonyms: Pseudonyms, path: str, content: bytes) -> None:
    if len(content) > MAX_FILE_BYTES:
        return  # quarantined, like what is refused below
    if png_jpeg.is_png_or_jpeg(content):
        if rows.take(pseudonyms.image(path)):
            raise _LeftOutError("no DICOM file")
        return
    try:
        elements, header = dicom_file.open_file(content)
    except Refused:
        return
    results = rows.take(pseudonyms.image(header.sop_instance_uid or path))
    if results is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the header
        image = elements.dataset
        _check_uids(image)
        complete(image)
        marks = [mark for several in results.marks.values() for mark in several]
        writer.write("SR", image, lambda: structured_report(image, results, writer.model))
        if marks:
            writer.write("PR", image, lambda: presentation_state(image, marks, writer.model, header))


def _check_uids(image: Dataset) -> None:
    """Raises _LeftOutError if a report could not reference the image."""
    for keyword in _UIDS:
        value = str(image.get(keyword) or "").strip(" \0")
        if len(value) > _LONGEST_UID or not _UID.fullmatch(value):
            raise _LeftOutError(f"no valid {keyword}")
        setattr(image, keyword, value)


def _encode(document: Dataset) -> bytes:
    if any("\ufffd" in str(element.value) for element in document if element.VR != "SQ"):
        raise _LeftOutError("text that is not in the character set of its file")
    buffer = BytesIO()
    document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _model(loaded: Source, table: pa.Table) -> Model:
    """Describes the model by its name and version in the registry, else by its head and the digest of its weights."""
    sha256 = str(loaded.description["sha256"])
    name, _, version = (loaded.external["model"] or f"cxr-{loaded.head} version {sha256[:12]}").rpartition(" version ")
    return Model(name, version, sha256, _threshold(loaded, table))


def _threshold(loaded: Source, table: pa.Table) -> float | None:
    """Returns the lowest score of a box that is reported: that of 0.5 false positives per validation image."""
    return float(loaded.description.get("threshold", 0.0)) if DETECTIONS in table.column_names else None
