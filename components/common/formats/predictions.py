"""What every row of `predictions.parquet` begins with, whatever the task: whose image it is, in which split, and of what kind."""

from typing import Any

import pyarrow as pa

META = ("view", "sex", "age", "manufacturer")
"""Columns of the shards by which `evaluate` tells groups apart."""


def common_columns(rows: pa.Table, split: str, task: str) -> dict[str, Any]:
    """The first columns of predictions.parquet, of rows of the shards with their ids and META."""
    return {
        "image_id": rows["image_id"],
        "patient_id": rows["patient_id"],
        "split": pa.array([split] * len(rows)),
        "task": pa.array([task] * len(rows)),
        **{name: rows[name] for name in META},
    }
