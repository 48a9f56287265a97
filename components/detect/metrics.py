"""The numbers of a detector: COCO's average precision, FROC, and the AUROC of images, with intervals over patients.

components.common.statistics.detection_matching matches detections to boxes. An image is positive for a class if it has a box of
it, and its score is the highest score of its detections of the class, or 0 without any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Floats, Integers
from components.common.statistics.bootstrap import resampled_weights
from components.common.statistics.curves import Curve, thin
from components.common.statistics.detection_matching import (
    IOUS,
    FrocCurve,
    ImageBoxes,
    MatchedDetections,
    average_precision,
    froc_curve,
    match,
    mean_average_precision,
    pool,
    sensitivity_at,
)
from components.common.statistics.intervals import Interval, percentile_interval
from components.common.statistics.ranking import auroc, bootstrap_ranking

RATES: Floats = np.array([0.25, 0.5, 1.0, 2.0])
"""False positives an image at which the sensitivity is given."""
FROC = tuple(f"froc_{rate:g}" for rate in RATES)
OVERALL = ("map_50", "map", *FROC, "image_auroc")
"""Over all classes."""
OF_CLASS = ("ap_50", "ap", "image_auroc")


@dataclass(frozen=True)
class DetectionSplit:
    """The images of a split in which all classes are known."""

    images: list[ImageBoxes]
    patients: Integers
    """(N,), index of each image's patient."""
    image_ids: list[str]
    unknown: int
    """Images left out."""
    strange: int
    """Boxes of other classes than the model's, left out."""

    @property
    def boxes(self) -> int:
        """How many there are to be found."""
        return sum(len(image.targets) for image in self.images)


@dataclass(frozen=True)
class ClassResult:
    """The evaluation of one class on the test split."""

    name: str
    boxes: int
    positives: int
    """Images with a box of it."""
    intervals: dict[str, Interval]
    """By the names in OF_CLASS."""
    froc: FrocCurve | None
    """None without a box."""


@dataclass(frozen=True)
class DetectorResult:
    """The evaluation of one detector."""

    each: list[ClassResult]
    val: DetectionSplit
    test: DetectionSplit
    val_map_50: float
    intervals: dict[str, Interval]
    """By the names in OVERALL, on the test split."""
    samples: dict[str, Floats]
    """(B,) by the same names."""
    class_samples: Floats
    """(classes, B): AP@50 of each."""
    froc: FrocCurve | None
    """All classes pooled; None without a box."""


class DetectorMetrics(NamedTuple):
    """Metrics of B resamples, or of the test split itself as one; C classes."""

    precision: Floats
    """(C, T, B): average precision at each IoU threshold."""
    sensitivity: Floats
    """(R, B): at the RATES, all classes pooled."""
    auroc: Floats
    """(1 + C, B): of images, for any box and for each class."""

    def overall(self, counted: Sequence[int]) -> dict[str, Floats]:
        """By the names in OVERALL; means are over the counted classes."""
        precision = self.precision[list(counted)].mean(axis=0) if counted else np.full(self.precision.shape[1:], np.nan)
        return dict(zip(OVERALL, [precision[0], precision.mean(axis=0), *self.sensitivity, self.auroc[0]], strict=True))

    def of_class(self, index: int) -> dict[str, Floats]:
        """By the names in OF_CLASS."""
        precision = self.precision[index]
        return dict(zip(OF_CLASS, [precision[0], precision.mean(axis=0), self.auroc[1 + index]], strict=True))


def evaluate(classes: list[str], val: DetectionSplit, test: DetectionSplit, params: Evaluate) -> DetectorResult:
    """Measures a detector on the test split.

    Args:
        classes: names, in the order of their numbers.
        val: for the one number that says how the epoch was chosen.
        test: with images.
        params: of the bootstrap.
    """
    marks = [match(test.images, label) for label in range(len(classes))]
    counted = [label for label, one in enumerate(marks) if one.targets.sum()]
    estimates, samples = _estimate(marks, test), _resample(marks, test, params)
    each = [
        _class(name, one, _intervals(estimates.of_class(label), samples.of_class(label), params))
        for label, (name, one) in enumerate(zip(classes, marks, strict=True))
    ]
    return DetectorResult(
        each=each,
        val=val,
        test=test,
        val_map_50=mean_average_precision(val.images, len(classes))[0],
        intervals=_intervals(estimates.overall(counted), samples.overall(counted), params),
        samples=samples.overall(counted),
        class_samples=samples.precision[:, 0],
        froc=froc_curve(pool(marks)) if counted else None,
    )


def froc_points(curve: FrocCurve, most: float) -> list[tuple[float, float]]:
    """(false positives an image, sensitivity), thinned, up to `most` false positives; of a detector that finds nothing one point."""
    kept = curve.false_positives <= most
    if kept.sum() < 2:
        return [(0.0, 0.0)]
    return thin(Curve(*(column[kept] for column in curve)))


def _class(name: str, marks: MatchedDetections, intervals: dict[str, Interval]) -> ClassResult:
    boxes = int(marks.targets.sum())
    return ClassResult(name, boxes, int((marks.targets > 0).sum()), intervals, froc_curve(marks) if boxes else None)


def _intervals(estimates: dict[str, Floats], samples: dict[str, Floats], params: Evaluate) -> dict[str, Interval]:
    return {name: percentile_interval(float(estimates[name][0]), samples[name], params.confidence) for name in estimates}


def _estimate(marks: list[MatchedDetections], test: DetectionSplit) -> DetectorMetrics:
    once = np.ones((len(test.images), 1), np.int32)
    targets, scores = _image_scores(test.images, len(marks))
    values = [auroc(target, score) for target, score in zip(targets.T, scores.T, strict=True)]
    precision = np.array([average_precision(one, once) for one in marks])
    return DetectorMetrics(precision, sensitivity_at(pool(marks), once, RATES), np.array(values)[:, None])


def _resample(marks: list[MatchedDetections], test: DetectionSplit, params: Evaluate) -> DetectorMetrics:
    pooled = pool(marks)
    precision = np.empty((len(marks), len(IOUS), params.resamples))
    sensitivity = np.empty((len(RATES), params.resamples))
    start = 0
    for weights in resampled_weights(int(test.patients.max()) + 1, params.resamples, params.seed):
        part = slice(start, start + weights.shape[1])
        drawn = weights[test.patients]
        precision[:, :, part] = [average_precision(one, drawn) for one in marks]
        sensitivity[:, part] = sensitivity_at(pooled, drawn, RATES)
        start = part.stop
    ranking = bootstrap_ranking(*_image_scores(test.images, len(marks)), test.patients, params.resamples, params.seed)
    return DetectorMetrics(precision, sensitivity, ranking.auroc.T)


def _image_scores(images: list[ImageBoxes], classes: int) -> tuple[Floats, Floats]:
    """Targets and scores (N, 1 + C) of images: any box, and each class."""
    targets, scores = np.zeros((2, len(images), 1 + classes))
    for row, image in enumerate(images):
        targets[row, 1 + image.target_labels] = 1
        np.maximum.at(scores[row], 1 + image.labels, image.scores)
    targets[:, 0], scores[:, 0] = targets[:, 1:].max(axis=1), scores[:, 1:].max(axis=1)
    return targets, scores
