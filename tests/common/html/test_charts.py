import re

import numpy as np
import pytest

from components.common.html.charts import Axis, Line, chart, nice_axis


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
