"""The training loop that stages share: epochs, progress, history.csv, checkpoints and signals; and how batches reach the device."""

import csv
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.common.errors import UserError
from components.common.formats.shards import Pixels
from components.common.runs import signals
from components.common.runs.params import Runtime
from components.common.runs.provenance import threads
from components.common.training import checkpoints, processes
from components.common.training.progress import Progress, Timer
from components.common.training.reader import Batch, prefetch

HISTORY = "history.csv"

log = logging.getLogger(__name__)


class Task(ABC):
    """What is trained. Order and augmentation must be functions of epoch and step, so that a stopped run can go on exactly."""

    steps_per_epoch: int
    batch_size: int
    patience: int = 1
    """Epochs on end that must give `doubt` before the run is stopped."""

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

    def doubt(self, row: dict[str, float]) -> str | None:
        """Why the averages of an epoch, or of its steps so far, say that training is failing; None if they do not.

        Checkpoints made in doubt do not displace the last one made without, and `patience` epochs of doubt end the run.
        """
        return None

    @property
    def finished(self) -> bool:
        """Whether training ends before its last epoch; looked at between epochs, and must follow from `state`."""
        return False


class Fit:
    """Trains a task to its last epoch, or until it is finished, from the checkpoint in the work folder if there is one."""

    def __init__(self, task: Task, stage: str, folder: Path | None, epochs: int, runtime: Runtime):
        """Prepares a training.

        Args:
            task: what is trained.
            stage: name of the stage, for messages.
            folder: work folder for checkpoints and the history; None in processes that do not write.
            epochs: number of epochs.
            runtime: how often checkpoints are written, and how many are kept.
        """
        self._task, self._stage, self._folder, self._epochs, self._runtime = task, stage, folder, epochs, runtime
        self._timer = Timer(60 * runtime.checkpoint_minutes)
        self._step = 0
        self._sums: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    def run(self, on_epoch: Callable[[dict[str, float], int], None] | None = None) -> list[dict[str, float]]:
        """Trains, and returns a row of numbers an epoch, which `on_epoch` gets as they come.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            UserError: the loss or the weights are not finite, or the task has given up.
        """
        self._restore()
        self._progress = Progress(self._stage, self._epochs, self._task.steps_per_epoch, silent=not processes.is_main())
        with signals.deferred():
            while len(self.history) < self._epochs and not self._task.finished:
                row = self._epoch()
                self.history.append(row)
                if self._folder:
                    write_history(self._folder / HISTORY, self.history)
                if on_epoch:
                    on_epoch({name: value for name, value in row.items() if name != "epoch"}, int(row["epoch"]))
                self._give_up_if_hopeless()
                self._save_if_due()
            with processes.together():
                self._check_weights(self._task.state())
        return self.history

    def _epoch(self) -> dict[str, float]:
        """The rest of the present epoch; returns its averages."""
        steps = self._task.steps_per_epoch
        epoch, first = divmod(self._step, steps)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for batch in self._progress.epoch(processes.in_step(self._task.batches(epoch, first)), epoch, first):
            loss = self._train_step(batch, epoch)
            self._progress.step(self._step, loss)
            if self._step % steps:
                self._save_if_due()
        measured = self._progress.numbers(self._task.batch_size) | _gpu_memory()
        row = {name: value / steps for name, value in self._sums.items()} | self._task.end_epoch(epoch)
        self._sums = {}
        log.info("%s: epoch %d/%d, %s", self._stage, epoch + 1, self._epochs, _shown(row | measured))
        return {"epoch": epoch + 1, **row, **measured}

    def _train_step(self, batch: Batch, epoch: int) -> float:
        numbers = self._task.train_step(batch, epoch, self._step / (self._epochs * self._task.steps_per_epoch))
        if not math.isfinite(numbers["loss"]):
            failure = f"the loss is {numbers['loss']} at step {self._step}; lower {self._stage}.lr{self._last_good()}"
            processes.agree(UserError(failure))
        self._step += 1
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return numbers["loss"]

    def _save_if_due(self) -> None:
        """Saves when it is time, which the main process knows, or when any process got a signal."""
        stop, due = processes.any_of(signals.requested(), processes.is_main() and self._timer.due())
        if stop or due:
            with processes.together():
                if self._folder:
                    self._save(self._folder)
        if stop:
            raise signals.Interrupted

    def _save(self, folder: Path) -> None:
        state = {"task": self._task.state(), "step": self._step, "sums": self._sums, "history": self.history}
        self._check_weights(state)
        done = self._step % self._task.steps_per_epoch
        present = {name: value / done for name, value in self._sums.items()} if done else self.history[-1]
        checkpoints.save(folder, self._step, state, self._runtime.keep_checkpoints, doubtful=self._task.doubt(present) is not None)

    def _check_weights(self, state: dict[str, Any]) -> None:
        """Whatever is not finite is not saved: the checkpoints before it stay.

        Raises:
            UserError: a weight, a statistic or a moment is infinite or NaN.
        """
        if (name := checkpoints.not_finite(state)) is not None:
            raise UserError(f"{name} is not finite after step {self._step}; lower {self._stage}.lr{self._last_good()}")

    def _give_up_if_hopeless(self) -> None:
        """Stops when the last epochs gave reason to, one and all."""
        last = [self._task.doubt(row) for row in self.history[-self._task.patience :]]
        if last[-1] is not None and len(last) == self._task.patience and None not in last:
            processes.agree(UserError(f"{last[-1]}{self._last_good()}"))

    def _last_good(self) -> str:
        """The end of a message that says from where one could go on."""
        path = checkpoints.latest_sound(self._folder) if self._folder else None
        return f"; the last sound checkpoint is {path}" if path else ""

    def _restore(self) -> None:
        """Continues from the newest checkpoint; the main process reads it, and no other needs its disk."""
        state = checkpoints.load_latest(self._folder) if self._folder else None
        if processes.ranks() > 1:
            content = processes.bytes_from_main(None if state is None else checkpoints.to_bytes(state))
            state = None if content is None else checkpoints.from_bytes(content)
        if state is None:
            return
        self._task.restore(state["task"])
        self._step, self._sums, self.history = state["step"], state["sums"], state["history"]
        if self._folder:
            log.info("%s: continues at step %d of %d", self._stage, self._step, self._epochs * self._task.steps_per_epoch)


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
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """A context for the forward pass.

    bfloat16 has the range of float32, so that no loss scaler is needed.

    Args:
        device: where the pass runs.
        precision: bf16, fp32, or auto: bf16 on a GPU and fp32 on a CPU.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and device.type == "cuda"))


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their images on the GPU, copied from pinned memory beside the computation; on a CPU as they are."""
    return prefetch(_copied(batches, device)) if device.type == "cuda" else batches


def _copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Runs in the prefetching thread, on a stream of its own."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            images = torch.from_numpy(batch.images).pin_memory().to(device, non_blocking=True)
        stream.synchronize()
        # Of this thread's stream, but used on the main one: its memory is not given away while that still reads.
        images.record_stream(torch.cuda.default_stream(device))
        yield Batch(images, batch.rows)  # type: ignore[arg-type]


def to_unit(images: Pixels | Tensor, device: torch.device) -> Tensor:
    """Stored pixels as fractions of their full range.

    Args:
        images: (B, H, W), uint8 or uint16.
        device: where the result lies.

    Returns:
        (B, 1, H, W), float32 in [0, 1].
    """
    tensor = images if isinstance(images, Tensor) else torch.from_numpy(images)
    return tensor.to(device, torch.float32).div_(torch.iinfo(tensor.dtype).max).unsqueeze(1)


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


def _gpu_memory() -> dict[str, float]:
    """The most memory that tensors took on the GPU in the present epoch, where there is one."""
    return {"gpu_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}


def _shown(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items())
