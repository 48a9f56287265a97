"""Figures of predictions: images with their annotated and detected boxes; the choice of images depends only on the scores."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from components.common.formats.shards import Pixels
from components.common.runs import storage
from components.common.statistics.detection_matching import IOUS, iou
from components.common.training.reader import Reader
from components.detect.annotations import Annotations, Array
from components.detect.predictions import Found

KINDS = ("hit", "miss", "false_positive")
EACH = 2  # figures of each kind
SIDE = 480  # minimum height or width of a figure, in pixels
TEXT = 0.5  # font scale
TRUTH, HIT, FALSE_POSITIVE = (80, 220, 80), (255, 200, 60), (70, 70, 255)
"""Colours as blue, green, red: annotated boxes, detections that hit one, and those that do not."""

Picture = npt.NDArray[np.uint8]


class Scene(NamedTuple):
    """The detections of an image above the threshold."""

    row: int
    boxes: Array  # (D, 4), by descending score
    scores: Array
    names: list[str]
    hit: npt.NDArray[np.bool_]
    missed: int  # number of annotated boxes that were not detected


def draw(folder: Path, reader: Reader, found: list[Found], known: Annotations, classes: list[str], threshold: float) -> None:
    """Writes up to EACH figures of hits, of misses and of false positives of a split.

    Detections and annotations are in the order of the reader's table; afterwards the reader is restricted to the images drawn.
    """
    folder.mkdir(exist_ok=True)
    scenes = [_scene(row, found[row], known, classes, threshold) for row in np.flatnonzero(known.known).tolist()]
    wanted = {scene.row: name for name, scene in _choose(scenes).items()}
    by_row = {scene.row: scene for scene in scenes}
    reader.keep(np.array(list(wanted), np.int64))
    for batch in reader.in_order(EACH):
        for image, row in zip(batch.images, batch.rows.tolist(), strict=True):
            drawn = cv2.imencode(".png", _draw(image, by_row[row], known))[1]
            storage.write(str(folder / f"{wanted[row]}.png"), drawn.tobytes())


def _choose(scenes: list[Scene]) -> dict[str, Scene]:
    """Chooses the most confident hits without an error, the images with most misses, the most confident false positives; no image twice."""
    ranked = {
        "hit": sorted((s for s in scenes if s.hit.any() and s.hit.all() and not s.missed), key=lambda s: -s.scores[0]),
        "miss": sorted((s for s in scenes if s.missed), key=lambda s: -s.missed),
        "false_positive": sorted((s for s in scenes if not s.hit.all()), key=lambda s: -s.scores[~s.hit][0]),
    }
    chosen: dict[str, Scene] = {}
    for kind in KINDS:
        taken = {scene.row for scene in chosen.values()}
        fresh = [scene for scene in ranked[kind] if scene.row not in taken]
        chosen |= {f"{kind}_{index + 1}": scene for index, scene in enumerate(fresh[:EACH])}
    return chosen


def _scene(row: int, found: Found, known: Annotations, classes: list[str], threshold: float) -> Scene:
    shown = found.scores >= threshold
    boxes, scores, labels = found.boxes[shown], found.scores[shown], found.labels[shown]
    right = (iou(boxes, known.boxes[row]) >= IOUS[0]) & (labels[:, None] == known.labels[row][None])
    names = [classes[label] for label in labels]
    return Scene(row, boxes, scores, names, right.any(axis=1), int((~right.any(axis=0)).sum()))


def _draw(square: Pixels, scene: Scene, known: Annotations) -> Picture:
    (left, top), (width, height) = known.origin[scene.row].astype(int), known.extent[scene.row].astype(int)
    gray = square[top : top + height, left : left + width].astype(np.float32) / np.iinfo(square.dtype).max
    factor = max(1, -(-SIDE // max(height, width)))
    large = cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    picture: Picture = np.repeat((255 * large.clip(0, 1)).astype(np.uint8)[:, :, None], 3, axis=2)
    for box in known.boxes[scene.row]:
        _rectangle(picture, (box - [left, top, 0, 0]) * factor, TRUTH)
    for box, score, name, hit in zip(scene.boxes, scene.scores, scene.names, scene.hit, strict=True):
        _rectangle(picture, (box - [left, top, 0, 0]) * factor, HIT if hit else FALSE_POSITIVE, f"{name} {score:.2f}")
    return picture


def _rectangle(picture: Picture, box: Array, colour: tuple[int, int, int], text: str = "") -> None:
    x, y, right, bottom = np.concatenate([box[:2], box[:2] + box[2:]]).round().astype(int).tolist()
    cv2.rectangle(picture, (x, y), (right, bottom), colour, 2)
    if text:
        (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, TEXT, 1)
        left = max(0, min(x, picture.shape[1] - width))
        bottom = y if y > height + below else bottom + height + below
        cv2.rectangle(picture, (left, bottom - height - below), (left + width, bottom), colour, cv2.FILLED)
        cv2.putText(picture, text, (left, bottom - below), cv2.FONT_HERSHEY_SIMPLEX, TEXT, (0, 0, 0), 1, cv2.LINE_AA)
