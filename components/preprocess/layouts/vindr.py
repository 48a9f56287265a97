"""VinDr-CXR (Nguyen et al., Sci Data 2022): DICOM files in train/ and test/, each read by several radiologists.

Two forms are published. PhysioNet's has annotations/image_labels_{train,test}.csv, with one row per image and reader and one column
per finding, and annotations/annotations_{train,test}.csv with their boxes; the test set has one consensus. Kaggle's has train.csv
only, with one row per box, or "No finding", of a reader; its test/ has no labels.

Each training image has three readers. `preprocess.readers` makes one label of them: `majority` (more than half of the readers of
the image saw the finding) or `any` (at least one did). An image keeps the boxes of its positive findings; boxes of one finding
with an intersection over union of at least 0.5 are merged into their mean. The official test set is test/; train/ is divided
between training and validation by hash.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from components.common.errors import UserError
from components.common.statistics.detection_matching import iou
from components.preprocess.index import Index
from components.preprocess.labels import Box, Record, Table, parse_box, stem
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED
from components.preprocess.tables import Tables, check_known

FOLDER_SPLITS = {"train": UNDIVIDED, "test": "test"}
NO_FINDING = "No finding"
KAGGLE = "train.csv"
KAGGLE_FINDINGS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration", "Lung Opacity",
    "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", NO_FINDING,
)  # fmt: skip
PHYSIONET_LABELS = ("annotations/image_labels_train.csv", "annotations/image_labels_test.csv")
PHYSIONET_BOXES = ("annotations/annotations_train.csv", "annotations/annotations_test.csv")
_RENAMED = {"Other disease": "Other diseases"}  # the published tables of the training and the test set differ in one name
_BOX_COLUMNS = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
_SEEN = {"1": True, "1.0": True, "0": False, "0.0": False, "": False}
_SAME_BOX = 0.5  # minimum intersection over union of boxes that are merged


@dataclass
class Opinions:
    """The readers' opinions on one image."""

    line: int
    file: str
    readers: set[str] = field(default_factory=set)
    seen: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # finding -> readers who saw it

    def has(self, finding: str, rule: str) -> bool:
        """Whether the image has the finding, by `majority` or `any`."""
        votes = len(self.seen[finding])
        return votes > 0 if rule == "any" else 2 * votes > len(self.readers)


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the tables of either form; raises UserError if one is missing, or has a mistake."""
    tables = Tables(raw, "vindr", index)
    folders = tuple(FOLDER_SPLITS)
    unlabelled: tuple[str, ...] = ()
    if tables.exists(PHYSIONET_LABELS[0]):
        findings, opinions = _read_physionet(tables)
        drawn = _read_boxes(tables, [tables.find(PHYSIONET_BOXES[0]), PHYSIONET_BOXES[1]], findings)
    else:
        tables.find(KAGGLE, PHYSIONET_LABELS[0])
        findings, opinions = KAGGLE_FINDINGS, _read_kaggle(tables)
        drawn, unlabelled = _read_boxes(tables, [KAGGLE], findings), folders[1:]
    for image, said in opinions.items():
        has = {finding: said.has(finding, params.readers) for finding in findings}
        tables.records[image] = Record(said.line, tuple(map(float, has.values())), "", "", "", "", file=said.file)
        merged = merge_overlapping(box for box in drawn.get(image, ()) if has[box.label])
        if merged:
            tables.boxes[image] = merged
    records, boxes, digests = tables.records, tables.boxes, tables.digests
    return Table(findings, records, boxes, digests, stem, folders, FOLDER_SPLITS, unlabelled=unlabelled, complete=False)


def _read_physionet(tables: Tables) -> tuple[tuple[str, ...], dict[str, Opinions]]:
    """Returns the findings in the order of the columns, and the opinions by image."""
    columns = tables.columns(PHYSIONET_LABELS[0], ("image_id", "rad_id"))
    findings = tuple(name for name in columns if name not in ("image_id", "rad_id"))
    opinions: dict[str, Opinions] = {}
    for file in PHYSIONET_LABELS:
        for line, row in tables.rows(file, ("image_id",)):
            said = opinions.setdefault(row["image_id"], Opinions(line, file))
            reader = row.get("rad_id", "consensus")
            said.readers.add(reader)
            cells = {_RENAMED.get(name, name): cell for name, cell in row.items()}
            for finding in findings:
                if cells.get(finding) not in _SEEN:
                    raise UserError(f"{file} line {line}: {finding} is {cells.get(finding)!r}; it must be 1, 0 or blank")
                if _SEEN[cells[finding]]:
                    said.seen[finding].add(reader)
    return findings, opinions


def _read_kaggle(tables: Tables) -> dict[str, Opinions]:
    opinions: dict[str, Opinions] = {}
    for line, row in tables.rows(KAGGLE, ("image_id", "class_name", "rad_id")):
        check_known(f"{KAGGLE} line {line}", [row["class_name"]], KAGGLE_FINDINGS)
        said = opinions.setdefault(row["image_id"], Opinions(line, KAGGLE))
        said.readers.add(row["rad_id"])
        said.seen[row["class_name"]].add(row["rad_id"])
    return opinions


def _read_boxes(tables: Tables, files: Iterable[str], findings: tuple[str, ...]) -> dict[str, list[Box]]:
    """Returns the boxes of all readers by image, without the rows that have no box (No finding)."""
    drawn: defaultdict[str, list[Box]] = defaultdict(list)
    for file in files:
        for line, row in tables.rows(file, _BOX_COLUMNS):
            label = _RENAMED.get(row["class_name"], row["class_name"])
            check_known(f"{file} line {line}", [label], findings)
            if row["x_min"] and label != NO_FINDING:
                drawn[row["image_id"]].append(_parse_box(line, label, row, file))
    return drawn


def _parse_box(line: int, label: str, row: dict[str, str], file: str) -> Box:
    try:
        left, top, right, bottom = (float(row[name]) for name in _BOX_COLUMNS[2:])
    except ValueError:
        raise UserError(f"{file} line {line}: x_min, y_min, x_max and y_max must be numbers") from None
    return parse_box(line, label, map(str, (left, top, right - left, bottom - top)), file)


def merge_overlapping(boxes: Iterable[Box]) -> list[Box]:
    """Merges overlapping boxes of the same finding into their mean, in the order of the first of each."""
    groups: list[list[Box]] = []
    for box in boxes:
        same = (group for group in groups if group[0].label == box.label and overlap(_mean(group), box) >= _SAME_BOX)
        group = next(same, [])
        if not group:
            groups.append(group)
        group.append(box)
    return [_mean(group) for group in groups]


def _mean(group: list[Box]) -> Box:
    x, y, width, height = np.mean([box[2:6] for box in group], axis=0).tolist()
    return group[0]._replace(x=x, y=y, width=width, height=height)


def overlap(one: Box, other: Box) -> float:
    """Computes the intersection over union."""
    return float(iou(np.array([one[2:6]]), np.array([other[2:6]]))[0, 0])
