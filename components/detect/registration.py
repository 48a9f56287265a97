"""Registration of the head `detect`: mAP@50, whose interval must lie above 0."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from components.common.errors import UserError
from components.common.formats.documents import mlflow_key
from components.common.formats.predictions import TARGETS
from components.common.head import Candidate, Champion, Floor, NotComparable, differences_to_champion, refuse_other_images
from components.common.html.markdown import counted, interval, joined, table
from components.common.runs.params import Register
from components.common.statistics.intervals import Interval
from components.detect import evaluation
from components.detect import serving as network

METRIC = "detect_test_map_50"
MEASURE = "mAP@50"
METRIC_TYPE = "mean_average_precision"
TASK_TYPE = "object-detection"
KIND = "detector"
FLOOR_PARAMETERS: tuple[str, ...] = ()
ROWS = {
    "train_images": "images trained on",
    "train_boxes": "boxes in them",
    "train_images_unknown": "training images left out because a class is unknown",
    "detect_val_images": "validation images",
    "detect_test_images": "test images",
    "detect_test_patients": "test patients",
    "detect_test_boxes": "boxes in the test images",
}


def floor(metrics: dict[str, float | None], settings: Register) -> Floor:
    """Requires that the interval of mAP@50 lies above 0: better than finding nothing."""
    value, low = metrics[METRIC], metrics.get(f"{METRIC}_low")
    if value is None or low is None:
        return Floor(False, "mAP@50 on the test split is not known")
    shown = f"of the interval of mAP@50 ({value:.4f}) on the test split, {low:.4f}"
    return Floor(low > 0, f"the lower end {shown}, is {'' if low > 0 else 'not '}above 0")


def compare(new: Candidate, champion: Champion, settings: Register) -> Interval:
    """Compares as `evaluate --baseline` does."""
    mine, theirs = new.description["classes"], champion.description["classes"]
    if mine != theirs:
        raise NotComparable(f"the champion detects other classes ({', '.join(theirs)})")
    refuse_other_images(_known(new.test_predictions), _known(champion.predictions))
    try:
        found = differences_to_champion(evaluation.read, new, champion, settings)["map_50"]
    except UserError:
        raise NotComparable("the champion was tested against other boxes, so that the two cannot be compared") from None
    if np.isnan(found.estimate):
        raise NotComparable("the test images have no boxes, so that there is nothing to compare with the champion")
    return found


def summary(about: dict[str, Any]) -> tuple[str, str]:
    """Returns what the model is and what it outputs, for the page of the registry."""
    return f"{about['detector']} on {about['arch']} for {joined(about['classes'])}", "one row per box, in pixels of the source"


def signature(about: dict[str, Any]) -> ModelSignature:
    """Returns the columns that describe a box."""
    kinds = {"image": DataType.long, "label": DataType.string, **dict.fromkeys(("score", *network.PLACE), DataType.float)}
    return ModelSignature(outputs=Schema([ColSpec(kind, name) for name, kind in kinds.items()]))


def is_plausible(answer: pd.DataFrame) -> bool:
    """Whether all boxes are finite and not empty, and all scores are probabilities."""
    values = answer[["score", *network.PLACE]].to_numpy()
    return bool(np.isfinite(values).all() and (values[:, 0] >= 0).all() and (values[:, 0] <= 1).all() and (values[:, 3:] > 0).all())


def card_values(candidate: Candidate) -> dict[str, Any]:
    """Returns the values for card.md and register/card.md."""
    about = candidate.description
    return {
        "arch": about["arch"],
        "detector": {"retinanet": "RetinaNet", "fasterrcnn": "Faster R-CNN"}[about["detector"]],
        "classes": joined(about["classes"]),
        "size": about["size"],
        "least": f"{about['score_threshold']:g}",
        "most": about["max_detections"],
        "threshold": f"{about['threshold']:.3g}",
        "data": counted({**candidate.metrics, **candidate.training}, ROWS),
        "results": _results(candidate),
        "subgroups": "There was no subgroup analysis.",
    }


def _results(candidate: Candidate) -> str:
    metrics = candidate.metrics
    overall = table(("measure", "value (95 % interval)"), ((n, interval(metrics, f"detect_test_{k}")) for k, n in evaluation.NAMES.items()))
    rows = (
        (name, interval(metrics, f"detect_test_ap_50_{mlflow_key(name)}"), f"{metrics.get(f'detect_test_boxes_{mlflow_key(name)}') or 0:g}")
        for name in candidate.description["classes"]
    )
    return f"{overall}\n\n{table(('class', 'AP@50', 'boxes'), rows)}"


def _known(predictions: pa.Table) -> list[str]:
    """Returns the ids of the images in which all classes are known; only these are evaluated."""
    ids: list[str] = predictions.filter(predictions[TARGETS].is_valid())["image_id"].to_pylist()
    return ids
