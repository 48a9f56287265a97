"""The training loop that stages share: epochs, progress, history.csv, checkpoints and signals; and how batches reach the device."""

import csv
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from components.common import checkpoint, interrupt
from components.common.errors import UserError
from components.common.job import Job, threads
from components.common.reader import Batch
from components.common.shards import Pixels

HISTORY = "history.csv"

log = logging.getLogger(__name__)


class Task(ABC):
    """What is trained. Order and augmentation must be functions of epoch and step, so that a stopped run can go on exactly."""

    steps_per_epoch: int
    batch_size: int

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""

    @abstractmethod
    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step of the optimizer; returns numbers to average over the epoch, `loss` among them.

        Args:
            batch: images and their rows.
            epoch: counts from 0.
            progress: share of all steps that is done, in [0, 1).
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that decides how training goes on: tensors and plain values."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called after the last step of an epoch; returns further numbers for the history."""
        return {}


class Fit:
    """Trains a task to its last epoch, from the job's checkpoint if it has one."""

    def __init__(self, task: Task, job: Job, epochs: int, checkpoint_minutes: float):
        self._task, self._job, self._epochs = task, job, epochs
        self._timer = Timer(checkpoint_minutes)
        self._step = 0
        self._sums: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    def run(self, on_epoch: Callable[[dict[str, float], int], None]) -> list[dict[str, float]]:
        """Trains, and returns a row of numbers an epoch, which `on_epoch` gets as they come.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            UserError: the loss is not finite.
        """
        self._restore()
        with interrupt.deferred():
            while len(self.history) < self._epochs:
                row = self._epoch()
                self.history.append(row)
                write_history(self._job.work / HISTORY, self.history)
                on_epoch({name: value for name, value in row.items() if name != "epoch"}, int(row["epoch"]))
                self._save_if_due()
        return self.history

    def _epoch(self) -> dict[str, float]:
        """The rest of the present epoch; returns its averages."""
        steps = self._task.steps_per_epoch
        epoch, first = divmod(self._step, steps)
        started = time.monotonic()
        batches = self._task.batches(epoch, first)
        with tqdm(batches, f"epoch {epoch + 1}/{self._epochs}", steps, initial=first, disable=None, leave=False) as bar:
            for batch in bar:
                bar.set_postfix(loss=f"{self._train_step(batch, epoch):.3f}")
                if self._step % steps:
                    self._save_if_due()
        rate = (steps - first) * self._task.batch_size / (time.monotonic() - started)
        row = {name: value / steps for name, value in self._sums.items()} | self._task.end_epoch(epoch)
        self._sums = {}
        log.info("%s: epoch %d/%d, %s, %.0f images/s", self._job.stage, epoch + 1, self._epochs, _shown(row), rate)
        return {"epoch": epoch + 1, **row, "images_per_second": rate}

    def _train_step(self, batch: Batch, epoch: int) -> float:
        numbers = self._task.train_step(batch, epoch, self._step / (self._epochs * self._task.steps_per_epoch))
        if not math.isfinite(numbers["loss"]):
            raise UserError(f"the loss is {numbers['loss']} at step {self._step}; lower {self._job.stage}.lr")
        self._step += 1
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return numbers["loss"]

    def _save_if_due(self) -> None:
        if interrupt.requested() or self._timer.due():
            state = {"task": self._task.state(), "step": self._step, "sums": self._sums, "history": self.history}
            checkpoint.save(self._job.work, self._step, state)
        interrupt.check()

    def _restore(self) -> None:
        state = checkpoint.load_latest(self._job.work)
        if state is None:
            return
        self._task.restore(state["task"])
        self._step, self._sums, self.history = state["step"], state["sums"], state["history"]
        log.info("%s: continues at step %d of %d", self._job.stage, self._step, self._epochs * self._task.steps_per_epoch)


def set_up(device: str, seed: int) -> torch.device:
    """Chooses the device and makes runs repeatable.

    Args:
        device: auto (a GPU if there is one), cpu or cuda.
        seed: of torch's global generator, which initialises weights.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but torch sees no GPU; set device to auto or cpu")
    torch.set_num_threads(threads())
    # Denormals appear as weights decay, and CPUs are several times slower on them.
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def to_unit(images: Pixels, device: torch.device) -> Tensor:
    """Stored pixels as fractions of their full range.

    Args:
        images: (B, H, W), uint8 or uint16.
        device: where the result lies.

    Returns:
        (B, 1, H, W), float32 in [0, 1].
    """
    full = float(np.iinfo(images.dtype).max)
    return torch.from_numpy(images).to(device, torch.float32).div_(full).unsqueeze(1)


def cosine(progress: float, warmup: float = 0.0) -> float:
    """Factor of the learning rate: linear over the first `warmup`, then half a cosine down to 0.

    Args:
        progress: share of the training that is done, in [0, 1].
        warmup: share of the training with a rising rate.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """A CSV with a row an epoch."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[-1]))
        writer.writeheader()
        writer.writerows(history)


class Timer:
    """Says when so many minutes have passed."""

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether the time is up; if so it begins again."""
        now = time.monotonic()
        if now - self._since < self._seconds:
            return False
        self._since = now
        return True


def _shown(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items())
