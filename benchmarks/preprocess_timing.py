"""Timing candidates side by side, for the benchmarks of preprocessing."""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence

Candidates = dict[str, Callable[[], object]]
Clock = Callable[[], float]
Times = dict[str, list[float]]
_installed: dict[str, bool] = {}


def installed(name: str) -> bool:
    """Whether a peer is there; says so if not, once."""
    if name not in _installed:
        try:
            importlib.import_module(name)
            _installed[name] = True
        except ImportError as error:
            print(f"{name} is left out: {error}")
            _installed[name] = False
    return _installed[name]


def turns(candidates: Candidates, rounds: int, clock: Clock = time.process_time) -> Times:
    """Seconds of every candidate in every round, after one round to warm up: of this process's CPU, or on the wall."""
    times: Times = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            seconds = elapsed(candidate, clock)
            if number:
                times[name].append(seconds)
    return times


def elapsed(work: Callable[[], object], clock: Clock = time.process_time) -> float:
    """Seconds of one call."""
    started = clock()
    work()
    return clock() - started


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(value / other for value, other in zip(times, reference, strict=True))


def milliseconds(times: Sequence[float], count: int) -> float:
    """Median over the rounds, of one image."""
    return 1000 * statistics.median(times) / count


def heading(title: str, *columns: str) -> None:
    """Begins a table of Markdown."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")


def row(name: str, *cells: str) -> None:
    """A row of one."""
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def table(title: str, times: Times, images: int) -> None:
    """Milliseconds and images a second, and the ratio of times to the first."""
    first = next(iter(times.values()))
    heading(title, "ms", "images/s", "ratio")
    for name, values in times.items():
        each = milliseconds(values, images)
        row(name, f"{each:.2f}", f"{1000 / each:.0f}", f"{ratio(values, first):.2f}")
