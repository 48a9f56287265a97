"""The boxes of a split, placed on the square images that the network sees; and which images are fully annotated.

An image is used if it is known for every class whether the image shows it: the image has a box of the class, or its label says
that the class is absent. A finding that is labelled but not boxed, or not labelled at all, would count true detections as false.
If the classes have no column in labels.csv, an image with boxes is assumed to have all of its boxes, and one without is left out.

Boxes are x, y, width, height in pixels, with the origin at the top left.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.common.errors import UserError
from components.common.formats.labels import BOXES
from components.common.training.reader import Reader

COLUMNS = ("boxes", "height", "width")
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Annotations:
    """The boxes of a split, image by image, in the order of the reader's table."""

    boxes: list[Array]  # (G, 4) per image, on the square, clipped to the image
    labels: list[Rows]  # (G,) class numbers per image
    known: npt.NDArray[np.bool_]  # (N,), whether all classes are known
    origin: Array  # (N, 2): x and y of the image on the square
    extent: Array  # (N, 2): its width and height

    def present(self, classes: int) -> Array:
        """Returns (N, classes): whether an image has a box of each class; NaN where that is not known."""
        found = np.array([[(labels == label).any() for label in range(classes)] for labels in self.labels], float)
        return np.where(self.known[:, None], found, np.nan)


def choose_classes(reader: Reader, wanted: tuple[str, ...]) -> list[str]:
    """Returns the wanted classes, or all with a box in this (the train) split, sorted; raises UserError if any has no box."""
    found = Counter(box["label"] for boxes in reader.table["boxes"].to_pylist() for box in boxes)
    if not found:
        raise UserError(f"the shards have no boxes in the train split; put a {BOXES} into the raw folder and run preprocess again")
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"detect.classes: no box of {missing[0]} in the train split; there are {', '.join(sorted(found))}")
    return list(wanted) or sorted(found)


def annotate(reader: Reader, classes: list[str], findings: list[str]) -> Annotations:
    """Places the boxes of a split, whose reader has the COLUMNS, on the square images; see `annotate_rows`."""
    return annotate_rows(reader.table, reader.labels(), reader.size, classes, findings)


def annotate_rows(table: pa.Table, labels: npt.NDArray[np.float32], size: int, classes: list[str], findings: list[str]) -> Annotations:
    """Places the boxes of rows of the shards, with image_id and the COLUMNS, on the square images.

    Labels are (N, findings). Boxes of other classes are left out; raises UserError if a box is empty or outside its image.
    """
    rows = table.select(["image_id", *COLUMNS]).to_pylist()
    extent = np.array([[row["width"], row["height"]] for row in rows], np.int64)
    origin = (size - extent) // 2
    placed = [_place(row, classes, start) for row, start in zip(rows, origin, strict=True)]
    boxes, numbers = [each[0] for each in placed], [each[1] for each in placed]
    return Annotations(boxes, numbers, _known(rows, labels, classes, findings), origin.astype(float), extent.astype(float))


def _place(row: dict[str, Any], classes: list[str], origin: Rows) -> tuple[Array, Rows]:
    mine = [box for box in row["boxes"] if box["label"] in classes]
    corners = np.array([[box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]] for box in mine], float).reshape(-1, 4)
    clipped = corners.clip(0, [row["width"], row["height"]] * 2)
    sides = clipped[:, 2:] - clipped[:, :2]
    if not (sides > 0).all():
        raise UserError(f"image {row['image_id']}: a box is empty or outside the image; correct {BOXES} and run preprocess again")
    return np.concatenate([clipped[:, :2] + origin, sides], axis=1), np.array([classes.index(box["label"]) for box in mine], np.int64)


def _known(rows: list[dict[str, Any]], labels: npt.NDArray[np.float32], classes: list[str], findings: list[str]) -> npt.NDArray[np.bool_]:
    boxed = [{box["label"] for box in row["boxes"]} for row in rows]
    known = np.ones(len(rows), bool)
    for name in classes:
        absent = labels[:, findings.index(name)] == 0 if name in findings else np.array([bool(names) for names in boxed])
        known &= absent | np.array([name in names for names in boxed])
    return known
