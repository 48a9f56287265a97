"""Own data: labels.csv and boxes.csv at the top of the raw folder, both optional.

`labels.csv`: `image` (SOPInstanceUID, or path relative to the raw folder), optionally `patient, view, sex, age`, and one column
per finding: 1, 0, blank (unknown) or -1 (uncertain; `preprocess.unknown_labels` decides). `boxes.csv`:
`image,label,x,y,width,height`, in pixels of the stored image, origin top left; a label need not be a finding.
"""

from components.common.errors import UserError
from components.preprocess import tables
from components.preprocess.index import Index
from components.preprocess.labels import (
    BOXES,
    LABELS,
    Record,
    Table,
    add_box,
    add_record,
    label_values,
    parse_box,
    parse_labels,
    storage_of,
)
from components.preprocess.params import Preprocess

OPTIONAL = ("patient", "view", "sex", "age")
BOX_COLUMNS = ("image", "label", "x", "y", "width", "height")


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads both tables, if they exist.

    Raises:
        UserError: a table has a mistake, or the official split is asked for.
    """
    if params.split == "official":
        raise UserError("preprocess.split: the layout `table` has no official split; set it to hash")
    digests: dict[str, str] = {}
    records, boxes = storage_of(index)
    values = label_values(params.unknown_labels)
    columns, rows = tables.own_rows(raw, LABELS, ("image",), digests)
    findings = tuple(name for name in columns if name not in ("image", *OPTIONAL))
    for line, row in rows:
        labels = parse_labels(f"{LABELS} line {line}", row, findings, values)
        add_record(records, row["image"], Record(line, labels, *(row.get(name, "") for name in OPTIONAL)))
    for line, row in tables.own_rows(raw, BOXES, BOX_COLUMNS, digests)[1]:
        add_box(boxes, row["image"], parse_box(line, row["label"], [row[name] for name in BOX_COLUMNS[2:]], BOXES))
    return Table(findings, records, boxes, digests)
