"""What the stage says of each image: errors of its reconstruction, and the rows of predictions.parquet."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from components.common.reader import Reader
from components.invert.features import FeatureSpace
from components.invert.inversion import Inversion
from components.invert.pixels import to_images
from components.invert.quality import ms_ssim, mse, psnr, ssim
from components.invert.sources import META

SHOWN = 8
"""Images in the picture of originals and reconstructions."""


@dataclass
class Measured:
    """The images of a split and what became of them."""

    errors: dict[str, npt.NDArray[np.float32]]
    """(N,) by name, in the order of the reader's table."""
    originals: npt.NDArray[np.float64]
    """(N, C): features in the judge."""
    reconstructions: npt.NDArray[np.float64]
    """The same."""
    shown: list[Tensor] = field(default_factory=list)
    """The first originals, their reconstructions, and how far these are off: each (SHOWN, 1, S, S) in [0, 1]."""


def measure(inversion: Inversion, judge: FeatureSpace, mean_image: Tensor, reader: Reader) -> Measured:
    """Reconstructs all images of a split.

    Args:
        inversion: the trained encoder and the generator.
        judge: the feature space of the feature distance and of KID.
        mean_image: (1, 1, S, S), of the train split.
        reader: the split.
    """
    errors: list[dict[str, Tensor]] = []
    features: list[tuple[Tensor, Tensor]] = []
    shown: list[Tensor] = []
    for batch in reader.in_order(inversion.batch_size):
        image = to_images(batch.images, inversion.params.size, inversion.device)
        made = inversion.reconstruct(image)
        errors.append(errors_of(image, made, judge) | {"mean_image_psnr": psnr(image, mean_image)})
        features.append((judge.pooled(image), judge.pooled(made)))
        if sum(map(len, shown)) < SHOWN:
            shown.append(torch.stack([image, made, (image - made).abs()]))
    return Measured(
        errors={name: torch.cat([row[name] for row in errors]).cpu().numpy() for name in errors[0]},
        originals=_stacked([original for original, _ in features]),
        reconstructions=_stacked([made for _, made in features]),
        shown=list(torch.cat(shown, dim=1)[:, :SHOWN]),
    )


@torch.no_grad()
def errors_of(image: Tensor, made: Tensor, judge: FeatureSpace) -> dict[str, Tensor]:
    """(B,) by name: how a reconstruction differs from its original."""
    return {
        "mse": mse(image, made),
        "psnr": psnr(image, made),
        "ssim": ssim(image, made),
        "ms_ssim": ms_ssim(image, made),
        "feature_distance": judge.distance(image, made),
    }


def rows(reader: Reader, split: str, measured: Measured) -> pa.Table:
    """The rows of predictions.parquet of a split."""
    columns: dict[str, Any] = {
        "image_id": reader.table["image_id"],
        "patient_id": reader.table["patient_id"],
        "split": pa.array([split] * len(reader)),
        "task": pa.array(["invert"] * len(reader)),
        **{name: reader.table[name] for name in META},
        **{name: pa.array(values) for name, values in measured.errors.items()},
    }
    return pa.table(columns)


def _stacked(features: list[Tensor]) -> npt.NDArray[np.float64]:
    return torch.cat(features).double().cpu().numpy()
