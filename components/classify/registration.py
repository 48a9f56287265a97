"""The task `classify`: macro AUROC over the findings, above the parameter min_auroc."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from components.classify import serving as network
from components.common.runs.params import Register
from components.common.statistics.intervals import Interval, metric_key
from components.common.statistics.ranking import paired_auroc_difference
from components.register.candidate import Candidate
from components.register.gate import CONFIDENCE, Floor, NotComparable, refuse_other_images
from components.register.markdown import counted, interval, table
from components.register.task import Champion

METRIC = "classify_test_auroc_macro"
MEASURE = "macro AUROC"
KIND = "classifier"
NEEDED: tuple[str, ...] = network.NEEDED
ONNX_OUTPUTS: tuple[str, ...] = ("probability",)
ROWS = {
    "train_images": "images trained on",
    "classify_val_images": "validation images",
    "classify_val_patients": "validation patients",
    "classify_test_images": "test images",
    "classify_test_patients": "test patients",
}


def floor(metrics: dict[str, float | None], settings: Register) -> Floor:
    """The macro test AUROC must be above min_auroc."""
    auroc = metrics[METRIC]
    if auroc is None:
        return Floor(False, "the macro test AUROC is not known")
    above = auroc > settings.min_auroc
    return Floor(above, f"the macro test AUROC {auroc:.4f} is {'' if above else 'not '}above min_auroc {settings.min_auroc:g}")


def compare(new: Candidate, champion: Champion, settings: Register) -> Interval:
    """Judged by the new version's targets: a label may have been corrected since.

    Raises:
        NotComparable: the findings or the test images differ, or no finding has enough positives and negatives.
    """
    mine, theirs = new.test_predictions.sort_by("image_id"), champion.predictions.sort_by("image_id")
    names = findings(mine)
    if sorted(names) != sorted(findings(theirs)):
        raise NotComparable(f"the champion was trained for other findings ({', '.join(findings(theirs))})")
    refuse_other_images(mine["image_id"].to_pylist(), theirs["image_id"].to_pylist())
    first, second = (_matrix(rows, [f"score_{name}" for name in names]) for rows in (mine, theirs))
    targets, patients = _matrix(mine, [f"target_{name}" for name in names]), mine["patient_id"].to_pylist()
    found = paired_auroc_difference(targets, first, second, patients, settings.resamples, settings.seed, new.min_positives, CONFIDENCE)
    if math.isnan(found.estimate):
        raise NotComparable("no finding has enough positives and negatives in the test split to compare with the champion")
    return found


def findings(predictions: pa.Table) -> list[str]:
    """Names of the findings that a predictions table has scores of."""
    return [name.removeprefix("score_") for name in predictions.column_names if name.startswith("score_")]


def summary(about: dict[str, Any]) -> tuple[str, str]:
    """For the registry's page."""
    return f"{about['arch']} for {', '.join(about['findings'])}", "a probability a finding"


def signature(about: dict[str, Any]) -> ModelSignature:
    """A column a finding."""
    return ModelSignature(outputs=Schema([ColSpec(DataType.float, finding) for finding in about["findings"]]))


def sensible(answer: pd.DataFrame) -> bool:
    """Probabilities."""
    values = answer.to_numpy()
    return bool(((values >= 0) & (values <= 1)).all())


def exportable(about: dict[str, Any], weights: Path) -> tuple[torch.nn.Module, int]:
    """The whole network."""
    return network.load(about, weights), int(about["size"])


def slots(candidate: Candidate) -> dict[str, Any]:
    """For cards/classify.md and cards/rest.md."""
    about = candidate.description
    return {
        "arch": about["arch"],
        "findings": ", ".join(about["findings"]),
        "classes": len(about["findings"]),
        "size": about["size"],
        "mirrored": " of the mean of the logits of an image and its mirror image" if about.get("tta_flip") else "",
        "temperature": f"{about.get('temperature', 1.0):.6g}",
        "data": counted(candidate, ROWS),
        "results": _results(candidate),
        "subgroups": _subgroups(candidate.metrics),
    }


def _results(candidate: Candidate) -> str:
    """Macro average and each finding, with intervals."""
    metrics, rows = candidate.metrics, [("**macro average**", METRIC, "")]
    for finding in candidate.description["findings"]:
        name = metric_key(finding)
        positives, negatives = (metrics.get(f"classify_test_{kind}_{name}") for kind in ("positives", "negatives"))
        shown = "" if positives is None or negatives is None else f"{positives:g} / {negatives:g}"
        rows.append((finding, f"classify_test_auroc_{name}", shown))
    header = ("finding", "AUROC (95 % interval)", "positives / negatives")
    return table(header, ((finding, interval(metrics, metric), shown) for finding, metric, shown in rows))


def _subgroups(metrics: dict[str, float | None]) -> str:
    """Macro AUROC by group, where evaluate has told groups apart."""
    prefix = f"{METRIC}_"
    keys = [name for name in metrics if name.startswith(prefix) and not name.endswith(("_low", "_high"))]
    if not keys:
        return "Subgroups were not told apart."
    rows = ((name.removeprefix(prefix), interval(metrics, name)) for name in keys)
    return "By subgroup:\n\n" + table(("group", "macro AUROC"), rows)


def _matrix(predictions: pa.Table, names: list[str]) -> npt.NDArray[np.float64]:
    return np.column_stack([predictions[name].to_numpy().astype(np.float64) for name in names])
