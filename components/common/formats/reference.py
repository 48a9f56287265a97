"""reference.json: what a cohort was like, for `monitor`: counts by bins and a few numbers about coarse structure, without ids.

All of it is about one image per patient. Bins with few images are merged, so that none describes a person.
"""

from typing import Any, TypedDict

from components.common.errors import UserError
from components.common.formats.appearance import FEATURES, WAVES
from components.common.formats.documents import check_document

REFERENCE = "reference.json"
SCHEMA_VERSION = 1
MADE_BY = "monitor reference"


class Variable(TypedDict):
    """The distribution of one quantity."""

    group: str  # metadata, appearance or scores
    values: list[str]  # of a category; empty for a number
    edges: list[float]  # of a number: the upper ends of all bins but the last
    counts: list[int]  # images: first those whose value is not known, then by value, with all others at the end, or by bin


class Reference(TypedDict):
    """The content of a reference.json."""

    schema_version: int
    task: str  # head of the model that gave the scores
    model: str  # SHA-256 of its weights
    images: int
    variables: dict[str, Variable]
    waves: list[list[float]]  # coarse structure (formats/appearance.py) of a sample of images, in random order
    backbone: str | None  # SHA-256 of the backbone that `features` are of
    features: list[list[float]]  # projections of features, of a sample of images in random order; empty without a backbone


def check_reference(content: dict[str, Any], path: str) -> Reference:
    """Checks the content of a reference.json; `path` is its name for the message.

    Raises:
        UserError: it is damaged, or of another schema version.
    """
    found = check_document(content, Reference, path, MADE_BY)
    if found["schema_version"] != SCHEMA_VERSION:
        raise UserError(f"{path}: has schema version {found['schema_version']}, this code reads {SCHEMA_VERSION}; run {MADE_BY} again")
    wrong = [name for name, each in found["variables"].items() if len(each["counts"]) != len(each["values"] or each["edges"]) + 2]
    for name, size in (("waves", WAVES * WAVES - 1), ("features", FEATURES)):
        if any(len(row) != size for row in content[name]):
            wrong.append(name)
    if wrong:
        raise UserError(f"{path}: {wrong[0]} has another length than it should; run {MADE_BY} again")
    return found
