"""Own data: labels.csv and boxes.csv at the top of the raw folder, both optional (components/common/formats/labels.py)."""

from components.common.errors import UserError
from components.common.formats.labels import BOX_COLUMNS, BOXES, IMAGE, LABELS, OPTIONAL
from components.preprocess.index import Index
from components.preprocess.labels import Record, Table, label_values, parse_box, parse_labels
from components.preprocess.params import Preprocess
from components.preprocess.tables import Tables


def read(raw: str, params: Preprocess, index: Index | None) -> Table:
    """Reads both tables, if they exist; raises UserError if one has a mistake, or for the official split: there is none."""
    if params.split == "official":
        raise UserError("preprocess.split: the layout `table` has no official split; set it to hash")
    tables = Tables(raw, "table", index, lenient=False)
    findings: tuple[str, ...] = ()
    if tables.exists(LABELS):
        findings = tuple(name for name in tables.columns(LABELS, (IMAGE,)) if name not in (IMAGE, *OPTIONAL))
        values = label_values(params.unknown_labels)
        for line, row in tables.rows(LABELS, (IMAGE,)):
            labels = parse_labels(f"{LABELS} line {line}", row, findings, values)
            tables.add_record(row[IMAGE], Record(line, labels, *(row.get(name, "") for name in OPTIONAL)))
    if tables.exists(BOXES):
        for line, row in tables.rows(BOXES, BOX_COLUMNS):
            tables.add_box(row[IMAGE], parse_box(line, row["label"], [row[name] for name in BOX_COLUMNS[2:]], BOXES))
    return Table(findings, tables.records, tables.boxes, tables.digests)
