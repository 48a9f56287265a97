"""Serving of a classifier: pixels to calibrated probabilities of findings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from components.classify.network import attach_head
from components.common.formats.documents import mlflow_key
from components.common.formats.predictions import score_column, target_column
from components.common.formats.shards import Pixels
from components.common.training import backbones
from components.common.training.inference import InputImage, batches, best_device

REQUIRED = ("arch", "findings", "size", "bits", "normalisation")
ONNX_OUTPUTS: tuple[str, ...] = ("probability",)


class Classifier(nn.Module):
    """Probabilities of findings."""

    def __init__(self, description: dict[str, Any]):
        super().__init__()
        self.labels: list[str] = description["findings"]
        self.size, self.bits = int(description["size"]), int(description["bits"])
        self.network = attach_head(backbones.build(description["arch"]), len(self.labels))
        self.mean, self.std = description["normalisation"]["mean"], description["normalisation"]["std"]
        self.mirrored = bool(description.get("tta_flip", False))

    def forward(self, image_B1SS: Tensor) -> Tensor:
        """(B, findings) probabilities of squares with values in [0, 1]. The stored head is already divided by the temperature."""
        image = (image_B1SS - self.mean) / self.std
        logits: Tensor = self.network(image)
        if self.mirrored:
            logits = (logits + self.network(image.flip(-1))) / 2
        return torch.sigmoid(logits)

    @torch.inference_mode()
    def score(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """(N, findings) probabilities of images (H, W) as in shards."""
        device = next(self.parameters()).device
        scores = [self(batch).cpu().numpy() for batch in batches(images, self.size, self.bits, device)]
        return np.concatenate(scores) if scores else np.empty((0, len(self.labels)), np.float32)

    def answer(self, images: Sequence[InputImage], options: dict[str, Any]) -> pd.DataFrame:
        """Returns one row per image and one float32 column per finding."""
        return pd.DataFrame(self.score([image.pixels for image in images]), columns=self.labels)

    def columns(self, images: Sequence[Pixels], rows: pa.Table, findings: list[str]) -> dict[str, Any]:
        """Returns score and target of each finding; targets are NaN where unknown."""
        scores, labels = self.score(images), rows["labels"].to_pylist()
        found: dict[str, Any] = {}
        for index, name in enumerate(self.labels):
            known = [row[findings.index(name)] if name in findings else float("nan") for row in labels]
            found |= {score_column(name): pa.array(scores[:, index]), target_column(name): pa.array(known, pa.float32())}
        return found

    def unlabelled(self, findings: list[str]) -> list[str]:
        """Returns the findings that a cohort has no labels of."""
        return [name for name in self.labels if name not in findings]

    def counts(self, predictions: pa.Table) -> dict[str, float]:
        """Counts the positives of each finding."""
        return {
            f"positives_{mlflow_key(name)}": sum(value == 1 for value in predictions[target_column(name)].to_pylist())
            for name in self.labels
        }


def exportable(network: Classifier) -> nn.Module:
    """Returns the whole network."""
    return network


def load(description: dict[str, Any], weights: Path) -> Classifier:
    """Builds a classifier from the content of model.json and its weights, for inference; raises UserError if they do not fit together."""
    made = Classifier(description)
    backbones.load_state(made.network, weights.read_bytes(), str(weights))
    return made.eval().to(best_device())
