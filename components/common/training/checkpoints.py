"""Checkpoints in a job's work folder: written atomically, the last few kept, loaded weights-only."""

import logging
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from components.common.errors import disk_errors
from components.common.formats.atomic import replaced

FOLDER = "checkpoints"
UNHEALTHY = ".doubtful.pt"  # suffix of checkpoints written while the health check fails

log = logging.getLogger(__name__)


def save(work: Path, step: int, state: dict[str, Any], keep: int, healthy: bool = True) -> None:
    """Writes the state after a step, counted from the start, and removes all but the last `keep` and the last healthy checkpoint."""
    folder = work / FOLDER
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        with replaced(folder / f"{step:09d}{'.pt' if healthy else UNHEALTHY}") as scratch, scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(folder)
    kept = latest_healthy(work)
    for old in sorted(folder.glob("*.pt"))[:-keep]:
        if old != kept:
            old.unlink()


def latest_healthy(work: Path) -> Path | None:
    """Returns the newest checkpoint written while the health check passed."""
    return max((path for path in (work / FOLDER).glob("*.pt") if not path.name.endswith(UNHEALTHY)), default=None)


def load_latest(work: Path) -> dict[str, Any] | None:
    """Loads the newest readable checkpoint to the CPU; None if there is none."""
    for path in sorted((work / FOLDER).glob("*.pt"), reverse=True):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s); trying the one before", path, error)
    return None


def copy_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies a module's state to the CPU, contiguous as safetensors needs it."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}


def first_non_finite(state: Any) -> str | None:
    """Returns the name of the first tensor in a state that holds an infinity or a NaN; None if there is none."""
    for name, tensor in _tensors(state, ""):
        # The sum is finite exactly if all values are: in float64 it cannot overflow.
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
    """Makes the new name survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
