"""One folder per class, as in the paediatric data set of Kermany et al. (Cell 2018, Mendeley Data v2).

`CLASS/...`, or `train/CLASS/...` beside `val/` and `test/`; every class becomes a label. Kermany's file names contain a patient
number: person123_bacteria_45.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-1234-0001.jpeg, and in a later release
BACTERIA-1008087-0001.jpeg (disease, patient, image of the patient). Here one number is one patient, whatever the rest of the name
says. If the authors numbered bacterial and viral cases separately, some patients are merged, which is harmless; the opposite
mistake would put a patient in two splits. The folders of the official split share numbers, so that it is used on request only, and a
number then counts within its folder. An image with any other file name is a patient of its own.
"""

import re
from dataclasses import dataclass

from components.common.errors import UserError
from components.common.runs import storage
from components.preprocess.index import Index
from components.preprocess.labels import Record, Table, base_name, is_leftover
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder name in lower case -> official split."""
_PATIENT = re.compile(r"(?:^|-)(IM-\d+)-\d+|^(person\d+)_|^(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Folders(Table):
    """A table that is derived from the paths."""

    within_split: bool = False  # whether a patient number counts within its folder of the official split

    def is_image(self, path: str) -> bool:
        """Whether the file is in the folder of a class."""
        return not is_leftover(path) and class_of(path) is not None

    def record(self, path: str, uid: str) -> Record | None:
        """Returns what the path says."""
        of_image = (class_of(path) or "").casefold()
        labels = tuple(float(finding.casefold() == of_image) for finding in self.findings)
        patient = patient_of(path)
        if patient and self.within_split:
            patient = f"{path.partition('/')[0]}/{patient}"
        return Record(0, labels, patient, "", "", "", file="file name")


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the names of the folders; raises UserError without a folder of a class, or of the official split if asked for."""
    classes, splits = dict[str, str](), {}
    for entry in storage.listing(raw):
        found = None if is_leftover(entry.path) else class_of(entry.path)
        if found:
            classes[found.casefold()] = min(found, classes.get(found.casefold(), found))  # Normal and NORMAL are one class
            top = entry.path.partition("/")[0]
            splits.update({top: SPLITS[top.lower()]} if top.lower() in SPLITS else {})
    if not classes:
        raise UserError(f"{raw}: no files in CLASS/ or train/CLASS/; preprocess.layout `folders` expects a folder for each class")
    official = params.split == "official"
    if official and not splits:
        raise UserError(f"{raw}: no folders train, val or test, so no official split; set preprocess.split to hash")
    if "val" not in splits.values():
        splits = {folder: UNDIVIDED if split == "train" else split for folder, split in splits.items()}
    return Folders(tuple(sorted(classes.values())), folder_splits=splits, complete=False, within_split=official)


def class_of(path: str) -> str | None:
    """Returns the first folder below that of the split; None for a file outside of any."""
    parts = path.split("/")[:-1]
    if parts and parts[0].lower() in SPLITS:
        parts = parts[1:]
    return parts[0] if parts else None


def patient_of(path: str) -> str:
    """Returns the patient number of a Kermany file name, in the authors' case; empty for another."""
    match = _PATIENT.search(base_name(path))
    found = match[match.lastindex or 0].lower() if match else ""
    return found.replace("im-", "IM-")
