"""How images look, in a few numbers: levels of gray, coarse structure and, where a backbone is given, its features."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa

from components.common.formats.appearance import FEATURES, HEADER, LEVELS, SCHEMA, WAVES
from components.common.formats.shards import Pixels
from components.common.runs.cores import threads

if TYPE_CHECKING:  # imports torch
    from components.common.training.features import Extractor

SIDE = 32  # of the small copy whose waves are taken
EDGE = 1 / 16  # nearly black or white: within this fraction of the range from its end


def describe(rows: pa.Table, images: Sequence[Pixels], features: "Extractor | None" = None) -> pa.Table:
    """Returns the rows of appearance.parquet for rows of shards.

    Args:
        rows: at least the columns image_id and HEADER.
        images: their images.
        features: a backbone whose features are to be among the columns.
    """
    with ThreadPoolExecutor(threads()) as pool:
        levels, waves = zip(*pool.map(measure, images), strict=True)
    columns = {name: rows[name] for name in ("image_id", *HEADER)} | dict(zip(LEVELS, zip(*levels, strict=True), strict=True))
    columns |= {"waves": waves, "features": [None] * len(rows), "backbone": [None] * len(rows)}
    if features:
        found = features(images)
        directions = np.random.default_rng(0).normal(size=(found.shape[1], FEATURES)) / np.sqrt(found.shape[1])
        columns |= {"features": (found @ directions).tolist(), "backbone": [features.weights] * len(rows)}
    return pa.table(columns, SCHEMA)


def measure(pixels: Pixels) -> tuple[Sequence[float], Sequence[float]]:
    """Returns LEVELS of an image (H, W), and the lowest coefficients of the DCT-II of a small copy, without its mean."""
    image = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    levels = [float(value) for value in (image.mean(), image.std(), np.median(image), (image < EDGE).mean(), (image > 1 - EDGE).mean())]
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return levels, cv2.dct(small)[:WAVES, :WAVES].ravel()[1:].tolist()
