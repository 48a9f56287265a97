"""The model as users get it: an MLflow pyfunc made from this file, safetensors and JSON, without a pickle.

    model = mlflow.pyfunc.load_model("models:/cxr-classify@champion")
    probabilities = model.predict(images)  # (N, H, W) shard pixels -> a column a finding

MLflow runs this file when a model is packed and whenever it is loaded, with copies of the modules named in
`packing.CODE` on the path.
"""

import json
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from torch import Tensor, nn
from torchvision.models import ResNet

from components.common import backbone
from components.common.shards import Pixels, square

BATCH = 32


class Classifier(PythonModel):
    """Probabilities of findings from the pixels of shards."""

    def load_context(self, context: PythonModelContext) -> None:
        """Builds the network from the artifacts `description` (model.json) and `weights` (model.safetensors)."""
        self._description: dict[str, Any] = json.loads(Path(context.artifacts["description"]).read_bytes())
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = _build(self._description, Path(context.artifacts["weights"])).to(self._device)

    # MLflow reads this annotation, and understands an array only when it is bare.
    def predict(self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Probability of each finding.

        Args:
            context: not used.
            model_input: (N, H, W) images as `shards.decode` returns them: uint8 or uint16 as in training, bright = dense
                tissue, longer side at most the training size.
            params: not used.

        Returns:
            N rows, one float32 column a finding.

        Raises:
            ValueError: another shape or type, or larger images.
        """
        self._check(model_input)
        batches = [self._probabilities(model_input[start : start + BATCH]) for start in range(0, len(model_input), BATCH)]
        findings = self._description["findings"]
        return pd.DataFrame(np.concatenate([np.empty((0, len(findings)), np.float32), *batches]), columns=findings)

    def _check(self, images: Pixels) -> None:
        size, bits = self._description["size"], self._description["bits"]
        if images.ndim != 3 or images.dtype != np.dtype(f"uint{bits}") or max(images.shape[1:]) > size:
            found = f"{images.dtype} of shape {images.shape}"
            raise ValueError(f"images must be uint{bits} of shape (N, H, W) with H and W at most {size}, not {found}")

    @torch.inference_mode()
    def _probabilities(self, images: Pixels) -> Any:
        image_B1HW = self._normalised(images).to(self._device)
        return torch.sigmoid(self._network(image_B1HW)).cpu().numpy()

    def _normalised(self, images: Pixels) -> Tensor:
        """(B, 1, S, S) from (B, H, W): the training's padding and scale."""
        squares = np.stack([square(image, self._description["size"]) for image in images])
        fractions = squares.astype(np.float32) / (2 ** self._description["bits"] - 1)
        normalisation = self._description["normalisation"]
        return torch.from_numpy((fractions - np.float32(normalisation["mean"])) / np.float32(normalisation["std"]))[:, None]


def _build(description: dict[str, Any], weights: Path) -> ResNet:
    """The network of a model.json, with its weights, for inference."""
    network: ResNet = backbone.build(description["arch"])
    network.fc = nn.Linear(backbone.width(network), len(description["findings"]))
    backbone.load_state(network, weights.read_bytes(), str(weights))
    network.eval()
    return network


mlflow.models.set_model(Classifier())
