"""The gate: which alias a new version gets. Pure functions of numbers and tables.

The first version above a floor becomes `champion`. Later ones must beat the champion on the same test images: the 95 % interval of
the paired difference in the metric of the head must lie above zero. Everything else is a `challenger`. The registration.py of a head
defines its metric and its floor.
"""

from dataclasses import dataclass
from typing import Literal

from components.common.head import Floor
from components.common.statistics.intervals import Interval

Alias = Literal["champion", "challenger"]


@dataclass(frozen=True)
class Decision:
    """An alias and why."""

    alias: Alias
    reason: str  # one sentence
    difference: Interval | None = None  # the metric of the new version minus the champion's, where they were compared


def first(floor: Floor) -> Decision:
    """Decides when there is no champion."""
    link = "and" if floor.passed else "but"
    return Decision("champion" if floor.passed else "challenger", f"there is no champion yet, {link} {floor.reason}")


def against(champion: str, measure: str, difference: Interval) -> Decision:
    """Decides by the difference of the metric to that of the champion version; it may be NaN."""
    better = difference.low > 0
    shown = f"{difference.estimate:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
    reason = f"the difference in {measure} to champion version {champion} ({shown}) {'lies' if better else 'does not lie'} above zero"
    return Decision("champion" if better else "challenger", reason, difference)
