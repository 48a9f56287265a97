"""How images look, in a few numbers: levels of gray, coarse structure and, where a backbone is given, its features."""

from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from components.common.formats.appearance import FEATURES, HEADER, LEVELS, SCHEMA, WAVES
from components.common.formats.backbone import BACKBONE
from components.common.formats.shards import PACKED, Pixels, decode
from components.common.runs.cores import threads
from components.common.runs.inputs import read_document
from components.common.runs.shards import Shards

SIDE = 32  # of the small copy whose waves are taken
EDGE = 1 / 16  # nearly black or white: within this fraction of the range from its end
ROWS = 128  # rows decoded at a time


def describe(shards: Shards, wanted: Container[str] | None = None, backbone: str | None = None) -> pa.Table:
    """Returns the rows of appearance.parquet for the wanted images of the shards, all by default, in order.

    Args:
        shards: the images.
        wanted: their ids.
        backbone: output folder of pretrain, whose features are to be among the columns.

    Raises:
        UserError: shards or backbone cannot be read.
    """
    tables = [SCHEMA.empty_table()]
    project = _projected(backbone, shards) if backbone else None
    with ThreadPoolExecutor(threads()) as pool:
        for part in shards.parts():
            with part.open() as file:
                for batch in file.iter_batches(ROWS, columns=[*PACKED, *HEADER]):
                    packed = [row for row in batch.to_pylist() if wanted is None or row["image_id"] in wanted]
                    images = list(pool.map(decode, packed))
                    rows = [_describe(row, measured) for row, measured in zip(packed, pool.map(measure, images), strict=True)]
                    for row, values in zip(rows, project(images) if project and images else (), strict=False):
                        row |= values
                    tables.append(pa.Table.from_pylist(rows, SCHEMA))
    return pa.concat_tables(tables)


def _projected(backbone: str, shards: Shards) -> Callable[[Sequence[Pixels]], list[dict[str, Any]]]:
    """Returns a function from images to the columns `features` and `backbone`."""
    from components.common.training.features import extractor  # imports torch

    digest = read_document(backbone, BACKBONE, "pretrain")[0].get("sha256")
    features = extractor(backbone, shards.size, shards.bits)

    def project(images: Sequence[Pixels]) -> list[dict[str, Any]]:
        found = features(images)
        directions = np.random.default_rng(0).normal(size=(found.shape[1], FEATURES)) / np.sqrt(found.shape[1])
        return [{"features": row, "backbone": digest} for row in (found @ directions).tolist()]

    return project


def _describe(row: dict[str, Any], measured: tuple[Sequence[float], Sequence[float]]) -> dict[str, Any]:
    levels, waves = measured
    return {"image_id": row["image_id"], **{name: row[name] for name in HEADER}, **dict(zip(LEVELS, levels, strict=True)), "waves": waves}


def measure(pixels: Pixels) -> tuple[Sequence[float], Sequence[float]]:
    """Returns LEVELS of an image (H, W), and the lowest coefficients of the DCT-II of a small copy, without its mean."""
    image = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    levels = [float(value) for value in (image.mean(), image.std(), np.median(image), (image < EDGE).mean(), (image > 1 - EDGE).mean())]
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return levels, cv2.dct(small)[:WAVES, :WAVES].ravel()[1:].tolist()
