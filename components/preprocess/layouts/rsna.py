"""RSNA Pneumonia Detection Challenge 2018: DICOM files in stage_2_train_images/, two tables.

`stage_2_detailed_class_info.csv` gives each image one of three classes; `stage_2_train_labels.csv` has a row for each box of
lung opacity, in pixels of the stored image, or one row without a box. The files' PatientID is the image's own: the set does
not say which images share a patient. Officially `stage_2_test_images/` is for testing; its labels were never published.
"""

from components.common.errors import UserError
from components.preprocess import tables
from components.preprocess.index import Index
from components.preprocess.labels import Record, Table, add_box, parse_box, stem, storage_of
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED

CLASSES = "stage_2_detailed_class_info.csv"
BOXES = "stage_2_train_labels.csv"
OPACITY = "Lung Opacity"
FINDINGS = (OPACITY, "No Lung Opacity / Not Normal", "Normal")
FOLDER_SPLITS = {"stage_2_train_images": UNDIVIDED, "stage_2_test_images": "test"}
_BOX_COLUMNS = ("patientId", "x", "y", "width", "height", "Target")


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the set's tables.

    Raises:
        UserError: a table is missing, has a mistake, or they contradict each other.
    """
    digests: dict[str, str] = {}
    records, boxes = storage_of(index)
    tables.find(raw, params.layout, CLASSES)
    tables.find(raw, params.layout, BOXES)
    for line, row in tables.table(raw, CLASSES, ("patientId", "class"), digests):
        tables.check_known(f"{CLASSES} line {line}", [row["class"]], FINDINGS)
        labels = tuple(float(finding == row["class"]) for finding in FINDINGS)
        before = records.setdefault(row["patientId"], Record(line, labels, row["patientId"], "", "", "", file=CLASSES))
        if before.labels != labels:
            raise UserError(f"{CLASSES} line {line}: another class than in line {before.line} for the same image; download it again")
    for line, row in tables.table(raw, BOXES, _BOX_COLUMNS, digests):
        if row["Target"] == "1":
            cells = tuple(row[name] for name in _BOX_COLUMNS[1:5])
            add_box(boxes, row["patientId"], parse_box(line, OPACITY, cells, BOXES))
    return Table(
        FINDINGS, records, boxes, digests, key=stem, folders=tuple(FOLDER_SPLITS), folder_splits=FOLDER_SPLITS, complete=False
    )  # fmt: skip
