"""Detection of text that was burned into the pixels near the borders of an image, such as names and dates. Best effort.

Looks for strokes much brighter (or darker) than their surroundings, in components of a character's size, three or more of them in
a row, near a border. A single side marker (L, R) is no row. Text in the middle of the image, handwriting, slanted, very large and
very small text are not found, and hardware may look like text.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from components.common.dicom.render import GrayImage

BORDER = 0.2  # width of the border, as a share of height or width, that is searched for characters
STROKE = 7  # width of the widest stroke, in pixels
CONTRAST = 70  # minimum contrast of a stroke with its surroundings, out of 255
HEIGHTS = (5, 40)  # range of a character's height, in pixels: smaller ones are illegible
MAX_WIDTH = 3.5  # maximum width of a component, in heights: small characters touch their neighbours
MIN_CHARACTERS = 3
MAX_COMPONENTS = 600  # only the tallest are kept: more of them are texture or noise

_KERNEL = cv2.getStructuringElement(cv2.MORPH_RECT, (STROKE, STROKE))


class Component(NamedTuple):
    """Bounding box of connected stroke pixels."""

    left: int
    top: int
    width: int
    height: int


def is_text_suspected(image: GrayImage, dark: bool = False) -> bool:
    """Whether there seems to be bright text near the borders of an image or, with `dark`, black text (which MONOCHROME1 inverts)."""
    gray = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    operations = (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT) if dark else (cv2.MORPH_TOPHAT,)
    return any(_has_row(_components(cv2.morphologyEx(gray, operation, _KERNEL))) for operation in operations)


def _components(strokes: npt.NDArray[Any]) -> list[Component]:
    """Returns components near the border that have a character's size."""
    height, width = strokes.shape
    mask = cv2.threshold(strokes, CONTRAST, 255, cv2.THRESH_BINARY)[1]
    down, across = round(BORDER * height), round(BORDER * width)
    mask[down : height - down, across : width - across] = 0
    if cv2.countNonZero(mask) < MIN_CHARACTERS * HEIGHTS[0]:
        return []
    # With so few pixels, contours take a tenth of the time of cv2.connectedComponents.
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    components = (Component(*cv2.boundingRect(outline)) for outline in outlines)
    shortest, tallest = HEIGHTS
    fitting = [each for each in components if shortest <= each.height <= tallest and each.width <= MAX_WIDTH * each.height]
    return sorted(fitting, key=lambda each: -each.height)[:MAX_COMPONENTS]


def _has_row(components: list[Component]) -> bool:
    """Whether characters stand side by side: of similar height, on one line, at most a character's width or two apart."""
    if len(components) < MIN_CHARACTERS:
        return False
    left, top, width, height = np.array(components, float).T
    bottom, right = top + height, left + width
    lower = np.minimum(height[:, None], height[None])
    similar = np.maximum(height[:, None], height[None]) <= 1.35 * lower
    level = np.abs(bottom[:, None] - bottom[None]) <= np.maximum(0.2 * lower, 1.0)
    gap = left[None] - right[:, None]
    follows = similar & level & (gap > -0.2 * lower) & (gap <= 0.9 * lower)
    np.fill_diagonal(follows, False)
    # A component with both a predecessor and a successor is the middle of a row of three.
    return bool((follows.any(0) & follows.any(1)).any())
