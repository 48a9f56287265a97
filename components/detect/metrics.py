"""Metrics of a detector: COCO's average precision, FROC, and the AUROC of images, with intervals over patients.

components.common.statistics.detection_matching matches detections to boxes. An image is positive for a class if it has a box of
it, and its score is the highest score of its detections of the class, or 0 without any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from components.common.runs.params import Evaluate
from components.common.statistics import detection_matching as matching
from components.common.statistics.arrays import Floats, Integers, Weights
from components.common.statistics.bootstrap import patient_count, resampled_weights
from components.common.statistics.curves import Curve, thin
from components.common.statistics.detection_matching import FrocCurve, ImageBoxes, MatchedDetections, pool
from components.common.statistics.intervals import Interval, percentile_interval
from components.common.statistics.ranking import auroc, bootstrap_ranking

RATES: Floats = np.array([0.25, 0.5, 1.0, 2.0])  # false positives per image at which the sensitivity is reported
FROC = tuple(f"froc_{rate:g}" for rate in RATES)
OVERALL = ("map_50", "map", *FROC, "image_auroc")  # metrics over all classes
OF_CLASS = ("ap_50", "ap", "image_auroc")


@dataclass(frozen=True)
class DetectionSplit:
    """The images of a split in which all classes are known."""

    images: list[ImageBoxes]
    patients: Integers  # (N,), index of each image's patient
    image_ids: list[str]
    unknown: int  # number of images left out
    strange: int  # number of boxes left out because the model does not know their class

    @property
    def boxes(self) -> int:
        """The number of annotated boxes."""
        return sum(len(image.targets) for image in self.images)


@dataclass(frozen=True)
class ClassResult:
    """The evaluation of one class on the test split."""

    name: str
    boxes: int
    positives: int  # number of images with a box of the class
    intervals: dict[str, Interval]  # by the names in OF_CLASS
    froc: FrocCurve | None  # None without a box


@dataclass(frozen=True)
class DetectorResult:
    """The evaluation of one detector."""

    each: list[ClassResult]
    val: DetectionSplit
    test: DetectionSplit
    val_map_50: float
    intervals: dict[str, Interval]  # by the names in OVERALL, on the test split
    samples: dict[str, Floats]  # (B,) by the same names
    class_samples: Floats  # AP@50 per class and resample, (C, B)
    froc: FrocCurve | None  # all classes pooled; None without a box


class DetectorMetrics(NamedTuple):
    """Metrics of B resamples, or of the test split itself as one; C classes."""

    precision: Floats  # (C, T, B): average precision at each IoU threshold
    sensitivity: Floats  # (R, B): at the RATES, all classes pooled
    auroc: Floats  # (1 + C, B): of images, for any box and for each class

    def overall(self, counted: Sequence[int]) -> dict[str, Floats]:
        """Returns metrics by the names in OVERALL; means are over the counted classes."""
        precision = self.precision[list(counted)].mean(axis=0) if counted else np.full(self.precision.shape[1:], np.nan)
        return dict(zip(OVERALL, [precision[0], precision.mean(axis=0), *self.sensitivity, self.auroc[0]], strict=True))

    def of_class(self, index: int) -> dict[str, Floats]:
        """Returns metrics by the names in OF_CLASS."""
        precision = self.precision[index]
        return dict(zip(OF_CLASS, [precision[0], precision.mean(axis=0), self.auroc[1 + index]], strict=True))


def evaluate(classes: list[str], val: DetectionSplit, test: DetectionSplit, params: Evaluate) -> DetectorResult:
    """Measures a detector on the test split; the val split is for the metric by which the epoch was chosen."""
    matched = [matching.match(test.images, label) for label in range(len(classes))]
    counted = [label for label, one in enumerate(matched) if one.targets.sum()]
    estimates, samples = _measure(matched, test, params)
    each = [
        ClassResult(
            name=name,
            boxes=int(one.targets.sum()),
            positives=int((one.targets > 0).sum()),
            intervals=_intervals(estimates.of_class(label), samples.of_class(label), params),
            froc=matching.froc_curve(one) if label in counted else None,
        )
        for label, (name, one) in enumerate(zip(classes, matched, strict=True))
    ]
    return DetectorResult(
        each=each,
        val=val,
        test=test,
        val_map_50=matching.mean_average_precision(val.images, len(classes))[0],
        intervals=_intervals(estimates.overall(counted), samples.overall(counted), params),
        samples=samples.overall(counted),
        class_samples=samples.precision[:, 0],
        froc=matching.froc_curve(pool(matched)) if counted else None,
    )


def froc_points(curve: FrocCurve, most: float) -> list[tuple[float, float]]:
    """Thins (false positives per image, sensitivity) up to `most` false positives; one point for a detector that finds nothing."""
    kept = curve.false_positives <= most
    if kept.sum() < 2:
        return [(0.0, 0.0)]
    return thin(Curve(*(column[kept] for column in curve)))


def _intervals(estimates: dict[str, Floats], samples: dict[str, Floats], params: Evaluate) -> dict[str, Interval]:
    return {name: percentile_interval(float(estimates[name][0]), samples[name], params.confidence) for name in estimates}


def _measure(matched: list[MatchedDetections], test: DetectionSplit, params: Evaluate) -> tuple[DetectorMetrics, DetectorMetrics]:
    """Returns estimates on the test split, and samples of the bootstrap."""
    pooled = pool(matched)

    def weighted(weights: Weights) -> tuple[Floats, Floats]:
        return np.array([matching.average_precision(one, weights) for one in matched]), matching.sensitivity_at(pooled, weights, RATES)

    targets, scores = _image_scores(test.images, len(matched))
    values = np.array([[auroc(target, score)] for target, score in zip(targets.T, scores.T, strict=True)])
    chunks = resampled_weights(patient_count(test.patients), params.resamples, params.seed)
    precision, sensitivity = zip(*(weighted(weights[test.patients]) for weights in chunks), strict=True)
    ranking = bootstrap_ranking(targets, scores, test.patients, params.resamples, params.seed)
    samples = DetectorMetrics(np.concatenate(precision, axis=2), np.concatenate(sensitivity, axis=1), ranking.auroc.T)
    return DetectorMetrics(*weighted(np.ones((len(test.images), 1), np.int32)), values), samples


def _image_scores(images: list[ImageBoxes], classes: int) -> tuple[Floats, Floats]:
    """Returns targets and scores (N, 1 + C) of images: for any box, and for each class."""
    targets, scores = np.zeros((2, len(images), 1 + classes))
    for row, image in enumerate(images):
        targets[row, 1 + image.target_labels] = 1
        np.maximum.at(scores[row], 1 + image.labels, image.scores)
    targets[:, 0], scores[:, 0] = targets[:, 1:].max(axis=1), scores[:, 1:].max(axis=1)
    return targets, scores
