from components.common.html.charts import Axis
from components.common.html.forest import strip
from components.common.statistics.intervals import Interval


def test_strip_without_an_interval_shows_the_estimate_alone() -> None:
    picture = strip("x", Interval(0.75, float("nan"), float("nan"), 0), Axis(0.5, 1, (0.5, 1)), 0.5)
    assert 'class="estimate" cx="120.0"' in picture and "whisker" not in picture
