"""How training is going: a bar on a terminal, a line a minute elsewhere, and what is measured on the way."""

import logging
import sys
import time
from collections.abc import Iterator
from typing import TypeVar

from tqdm import tqdm

LINE_SECONDS = 60.0
VOLATILE = ("images_per_second", "data_wait", "gpu_gib")
"""Columns of history.csv that differ between runs which are otherwise the same."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class Timer:
    """Says when so many seconds have passed."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether the time is up; if so it begins again."""
        now = time.monotonic()
        if now - self._since < self._seconds:
            return False
        self._since = now
        return True


class Progress:
    """Follows a training from step to step."""

    def __init__(self, stage: str, epochs: int, steps_per_epoch: int, silent: bool = False):
        """Begins.

        Args:
            stage: its name, for the lines.
            epochs: how many there are.
            steps_per_epoch: how many an epoch has.
            silent: shows nothing, and measures only.
        """
        self._stage, self._epochs, self._steps, self._silent = stage, epochs, steps_per_epoch, silent
        self._line = Timer(LINE_SECONDS)
        self._started = time.monotonic()
        self._done = 0
        self._epoch_started, self._epoch_done, self._waited = self._started, 0, 0.0

    def epoch(self, items: Iterator[T], epoch: int, first: int) -> Iterator[T]:
        """The items of an epoch from number `first` on; the time until each one comes is the wait for data."""
        self._epoch_started, self._epoch_done, self._waited = time.monotonic(), 0, 0.0
        label = f"epoch {epoch + 1}/{self._epochs}"
        with tqdm(None, label, self._steps, initial=first, disable=self._silent or None, leave=False) as self._bar:
            while True:
                asked = time.monotonic()
                item = next(items, None)
                self._waited += time.monotonic() - asked
                if item is None:
                    return
                yield item

    def step(self, step: int, loss: float) -> None:
        """Shows that a step is done, the `step`-th of the whole training."""
        self._done += 1
        self._epoch_done += 1
        self._bar.set_postfix_str(f"loss {loss:.3f}, {self._left(step)} left", refresh=False)
        self._bar.update()
        if not self._silent and not sys.stderr.isatty() and self._line.due():
            epoch, number = divmod(step - 1, self._steps)
            place = f"epoch {epoch + 1}/{self._epochs}, step {number + 1}/{self._steps}"
            log.info("%s: %s, loss %.4g, %s left", self._stage, place, loss, self._left(step))

    def numbers(self, batch_size: int) -> dict[str, float]:
        """Of the present epoch, or of what was done of it here: images a second, and the share of the time spent waiting for data."""
        seconds = time.monotonic() - self._epoch_started
        return {"images_per_second": self._epoch_done * batch_size / seconds, "data_wait": self._waited / seconds}

    def _left(self, step: int) -> str:
        seconds = (self._epochs * self._steps - step) * (time.monotonic() - self._started) / self._done
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min" if seconds >= 3600 else f"{int(seconds // 60)} min"
