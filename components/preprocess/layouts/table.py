"""Own data: labels.csv and boxes.csv at the top of the raw folder, both optional.

`labels.csv`: `image` (SOPInstanceUID, or path relative to the raw folder), optionally `patient, view, sex, age`, and one column
per finding: 1, 0, blank (unknown) or -1 (uncertain; `preprocess.unknown_labels` decides). `boxes.csv`:
`image,label,x,y,width,height`, in pixels of the stored image, origin top left; a label need not be a finding.
"""

from components.common.errors import UserError
from components.preprocess.index import Index
from components.preprocess.labels import BOXES, LABELS, Record, Table, label_values, parse_box, parse_labels
from components.preprocess.params import Preprocess
from components.preprocess.tables import Tables

OPTIONAL = ("patient", "view", "sex", "age")
BOX_COLUMNS = ("image", "label", "x", "y", "width", "height")


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads both tables, if they exist.

    Raises:
        UserError: a table has a mistake, or the official split is asked for.
    """
    if params.split == "official":
        raise UserError("preprocess.split: the layout `table` has no official split; set it to hash")
    tables = Tables(raw, "table", index, lenient=False)
    findings: tuple[str, ...] = ()
    if tables.exists(LABELS):
        findings = tuple(name for name in tables.columns(LABELS, ("image",)) if name not in ("image", *OPTIONAL))
        values = label_values(params.unknown_labels)
        for line, row in tables.rows(LABELS, ("image",)):
            labels = parse_labels(f"{LABELS} line {line}", row, findings, values)
            tables.add_record(row["image"], Record(line, labels, *(row.get(name, "") for name in OPTIONAL)))
    if tables.exists(BOXES):
        for line, row in tables.rows(BOXES, BOX_COLUMNS):
            tables.add_box(row["image"], parse_box(line, row["label"], [row[name] for name in BOX_COLUMNS[2:]], BOXES))
    return Table(findings, tables.records, tables.boxes, tables.digests)
