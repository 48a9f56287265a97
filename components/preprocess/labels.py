"""labels.csv and boxes.csv at the top of the raw folder, both optional.

`labels.csv`: `image` (SOPInstanceUID, or path relative to the raw folder), optionally `patient, view, sex, age`, and one
column a finding: 1, 0, blank (unknown) or -1 (uncertain; a parameter says what it becomes). `boxes.csv`:
`image,label,x,y,width,height`, in pixels of the stored image, origin top left; the label need not be a finding.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from typing import NamedTuple

from components.common import storage
from components.common.errors import UserError

LABELS = "labels.csv"
BOXES = "boxes.csv"
OPTIONAL = ("patient", "view", "sex", "age")
BOX_COLUMNS = ("image", "label", "x", "y", "width", "height")
_VALUES = {"": math.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
_UNCERTAIN = {"ignore": math.nan, "ones": 1.0, "zeros": 0.0}


class Record(NamedTuple):
    """A row of labels.csv; text is empty where the column is missing."""

    line: int
    labels: tuple[float, ...]
    patient: str
    view: str
    sex: str
    age: str


class Box(NamedTuple):
    """A row of boxes.csv."""

    line: int
    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Table:
    """What the two files say, by image."""

    findings: tuple[str, ...] = ()
    records: dict[str, Record] = field(default_factory=dict)
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 by file name."""

    def record(self, path: str, uid: str) -> Record | None:
        """The row of an image, which may name its path or its SOPInstanceUID.

        Raises:
            UserError: there is a row for either.
        """
        rows = [self.records[name] for name in {path, uid} if name in self.records]
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
        found = [box for name in {path, uid} for box in self.boxes.get(name, [])]
        return [_clip(box, height, width) for box in sorted(found)]

    def names(self) -> Iterator[tuple[str, str]]:
        """Every image named, with the file that names it."""
        yield from ((name, LABELS) for name in self.records)
        yield from ((name, BOXES) for name in self.boxes)


def read(raw: str, unknown_labels: str) -> Table:
    """Reads both files, as far as they are there.

    Args:
        raw: the raw folder.
        unknown_labels: what -1 becomes: ignore, ones or zeros.

    Raises:
        UserError: with the file and line of the first mistake.
    """
    digests: dict[str, str] = {}
    findings, records = _read_labels(raw, _UNCERTAIN[unknown_labels], digests)
    boxes = _read_boxes(raw, digests)
    return Table(findings, records, boxes, digests)


def _read_labels(raw: str, uncertain: float, digests: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Record]]:
    rows = _rows(raw, LABELS, ("image",), digests)
    header = next(rows, (0, {}))[1]
    findings = tuple(name for name in header if name not in ("image", *OPTIONAL))
    values = {**_VALUES, "-1": uncertain, "-1.0": uncertain}
    records: dict[str, Record] = {}
    for line, row in rows:
        if row["image"] in records:
            raise UserError(f"{LABELS} line {line}: names the same image as line {records[row['image']].line}; remove one")
        wrong = next((name for name in findings if row[name] not in values), None)
        if wrong:
            raise UserError(f"{LABELS} line {line}: {wrong} is {row[wrong]!r}; it must be 1, 0, -1 or blank")
        records[row["image"]] = Record(line, tuple(values[row[name]] for name in findings), *(row.get(name, "") for name in OPTIONAL))
    return findings, records


def _read_boxes(raw: str, digests: dict[str, str]) -> dict[str, list[Box]]:
    rows = _rows(raw, BOXES, BOX_COLUMNS, digests)
    next(rows, None)
    boxes: dict[str, list[Box]] = {}
    for line, row in rows:
        try:
            x, y, width, height = (float(row[name]) for name in BOX_COLUMNS[2:])
        except ValueError:
            x = math.nan
        if not (math.isfinite(x) and math.isfinite(y) and 0 < width < math.inf and 0 < height < math.inf):
            raise UserError(f"{BOXES} line {line}: x, y, width and height must be numbers, the last two above 0")
        boxes.setdefault(row["image"], []).append(Box(line, row["label"], x, y, width, height))
    return boxes


def _clip(box: Box, height: int, width: int) -> Box:
    left, top = max(box.x, 0.0), max(box.y, 0.0)
    right, bottom = min(box.x + box.width, width), min(box.y + box.height, height)
    if right <= left or bottom <= top:
        raise UserError(f"{BOXES} line {box.line}: the box lies outside its image of {width} x {height} pixels")
    return box._replace(x=left, y=top, width=right - left, height=bottom - top)


def _rows(raw: str, name: str, required: tuple[str, ...], digests: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column, the header first; nothing if the file is not there."""
    uri = storage.join(raw, name)
    if not storage.exists(uri):
        return
    content = storage.read(uri)
    digests[name] = storage.digest(content)
    try:
        reader = csv.reader(StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        columns = _columns(name, next(reader, []), required)
        yield 1, dict.fromkeys(columns, "")
        for cells in reader:
            if any(cells):
                yield reader.line_num, _cells(f"{name} line {reader.line_num}", columns, cells)
    except UnicodeDecodeError:
        raise UserError(f"{uri}: is not UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{uri}: is not valid CSV ({error}); save it as CSV in UTF-8") from None


def _columns(name: str, cells: list[str], required: tuple[str, ...]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    missing = [column for column in required if column not in columns]
    if missing:
        raise UserError(f"{name} line 1: lacks the column {missing[0]}; it must have {', '.join(required)}")
    if len(set(columns)) < len(columns) or "" in columns:
        raise UserError(f"{name} line 1: every column needs a name of its own")
    return columns


def _cells(place: str, columns: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(columns):
        raise UserError(f"{place}: has {len(cells)} cells, the header {len(columns)}")
    row = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
    if not row["image"]:
        raise UserError(f"{place}: names no image")
    return row
