"""The task `detect`: mAP@50, whose interval must lie above 0."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from components.common.errors import UserError
from components.common.runs.params import Register
from components.common.statistics.intervals import Interval, metric_key
from components.detect import evaluation
from components.detect import serving as network
from components.register.candidate import Candidate
from components.register.gate import Floor, NotComparable, refuse_other_images
from components.register.markdown import counted, interval, table
from components.register.paired import differences
from components.register.task import Champion

METRIC = "detect_test_map_50"
MEASURE = "mAP@50"
KIND = "detector"
NEEDED: tuple[str, ...] = network.NEEDED
ONNX_OUTPUTS: tuple[str, ...] = ()
ROWS = {
    "train_images": "images trained on",
    "train_boxes": "boxes in them",
    "train_images_unknown": "training images left out, since a class is not known",
    "detect_val_images": "validation images",
    "detect_test_images": "test images",
    "detect_test_patients": "test patients",
    "detect_test_boxes": "boxes in the test images",
}


def floor(metrics: dict[str, float | None], settings: Register) -> Floor:
    """Better than finding nothing: the lower end of the interval of mAP@50 must be above 0."""
    value, low = metrics[METRIC], metrics.get(f"{METRIC}_low")
    if value is None or low is None:
        return Floor(False, "mAP@50 on the test split is not known")
    return Floor(low > 0, f"the lower end of the interval of mAP@50 ({value:.4f}) on the test split, {low:.4f}, is {_above(low)} 0")


def compare(new: Candidate, champion: Champion, settings: Register) -> Interval:
    """As `evaluate --baseline` compares them.

    Raises:
        NotComparable: the classes, the test images or their boxes differ, or there is no box in them.
    """
    mine, theirs = new.description["classes"], champion.description["classes"]
    if mine != theirs:
        raise NotComparable(f"the champion detects other classes ({', '.join(theirs)})")
    refuse_other_images(_known(new.test_predictions), _known(champion.predictions))
    try:
        found = next(each.interval for each in differences(evaluation.read, new, champion, settings) if each.key == "map_50")
    except UserError:
        raise NotComparable("the champion was tested against other boxes, so that the two cannot be compared") from None
    if np.isnan(found.estimate):
        raise NotComparable("the test images have no boxes, so that there is nothing to compare with the champion")
    return found


def summary(about: dict[str, Any]) -> tuple[str, str]:
    """For the registry's page."""
    return f"{about['detector']} on {about['arch']} for {', '.join(about['classes'])}", "a row a box, in pixels of the source"


def signature(about: dict[str, Any]) -> ModelSignature:
    """Columns of a box."""
    kinds = {"image": DataType.long, "label": DataType.string, **dict.fromkeys(("score", *network.PLACE), DataType.float)}
    return ModelSignature(outputs=Schema([ColSpec(kind, name) for name, kind in kinds.items()]))


def sensible(answer: pd.DataFrame) -> bool:
    """Finite places and probabilities."""
    values = answer[["score", *network.PLACE]].to_numpy()
    return bool(np.isfinite(values).all() and (values[:, 0] >= 0).all() and (values[:, 0] <= 1).all() and (values[:, 3:] > 0).all())


def exportable(about: dict[str, Any], weights: Path) -> tuple[torch.nn.Module, int]:
    """Not written; ONNX_OUTPUTS says that there is none."""
    raise NotImplementedError


def slots(candidate: Candidate) -> dict[str, Any]:
    """For cards/detect.md and cards/rest.md."""
    about = candidate.description
    return {
        "arch": about["arch"],
        "detector": {"retinanet": "RetinaNet", "fasterrcnn": "Faster R-CNN"}[about["detector"]],
        "classes": ", ".join(about["classes"]),
        "size": about["size"],
        "least": f"{about['score_threshold']:g}",
        "most": about["max_detections"],
        "threshold": f"{about['threshold']:.3g}",
        "data": counted(candidate, ROWS),
        "results": _results(candidate),
        "subgroups": "Subgroups were not told apart.",
    }


def _results(candidate: Candidate) -> str:
    """Over all classes, and of each."""
    metrics = candidate.metrics
    overall = table(("measure", "value (95 % interval)"), ((n, interval(metrics, f"detect_test_{k}")) for k, n in evaluation.NAMES.items()))
    rows = (
        (name, interval(metrics, f"detect_test_ap_50_{metric_key(name)}"), f"{metrics.get(f'detect_test_boxes_{metric_key(name)}') or 0:g}")
        for name in candidate.description["classes"]
    )
    return f"{overall}\n\n{table(('class', 'AP@50', 'boxes'), rows)}"


def _known(predictions: pa.Table) -> list[str]:
    """Images in which all classes are known, which are those that count."""
    ids: list[str] = predictions.filter(predictions["targets"].is_valid())["image_id"].to_pylist()
    return ids


def _above(low: float) -> str:
    return "above" if low > 0 else "not above"
