"""The training loop that all stages share: epochs, history.csv, checkpoints, health checks and signals."""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.common.errors import RepeatingError
from components.common.formats.history import EPOCH, HISTORY, write_history
from components.common.runs import signals
from components.common.runs.params import Runtime
from components.common.training import checkpoints, devices, processes
from components.common.training.progress import Progress, Timer
from components.common.training.reader import Batch
from components.common.training.trace import TRACE, traced

Numbers = dict[str, Tensor | float]  # scalars by name
RESULTS = (HISTORY, TRACE)  # files of a training in its work folder; the trace only if runtime.profile_steps asks for it

log = logging.getLogger(__name__)


class Trainable(ABC):
    """A model and how to train it; batches and augmentation must depend only on epoch and step, so that a run resumes exactly."""

    steps_per_epoch: int
    batch_size: int
    metric: str | None = None  # name of the main validation metric among the numbers of an epoch, for the log
    patience: int = 1  # consecutive epochs that must fail the health check before training stops
    stateful: tuple[str, ...] = ()  # names of the attributes that checkpoints hold: modules, optimizers and plain values
    less_memory: str | None = None  # which parameters to change when a GPU's memory does not suffice; by default the batch size
    compiled: tuple[nn.Module, ...] = ()  # modules to which runtime.compile applies torch.compile
    remedy: str | None = None  # which parameters to change when a loss or weight is not finite; by default the learning rate

    def start(self) -> None:
        """Gives all processes the same weights, even if their hardware derives others from the seed."""
        modules = [value for name in self.stateful if isinstance(value := getattr(self, name), nn.Module)]
        processes.broadcast([tensor for module in modules for tensor in module.state_dict().values()])

    def before_first_step(self) -> None:  # noqa: B027 - most need nothing here
        """Runs after `start`, but not when training resumes."""

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches of an epoch from number `start` on."""

    @abstractmethod
    def train_step(self, batch: Batch, epoch: int, progress: float) -> Numbers:
        """Takes one optimizer step; returns numbers to average over the epoch, `loss` among them.

        `epoch` counts from 0, `progress` is the fraction of all steps that is done, in [0, 1). Numbers that are tensors are read after
        the next step has been started, so that a GPU does not wait for the host.
        """

    def state(self) -> dict[str, Any]:
        """Returns all that determines how training continues: tensors and plain values, by default those of the `stateful` attributes."""
        values = {name: getattr(self, name) for name in self.stateful}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        for name in self.stateful:
            if hasattr(value := getattr(self, name), "load_state_dict"):
                value.load_state_dict(state[name])
            else:
                setattr(self, name, state[name])

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Runs after the last step of an epoch; returns further numbers for the history."""
        return {}

    def health_check(self, row: dict[str, float]) -> str | None:
        """Returns why the averages of an epoch, or of its steps so far, look unhealthy; None if they look healthy.

        Unhealthy checkpoints do not displace the last healthy one, and `patience` unhealthy epochs stop the training.
        """
        return None

    @property
    def finished(self) -> bool:
        """Whether to stop before the last epoch; checked between epochs, and must follow from `state`."""
        return False


class Trainer:
    """Trains to the last epoch, or until the trainable is finished, from the checkpoint in the work folder if there is one.

    The work folder also gets the history; it is None in processes that do not write. `stage` is for messages.
    """

    def __init__(self, trainable: Trainable, stage: str, folder: Path | None, epochs: int, runtime: Runtime):
        self._trainable, self._stage, self._folder, self._epochs, self._runtime = trainable, stage, folder, epochs, runtime
        self._timer = Timer(60 * runtime.checkpoint_minutes)
        self._steps_per_epoch = trainable.steps_per_epoch
        self._step = 0
        self._unread: Numbers = {}  # of the latest step
        self._sums: dict[str, float] = {}
        self._earlier_gpu_hours = 0.0  # up to the checkpoint
        self.history: list[dict[str, float]] = []

    def run(self, on_epoch: Callable[[dict[str, float], int], None] | None = None) -> list[dict[str, float]]:
        """Trains, and returns one row of numbers per epoch, each of which `on_epoch` also gets at once.

        Raises Interrupted after a signal, when the checkpoint is written, and RepeatingError if the loss or the weights are not
        finite, if training is unhealthy, or if a GPU's memory does not suffice.
        """
        self._trainable.start()
        for module in self._trainable.compiled if self._runtime.compile else ():
            devices.require_compiler(next(module.parameters()).device)
            module.compile()
        self._restore()
        self._began = time.monotonic()
        sizes = (self._epochs, self._steps_per_epoch, self._trainable.batch_size)
        self._progress = Progress(self._stage, *sizes, silent=not processes.is_main())
        trace = traced(self._folder / TRACE, self._runtime.profile_steps) if self._folder else nullcontext(lambda: None)
        out_of_memory = devices.memory_errors(self._trainable.less_memory or f"lower {self._stage}.batch_size")
        with signals.deferred(), trace as self._after_step, out_of_memory:
            if not self._step:
                self._trainable.before_first_step()
            while len(self.history) < self._epochs and not self._trainable.finished:
                row = self._epoch()
                self.history.append(row)
                if self._folder:
                    write_history(self._folder / HISTORY, self.history)
                if on_epoch:
                    on_epoch({name: value for name, value in row.items() if name != EPOCH}, int(row[EPOCH]))
                self._stop_if_unhealthy()
                self._save_if_due()
            with processes.shared_errors():
                self._check_weights(self._trainable.state())
        return self.history

    def _epoch(self) -> dict[str, float]:
        epoch, first = divmod(self._step, self._steps_per_epoch)
        if devices.gpu_in_use():
            torch.cuda.reset_peak_memory_stats()
        for batch in self._progress.epoch(processes.in_lockstep(self._trainable.batches(epoch, first)), epoch, first):
            numbers = self._trainable.train_step(batch, epoch, self._step / (self._epochs * self._steps_per_epoch))
            self._read_numbers()
            self._unread = numbers
            self._step += 1
            self._after_step()
            if self._step % self._steps_per_epoch:
                self._save_if_due()
        self._read_numbers()
        measured = self._progress.measurements()
        if devices.gpu_in_use():
            measured["gpu_gib"] = devices.peak_gib()
        averages = {name: value / self._steps_per_epoch for name, value in self._sums.items()}
        row = {EPOCH: epoch + 1, **averages, **self._trainable.end_epoch(epoch), **measured, "gpu_hours": self._gpu_hours()}
        self._sums = {}
        self._progress.end_epoch(row, self._trainable.metric)
        return row

    def _read_numbers(self) -> None:
        """Adds the numbers of the latest step to the sums of the epoch, and checks its losses; waits until the device has them."""
        if not self._unread:
            return
        tensors = {name: value.detach() for name, value in self._unread.items() if isinstance(value, Tensor)}
        read = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True)) if tensors else {}
        numbers = {name: float(read.get(name, value)) for name, value in self._unread.items()}
        self._unread = {}
        for name, value in numbers.items():
            if name.startswith("loss") and not math.isfinite(value):
                failure = f"the {name.replace('_', ' ')} is {value} at step {self._step - 1}; {self._remedy()}"
                processes.raise_everywhere(RepeatingError(failure))
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._progress.step(self._step, numbers["loss"])

    def _gpu_hours(self) -> float:
        """Returns the time of this training times the number of GPUs; steps that are repeated after a loss count twice."""
        gpus = processes.world_size() if devices.gpu_in_use() else 0
        return self._earlier_gpu_hours + gpus * (time.monotonic() - self._began) / 3600

    def _save_if_due(self) -> None:
        """Saves when the main process's timer is due, or when any process got a signal."""
        stop, due = processes.any_rank(signals.requested(), processes.is_main() and self._timer.due())
        if stop or due:
            self._read_numbers()
            with processes.shared_errors():
                if self._folder:
                    self._save(self._folder)
        if stop:
            raise signals.Interrupted

    def _save(self, folder: Path) -> None:
        trained = self._trainable.state()
        self._check_weights(trained)
        state = {"task": trained, "step": self._step, "sums": self._sums, "history": self.history, "gpu_hours": self._gpu_hours()}
        done = self._step % self._steps_per_epoch
        averages = {name: value / done for name, value in self._sums.items()} if done else self.history[-1]
        healthy = self._trainable.health_check(averages) is None
        checkpoints.save(folder, self._step, state, self._runtime.keep_checkpoints, healthy)

    def _check_weights(self, state: dict[str, Any]) -> None:
        """Refuses to save weights, statistics or moments that are not finite, so that earlier checkpoints stay."""
        if (name := checkpoints.first_non_finite(state)) is not None:
            raise RepeatingError(f"{name} is not finite after step {self._step}; {self._remedy()}")

    def _remedy(self) -> str:
        return f"{self._trainable.remedy or f'lower {self._stage}.lr'}{self._last_healthy()}"

    def _stop_if_unhealthy(self) -> None:
        failures = [self._trainable.health_check(row) for row in self.history[-self._trainable.patience :]]
        if len(failures) == self._trainable.patience and None not in failures:
            processes.raise_everywhere(RepeatingError(f"{failures[-1]}{self._last_healthy()}"))

    def _last_healthy(self) -> str:
        path = checkpoints.latest_healthy(self._folder) if self._folder else None
        return f"; the last healthy checkpoint is {path}" if path else ""

    def _restore(self) -> None:
        """Resumes from the newest checkpoint; only the main process reads it, so that no other needs its disk."""
        state = processes.broadcast_object(checkpoints.load_latest(self._folder) if self._folder else None)
        if state is None:
            return
        self._trainable.restore(state["task"])
        self._step, self._sums, self.history = state["step"], state["sums"], state["history"]
        self._earlier_gpu_hours = state.get("gpu_hours", 0.0)  # not in checkpoints of 0.1.0
        if self._folder:
            log.info("%s: resumes at step %d of %d", self._stage, self._step, self._epochs * self._steps_per_epoch)
