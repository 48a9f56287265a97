"""Reads the output folder of a head and checks everything that does not depend on the head."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats.documents import RUN_RECORD
from components.common.formats.model import FIGURES
from components.common.formats.predictions import COLUMNS, PREDICTIONS, SPLITS, rows_of
from components.common.head import HeadOutput
from components.common.runs import storage
from components.common.runs.inputs import read_model
from components.heads import ANY_HEAD

HISTORY = "history.csv"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_predictions(folder: str) -> tuple[pa.Table, HeadOutput]:
    """Reads the output folder of a head: the rows of predictions.parquet, and everything else.

    Raises:
        UserError: the folder is incomplete, or its predictions cannot be evaluated; names the file.
    """
    description, model_digest = read_model(folder, ANY_HEAD)
    source = storage.join(folder, PREDICTIONS)
    content = storage.read(source)
    table = _parse(content, source)
    head = _head_of(table, source)
    _check_rows(table, source)
    model = HeadOutput(
        folder=folder,
        head=head,
        description=description,
        record=json.loads(storage.read(storage.join(folder, RUN_RECORD))),
        history=read_history(storage.join(folder, HISTORY)),
        figures=_figures(folder),
        digests={"predictions": storage.digest(content), "model": model_digest},
    )
    return table, model


def read_history(source: str) -> dict[str, list[float]]:
    """Returns the columns of a history.csv; an empty cell is NaN.

    Raises:
        UserError: it cannot be read, or holds something else than numbers below a header.
    """
    rows = csv.DictReader(io.StringIO(storage.read(source).decode("utf-8", "replace")))
    try:
        columns = {name: [] for name in rows.fieldnames or []}  # type: dict[str, list[float]]
        for row in rows:
            for name, values in columns.items():
                values.append(float(row[name] or "nan"))
    except ValueError as error:
        raise UserError(f"{source}: line {rows.line_num} is not numbers ({error}); run the stage that wrote it again") from None
    return columns


def _parse(content: bytes, source: str) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source}: not a Parquet file ({reason}); run the stage that wrote it again") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        columns = f"column{'s' * (len(missing) > 1)} {', '.join(missing)}"
        raise UserError(f"{source}: lacks the {columns}; run the stage that wrote it again")
    return table


def _head_of(table: pa.Table, source: str) -> str:
    heads = sorted(str(value) for value in table["task"].unique().to_pylist())
    if not heads:
        raise UserError(f"{source}: has no rows; run the stage that wrote it with images in the val and test splits")
    if len(heads) > 1:
        raise UserError(f"{source}: holds several tasks ({', '.join(heads)}); write one file per head")
    return heads[0]


def _check_rows(table: pa.Table, source: str) -> None:
    """Refuses what would make the numbers wrong: repeated images, patients in both splits, an empty test split."""
    images = table["image_id"].to_pylist()
    if len(set(images)) < len(images):
        raise UserError(f"{source}: {len(images) - len(set(images))} rows repeat the image_id of another; evaluate one row per image")
    if strangers := sorted({str(name) for name in table["split"].unique().to_pylist()} - set(SPLITS)):
        raise UserError(f"{source}: holds the split {strangers[0]}; only val and test are evaluated")
    patients = {name: set(rows_of(table, name)["patient_id"].to_pylist()) for name in SPLITS}
    if shared := len(patients["val"] & patients["test"]):
        plural = "patients are" if shared > 1 else "patient is"
        raise UserError(
            f"{source}: {shared} {plural} in both val and test, so the test split is leaked; run preprocess and this stage again"
        )
    if not patients["test"]:
        raise UserError(f"{source}: the test split is empty; raise preprocess.test_fraction or add patients")


def _figures(folder: str) -> dict[str, bytes]:
    """Returns the PNG files in figures/, if there are any."""
    names = [entry.path for entry in storage.listing(folder) if entry.path.startswith(f"{FIGURES}/") and entry.path.endswith(".png")]
    figures = {name.removeprefix(f"{FIGURES}/"): storage.read(storage.join(folder, *name.split("/"))) for name in names}
    for name, content in figures.items():
        if not content.startswith(PNG_SIGNATURE):
            raise UserError(f"{storage.join(folder, FIGURES, name)}: not a PNG file; remove it or write it again")
    return figures
