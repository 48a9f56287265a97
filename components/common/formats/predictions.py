"""predictions.parquet: one row per image of the validation and test splits, with common columns and those of the head."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

PREDICTIONS = "predictions.parquet"
COLUMNS = ("image_id", "patient_id", "split", "task")
"""Required of every head; `task` is its name."""
META = ("view", "sex", "age", "manufacturer")
"""Columns of the shards that define subgroups."""
SPLITS = ("val", "test")


def common_columns(rows: pa.Table, split: str, head: str) -> dict[str, Any]:
    """Returns the first columns of predictions.parquet.

    Args:
        rows: of the shards, with image_id, patient_id and META.
        split: val or test.
        head: name of the head.
    """
    return {
        "image_id": rows["image_id"],
        "patient_id": rows["patient_id"],
        "split": pa.array([split] * len(rows)),
        "task": pa.array([head] * len(rows)),
        **{name: rows[name] for name in META},
    }


def rows_of(table: pa.Table, split: str) -> pa.Table:
    """Returns the rows of one split."""
    return table.filter(pc.equal(table["split"], split))


def findings_of(table: pa.Table) -> list[str]:
    """Returns the findings that a table of the head `classify` has scores for."""
    return [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]


def matrix(rows: pa.Table, columns: list[str]) -> npt.NDArray[np.float64]:
    """Returns the named columns as (n, F), null as NaN."""
    return np.stack([rows[name].to_numpy().astype(np.float64) for name in columns], axis=1)
