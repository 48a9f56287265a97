"""Registration of the head `classify`: macro AUROC over the findings, above the parameter min_auroc."""

import math
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from components.common.formats.documents import mlflow_key
from components.common.formats.predictions import findings_of, matrix, score_column, target_column
from components.common.head import CONFIDENCE, Candidate, Champion, Floor, NotComparable, refuse_other_images
from components.common.html.markdown import counted, interval, joined, table
from components.common.runs.params import Register
from components.common.statistics.intervals import Interval
from components.common.statistics.ranking import paired_auroc_difference

METRIC = "classify_test_auroc_macro"
MEASURE = "macro AUROC"
METRIC_TYPE = "roc_auc"
TASK_TYPE = "image-classification"
KIND = "classifier"
FLOOR_PARAMETERS: tuple[str, ...] = ("min_auroc",)
ROWS = {
    "train_images": "images trained on",
    "classify_val_images": "validation images",
    "classify_val_patients": "validation patients",
    "classify_test_images": "test images",
    "classify_test_patients": "test patients",
}


def floor(metrics: dict[str, float | None], settings: Register) -> Floor:
    """Requires a macro test AUROC above min_auroc."""
    auroc = metrics[METRIC]
    if auroc is None:
        return Floor(False, "the macro test AUROC is not known")
    above = auroc > settings.min_auroc
    return Floor(above, f"the macro test AUROC {auroc:.4f} is {'' if above else 'not '}above min_auroc {settings.min_auroc:g}")


def compare(new: Candidate, champion: Champion, settings: Register) -> Interval:
    """Compares by the targets of the new version, since labels may have been corrected meanwhile."""
    mine, theirs = new.test_predictions.sort_by("image_id"), champion.predictions.sort_by("image_id")
    names = findings_of(mine)
    if sorted(names) != sorted(findings_of(theirs)):
        raise NotComparable(f"the champion was trained for other findings ({', '.join(findings_of(theirs))})")
    refuse_other_images(mine["image_id"].to_pylist(), theirs["image_id"].to_pylist())
    first, second = (matrix(rows, [score_column(name) for name in names]) for rows in (mine, theirs))
    targets, patients = matrix(mine, [target_column(name) for name in names]), mine["patient_id"].to_pylist()
    found = paired_auroc_difference(targets, first, second, patients, settings.resamples, settings.seed, new.min_positives, CONFIDENCE)
    if math.isnan(found.estimate):
        raise NotComparable("no finding has enough positives and negatives in the test split to compare with the champion")
    return found


def summary(about: dict[str, Any]) -> tuple[str, str]:
    """Returns what the model is and what it outputs, for the page of the registry."""
    return f"{about['arch']} for {joined(about['findings'])}", "one probability per finding"


def signature(about: dict[str, Any]) -> ModelSignature:
    """Returns one column per finding."""
    return ModelSignature(outputs=Schema([ColSpec(DataType.float, finding) for finding in about["findings"]]))


def is_plausible(answer: pd.DataFrame) -> bool:
    """Whether all values are probabilities."""
    values = answer.to_numpy()
    return bool(((values >= 0) & (values <= 1)).all())


def card_values(candidate: Candidate) -> dict[str, Any]:
    """Returns the values for card.md and register/card.md."""
    about = candidate.description
    return {
        "arch": about["arch"],
        "findings": joined(about["findings"]),
        "classes": len(about["findings"]),
        "size": about["size"],
        "mirrored": " of the mean of the logits of an image and its mirror image" if about.get("tta_flip") else "",
        "temperature": f"{about.get('temperature', 1.0):.6g}",
        "data": counted({**candidate.metrics, **candidate.training}, ROWS),
        "results": _results(candidate),
        "subgroups": _subgroups(candidate.metrics),
    }


def _results(candidate: Candidate) -> str:
    metrics, rows = candidate.metrics, [("macro average", METRIC, "")]
    for finding in candidate.description["findings"]:
        name = mlflow_key(finding)
        positives, negatives = (metrics.get(f"classify_test_{kind}_{name}") for kind in ("positives", "negatives"))
        shown = "" if positives is None or negatives is None else f"{positives:g} / {negatives:g}"
        rows.append((finding, f"classify_test_auroc_{name}", shown))
    header = ("finding", "AUROC (95 % interval)", "positives / negatives")
    return table(header, ((finding, interval(metrics, metric), shown) for finding, metric, shown in rows))


def _subgroups(metrics: dict[str, float | None]) -> str:
    prefix = f"{METRIC}_"
    keys = [name for name in metrics if name.startswith(prefix) and not name.endswith(("_low", "_high"))]
    if not keys:
        return "There was no subgroup analysis."
    rows = ((name.removeprefix(prefix), interval(metrics, name)) for name in keys)
    return "By subgroup:\n\n" + table(("group", "macro AUROC"), rows)
