"""Serving of `toy`: pixels to mean brightness."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from components.common.formats.shards import Pixels
from components.common.training import backbones
from components.common.training.inference import InputImage, batches

REQUIRED = ("arch", "size", "bits", "normalisation")
ONNX_OUTPUTS: tuple[str, ...] = ()


class Brightness(nn.Module):
    """Mean brightness of images, from 0 to 1."""

    labels: list[str] = []  # noqa: RUF012 - part of the contract

    def __init__(self, about: dict[str, Any], resnet: ResNet | None = None):
        super().__init__()
        self.size, self.bits, self.normalisation = about["size"], about["bits"], about["normalisation"]
        self.resnet = resnet or backbones.build(about["arch"])
        self.resnet.fc = nn.Linear(backbones.width(self.resnet), 1)

    def features(self, image_B1SS: Tensor) -> Tensor:
        """(B, C), of pixels in [0, 1]."""
        normalised = (image_B1SS - self.normalisation["mean"]) / self.normalisation["std"]
        return backbones.forward_stages(self.resnet, normalised)[0]

    def forward(self, image_B1SS: Tensor) -> Tensor:
        predicted: Tensor = self.resnet.fc(self.features(image_B1SS))
        return predicted.squeeze(1)

    @torch.inference_mode()
    def compare(self, images: Sequence[Pixels]) -> dict[str, Any]:
        """Returns predicted and true brightness of images as in shards."""
        squares = list(batches(images, self.size, self.bits, torch.device("cpu")))
        found = {"predicted": [self(each) for each in squares], "true": [each.mean((1, 2, 3)) for each in squares]}
        return {name: torch.cat(values).numpy() for name, values in found.items()}

    def answer(self, images: Sequence[InputImage], options: dict[str, Any]) -> pd.DataFrame:
        return pd.DataFrame({"brightness": self.compare([image.pixels for image in images])["predicted"]})

    def columns(self, images: Sequence[Pixels], rows: pa.Table, findings: list[str]) -> dict[str, Any]:
        return self.compare(images)

    def unlabelled(self, findings: list[str]) -> list[str]:
        return []

    def counts(self, predictions: pa.Table) -> dict[str, float]:
        return {}


def load(description: dict[str, Any], weights: Path) -> Brightness:
    network = Brightness(description)
    backbones.load_state(network.resnet, weights.read_bytes(), str(weights))
    return network.eval()


def exportable(network: Brightness) -> nn.Module:
    raise NotImplementedError
