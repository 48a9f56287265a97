"""COCO average precision by pycocotools: the reference for components.common.statistics.detection_matching."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from components.common.statistics.arrays import Floats
from components.common.statistics.detection_matching import IOUS, ImageBoxes


def coco_average_precision(images: Sequence[ImageBoxes], classes: int) -> Floats:
    """Returns the average precision (T, classes) at the thresholds IOUS; NaN for a class without boxes."""
    if not any(len(image.targets) for image in images):
        return np.full((len(IOUS), classes), np.nan)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _dataset([(image.targets, image.target_labels, None) for image in images], classes)
        found = _dataset([(image.boxes, image.labels, image.scores) for image in images], classes)
        evaluation = COCOeval(truth, found, "bbox")
        most = max(1, *(len(image.boxes) for image in images))
        evaluation.params.maxDets = [1, 10, max(10, most)]  # keep all detections
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (T, recalls, classes), all sizes
    return np.where(precision[:, 0] < 0, np.nan, precision.mean(axis=1))


def _dataset(images: list[tuple[Floats, Any, Floats | None]], classes: int) -> COCO:
    """Builds annotations, or detections if there are scores. Ids start at 1, since pycocotools reads 0 as "no match"."""
    annotations: list[dict[str, Any]] = []
    for number, (boxes, labels, scores) in enumerate(images, start=1):
        for index, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
            record = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": box, "area": box[2] * box[3]}
            annotations.append({**record, "iscrowd": 0, **({} if scores is None else {"score": float(scores[index])})})
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": number} for number in range(1, classes + 1)],
        "annotations": annotations,
    }
    dataset.createIndex()
    return dataset
