"""`quarantine.parquet`: the files that preprocess refused, one row per file.

The only output with raw paths: it never goes to MLflow.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

QUARANTINE = "quarantine.parquet"
SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("path", "reason", "detail")])
_ROWS_PER_GROUP = 10_000


def write_quarantine(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Writes the rows, which need not fit into memory."""
    remaining = iter(rows)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))
