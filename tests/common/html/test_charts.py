import re
from typing import Any

import numpy as np
import pytest

from components.common.html.charts import Axis, Chart, Line, nice_axis
from components.common.html.page import ENVIRONMENT
from components.common.statistics.intervals import Interval


@pytest.mark.parametrize("values", [(0.1, 0.73), (0.5, 0.5), (-3.0, 12.0), (1e-5, 3e-4), (0.0, 0.0), (4900.0, 5100.0)])
def test_nice_axis_holds_the_values_in_round_steps(values: tuple[float, float]) -> None:
    axis = nice_axis(values)
    assert axis.low <= min(values) and max(values) <= axis.high
    steps = np.diff(axis.ticks)
    assert 1 <= len(steps) <= 6
    np.testing.assert_allclose(steps, steps[0])
    assert re.match(r"[125]\.0+e", f"{steps[0]:.6e}")


def test_chart_puts_points_where_they_belong() -> None:
    unit = Axis(0, 1, (0, 1))
    chart = Chart([Line([(0, 0), (float("nan"), 1), (1, 1)], "first")], unit, unit, width=148, height=142)
    picture = draw("chart", chart, "a <line>")
    # The plot area is 100 x 100 px with its corner at (40, 8).
    assert 'points="40.0,108.0 140.0,8.0"' in picture
    assert 'aria-label="a &lt;line&gt;"' in picture


def test_single_points_are_dots_and_marks_are_rings() -> None:
    unit = Axis(0, 1, (0, 1))
    picture = draw("chart", Chart([Line([(0.5, 0.5)], "second")], unit, unit, [(1, 0), (float("nan"), 0)], 148, 142), "dot")
    assert 'class="second dot" cx="90.0" cy="58.0"' in picture and "polyline" not in picture
    assert picture.count('class="mark"') == 1 and 'class="mark" cx="140.0" cy="108.0"' in picture


def test_strip_without_an_interval_shows_the_estimate_alone() -> None:
    interval = Interval(0.75, float("nan"), float("nan"), 0)
    picture = draw("strip", "x", interval, Axis(0.5, 1, (0.5, 1)), 0.5, 0.95)
    assert 'class="estimate" cx="120.0"' in picture and "whisker" not in picture
    assert 'aria-label="x 0.750, no interval"' in picture


def test_strip_labels_its_numbers() -> None:
    axis = Axis(0.5, 1, (0.5, 1))
    assert 'aria-label="AUROC 0.750, 95 % interval 0.700 to 0.800"' in draw("strip", "AUROC", Interval(0.75, 0.7, 0.8, 9), axis, 0.5, 0.95)
    undefined = Interval(float("nan"), float("nan"), float("nan"), 0)
    assert 'aria-label="AUROC: not defined"' in draw("strip", "AUROC", undefined, axis, 0.5, 0.95)


def draw(macro: str, *arguments: Any) -> str:
    return ENVIRONMENT.from_string("{{ charts[macro](*arguments) }}").render(macro=macro, arguments=arguments)
