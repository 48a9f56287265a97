"""Matches detections to annotated boxes: COCO's rule, average precision and FROC, for any weights of the images.

A detection hits a box of its class if their intersection over union (IoU) reaches a threshold. The detections of an image
are matched in order of falling score, each to the free box with the highest IoU; a second detection of a box is a false
positive. Average precision and FROC count the same hits.

A resample of the patients is a weight per image; scores are sorted once. The result equals, resample by resample, the metric
on the repeated images (except for the order of equal scores, in which COCO counts them).

Shapes: D detections and G boxes; N images; T IoU thresholds; R rates; B resamples. A box is x, y, width, height.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from components.common.statistics.arrays import Flags, Floats, Integers, Weights, divide

IOUS: Floats = np.linspace(0.5, 0.95, 10)  # COCO's thresholds; the first is used by mAP@50 and FROC
RECALLS: Floats = np.linspace(0.0, 1.0, 101)  # where COCO reads the highest precision at that recall or a higher one
ELEMENTS = 2**24  # size limit of a matrix of detections by resamples


class ImageBoxes(NamedTuple):
    """Detections of one image: boxes (D, 4), scores (D,) and labels (D,); and its annotated boxes (G, 4) with their labels (G,)."""

    boxes: Floats
    scores: Floats
    labels: Integers  # numbers of the classes
    targets: Floats
    target_labels: Integers


class MatchedDetections(NamedTuple):
    """Detections of one class, or of several pooled, by falling score."""

    scores: Floats
    images: Integers  # (D,), like the scores; index of each detection's image
    hit: Flags  # (D, T), whether the detection found a box
    targets: Integers  # (N,), number of annotated boxes per image


class FrocCurve(NamedTuple):
    """Points of a FROC curve, from the highest threshold to the lowest; the first is infinite."""

    false_positives: Floats  # per image
    sensitivity: Floats  # fraction of the boxes that are found
    thresholds: Floats


def iou(boxes: Floats, targets: Floats) -> Floats:
    """Intersection over union, (D, G), of (D, 4) and (G, 4) boxes."""
    start = np.maximum(boxes[:, None, :2], targets[None, :, :2])
    stop = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], targets[None, :, :2] + targets[None, :, 2:])
    common = np.clip(stop - start, 0, None).prod(axis=2)
    return divide(common, boxes[:, 2:].prod(axis=1)[:, None] + targets[:, 2:].prod(axis=1)[None] - common, 0.0)


def match(images: Sequence[ImageBoxes], label: int) -> MatchedDetections:
    """Matches the detections of a class image by image."""
    scores, numbers, hits = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros((0, len(IOUS)), bool)]
    for number, image in enumerate(images):
        mine = image.labels == label
        order = np.argsort(-image.scores[mine], kind="stable")
        scores.append(image.scores[mine][order])
        numbers.append(np.full(len(order), number))
        overlap = iou(image.boxes[mine][order], image.targets[image.target_labels == label])
        hits.append(_hits(overlap[:, ::-1]))  # of boxes with the same overlap COCO takes the last
    targets = np.array([(image.target_labels == label).sum() for image in images], np.int64)
    return _sorted(np.concatenate(scores), np.concatenate(numbers), np.concatenate(hits), targets)


def pool(classes: Sequence[MatchedDetections]) -> MatchedDetections:
    """Pools several classes; a hit remains a hit of the detection's own class."""
    scores, images, hit, targets = zip(*classes, strict=True)
    return _sorted(np.concatenate(scores), np.concatenate(images), np.concatenate(hit), np.sum(targets, axis=0))


def average_precision(matched: MatchedDetections, weights: Weights) -> Floats:
    """COCO's average precision of one class, (T, B), in images with weights (N, B); NaN where there is no box."""
    return np.concatenate([_average_precision(matched, chunk) for chunk in _chunks(matched, weights)], axis=1)


def sensitivity_at(matched: MatchedDetections, weights: Weights, rates: Floats) -> Floats:
    """Highest fraction of boxes found at IoU 0.5 with at most `rates` (R,) false positives per image, all images counted.

    (R, B) for images with weights (N, B); NaN where there is no box. Free-response ROC: Chakraborty, Med Phys 1989.
    """
    return np.concatenate([_sensitivity_at(matched, chunk, rates) for chunk in _chunks(matched, weights)], axis=1)


def froc_curve(matched: MatchedDetections) -> FrocCurve:
    """False positives per image against sensitivity at every distinct score; there must be a box."""
    ends = _ends(matched.scores)
    true = np.cumsum(matched.hit[:, 0])[ends]
    zero = np.zeros(1)
    return FrocCurve(
        np.concatenate([zero, (ends + 1 - true) / len(matched.targets)]),
        np.concatenate([zero, true / matched.targets.sum()]),
        np.concatenate([zero + np.inf, matched.scores[ends]]),
    )


def mean_average_precision(images: Sequence[ImageBoxes], classes: int) -> tuple[float, float]:
    """Average precision at IoU 0.5 and over IoU 0.5 to 0.95, averaged over the classes that have a box; NaN if none has."""
    once = np.ones((len(images), 1), np.int32)
    values = np.array([average_precision(match(images, label), once)[:, 0] for label in range(classes)])
    values = values[~np.isnan(values[:, 0])]
    return (float(values[:, 0].mean()), float(values.mean())) if len(values) else (float("nan"), float("nan"))


def _sorted(scores: Floats, images: Integers, hit: Flags, targets: Integers) -> MatchedDetections:
    order = np.argsort(-scores, kind="stable")
    return MatchedDetections(scores[order], images[order], hit[order], targets)


def _hits(overlap: Floats) -> Flags:
    """(D, T) for the (D, G) overlaps of an image, its detections in order of falling score."""
    hit = np.zeros((len(overlap), len(IOUS)), bool)
    if not overlap.size:
        return hit
    free = np.ones((overlap.shape[1], len(IOUS)), bool)
    columns = np.arange(len(IOUS))
    for row in np.flatnonzero(overlap.max(axis=1) >= IOUS[0]):
        available = np.where(free, overlap[row][:, None], -1.0)
        best = available.argmax(axis=0)
        hit[row] = available[best, columns] >= IOUS
        free[best[hit[row]], columns[hit[row]]] = False
    return hit


def _chunks(matched: MatchedDetections, weights: Weights) -> Iterator[Weights]:
    step = max(1, ELEMENTS // max(1, len(matched.scores)))
    for start in range(0, weights.shape[1], step):
        yield weights[:, start : start + step]


def _average_precision(matched: MatchedDetections, weights: Weights) -> Floats:
    boxes = matched.targets @ weights
    drawn = weights[matched.images]
    called = np.cumsum(drawn, axis=0)
    values = np.empty((len(IOUS), weights.shape[1]))
    for index, hit in enumerate(matched.hit.T):
        # Precision rises at hits only, so the envelope of the curve and its steps are determined there.
        true = np.cumsum(drawn[hit], axis=0)
        precision = divide(true, called[hit], 0.0)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        reached = np.searchsorted(RECALLS, divide(true, boxes), side="right")
        values[index] = (envelope * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(RECALLS)
    return np.where(boxes > 0, values, np.nan)


def _sensitivity_at(matched: MatchedDetections, weights: Weights, rates: Floats) -> Floats:
    drawn = weights[matched.images]
    ends = _ends(matched.scores)
    false = np.cumsum(drawn * ~matched.hit[:, :1], axis=0)[ends]
    true = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(drawn * matched.hit[:, :1], axis=0)[ends]])
    # Number of distinct scores that may be called; false positives only grow.
    allowed = np.stack([(false <= rate * weights.sum(axis=0)).sum(axis=0) for rate in rates])
    return divide(np.take_along_axis(true, allowed, axis=0), matched.targets @ weights)


def _ends(scores: Floats) -> Integers:
    """Last position of each distinct score in falling scores."""
    return np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, np.int64)
