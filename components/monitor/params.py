"""Parameters of `monitor`."""

from typing import Annotated

from pydantic import Field

from components.common.runs.params import NonNegative, Section, Seed


class Monitor(Section):
    """When a batch raises an alarm."""

    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Chance that a batch without any change raises an alarm, all quantities together (Holm's correction)."""
    min_psi: NonNegative = 0.1
    """Least population stability index of an alarm about a category: a large batch also shows changes that do not matter."""
    min_ks: NonNegative = 0.1
    """Least Kolmogorov-Smirnov distance of an alarm about a number, from 0 to 1."""
    min_frechet: NonNegative = 0.25
    """Least Frechet distance of an alarm about coarse structure, whose components have variance 1 in the reference."""
    resamples: Annotated[int, Field(ge=100)] = 9999
    """Random divisions per quantity. With m quantities, fewer than m / false_alarms of them can raise no alarm."""
    seed: Seed = 0
    """Seed of the divisions."""
