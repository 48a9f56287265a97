import numpy as np
import pytest

from components.classify.evaluation import thin
from components.common.html.charts import Axis
from components.common.html.forest import strip
from components.common.statistics.metrics import Curve, Interval, roc_curve


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
