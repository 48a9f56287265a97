"""What the stage says of each image: errors of its reconstruction, and the rows of predictions.parquet."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from components.common.formats.predictions import common_columns
from components.common.training.reader import Reader
from components.invert.inverter import Trained
from components.invert.pixels import to_images

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


def measure(trained: Trained, reader: Reader, batch_size: int) -> Measured:
    """Reconstructs all images of a split."""
    judge, size = trained.judge, trained.inverter.params.size
    errors: list[dict[str, Tensor]] = []
    features: list[tuple[Tensor, Tensor]] = []
    shown: list[Tensor] = []
    for batch in reader.in_order(batch_size):
        image = to_images(batch.images, size, trained.mean_image.device)
        made = trained.reconstruct(image)
        errors.append(trained.errors(image, made))
        features.append((judge.pooled(image), judge.pooled(made)))
        if sum(map(len, shown)) < SHOWN:
            shown.append(torch.stack([image, made, (image - made).abs()]))
    return Measured(
        errors={name: torch.cat([row[name] for row in errors]).cpu().numpy() for name in errors[0]},
        originals=_stacked([original for original, _ in features]),
        reconstructions=_stacked([made for _, made in features]),
        shown=list(torch.cat(shown, dim=1)[:, :SHOWN]),
    )


def rows(reader: Reader, split: str, measured: Measured) -> pa.Table:
    """The rows of predictions.parquet of a split."""
    return pa.table({
        **common_columns(reader.table, split, "invert"),
        **{name: pa.array(values) for name, values in measured.errors.items()},
    })  # fmt: skip


def _stacked(features: list[Tensor]) -> npt.NDArray[np.float64]:
    return torch.cat(features).double().cpu().numpy()
