"""Reads the output folder of a head and checks everything that does not depend on the head."""

import logging

import pyarrow as pa

from components.common.errors import UserError
from components.common.formats.history import HISTORY, parse_history
from components.common.formats.pages import FIGURES
from components.common.formats.predictions import PREDICTIONS, SPLITS, parse_predictions, rows_of
from components.common.head import HeadOutput
from components.common.runs import storage
from components.common.runs.inputs import read_model, read_record
from components.heads import ANY_HEAD

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

log = logging.getLogger(__name__)


def read_predictions(folder: str) -> tuple[pa.Table, HeadOutput]:
    """Reads the output folder of a head: the rows of predictions.parquet, and everything else.

    Raises:
        UserError: the folder is incomplete, or its predictions cannot be evaluated; names the file.
    """
    description, model_digest = read_model(folder, ANY_HEAD)
    source = storage.join(folder, PREDICTIONS)
    content = storage.read(source)
    table = parse_predictions(content, source)
    head = _head_of(table, source)
    _check_rows(table, source)
    history = storage.join(folder, HISTORY)
    model = HeadOutput(
        folder=folder,
        head=head,
        description=description,
        record={**read_record(folder)},
        history=_columns(parse_history(storage.read(history), history)),
        figures=_figures(folder),
        digests={"predictions": storage.digest(content), "model": model_digest},
    )
    return table, model


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


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
        raise UserError(
            f"{source}: the test split is empty; add patients or raise preprocess.test_fraction, and run preprocess and this stage again"
        )
    if len(patients["test"]) == 1:
        log.warning("evaluate: %s: only one patient is in the test split, so the intervals have no width; add patients", source)


def _figures(folder: str) -> dict[str, bytes]:
    """Returns the PNG files in figures/, if there are any."""
    names = [entry.path for entry in storage.listing(folder) if entry.path.startswith(f"{FIGURES}/") and entry.path.endswith(".png")]
    figures = {name.removeprefix(f"{FIGURES}/"): storage.read(storage.join(folder, *name.split("/"))) for name in names}
    for name, content in figures.items():
        if not content.startswith(PNG_SIGNATURE):
            raise UserError(f"{storage.join(folder, FIGURES, name)}: not a PNG file; remove it or write it again")
    return figures
