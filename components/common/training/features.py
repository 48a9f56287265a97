"""Features of images in a pretrained backbone, for comparing images and cohorts."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from components.common.formats.backbone import BACKBONE
from components.common.formats.shards import Pixels
from components.common.runs.inputs import read_document
from components.common.training import backbones
from components.common.training.inference import batches, best_device


def extractor(folder: str, size: int, bits: int) -> Callable[[Sequence[Pixels]], npt.NDArray[np.float64]]:
    """Loads a backbone and returns a function from images of shards to their features after global average pooling, (N, C).

    Args:
        folder: output folder of pretrain.
        size: longer side of the images.
        bits: bits per pixel.

    Raises:
        UserError: it is no backbone.
    """
    document, _ = read_document(folder, BACKBONE, "pretrain")
    resnet, description, _ = backbones.load(folder, document.get("arch", ""))
    mean, std = description["normalisation"]["mean"], description["normalisation"]["std"]
    device = best_device()
    resnet.to(device).eval()

    @torch.inference_mode()
    def features(images: Sequence[Pixels]) -> npt.NDArray[np.float64]:
        pooled = [resnet((batch - mean) / std).double().cpu().numpy() for batch in batches(images, size, bits, device)]
        return np.concatenate(pooled)

    return features
