"""Opens folders of shards, local or on S3, for reading."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats.manifest import MANIFEST, Manifest, check_manifest
from components.common.formats.shards import SCHEMA
from components.common.runs import cache, storage
from components.common.runs.inputs import read_document, upstream_run_ids


class Part(NamedTuple):
    """A Parquet file of shards."""

    uri: str
    sha256: str

    def open(self) -> Any:
        """Returns a source for pyarrow: the path, or the object from the cache."""
        return cache.opened(self.uri, self.sha256) if storage.is_s3(self.uri) else self.uri


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
        return mean, float(max(np.average(squares, weights=weights) - mean**2, 0.0) ** 0.5)

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
            parts = [pq.read_table(part.open(), columns=columns) for part in _parts(folder, manifest)]
            tables += [_with_labels(part, manifest["findings"], self.findings) for part in parts]
        return pa.concat_tables(tables)


def open_shards(folders: list[str] | str) -> Shards:
    """Opens output folders of preprocess.

    Raises:
        UserError: a folder is missing, incomplete or of another schema version, or its pixels have other bits than the first's.
    """
    folders = [folders] if isinstance(folders, str) else folders
    read = [read_document(folder, MANIFEST, "preprocess") for folder in folders]
    manifests = tuple(check_manifest(content, folder) for folder, (content, _) in zip(folders, read, strict=True))
    first = manifests[0]["bits"]
    for folder, manifest in zip(folders, manifests, strict=True):
        if (bits := manifest["bits"]) != first:
            raise UserError(
                f"{folder}: pixels have {bits} bits, those of {folders[0]} have {first}; preprocess both with the same preprocess.bits"
            )
    return Shards(tuple(folders), manifests, tuple(digest for _, digest in read))


def _with_labels(table: pa.Table, own: list[str], wanted: list[str]) -> pa.Table:
    """Rearranges the labels of a table from its own findings to the wanted ones."""
    if own == wanted or "labels" not in table.column_names:
        return table
    labels = np.full((len(table), len(wanted)), np.nan, np.float32)
    for row, values in zip(labels, table["labels"].to_pylist(), strict=True):
        row[[wanted.index(name) for name in own]] = values
    return table.set_column(table.column_names.index("labels"), SCHEMA.field("labels"), [list(labels)])


def _parts(folder: str, manifest: Manifest) -> list[Part]:
    return [Part(storage.join(folder, part["name"]), part["sha256"]) for part in manifest["parts"]]
