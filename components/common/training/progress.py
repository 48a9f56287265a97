"""Progress of long work: a bar on a terminal, a line every 15 seconds elsewhere; and the speed of a training."""

import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from components.common.formats.history import EPOCH
from components.common.training import devices

LINE_SECONDS = 15.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class Timer:
    """Tells when a number of seconds has passed."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether the time is up; if so the timer restarts."""
        now = time.monotonic()
        if now - self._since < self._seconds:
            return False
        self._since = now
        return True


def track(items: Iterable[T], stage: str, work: str, total: int) -> Iterator[T]:
    """Yields items, and shows how many of them are done."""
    line = Timer(LINE_SECONDS)
    for done, item in enumerate(tqdm(items, work, total, disable=None, leave=False)):
        if not sys.stderr.isatty() and line.due():
            log.info("%s: %s, %d of %d", stage, work, done, total)
        yield item


class Rates:
    """Counts the steps, and the time spent waiting for data, since it was made."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self.steps, self.waited = 0, 0.0

    def measure(self, batch_size: int) -> dict[str, float]:
        """Returns images per second, and the fraction of the time spent waiting for data."""
        seconds = time.monotonic() - self._since
        return {"images_per_second": self.steps * batch_size / seconds, "data_wait": self.waited / seconds}


class Progress:
    """Follows a training step by step."""

    def __init__(self, stage: str, epochs: int, steps_per_epoch: int, batch_size: int, silent: bool = False):
        """Starts the clock; `silent` measures and shows nothing."""
        self._stage, self._epochs, self._steps, self._batch_size, self._silent = stage, epochs, steps_per_epoch, batch_size, silent
        self._line = Timer(LINE_SECONDS)
        self._started = time.monotonic()
        self._done = 0
        self._in_epoch = self._in_line = Rates()

    def epoch(self, items: Iterator[T], epoch: int, first: int) -> Iterator[T]:
        """Yields the items of an epoch from number `first` on, and measures how long each is waited for."""
        self._in_epoch = Rates()
        label = f"epoch {epoch + 1}/{self._epochs}"
        with tqdm(None, label, self._steps, initial=first, disable=self._silent or None, leave=False) as self._bar:
            while True:
                asked = time.monotonic()
                item = next(items, None)
                waited = time.monotonic() - asked
                self._in_epoch.waited += waited
                self._in_line.waited += waited
                if item is None:
                    return
                yield item

    def step(self, step: int, loss: float) -> None:
        """Shows that a step, counted from the start of training, is done."""
        self._done += 1
        self._in_epoch.steps += 1
        self._in_line.steps += 1
        self._bar.set_postfix_str(f"loss {loss:.3f}, ETA {self.eta(step)}", refresh=False)
        self._bar.update()
        if not self._silent and not sys.stderr.isatty() and self._line.due():
            epoch, number = divmod(step - 1, self._steps)
            place = f"epoch {epoch + 1}/{self._epochs}, step {number + 1}/{self._steps}"
            shown = [place, f"loss {loss:.3g}", *_speed(self._in_line.measure(self._batch_size)), *_gpu(), f"ETA {self.eta(step)}"]
            log.info("%s: %s", self._stage, ", ".join(shown))
            self._in_line = Rates()

    def end_epoch(self, row: dict[str, float], metric: str | None) -> None:
        """Logs one line, at most 100 characters with the time before it: the five numbers that matter, `metric` among them."""
        epoch = int(row[EPOCH])
        shown = [f"epoch {epoch}/{self._epochs}", f"loss {row['loss']:.3g}"]
        if metric and math.isfinite(row.get(metric, math.nan)):
            shown.append(f"{metric} {row[metric]:.3g}")
        log.info("%s: %s", self._stage, ", ".join([*shown, *_speed(row), f"ETA {self.eta(epoch * self._steps)}"]))

    def measurements(self) -> dict[str, float]:
        """Returns images per second, and the fraction of the time spent waiting for data, in this process's part of the epoch."""
        return self._in_epoch.measure(self._batch_size)

    def eta(self, step: int) -> str:
        """Returns the time left after a step, such as 25h, 1h05m or 12m."""
        minutes = int((self._epochs * self._steps - step) * (time.monotonic() - self._started) / self._done / 60)
        hours = minutes // 60
        return f"{hours}h" if hours >= 10 else f"{hours}h{minutes % 60:02d}m" if hours else f"{minutes}m"


def _speed(measured: dict[str, float]) -> list[str]:
    return [f"{measured['images_per_second']:.0f} img/s", f"wait {measured['data_wait']:.0%}"]


def _gpu() -> list[str]:
    return [f"GPU {devices.utilisation():.0%} {devices.peak_gib():.0f} GiB"] if devices.gpu_in_use() else []
