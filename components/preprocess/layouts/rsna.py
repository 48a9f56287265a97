"""RSNA Pneumonia Detection Challenge 2018: DICOM files in stage_2_train_images/, two tables.

`stage_2_detailed_class_info.csv` gives each image one of three classes; `stage_2_train_labels.csv` has one row per box of lung
opacity, in pixels of the stored image, or one row without a box. PatientID is different in each file: the data set does not say
which images share a patient. The official test images are in `stage_2_test_images/`; their labels were never published.
"""

from components.common.errors import UserError
from components.preprocess.index import Index
from components.preprocess.labels import Record, Table, parse_box, stem
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED
from components.preprocess.tables import Tables, check_known

CLASSES = "stage_2_detailed_class_info.csv"
BOXES = "stage_2_train_labels.csv"
OPACITY = "Lung Opacity"
FINDINGS = (OPACITY, "No Lung Opacity / Not Normal", "Normal")
FOLDER_SPLITS = {"stage_2_train_images": UNDIVIDED, "stage_2_test_images": "test"}
_BOX_COLUMNS = ("patientId", "x", "y", "width", "height", "Target")


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the tables; raises UserError if one is missing or has a mistake, or they contradict each other."""
    tables = Tables(raw, "rsna", index)
    tables.find(CLASSES)
    tables.find(BOXES)
    for line, row in tables.rows(CLASSES, ("patientId", "class")):
        check_known(f"{CLASSES} line {line}", [row["class"]], FINDINGS)
        labels = tuple(float(finding == row["class"]) for finding in FINDINGS)
        first = tables.records.setdefault(row["patientId"], Record(line, labels, row["patientId"], "", "", "", file=CLASSES))
        if first.labels != labels:
            raise UserError(f"{CLASSES} line {line}: another class than in line {first.line} for the same image; download it again")
    for line, row in tables.rows(BOXES, _BOX_COLUMNS):
        if row["Target"] == "1":
            tables.add_box(row["patientId"], parse_box(line, OPACITY, [row[name] for name in _BOX_COLUMNS[1:5]], BOXES))
    folders = tuple(FOLDER_SPLITS)
    records, boxes, digests = tables.records, tables.boxes, tables.digests
    return Table(FINDINGS, records, boxes, digests, stem, folders, FOLDER_SPLITS, unlabelled=folders[1:], complete=False)
