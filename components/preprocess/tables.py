"""Reads the CSV tables of a raw folder for a layout, and collects what they say about its images."""

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator
from io import TextIOWrapper

from components.common.errors import UserError
from components.common.runs import storage
from components.preprocess.index import Index
from components.preprocess.labels import Box, Record, storage_of

Line = tuple[int, dict[str, str]]  # line number, and stripped cells by column


class Tables:
    """The tables of one raw folder; records and boxes are held by an index on disk, else in memory.

    `lenient` accepts columns without a name, and missing or additional blank cells, which published tables have.
    """

    def __init__(self, raw: str, layout: str, index: Index | None, lenient: bool = True):
        self.raw, self.layout, self.lenient = raw, layout, lenient
        self.records, self.boxes = storage_of(index)
        self.digests: dict[str, str] = {}

    def exists(self, name: str) -> bool:
        """Whether a table exists; raises UserError if something else has its name, such as a link that leads nowhere."""
        uri = storage.join(self.raw, name)
        if storage.exists(uri):
            return True
        if not storage.is_s3(uri) and os.path.lexists(uri):
            raise UserError(f"{uri}: is neither a file nor a link to one; put the table there or remove it")
        return False

    def find(self, *names: str) -> str:
        """Returns the first of the given file names that exists; raises UserError if none does."""
        found = next(filter(self.exists, names), None)
        if found is None:
            others = f" (or {', '.join(names[1:])})" if names[1:] else ""
            missing = f"{storage.join(self.raw, names[0])}: no such file{others}"
            raise UserError(f"{missing}; preprocess.layout `{self.layout}` expects it at the top of --raw")
        return found

    def columns(self, name: str, required: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the column names of a table; arguments and errors are those of `rows`."""
        return tuple(next(self._lines(name, required))[1])

    def rows(self, name: str, required: tuple[str, ...]) -> Iterator[Line]:
        """Yields the rows of a table, which must have certain columns; the first of these names the image and is never blank.

        Raises UserError with the line of the first mistake.
        """
        lines = self._lines(name, required)
        next(lines)
        return lines

    def lines(self, name: str) -> list[str]:
        """Returns the lines of a text file, stripped, without blank ones."""
        content = storage.read(storage.join(self.raw, name))
        self.digests[name] = storage.digest(content)
        return [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]

    def add_record(self, image: str, record: Record) -> None:
        """Adds the record of an image; raises UserError if it has one already."""
        if image in self.records:
            first = self.records[image]
            raise UserError(f"{record.file} line {record.line}: names the same image as line {first.line} of {first.file}; remove one")
        self.records[image] = record

    def add_box(self, image: str, box: Box) -> None:
        """Adds a box to those of an image."""
        self.boxes[image] = [*self.boxes.get(image, ()), box]

    def _lines(self, name: str, required: tuple[str, ...]) -> Iterator[Line]:
        """Yields the header, with blank cells, and then the rows."""
        uri = storage.join(self.raw, name)
        try:
            with storage.opened(uri) as file:
                self.digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                reader = csv.reader(TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
                columns = self._columns(name, next(reader, []), required)
                yield 1, dict.fromkeys(columns, "")
                for cells in reader:
                    if any(cells):
                        yield reader.line_num, self._by_column(f"{name} line {reader.line_num}", columns, cells, required[0])
        except UnicodeDecodeError:
            raise UserError(f"{uri}: is not UTF-8; save it as CSV in UTF-8") from None
        except csv.Error as error:
            raise UserError(f"{uri}: is not valid CSV ({error}); save it as CSV in UTF-8") from None

    def _columns(self, name: str, cells: list[str], required: tuple[str, ...]) -> list[str]:
        columns = [cell.strip() for cell in cells]
        while self.lenient and columns and not columns[-1]:
            columns.pop()
        missing = [column for column in required if column not in columns]
        if missing:
            raise UserError(f"{name} line 1: lacks the column {missing[0]}; it must have {', '.join(required)}")
        if len(set(columns)) < len(columns) or "" in columns:
            raise UserError(f"{name} line 1: every column needs a name of its own")
        return columns

    def _by_column(self, place: str, columns: list[str], cells: list[str], image: str) -> dict[str, str]:
        if self.lenient:
            while len(cells) > len(columns) and not cells[-1].strip():
                cells.pop()
            cells += [""] * (len(columns) - len(cells))
        if len(cells) != len(columns):
            raise UserError(f"{place}: has {len(cells)} cells, the header {len(columns)}")
        row = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
        if not row[image]:
            raise UserError(f"{place}: names no image")
        return row


def check_known(place: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError if a name is not one of the data set's labels."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{place}: {unknown[0]!r} is not a label of this data set; download the file again")
