"""One part of the shards: its files one after the other, and what is noted about each for the merge.

A part is done when its notes are there; a stopped or killed one is begun again and ends with the same bytes.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from components.common import shards, storage
from components.common.params import Preprocess
from components.preprocess import checks, deidentify, dicom
from components.preprocess.checks import Refused
from components.preprocess.deidentify import Pseudonyms
from components.preprocess.dicom import Header
from components.preprocess.labels import Box, Record, Table
from components.preprocess.split import path_hash, split_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Note:
    """What is known about one file. Notes lie in the work folder only; they hold raw paths, but no raw ids."""

    path: str
    sha256: str
    image_id: str | None
    """None if no SOPInstanceUID could be read."""
    reason: str | None = None
    """Why it is quarantined; None: it is a row."""
    detail: str | None = None
    identity: str | None = None
    """Where the patient's identity comes from."""
    sums: tuple[int, int, int] = (0, 0, 0)
    """Of the row: number of pixels, their sum, and the sum of their squares."""


@dataclass(frozen=True)
class Context:
    """What a process needs to know to work on any part."""

    raw: str
    folder: Path
    """Where parts and notes go."""
    params: Preprocess
    pseudonyms: Pseudonyms
    table: Table


class Part(NamedTuple):
    """Files that go into one Parquet file."""

    number: int
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """File name of the part."""
        return f"part-{self.number:05d}.parquet"

    @property
    def notes_name(self) -> str:
        """File name of its notes."""
        return f"part-{self.number:05d}.jsonl"


class Stopped(Exception):  # noqa: N818 - what was asked for, not a failure
    """The part was left unfinished on request."""


def process_part(context: Context, part: Part, stopping: Callable[[], bool], advance: Callable[[], object]) -> None:
    """Turns the files of a part into a Parquet file and notes; does nothing if they are there.

    Args:
        context: what all parts share.
        part: which files.
        stopping: asked before each file.
        advance: told after each file.

    Raises:
        Stopped: `stopping` said so.
        UserError: something that only the user can mend, in a label or box, or a file that cannot be read.
    """
    if is_done(context.folder, part):
        return
    notes: list[Note] = []
    shards.write_part(context.folder / part.name, _rows(context, part, notes, stopping, advance))
    lines = "".join(json.dumps(asdict(note)) + "\n" for note in notes)
    storage.write(str(context.folder / part.notes_name), lines.encode())


def is_done(folder: Path, part: Part) -> bool:
    """Whether a part was finished by an earlier run."""
    return (folder / part.notes_name).is_file()


def read_notes(folder: Path, part: Part) -> Iterator[Note]:
    """Notes of a finished part, in the order in which its files were processed."""
    with (folder / part.notes_name).open(encoding="utf-8") as file:
        for line in file:
            yield Note(**json.loads(line))


def _rows(context: Context, part: Part, notes: list[Note], stopping: Callable[[], bool], advance: Callable[[], object]) -> Iterator[Row]:
    """Rows of the part; `notes` grows by one per file."""
    for path in sorted(part.paths, key=path_hash):
        if stopping():
            raise Stopped
        row, note = process_file(context, path, storage.read(storage.join(context.raw, path)))
        notes.append(note)
        if row:
            yield row
        advance()


def process_file(context: Context, path: str, content: bytes) -> tuple[Row | None, Note]:
    """Turns one file into a row, or into a quarantine entry.

    Args:
        context: what all files share.
        path: relative to the raw folder.
        content: of the file.

    Returns:
        The row, None if the file is quarantined, and the note.
    """
    digest = storage.digest(content)
    header = None
    try:
        dataset, header = dicom.open_file(content)
        record = context.table.record(path, header.sop_instance_uid)
        image = _examine(context.params, dataset, header, record)
    except Refused as refusal:
        image_id = context.pseudonyms.image(header.sop_instance_uid) if header and header.sop_instance_uid else None
        return None, Note(path, digest, image_id, refusal.reason.value, refusal.detail)
    context.pseudonyms.check(header)
    row, source = _row(context, path, header, record, image)
    return row, Note(path, digest, row["image_id"], identity=source, sums=_sums(image))


def _examine(params: Preprocess, dataset: Dataset, header: Header, record: Record | None) -> shards.Pixels:
    """All tests in their order, and the rendered image."""
    checks.check_header(header, params.views, deidentify.view_of(header, record))
    stored, grayscale = dicom.decode(dataset, header)
    checks.check_size(*stored.shape)
    return dicom.render(stored, grayscale, params.size, params.bits, params.clip_percentile)


def _row(context: Context, path: str, header: Header, record: Record | None, image: shards.Pixels) -> tuple[Row, str]:
    """The row, and where the patient's identity comes from."""
    params, table = context.params, context.table
    identity = deidentify.patient_identity(header, record, path)
    boxes = table.boxes_within(path, header.sop_instance_uid, header.height, header.width)
    row = {
        "image_id": context.pseudonyms.image(deidentify.image_uid(header, path)),
        "patient_id": context.pseudonyms.patient(identity.text),
        "split": split_of(identity.text, params.val_fraction, params.test_fraction),
        **shards.encode(image),
        "labels": list(table.labels(record)),
        "boxes": [_scale(box, image.shape[0] / header.height, image.shape[1] / header.width) for box in boxes],
        **deidentify.describe(header, record),
    }
    return row, identity.source


def _scale(box: Box, vertical: float, horizontal: float) -> Row:
    across, down = {"x": box.x, "width": box.width}, {"y": box.y, "height": box.height}
    return {"label": box.label, **{k: v * horizontal for k, v in across.items()}, **{k: v * vertical for k, v in down.items()}}


def _sums(image: shards.Pixels) -> tuple[int, int, int]:
    """Number of pixels, sum and sum of squares, in integers: the statistics must not depend on the order of summation."""
    counts = dicom.histogram(image, 8 * image.itemsize)
    values = np.arange(counts.size)
    return image.size, int(counts @ values), int(counts @ values**2)


