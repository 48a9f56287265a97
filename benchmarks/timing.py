"""Time candidates side by side, and print the results as tables of Markdown."""

import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch

Candidates = dict[str, Callable[[], object]]
Clock = Callable[[], float]
Times = dict[str, list[float]]


@cache
def installed(name: str) -> bool:
    """Return whether a library can be imported; print a line if not."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return False
    return True


def wall_clock(device: torch.device) -> Clock:
    """Return a clock in seconds that waits for the work queued on a GPU."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


def turns(candidates: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = time.process_time) -> Times:
    """Run all candidates in turn, round after round, so that a change in the machine's speed affects them alike.

    Returns:
        Seconds per round for each candidate, without a first round to warm up.
    """
    times: Times = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            seconds = elapsed(candidate, clock)
            if number:
                times[name].append(seconds)
    return times


def elapsed(work: Callable[[], object], clock: Clock = time.process_time) -> float:
    """Return the seconds that one call takes."""
    started = clock()
    work()
    return clock() - started


def ratios(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return the ratio within each round."""
    return [value / other for value, other in zip(times, reference, strict=True)]


def spread(times: Sequence[float], reference: Sequence[float]) -> str:
    """Format the median and the quartiles of the ratios."""
    low, middle, high = statistics.quantiles(ratios(times, reference), n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def milliseconds(times: Sequence[float], count: int = 1) -> float:
    """Return the median over the rounds, divided by a number of images."""
    return 1000 * statistics.median(times) / count


def heading(title: str, *columns: str) -> None:
    """Print the head of a table."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")


def row(name: str, *cells: str) -> None:
    """Print a row of a table."""
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def table(title: str, times: Times, images: int) -> None:
    """Print milliseconds per image, images per second, and the ratio to the first candidate."""
    first = next(iter(times.values()))
    heading(title, "ms", "images/s", "ratio")
    for name, values in times.items():
        each = milliseconds(values, images)
        row(name, f"{each:.2f}", f"{1000 / each:.0f}", f"{statistics.median(ratios(values, first)):.2f}")
