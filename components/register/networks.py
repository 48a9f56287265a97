"""The network of a model.json with everything around it that turns pixels into what users want."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.common import backbone
from components.common.shards import Pixels, square

BATCH = 32


class Classifier(nn.Module):
    """Probabilities of findings."""

    def __init__(self, description: dict[str, Any]):
        super().__init__()
        self.findings: list[str] = description["findings"]
        self.size, self.full = int(description["size"]), 2 ** int(description["bits"]) - 1
        self.network = backbone.build(description["arch"])
        self.network.fc = nn.Linear(backbone.width(self.network), len(description["findings"]))
        self.mean, self.std = description["normalisation"]["mean"], description["normalisation"]["std"]
        self.mirrored = bool(description.get("tta_flip", False))

    def forward(self, image_B1SS: Tensor) -> Tensor:
        """(B, findings) of squares with values in [0, 1]. The head is calibrated already: classify divides it by the temperature."""
        image = (image_B1SS - self.mean) / self.std
        logits: Tensor = self.network(image)
        if self.mirrored:
            logits = (logits + self.network(image.flip(-1))) / 2
        return torch.sigmoid(logits)

    @torch.inference_mode()
    def score(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """(N, findings) of images (H, W) as shards hold them, H and W at most the training's size: padded as in training."""
        scores = np.empty((len(images), len(self.findings)), np.float32)
        device = next(self.parameters()).device
        for start in range(0, len(images), BATCH):
            squares = np.stack([square(image, self.size) for image in images[start : start + BATCH]]).astype(np.float32)
            image_B1SS = torch.from_numpy(squares / np.float32(self.full))[:, None].to(device)
            scores[start : start + BATCH] = self(image_B1SS).cpu().numpy()
        return scores


def classifier(description: dict[str, Any], weights: Path) -> Classifier:
    """A classifier with its weights, for inference, on a GPU if there is one.

    Args:
        description: content of model.json.
        weights: model.safetensors: torchvision's names.

    Raises:
        UserError: the weights do not fit the description.
    """
    made = Classifier(description)
    backbone.load_state(made.network, weights.read_bytes(), str(weights))
    return made.eval().to("cuda" if torch.cuda.is_available() else "cpu")
