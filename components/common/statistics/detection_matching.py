"""Detections against the boxes that are there: COCO's matching, average precision and FROC, for any weights of the images.

A detection hits a box of its class when their intersection over union (IoU) reaches a threshold. The detections of an
image are matched by falling score, each to the box with the highest IoU that is still free; a second detection of a box is
a false positive. This is COCO's rule, and the one rule here: average precision and FROC count the same hits.

A resample of the patients is a weight an image; scores are sorted once. What comes out equals, resample by resample, the
metric on the repeated images (but for the order of equal scores, in which COCO counts them).

Shapes: D detections and G boxes; N images; T IoU thresholds; H hits; R rates; B resamples. A box is x, y, width, height.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from components.common.statistics.arrays import Flags, Floats, Integers, Weights, divide

IOUS: Floats = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds; the first is that of mAP@50 and of FROC."""
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""Where COCO reads the precision-recall curve."""
ELEMENTS = 2**24  # of a matrix of detections by resamples that is held at a time


class ImageBoxes(NamedTuple):
    """What was found in an image, and what is there; classes are numbered."""

    boxes: Floats
    """(D, 4)."""
    scores: Floats
    """(D,)."""
    labels: Integers
    """(D,)."""
    targets: Floats
    """(G, 4)."""
    target_labels: Integers
    """(G,)."""


class MatchedDetections(NamedTuple):
    """The detections of one class, or of several pooled, by falling score."""

    scores: Floats
    """(D,)."""
    images: Integers
    """(D,), the image of each."""
    hit: Flags
    """(D, T), whether it found a box."""
    targets: Integers
    """(N,), boxes of each image."""


class FrocCurve(NamedTuple):
    """Points of a FROC curve, from the highest threshold to the lowest; the first is infinite: nothing is marked."""

    false_positives: Floats
    """An image."""
    sensitivity: Floats
    """Share of the boxes that are found."""
    thresholds: Floats


def iou(boxes: Floats, targets: Floats) -> Floats:
    """Intersection over union, (D, G), of (D, 4) and (G, 4) boxes."""
    start = np.maximum(boxes[:, None, :2], targets[None, :, :2])
    stop = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], targets[None, :, :2] + targets[None, :, 2:])
    common = np.clip(stop - start, 0, None).prod(axis=2)
    union = boxes[:, 2:].prod(axis=1)[:, None] + targets[:, 2:].prod(axis=1)[None] - common
    share: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return share


def match(images: Sequence[ImageBoxes], label: int) -> MatchedDetections:
    """Matches the detections of a class, image by image."""
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
    """The marks of several classes as one: each has hit a box of its own class or none."""
    scores, images, hit, targets = zip(*classes, strict=True)
    return _sorted(np.concatenate(scores), np.concatenate(images), np.concatenate(hit), np.sum(targets, axis=0))


def average_precision(marks: MatchedDetections, weights: Weights) -> Floats:
    """COCO's average precision: the mean, over 101 recalls, of the highest precision at that recall or a higher one.

    Args:
        marks: of one class.
        weights: (N, B), how often each image counts.

    Returns:
        (T, B); NaN where there is no box.
    """
    return np.concatenate([_average_precision(marks, part) for part in _parts(marks, weights)], axis=1)


def sensitivity_at(marks: MatchedDetections, weights: Weights, rates: Floats) -> Floats:
    """The highest share of boxes found, at IoU 0.5, with at most so many false positives an image.

    Free-response ROC: Chakraborty, Med Phys 1989, with all images in the denominator.

    Args:
        marks: of one class, or pooled.
        weights: (N, B), how often each image counts.
        rates: (R,) false positives an image.

    Returns:
        (R, B); NaN where there is no box.
    """
    return np.concatenate([_sensitivity_at(marks, part, rates) for part in _parts(marks, weights)], axis=1)


def froc_curve(marks: MatchedDetections) -> FrocCurve:
    """False positives an image against sensitivity at every distinct score; there must be a box."""
    ends = _ends(marks.scores)
    true = np.cumsum(marks.hit[:, 0])[ends]
    zero = np.zeros(1)
    return FrocCurve(
        np.concatenate([zero, (ends + 1 - true) / len(marks.targets)]),
        np.concatenate([zero, true / marks.targets.sum()]),
        np.concatenate([zero + np.inf, marks.scores[ends]]),
    )


def mean_average_precision(images: Sequence[ImageBoxes], classes: int) -> tuple[float, float]:
    """At IoU 0.5 and over IoU 0.5 to 0.95: the mean of average precision over the classes that have a box; NaN if none has."""
    once = np.ones((len(images), 1), np.int32)
    values = np.array([average_precision(match(images, label), once)[:, 0] for label in range(classes)])
    values = values[~np.isnan(values[:, 0])]
    return (float(values[:, 0].mean()), float(values.mean())) if len(values) else (float("nan"), float("nan"))


def _sorted(scores: Floats, images: Integers, hit: Flags, targets: Integers) -> MatchedDetections:
    order = np.argsort(-scores, kind="stable")
    return MatchedDetections(scores[order], images[order], hit[order], targets)


def _hits(overlap: Floats) -> Flags:
    """(D, T) for (D, G) overlaps of an image, its detections by falling score."""
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


def _parts(marks: MatchedDetections, weights: Weights) -> Iterator[Weights]:
    """The resamples, a few at a time."""
    step = max(1, ELEMENTS // max(1, len(marks.scores)))
    for start in range(0, weights.shape[1], step):
        yield weights[:, start : start + step]


def _average_precision(marks: MatchedDetections, weights: Weights) -> Floats:
    boxes = _boxes(marks, weights)
    drawn = weights[marks.images]
    called = np.cumsum(drawn, axis=0)
    values = np.empty((len(IOUS), weights.shape[1]))
    for index, hit in enumerate(marks.hit.T):
        # Precision rises at hits only, so that the curve's envelope and its steps are found at them.
        true = np.cumsum(drawn[hit], axis=0)
        precision = divide(true, called[hit], 0.0)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        reached = np.searchsorted(RECALLS, divide(true, boxes), side="right")
        values[index] = (envelope * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(RECALLS)
    return np.where(boxes > 0, values, np.nan)


def _sensitivity_at(marks: MatchedDetections, weights: Weights, rates: Floats) -> Floats:
    boxes, images = _boxes(marks, weights), weights.sum(axis=0)
    drawn = weights[marks.images]
    ends = _ends(marks.scores)
    false = np.cumsum(drawn * ~marks.hit[:, :1], axis=0)[ends]
    true = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(drawn * marks.hit[:, :1], axis=0)[ends]])
    # How many of the distinct scores may be marked; false positives only grow.
    allowed = np.stack([(false <= rate * images).sum(axis=0) for rate in rates])
    return divide(np.take_along_axis(true, allowed, axis=0), boxes)


def _boxes(marks: MatchedDetections, weights: Weights) -> Integers:
    """(B,) drawn boxes."""
    count: Integers = marks.targets @ weights
    return count


def _ends(scores: Floats) -> Integers:
    """The last position of each distinct score, of scores that fall."""
    return np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, np.int64)
