"""The page of scored images: how many there are, and what the model says about them. It holds no image and no id."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.common.formats.predictions import scores_of
from components.common.html import page
from components.common.html.charts import UNIT, Axis, Chart, Line, nice_axis
from components.heads import HEADS
from components.predict.source import Source

SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles in the table
POINTS = 41  # of a chart


class Scores(NamedTuple):
    """The distribution of one number that the model gives each image."""

    name: str
    quantiles: list[float]
    chart: Chart


def render(table: pa.Table, loaded: Source, metrics: Mapping[str, float], reasons: Mapping[str, int], inputs: Mapping[str, str]) -> str:
    """Renders report.html.

    Args:
        table: predictions.
        loaded: the model.
        metrics: content of metrics.json.
        reasons: number of quarantined files by reason.
        inputs: SHA-256 by name of input.
    """
    known = {name: values[np.isfinite(values)] for name, values in scores_of(table).items()}
    return page.render(
        "predict/report.html",
        model=loaded.external["model"],
        title=HEADS[loaded.head].title,
        metrics=metrics,
        reasons=reasons,
        shown=SHOWN,
        scores=[_scores(name, values) for name, values in known.items() if len(values)],
        inputs=inputs,
    )


def _scores(name: str, values: npt.NDArray[np.float64]) -> Scores:
    shares = np.linspace(0, 1, POINTS)
    points = list(zip(np.quantile(values, shares).tolist(), shares.tolist(), strict=True))
    x = nice_axis([values.min(), values.max()]) if values.max() > 1 or values.min() < 0 else Axis(0, 1, UNIT)
    return Scores(name, np.quantile(values, SHOWN).tolist(), Chart([Line(points, "first")], x, Axis(0, 1, UNIT), width=310, height=190))
