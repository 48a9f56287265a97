"""`labels.csv` and `boxes.csv` at the top of a raw folder: what is known about its images. Both are optional.

`labels.csv` has one row per image: `image` (SOPInstanceUID, or path relative to the raw folder), optionally `patient`, `view`, `sex`
and `age`, and one column per finding. `boxes.csv` has one row per box, in pixels of the stored image, origin top left; its label
need not be a finding.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from io import StringIO

LABELS = "labels.csv"
BOXES = "boxes.csv"
IMAGE = "image"
OPTIONAL = ("patient", "view", "sex", "age")  # columns of labels.csv that are not findings
BOX_COLUMNS = (IMAGE, "label", "x", "y", "width", "height")

KNOWN = {"": math.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}  # cells of a finding and their values; NaN is unknown
UNCERTAIN = ("-1", "-1.0")  # cells of a finding that is uncertain; `preprocess.unknown_labels` says what it becomes


def to_csv(rows: Iterable[Sequence[str]]) -> bytes:
    """Serialises rows, the header among them."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
