"""NIH ChestX-ray14 (Wang et al., CVPR 2017): PNGs in images*/ and Data_Entry_2017*.csv.

`Finding Labels` holds names joined by `|`, or No Finding; a finding that is not named is absent. The archives unpack to
`images_001/images/` and so on, or all to `images/`; file names are unique across them. `BBox_List_2017.csv` has boxes for about
900 images, in pixels of the 1024 x 1024 images. The official split is two lists; images that are not for testing are divided
between training and validation by hash.
"""

from components.preprocess.index import Index, plain_name
from components.preprocess.labels import Record, Table, base_name, parse_box
from components.preprocess.params import Preprocess
from components.preprocess.split import UNDIVIDED
from components.preprocess.tables import Tables, check_known

ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
LISTS = {"train_val_list.txt": UNDIVIDED, "test_list.txt": "test"}
NO_FINDING = "No Finding"
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia", "Infiltration",
    "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax", NO_FINDING,
)  # fmt: skip
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position")
_SEX_COLUMNS = ("Patient Gender", "Patient Sex")  # the two releases differ
_BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
_BOX_NAMES = {"Infiltrate": "Infiltration"}  # the table of boxes has another name for one finding


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads the tables; raises UserError if a table or list is missing, or has a mistake."""
    tables = Tables(raw, "nih", index)
    entries = tables.find(*ENTRIES)
    splits: dict[str, str] = {}
    if params.split == "official":
        for file, split in LISTS.items():
            splits |= dict.fromkeys(map(plain_name, tables.lines(tables.find(file))), split)
    for line, row in tables.rows(entries, _COLUMNS):
        named = row["Finding Labels"].split("|")
        check_known(f"{entries} line {line}", named, FINDINGS)
        labels = tuple(float(finding in named) for finding in FINDINGS)
        sex = next((row[column] for column in _SEX_COLUMNS if column in row), "")
        image, patient, view, age = (row[column] for column in ("Image Index", "Patient ID", "View Position", "Patient Age"))
        tables.add_record(image, Record(line, labels, patient, view, sex, age, splits.get(plain_name(image), ""), entries))
    if tables.exists(BOXES):
        for line, row in tables.rows(BOXES, _BOX_COLUMNS):
            label = _BOX_NAMES.get(row["Finding Label"], row["Finding Label"])
            check_known(f"{BOXES} line {line}", [label], FINDINGS)
            tables.add_box(row["Image Index"], parse_box(line, label, [row[name] for name in _BOX_COLUMNS[2:]], BOXES))
    return Table(FINDINGS, tables.records, tables.boxes, tables.digests, key=base_name, folders=("images*",), complete=False)
