"""Raw files to rows of the shards, or to quarantine entries.

Each step is taken for a group of files before the next one: a decoder evicts everything else from the processor's caches, so that
one file at a time would start every other step with cold caches.
"""

import hashlib
import signal
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from components.common.dicom import recipe
from components.common.dicom.burned_in_text import is_text_suspected
from components.common.dicom.grayscale import Decoded
from components.common.dicom.header import MONOCHROME1, Header
from components.common.dicom.refusal import Refused
from components.common.dicom.render import Rendered, render
from components.common.errors import UserError
from components.common.formats import shards
from components.common.formats.quarantine import Reason
from components.common.runs import child_process, storage
from components.preprocess import deidentify
from components.preprocess.deidentify import Pseudonyms
from components.preprocess.index import Index
from components.preprocess.labels import Box, Record, Table
from components.preprocess.params import Preprocess
from components.preprocess.split import split_of, split_undivided

Row = dict[str, Any]
BINS = 32  # number of bins of a histogram
GROUP_BYTES = 8 * 2**20  # files, their stored values and their images together, few enough for the processor's caches
GROUP_FILES = 32  # maximum number of files in a group
MAX_BYTES_PER_PIXEL = 2


@dataclass(frozen=True)
class Note:
    """Record of one file for the merge. Notes stay in the work folder; they hold raw paths, but no raw ids."""

    path: str
    sha256: str
    image_id: str | None  # None if no SOPInstanceUID could be read
    reason: str | None = None  # why it is quarantined; None for a row
    detail: str | None = None
    identity: str | None = None  # source of the patient's identity
    named: bool = False  # whether a table has a record of the image
    content: str = ""  # size of the row's image, and a digest of its pixels
    sums: tuple[int, int, int] = (0, 0, 0)  # number of pixels of the row's image, their sum, and the sum of their squares
    histogram: tuple[int, ...] = ()  # number of pixels in BINS equal bins of brightness
    text: bool = False  # whether there seems to be text near the border
    levels: int = 0  # number of gray levels of the row's image, as `Rendered` counts them
    skipped: bool = False  # whether the image was to be left out; then there is neither a row nor a reason

    @property
    def has_row(self) -> bool:
        """Whether a row was made of the file."""
        return self.reason is None and not self.skipped


@dataclass(frozen=True)
class Context:
    """Context that all files of a run share."""

    raw: str
    folder: Path  # folder of the parts and notes
    params: Preprocess
    pseudonyms: Pseudonyms
    table: Table
    index: Index  # the raw files by part


class Processed(NamedTuple):
    """The outcome for one file."""

    row: Row | None  # None if it is quarantined or left out
    note: Note


@dataclass
class _Work:
    """A file in progress; each step fills in more."""

    path: str
    content: bytes
    processed: Processed | None = None  # the outcome, after which no more steps are taken
    sha256: str = field(init=False)
    uid: str = ""  # SOPInstanceUID, once it is known
    header: Header = field(init=False)
    record: Record | None = field(init=False)
    decode: Callable[[], Decoded] = field(init=False)
    decoded: Decoded = field(init=False)
    rendered: Rendered = field(init=False)
    has_text: bool = field(init=False)


def process_files(
    context: Context, files: Iterable[tuple[str, bytes]], begin: Callable[[int], object] = int, suspects: Container[int] = ()
) -> Iterator[Processed]:
    """Turns files (paths relative to the raw folder, and contents) into rows and quarantine entries, in order.

    `begin` is called with the number of a file before each of its steps; an exception that it raises ends the work. `suspects` are
    numbers of files that may crash the process; each is read in a child process. A mistake in a label or box raises UserError.
    """
    remaining = enumerate(files)
    while processed := _process_group(context, remaining, begin, suspects):
        yield from processed


def process_file(context: Context, path: str, content: bytes) -> Processed:
    """Turns one file into a row or a quarantine entry."""
    return next(process_files(context, [(path, content)]))


def _process_group(
    context: Context, files: Iterator[tuple[int, tuple[str, bytes]]], begin: Callable[[int], object], suspects: Container[int]
) -> list[Processed]:
    """Processes the next group, in a function of its own so that its memory is free when the next one starts."""
    with child_process.limited_memory():
        group = list(_open_group(context, files, begin, suspects))
        for step in (_decode, _render, _look_for_text, _pack):
            for number, work in group:
                if not work.processed:
                    begin(number)
                    _take(step, context, work)
    return [work.processed for _, work in group if work.processed]


def _open_group(
    context: Context, files: Iterator[tuple[int, tuple[str, bytes]]], begin: Callable[[int], object], suspects: Container[int]
) -> Iterator[tuple[int, _Work]]:
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
    try:
        try:
            step(context, work)
        except MemoryError:
            raise Refused(Reason.UNREADABLE, "needs more memory than any radiograph") from None
    except Refused as refusal:
        image_id = context.pseudonyms.image(work.uid) if work.uid else None
        work.processed = Processed(None, Note(work.path, work.sha256, image_id, refusal.reason.value, refusal.detail))


def _process_suspect(context: Context, work: _Work) -> None:
    """Takes all steps in a child process; if that is killed from outside, more memory may be all that the file needs."""
    work.sha256 = storage.digest(work.content)
    try:
        with closing(child_process.Child()) as child:
            work.processed = child.call(process_file, context, work.path, work.content)
    except child_process.NoAnswer as failure:
        if failure.signal == signal.SIGKILL:
            cause = "the process that read it was killed, perhaps for lack of memory; add memory or remove the file"
            raise UserError(f"{work.path}: {cause}") from None
        detail = "takes the decoder too long" if failure.signal is None else "crashes the decoder"
        raise Refused(Reason.UNREADABLE, detail) from None


def _open(context: Context, work: _Work) -> None:
    work.sha256 = storage.digest(work.content)
    file = recipe.open_file(work.content)
    work.header, work.uid = file.header, file.header.sop_instance_uid
    image_id = context.pseudonyms.image(work.uid or work.path)
    if context.index.is_skipped(image_id):  # before it is decoded
        work.processed = Processed(None, Note(work.path, work.sha256, image_id, skipped=True))
        return
    work.record = context.table.record(work.path, work.uid)
    view = deidentify.view_of(work.header, work.record)
    work.decode = recipe.prepare(file, context.params.views, view, context.params.body_parts)


def _decode(context: Context, work: _Work) -> None:
    work.decoded = work.decode()


def _render(context: Context, work: _Work) -> None:
    params = context.params
    work.rendered = render(work.decoded, params.size, params.bits, params.clip_percentile, work.header.pixel_aspect)


def _look_for_text(context: Context, work: _Work) -> None:
    dark = work.header.photometric == MONOCHROME1
    work.has_text = context.params.text_check != "off" and is_text_suspected(work.rendered.pixels, dark)
    if work.has_text and context.params.text_check == "quarantine":
        raise Refused(Reason.BURNED_IN_TEXT, "what looks like text near the border")


def _pack(context: Context, work: _Work) -> None:
    context.pseudonyms.check(work.header)
    header, table, image = work.header, context.table, work.rendered.pixels
    identity = deidentify.patient_identity(header, work.record, work.path)
    boxes = table.boxes_within(work.path, work.uid, header.height, header.width)
    row = {
        "image_id": context.pseudonyms.image(work.uid or work.path),
        "patient_id": context.pseudonyms.patient(identity.text),
        "split": _split(context, work.path, work.record, identity.text),
        **shards.encode(image),
        "labels": list(table.labels(work.record)),
        "boxes": [_scale(box, image.shape[0] / header.height, image.shape[1] / header.width) for box in boxes],
        **deidentify.describe(header, work.record),
    }
    sums, histogram = _statistics(work.rendered.counts)
    work.processed = Processed(
        row,
        Note(
            work.path,
            work.sha256,
            row["image_id"],
            identity=identity.source,
            named=work.record is not None,
            content="{}x{} {}".format(*image.shape, hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest()),
            sums=sums,
            histogram=histogram,
            text=work.has_text,
            levels=work.rendered.levels,
        ),
    )


def _split(context: Context, path: str, record: Record | None, identity: str) -> str:
    params = context.params
    if params.split == "official":
        return split_undivided(context.table.official_split(path, record), identity, params.val_fraction)
    return split_of(identity, params.val_fraction, params.test_fraction)


def _scale(box: Box, down: float, across: float) -> Row:
    return {"label": box.label, "x": box.x * across, "width": box.width * across, "y": box.y * down, "height": box.height * down}


def _statistics(counts: npt.NDArray[np.int64]) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Returns the number of pixels, sum and sum of squares, as integers so that the order of summation is irrelevant; and bins."""
    values = np.arange(counts.size)
    weighted = counts * values
    bins = counts.reshape(BINS, -1).sum(1).tolist()
    return (sum(bins), int(weighted.sum()), int(weighted @ values)), tuple(bins)
