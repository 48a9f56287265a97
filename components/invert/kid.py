"""Kernel inception distance between two sets of images in any feature space (Binkowski et al. 2018, arXiv 1801.01401)."""

import math

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float64]

BLOCK = 1000  # images of each set that are compared at a time; the estimates of the blocks are averaged


def kid(x: Features, y: Features, paired: bool = False) -> float:
    """Estimates the squared maximum mean discrepancy under the kernel (x . y / d + 1)^3 without bias; it may be negative.

    The sets are (n, d) and (m, d), of at least two images. Images are not compared with themselves. If the sets are paired (x[i] is
    an original and y[i] its reconstruction), neither are the images of a pair, since they resemble each other more than independent
    draws would (Gretton et al. 2012, JMLR 13, equation 4): the distance of a set to itself is then 0.
    """
    blocks = math.ceil(max(len(x), len(y)) / BLOCK)
    pairs = zip(np.array_split(x, blocks), np.array_split(y, blocks), strict=True)
    return float(np.mean([_squared_discrepancy(a, b, paired) for a, b in pairs]))


def _squared_discrepancy(x: Features, y: Features, paired: bool) -> float:
    across = _kernel(x, y)
    return _off_diagonal(_kernel(x, x)) + _off_diagonal(_kernel(y, y)) - 2 * (_off_diagonal(across) if paired else float(across.mean()))


def _kernel(x: Features, y: Features) -> Features:
    values: Features = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def _off_diagonal(square: Features) -> float:
    count = len(square)
    return float((square.sum() - np.trace(square)) / (count * (count - 1)))
