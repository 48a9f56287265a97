"""CheXpert (Irvin et al., AAAI 2019): JPEGs by patient, study and view, with train.csv and valid.csv.

Two forms are published: one folder with train/, valid/ and the tables, and four folders, of which `CheXpert-v1.0 batch 1
(validate & csv)` holds the tables and valid/, and the others the patients of train/. An image is named by the end of its `Path`
(patient, study and view); patient numbers are unique across both. 1 is positive, 0 negative, -1 uncertain
(`preprocess.unknown_labels` decides), and blank means that the report does not mention the finding, which counts as negative as
in the paper (its table 1). The view of frontal images is AP/PA; that of lateral ones is LATERAL, since the side is unknown. The
official split holds out valid/, read by three radiologists: it becomes the test split, and train/ is divided by hash.
"""

import re

from components.common.errors import UserError
from components.preprocess.index import Index
from components.preprocess.labels import Record, Table, base_name, is_leftover, label_values, parse_labels
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED
from components.preprocess.tables import Tables

SPLITS = {"train.csv": UNDIVIDED, "valid.csv": "test"}
BATCH_1 = "CheXpert-v1.0 batch 1 (validate & csv)"
LATERAL = "LATERAL"
FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
_NAME = re.compile(r"(?:^|/)(patient\d+/study\d+/[^/.][^/]*)$", re.IGNORECASE)
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)


class CheXpert(Table):
    """A table whose images are named by patient, study and view."""

    def is_image(self, path: str) -> bool:
        """Whether the path ends in patient, study and view."""
        return not is_leftover(path) and bool(name_of(path))


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the tables; raises UserError if one has a mistake, or train.csv is missing (valid.csv is optional)."""
    tables = Tables(raw, "chexpert", index)
    train = tables.find("train.csv", f"{BATCH_1}/train.csv")
    valid = train.replace("train.csv", "valid.csv")
    values = {**label_values(params.unknown_labels), "": 0.0}
    for file in (train, valid) if tables.exists(valid) else (train,):
        for line, row in tables.rows(file, _COLUMNS):
            labels = parse_labels(f"{file} line {line}", row, FINDINGS, values)
            image = name_of(row["Path"])
            if not image:
                raise UserError(f"{file} line {line}: {row['Path']!r} does not end in patientN/studyN/...; download the file again")
            patient, split = image.partition("/")[0], SPLITS[base_name(file)]
            view = LATERAL if row["Frontal/Lateral"] == "Lateral" else row["AP/PA"]
            tables.add_record(image, Record(line, labels, patient, view, row["Sex"], row["Age"], split, file))
    digests = {base_name(file): digest for file, digest in tables.digests.items()}  # MLflow tags must not contain parentheses
    return CheXpert(FINDINGS, tables.records, tables.boxes, digests, key=name_of, complete=False)


def name_of(path: str) -> str:
    """Returns the end of a path from the patient on; empty for a path of another form."""
    match = _NAME.search(path)
    return match[1] if match else ""
