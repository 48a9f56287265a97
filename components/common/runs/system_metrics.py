"""System metrics, sampled by a background thread while a stage runs: processor, memory, disk, network, GPU."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

PREFIX = "system/"  # MLflow shows metrics with this prefix on a separate page
SECONDS_VARIABLE = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"  # MLflow's setting: seconds between samples
SECONDS = 10.0


class SystemMetrics:
    """Samples while the context lasts, and once at its end, so that short runs have a value too.

    Args:
        monitors: instances of the classes in mlflow.system_metrics.metrics.
        report: called with the values and the step.
        began: start of the run, in seconds since 1970; steps are whole seconds since then, also after a resume.
    """

    def __init__(self, monitors: list[Any], report: Callable[[Mapping[str, float], int], None], began: float):
        self._monitors, self._report, self._began = monitors, report, began
        self._seconds = float(os.environ.get(SECONDS_VARIABLE) or SECONDS)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)

    def __enter__(self) -> None:
        self._measure()  # the baseline of the processor and network counters
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
