"""A figure of a few images and their two views, to check by eye what the encoders are trained to match."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from components.common.runs import storage

COLUMNS = 8
SIDE = 224  # largest side of a tile in pixels
GAP = 4
MARGIN = 52  # width left of the rows, for their names
CAPTION = 22  # height above the columns, for the ids
DIGITS = 8  # digits of an image's id that are shown
PAPER, INK = 255, 40

Floats = npt.NDArray[np.float32]


def write_views(path: Path, views: Mapping[str, Floats], ids: Sequence[str]) -> None:
    """Writes a PNG, and its folder: one column per image under its id, one row per entry of `views`, each (N, H, W) in [0, 1]."""
    storage.write(str(path), cv2.imencode(".png", draw_views(views, ids))[1].tobytes())


def draw_views(views: Mapping[str, Floats], ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Draws the figure, (H, W); arguments as for `write_views`."""
    rows = {name: [_tile(view) for view in row] for name, row in views.items()}
    height, width = next(iter(rows.values()))[0].shape
    canvas = np.full((CAPTION + len(rows) * (height + GAP), MARGIN + len(ids) * (width + GAP)), PAPER, np.uint8)
    for number, (name, tiles) in enumerate(rows.items()):
        top = CAPTION + number * (height + GAP)
        _put_text(canvas, name, 4, top + height // 2)
        for column, tile in enumerate(tiles):
            left = MARGIN + column * (width + GAP)
            canvas[top : top + height, left : left + width] = tile
    for column, identity in enumerate(ids):
        _put_text(canvas, identity[:DIGITS], MARGIN + column * (width + GAP), CAPTION - 7)
    return canvas


def _tile(view: Floats) -> npt.NDArray[np.uint8]:
    factor = min(1.0, SIDE / max(view.shape))
    if factor < 1:
        view = np.asarray(cv2.resize(view, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.float32)
    tile: npt.NDArray[np.uint8] = np.rint(255 * view.clip(0, 1)).astype(np.uint8)
    return tile


def _put_text(canvas: npt.NDArray[np.uint8], text: str, left: int, bottom: int) -> None:
    cv2.putText(canvas, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
