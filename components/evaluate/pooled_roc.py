"""One ROC curve for a page that has room for one: of all findings pooled (the micro average), with its thresholds."""

import io

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common.runs import storage
from components.common.statistics.curves import roc_curve

MOST_POINTS = 200


def roc_points(folder: str) -> tuple[list[float], list[float], list[float]]:
    """False positive rates, true positive rates and thresholds of the test split, from the highest threshold to the lowest.

    Args:
        folder: output folder of classify.

    Returns:
        At most MOST_POINTS points, the curve's ends among them; none if one class only is known.
    """
    table = pq.read_table(io.BytesIO(storage.read(storage.join(folder, "predictions.parquet"))))
    test = table.filter(pc.equal(table["split"], "test"))
    findings = [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]
    scores, targets = (
        np.concatenate([test[f"{kind}_{name}"].to_numpy().astype(np.float64) for name in findings]) for kind in ("score", "target")
    )
    if len(np.unique(targets[~np.isnan(targets)])) < 2:
        return [], [], []
    curve = roc_curve(targets, scores)
    chosen = np.unique(np.linspace(0, len(curve.x) - 1, MOST_POINTS).round().astype(int))
    # The first threshold is infinite, which JSON does not know; scores are probabilities.
    thresholds = np.minimum(curve.thresholds, 1.0)
    return curve.x[chosen].tolist(), curve.y[chosen].tolist(), thresholds[chosen].tolist()
