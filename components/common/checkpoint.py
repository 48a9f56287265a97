"""Checkpoints: written whole or not at all, the last few kept, loaded weights-only."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

KEPT = 2
FOLDER = "checkpoints"

log = logging.getLogger(__name__)


def save(work: Path, step: int, state: dict[str, Any]) -> None:
    """Writes the state at a global step and removes all but the last KEPT.

    Args:
        work: work folder of the job, whose fingerprint says what the checkpoint belongs to.
        step: steps done since the start.
        state: tensors and plain Python values, nested in dicts and lists.
    """
    folder = work / FOLDER
    folder.mkdir(exist_ok=True)
    target = folder / f"{step:09d}.pt"
    scratch = target.with_suffix(".partial")
    with scratch.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(target)
    for old in sorted(folder.glob("*.pt"))[:-KEPT]:
        old.unlink()


def load_latest(work: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None if there is none."""
    for path in sorted((work / FOLDER).glob("*.pt"), reverse=True):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s); trying the one before", path, error)
            continue
        return state
    return None
