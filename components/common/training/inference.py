"""What the networks of all tasks take, and how it reaches them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from components.common.errors import UserError
from components.common.formats.shards import Pixels, decode, square

T = TypeVar("T")

BATCH = 32
PIXELS = ("image_id", "pixels", "codec", "height", "width", "bits")


class Image(NamedTuple):
    """One image to be scored."""

    pixels: Pixels
    """(H, W), as a row of shards holds it."""
    height: int
    width: int
    """Of the source, in pixels."""


class Network(Protocol):
    """A model, ready to be used."""

    size: int
    """Longer side of the images that it takes, in pixels."""
    bits: int
    """Of their pixels."""
    labels: list[str]
    """Names of what it looks for; none where there is no such thing."""

    def answer(self, images: Sequence[Image], options: dict[str, Any]) -> pd.DataFrame:
        """What users get."""

    def columns(self, rows: pa.Table, findings: list[str]) -> dict[str, Any]:
        """The columns of the task in predictions.parquet.

        Args:
            rows: of shards.
            findings: names of their labels.
        """


def decoded(rows: pa.Table) -> list[Pixels]:
    """The images of rows of shards."""
    return [decode(row) for row in rows.select(PIXELS).to_pylist()]


def batches(images: Sequence[Pixels], size: int, bits: int, device: torch.device) -> Iterator[Tensor]:
    """(B, 1, size, size) with values in [0, 1], of images (H, W) with H and W at most `size`: padded as in training."""
    for start in range(0, len(images), BATCH):
        squares = np.stack([square(image, size) for image in images[start : start + BATCH]]).astype(np.float32)
        yield torch.from_numpy(squares / np.float32(2**bits - 1))[:, None].to(device)


def best_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def restored(weights: Path, rebuild: Callable[[dict[str, Tensor]], T]) -> T:
    """What is built of the content of model.safetensors.

    Args:
        weights: the file.
        rebuild: builds a network of tensors by name; raises RuntimeError if they do not fit.

    Raises:
        UserError: it is no such file, or the weights do not fit the description.
    """
    try:
        return rebuild(load_file(weights))
    except SafetensorError as error:
        raise UserError(f"{weights}: not safetensors ({error}); train the model again") from None
    except RuntimeError as error:
        raise UserError(f"{weights}: does not fit model.json ({' '.join(str(error).split())[:200]}); train the model again") from None
