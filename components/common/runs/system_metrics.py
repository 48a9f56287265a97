"""The state of the machine, measured by a thread of its own while a stage runs: processor, memory, disk, network, GPU."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

PREFIX = "system/"
"""Under which MLflow shows such metrics on a page of their own."""
SECONDS_VARIABLE = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
"""MLflow's own setting: seconds between measurements."""
SECONDS = 10.0


class Gauges:
    """Measures as long as the context lasts, and once at its end, so that short runs have a value too.

    Args:
        monitors: of mlflow.system_metrics.metrics.
        report: takes the measured values and the step.
        began: when the run began, in seconds since 1970; steps are whole seconds since then, also after a resume.
    """

    def __init__(self, monitors: list[Any], report: Callable[[Mapping[str, float], int], None], began: float):
        self._monitors, self._report, self._began = monitors, report, began
        self._seconds = float(os.environ.get(SECONDS_VARIABLE) or SECONDS)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gauges", daemon=True)

    def __enter__(self) -> None:
        self._measure()  # processor and network count from here
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._report(self._measure(), int(time.time() - self._began))

    def _work(self) -> None:
        while not self._done.wait(self._seconds):
            self._report(self._measure(), int(time.time() - self._began))

    def _measure(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {PREFIX + name: float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
