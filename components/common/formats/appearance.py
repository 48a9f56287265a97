"""appearance.parquet: how each scored image looks, in a few numbers, and what its header says about it.

One row per row of predictions.parquet, in the same order, for `monitor`. It stays with the output: it has the ids of the images.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.formats import parquet
from components.common.formats.atomic import replaced

APPEARANCE = "appearance.parquet"
HEADER = ("photometric", "source_height", "source_width")  # columns of the shards
LEVELS = ("brightness", "contrast", "median", "dark", "bright")
"""Mean, standard deviation and median of the pixels, and the fractions of nearly black and nearly white ones, all from 0 to 1."""
WAVES = 6  # waves per axis; their coefficients describe the coarse structure
FEATURES = 32  # random projections of the features of an image in a backbone; null without one, `backbone` being its SHA-256
SCHEMA = pa.schema([
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("photometric", pa.string()),
    pa.field("source_height", pa.int32()),
    pa.field("source_width", pa.int32()),
    *(pa.field(name, pa.float32(), nullable=False) for name in LEVELS),
    pa.field("waves", pa.list_(pa.float32(), WAVES * WAVES - 1), nullable=False),
    pa.field("features", pa.list_(pa.float32())),  # of variable length, since Parquet cannot read empty cells of a fixed one
    pa.field("backbone", pa.string()),
])  # fmt: skip


def write_appearance(folder: Path, table: pa.Table) -> None:
    """Writes a table with the columns of SCHEMA."""
    with replaced(folder / APPEARANCE) as scratch:
        pq.write_table(table, scratch)


def parse_appearance(content: bytes, path: str) -> pa.Table:
    """Parses an appearance.parquet; `path` is its name for the message.

    Raises:
        UserError: it is damaged, not a Parquet file, or lacks columns.
    """
    return parquet.parse(content, SCHEMA, path, "predict", SCHEMA.names)
