"""Features of images in a pretrained backbone, for comparing images and cohorts."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from components.common.formats.shards import Pixels
from components.common.training import backbones
from components.common.training.inference import batches, best_device


class Extractor:
    """Computes the features of images in a backbone, after global average pooling."""

    def __init__(self, folder: str, size: int, bits: int):
        """Loads a backbone.

        Args:
            folder: output folder of pretrain.
            size: longer side of the images.
            bits: bits per pixel.

        Raises:
            UserError: it is no backbone.
        """
        resnet, description, digest = backbones.load(folder)
        self.digest = digest  # SHA-256 of backbone.json
        self.weights = description["sha256"]  # SHA-256 of backbone.safetensors
        self._normalisation, self._size, self._bits, self._device = description["normalisation"], size, bits, best_device()
        self._resnet = resnet.to(self._device).eval()

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels]) -> npt.NDArray[np.float64]:
        """Computes (N, C) for images (H, W) of shards."""
        mean, std = self._normalisation["mean"], self._normalisation["std"]
        squares = batches(images, self._size, self._bits, self._device)
        return np.concatenate([self._resnet((batch - mean) / std).double().cpu().numpy() for batch in squares])
