"""What evaluate reads: the predictions of a model on val and test, checked, and what is known of how it was made."""

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common import storage
from components.common.errors import UserError
from components.common.job import RUN_FILE, read_input
from components.common.metrics import Floats, Integers, patient_indices

PREDICTIONS = "predictions.parquet"
HISTORY = "history.csv"
DESCRIPTION = "model.json"
COLUMNS = ("image_id", "patient_id", "split", "task")
SPLITS = ("val", "test")
TASKS = ("classify",)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Split:
    """The images of one split."""

    targets: Floats
    """(n, F), 1, 0 or NaN (unknown)."""
    scores: Floats
    """(n, F), probabilities."""
    patients: Integers
    """(n,), index of each image's patient, 0 ... P - 1."""
    image_ids: npt.NDArray[np.str_]
    """(n,), to tell whether two models saw the same images."""

    @property
    def patient_count(self) -> int:
        """P."""
        return len(np.unique(self.patients))


@dataclass(frozen=True)
class Predictions:
    """The output folder of a model, read."""

    task: str
    findings: list[str]
    val: Split
    test: Split
    model: dict[str, Any]
    """Content of model.json."""
    record: dict[str, Any]
    """Content of run.json."""
    history: dict[str, list[float]]
    """Columns of history.csv."""
    figures: dict[str, bytes]
    """Pictures by file name, PNG."""
    digests: dict[str, str]
    """SHA-256 of `predictions` and `model`."""


def read_predictions(folder: str) -> Predictions:
    """Reads and checks the output folder of a downstream stage.

    Raises:
        UserError: the folder is incomplete, or its predictions cannot be evaluated; names the file.
    """
    model, model_digest = read_input(folder, DESCRIPTION, "classify")
    source = storage.join(folder, PREDICTIONS)
    content = storage.read(source)
    table = _parse(content, source)
    task = _task(table, source)
    findings = _findings(table, model, storage.join(folder, DESCRIPTION))
    _check_rows(table, source)
    return Predictions(
        task=task,
        findings=findings,
        val=_split(table, "val", findings, source),
        test=_split(table, "test", findings, source),
        model=model,
        record=json.loads(storage.read(storage.join(folder, RUN_FILE))),
        history=read_history(storage.join(folder, HISTORY)),
        figures=_figures(folder),
        digests={"predictions": storage.digest(content), "model": model_digest},
    )


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
        raise UserError(f"{source}: not a Parquet file ({str(error).splitlines()[0]}); run classify again") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise UserError(f"{source}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; run classify again")
    return table


def _task(table: pa.Table, source: str) -> str:
    tasks = sorted(str(value) for value in table["task"].unique().to_pylist())
    if not tasks:
        raise UserError(f"{source}: has no rows; run classify with images in the val and test splits")
    if len(tasks) > 1:
        raise UserError(f"{source}: holds several tasks ({', '.join(tasks)}); write one file a task")
    if tasks[0] not in TASKS:
        raise UserError(f"{source}: predictions of the task {tasks[0]}, which evaluate does not know; known: {', '.join(TASKS)}")
    return tasks[0]


def _findings(table: pa.Table, model: dict[str, Any], description: str) -> list[str]:
    findings = model.get("findings")
    if not isinstance(findings, list) or not findings:
        raise UserError(f"{description}: names no findings; run classify again")
    wanted = [f"{kind}_{finding}" for finding in findings for kind in ("score", "target")]
    if missing := [column for column in wanted if column not in table.column_names]:
        raise UserError(f"{description}: its findings need the column {missing[0]}, which {PREDICTIONS} lacks; run classify again")
    return [str(finding) for finding in findings]


def _check_rows(table: pa.Table, source: str) -> None:
    """Refuses what would make the numbers wrong: repeated images, and patients on both sides of the fence."""
    images = table["image_id"].to_pylist()
    if len(set(images)) < len(images):
        raise UserError(f"{source}: {len(images) - len(set(images))} rows repeat the image_id of another; evaluate one row an image")
    if strangers := sorted({str(name) for name in table["split"].unique().to_pylist()} - set(SPLITS)):
        raise UserError(f"{source}: holds the split {strangers[0]}; only val and test are evaluated")
    patients = {name: set(table.filter(pc.equal(table["split"], name))["patient_id"].to_pylist()) for name in SPLITS}
    if shared := len(patients["val"] & patients["test"]):
        plural = "patients are" if shared > 1 else "patient is"
        raise UserError(f"{source}: {shared} {plural} in both val and test, so the test split is leaked; run preprocess and classify again")


def _split(table: pa.Table, name: str, findings: list[str], source: str) -> Split:
    rows = table.filter(pc.equal(table["split"], name))
    if name == "test" and not rows.num_rows:
        raise UserError(f"{source}: the test split is empty; raise preprocess.test_fraction or add patients")
    scores = _matrix(rows, [f"score_{finding}" for finding in findings])
    targets = _matrix(rows, [f"target_{finding}" for finding in findings])
    if not ((scores >= 0) & (scores <= 1)).all():
        raise UserError(f"{source}: the {name} split has scores that are not probabilities; run classify again")
    if not (np.isnan(targets) | np.isin(targets, (0, 1))).all():
        raise UserError(f"{source}: the {name} split has targets other than 1, 0 and unknown; run classify again")
    if name == "test" and np.isnan(targets).all():
        raise UserError(f"{source}: no patient of the test split has a known label; add labels.csv and run preprocess again")
    return Split(targets, scores, patient_indices(rows["patient_id"].to_pylist()), np.array(rows["image_id"].to_pylist(), dtype=np.str_))


def _matrix(rows: pa.Table, columns: list[str]) -> Floats:
    """(n, F) float64, null as NaN."""
    return np.stack([rows[name].to_numpy().astype(np.float64) for name in columns], axis=1)


def _figures(folder: str) -> dict[str, bytes]:
    """The PNG files below figures/, of which there may be none."""
    names = [entry.path for entry in storage.listing(folder) if entry.path.startswith("figures/") and entry.path.endswith(".png")]
    figures = {name.removeprefix("figures/"): storage.read(storage.join(folder, *name.split("/"))) for name in names}
    for name, content in figures.items():
        if not content.startswith(PNG_SIGNATURE):
            raise UserError(f"{storage.join(folder, 'figures', name)}: not a PNG file; remove it or write it again")
    return figures
