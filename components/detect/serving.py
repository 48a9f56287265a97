"""Serving of a detector: pixels to boxes around findings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from components.common.formats.documents import mlflow_key
from components.common.formats.predictions import TARGETS
from components.common.formats.shards import Pixels
from components.common.training.inference import InputImage, batches, best_device, restore
from components.detect.annotations import annotate_rows
from components.detect.network import SETTINGS, Detector, rebuild
from components.detect.predictions import Found, box_columns, to_numpy

REQUIRED = (*SETTINGS, "classes", "size", "bits", "normalisation", "threshold")
ONNX_OUTPUTS: tuple[str, ...] = ()
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
        """Returns the detections in each image (H, W) as in shards, in coordinates of the padded square."""
        found = [each for batch in batches(images, self.size, self.bits, self._device) for each in self._detector(batch)]
        return [to_numpy(each, *self._place(image)) for each, image in zip(found, images, strict=True)]

    def answer(self, images: Sequence[InputImage], options: dict[str, Any]) -> pd.DataFrame:
        """Returns one row per box, by descending score within an image, whose number in the call is `image`.

        Boxes are in pixels of the source (for arrays: of the array), with the origin at the top left, as in boxes.csv.
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

    def columns(self, images: Sequence[Pixels], rows: pa.Table, findings: list[str]) -> dict[str, Any]:
        """Returns detections, and the boxes that are there where these are known."""
        labels = np.array(rows["labels"].to_pylist(), np.float32).reshape(len(rows), -1)
        known = annotate_rows(rows, labels, self.size, self.labels, findings)
        return box_columns(self.find(images), known, self.labels)

    def unlabelled(self, findings: list[str]) -> list[str]:
        """Returns nothing: `counts` tells in which images a class is unknown."""
        return []

    def counts(self, predictions: pa.Table) -> dict[str, float]:
        """Counts the known boxes of each class, and the images in which a class is unknown."""
        known = [boxes for boxes in predictions[TARGETS].to_pylist() if boxes is not None]
        found: dict[str, float] = {
            f"boxes_{mlflow_key(name)}": sum(box["label"] == name for boxes in known for box in boxes) for name in self.labels
        }
        return found | {"images_unknown": len(predictions) - len(known)}

    def _place(self, image: Pixels) -> tuple[Any, Any]:
        """Returns the position of an image on the padded square: x and y, width and height."""
        extent = np.array(image.shape[::-1])
        return ((self.size - extent) // 2).astype(float), extent.astype(float)


def exportable(network: Boxes) -> torch.nn.Module:
    """Not exported: ONNX_OUTPUTS is empty."""
    raise NotImplementedError


def load(description: dict[str, Any], weights: Path) -> Boxes:
    """Builds a detector from the content of model.json and its weights, for inference; raises UserError if they do not fit together."""
    return restore(weights, lambda tensors: Boxes(description, rebuild(description, tensors)))
