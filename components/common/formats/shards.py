"""Shards: Parquet files with one row per image, and how pixels are packed into a row.

`part-*.parquet` hold rows in the schema below, in row groups small enough to stream; `manifest.json` describes them.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats.atomic import replaced
from components.common.formats.parquet import DAMAGE

SCHEMA_VERSION = 1
ROWS_PER_GROUP = 100
MAX_SIDE = 16_384  # longest side of an image, in pixels
SPLITS = ("train", "val", "test")
CODEC = "delta-bitshuffle-zstd"
PACKED = ("image_id", "pixels", "codec", "height", "width", "bits")  # columns that `decode` reads

COORDINATES = ("x", "y", "width", "height")
BOX = pa.struct([("label", pa.string()), *((name, pa.float32()) for name in COORDINATES)])
"""A box in pixels of the row's image, origin top left."""
SCHEMA = pa.schema([
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("patient_id", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("pixels", pa.binary(), nullable=False),
    pa.field("codec", pa.string(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("bits", pa.int32(), nullable=False),
    pa.field("labels", pa.list_(pa.float32()), nullable=False),
    pa.field("boxes", pa.list_(BOX), nullable=False),
    pa.field("view", pa.string()),
    pa.field("sex", pa.string()),
    pa.field("age", pa.float32()),
    pa.field("manufacturer", pa.string()),
    pa.field("photometric", pa.string()),
    pa.field("transfer_syntax", pa.string()),
    pa.field("source_height", pa.int32()),
    pa.field("source_width", pa.int32()),
], metadata={"cxr_schema_version": str(SCHEMA_VERSION)})  # fmt: skip

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

# A negative level: zstd without entropy coding, which would spend its time on the noise in the lower bits.
_zstd = pa.Codec("zstd", compression_level=-1)

# Pixels are compressed already; a dictionary, minima and maxima of them would be useless.
_SMALL = [name for name in SCHEMA.names if name not in ("pixels", "labels", "boxes")]
_WRITER_OPTIONS: dict[str, Any] = {
    "compression": {name: "none" if name == "pixels" else "zstd" for name in SCHEMA.names},
    "use_dictionary": _SMALL,
    "write_statistics": _SMALL,
}


def part_name(number: int) -> str:
    """Returns the file name of a part."""
    return f"part-{number:05d}.parquet"


def encode(image: Pixels) -> dict[str, Any]:
    """Packs an image: differences in reading order (modulo the range of the type), bit planes, then zstd.

    Neighbouring pixels of a radiograph are alike, so the upper bits of a difference are nearly always those of 0 or -1. Bitshuffle
    puts equal bits side by side, and the upper planes compress to almost nothing. docs/adr/0005-codec.md compares alternatives.

    Args:
        image: (H, W), uint8 or uint16.

    Returns:
        The columns pixels, codec, height, width and bits.
    """
    differences = imagecodecs.delta_encode(image.reshape(-1))
    planes = imagecodecs.bitshuffle_encode(differences.astype(image.dtype.newbyteorder("<"), copy=False))
    height, width = image.shape
    return {"pixels": _zstd.compress(planes, asbytes=True), "codec": CODEC, "height": height, "width": width, "bits": 8 * image.itemsize}


def decode(row: dict[str, Any]) -> Pixels:
    """Unpacks the image of a row.

    Args:
        row: at least the columns PACKED.

    Returns:
        (H, W), uint8 or uint16, bright = dense tissue (MONOCHROME2 sense).

    Raises:
        UserError: the row is damaged, or was made by another version with another codec.
    """
    if row["codec"] != CODEC:
        raise UserError(f"codec {row['codec']!r} of image {row['image_id']} is not known; run preprocess again")
    height, width, bits = row["height"] or 0, row["width"] or 0, row["bits"]
    if bits not in (8, 16) or not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise UserError(f"image {row['image_id']} claims {height} x {width} pixels of {bits} bits; run preprocess again")
    dtype = np.dtype("<u1" if bits == 8 else "<u2")
    try:
        planes = _zstd.decompress(row["pixels"], decompressed_size=height * width * dtype.itemsize)
        differences = imagecodecs.bitshuffle_decode(np.frombuffer(planes, dtype))
        # Six times as fast as numpy.cumsum, with the same result.
        flat: Pixels = imagecodecs.delta_decode(differences.astype(dtype.newbyteorder("="), copy=False))
        return flat.reshape(height, width)
    except DAMAGE as error:
        raise UserError(f"image {row['image_id']} is damaged ({error}); run preprocess again") from None


def square(image: Pixels, size: int) -> Pixels:
    """Centres an image (H, W), H and W at most `size`, in a (size, size) square of zeros."""
    canvas: Pixels = np.zeros((size, size), image.dtype)
    centre(image, canvas)
    return canvas


def centre(image: Pixels, canvas: Pixels) -> None:
    """Writes an image (H, W) into the middle of a canvas that is at least as large."""
    (height, width), (rows, columns) = image.shape, canvas.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    canvas[top : top + height, left : left + width] = image


def write_part(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes the rows of a part, dictionaries with the columns of `SCHEMA`, and returns their number.

    They are written one row group at a time, whole or not at all; without rows no file is written. The bytes depend on the rows and
    their order only.
    """
    return _write_groups(path, _row_groups(rows))


def copy_rows(source: Path, target: Path, keep: npt.NDArray[np.bool_]) -> int:
    """Copies the rows `keep` (N,) of a part, to the bytes that `write_part` would write (while row groups are below 2 GiB)."""
    with pq.ParquetFile(source) as file:
        return _write_groups(target, _kept_groups(file, keep))


def _write_groups(path: Path, groups: Iterable[pa.Table]) -> int:
    written = 0
    with replaced(path) as scratch:
        with pq.ParquetWriter(scratch, SCHEMA, **_WRITER_OPTIONS) as writer:
            for group in groups:
                writer.write_table(group)
                written += len(group)
        if not written:
            scratch.unlink()
    return written


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    remaining = iter(rows)
    while group := list(islice(remaining, ROWS_PER_GROUP)):
        yield _table(group)


def _kept_groups(file: pq.ParquetFile, keep: npt.NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Yields whole row groups of the kept rows, each as one chunk, since Parquet ends its pages where chunks end."""
    held, seen = SCHEMA.empty_table(), 0
    for batch in file.iter_batches(ROWS_PER_GROUP):
        kept = pa.Table.from_batches([batch]).filter(pa.array(keep[seen : seen + len(batch)]))
        held, seen = pa.concat_tables([held, kept]), seen + len(batch)
        while len(held) >= ROWS_PER_GROUP:
            yield held.slice(0, ROWS_PER_GROUP).combine_chunks()
            held = held.slice(ROWS_PER_GROUP)
    if len(held):
        yield held.combine_chunks()


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """Does `pa.Table.from_pylist` without copying the pixels again and again as the column grows."""
    pixels = [row["pixels"] for row in rows]
    if sum(map(len, pixels)) > np.iinfo(np.int32).max:  # more than one chunk can hold
        return pa.Table.from_pylist(rows, SCHEMA)
    ends = np.fromiter(accumulate(map(len, pixels), initial=0), np.int32, len(rows) + 1)
    packed = pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(pixels))])
    columns = [packed if field.name == "pixels" else pa.array([row.get(field.name) for row in rows], field.type) for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
