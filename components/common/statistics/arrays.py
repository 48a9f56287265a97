"""Array types and small helpers that the metrics share. Targets are 1, 0 or NaN (unknown)."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.signedinteger[Any]]


def divide(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any], otherwise: float = np.nan) -> Floats:
    """Quotient in the shape of the numerator; `otherwise` where the denominator is 0."""
    denominator = np.broadcast_to(denominator, numerator.shape)
    quotient: Floats = np.divide(numerator, denominator, out=np.full(numerator.shape, otherwise), where=denominator > 0)
    return quotient


def has_both(targets: Floats, minimum: int = 1) -> Flags:
    """Whether there are at least `minimum` positives and as many negatives along the first axis."""
    enough: Flags = ((targets == 1).sum(axis=0) >= minimum) & ((targets == 0).sum(axis=0) >= minimum)
    return enough
