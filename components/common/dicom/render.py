"""Stored values to the image of a row: one lookup table, computed from the histogram, then a resize."""

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from components.common.dicom.decoders import Stored
from components.common.dicom.grayscale import Grayscale, Values
from components.common.dicom.refusal import Reason, Refused
from components.common.formats.shards import Pixels

# The processes of the pool are the parallelism.
cv2.setNumThreads(1)

_EXACT_COUNT = 2**24


class Rendered(NamedTuple):
    """The image of a row."""

    pixels: Pixels
    """(H, W), bright = dense tissue."""
    counts: npt.NDArray[np.int64]
    """(2**bits,): how often each value occurs in it."""


def render(stored: Stored, grayscale: Grayscale, size: int, bits: int, percentile: float) -> Rendered:
    """Brightness clipped to [0, percentile], scaled to the full range, resized.

    Args:
        stored: (H, W).
        grayscale: what the stored values mean.
        size: longer side of the result, in pixels.
        bits: 8 or 16, of a pixel of the result.
        percentile: of the pixels that are not padding, interpolated as by numpy.percentile.

    Returns:
        (H', W') with max(H', W') = size, and its histogram.

    Raises:
        Refused: the image is blank.
    """
    codes = _codes(stored, grayscale.bits)
    counts = histogram(codes, grayscale.bits)
    present = grayscale.without_padding(np.flatnonzero(counts))
    if not present.size:
        raise Refused(Reason.BLANK_IMAGE, "nothing but padding")
    scaled = (2**bits - 1) * _brightness(grayscale, present, counts[present], percentile)
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    if max(stored.shape) != size:
        image = _quantised(resize(_look_up(codes, present, scaled, np.dtype(np.float32)), size), dtype)
        return Rendered(image, histogram(image, bits))
    values = np.rint(scaled).astype(dtype)
    # What holds for the pixels follows from what holds for their values.
    of_image = np.bincount(values, counts[present], 2**bits).astype(np.int64)
    of_image[0] += stored.size - of_image.sum()
    return Rendered(_look_up(codes, present, values, dtype), of_image)


def _brightness(grayscale: Grayscale, present: npt.NDArray[np.intp], counts: npt.NDArray[np.int64], percentile: float) -> Values:
    """In [0, 1], of the bit patterns (N,) that occur `counts` (N,) times; refuses an image of one value, or nearly."""
    brightness = grayscale.brightness(grayscale.numbers(present))
    if grayscale.unprocessed:
        brightness = brightness - quantiles(brightness, counts, 100 - percentile)[0]
    upper, first, last = quantiles(brightness, counts, percentile, 1, 99)
    if upper <= 0 or first == last:
        raise Refused(Reason.BLANK_IMAGE, "at least 98 % of the pixels are the same")
    return np.clip(brightness, 0, upper) / upper


def _quantised(image: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.clip(np.rint(image), 0, np.iinfo(dtype).max).astype(dtype)


def resize(image: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """(H, W) -> (H', W') with the aspect kept and max(H', W') = size: area averages, or linear when enlarging."""
    height, width = resized_shape(image.shape[0], image.shape[1], size)
    method = cv2.INTER_AREA if max(image.shape) > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.float32)


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image whose longer side becomes `size`."""
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def histogram(image: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int64]:
    """How often each value below 2**bits occurs in a uint8 or uint16 image (H, W): (2**bits,), exact."""
    values = 1 << bits
    # OpenCV is four times faster than numpy.bincount, but counts in float32.
    rows = max(1, _EXACT_COUNT // image.shape[1])
    counts = np.zeros(values, np.int64)
    for start in range(0, image.shape[0], rows):
        block = cv2.calcHist([image[start : start + rows]], [0], None, [values], [0, values])
        counts += block.ravel().astype(np.int64)
    return counts


def quantiles(values: Values, counts: npt.NDArray[np.int64], *percentiles: float) -> list[float]:
    """numpy.percentile (linear) of `values` (N,) that occur `counts` (N,) times."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    last = int(cumulative[-1]) - 1
    positions = [last * (percentile / 100) for percentile in percentiles]
    neighbours = [(int(position), min(int(position) + 1, last)) for position in positions]
    found = values[order[np.searchsorted(cumulative, neighbours, side="right")]].tolist()
    return [_interpolate(lower, upper, position % 1) for (lower, upper), position in zip(found, positions, strict=True)]


def _interpolate(lower: float, upper: float, weight: float) -> float:
    """As numpy does it, to the last bit."""
    step = upper - lower
    return upper - step * (1 - weight) if weight >= 0.5 else lower + step * weight


def _codes(stored: Stored, bits: int) -> npt.NDArray[Any]:
    """The stored bit patterns (H, W), without what lies above Bits Stored (overlays, copies of the sign)."""
    codes = stored.view(f"u{stored.itemsize}")
    return codes if bits == 8 * stored.itemsize or not codes.max() >> bits else codes & ((1 << bits) - 1)


def _look_up(codes: npt.NDArray[Any], present: npt.NDArray[np.intp], values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`values` of the codes that are `present`, 0 for the others, over the image."""
    table = np.zeros(1 << (8 * codes.itemsize), dtype)
    table[present] = values
    return cv2.LUT(codes, table)
