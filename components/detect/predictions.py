"""Detections as arrays: compared with the annotated boxes, and as rows of `predictions.parquet`."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor

from components.common.formats.predictions import DETECTIONS, SCORED_BOX, TARGETS
from components.common.formats.shards import BOX, COORDINATES
from components.common.statistics.detection_matching import ImageBoxes, froc_curve, match, pool
from components.detect.annotations import Annotations, Array, Rows

FALSE_POSITIVES = 0.5  # false positives per validation image at the threshold above which detections are drawn


class Found(NamedTuple):
    """The detections of an image, by descending score."""

    boxes: Array  # (D, 4), x, y, width, height on the square that the network sees
    scores: Array  # (D,)
    labels: Rows  # (D,)


def to_numpy(found: dict[str, Tensor], origin: Array, extent: Array) -> Found:
    """Converts the network's output for an image; clips boxes to the image, at `origin` on the square, and drops those outside it."""
    corners = found["boxes"].double().cpu().numpy().clip(np.tile(origin, 2), np.tile(origin + extent, 2))
    sides = corners[:, 2:] - corners[:, :2]
    kept = (sides > 0).all(axis=1)
    boxes = np.concatenate([corners[:, :2], sides], axis=1)[kept]
    return Found(boxes, found["scores"].double().cpu().numpy()[kept], found["labels"].cpu().numpy()[kept])


def compared(found: list[Found], known: Annotations) -> list[ImageBoxes]:
    """Pairs detections with annotations, for the images in which all classes are known."""
    rows = zip(found, known.boxes, known.labels, known.known, strict=True)
    return [ImageBoxes(*each, boxes, labels) for each, boxes, labels, sure in rows if sure]


def operating_threshold(images: list[ImageBoxes], classes: int) -> float:
    """Returns the lowest score with at most FALSE_POSITIVES per image; 0.5 if there are no annotated boxes."""
    marks = pool([match(images, label) for label in range(classes)])
    if not marks.targets.sum():
        return 0.5
    curve = froc_curve(marks)
    allowed = curve.thresholds[1:][curve.false_positives[1:] <= FALSE_POSITIVES]
    return float(allowed[-1]) if len(allowed) else 1.0


def box_columns(found: list[Found], known: Annotations, classes: list[str]) -> dict[str, pa.Array]:
    """Makes the columns of the head. Boxes are in pixels of the row's image; targets are null where not known."""
    boxes = [_records(*each, start, classes) for each, start in zip(found, known.origin, strict=True)]
    rows = zip(known.boxes, known.labels, known.origin, known.known, strict=True)
    targets = [_records(box, None, label, start, classes) if sure else None for box, label, start, sure in rows]
    return {DETECTIONS: pa.array(boxes, pa.list_(SCORED_BOX)), TARGETS: pa.array(targets, pa.list_(BOX))}


def _records(boxes: Array, scores: Array | None, labels: Rows, origin: Array, classes: list[str]) -> list[dict[str, Any]]:
    placed = boxes - [*origin, 0, 0]
    records = [{"label": classes[label], **dict(zip(COORDINATES, box, strict=True))} for label, box in zip(labels, placed, strict=True)]
    return records if scores is None else [{**record, "score": score} for record, score in zip(records, scores, strict=True)]
