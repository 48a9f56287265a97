"""Serving of an inversion: pixels to latents of a generator, and to reconstructions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from torch import Tensor, nn

from components.common.formats.shards import Pixels
from components.common.training.inference import InputImage, batches, best_device, restore
from components.invert.inverter import ERRORS, MODEL_KEYS, Inverter, TrainedInverter, rebuild
from components.invert.pixels import shrink

REQUIRED = (*MODEL_KEYS.values(), "size", "bits", "normalisation", "judge", "judge_normalisation", "perceptual", "ms_ssim_scales")
ONNX_OUTPUTS: tuple[str, ...] = ("latents",)
RECONSTRUCTIONS = "reconstructions"  # option of a call: whether to return the reconstructed images as well
Numbers = npt.NDArray[np.float32]


class Latents:
    """An encoder with its generator."""

    def __init__(self, description: dict[str, Any], trained: TrainedInverter):
        self.labels: list[str] = []
        self.size, self.bits = int(description["size"]), int(description["bits"])
        self.side, self.trained, self._device = int(description["generator_size"]), trained, best_device()

    def answer(self, images: Sequence[InputImage], options: dict[str, Any]) -> pd.DataFrame:
        """Returns one row per image: `latents` (N, latent_dim), and the errors of the reconstruction.

        With the option `reconstructions` also the reconstruction, (S, S) in [0, 1]: the downsampled image centred on a black square.
        """
        wanted = ["latents", *(["reconstruction"] if options.get(RECONSTRUCTIONS) else [])]
        rows = [row for batch in self._invert([image.pixels for image in images]) for row in _rows(batch)]
        return pd.DataFrame(rows, columns=[*wanted, *ERRORS])

    def columns(self, images: Sequence[Pixels], rows: pa.Table, findings: list[str]) -> dict[str, Any]:
        """Returns the errors of the reconstructions."""
        parts = list(self._invert(images))
        return {name: pa.array(np.concatenate([part[name] for part in parts])) for name in ERRORS}

    def unlabelled(self, findings: list[str]) -> list[str]:
        """Returns nothing: an inversion has no targets."""
        return []

    def counts(self, predictions: pa.Table) -> dict[str, float]:
        """Returns nothing: an inversion has no targets."""
        return {}

    def _invert(self, images: Sequence[Pixels]) -> Iterator[dict[str, Numbers]]:
        for batch in batches(images, self.size, self.bits, self._device):
            image = shrink(batch, self.side)
            w = self.trained.latents(image)
            made = self.trained.inverter.image(w)
            found = {"latents": w, "reconstruction": made[:, 0], **self.trained.errors(image, made)}
            yield {name: value.cpu().numpy() for name, value in found.items()}


class Exported(nn.Module):
    """The encoder: from squares of stored pixels in [0, 1] to latents, which are not refined."""

    def __init__(self, inverter: Inverter, side: int):
        super().__init__()
        self.encoder, self._inverter, self._side = inverter.encoder, inverter, side

    def forward(self, image_B1SS: Tensor) -> Tensor:
        """(B, N, latent_dim)."""
        return self._inverter.encode(shrink(image_B1SS, self._side))


def exportable(network: Latents) -> nn.Module:
    """Returns the encoder."""
    return Exported(network.trained.inverter, network.side)


def load(description: dict[str, Any], weights: Path) -> Latents:
    """Builds an encoder and a generator from model.json and their weights, for inference; raises UserError if they do not fit together."""
    return restore(weights, lambda tensors: Latents(description, rebuild(description, tensors, best_device())))


def _rows(batch: dict[str, Numbers]) -> list[dict[str, Any]]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
