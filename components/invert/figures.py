"""Figures of the test images and their reconstructions, and of generated images."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from components.common.runs import storage
from components.invert.generator import Generator
from components.invert.predictions import SHOWN

TILE = 128  # minimum side of an image in a figure, in pixels
GAP = 2  # margin around each image, in pixels
SAMPLE_ROWS = 3  # rows of SHOWN generated images each


def draw(folder: Path, reconstructions: list[Tensor], generator: Generator, seed: int) -> None:
    """Writes originals, reconstructions and their differences in rows, each (SHOWN, 1, S, S) in [0, 1]; and generated images."""
    write_rows(folder / "reconstructions.png", reconstructions)
    write_rows(folder / "samples.png", list(generator.samples(SAMPLE_ROWS * SHOWN, SHOWN, seed)))


def write_rows(path: Path, rows: list[Tensor]) -> None:
    """Writes a PNG of images in rows, each row (B, 1, S, S) in [0, 1], all with the same B."""
    scale = max(1, TILE // rows[0].shape[-1])
    tiles = [[_tile(image[0], scale) for image in row.cpu().float().numpy()] for row in rows]
    storage.write(str(path), cv2.imencode(".png", np.vstack([np.hstack(row) for row in tiles]))[1].tobytes())


def _tile(image_HW: npt.NDArray[np.float32], scale: int) -> npt.NDArray[np.uint8]:
    pixels = np.rint(255 * image_HW.clip(0, 1)).astype(np.uint8)
    return np.pad(np.kron(pixels, np.ones((scale, scale), np.uint8)), GAP)
