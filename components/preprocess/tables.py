"""Reading the tables of public sets."""

from collections.abc import Iterable, Iterator

from components.common.errors import UserError
from components.common.runs import storage
from components.preprocess.labels import read_rows

Line = tuple[int, dict[str, str]]
"""Line number, and cells by column."""


def find(raw: str, layout: str, *names: str) -> str:
    """The first of `names` that is there.

    Raises:
        UserError: none is.
    """
    found = next((name for name in names if storage.exists(storage.join(raw, name))), None)
    if found is None:
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise UserError(f"{storage.join(raw, names[0])}: no such file{others}; preprocess.layout `{layout}` expects it at the top of --raw")
    return found


def table(raw: str, name: str, required: tuple[str, ...], digests: dict[str, str]) -> Iterator[Line]:
    """The rows of a table that is there, without its header.

    Raises:
        UserError: with the line of the first mistake.
    """
    rows = read_rows(raw, name, required, digests, lenient=True)
    next(rows, None)
    return rows


def columns(raw: str, name: str, required: tuple[str, ...]) -> tuple[str, ...]:
    """The header of a table that is there."""
    return tuple(next(read_rows(raw, name, required, {}, lenient=True))[1])


def lines_of(raw: str, name: str, digests: dict[str, str]) -> list[str]:
    """The lines of a list, stripped, without blank ones."""
    content = storage.read(storage.join(raw, name))
    digests[name] = storage.digest(content)
    return [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]


def check_known(place: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Every name must be one that the set has.

    Raises:
        UserError: one is not.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{place}: {unknown[0]!r} is no label of this data set; download the file again")
