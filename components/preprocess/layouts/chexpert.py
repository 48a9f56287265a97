"""CheXpert (Irvin et al., AAAI 2019): JPEGs of patients, studies and views, with train.csv and valid.csv.

Two forms are published: one folder with train/, valid/ and the tables, and four, `CheXpert-v1.0 batch 1 (validate & csv)` with
the tables and valid/, the others with the patients of train/. An image is known by its patient, study and view, which
`Path` ends with; patients are numbered through both. 1 is positive, 0 negative, -1 uncertain (`preprocess.unknown_labels`
decides), and blank means that the report says nothing, which the paper counts as negative (its table 1), and so do we. Frontal
images have AP/PA as their view, laterals LATERAL: the set does not say which side. Officially valid/, read by three
radiologists, is held out: it becomes the test split, and train/ is divided by hash.
"""

import re
from collections.abc import MutableMapping

from components.common.errors import UserError
from components.common.runs import storage
from components.preprocess import tables
from components.preprocess.index import Index
from components.preprocess.labels import Record, Table, base_name, label_values, storage_of
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED

SPLITS = {"train.csv": UNDIVIDED, "valid.csv": "test"}
BATCH_1 = "CheXpert-v1.0 batch 1 (validate & csv)"
LATERAL = "LATERAL"
FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
_VIEW = re.compile(r"(?:^|/)(patient\d+/study\d+/[^/.][^/]*)$")
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)


class CheXpert(Table):
    """A table whose images are known by patient, study and view."""

    def is_image(self, path: str) -> bool:
        """Whether the path has the form of an image's."""
        return bool(view_of(path))


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the set's tables; valid.csv may be missing.

    Raises:
        UserError: train.csv is missing, or a table has a mistake.
    """
    digests: dict[str, str] = {}
    records, boxes = storage_of(index)
    values = {**label_values(params.unknown_labels), "": 0.0}
    train = tables.find(raw, params.layout, "train.csv", f"{BATCH_1}/train.csv")
    _read(raw, train, values, digests, records)
    valid = train.replace("train.csv", "valid.csv")
    if storage.exists(storage.join(raw, valid)):
        _read(raw, valid, values, digests, records)
    named = {base_name(file): digest for file, digest in digests.items()}  # MLflow's tags take no parentheses
    return CheXpert(FINDINGS, records, boxes, named, key=view_of, complete=False)


def _read(raw: str, file: str, values: dict[str, float], digests: dict[str, str], records: MutableMapping[str, Record]) -> None:
    split = SPLITS[file.rpartition("/")[2]]
    for line, row in tables.table(raw, file, _COLUMNS, digests):
        wrong = next((name for name in FINDINGS if row[name] not in values), None)
        if wrong:
            raise UserError(f"{file} line {line}: {wrong} is {row[wrong]!r}; it must be 1, 0, -1 or blank")
        image = view_of(row["Path"])
        if not image:
            raise UserError(f"{file} line {line}: the path {row['Path']!r} does not end in patientN/studyN/...; download the file again")
        if image in records:
            raise UserError(f"{file} line {line}: names the same image as line {records[image].line} of {records[image].file}; remove one")
        labels = tuple(values[row[name]] for name in FINDINGS)
        view = LATERAL if row["Frontal/Lateral"] == "Lateral" else row["AP/PA"]
        records[image] = Record(line, labels, image.partition("/")[0], view, row["Sex"], row["Age"], split, file)


def view_of(path: str) -> str:
    """The end of a path from the patient on; empty for a path of another form."""
    match = _VIEW.search(path)
    return match[1] if match else ""
