"""Opens folders of shards, local or on S3, for reading."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats.manifest import MANIFEST, Manifest, check_manifest
from components.common.formats.parquet import check_columns, check_nulls, damage
from components.common.formats.shards import SCHEMA
from components.common.runs import cache, integrity, storage
from components.common.runs.inputs import read_document, upstream_run_ids

MADE_BY = "preprocess"


class Part(NamedTuple):
    """A Parquet file of shards."""

    uri: str
    sha256: str
    rows: int

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """Opens the file, or the object from the cache, for reading in the block, with its digest and footer checked.

        Raises:
            UserError: the file is not the one that the manifest describes, or the block cannot read it.
        """
        with damage(self.uri, MADE_BY), ExitStack() as stack:
            if storage.is_s3(self.uri):
                source: Any = stack.enter_context(cache.opened(self.uri, self.sha256))
                size = os.fstat(source.fileno()).st_size if hasattr(source, "name") else len(source.getbuffer())
            else:
                integrity.check(Path(self.uri), self.sha256)
                source, size = self.uri, Path(self.uri).stat().st_size
            file = stack.enter_context(pq.ParquetFile(source))
            if self not in _checked:
                check_columns(file, SCHEMA, size, self.uri, MADE_BY)
                if file.metadata.num_rows != self.rows:
                    raise UserError(f"{self.uri}: has {file.metadata.num_rows} rows, {MANIFEST} says {self.rows}; run {MADE_BY} again")
                _checked.add(self)
            yield file


_checked: set[Part] = set()  # those whose footer is sound; training opens each part again and again


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

    def table(self, columns: list[str]) -> pa.Table:
        """Reads some small columns of all rows, in order. `labels` follow `findings`, NaN where a folder lacks one."""
        tables = []
        for folder, manifest in zip(self.folders, self.manifests, strict=True):
            parts = [_read(part, columns, len(manifest["findings"])) for part in _parts(folder, manifest)]
            tables += [_with_labels(part, manifest["findings"], self.findings) for part in parts]
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table().select(columns)


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
    with part.open() as file:
        table = file.read(columns)
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


def _parts(folder: str, manifest: Manifest) -> list[Part]:
    return [Part(storage.join(folder, part["name"]), part["sha256"], part["rows"]) for part in manifest["parts"]]
