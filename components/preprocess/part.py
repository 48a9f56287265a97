"""One part of the shards: its files one after the other, and what is noted about each for the merge.

A part is done when its notes are there; a stopped or killed one is begun again and ends with the same bytes. The file that
was begun last before that is then read in a process of its own: if it crashes its decoder, or hangs it, it is quarantined.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from components.common import shards, storage
from components.common.errors import UserError
from components.common.params import Preprocess
from components.preprocess import checks, deidentify, dicom, isolated, picture, text
from components.preprocess.checks import Reason, Refused
from components.preprocess.deidentify import Pseudonyms
from components.preprocess.elements import Elements
from components.preprocess.fetch import contents
from components.preprocess.header import Header
from components.preprocess.index import Index
from components.preprocess.labels import Box, Record, Table
from components.preprocess.picture import Picture
from components.preprocess.render import Rendered, render
from components.preprocess.split import divided, split_of

Row = dict[str, Any]
BINS = 32
"""Of a histogram."""


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
    histogram: tuple[int, ...] = ()
    """Of the row's pixels, in BINS equal steps of brightness."""
    text: bool = False
    """Whether there seems to be text near the border."""


@dataclass(frozen=True)
class Context:
    """What a process needs to know to work on any part."""

    raw: str
    folder: Path
    """Where parts and notes go."""
    params: Preprocess
    pseudonyms: Pseudonyms
    table: Table
    index: Index
    """Which files there are."""


class Part(NamedTuple):
    """Files that go into one Parquet file."""

    number: int
    files: int
    """How many."""

    @property
    def name(self) -> str:
        """File name of the part."""
        return f"part-{self.number:05d}.parquet"

    @property
    def notes_name(self) -> str:
        """File name of its notes."""
        return f"part-{self.number:05d}.jsonl"

    @property
    def attempts_name(self) -> str:
        """File name of the record of attempts, while it is unfinished."""
        return f"part-{self.number:05d}.attempts"


class Attempts:
    """On disk, a line an attempt at a part: the number of the file that it had begun last."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._offset = os.fstat(self._descriptor).st_size
        self.suspects = set(last_files(path))
        """Files that ended an attempt, or happened to be read when it was ended."""

    def begin(self, number: int) -> None:
        """Notes that a file is begun; the kernel keeps it if this process dies."""
        os.pwrite(self._descriptor, b"%012d\n" % number, self._offset)

    def close(self) -> None:
        """Ends the attempt without success."""
        os.close(self._descriptor)

    def succeed(self) -> None:
        """The part is done, and the record of no more use."""
        self._path.unlink()


def last_files(path: Path) -> list[int]:
    """Of each attempt at a part, the number of the file that it had begun last."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


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
    attempts = Attempts(context.folder / part.attempts_name)
    scratch = (context.folder / part.notes_name).with_suffix(".unfinished")
    try:
        with scratch.open("w", encoding="utf-8") as notes:
            shards.write_part(context.folder / part.name, _rows(context, part, notes, attempts, stopping, advance))
            notes.flush()
            os.fsync(notes.fileno())
        scratch.replace(context.folder / part.notes_name)
        attempts.succeed()
    finally:
        attempts.close()


def is_done(folder: Path, part: Part) -> bool:
    """Whether a part was finished by an earlier run."""
    return (folder / part.notes_name).is_file()


def read_notes(folder: Path, part: Part) -> Iterator[Note]:
    """Notes of a finished part, in the order in which its files were processed."""
    with (folder / part.notes_name).open(encoding="utf-8") as file:
        for line in file:
            yield Note(**json.loads(line))


def _rows(
    context: Context, part: Part, notes: IO[str], attempts: Attempts, stopping: Callable[[], bool], advance: Callable[[], object]
) -> Iterator[Row]:
    """Rows of the part; `notes` grows by a line per file."""
    with closing(contents(context.raw, context.index.files(part.number))) as files:
        for number, (file, content) in enumerate(files):
            if stopping():
                raise Stopped
            attempts.begin(number)
            process = _process_suspect if number in attempts.suspects else process_file
            row, note = process(context, file.path, content)
            notes.write(json.dumps(vars(note)) + "\n")
            if row:
                yield row
            advance()


def _process_suspect(context: Context, path: str, content: bytes) -> tuple[Row | None, Note]:
    """As `process_file`, in a process of its own.

    Raises:
        UserError: it was killed from outside; more memory may be all that it needs, so it is not quarantined.
    """
    try:
        return isolated.call(process_file, context, path, content)
    except isolated.Died as death:
        if death.signal == signal.SIGKILL:
            raise UserError(f"{path}: its process was killed, perhaps for want of memory; give it more, or take the file away") from None
        return None, Note(path, storage.digest(content), None, Reason.UNREADABLE.value, "crashes the decoder")
    except isolated.Hung:
        return None, Note(path, storage.digest(content), None, Reason.UNREADABLE.value, "takes the decoder too long")


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
        opened, header = picture.open_file(content) if picture.is_picture(content) else dicom.open_file(content)
        record = context.table.record(path, header.sop_instance_uid)
        image, counts = _examine(context.params, opened, header, record)
        has_text = _look_for_text(context.params, header, image)
    except Refused as refusal:
        image_id = context.pseudonyms.image(header.sop_instance_uid) if header and header.sop_instance_uid else None
        return None, Note(path, digest, image_id, refusal.reason.value, refusal.detail)
    context.pseudonyms.check(header)
    row, source = _row(context, path, header, record, image)
    sums, histogram = _statistics(counts)
    return row, Note(path, digest, row["image_id"], identity=source, sums=sums, histogram=histogram, text=has_text)


def _examine(params: Preprocess, opened: Elements | Picture, header: Header, record: Record | None) -> Rendered:
    """All tests in their order, and the rendered image."""
    checks.check_header(header, params.views, deidentify.view_of(header, record))
    stored, grayscale = picture.decode(opened, header) if isinstance(opened, Picture) else dicom.decode(opened, header)
    checks.check_size(*stored.shape)
    return render(stored, grayscale, params.size, params.bits, params.clip_percentile)


def _look_for_text(params: Preprocess, header: Header, image: shards.Pixels) -> bool:
    """Whether there seems to be text near the border, which is never silent: it is noted, or a reason to refuse the file."""
    if params.text_check == "off" or not text.suspected(image, dark=header.photometric == checks.PHOTOMETRICS[0]):
        return False
    if params.text_check == "quarantine":
        raise Refused(Reason.BURNED_IN_TEXT, "what looks like text near the border")
    return True


def _row(context: Context, path: str, header: Header, record: Record | None, image: shards.Pixels) -> tuple[Row, str]:
    """The row, and where the patient's identity comes from."""
    table = context.table
    identity = deidentify.patient_identity(header, record, path)
    boxes = table.boxes_within(path, header.sop_instance_uid, header.height, header.width)
    row = {
        "image_id": context.pseudonyms.image(deidentify.image_uid(header, path)),
        "patient_id": context.pseudonyms.patient(identity.text),
        "split": _split(context, path, record, identity.text),
        **shards.encode(image),
        "labels": list(table.labels(record)),
        "boxes": [_scale(box, image.shape[0] / header.height, image.shape[1] / header.width) for box in boxes],
        **deidentify.describe(header, record),
    }
    return row, identity.source


def _split(context: Context, path: str, record: Record | None, identity: str) -> str:
    params = context.params
    if params.split == "official":
        return divided(context.table.official_split(path, record), identity, params.val_fraction)
    return split_of(identity, params.val_fraction, params.test_fraction)


def _scale(box: Box, vertical: float, horizontal: float) -> Row:
    across, down = {"x": box.x, "width": box.width}, {"y": box.y, "height": box.height}
    return {"label": box.label, **{k: v * horizontal for k, v in across.items()}, **{k: v * vertical for k, v in down.items()}}


def _statistics(counts: npt.NDArray[np.int64]) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Number of pixels, sum and sum of squares; and a histogram. In integers: they must not depend on the order of summation."""
    values = np.arange(counts.size)
    weighted = counts * values
    return (int(counts.sum()), int(weighted.sum()), int(weighted @ values)), tuple(counts.reshape(BINS, -1).sum(1).tolist())
