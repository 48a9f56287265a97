"""Conversion of the input of a packed model to the pixels that its network was trained on.

DICOM, PNG and JPEG files are processed as by preprocess with the parameters of the training, and refused for the same reasons. Text
from the network is never taken for a path: `mlflow models serve` passes data frames and arrays only.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.common.dicom import recipe
from components.common.formats.shards import Pixels
from components.common.runs.child_process import Child, NoAnswer
from components.common.training.inference import InputImage

_reader = Child()

COLUMN = "dicom"  # column of a data frame with the bytes of files, raw or in base64
CLIP_PERCENTILE = 99.0
VIEWS = ("PA", "AP")  # defaults for models whose model.json lacks these parameters
EXPECTED = (
    f"give (N, H, W) pixels as an array, a list of paths or of bytes of DICOM files, or a data frame whose column `{COLUMN}` holds "
    "the files' bytes or base64"
)


def images(given: Any, size: int, bits: int, preprocessing: dict[str, Any]) -> list[InputImage]:
    """Reads the images of a call.

    Args:
        given: (N, H, W) pixels of shards; a path or the bytes of a file, or a list of these; or a data frame with COLUMN.
        size: longer side of the network's input in pixels.
        bits: bits per input pixel, 8 or 16.
        preprocessing: parameters of `preprocess` in the training, as far as known.

    Raises:
        ValueError: the input is of another kind, or a file would be quarantined by preprocess; says which and why.
    """
    if isinstance(given, str | Path | bytes):
        given = [given]
    if isinstance(given, pd.DataFrame):
        return [_read_file(content, number, size, bits, preprocessing) for number, content in enumerate(_column(given))]
    if isinstance(given, list | tuple) and given and all(isinstance(item, str | Path | bytes) for item in given):
        return [_read_file(_content(item), number, size, bits, preprocessing) for number, item in enumerate(given)]
    return [_check(image, size, bits) for image in _stack(given, bits)]


def _column(frame: pd.DataFrame) -> list[bytes]:
    if COLUMN not in frame.columns:
        raise ValueError(f"the data frame has the columns {', '.join(map(str, frame.columns))}; {EXPECTED}")
    return [value if isinstance(value, bytes) else _from_base64(value, number) for number, value in enumerate(frame[COLUMN])]


def _from_base64(text: Any, number: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"input {number}: is neither bytes nor base64; {EXPECTED}") from None


def _content(item: str | Path | bytes) -> bytes:
    return item if isinstance(item, bytes) else Path(item).read_bytes()


def _stack(given: Any, bits: int) -> Sequence[Pixels]:
    """Converts to arrays of pixels; numbers of other integer types, as from JSON, are accepted if they fit."""
    dtype = np.dtype(f"uint{bits}")
    if isinstance(given, list | tuple):
        given = [np.asarray(image) for image in given]
        ranks, kinds = {image.ndim for image in given}, {image.dtype.kind for image in given}
    else:
        given = np.asarray(given)
        ranks, kinds = {given.ndim - 1}, {given.dtype.kind}
    if ranks - {2} or kinds - set("ui"):
        raise ValueError(f"images must be whole numbers of shape (N, H, W); {EXPECTED}")
    if any(image.size and not (image.min() >= 0 and image.max() <= np.iinfo(dtype).max) for image in given):
        raise ValueError(f"pixels must be uint{bits}, from 0 to {np.iinfo(dtype).max}")
    return [image.astype(dtype, copy=False) for image in given]


def _check(image: Pixels, size: int, bits: int) -> InputImage:
    if not image.size or max(image.shape) > size:
        raise ValueError(
            f"images must be uint{bits} of shape (N, H, W) with H and W from 1 to {size}, not {image.shape[0]} x {image.shape[1]}"
        )
    return InputImage(image, *image.shape)


def _read_file(content: bytes, number: int, size: int, bits: int, preprocessing: dict[str, Any]) -> InputImage:
    """Reads a file as preprocess does, in another process, which can be ended."""
    views, percentile = tuple(preprocessing.get("views", VIEWS)), preprocessing.get("clip_percentile", CLIP_PERCENTILE)
    body_parts = tuple(preprocessing.get("body_parts", ()))
    try:
        found = _reader.call(recipe.read, content, views=views, body_parts=body_parts, size=size, bits=bits, percentile=percentile)
    except NoAnswer as failure:
        found = f"unreadable ({'takes the decoder too long' if failure.signal is None else 'crashes the decoder'})"
    except MemoryError:
        found = "unreadable (needs more memory than any radiograph)"
    if isinstance(found, str):
        raise ValueError(f"input {number}: {found}")
    return InputImage(*found)
