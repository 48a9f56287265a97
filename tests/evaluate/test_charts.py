import re

import numpy as np
import pytest

from components.common.metrics import Curve, Interval, roc_curve
from components.evaluate.charts import Axis, Line, chart, nice_axis, strip
from components.evaluate.classification import thin


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
    picture = chart("a <line>", [Line([(0, 0), (float("nan"), 1), (1, 1)], "first")], unit, unit, size=(148, 142))
    # The frame is 100 by 100: 40 from the left, 8 from the top.
    assert 'points="40.0,108.0 140.0,8.0"' in picture
    assert 'aria-label="a &lt;line&gt;"' in picture


def test_strip_without_an_interval_shows_the_estimate_alone() -> None:
    picture = strip("x", Interval(0.75, float("nan"), float("nan"), 0), Axis(0.5, 1, (0.5, 1)), 0.5)
    assert 'class="estimate" cx="120.0"' in picture and "whisker" not in picture


def test_thin_leaves_out_straight_runs_only() -> None:
    curve = Curve(np.array([0, 0, 0, 0.5, 1.0]), np.array([0, 0.2, 0.6, 0.6, 1.0]), np.zeros(5))
    assert thin(curve) == [(0, 0), (0, 0.6), (0.5, 0.6), (1, 1)]


def test_thin_keeps_the_ends_and_the_area_of_long_curves() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 5000).astype(float)
    curve = roc_curve(target, rng.random(5000) + 0.5 * target)
    points = np.array(thin(curve, 200))
    assert len(points) == 200
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(np.trapezoid(curve.y, curve.x), abs=5e-3)
