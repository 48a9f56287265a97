"""`quarantine.parquet`: the files that preprocess refused, one row per file, and the closed list of reasons.

The only output with raw paths: it never goes to MLflow.
"""

from collections.abc import Iterable
from enum import StrEnum
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.formats.atomic import replaced

QUARANTINE = "quarantine.parquet"
SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("path", "reason", "detail")])
_ROWS_PER_GROUP = 10_000


class Reason(StrEnum):
    """Why a file is quarantined, in the order in which the checks are made."""

    NOT_A_FILE = "not_a_file"  # a link that leads nowhere or back, a named pipe, a socket or a device
    NOT_DICOM = "not_dicom"  # neither DICOM, PNG nor JPEG
    NO_PIXELS = "no_pixels"
    WRONG_MODALITY = "wrong_modality"
    WRONG_BODY_PART = "wrong_body_part"
    WRONG_VIEW = "wrong_view"
    UNSUPPORTED_PHOTOMETRIC = "unsupported_photometric"
    BURNED_IN_TEXT = "burned_in_text"
    UNREADABLE = "unreadable"  # truncated, undecodable, or pixel data that does not fit the header
    IMPLAUSIBLE_SIZE = "implausible_size"
    BLANK_IMAGE = "blank_image"
    CONFLICTING_UID = "conflicting_uid"  # other files hold other images under its SOPInstanceUID


def write_quarantine(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Writes the rows, which need not fit into memory."""
    remaining = iter(rows)
    with replaced(path) as scratch, pq.ParquetWriter(scratch, SCHEMA, compression="zstd") as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))
