"""Pixels to boxes around findings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from components.common.formats.shards import Pixels
from components.common.training.inference import InputImage, batches, best_device, decoded, restore
from components.detect.annotations import annotate_rows
from components.detect.network import SETTINGS, Detector, rebuild
from components.detect.predictions import Found, box_columns, to_numpy

NEEDED = (*SETTINGS, "classes", "size", "bits", "normalisation", "threshold")
PLACE = ("x", "y", "width", "height")


class Boxes:
    """A detector."""

    def __init__(self, description: dict[str, Any], detector: Detector):
        self.labels: list[str] = description["classes"]
        self.size, self.bits = int(description["size"]), int(description["bits"])
        self._detector, self._device = detector, best_device()
        detector.to(self._device)

    @torch.no_grad()
    def find(self, images: Sequence[Pixels]) -> list[Found]:
        """What is found in each image (H, W), as shards hold it; on the square that the network sees."""
        found = [each for batch in batches(images, self.size, self.bits, self._device) for each in self._detector(batch)]
        return [to_numpy(each, *self._place(image)) for each, image in zip(found, images, strict=True)]

    def answer(self, images: Sequence[InputImage], options: dict[str, Any]) -> pd.DataFrame:
        """A row a box, by falling score within an image: image (its number in the call), label, score, and x, y, width, height.

        Boxes are in pixels of the source, as in boxes.csv, with the origin at the top left; of an array it is the array itself.
        """
        rows: list[tuple[Any, ...]] = []
        for number, (image, found) in enumerate(zip(images, self.find([image.pixels for image in images]), strict=True)):
            height, width = image.pixels.shape
            across, down = image.width / width, image.height / height
            places = (found.boxes - [*self._place(image.pixels)[0], 0, 0]) * [across, down, across, down]
            names = [self.labels[label] for label in found.labels]
            rows += [(number, name, score, *place) for name, score, place in zip(names, found.scores, places, strict=True)]
        frame = pd.DataFrame(rows, columns=["image", "label", "score", *PLACE])
        return frame.astype({"image": np.int64, "label": object, **dict.fromkeys(("score", *PLACE), np.float32)})

    def columns(self, rows: pa.Table, findings: list[str]) -> dict[str, Any]:
        """What was found, and what is there where that is known."""
        labels = np.array(rows["labels"].to_pylist(), np.float32).reshape(len(rows), -1)
        known = annotate_rows(rows, labels, self.size, self.labels, findings)
        return box_columns(self.find(decoded(rows)), known, self.labels)

    def _place(self, image: Pixels) -> tuple[Any, Any]:
        """Where an image lies on the square: x and y, width and height."""
        extent = np.array(image.shape[::-1])
        return ((self.size - extent) // 2).astype(float), extent.astype(float)


def load(description: dict[str, Any], weights: Path) -> Boxes:
    """A detector with its weights, for inference.

    Args:
        description: content of model.json.
        weights: model.safetensors.

    Raises:
        UserError: the weights do not fit the description.
    """
    return restore(weights, lambda tensors: Boxes(description, rebuild(description, tensors)))
