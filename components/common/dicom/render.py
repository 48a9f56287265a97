"""Stored values to a gray image: one lookup table, computed from the histogram, then a resize."""

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from components.common.dicom.grayscale import Decoded, Grayscale, Values
from components.common.dicom.refusal import Refused
from components.common.dicom.words import Words
from components.common.formats.quarantine import Reason

GrayImage = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]  # (H, W), bright = dense tissue

# Files are processed in parallel by processes, not by threads.
cv2.setNumThreads(1)

_EXACT_COUNT = 2**24


class Rendered(NamedTuple):
    """A gray image and its histogram."""

    pixels: GrayImage
    counts: npt.NDArray[np.int64]  # (2**bits,): number of pixels per value
    levels: int  # number of gray levels between the 1st and the 99th percentile, before resizing


def render(decoded: Decoded, size: int, bits: int, percentile: float, pixel_aspect: float = 1.0) -> Rendered:
    """Clips brightness to [0, percentile], scales it to the full range, and resizes the image; raises Refused if it is blank.

    `size` is the longer side of the result in pixels, `bits` (8 or 16) is the depth of its pixels. The percentile is of the pixels that are
    not padding, interpolated like numpy.percentile. `pixel_aspect` is the height of a pixel of the file over its width; those of the result
    are square.
    """
    words, grayscale = decoded
    counts = histogram(words, grayscale.word.used_bits(words))
    present = grayscale.word.without_padding(words, np.flatnonzero(counts))
    if not present.size:
        raise Refused(Reason.BLANK_IMAGE, "nothing but padding")
    brightness, middle = _brightness(grayscale, present, counts[present], percentile)
    scaled = (2**bits - 1) * brightness
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    values = np.rint(scaled).astype(dtype)
    levels = int(np.count_nonzero(np.bincount(values[middle])))
    if resized_shape(words.shape[0], words.shape[1], size, pixel_aspect) != words.shape:
        resized = resize(_look_up(words, present, scaled, np.dtype(np.float32)), size, pixel_aspect)
        image = np.clip(np.rint(resized), 0, 2**bits - 1).astype(dtype)
        return Rendered(image, histogram(image, bits), levels)
    # The histogram follows from that of the words: no need to count the pixels again.
    image_counts = np.bincount(values, counts[present], 2**bits).astype(np.int64)
    image_counts[0] += words.size - image_counts.sum()
    return Rendered(_look_up(words, present, values, dtype), image_counts, levels)


def _brightness(
    grayscale: Grayscale, present: npt.NDArray[np.intp], counts: npt.NDArray[np.int64], percentile: float
) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Returns brightness in [0, 1] of the words (N,) that occur `counts` (N,) times, and which lie between the 1st and 99th percentile.

    Raises Refused if the image is nearly constant.
    """
    brightness = grayscale.brightness(grayscale.word.numbers(present))
    if grayscale.unprocessed:
        brightness = brightness - quantiles(brightness, counts, 100 - percentile)[0]
    upper, first, last = quantiles(brightness, counts, percentile, 1, 99)
    if upper <= 0 or first == last:
        raise Refused(Reason.BLANK_IMAGE, "at least 98 % of the pixels are the same")
    return np.clip(brightness, 0, upper) / upper, (brightness >= first) & (brightness <= last)


def resize(image: npt.NDArray[np.float32], size: int, pixel_aspect: float = 1.0) -> npt.NDArray[np.float32]:
    """Resizes (H, W) to (H', W') with max(H', W') = size, keeping the aspect ratio: by area to shrink, then linearly to enlarge."""
    height, width = resized_shape(image.shape[0], image.shape[1], size, pixel_aspect)
    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    for shape, method in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if image.shape != shape:
            image = np.asarray(cv2.resize(image, shape[::-1], interpolation=method), np.float32)
    return image


def resized_shape(height: int, width: int, size: int, pixel_aspect: float = 1.0) -> tuple[int, int]:
    """Returns height and width of an image after its longer side has become `size`, and its pixels square."""
    tall = height * pixel_aspect
    longer = max(tall, width)
    return max(1, round(tall * size / longer)), max(1, round(width * size / longer))


def histogram(image: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int64]:
    """Counts each value below 2**bits in a uint8 or uint16 image (H, W), exactly: (2**bits,)."""
    values = 1 << bits
    # OpenCV is four times faster than numpy.bincount, but counts in float32.
    rows = max(1, _EXACT_COUNT // image.shape[1])
    counts = np.zeros(values, np.int64)
    for start in range(0, image.shape[0], rows):
        block = cv2.calcHist([image[start : start + rows]], [0], None, [values], [0, values])
        counts += block.ravel().astype(np.int64)
    return counts


def quantiles(values: Values, counts: npt.NDArray[np.int64], *percentiles: float) -> list[float]:
    """Computes numpy.percentile (linear) of `values` (N,) that occur `counts` (N,) times."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    last = int(cumulative[-1]) - 1
    positions = [last * (percentile / 100) for percentile in percentiles]
    neighbours = [(int(position), min(int(position) + 1, last)) for position in positions]
    found = values[order[np.searchsorted(cumulative, neighbours, side="right")]].tolist()
    return [_interpolate(lower, upper, position % 1) for (lower, upper), position in zip(found, positions, strict=True)]


def _interpolate(lower: float, upper: float, weight: float) -> float:
    """Interpolates with numpy's own formula, so that results are bit-identical."""
    step = upper - lower
    return upper - step * (1 - weight) if weight >= 0.5 else lower + step * weight


def _look_up(words: Words, present: npt.NDArray[np.intp], values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Maps an image of words to `values` of the words that are `present`, and others to 0."""
    table = np.zeros(1 << (8 * words.itemsize), dtype)
    table[present] = values
    return cv2.LUT(words, table)
