"""`manifest.json`: what is in a folder of shards.

It holds nothing that changes from run to run, and the digests of the files beside it: a stage that depends on the shards can depend
on the manifest alone.
"""

from typing import Any, TypedDict, cast

from components.common.errors import UserError
from components.common.formats.shards import SCHEMA_VERSION

MANIFEST = "manifest.json"


class Origin(TypedDict):
    """The part of a manifest that all partitions of a cohort share."""

    schema_version: int
    findings: list[str]  # names of the labels, in the order of the column `labels`
    pseudonym_key_id: str
    labels: dict[str, str]  # SHA-256 by name of the tables with labels and boxes
    params: dict[str, Any]  # the section `preprocess`


class PixelStatistics(TypedDict):
    """The pixels of a split."""

    count: int
    mean: float  # as a fraction of the full range
    std: float  # the same


class PartEntry(TypedDict):
    """One Parquet file."""

    name: str
    rows: int
    sha256: str


class Manifest(Origin):
    """The content of a manifest."""

    size: int  # longer side of the images, in pixels
    bits: int  # Bits per stored pixel
    train_pixels: PixelStatistics
    counts: dict[str, Any]  # files, rows, quarantined files, duplicates and rows in no table; images, patients, labels and boxes by split
    patient_id_from: dict[str, int]  # number of rows by what identifies their patient
    patient_id_invented: int  # number of those whose patient is not known, so that the study or the file stands in
    input: str  # SHA-256 over paths and digests of the raw files
    parts: list[PartEntry]


def check_manifest(content: dict[str, Any], folder: str) -> Manifest:
    """Checks that this code can read the shards of a manifest in a folder.

    Raises:
        UserError: the shards have another schema version.
    """
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"{folder}: shards of schema version {version}, this code reads {SCHEMA_VERSION}; run preprocess again")
    return cast(Manifest, content)
