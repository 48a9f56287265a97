"""Small SVG charts for the reports: no scripts, no fonts, coloured by the page's style sheet, the same bytes every time."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

Point = tuple[float, float]


class Axis(NamedTuple):
    """Range and labels of one direction."""

    low: float
    high: float
    ticks: tuple[float, ...]
    name: str = ""
    labels: tuple[str, ...] = ()
    """Of the ticks; none: their values."""

    def labelled(self) -> list[tuple[float, str]]:
        """The ticks with what is written at them."""
        return list(zip(self.ticks, self.labels or [f"{tick:g}" for tick in self.ticks], strict=True))

    def place(self, value: float, start: float, stop: float) -> float:
        """Where a value lies between the coordinates start and stop."""
        return start + (value - self.low) / (self.high - self.low) * (stop - start)


class Line(NamedTuple):
    """A polyline and its style: a class of the style sheet."""

    points: Sequence[Point]
    style: str


UNIT = (0.0, 0.5, 1.0)


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


def chart(label: str, lines: Sequence[Line], x: Axis, y: Axis, marks: Sequence[Point] = (), size: tuple[int, int] = (210, 200)) -> str:
    """Lines in a frame with ticks.

    Args:
        label: says in words what the picture shows, for those who cannot see it.
        lines: drawn in order; points that are not finite are left out.
        x: horizontal axis.
        y: vertical axis.
        marks: points to be marked with a ring.
        size: width and height in pixels.
    """
    width, height = size
    left, right, top, bottom = 40, width - 8, 8, height - 34
    parts = [_frame(x, y, left, right, top, bottom)]
    for line in lines:
        finite = [point for point in line.points if all(map(math.isfinite, point))]
        places = [(x.place(a, left, right), y.place(b, bottom, top)) for a, b in finite]
        if len(places) == 1:
            parts.append(f'<circle class="{line.style} dot" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3"/>')
        elif places:
            parts.append(f'<polyline class="{line.style}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>')
    parts += [f'<circle class="mark" cx="{x.place(a, left, right):.1f}" cy="{y.place(b, bottom, top):.1f}" r="4"/>' for a, b in marks]
    return svg(label, width, height, "chart", parts)


def _frame(x: Axis, y: Axis, left: int, right: int, top: int, bottom: int) -> str:
    parts = []
    for tick, label in y.labelled():
        place = y.place(tick, bottom, top)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{place + 3.5:.1f}" text-anchor="end">{escape(label)}</text>')
    for tick, label in x.labelled():
        place = x.place(tick, left, right)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 14}" text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<text class="name" x="{(left + right) / 2:.1f}" y="{bottom + 29}" text-anchor="middle">{escape(x.name)}</text>')
    if y.name:
        turn = f'transform="translate(10 {(top + bottom) / 2:.1f}) rotate(-90)"'
        parts.append(f'<text class="name" text-anchor="middle" {turn}>{escape(y.name)}</text>')
    return "".join(parts)


def svg(label: str, width: int, height: int, style: str, parts: Sequence[str]) -> str:
    """A picture of its parts.

    Args:
        label: says in words what it shows.
        width: in pixels.
        height: in pixels.
        style: classes of the style sheet.
        parts: SVG elements.
    """
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg class="{style}" role="img" aria-label="{escape(label, quote=True)}" {size}>{"".join(parts)}</svg>'
