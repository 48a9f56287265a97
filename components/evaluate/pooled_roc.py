"""ROC curve of all findings pooled (micro average), for pages that show a single curve."""

import io

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common.formats.predictions import PREDICTIONS
from components.common.runs import storage
from components.common.statistics.arrays import has_both
from components.common.statistics.curves import MOST_POINTS, roc_curve


def roc_points(folder: str) -> tuple[list[float], list[float], list[float]]:
    """Reads the predictions of classify and returns the ROC curve of the test split, from the highest threshold to the lowest.

    Returns:
        False positive rates, true positive rates and thresholds at no more than MOST_POINTS points, the ends of the curve among
        them; none if only one class is known.
    """
    table = pq.read_table(io.BytesIO(storage.read(storage.join(folder, PREDICTIONS))))
    test = table.filter(pc.equal(table["split"], "test"))
    findings = [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]
    scores, targets = (
        np.concatenate([test[f"{kind}_{name}"].to_numpy().astype(np.float64) for name in findings]) for kind in ("score", "target")
    )
    if not has_both(targets):
        return [], [], []
    curve = roc_curve(targets, scores)
    chosen = np.unique(np.linspace(0, len(curve.x) - 1, MOST_POINTS).round().astype(int))
    # The first threshold is infinite, which JSON lacks; scores are probabilities.
    thresholds = np.minimum(curve.thresholds, 1.0)
    return curve.x[chosen].tolist(), curve.y[chosen].tolist(), thresholds[chosen].tolist()
