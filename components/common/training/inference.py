"""The models of all heads: how they are written, and inference with them (batches, devices, loading of weights)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.common.errors import UserError
from components.common.formats.atomic import replaced
from components.common.formats.model import DESCRIPTION, IMAGES, SCHEMA_VERSION, WEIGHTS
from components.common.formats.shards import Pixels, square
from components.common.runs import cache, storage
from components.common.runs.shards import Part, Shards, map_images
from components.common.runs.stage_run import StageRun

T = TypeVar("T")

BATCH = 32


class InputImage(NamedTuple):
    """An image to score."""

    pixels: Pixels  # (H, W), as in a row of shards
    height: int  # height of the source image in pixels
    width: int  # width of the source image in pixels


def write_model(job: StageRun, weights: dict[str, Tensor] | None, shards: Shards, description: dict[str, Any]) -> None:
    """Writes model.safetensors, images.txt, and model.json: the description between what the files of all heads begin and end with.

    Without weights there are no model.safetensors and images.txt, and model.json has no digest of the former: the model is evaluated,
    but not used again.
    """
    begin = {"schema_version": SCHEMA_VERSION, "task": job.stage}
    end: dict[str, Any] = {"preprocessing": shards.preprocessing, "inputs": job.inputs}
    if weights is not None:
        with replaced(job.folder / WEIGHTS) as scratch:
            save_file(weights, scratch)
        lines = sorted(f"{digest}\n" for part in shards.parts() for digest in _digests(part))
        storage.write(str(job.folder / IMAGES), "".join(lines).encode())
        end["sha256"] = storage.digest_file(job.folder / WEIGHTS)
    storage.write_json(job.folder / DESCRIPTION, {**begin, **description, **end})


def _digests(part: Part) -> list[str]:
    """Returns the lines of images.txt for all images of a part, which are decoded once per node, not once per head."""

    def compute() -> pa.Table:
        return pa.table({"digest": [digest for _, digest in map_images(part.row_groups(), pixel_digest)]})

    found: list[str] = cache.table(f"{part.sha256}-digests", compute, required=False)["digest"].to_pylist()
    return found


def pixel_digest(image: Pixels) -> str:
    """Computes the line of images.txt for an image (H, W)."""
    return hashlib.sha256(f"{image.shape}{image.dtype}".encode() + image.tobytes()).hexdigest()[:16]


def batches(images: Sequence[Pixels], size: int, bits: int, device: torch.device) -> Iterator[Tensor]:
    """Pads images (H, W), H and W at most `size`, as in training, and yields them in batches (B, 1, size, size) in [0, 1]."""
    for start in range(0, len(images), BATCH):
        squares = np.stack([square(image, size) for image in images[start : start + BATCH]]).astype(np.float32)
        yield torch.from_numpy(squares / np.float32(2**bits - 1))[:, None].to(device)


def best_device() -> torch.device:
    """Returns a GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def restore(weights: Path, rebuild: Callable[[dict[str, Tensor]], T]) -> T:
    """Builds a model from the tensors of a safetensors file; raises UserError if it is none, or if `rebuild` raises RuntimeError."""
    try:
        return rebuild(load_file(weights))
    except SafetensorError as error:
        raise UserError(f"{weights}: not safetensors ({error}); train the model again") from None
    except RuntimeError as error:
        raise UserError(f"{weights}: does not fit {DESCRIPTION} ({' '.join(str(error).split())[:200]}); train the model again") from None
