"""A best-effort look for text in the corners and borders of an image: names and dates that were burned into the pixels.

What it looks for: strokes much brighter (or darker) than what is around them, in pieces of a character's size, three or more
of them in a row, near an edge. A side marker alone (L, R) is no row. It is no proof either way: text in the middle of the
image, handwriting, slanted and very large or very small text are not looked for, and hardware may look like text.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from components.common.formats.shards import Pixels

BORDER = 0.2
"""A character lies near an edge if its centre is within this share of the height or the width from it."""
STROKE = 7
"""Strokes are narrower than this, in pixels."""
CONTRAST = 70
"""Of 255, of a stroke against what is around it."""
HEIGHTS = (5, 40)
"""Of a character, in pixels: smaller ones cannot be read."""
MAX_WIDTH = 3.5
"""Of a piece, in heights: small characters touch their neighbours."""
MIN_CHARACTERS = 3
MAX_PIECES = 600
"""Above this the strokes are a texture or noise; the tallest are looked at."""

_KERNEL = cv2.getStructuringElement(cv2.MORPH_RECT, (STROKE, STROKE))


class Box(NamedTuple):
    """Of a piece, in pixels."""

    left: int
    top: int
    width: int
    height: int


def suspected(image: Pixels, dark: bool = False) -> bool:
    """Whether there seems to be text in the corners or along the borders.

    Args:
        image: (H, W), uint8 or uint16, at the size that is stored.
        dark: look for dark text, too: what was burned in white into a MONOCHROME1 image is black here.
    """
    gray = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    operations = (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT) if dark else (cv2.MORPH_TOPHAT,)
    return any(_has_row(_pieces(cv2.morphologyEx(gray, operation, _KERNEL))) for operation in operations)


def _pieces(strokes: npt.NDArray[Any]) -> list[Box]:
    """Pieces near the border that have a character's size."""
    height, width = strokes.shape
    mask = cv2.threshold(strokes, CONTRAST, 255, cv2.THRESH_BINARY)[1]
    down, across = round(BORDER * height), round(BORDER * width)
    mask[down : height - down, across : width - across] = 0
    if cv2.countNonZero(mask) < MIN_CHARACTERS * HEIGHTS[0]:
        return []
    # Contours of so few pixels take a tenth of the time of connected components.
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = (Box(*cv2.boundingRect(outline)) for outline in outlines)
    shortest, tallest = HEIGHTS
    fitting = [box for box in boxes if shortest <= box.height <= tallest and box.width <= MAX_WIDTH * box.height]
    return sorted(fitting, key=lambda box: -box.height)[:MAX_PIECES]


def _has_row(boxes: list[Box]) -> bool:
    """Whether some characters stand side by side: of like height, on one line, a character's width or two apart."""
    if len(boxes) < MIN_CHARACTERS:
        return False
    left, top, width, height = np.array(boxes, float).T
    bottom, right = top + height, left + width
    lower = np.minimum(height[:, None], height[None])
    alike = np.maximum(height[:, None], height[None]) <= 1.35 * lower
    level = np.abs(bottom[:, None] - bottom[None]) <= np.maximum(0.2 * lower, 1.0)
    gap = left[None] - right[:, None]
    follows = alike & level & (gap > -0.2 * lower) & (gap <= 0.9 * lower)
    np.fill_diagonal(follows, False)
    # A piece that follows one that follows one: a row of three.
    return bool((follows.any(0) & follows.any(1)).any())
