"""The page of a batch: what has changed, by how much, and how sure that is. It holds no image and no id."""

from components.common.formats.reference import Reference
from components.common.html import page
from components.common.html.charts import UNIT, Axis, Chart, Line
from components.monitor.drift import MEASURES, Drift, Quantity, alarm
from components.monitor.params import Monitor


def render(drift: Drift, reference: Reference, params: Monitor, inputs: dict[str, str]) -> str:
    """Renders report.html."""
    return page.render(
        "monitor/report.html",
        drift=drift,
        reference=reference,
        params=params,
        inputs=inputs,
        alarm=alarm(drift)[0],
        measures=MEASURES,
        charts_of={one.name: _chart(one) for one in drift.quantities if one.measure == "ks"},
    )


def render_skipped(why: str, inputs: dict[str, str]) -> str:
    """Renders the report.html of a batch that is not compared."""
    return page.render("monitor/skipped.html", why=why, inputs=inputs)


def _chart(quantity: Quantity) -> Chart:
    """Cumulative shares of the bins: the largest distance between the lines is the statistic."""
    lines = []
    for place, style in ((1, "first"), (2, "second")):
        total, points = 0.0, [(0.0, 0.0)]
        for number, bin_ in enumerate(quantity.bins, 1):
            total += float(bin_[place])
            points.append((number / len(quantity.bins), min(total, 1.0)))
        lines.append(Line(points, style))
    ends = (quantity.bins[0][0], quantity.bins[-1][0])
    return Chart(
        lines, Axis(0, 1, (0.0, 1.0), "Bins of the reference, " + " to ".join(ends), ("", "")), Axis(0, 1, UNIT), width=310, height=190
    )
