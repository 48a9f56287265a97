"""predictions.parquet: one row per image of the validation and test splits, with common columns and those of the head."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common.formats import parquet
from components.common.formats.atomic import replaced
from components.common.formats.shards import BOX

PREDICTIONS = "predictions.parquet"
COLUMNS = ("image_id", "patient_id", "split", "task")  # required of every head; `task` is its name
META = ("view", "sex", "age", "manufacturer")  # columns of the shards that define subgroups
SPLITS = ("val", "test")

DETECTIONS = "boxes"  # column of the head `detect`: a list of SCORED_BOX
TARGETS = "targets"  # column of the head `detect`: a list of boxes as in the shards; null if not known
SCORED_BOX = pa.struct([*BOX, ("score", pa.float32())])
_CHECKED = pa.schema([pa.field(name, pa.string(), nullable=False) for name in COLUMNS])


def common_columns(rows: pa.Table, split: str, head: str) -> dict[str, Any]:
    """Returns the first columns of predictions.parquet for rows of the shards with image_id, patient_id and META."""
    return {
        "image_id": rows["image_id"],
        "patient_id": rows["patient_id"],
        "split": pa.array([split] * len(rows), pa.string()),
        "task": pa.array([head] * len(rows), pa.string()),
        **{name: rows[name] for name in META},
    }


def write_predictions(folder: Path, tables: list[pa.Table]) -> None:
    """Writes the rows of all tables."""
    with replaced(folder / PREDICTIONS) as scratch:
        pq.write_table(pa.concat_tables(tables), scratch)


def parse_predictions(content: bytes, path: str) -> pa.Table:
    """Parses predictions and checks that they have the common columns; `path` is their name for the message.

    Raises:
        UserError: it is damaged, not a Parquet file, or lacks columns.
    """
    return parquet.parse(content, _CHECKED, path, "the stage that wrote it")


def rows_of(table: pa.Table, split: str) -> pa.Table:
    """Returns the rows of one split."""
    return table.filter(pc.equal(table["split"], split))


def score_column(finding: str) -> str:
    """Returns the column of the head `classify` with the probability of a finding."""
    return f"score_{finding}"


def target_column(finding: str) -> str:
    """Returns the column of the head `classify` with the label of a finding: 1, 0, or NaN if not known."""
    return f"target_{finding}"


def findings_of(table: pa.Table) -> list[str]:
    """Returns the findings that a table of the head `classify` has scores for."""
    prefix = score_column("")
    return [name.removeprefix(prefix) for name in table.column_names if name.startswith(prefix)]


def scores_of(table: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
    """Returns what a model of any head said: columns of numbers, and of boxes their number and the highest score; null as NaN."""
    if DETECTIONS in table.column_names:
        boxes = [[box["score"] for box in row] for row in table[DETECTIONS].to_pylist()]
        return {"boxes": np.array([len(row) for row in boxes], float), "highest_score": np.array([max(row, default=0.0) for row in boxes])}
    known = {*COLUMNS, *META, TARGETS}
    names = [name for name in table.column_names if name not in known and not name.startswith(target_column(""))]
    return {name: table[name].to_numpy().astype(np.float64) for name in names if pa.types.is_floating(table[name].type)}


def matrix(rows: pa.Table, columns: list[str]) -> npt.NDArray[np.float64]:
    """Returns the named columns as (n, F), null as NaN."""
    return np.stack([rows[name].to_numpy().astype(np.float64) for name in columns], axis=1)
