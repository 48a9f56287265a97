"""NIH ChestX-ray14 (Wang et al., CVPR 2017): PNGs in images*/ and Data_Entry_2017*.csv.

`Finding Labels` holds names joined by `|`, or No Finding; a finding that is not named is absent. The archives unpack to
`images_001/images/` and so on, or all to `images/`; file names are unique across them. `BBox_List_2017.csv` has boxes for about
900 images, in pixels of the 1024 x 1024 images. The official split is two lists; images that are not for testing are divided
between training and validation by hash.
"""

from collections.abc import MutableMapping

from components.common.runs import storage
from components.preprocess import tables
from components.preprocess.index import Index
from components.preprocess.labels import Box, Record, Table, add_box, add_record, base_name, parse_box, storage_of
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED

ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
LISTS = {"train_val_list.txt": UNDIVIDED, "test_list.txt": "test"}
NO_FINDING = "No Finding"
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia", "Infiltration",
    "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax", NO_FINDING,
)  # fmt: skip
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position")
_SEX_COLUMNS = ("Patient Gender", "Patient Sex")
"""The two releases differ."""
_BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
_BOX_NAMES = {"Infiltrate": "Infiltration"}
"""The table of boxes has another name for one finding."""


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the tables.

    Raises:
        UserError: a table or list is missing, or has a mistake.
    """
    digests: dict[str, str] = {}
    records, boxes = storage_of(index)
    entries = tables.find(raw, "nih", *ENTRIES)
    splits = _read_splits(raw, digests) if params.split == "official" else {}
    for line, row in tables.published_rows(raw, entries, _COLUMNS, digests):
        name = row["Image Index"]
        add_record(records, name, _record(entries, line, row, splits.get(name, "")))
    if storage.exists(storage.join(raw, BOXES)):
        _read_boxes(raw, digests, boxes)
    return Table(FINDINGS, records, boxes, digests, key=base_name, folders=("images*",), complete=False)


def _record(file: str, line: int, row: dict[str, str], split: str) -> Record:
    named = row["Finding Labels"].split("|")
    tables.check_known(f"{file} line {line}", named, FINDINGS)
    labels = tuple(float(finding in named) for finding in FINDINGS)
    sex = next((row[column] for column in _SEX_COLUMNS if column in row), "")
    return Record(line, labels, row["Patient ID"], row["View Position"], sex, row["Patient Age"], split, file)


def _read_splits(raw: str, digests: dict[str, str]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for file, split in LISTS.items():
        tables.find(raw, "nih", file)
        splits |= dict.fromkeys(tables.read_list(raw, file, digests), split)
    return splits


def _read_boxes(raw: str, digests: dict[str, str], boxes: MutableMapping[str, list[Box]]) -> None:
    for line, row in tables.published_rows(raw, BOXES, _BOX_COLUMNS, digests):
        label = _BOX_NAMES.get(row["Finding Label"], row["Finding Label"])
        tables.check_known(f"{BOXES} line {line}", [label], FINDINGS)
        add_box(boxes, row["Image Index"], parse_box(line, label, [row[name] for name in _BOX_COLUMNS[2:]], BOXES))
