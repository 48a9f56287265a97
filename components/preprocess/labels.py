"""What is known about the images besides the files themselves, and the layout `table`: labels.csv and boxes.csv, both optional.

`labels.csv`: `image` (SOPInstanceUID, or path relative to the raw folder), optionally `patient, view, sex, age`, and one
column a finding: 1, 0, blank (unknown) or -1 (uncertain; a parameter says what it becomes). `boxes.csv`:
`image,label,x,y,width,height`, in pixels of the stored image, origin top left; the label need not be a finding. The layouts
of public sets (layouts/) fill the same `Table` from their own files.
"""

import csv
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NamedTuple

from components.common.errors import UserError
from components.common.runs import storage
from components.preprocess.index import Index

if TYPE_CHECKING:
    from _csv import Reader

LABELS = "labels.csv"
BOXES = "boxes.csv"
OPTIONAL = ("patient", "view", "sex", "age")
BOX_COLUMNS = ("image", "label", "x", "y", "width", "height")
_VALUES = {"": math.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
_UNCERTAIN = {"ignore": math.nan, "ones": 1.0, "zeros": 0.0}


class Record(NamedTuple):
    """A row of labels.csv, or what a public set says of an image; text is empty where nothing is said."""

    line: int
    labels: tuple[float, ...]
    patient: str
    view: str
    sex: str
    age: str
    split: str = ""
    """Of the set's own split: train, val, test, or `split.UNDIVIDED`."""
    file: str = LABELS
    """Where it stands."""


class Box(NamedTuple):
    """A row of boxes.csv."""

    line: int
    label: str
    x: float
    y: float
    width: float
    height: float
    file: str = BOXES
    """Where it stands."""


def itself(path: str) -> str:
    """Tables that name images by their path."""
    return path


def base_name(path: str) -> str:
    """Tables that name images by their file name."""
    return path.rpartition("/")[2]


def stem(path: str) -> str:
    """Tables that name images by their file name without its ending."""
    return base_name(path).partition(".")[0]


@dataclass(frozen=True)
class Table:
    """What labels.csv and boxes.csv, or the files of a public set, say by image."""

    findings: tuple[str, ...] = ()
    records: Mapping[str, Record] = field(default_factory=dict)
    boxes: Mapping[str, list[Box]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 by file name."""
    key: Callable[[str], str] = itself
    """Relative path of an image -> its name in `records` and `boxes`."""
    folders: tuple[str, ...] = ()
    """Patterns of the top folders that hold the images; empty: every file but the tables is taken for an image."""
    folder_splits: Mapping[str, str] = field(default_factory=dict)
    """The set's own split by top folder, where it is not in the records."""
    complete: bool = True
    """Whether an image that is named must be there; of public sets people often have a part."""

    @property
    def place(self) -> str:
        """Where images are expected, for a message."""
        return f" in {' or '.join(f'{folder}/' for folder in self.folders)}" if self.folders else ""

    def is_image(self, path: str) -> bool:
        """Whether the file at this relative path is to become a row; the others are not of the images."""
        if not self.folders:
            return path not in (LABELS, BOXES)
        top, _, rest = path.partition("/")
        return bool(rest) and not is_leftover(path) and any(fnmatchcase(top, pattern) for pattern in self.folders)

    def official_split(self, path: str, record: Record | None) -> str:
        """The split that the set's makers put an image in: train, val, test or `split.UNDIVIDED`.

        Raises:
            UserError: they did not say.
        """
        named = record.split if record and record.split else self.folder_splits.get(path.partition("/")[0], "")
        if not named:
            raise UserError(f"{path}: the data set's own split does not name this image; remove it or set preprocess.split to hash")
        return named

    def record(self, path: str, uid: str) -> Record | None:
        """The row of an image, which may name its path or its SOPInstanceUID.

        Raises:
            UserError: there is a row for either.
        """
        rows = [self.records[name] for name in {self.key(path), uid} if name in self.records]
        if len(rows) > 1:
            lines = sorted(row.line for row in rows)
            raise UserError(f"{LABELS}: lines {lines[0]} and {lines[1]} name the same image, by path and by SOPInstanceUID; remove one")
        return rows[0] if rows else None

    def labels(self, record: Record | None) -> tuple[float, ...]:
        """Labels in the order of the findings; all unknown for an image without a row."""
        return record.labels if record else (math.nan,) * len(self.findings)

    def boxes_within(self, path: str, uid: str, height: int, width: int) -> list[Box]:
        """Boxes of an image of height x width pixels, clipped to it, in the order of the file.

        Raises:
            UserError: a box lies outside the image.
        """
        found = [box for name in {self.key(path), uid} for box in self.boxes.get(name, [])]
        return [_clip(box, height, width) for box in sorted(found)]

    def names(self) -> Iterator[tuple[str, str, int]]:
        """Every image that must be there, with the file that names it and the line."""
        if not self.complete:
            return
        yield from ((name, LABELS, record.line) for name, record in self.records.items())
        yield from ((name, BOXES, boxes[0].line) for name, boxes in self.boxes.items())


def read(raw: str, unknown_labels: str, index: Index | None = None) -> Table:
    """Reads both files, as far as they are there.

    Args:
        raw: the raw folder.
        unknown_labels: what -1 becomes: ignore, ones or zeros.
        index: holds the rows, so that memory does not grow with their number; None: memory does.

    Raises:
        UserError: with the file and line of the first mistake.
    """
    digests: dict[str, str] = {}
    records, boxes = storage_of(index)
    findings = _read_labels(raw, unknown_labels, digests, records)
    _read_boxes(raw, digests, boxes)
    return Table(findings, records, boxes, digests)


def storage_of(index: Index | None) -> tuple[MutableMapping[str, Record], MutableMapping[str, list[Box]]]:
    """Where records and boxes are put, by image: on disk, or in memory without an index."""
    if index is None:
        return {}, {}
    return index.map("records", _restore_record), index.map("boxes", _restore_boxes)


def label_values(unknown_labels: str) -> dict[str, float]:
    """What may stand in a label column, and what it means."""
    uncertain = _UNCERTAIN[unknown_labels]
    return {**_VALUES, "-1": uncertain, "-1.0": uncertain}


def is_leftover(path: str) -> bool:
    """Whether macOS or another tool left the file in an archive."""
    return any(part == "__MACOSX" or part.startswith(".") for part in path.split("/"))


def _restore_record(cells: list[Any]) -> Record:
    line, labels, *texts = cells
    return Record(line, tuple(labels), *texts)


def _restore_boxes(rows: list[list[Any]]) -> list[Box]:
    return [Box(*cells) for cells in rows]


def _read_labels(raw: str, unknown_labels: str, digests: dict[str, str], records: MutableMapping[str, Record]) -> tuple[str, ...]:
    """Puts the rows into `records` and returns the findings."""
    rows = read_rows(raw, LABELS, ("image",), digests)
    header = next(rows, (0, {}))[1]
    findings = tuple(name for name in header if name not in ("image", *OPTIONAL))
    values = label_values(unknown_labels)
    for line, row in rows:
        if row["image"] in records:
            raise UserError(f"{LABELS} line {line}: names the same image as line {records[row['image']].line}; remove one")
        wrong = next((name for name in findings if row[name] not in values), None)
        if wrong:
            raise UserError(f"{LABELS} line {line}: {wrong} is {row[wrong]!r}; it must be 1, 0, -1 or blank")
        records[row["image"]] = Record(line, tuple(values[row[name]] for name in findings), *(row.get(name, "") for name in OPTIONAL))
    return findings


def _read_boxes(raw: str, digests: dict[str, str], boxes: MutableMapping[str, list[Box]]) -> None:
    rows = read_rows(raw, BOXES, BOX_COLUMNS, digests)
    next(rows, None)
    for line, row in rows:
        add_box(boxes, row["image"], parse_box(line, row["label"], tuple(row[name] for name in BOX_COLUMNS[2:]), BOXES))


def parse_box(line: int, label: str, cells: tuple[str, ...], file: str) -> Box:
    """A box from the cells of x, y, width and height.

    Raises:
        UserError: they are not numbers, or the box is empty.
    """
    try:
        x, y, width, height = (float(cell) for cell in cells)
    except ValueError:
        x = math.nan
    if not (math.isfinite(x) and math.isfinite(y) and 0 < width < math.inf and 0 < height < math.inf):
        raise UserError(f"{file} line {line}: x, y, width and height must be numbers, the last two above 0")
    return Box(line, label, x, y, width, height, file)


def add_box(boxes: MutableMapping[str, list[Box]], image: str, box: Box) -> None:
    """Appends to the boxes of an image; they may lie on disk."""
    boxes[image] = [*boxes.get(image, ()), box]


def _clip(box: Box, height: int, width: int) -> Box:
    left, top = max(box.x, 0.0), max(box.y, 0.0)
    right, bottom = min(box.x + box.width, width), min(box.y + box.height, height)
    if right <= left or bottom <= top:
        raise UserError(f"{box.file} line {box.line}: the box lies outside its image of {width} x {height} pixels")
    return box._replace(x=left, y=top, width=right - left, height=bottom - top)


def read_rows(
    raw: str, name: str, required: tuple[str, ...], digests: dict[str, str], lenient: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and stripped cells by column, the header first; nothing if the file is not there.

    Args:
        raw: the raw folder.
        name: of the file.
        required: columns that must be there; the first names the image and is never blank.
        digests: takes the file's SHA-256.
        lenient: columns without a name, and blank cells too many or too few, are no mistake: published tables have them.

    Raises:
        UserError: with the line of the first mistake.
    """
    uri = storage.join(raw, name)
    if not storage.exists(uri):
        return
    try:
        with storage.opened(uri) as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            reader = csv.reader(TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
            yield from _table_rows(name, reader, required, lenient)
    except UnicodeDecodeError:
        raise UserError(f"{uri}: is not UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{uri}: is not valid CSV ({error}); save it as CSV in UTF-8") from None


def _table_rows(name: str, reader: "Reader", required: tuple[str, ...], lenient: bool) -> Iterator[tuple[int, dict[str, str]]]:
    columns = _columns(name, next(reader, []), required, lenient)
    yield 1, dict.fromkeys(columns, "")
    for cells in reader:
        if any(cells):
            padded = _fitted(cells, len(columns)) if lenient else cells
            yield reader.line_num, _cells(f"{name} line {reader.line_num}", columns, padded, required[0])


def _columns(name: str, cells: list[str], required: tuple[str, ...], lenient: bool) -> list[str]:
    columns = [cell.strip() for cell in cells]
    while lenient and columns and not columns[-1]:
        columns.pop()
    missing = [column for column in required if column not in columns]
    if missing:
        raise UserError(f"{name} line 1: lacks the column {missing[0]}; it must have {', '.join(required)}")
    if len(set(columns)) < len(columns) or "" in columns:
        raise UserError(f"{name} line 1: every column needs a name of its own")
    return columns


def _fitted(cells: list[str], width: int) -> list[str]:
    """Blank cells at the end removed or added, as far as that helps."""
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    return cells + [""] * (width - len(cells))


def _cells(place: str, columns: list[str], cells: list[str], image: str) -> dict[str, str]:
    if len(cells) != len(columns):
        raise UserError(f"{place}: has {len(cells)} cells, the header {len(columns)}")
    row = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
    if not row[image]:
        raise UserError(f"{place}: names no image")
    return row
