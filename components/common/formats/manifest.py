"""`manifest.json`: what is in a folder of shards.

It holds nothing that changes from run to run, and the digests of the files beside it: a stage that depends on the shards can depend
on the manifest alone.
"""

from typing import Any, TypedDict

from components.common.errors import UserError
from components.common.formats.documents import check_document
from components.common.formats.shards import MAX_SIDE, SCHEMA_VERSION

MANIFEST = "manifest.json"
_READ = ("findings", "size", "bits", "train_pixels", "parts")  # entries without which the shards cannot be read


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
    counts: dict[str, Any]  # of files, rows and images by outcome; of images, patients, labels and boxes by split; `skipped` if not 0
    patient_id_from: dict[str, int]  # number of rows by what identifies their patient
    patient_id_invented: int  # number of those whose patient is not known, so that the study or the file stands in
    input: str  # SHA-256 over paths and digests of the raw files
    parts: list[PartEntry]


def check_manifest(content: dict[str, Any], folder: str) -> Manifest:
    """Checks that this code can read the shards of a manifest in a folder.

    Raises:
        UserError: the shards have another schema version, or the manifest is damaged.
    """
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"{folder}: shards of schema version {version}, this code reads {SCHEMA_VERSION}; run preprocess again")
    path = f"{folder.rstrip('/')}/{MANIFEST}"
    found = check_document(content, Manifest, path, "preprocess", _READ)
    pixels = found["train_pixels"]
    for wrong, what in (
        (found["bits"] not in (8, 16), f"bits is {found['bits']}, not 8 or 16"),
        (not 0 < found["size"] <= MAX_SIDE, f"size is {found['size']}, not 1 to {MAX_SIDE}"),
        (not 0 <= pixels["mean"] <= 1, f"train_pixels.mean is {pixels['mean']}, not a fraction"),
        (not 0 <= pixels["std"] <= 1, f"train_pixels.std is {pixels['std']}, not a fraction"),
        (pixels["count"] < 0, f"train_pixels.count is {pixels['count']}"),
        (not found["parts"] and not found.get("counts", {}).get("skipped"), "parts is empty"),
        (any("/" in part["name"] for part in found["parts"]), "parts lie in other folders"),
        (len(set(found["findings"])) < len(found["findings"]), "findings has a name twice"),
    ):
        if wrong:
            raise UserError(f"{path}: {what}; run preprocess again")
    return found
