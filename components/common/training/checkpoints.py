"""Checkpoints: written whole or not at all, the last few kept, loaded weights-only."""

import io
import logging
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from components.common.errors import UserError

FOLDER = "checkpoints"
DOUBTFUL = ".doubtful.pt"

log = logging.getLogger(__name__)


def save(work: Path, step: int, state: dict[str, Any], keep: int, doubtful: bool = False) -> None:
    """Writes the state at a global step and removes all but the last few, and the last one that is not doubtful.

    Args:
        work: work folder of the job, whose fingerprint says what the checkpoint belongs to.
        step: steps done since the start.
        state: tensors and plain Python values, nested in dicts and lists.
        keep: how many stay.
        doubtful: whether training looks as if it were failing.

    Raises:
        UserError: it cannot be written.
    """
    folder = work / FOLDER
    scratch = folder / "writing.partial"
    try:
        folder.mkdir(exist_ok=True)
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(folder / f"{step:09d}{DOUBTFUL if doubtful else '.pt'}")
        _sync_folder(folder)
    except OSError as error:
        raise UserError(f"{folder}: a checkpoint cannot be written ({error.strerror}); make room and run again to continue") from None
    sound = latest_sound(work)
    for old in sorted(folder.glob("*.pt"))[:-keep]:
        if old != sound:
            old.unlink()


def latest_sound(work: Path) -> Path | None:
    """The newest checkpoint that is not doubtful."""
    found = [path for path in (work / FOLDER).glob("*.pt") if not path.name.endswith(DOUBTFUL)]
    return max(found, default=None)


def load_latest(work: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None if there is none."""
    for path in sorted((work / FOLDER).glob("*.pt"), reverse=True):
        try:
            return from_bytes(path.read_bytes())
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s); trying the one before", path, error)
    return None


def to_bytes(state: dict[str, Any]) -> bytes:
    """A state as a file's content."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """The state in a file's content, on the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def not_finite(state: Any) -> str | None:
    """Name of the first tensor in a state that holds an infinity or a NaN; None if there is none."""
    for name, tensor in _tensors(state, ""):
        # The sum is finite exactly if all are: in float64 it cannot overflow.
        if tensor.is_floating_point() and not math.isfinite(float(tensor.sum(dtype=torch.float64))):
            return name
    return None


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _sync_folder(folder: Path) -> None:
    """Makes the new name last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
