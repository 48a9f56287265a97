"""Shards: Parquet files with one row an image, their manifest, and how pixels are packed into a row.

`part-*.parquet` hold rows in the schema below, in row groups small enough to stream; `manifest.json` describes them.
Nothing here needs torch.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.runs import cache, storage
from components.common.runs.inputs import read_document, upstream_run_id

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ROWS_PER_GROUP = 100
SPLITS = ("train", "val", "test")
CODEC = "delta-bitshuffle-zstd"

BOX = pa.struct([("label", pa.string()), ("x", pa.float32()), ("y", pa.float32()), ("width", pa.float32()), ("height", pa.float32())])
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

# Without entropy coding, which the noise in the lower bits would only slow down.
_zstd = pa.Codec("zstd", compression_level=-1)

# Pixels are compressed already, and neither a dictionary nor minima and maxima of them are of use.
_SMALL = [name for name in SCHEMA.names if name not in ("pixels", "labels", "boxes")]
_WRITER_OPTIONS: dict[str, Any] = {
    "compression": {name: "none" if name == "pixels" else "zstd" for name in SCHEMA.names},
    "use_dictionary": _SMALL,
    "write_statistics": _SMALL,
}


def encode(image: Pixels) -> dict[str, Any]:
    """The pixel columns of a row: differences in reading order (modulo the type's range), sorted by bit, then zstd.

    Neighbours in a radiograph are alike, so that the upper bits of a difference are nearly always those of 0 or -1; put beside each
    other (bitshuffle) they shrink to little, and zstd does not dwell on the lower ones, which are noise. docs/adr/0005-codec.md
    compares other ways.

    Args:
        image: (H, W), uint8 or uint16.

    Returns:
        pixels, codec, height, width and bits.
    """
    differences = imagecodecs.delta_encode(image.reshape(-1))
    planes = imagecodecs.bitshuffle_encode(differences.astype(image.dtype.newbyteorder("<"), copy=False))
    height, width = image.shape
    return {"pixels": _zstd.compress(planes, asbytes=True), "codec": CODEC, "height": height, "width": width, "bits": 8 * image.itemsize}


def decode(row: dict[str, Any]) -> Pixels:
    """The image of a row.

    Args:
        row: at least pixels, codec, height, width and bits.

    Returns:
        (H, W), uint8 or uint16, bright = dense tissue (MONOCHROME2 sense).

    Raises:
        UserError: the codec is not known: the shards were made by another version.
    """
    if row["codec"] != CODEC:
        raise UserError(f"codec {row['codec']!r} of image {row['image_id']} is not known; run preprocess again")
    dtype = np.dtype("<u1" if row["bits"] == 8 else "<u2")
    height, width = row["height"], row["width"]
    planes = _zstd.decompress(row["pixels"], decompressed_size=height * width * dtype.itemsize)
    differences = imagecodecs.bitshuffle_decode(np.frombuffer(planes, dtype))
    # A sixth of numpy.cumsum's time, to the same bits.
    flat: Pixels = imagecodecs.delta_decode(differences.astype(dtype.newbyteorder("="), copy=False))
    return flat.reshape(height, width)


def write_part(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes the rows of a part, a row group at a time, whole or not at all: no rows, no file.

    The bytes depend on the rows and their order only.

    Args:
        path: of the part, on local disk.
        rows: dictionaries with the columns of `SCHEMA`.

    Returns:
        The number of rows.
    """
    return _write_groups(path, _row_groups(rows))


def copy_rows(source: Path, target: Path, keep: npt.NDArray[np.bool_]) -> int:
    """Writes some rows of a part as another, with the bytes that `write_part` would give it (row groups being smaller than 2 GiB).

    Args:
        source: a part.
        target: gets the rows.
        keep: (N,), which of the source's rows.

    Returns:
        The number of rows.
    """
    with pq.ParquetFile(source) as file:
        return _write_groups(target, _kept_groups(file, keep))


def _write_groups(path: Path, groups: Iterable[pa.Table]) -> int:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    written = 0
    try:
        with pq.ParquetWriter(scratch, SCHEMA, **_WRITER_OPTIONS) as writer:
            for group in groups:
                writer.write_table(group)
                written += len(group)
        if written:
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return written


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    remaining = iter(rows)
    while group := list(islice(remaining, ROWS_PER_GROUP)):
        yield _table(group)


def _kept_groups(file: pq.ParquetFile, keep: npt.NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Whole row groups of what is kept; in one chunk each, since where a page ends depends on the chunks."""
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
    """What `pa.Table.from_pylist` makes of rows, without copying their pixels again and again as the column grows."""
    pixels = [row["pixels"] for row in rows]
    if sum(map(len, pixels)) > np.iinfo(np.int32).max:  # more than a column without chunks can hold
        return pa.Table.from_pylist(rows, SCHEMA)
    ends = np.fromiter(accumulate(map(len, pixels), initial=0), np.int32, len(rows) + 1)
    packed = pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(pixels))])
    columns = [packed if field.name == "pixels" else pa.array([row.get(field.name) for row in rows], field.type) for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


class Part(NamedTuple):
    """A Parquet file of shards."""

    uri: str
    sha256: str


@dataclass(frozen=True)
class Shards:
    """One or more folders of shards, opened for reading as if they were one."""

    folders: tuple[str, ...]
    manifests: tuple[dict[str, Any], ...]
    digests: tuple[str, ...]
    """SHA-256 of each manifest.json."""

    @property
    def findings(self) -> list[str]:
        """Names of the label columns, in order: those of the first folder, then what others add."""
        return list(dict.fromkeys(name for manifest in self.manifests for name in manifest["findings"]))

    @property
    def bits(self) -> int:
        """Bits of a stored pixel."""
        return int(self.manifests[0]["bits"])

    @property
    def size(self) -> int:
        """Longer side of the images, in pixels."""
        return int(max(manifest["size"] for manifest in self.manifests))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Parameters of `preprocess` that a file's pixels, and whether it is taken, depend on; none where a manifest lacks them."""
        known = self.manifests[0].get("params", {})
        return {name: known[name] for name in ("size", "bits", "clip_percentile", "views", "text_check") if name in known}

    @property
    def mean_std(self) -> tuple[float, float]:
        """Mean and standard deviation of the train split's pixels, as fractions of the full range."""
        weights = np.array([max(m["train_pixels"]["count"], 1) for m in self.manifests], float)
        means = np.array([m["train_pixels"]["mean"] for m in self.manifests])
        squares = np.array([m["train_pixels"]["std"] ** 2 for m in self.manifests]) + means**2
        mean = float(np.average(means, weights=weights))
        return mean, float(max(np.average(squares, weights=weights) - mean**2, 0.0) ** 0.5)

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 by name of input, for a job."""
        if len(self.digests) == 1:
            return {"shards": self.digests[0]}
        return {f"shards.{index}": value for index, value in enumerate(self.digests)}

    @property
    def upstream(self) -> dict[str, str]:
        """MLflow run id by name of input, where preprocess had one."""
        found = zip(self.inputs, map(upstream_run_id, self.folders), strict=True)
        return {name: run_id for name, run_id in found if run_id}

    def parts(self) -> list[Part]:
        """All parts, in order."""
        return [part for folder, manifest in zip(self.folders, self.manifests, strict=True) for part in _parts(folder, manifest)]

    def table(self, columns: list[str]) -> pa.Table:
        """Some columns of all rows, in order: for the small ones. `labels` are in the order of `findings`, NaN where a folder has none."""
        tables = []
        for folder, manifest in zip(self.folders, self.manifests, strict=True):
            parts = [pq.read_table(open_part(part), columns=columns) for part in _parts(folder, manifest)]
            tables += [_with_labels(part, manifest["findings"], self.findings) for part in parts]
        return pa.concat_tables(tables)


def open_shards(folders: list[str] | str) -> Shards:
    """Opens the output folders of preprocess.

    Raises:
        UserError: a folder is not there, is incomplete, of another schema version, or has other bits a pixel.
    """
    folders = [folders] if isinstance(folders, str) else folders
    read = [read_document(folder, MANIFEST, "preprocess") for folder in folders]
    for folder, (manifest, _) in zip(folders, read, strict=True):
        version = manifest.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(f"{folder}: shards of schema version {version}, this code reads {SCHEMA_VERSION}; run preprocess again")
        if (bits := manifest["bits"]) != (first := read[0][0]["bits"]):
            raise UserError(f"{folder}: {bits} bits a pixel, {folders[0]} has {first}; preprocess both with the same preprocess.bits")
    return Shards(tuple(folders), tuple(manifest for manifest, _ in read), tuple(digest for _, digest in read))


def _with_labels(table: pa.Table, own: list[str], wanted: list[str]) -> pa.Table:
    """The table with its labels under other findings."""
    if own == wanted or "labels" not in table.column_names:
        return table
    labels = np.full((len(table), len(wanted)), np.nan, np.float32)
    for row, values in zip(labels, table["labels"].to_pylist(), strict=True):
        row[[wanted.index(name) for name in own]] = values
    return table.set_column(table.column_names.index("labels"), SCHEMA.field("labels"), [list(labels)])


def _parts(folder: str, manifest: dict[str, Any]) -> list[Part]:
    return [Part(storage.join(folder, part["name"]), part["sha256"]) for part in manifest["parts"]]


def open_part(part: Part) -> Any:
    """A part as pyarrow reads it: a path, or an object from the cache."""
    return cache.opened(part.uri, part.sha256) if storage.is_s3(part.uri) else part.uri


def square(image: Pixels, size: int) -> Pixels:
    """The image in the middle of a (size, size) square of zeros; an image that is larger is an error.

    Args:
        image: (H, W) with H and W at most `size`.
        size: side of the square, in pixels.
    """
    height, width = image.shape
    top, left = (size - height) // 2, (size - width) // 2
    canvas = np.zeros((size, size), image.dtype)
    canvas[top : top + height, left : left + width] = image
    return canvas
