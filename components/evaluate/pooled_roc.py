"""ROC curve of all findings pooled (micro average), for pages that show a single curve."""

import numpy as np

from components.common.formats.predictions import PREDICTIONS, findings_of, matrix, parse_predictions, rows_of, score_column, target_column
from components.common.runs import storage
from components.common.statistics.arrays import has_both
from components.common.statistics.curves import MOST_POINTS, roc_curve


def roc_points(folder: str) -> tuple[list[float], list[float], list[float]]:
    """Reads the predictions of classify and returns the ROC curve of the test split, from the highest threshold to the lowest.

    Returns:
        False positive rates, true positive rates and thresholds at no more than MOST_POINTS points, the ends of the curve among
        them; none if only one class is known.
    """
    path = storage.join(folder, PREDICTIONS)
    test = rows_of(parse_predictions(storage.read(path), path), "test")
    findings = findings_of(test)
    scores, targets = (matrix(test, [column(name) for name in findings]).T.ravel() for column in (score_column, target_column))
    if not has_both(targets):
        return [], [], []
    curve = roc_curve(targets, scores)
    chosen = np.unique(np.linspace(0, len(curve.x) - 1, MOST_POINTS).round().astype(int))
    # The first threshold is infinite, which JSON lacks; scores are probabilities.
    thresholds = np.minimum(curve.thresholds, 1.0)
    return curve.x[chosen].tolist(), curve.y[chosen].tolist(), thresholds[chosen].tolist()
