"""Files to rows: opened, decoded, rendered, looked over for text and packed; a refused file becomes a quarantine entry.

Each step is done for a few files before the next begins. A decoder drives everything else out of the processor's caches; were each
file taken through all steps at once, all other steps would begin with cold ones.
"""

import signal
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from components.common.dicom import burned_in_text, checks, dicom_file, png_jpeg
from components.common.dicom.decoders import Stored
from components.common.dicom.grayscale import Grayscale
from components.common.dicom.header import PHOTOMETRICS, Header
from components.common.dicom.png_jpeg import Picture
from components.common.dicom.refusal import Reason, Refused
from components.common.dicom.render import Rendered, render
from components.common.errors import UserError
from components.common.formats import shards
from components.common.runs import storage
from components.preprocess import child_process, deidentify
from components.preprocess.deidentify import Pseudonyms
from components.preprocess.index import Index
from components.preprocess.labels import Box, Record, Table
from components.preprocess.params import Preprocess
from components.preprocess.split import divided, split_of

Row = dict[str, Any]
BINS = 32
"""Of a histogram."""
GROUP_BYTES = 8 * 2**20
"""Of files, their decoded pixels and their images that take each step together; few enough to stay in the processor's caches."""
GROUP_FILES = 32
"""At most, however small they are."""
MAX_BYTES_PER_PIXEL = 2


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


class Processed(NamedTuple):
    """What became of a file."""

    row: Row | None
    """None: it is quarantined."""
    note: Note


@dataclass
class _Work:
    """A file on its way; each step fills in more."""

    path: str
    content: bytes
    processed: Processed | None = None
    """Not None: no step is left."""
    sha256: str = field(init=False)
    uid: str = ""
    """SOPInstanceUID, once it is known."""
    decode: Callable[[], tuple[Stored, Grayscale]] = field(init=False)
    header: Header = field(init=False)
    record: Record | None = field(init=False)
    stored: Stored = field(init=False)
    grayscale: Grayscale = field(init=False)
    rendered: Rendered = field(init=False)
    has_text: bool = field(init=False)


def process_files(
    context: Context, files: Iterable[tuple[str, bytes]], begin: Callable[[int], object] = int, suspects: Container[int] = ()
) -> Iterator[Processed]:
    """Turns files into rows and quarantine entries.

    Args:
        context: what all files share.
        files: paths relative to the raw folder, and contents.
        begin: told the number of the file that a step begins with; what it raises ends the work.
        suspects: numbers of files that may end this process, and are read in one of their own.

    Yields:
        What became of each file, in their order.

    Raises:
        UserError: something that only the user can mend, in a label or box.
    """
    remaining = enumerate(files)
    while processed := _process_some(context, remaining, begin, suspects):
        yield from processed


def process_file(context: Context, path: str, content: bytes) -> Processed:
    """Turns one file into a row or a quarantine entry, as `process_files` does."""
    return next(process_files(context, [(path, content)]))


def _process_some(
    context: Context, files: Iterator[tuple[int, tuple[str, bytes]]], begin: Callable[[int], object], suspects: Container[int]
) -> list[Processed]:
    """The next few files, of which no more than this is held when it returns."""
    group = list(_opened(context, files, begin, suspects))
    for step in (_decode, _render, _look_for_text, _pack):
        for number, work in group:
            if not work.processed:
                begin(number)
                _take(step, context, work)
    return [work.processed for _, work in group if work.processed]


def _opened(
    context: Context, files: Iterator[tuple[int, tuple[str, bytes]]], begin: Callable[[int], object], suspects: Container[int]
) -> Iterator[tuple[int, _Work]]:
    """The next few files."""
    held, rendered = 0, context.params.size**2 * context.params.bits // 8
    for number, (path, content) in islice(files, GROUP_FILES):
        begin(number)
        work = _Work(path, content)
        _take(_process_suspect if number in suspects else _open, context, work)
        yield number, work
        held += len(content) + (0 if work.processed else work.header.height * work.header.width * MAX_BYTES_PER_PIXEL + rendered)
        if held >= GROUP_BYTES:
            return


def _take(step: Callable[[Context, _Work], None], context: Context, work: _Work) -> None:
    """Takes a step, which may be the last one."""
    try:
        step(context, work)
    except Refused as refusal:
        image_id = context.pseudonyms.image(work.uid) if work.uid else None
        work.processed = Processed(None, Note(work.path, work.sha256, image_id, refusal.reason.value, refusal.detail))


def _process_suspect(context: Context, work: _Work) -> None:
    """All steps, in a process of its own.

    Raises:
        UserError: it was killed from outside; more memory may be all that it needs, so it is not quarantined.
    """
    work.sha256 = storage.digest(work.content)
    try:
        work.processed = child_process.call(process_file, context, work.path, work.content)
    except child_process.Died as death:
        if death.signal == signal.SIGKILL:
            reason = "its process was killed, perhaps for want of memory; give it more, or take the file away"
            raise UserError(f"{work.path}: {reason}") from None
        raise Refused(Reason.UNREADABLE, "crashes the decoder") from None
    except child_process.Hung:
        raise Refused(Reason.UNREADABLE, "takes the decoder too long") from None


def _open(context: Context, work: _Work) -> None:
    """The header, and what it can be refused for."""
    work.sha256 = storage.digest(work.content)
    opened, work.header = png_jpeg.open_file(work.content) if png_jpeg.is_picture(work.content) else dicom_file.open_file(work.content)
    work.uid = work.header.sop_instance_uid
    work.record = context.table.record(work.path, work.uid)
    checks.check_header(work.header, context.params.views, deidentify.view_of(work.header, work.record))
    work.decode = partial(png_jpeg.decode, opened, work.header) if isinstance(opened, Picture) else dicom_file.prepare(opened, work.header)


def _decode(context: Context, work: _Work) -> None:
    """The stored values."""
    work.stored, work.grayscale = work.decode()
    checks.check_size(*work.stored.shape)


def _render(context: Context, work: _Work) -> None:
    """The image of the row."""
    params = context.params
    work.rendered = render(work.stored, work.grayscale, params.size, params.bits, params.clip_percentile)


def _look_for_text(context: Context, work: _Work) -> None:
    """Whether there seems to be text near the border, which is never silent: it is noted, or a reason to refuse the file."""
    dark = work.header.photometric == PHOTOMETRICS[0]
    work.has_text = context.params.text_check != "off" and burned_in_text.suspected(work.rendered.pixels, dark)
    if work.has_text and context.params.text_check == "quarantine":
        raise Refused(Reason.BURNED_IN_TEXT, "what looks like text near the border")


def _pack(context: Context, work: _Work) -> None:
    """The row, and what is noted about it."""
    context.pseudonyms.check(work.header)
    row, source = _row(context, work.path, work.header, work.record, work.rendered.pixels)
    sums, histogram = _statistics(work.rendered.counts)
    note = Note(work.path, work.sha256, row["image_id"], identity=source, sums=sums, histogram=histogram, text=work.has_text)
    work.processed = Processed(row, note)


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
    bins = counts.reshape(BINS, -1).sum(1).tolist()
    return (sum(bins), int(weighted.sum()), int(weighted @ values)), tuple(bins)
