"""Content of a data set's own tables, in one form for all layouts: records, boxes and the official split."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from components.common.errors import UserError
from components.common.formats.labels import BOXES, KNOWN, LABELS, UNCERTAIN
from components.preprocess.index import Index, StoredMap

_UNCERTAIN = {"ignore": math.nan, "ones": 1.0, "zeros": 0.0}
_STRAY = re.compile(
    r"(^|/)(__MACOSX|\.Spotlight-V100|\.Trashes|\.Trash-\d+|\.fseventsd|\.TemporaryItems|\$RECYCLE\.BIN|System Volume Information"
    r"|@eaDir|#recycle|\.snapshot|lost\+found|\.ipynb_checkpoints)/"
    r"|(^|/)(\._[^/]*|\.DS_Store|\.localized|Thumbs\.db|ehthumbs\.db|desktop\.ini|DICOMDIR|\.nfs[^/]*|\.git(ignore|keep)|[^/]*:Zone\.Identifier)$",
    re.IGNORECASE,
)
"""Folders and files that macOS, Windows, Linux, NAS systems and DICOM media leave behind."""


class Record(NamedTuple):
    """Entry of a table for one image; text is empty where the table has none."""

    line: int
    labels: tuple[float, ...]
    patient: str
    view: str
    sex: str
    age: str
    split: str = ""  # official split of the data set: train, val, test, or `split.UNDIVIDED`
    file: str = LABELS  # file name of the table


class Box(NamedTuple):
    """A box in pixels of the stored image, origin top left."""

    line: int
    label: str
    x: float
    y: float
    width: float
    height: float
    file: str = BOXES  # file name of the table


def base_name(path: str) -> str:
    """Key of tables that name images by their file name."""
    return path.rpartition("/")[2]


def stem(path: str) -> str:
    """Key of tables that name images by their file name without its extension."""
    return base_name(path).partition(".")[0]


@dataclass(frozen=True)
class Table:
    """The tables of a data set, by image."""

    findings: tuple[str, ...] = ()
    records: Mapping[str, Record] = field(default_factory=dict)
    boxes: Mapping[str, list[Box]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # file name of a table -> SHA-256
    key: Callable[[str], str] = str  # relative path of an image -> its name in `records` and `boxes`, which `match` finds
    folders: tuple[str, ...] = ()  # patterns of the top-level folders that hold the images; empty: every file but the tables is an image
    folder_splits: Mapping[str, str] = field(default_factory=dict)  # top-level folder -> official split, if the records do not name it
    unlabelled: tuple[str, ...] = ()  # top-level folders whose images the tables do not name
    complete: bool = True  # whether every image that is named must exist; many people have only a part of a public data set

    @property
    def place(self) -> str:
        """Where images are expected, for a message."""
        return f" in {' or '.join(f'{folder}/' for folder in self.folders)}" if self.folders else ""

    def is_image(self, path: str) -> bool:
        """Whether the file at this relative path is an image of the data set; others are ignored."""
        if not self.folders:
            return path not in self.digests and not is_stray(path)
        top, _, rest = path.partition("/")
        return bool(rest) and not is_leftover(path) and any(fnmatchcase(top, pattern) for pattern in self.folders)

    def official_split(self, path: str, record: Record | None) -> str:
        """Returns the official split of an image: train, val, test or `split.UNDIVIDED`; raises UserError if there is none."""
        official = record.split if record and record.split else self.folder_splits.get(path.partition("/")[0], "")
        if not official:
            raise UserError(f"{path}: the data set's own split does not name this image; remove it or set preprocess.split to hash")
        return official

    def names_of(self, path: str) -> tuple[str | None, str | None]:
        """Returns the names that records and boxes have for the image at a path; None without one."""
        name = self.key(path)
        return _match(self.records, name), _match(self.boxes, name)

    def record(self, path: str, uid: str) -> Record | None:
        """Returns the record of an image, named by its path or its SOPInstanceUID; raises UserError if it has two."""
        names = {_match(self.records, self.key(path)), uid}
        found = sorted(self.records[name] for name in names if name and name in self.records)
        if len(found) > 1:
            lines = f"lines {found[0].line} and {found[1].line}"
            raise UserError(f"{found[0].file}: {lines} name the same image, by path and by SOPInstanceUID; remove one")
        return found[0] if found else None

    def labels(self, record: Record | None) -> tuple[float, ...]:
        """Returns the labels in the order of the findings; NaN for an image without a record."""
        return record.labels if record else (math.nan,) * len(self.findings)

    def boxes_within(self, path: str, uid: str, height: int, width: int) -> list[Box]:
        """Returns the boxes of an image of height x width pixels, clipped to it, in table order; raises UserError if one lies outside."""
        found = [box for name in {_match(self.boxes, self.key(path)), uid} if name for box in self.boxes.get(name, [])]
        return [_clip(box, height, width) for box in sorted(found)]

    def names(self) -> Iterator[tuple[str, str, int]]:
        """Yields every image that must exist, with the table that names it and the line."""
        if not self.complete:
            return
        yield from ((name, record.file, record.line) for name, record in self.records.items())
        yield from ((name, boxes[0].file, boxes[0].line) for name, boxes in self.boxes.items())


def _match(known: Mapping[str, Any], name: str) -> str | None:
    return known.match(name) if isinstance(known, StoredMap) else name if name in known else None


def storage_of(index: Index | None) -> tuple[StoredMap[Record], StoredMap[list[Box]]]:
    """Returns mappings from images to records and boxes, which an index holds on disk; without one, it is a temporary one."""
    index = index or Index()
    return StoredMap(index, "records", _restore_record), StoredMap(index, "boxes", _restore_boxes)


# Functions of the module, since a Table is pickled.
def _restore_record(cells: list[Any]) -> Record:
    return Record(cells[0], tuple(cells[1]), *cells[2:])


def _restore_boxes(rows: list[list[Any]]) -> list[Box]:
    return [Box(*cells) for cells in rows]


def label_values(unknown_labels: str) -> dict[str, float]:
    """Returns the valid cells of a label column and their values."""
    return KNOWN | dict.fromkeys(UNCERTAIN, _UNCERTAIN[unknown_labels])


def parse_labels(place: str, row: Mapping[str, str], findings: Iterable[str], values: Mapping[str, float]) -> tuple[float, ...]:
    """Parses the label columns of a row; raises UserError if a cell is not one of `values`."""
    wrong = next((name for name in findings if row[name] not in values), None)
    if wrong:
        raise UserError(f"{place}: {wrong} is {row[wrong]!r}; it must be 1, 0, -1 or blank")
    return tuple(values[row[name]] for name in findings)


def parse_box(line: int, label: str, cells: Iterable[str], file: str) -> Box:
    """Parses a box from the cells of x, y, width and height; raises UserError if they are not numbers, or it is empty."""
    try:
        x, y, width, height = (float(cell) for cell in cells)
    except ValueError:
        x = math.nan
    if not (math.isfinite(x) and math.isfinite(y) and 0 < width < math.inf and 0 < height < math.inf):
        raise UserError(f"{file} line {line}: x, y, width and height must be numbers, the last two above 0")
    return Box(line, label, x, y, width, height, file)


def _clip(box: Box, height: int, width: int) -> Box:
    left, top = max(box.x, 0.0), max(box.y, 0.0)
    right, bottom = min(box.x + box.width, width), min(box.y + box.height, height)
    if right <= left or bottom <= top:
        raise UserError(f"{box.file} line {box.line}: the box lies outside its image of {width} x {height} pixels")
    return box._replace(x=left, y=top, width=right - left, height=bottom - top)


def is_stray(path: str) -> bool:
    """Whether an operating system or another program left the file beside the images."""
    return bool(_STRAY.search(path))


def is_leftover(path: str) -> bool:
    """Whether the file is stray, or hidden, which no image of a public data set is."""
    return is_stray(path) or path.startswith(".") or "/." in path
