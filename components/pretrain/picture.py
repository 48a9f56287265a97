"""A picture of a few view pairs, for a look at what the encoders are asked to find alike."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

PAIRS = 8
SIDE = 224
"""Largest side of a tile, in pixels."""
GAP = 4
MARGIN = 52
"""Left of the rows, for their names."""
CAPTION = 22
"""Above the columns, for the ids."""
DIGITS = 8
"""Of an image's id."""
PAPER, INK = 255, 40

Floats = npt.NDArray[np.float32]


def write(path: Path, queries: Floats, keys: Floats, ids: Sequence[str]) -> None:
    """Writes a PNG: a column for each image, its query above its key, headed by the first digits of its id.

    Args:
        path: of the file; its folder is made.
        queries: (N, H, W), in [0, 1].
        keys: (N, H, W), likewise.
        ids: of the N images.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(".png", sheet(queries, keys, ids))
    assert done, "an 8-bit picture can be encoded"
    path.write_bytes(content.tobytes())


def sheet(queries: Floats, keys: Floats, ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """The picture, (H, W); arguments as of `write`."""
    rows = [[_tile(view) for view in views] for views in (queries, keys)]
    height, width = rows[0][0].shape
    canvas = np.full((CAPTION + 2 * (height + GAP), MARGIN + len(ids) * (width + GAP)), PAPER, np.uint8)
    for number, (name, tiles) in enumerate(zip(("query", "key"), rows, strict=True)):
        top = CAPTION + number * (height + GAP)
        _write(canvas, name, 4, top + height // 2)
        for column, tile in enumerate(tiles):
            left = MARGIN + column * (width + GAP)
            canvas[top : top + height, left : left + width] = tile
    for column, identity in enumerate(ids):
        _write(canvas, identity[:DIGITS], MARGIN + column * (width + GAP), CAPTION - 7)
    return canvas


def _tile(view: Floats) -> npt.NDArray[np.uint8]:
    factor = min(1.0, SIDE / max(view.shape))
    if factor < 1:
        view = np.asarray(cv2.resize(view, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.float32)
    tile: npt.NDArray[np.uint8] = np.rint(255 * view.clip(0, 1)).astype(np.uint8)
    return tile


def _write(canvas: npt.NDArray[np.uint8], text: str, left: int, bottom: int) -> None:
    cv2.putText(canvas, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
