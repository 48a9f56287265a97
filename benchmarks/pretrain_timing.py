"""Clocks and ratios for the benchmarks of pretraining."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds on the wall; on a GPU once it has done what it was asked to."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


def spread(times: Sequence[float], reference: Sequence[float]) -> str:
    """Median over the rounds of the ratio within a round, and its quartiles."""
    ratios = [value / other for value, other in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
