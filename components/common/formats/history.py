"""`history.csv`: how a training went, one row per epoch. Column `epoch` counts from 1; a number that is undefined is NaN or blank."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TypeVar

from components.common.errors import UserError
from components.common.formats.atomic import replaced

T = TypeVar("T")

HISTORY = "history.csv"
EPOCH = "epoch"
VOLATILE = ("images_per_second", "data_wait", "gpu_gib", "gpu_hours")  # columns that differ between otherwise identical runs


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes the epochs so far; without any, the header alone."""
    with replaced(path) as scratch, scratch.open("w", newline="") as file:
        if not history:
            file.write(f"{EPOCH}\n")
            return
        writer = csv.DictWriter(file, fieldnames=list(history[-1]))
        writer.writeheader()
        writer.writerows(history)


def parse_history(content: bytes, path: str) -> list[dict[str, float]]:
    """Parses a history into one dictionary per epoch; `path` is its name for the message.

    Raises:
        UserError: it holds anything but numbers below the header.
    """
    rows = csv.DictReader(StringIO(content.decode("utf-8", "replace")))
    try:
        return [{name: float(row[name] or "nan") for name in rows.fieldnames or ()} for row in rows]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: line {rows.line_num} is not numbers ({error}); run the stage that wrote it again") from None


def metrics_of(row: Mapping[str, T]) -> dict[str, T]:
    """Returns the columns that depend on the inputs only, of one epoch or of all."""
    return {name: value for name, value in row.items() if name not in (EPOCH, *VOLATILE)}
