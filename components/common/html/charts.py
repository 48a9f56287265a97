"""The data of the SVG charts that templates/charts.html draws."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Point = tuple[float, float]
UNIT = (0.0, 0.5, 1.0)


class Axis(NamedTuple):
    """Range and tick labels of one axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    name: str = ""
    labels: tuple[str, ...] = ()  # one per tick; if empty, ticks are labelled with their values

    def labelled(self) -> list[tuple[float, str]]:
        """Pairs of tick and label."""
        return list(zip(self.ticks, self.labels or [f"{tick:g}" for tick in self.ticks], strict=True))

    def place(self, value: float, start: float, stop: float) -> float:
        """Maps a value to a coordinate between start and stop."""
        return start + (value - self.low) / (self.high - self.low) * (stop - start)


class Line(NamedTuple):
    """A polyline and its class in page.css."""

    points: Sequence[Point]
    style: str


class Chart(NamedTuple):
    """Lines in a frame with ticks."""

    lines: Sequence[Line]  # drawn in order
    x: Axis
    y: Axis
    marks: Sequence[Point] = ()  # points marked with a ring
    width: int = 210  # in pixels
    height: int = 200

    @property
    def frame(self) -> tuple[int, int, int, int]:
        """Left, right, top and bottom in pixels; the margins hold the labels of the axes."""
        return 40, self.width - 8, 8, self.height - 34

    def places(self, points: Iterable[Point]) -> list[Point]:
        """Maps the finite ones of some points to pixels."""
        left, right, top, bottom = self.frame
        finite = [point for point in points if all(map(math.isfinite, point))]
        return [(self.x.place(x, left, right), self.y.place(y, bottom, top)) for x, y in finite]


def nice_axis(values: Sequence[float], name: str = "", count: int = 4) -> Axis:
    """An axis around finite values, with about `count` steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    rough = (high - low or abs(high) or 1.0) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, name)


def whole_axis(last: int, name: str) -> Axis:
    """An axis of the whole numbers 1 ... last."""
    step = max(1, math.ceil((last - 1) / 5))
    return Axis(1.0, float(max(last, 2)), tuple(float(value) for value in range(1, max(last, 2) + 1, step)), name)


def unit_axis(intervals: Iterable[Sequence[float]], floor: float = 0.5) -> Axis:
    """An axis up to 1 for intervals (estimate, low, high, ...), from `floor` or from the tenth below the lowest value."""
    values = [value for interval in intervals for value in interval[:3] if math.isfinite(value)]
    low = min([floor, *(math.floor(10 * value) / 10 for value in values)])
    step = 1 if low >= 0.4 else 2  # tenths between ticks
    ticks = tuple(tick / 10 for tick in range(10, round(10 * low) - 1, -step))
    return Axis(low, 1.0, ticks[::-1])
