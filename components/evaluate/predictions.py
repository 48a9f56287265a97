"""What evaluate reads of any task: a stage's predictions on val and test, checked, and what is known of how they were made."""

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats.documents import RUN_RECORD
from components.common.runs import storage
from components.common.runs.inputs import read_document
from components.common.statistics.arrays import Floats

PREDICTIONS = "predictions.parquet"
HISTORY = "history.csv"
DESCRIPTION = "model.json"
COLUMNS = ("image_id", "patient_id", "split", "task")
SPLITS = ("val", "test")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Model:
    """The output folder of a downstream stage, but for the rows of its predictions."""

    folder: str
    """For messages only: it differs from place to place."""
    task: str
    description: dict[str, Any]
    """Content of model.json."""
    record: dict[str, Any]
    """Content of run.json."""
    history: dict[str, list[float]]
    """Columns of history.csv."""
    figures: dict[str, bytes]
    """Pictures by file name, PNG."""
    digests: dict[str, str]
    """SHA-256 of `predictions` and `model`."""

    @property
    def source(self) -> str:
        """Where the predictions are, for messages."""
        return storage.join(self.folder, PREDICTIONS)


def read_predictions(folder: str) -> tuple[pa.Table, Model]:
    """Reads the output folder of a downstream stage and checks what does not depend on the task.

    Returns:
        The rows of predictions.parquet, some of them of the test split; and everything else.

    Raises:
        UserError: the folder is incomplete, or its predictions cannot be evaluated; names the file.
    """
    description, model_digest = read_document(folder, DESCRIPTION, "classify, detect or invert")
    source = storage.join(folder, PREDICTIONS)
    content = storage.read(source)
    table = _parse(content, source)
    task = _task(table, source)
    _check_rows(table, source)
    model = Model(
        folder=folder,
        task=task,
        description=description,
        record=json.loads(storage.read(storage.join(folder, RUN_RECORD))),
        history=read_history(storage.join(folder, HISTORY)),
        figures=_figures(folder),
        digests={"predictions": storage.digest(content), "model": model_digest},
    )
    return table, model


def rows_of(table: pa.Table, split: str) -> pa.Table:
    """The rows of one split."""
    return table.filter(pc.equal(table["split"], split))


def matrix(rows: pa.Table, columns: list[str]) -> Floats:
    """(n, F) float64 of the named columns, null as NaN."""
    return np.stack([rows[name].to_numpy().astype(np.float64) for name in columns], axis=1)


def read_history(source: str) -> dict[str, list[float]]:
    """The columns of a history.csv; an empty cell is NaN.

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


def _task(table: pa.Table, source: str) -> str:
    tasks = sorted(str(value) for value in table["task"].unique().to_pylist())
    if not tasks:
        raise UserError(f"{source}: has no rows; run the stage that wrote it with images in the val and test splits")
    if len(tasks) > 1:
        raise UserError(f"{source}: holds several tasks ({', '.join(tasks)}); write one file a task")
    return tasks[0]


def _check_rows(table: pa.Table, source: str) -> None:
    """Refuses what would make the numbers wrong: repeated images, patients on both sides of the fence, nothing to test on."""
    images = table["image_id"].to_pylist()
    if len(set(images)) < len(images):
        raise UserError(f"{source}: {len(images) - len(set(images))} rows repeat the image_id of another; evaluate one row an image")
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
    """The PNG files below figures/, of which there may be none."""
    names = [entry.path for entry in storage.listing(folder) if entry.path.startswith("figures/") and entry.path.endswith(".png")]
    figures = {name.removeprefix("figures/"): storage.read(storage.join(folder, *name.split("/"))) for name in names}
    for name, content in figures.items():
        if not content.startswith(PNG_SIGNATURE):
            raise UserError(f"{storage.join(folder, 'figures', name)}: not a PNG file; remove it or write it again")
    return figures
