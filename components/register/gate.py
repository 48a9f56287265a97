"""The gate: which alias a new version gets. Pure functions of numbers and tables.

The first version above a floor becomes `champion`. Later ones must beat the champion on the same test images: the 95 %
interval of the paired difference in macro AUROC must lie above zero. Everything else is a `challenger`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.common.metrics import Interval, paired_auroc_difference

Alias = Literal["champion", "challenger"]
CONFIDENCE = 0.95


class NotComparable(Exception):  # noqa: N818 (an answer rather than an error)
    """Two versions were not tested on the same images for the same findings; the message says how they differ."""


@dataclass(frozen=True)
class Decision:
    """An alias and why."""

    alias: Alias
    reason: str
    """One sentence."""
    difference: Interval | None = None
    """Macro AUROC of the new version minus the champion's, where they were compared."""


def first(auroc: float, min_auroc: float) -> Decision:
    """The decision while there is no champion.

    Args:
        auroc: macro test AUROC; NaN when no finding could be evaluated.
        min_auroc: the floor.
    """
    if auroc > min_auroc:
        return Decision("champion", f"there is no champion yet, and the macro test AUROC {auroc:.4f} is above min_auroc {min_auroc:g}")
    shown = "is not known" if np.isnan(auroc) else f"{auroc:.4f} is not above min_auroc {min_auroc:g}"
    return Decision("challenger", f"there is no champion yet, but the macro test AUROC {shown}")


def against(champion: str, difference: Interval) -> Decision:
    """The decision when there is a champion.

    Args:
        champion: its version.
        difference: macro AUROC of the new version minus the champion's.
    """
    if np.isnan(difference.low):
        return Decision("challenger", f"no finding has enough positives and negatives to compare with champion version {champion}")
    better = difference.low > 0
    shown = f"{difference.estimate:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
    reason = f"the difference in macro AUROC to champion version {champion} ({shown}) {'lies' if better else 'does not lie'} above zero"
    return Decision("champion" if better else "challenger", reason, difference)


def compare(new: pa.Table, champion: pa.Table, resamples: int, seed: int, min_positives: int) -> Interval:
    """Macro AUROC of a new version minus the champion's, on the same test images, judged by the new version's targets.

    Args:
        new: test rows of predictions.parquet: image_id, patient_id, and score_F and target_F for each finding F.
        champion: the same of the champion.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        min_positives: positives, and negatives, that a finding needs to count in the macro average.

    Raises:
        NotComparable: the findings or the test images differ.
    """
    names = findings(new)
    if sorted(names) != sorted(findings(champion)):
        raise NotComparable(f"the champion was trained for other findings ({', '.join(findings(champion))})")
    new, champion = new.sort_by("image_id"), champion.sort_by("image_id")
    _refuse_other_images(new["image_id"].to_pylist(), champion["image_id"].to_pylist())
    mine, theirs = (_matrix(table, [f"score_{name}" for name in names]) for table in (new, champion))
    targets = _matrix(new, [f"target_{name}" for name in names])
    return paired_auroc_difference(targets, mine, theirs, new["patient_id"].to_pylist(), resamples, seed, min_positives, CONFIDENCE)


def findings(table: pa.Table) -> list[str]:
    """Names of the findings that a predictions table has scores of."""
    return [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]


def _refuse_other_images(new: list[str], champion: list[str]) -> None:
    if new != champion:
        common = len(set(new) & set(champion))
        counts = f"{len(new)} and {len(champion)} images, {common} in common"
        raise NotComparable(f"the champion was tested on other images ({counts}), so that the two cannot be compared")


def _matrix(table: pa.Table, names: list[str]) -> npt.NDArray[np.float64]:
    return np.column_stack([table[name].to_numpy().astype(np.float64) for name in names])
