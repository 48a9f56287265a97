"""Reading the CSV tables of a data set, with the line of the first mistake."""

import csv
import hashlib
from collections.abc import Iterable, Iterator
from io import TextIOWrapper

from components.common.errors import UserError
from components.common.runs import storage

Line = tuple[int, dict[str, str]]
"""Line number, and stripped cells by column."""


def find(raw: str, layout: str, *names: str) -> str:
    """Returns the first of the given file names that exists.

    Raises:
        UserError: none does.
    """
    found = next((name for name in names if storage.exists(storage.join(raw, name))), None)
    if found is None:
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise UserError(f"{storage.join(raw, names[0])}: no such file{others}; preprocess.layout `{layout}` expects it at the top of --raw")
    return found


def published_rows(raw: str, name: str, required: tuple[str, ...], digests: dict[str, str]) -> Iterator[Line]:
    """Yields the rows of a published table, without its header.

    Columns without a name, and missing or additional blank cells, are accepted: published tables have them.

    Args:
        raw: raw folder.
        name: file name of the table, which exists.
        required: columns that must exist; the first one names the image and is never blank.
        digests: takes the file's SHA-256.

    Raises:
        UserError: with the line of the first mistake.
    """
    lines = _lines(raw, name, required, digests, lenient=True)
    next(lines, None)
    return lines


def columns_of(raw: str, name: str, required: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the column names of a published table."""
    return tuple(next(_lines(raw, name, required, {}, lenient=True))[1])


def own_rows(raw: str, name: str, required: tuple[str, ...], digests: dict[str, str]) -> tuple[tuple[str, ...], Iterator[Line]]:
    """Returns column names and rows of a table that users write themselves; nothing if it does not exist.

    Args and errors are those of `published_rows`.
    """
    if not storage.exists(storage.join(raw, name)):
        return (), iter(())
    lines = _lines(raw, name, required, digests, lenient=False)
    return tuple(next(lines)[1]), lines


def read_list(raw: str, name: str, digests: dict[str, str]) -> list[str]:
    """Returns the lines of a text file, stripped, without blank ones."""
    content = storage.read(storage.join(raw, name))
    digests[name] = storage.digest(content)
    return [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]


def check_known(place: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Checks that every name is one of the data set's labels.

    Raises:
        UserError: one is not.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{place}: {unknown[0]!r} is no label of this data set; download the file again")


def _lines(raw: str, name: str, required: tuple[str, ...], digests: dict[str, str], lenient: bool) -> Iterator[Line]:
    """Yields the header, with blank cells, and then the rows."""
    uri = storage.join(raw, name)
    try:
        with storage.opened(uri) as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            reader = csv.reader(TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
            columns = _columns(name, next(reader, []), required, lenient)
            yield 1, dict.fromkeys(columns, "")
            for cells in reader:
                if any(cells):
                    padded = _pad(cells, len(columns)) if lenient else cells
                    yield reader.line_num, _by_column(f"{name} line {reader.line_num}", columns, padded, required[0])
    except UnicodeDecodeError:
        raise UserError(f"{uri}: is not UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{uri}: is not valid CSV ({error}); save it as CSV in UTF-8") from None


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


def _pad(cells: list[str], width: int) -> list[str]:
    """Removes or adds blank cells at the end."""
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    return cells + [""] * (width - len(cells))


def _by_column(place: str, columns: list[str], cells: list[str], image: str) -> dict[str, str]:
    if len(cells) != len(columns):
        raise UserError(f"{place}: has {len(cells)} cells, the header {len(columns)}")
    row = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
    if not row[image]:
        raise UserError(f"{place}: names no image")
    return row
