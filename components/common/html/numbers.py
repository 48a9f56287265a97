"""How the report writes numbers: with a typographic minus, a dash for what is undefined, and intervals in grey."""

import math
from collections.abc import Iterable

from components.common.html.charts import Axis
from components.common.statistics.intervals import Interval


def number(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}".replace("-", "\u2212") if math.isfinite(value) else "–"


def signed(value: float) -> str:
    """Three decimals and a sign, of a difference."""
    return f"{value:+.3f}".replace("-", "\u2212") if math.isfinite(value) else "–"


def probability(value: float) -> str:
    """A p-value."""
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def cell(interval: Interval, signs: bool = False) -> str:
    """An estimate and its interval, as HTML.

    Args:
        interval: what to write.
        signs: with a plus sign, for differences.
    """
    estimate = signed(interval.estimate) if signs else number(interval.estimate)
    return f'{estimate}<span class="range">{limits(interval, signs)}</span>' if math.isfinite(interval.low) else estimate


def limits(interval: Interval, signs: bool = False) -> str:
    """`low to high`."""
    if not math.isfinite(interval.low):
        return "no interval"
    write = signed if signs else number
    return f"{write(interval.low)} to {write(interval.high)}"


def spoken(name: str, interval: Interval, confidence: float) -> str:
    """The interval in words, for those who cannot see a picture of it."""
    if not math.isfinite(interval.estimate):
        return f"{name}: not defined"
    return f"{name} {number(interval.estimate)}, {percent(confidence)} interval {limits(interval)}"


def percent(fraction: float) -> str:
    """`95 %`."""
    return f"{100 * fraction:.4g} %"


def unit_axis(intervals: Iterable[Interval], floor: float = 0.5) -> Axis:
    """An axis from `floor`, or lower where an interval reaches there, to 1."""
    values = [value for interval in intervals for value in interval[:3] if math.isfinite(value)]
    low = min([floor, *(math.floor(10 * value) / 10 for value in values)])
    step = 1 if low >= 0.4 else 2  # tenths between ticks
    ticks = tuple(tick / 10 for tick in range(10, round(10 * low) - 1, -step))
    return Axis(low, 1.0, ticks[::-1])
