"""Forest plots, in the style of components/common/html/charts.py."""

import math

from components.common.html.charts import Axis, svg
from components.common.statistics.intervals import Interval

STRIP = (12.0, 228.0)  # where the axis of a strip begins and ends


def strip(label: str, interval: Interval, axis: Axis, reference: float, style: str = "") -> str:
    """An interval as one row of a forest plot."""
    places = [axis.place(value, *STRIP) for value in (reference, interval.low, interval.high, interval.estimate)]
    middle = 14
    parts = [f'<line class="reference" x1="{places[0]:.1f}" x2="{places[0]:.1f}" y1="0" y2="28"/>']
    if math.isfinite(interval.low):
        parts.append(f'<line class="whisker" x1="{places[1]:.1f}" x2="{places[2]:.1f}" y1="{middle}" y2="{middle}"/>')
        parts += [f'<line class="cap" x1="{a:.1f}" x2="{a:.1f}" y1="{middle - 4}" y2="{middle + 4}"/>' for a in places[1:3]]
    if math.isfinite(interval.estimate):
        parts.append(f'<circle class="estimate" cx="{places[3]:.1f}" cy="{middle}" r="4.5"/>')
    return svg(label, 240, 28, f"strip {style}".strip(), parts)


def scale(label: str, axis: Axis) -> str:
    """The axis above a column of strips."""
    places = [(axis.place(tick, *STRIP), tick) for tick in axis.ticks]
    parts = [f'<text x="{a:.1f}" y="10" text-anchor="middle">{tick:g}</text>' for a, tick in places]
    parts += [f'<line class="grid" x1="{a:.1f}" x2="{a:.1f}" y1="14" y2="18"/>' for a, _ in places]
    return svg(label, 240, 18, "strip", parts)
