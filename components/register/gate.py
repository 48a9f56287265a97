"""The gate: which alias a new version gets. Pure functions of numbers and tables.

The first version above a floor becomes `champion`. Later ones must beat the champion on the same test images: the 95 % interval of
the paired difference in the task's metric must lie above zero. Everything else is a `challenger`. tasks/ says what metric and floor are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from components.common.statistics.intervals import Interval

Alias = Literal["champion", "challenger"]
CONFIDENCE = 0.95


class NotComparable(Exception):  # noqa: N818 (an answer rather than an error)
    """Two versions were not tested on the same images for the same; the message says how they differ."""


class Floor(NamedTuple):
    """Whether a model may become champion when there is none."""

    passed: bool
    words: str
    """Says so, as part of a sentence."""


@dataclass(frozen=True)
class Decision:
    """An alias and why."""

    alias: Alias
    reason: str
    """One sentence."""
    difference: Interval | None = None
    """The metric of the new version minus the champion's, where they were compared."""


def first(floor: Floor) -> Decision:
    """The decision while there is no champion."""
    link = "and" if floor.passed else "but"
    return Decision("champion" if floor.passed else "challenger", f"there is no champion yet, {link} {floor.words}")


def against(champion: str, measure: str, difference: Interval) -> Decision:
    """The decision when there is a champion.

    Args:
        champion: its version.
        measure: name of the metric, for readers.
        difference: the metric of the new version minus the champion's; NaN where it is not defined.
    """
    better = difference.low > 0
    shown = f"{difference.estimate:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
    reason = f"the difference in {measure} to champion version {champion} ({shown}) {'lies' if better else 'does not lie'} above zero"
    return Decision("champion" if better else "challenger", reason, difference)


def refuse_other_images(new: Sequence[str], champion: Sequence[str]) -> None:
    """Checks that two versions were tested on the same images.

    Raises:
        NotComparable: they were not.
    """
    if sorted(new) != sorted(champion):
        common = len(set(new) & set(champion))
        counts = f"{len(new)} and {len(champion)} images, {common} in common"
        raise NotComparable(f"the champion was tested on other images ({counts}), so that the two cannot be compared")
