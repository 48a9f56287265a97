"""VinDr-CXR (Nguyen et al., Sci Data 2022): DICOM files in train/ and test/, each read by several radiologists.

Two forms are published. PhysioNet's has annotations/image_labels_{train,test}.csv, a row for each image and reader with a
column for each finding, and annotations/annotations_{train,test}.csv with their boxes; the test set's is one consensus. Kaggle's has
train.csv alone, with a row for each box, or for "No finding", of a reader; its test/ has no labels.

Each training image has three readers. `preprocess.readers` makes one label of their opinions: `majority`, more than half
of the image's readers saw it, or `any`, one did. An image keeps the boxes of the findings that it has by this rule; boxes
of one finding that overlap by half (intersection over union) are taken for the same one and become their mean. Officially
test/ is for testing; train/ is divided between training and validation by hash.
"""

from collections import defaultdict
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field

import numpy as np

from components.common.errors import UserError
from components.common.runs import storage
from components.preprocess import tables
from components.preprocess.index import Index
from components.preprocess.labels import Box, Record, Table, parse_box, stem, storage_of
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED

FOLDER_SPLITS = {"train": UNDIVIDED, "test": "test"}
NO_FINDING = "No finding"
KAGGLE = "train.csv"
KAGGLE_FINDINGS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration", "Lung Opacity",
    "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", NO_FINDING,
)  # fmt: skip
PHYSIONET_LABELS = ("annotations/image_labels_train.csv", "annotations/image_labels_test.csv")
PHYSIONET_BOXES = ("annotations/annotations_train.csv", "annotations/annotations_test.csv")
_RENAMED = {"Other disease": "Other diseases"}
"""The published tables of the training and the test set differ in one name."""
_BOX_COLUMNS = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
_SEEN = {"1": True, "1.0": True, "0": False, "0.0": False, "": False}
_SAME_BOX = 0.5


@dataclass
class Opinions:
    """What the readers of one image said."""

    line: int
    file: str
    readers: set[str] = field(default_factory=set)
    seen: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Readers by finding."""

    def has(self, finding: str, rule: str) -> bool:
        """Whether the image has the finding, by `majority` or `any`."""
        votes = len(self.seen[finding])
        return votes > 0 if rule == "any" else 2 * votes > len(self.readers)


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the tables of either form.

    Raises:
        UserError: a table is missing, or has a mistake.
    """
    digests: dict[str, str] = {}
    if storage.exists(storage.join(raw, PHYSIONET_LABELS[0])):
        findings, opinions = _read_labels(raw, digests)
        drawn = _read_boxes(raw, [tables.find(raw, "vindr", PHYSIONET_BOXES[0]), PHYSIONET_BOXES[1]], findings, digests)
    else:
        tables.find(raw, "vindr", KAGGLE, PHYSIONET_LABELS[0])
        findings, opinions = KAGGLE_FINDINGS, _read_kaggle(raw, digests)
        drawn = _read_boxes(raw, [KAGGLE], findings, digests)
    records, boxes = storage_of(index)
    _fill(findings, opinions, drawn, params.readers, records, boxes)
    return Table(
        findings, records, boxes, digests, key=stem, folders=tuple(FOLDER_SPLITS), folder_splits=FOLDER_SPLITS, complete=False
    )  # fmt: skip


def _fill(
    findings: tuple[str, ...],
    opinions: dict[str, Opinions],
    drawn: dict[str, list[Box]],
    rule: str,
    records: MutableMapping[str, Record],
    boxes: MutableMapping[str, list[Box]],
) -> None:
    for image, said in opinions.items():
        has = {finding: said.has(finding, rule) for finding in findings}
        records[image] = Record(said.line, tuple(float(has[finding]) for finding in findings), "", "", "", "", file=said.file)
        kept = joined(box for box in drawn.get(image, ()) if has[box.label])
        if kept:
            boxes[image] = kept


def _read_labels(raw: str, digests: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Opinions]]:
    """PhysioNet's: findings in the order of the columns, and what was said by image."""
    columns = tables.columns(raw, PHYSIONET_LABELS[0], ("image_id", "rad_id"))
    findings = tuple(name for name in columns if name not in ("image_id", "rad_id"))
    opinions: dict[str, Opinions] = {}
    for file in PHYSIONET_LABELS:
        for line, row in tables.table(raw, file, ("image_id",), digests):
            said = opinions.setdefault(row["image_id"], Opinions(line, file))
            reader = row.get("rad_id", "consensus")
            said.readers.add(reader)
            cells = {_RENAMED.get(name, name): cell for name, cell in row.items()}
            for finding in findings:
                if _parse_seen(f"{file} line {line}", finding, cells):
                    said.seen[finding].add(reader)
    return findings, opinions


def _parse_seen(place: str, finding: str, cells: dict[str, str]) -> bool:
    if cells.get(finding) not in _SEEN:
        raise UserError(f"{place}: {finding} is {cells.get(finding)!r}; it must be 1, 0 or blank")
    return _SEEN[cells[finding]]


def _read_kaggle(raw: str, digests: dict[str, str]) -> dict[str, Opinions]:
    opinions: dict[str, Opinions] = {}
    for line, row in tables.table(raw, KAGGLE, ("image_id", "class_name", "rad_id"), digests):
        tables.check_known(f"{KAGGLE} line {line}", [row["class_name"]], KAGGLE_FINDINGS)
        said = opinions.setdefault(row["image_id"], Opinions(line, KAGGLE))
        said.readers.add(row["rad_id"])
        said.seen[row["class_name"]].add(row["rad_id"])
    return opinions


def _read_boxes(raw: str, files: Iterable[str], findings: tuple[str, ...], digests: dict[str, str]) -> dict[str, list[Box]]:
    """The boxes of all readers by image; rows without a box (No finding) are left out."""
    drawn: defaultdict[str, list[Box]] = defaultdict(list)
    for file in files:
        for line, row in tables.table(raw, file, _BOX_COLUMNS, digests):
            label = _RENAMED.get(row["class_name"], row["class_name"])
            tables.check_known(f"{file} line {line}", [label], findings)
            if row["x_min"] and label != NO_FINDING:
                drawn[row["image_id"]].append(_parse_box(line, label, row, file))
    return drawn


def _parse_box(line: int, label: str, row: dict[str, str], file: str) -> Box:
    try:
        left, top, right, bottom = (float(row[name]) for name in _BOX_COLUMNS[2:])
    except ValueError:
        raise UserError(f"{file} line {line}: x_min, y_min, x_max and y_max must be numbers") from None
    return parse_box(line, label, (str(left), str(top), str(right - left), str(bottom - top)), file)


def joined(boxes: Iterable[Box]) -> list[Box]:
    """Boxes of the same finding that overlap by half as their mean, in the order of the first of each."""
    groups: list[list[Box]] = []
    for box in boxes:
        same = (group for group in groups if group[0].label == box.label and overlap(_mean(group), box) >= _SAME_BOX)
        group = next(same, None)
        if group is None:
            groups.append([box])
        else:
            group.append(box)
    return [_mean(group) for group in groups]


def _mean(group: list[Box]) -> Box:
    x, y, width, height = np.mean([box[2:6] for box in group], axis=0).tolist()
    return group[0]._replace(x=x, y=y, width=width, height=height)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    shared = max(across, 0.0) * max(down, 0.0)
    return shared / (one.width * one.height + other.width * other.height - shared)
