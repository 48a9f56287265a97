"""Opens folders of shards, local or on S3, for reading."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats.manifest import MANIFEST, Manifest, check_manifest
from components.common.formats.parquet import check_columns, check_nulls, damage
from components.common.formats.shards import PACKED, SCHEMA, Pixels, decode
from components.common.runs import cache, integrity, storage
from components.common.runs.cores import threads
from components.common.runs.inputs import read_document, upstream_run_ids
from components.common.runs.ranges import RangedObject

MADE_BY = "preprocess"
_REQUESTS = 16  # parts on S3 that are read at a time
_ROWS = 256  # rows that are scanned at a time
T = TypeVar("T")


class Part(NamedTuple):
    """A Parquet file of shards."""

    uri: str
    sha256: str
    rows: int

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """Opens the file for reading in the block, with its digest and footer checked; the footer is read once per process.

        Raises:
            UserError: the file is not the one that the manifest describes, or the block cannot read it.
        """
        remote = storage.is_s3(self.uri)
        with damage(self.uri, MADE_BY), ExitStack() as stack:
            source, size = self._remote() if remote else self._local()
            file = stack.enter_context(pq.ParquetFile(source, metadata=_footers.get(self), pre_buffer=remote))
            if self not in _footers:
                check_columns(file, SCHEMA, size, self.uri, MADE_BY)
                if file.metadata.num_rows != self.rows:
                    raise UserError(f"{self.uri}: has {file.metadata.num_rows} rows, {MANIFEST} says {self.rows}; run {MADE_BY} again")
                _footers[self] = file.metadata
            yield file

    def columns(self, names: list[str]) -> pa.Table:
        """Reads columns of all rows."""
        if storage.is_s3(self.uri) and not set(names) - set(_SMALL):
            return cache.table(f"{self.sha256}-columns", lambda: self._columns(_SMALL)).select(names)
        return self._columns(names)

    def _columns(self, names: list[str]) -> pa.Table:
        with self.open() as file:
            return file.read(names)

    def row_groups(self) -> list["RowGroup"]:
        """Returns the row groups, in order."""
        with self.open() as file:
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        return [RowGroup(self, number, group.num_rows, group.total_byte_size) for number, group in enumerate(groups)]

    def _local(self) -> tuple[Any, int]:
        integrity.check(Path(self.uri), self.sha256)
        return self.uri, Path(self.uri).stat().st_size

    def _remote(self) -> tuple[Any, int]:
        if self not in _objects:
            _objects[self] = integrity.check_object(self.uri, self.sha256)
        return RangedObject(self.uri, *_objects[self]), _objects[self][0]


_SMALL = [name for name in SCHEMA.names if name != "pixels"]
_footers: dict[Part, pq.FileMetaData] = {}  # those that are sound; training opens each part again and again
_objects: dict[Part, tuple[int, str]] = {}  # size and entity tag of those on S3 whose digest is right


class RowGroup(NamedTuple):
    """Rows of a part that are read at once."""

    part: Part
    number: int
    rows: int
    bytes: int

    def read(self) -> pa.Table:
        """Reads the columns that `decode` needs."""
        if storage.is_s3(self.part.uri):
            return cache.table(f"{self.part.sha256}-{self.number}", self._read)
        return self._read()

    def _read(self) -> pa.Table:
        with self.part.open() as file:
            return file.read_row_group(self.number, columns=PACKED, use_threads=False)


@dataclass(frozen=True)
class Shards:
    """One or more folders of shards, read as if they were one."""

    folders: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    digests: tuple[str, ...]  # SHA-256 of each manifest

    @property
    def findings(self) -> list[str]:
        """Names of the labels: those of the first folder in its order, then those that other folders add."""
        return list(dict.fromkeys(name for manifest in self.manifests for name in manifest["findings"]))

    @property
    def bits(self) -> int:
        """Bits per stored pixel."""
        return self.manifests[0]["bits"]

    @property
    def size(self) -> int:
        """Longer side of the images, in pixels."""
        return max(manifest["size"] for manifest in self.manifests)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Parameters of preprocess that decide about the pixels of a file, and whether it is accepted."""
        known = self.manifests[0].get("params", {})
        return {name: known[name] for name in ("size", "bits", "clip_percentile", "views", "body_parts", "text_check") if name in known}

    @property
    def mean_std(self) -> tuple[float, float]:
        """Mean and standard deviation of the pixels of the train split, as fractions of the full range."""
        weights = np.array([max(m["train_pixels"]["count"], 1) for m in self.manifests], float)
        means = np.array([m["train_pixels"]["mean"] for m in self.manifests])
        squares = np.array([m["train_pixels"]["std"] ** 2 for m in self.manifests]) + means**2
        mean = float(np.average(means, weights=weights))
        std = float(max(np.average(squares, weights=weights) - mean**2, 0.0) ** 0.5)
        if not std:
            paths = ", ".join(storage.join(folder, MANIFEST) for folder in self.folders)
            raise UserError(f"{paths}: train_pixels.std is 0, as if all pixels of the train split were alike; run {MADE_BY} again")
        return mean, std

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 by name of input."""
        return dict(zip(self._names, self.digests, strict=True))

    @property
    def upstream(self) -> dict[str, str]:
        """MLflow run id by name of input, where the run record has one."""
        return upstream_run_ids(dict(zip(self._names, self.folders, strict=True)))

    @property
    def _names(self) -> list[str]:
        return ["shards"] if len(self.folders) == 1 else [f"shards.{index}" for index in range(len(self.folders))]

    def parts(self) -> list[Part]:
        """Returns all parts, in order."""
        return [part for folder, manifest in zip(self.folders, self.manifests, strict=True) for part in _parts(folder, manifest)]

    def row_groups(self) -> list[RowGroup]:
        """Returns the row groups of all parts, in order."""
        return [group for groups in _each(Part.row_groups, self.parts()) for group in groups]

    def table(self, columns: list[str]) -> pa.Table:
        """Reads some small columns of all rows, in order. `labels` follow `findings`, NaN where a folder lacks one."""
        tables = []
        for folder, manifest in zip(self.folders, self.manifests, strict=True):
            parts = _each(partial(_read, columns=columns, findings=len(manifest["findings"])), _parts(folder, manifest))
            tables += [_with_labels(part, manifest["findings"], self.findings) for part in parts]
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table().select(columns)

    def scan(self, columns: Sequence[str], wanted: Callable[[str], bool]) -> Iterator[tuple[pa.Table, list[Pixels]]]:
        """Yields the rows whose image_id is wanted, some at a time, with what `decode` reads and further columns, and their images."""
        with ThreadPoolExecutor(threads()) as pool:
            for part in self.parts():
                with part.open() as file:
                    for batch in file.iter_batches(_ROWS, columns=[*PACKED, *columns]):
                        chosen = [wanted(image_id) for image_id in batch["image_id"].to_pylist()]
                        if any(chosen):
                            rows = pa.Table.from_batches([batch]).filter(pa.array(chosen))
                            yield rows, list(pool.map(decode, rows.select(PACKED).to_pylist()))


def map_images(groups: Iterable[RowGroup], change: Callable[[Pixels], T], wanted: Container[int] | None = None) -> Iterator[tuple[int, T]]:
    """Yields the positions of rows, all or those that are wanted, and what `change` makes of their images."""
    start = 0
    with ThreadPoolExecutor(threads()) as pool:
        for group in groups:
            indices = [index for index in range(start, start + group.rows) if wanted is None or index in wanted]
            packed = group.read().take(pa.array([index - start for index in indices], pa.int64())).to_pylist() if indices else []
            yield from zip(indices, pool.map(lambda row: change(decode(row)), packed), strict=True)
            start += group.rows


def open_shards(folders: list[str] | str) -> Shards:
    """Opens output folders of preprocess.

    Raises:
        UserError: a folder is missing, incomplete or of another schema version, or its pixels have other bits than the first's.
    """
    folders = [folders] if isinstance(folders, str) else folders
    read = [read_document(folder, MANIFEST, MADE_BY) for folder in folders]
    manifests = tuple(check_manifest(content, folder) for folder, (content, _) in zip(folders, read, strict=True))
    first = manifests[0]["bits"]
    for folder, manifest in zip(folders, manifests, strict=True):
        if (bits := manifest["bits"]) != first:
            raise UserError(
                f"{folder}: pixels have {bits} bits, those of {folders[0]} have {first}; preprocess both with the same preprocess.bits"
            )
    return Shards(tuple(folders), manifests, tuple(digest for _, digest in read))


def _read(part: Part, columns: list[str], findings: int) -> pa.Table:
    """Reads small columns of a part and checks that no cell is missing."""
    table = part.columns(columns)
    check_nulls(table, SCHEMA, part.uri, MADE_BY)
    if "labels" in columns and pc.any(pc.not_equal(pc.list_value_length(table["labels"]), findings)).as_py():
        raise UserError(f"{part.uri}: has rows with other than {findings} labels; run {MADE_BY} again")
    return table


def _with_labels(table: pa.Table, own: list[str], wanted: list[str]) -> pa.Table:
    """Rearranges the labels of a table from its own findings to the wanted ones."""
    if own == wanted or "labels" not in table.column_names:
        return table
    labels = np.full((len(table), len(wanted)), np.nan, np.float32)
    for row, values in zip(labels, table["labels"].to_pylist(), strict=True):
        row[[wanted.index(name) for name in own]] = values
    return table.set_column(table.column_names.index("labels"), SCHEMA.field("labels"), [list(labels)])


def _each(work: Callable[[Part], T], parts: list[Part]) -> list[T]:
    """Does the same with several parts, those on S3 at a time."""
    if not any(storage.is_s3(part.uri) for part in parts):
        return [work(part) for part in parts]
    with ThreadPoolExecutor(_REQUESTS) as threads:
        return list(threads.map(work, parts))


def _parts(folder: str, manifest: Manifest) -> list[Part]:
    return [Part(storage.join(folder, part["name"]), part["sha256"], part["rows"]) for part in manifest["parts"]]
