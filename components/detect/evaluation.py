"""Evaluation of a detector: columns boxes and targets for the classes in model.json; unknown targets are null."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from components.common.errors import UserError
from components.common.formats.documents import mlflow_key
from components.common.formats.labels import BOXES, LABELS
from components.common.formats.model import DESCRIPTION
from components.common.formats.predictions import DETECTIONS, PREDICTIONS, TARGETS, rows_of
from components.common.formats.shards import COORDINATES
from components.common.head import CsvTable, HeadOutput
from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Floats, Integers
from components.common.statistics.bootstrap import patient_indices
from components.common.statistics.detection_matching import ImageBoxes
from components.common.statistics.differences import Difference, paired_differences
from components.common.statistics.intervals import Interval, first_clash
from components.detect import report
from components.detect.metrics import FROC, RATES, DetectionSplit, DetectorResult, evaluate, froc_points

MOST_FALSE_POSITIVES = 8.0  # false positives per image where froc.csv ends
NAMES = {
    "map_50": "mAP@50",
    "map": "mAP@[.5:.95]",
    **{key: f"Sensitivity at {rate:g} false positives per image" for key, rate in zip(FROC, RATES, strict=True)},
    "image_auroc": "AUROC of images",
}
FAMILIES = (("map_50",), ("map",), FROC, ("image_auroc",))  # differences whose p-values are corrected together


def read(table: pa.Table, model: HeadOutput, params: Evaluate) -> "Detection":
    """Evaluates the predictions of one detector; raises UserError if columns are missing or impossible, or no test image is annotated."""
    classes = _classes(table, model)
    table = table.sort_by("image_id")  # so that models tested on the same images have them in the same order
    val, test = (_split(rows_of(table, name), classes, model.path(PREDICTIONS)) for name in ("val", "test"))
    if not test.images:
        raise UserError(f"{model.path(PREDICTIONS)}: no test image has known boxes; add {BOXES} and {LABELS} and run preprocess again")
    return Detection(model, params, evaluate(classes, val, test, params))


@dataclass(frozen=True)
class Detection:
    """The evaluation of one detector."""

    model: HeadOutput
    params: Evaluate
    boxes: DetectorResult

    def metrics(self, prefix: str = "detect") -> dict[str, float]:
        """Returns flat numbers for metrics.json."""
        found = self.boxes
        flat: dict[str, float] = {f"{prefix}_val_map_50": found.val_map_50}
        for name, split in (("val", found.val), ("test", found.test)):
            flat |= {f"{prefix}_{name}_images": len(split.images), f"{prefix}_{name}_images_unknown": split.unknown}
            flat[f"{prefix}_{name}_boxes"] = split.boxes
        flat[f"{prefix}_test_patients"] = len(np.unique(found.test.patients))
        for key, interval in found.intervals.items():
            flat |= interval.flat(f"{prefix}_test_{key}")
        for one in found.each:
            flat[f"{prefix}_test_boxes_{mlflow_key(one.name)}"] = one.boxes
            for key, interval in one.intervals.items():
                flat |= interval.flat(f"{prefix}_test_{key}_{mlflow_key(one.name)}")
        return flat

    def headline(self) -> dict[str, Interval]:
        """Returns all metrics over the classes, and AP@50 of each class."""
        overall = {name: self.boxes.intervals[key] for key, name in NAMES.items()}
        return overall | {f"AP@50, {one.name}": one.intervals["ap_50"] for one in self.boxes.each}

    def curves(self) -> dict[str, CsvTable]:
        """Returns the FROC curves of all classes together and of each class."""
        named = [("all", self.boxes.froc), *((one.name, one.froc) for one in self.boxes.each)]
        curves = [(name, froc_points(curve, MOST_FALSE_POSITIVES)) for name, curve in named if curve]
        rows = [(name, round(x, 6), round(y, 6)) for name, points in curves for x, y in points]
        return {"froc.csv": CsvTable(("class", "false_positives", "sensitivity"), rows)}

    def sections(self) -> list[Markup]:
        """Renders the sections of the report on this model."""
        return report.sections(self.boxes, self.params)

    def warnings(self) -> list[str]:
        """Returns warnings about classes that are too small to judge, and about images and boxes that are left out."""
        few, test = self.params.min_positives, self.boxes.test
        found = [f"the test split has {one.boxes} boxes of {one.name}, fewer than {few}" for one in self.boxes.each if 0 < one.boxes < few]
        empty = [one.name for one in self.boxes.each if not one.boxes]
        found += [f"the test split has no box of {name}: means over classes leave it out" for name in empty]
        if test.unknown:
            found.append(f"{test.unknown} images of the test split are left out: which of the classes they show is not known")
        if test.strange:
            found.append(f"{test.strange} boxes of the test split are left out: they are of classes that the model was not trained for")
        return found

    def compare(self, baseline: "Detection") -> list[Difference]:
        """Compares metrics over the classes and AP@50 of each class; sensitivities, and classes, with Holm's correction."""
        self._check_comparable(baseline)
        mine, theirs = self.boxes, baseline.boxes
        differences = []
        for keys in FAMILIES:
            samples = np.stack([mine.samples[key] - theirs.samples[key] for key in keys])
            estimates = [mine.intervals[key].estimate - theirs.intervals[key].estimate for key in keys]
            differences += paired_differences([(key, NAMES[key]) for key in keys], estimates, samples, self.params.confidence)
        counted = [index for index, one in enumerate(mine.each) if one.boxes]
        names = [(f"ap_50_{mlflow_key(mine.each[index].name)}", f"AP@50, {mine.each[index].name}") for index in counted]
        estimates = [mine.each[index].intervals["ap_50"].estimate - theirs.each[index].intervals["ap_50"].estimate for index in counted]
        samples = (mine.class_samples - theirs.class_samples)[counted]
        return differences + paired_differences(names, estimates, samples, self.params.confidence)

    def _check_comparable(self, baseline: "Detection") -> None:
        pair, mine, theirs = f"{self.model.path(PREDICTIONS)} and {baseline.model.path(PREDICTIONS)}", self.boxes, baseline.boxes
        if [one.name for one in mine.each] != [one.name for one in theirs.each]:
            raise UserError(f"{pair}: detect other classes; compare models of the same classes")
        if mine.test.image_ids != theirs.test.image_ids:
            raise UserError(f"{pair}: were tested on other images; compare models of the same shards")
        if not all(map(_same_targets, mine.test.images, theirs.test.images)):
            raise UserError(f"{pair}: were tested on other boxes; compare models of the same shards")


def _classes(table: pa.Table, model: HeadOutput) -> list[str]:
    description = model.path(DESCRIPTION)
    classes = model.description.get("classes")
    if not isinstance(classes, list) or not classes:
        raise UserError(f"{description}: names no classes; run detect again")
    if missing := [name for name in (DETECTIONS, TARGETS) if name not in table.column_names]:
        raise UserError(f"{description}: its classes need the column {missing[0]}, which {PREDICTIONS} lacks; run detect again")
    names = [str(name) for name in classes]
    if clash := first_clash(names):
        raise UserError(f"class {clash}: its metrics would have the names of others; rename it in {BOXES}")
    return names


def _split(rows: pa.Table, classes: list[str], source: str) -> DetectionSplit:
    known = rows.filter(rows[TARGETS].is_valid())
    found = [_boxes(boxes, classes, source) for boxes in known[DETECTIONS].to_pylist()]
    targets = [[box for box in boxes if box["label"] in classes] for boxes in known[TARGETS].to_pylist()]
    there = [_boxes(boxes, classes, source) for boxes in targets]
    scores = [np.array([box["score"] for box in boxes], np.float64) for boxes in known[DETECTIONS].to_pylist()]
    if not all(((each >= 0) & (each <= 1)).all() for each in scores):
        raise UserError(f"{source}: a score is not a probability; run detect again")
    images = [ImageBoxes(box, score, label, *other) for (box, label), score, other in zip(found, scores, there, strict=True)]
    strange = sum(len(boxes) for boxes in known[TARGETS].to_pylist()) - sum(map(len, targets))
    patients = patient_indices(known["patient_id"].to_pylist())
    return DetectionSplit(images, patients, known["image_id"].to_pylist(), len(rows) - len(known), strange)


def _boxes(boxes: list[dict[str, Any]], classes: list[str], source: str) -> tuple[Floats, Integers]:
    if strange := [box["label"] for box in boxes if box["label"] not in classes]:
        raise UserError(f"{source}: a box of the class {strange[0]}, which {DESCRIPTION} does not name; run detect again")
    places = np.array([[box[name] for name in COORDINATES] for box in boxes], np.float64).reshape(-1, 4)
    if not (np.isfinite(places).all() and (places[:, 2:] > 0).all()):
        raise UserError(f"{source}: a box is empty or not finite; run detect again")
    return places, np.array([classes.index(box["label"]) for box in boxes], np.int64)


def _same_targets(one: ImageBoxes, other: ImageBoxes) -> bool:
    return np.array_equal(one.targets, other.targets) and np.array_equal(one.target_labels, other.target_labels)
