"""Registration of `toy`: closeness, which must lie above 0.9."""

from typing import Any

import pandas as pd
from components.toy import evaluation
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from components.common.head import Candidate, Champion, Floor, differences_to_champion, refuse_other_images
from components.common.html.markdown import counted, interval
from components.common.runs.params import Register
from components.common.statistics.intervals import Interval

METRIC = "toy_test_closeness"
MEASURE = "closeness"
METRIC_TYPE = "accuracy"
TASK_TYPE = "image-classification"
KIND = "regressor"
FLOOR_PARAMETERS: tuple[str, ...] = ()


def floor(metrics: dict[str, float | None], settings: Register) -> Floor:
    above = (metrics[METRIC] or 0.0) > 0.9
    return Floor(above, f"the closeness is {'' if above else 'not '}above 0.9")


def compare(new: Candidate, champion: Champion, settings: Register) -> Interval:
    refuse_other_images(new.test_predictions["image_id"].to_pylist(), champion.predictions["image_id"].to_pylist())
    return differences_to_champion(evaluation.read, new, champion, settings)["closeness"]


def summary(description: dict[str, Any]) -> tuple[str, str]:
    return f"{description['arch']} for brightness", "one number per image"


def signature(description: dict[str, Any]) -> ModelSignature:
    return ModelSignature(outputs=Schema([ColSpec(DataType.float, "brightness")]))


def is_plausible(answer: pd.DataFrame) -> bool:
    return bool(answer["brightness"].notna().all())


def card_values(candidate: Candidate) -> dict[str, Any]:
    return {
        "arch": candidate.description["arch"],
        "data": counted(candidate.metrics, {"toy_test_images": "test images"}),
        "results": f"Closeness (95 % interval): {interval(candidate.metrics, METRIC)}",
        "subgroups": "There was no subgroup analysis.",
    }
