"""The whole stage with one process and with two, on so many copies of the files that its start is a small part."""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pydicom

from benchmarks.preprocess_timing import heading, row

FILES = 5_000


class Run(NamedTuple):
    """How long a command took."""

    wall: float
    cpu: float
    """Seconds of all its processes."""


def processes(originals: list[Path], scratch: Path, size: int, floor: Callable[[int], float]) -> None:
    """Wall clock and CPU time of the command, and what is left of the ratio when its start is taken off.

    Args:
        originals: files to copy.
        scratch: folder for copies and outputs.
        size: of the rows' images.
        floor: seconds until each of so many processes has decoded the same files, and no more: the machine's own limit.
    """
    one, many = scratch / "one", scratch / "many"
    copies(originals, one, 1)
    count = copies(originals, many, max(len(originals), FILES))
    stage(one, scratch, size, 1)  # makes MLflow's database
    start = stage(one, scratch, size, 1)
    runs = {workers: stage(many, scratch, size, workers) for workers in (1, 2)}
    heading(f"the stage as a command, {count} files", "seconds", "of CPU", "files/s")
    row("one file: its start and end", f"{start.wall:.1f}", f"{start.cpu:.1f}", "")
    for workers, run in runs.items():
        row(f"{workers} process{'es' * (workers > 1)}", f"{run.wall:.1f}", f"{run.cpu:.1f}", f"{count / run.wall:.0f}")
    ratio, without = runs[1].wall / runs[2].wall, (runs[1].wall - start.wall) / (runs[2].wall - start.wall)
    limit = statistics.median(2 * floor(1) / floor(2) for _ in range(3))
    print(f"\nTwo processes are {ratio:.2f} x as fast as one; without start and end, {without:.2f} x; the floor alone, {limit:.2f} x.")
    for folder in (one, many):
        shutil.rmtree(folder)


def stage(raw: Path, scratch: Path, size: int, workers: int) -> Run:
    """Runs it."""
    out = scratch / f"out-{raw.name}-{workers}"
    options = {"preprocess.size": size, "runtime.workers": workers, "runtime.max_quarantined": 0.9}
    overrides = [item for name, value in options.items() for item in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "components", "preprocess", "--raw", str(raw), "--out", str(out), *overrides]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{scratch / 'mlflow.db'}"}
    started = time.perf_counter()
    with (scratch / "log").open("wb") as log:
        child = os.posix_spawn(sys.executable, command, environment, file_actions=[(os.POSIX_SPAWN_DUP2, log.fileno(), 2)])
        _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - started
    if status:
        sys.exit(f"preprocess ended with status {status}: {(scratch / 'log').read_text()[-500:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime)


def copies(originals: list[Path], folder: Path, count: int) -> int:
    """Writes so many files, or a few more, each an image of its own: copies get another SOPInstanceUID of the same length.

    Deflated files, where it cannot be found, are written once.
    """
    edits = [edit_of(path) for path in originals[:count]]
    written = 0
    for number in range(-(-count // len(edits))):
        below = folder / f"{number:03d}"
        below.mkdir(parents=True)
        for index, edit in enumerate(edits):
            content = edit(number)
            if content is not None:
                (below / f"{index:06d}.dcm").write_bytes(content)
                written += 1
    return written


def edit_of(path: Path) -> Callable[[int], bytes | None]:
    """The file with a numbered SOPInstanceUID; None where it is the same as before."""
    content = path.read_bytes()
    uid = str(pydicom.dcmread(path, stop_before_pixels=True).get("SOPInstanceUID", "")).encode()
    found = uid if uid[-5:].isdigit() and content.count(uid) > 1 else b""

    def edit(number: int) -> bytes | None:
        if not number:
            return content
        return content.replace(found, found[:-5] + f"{(int(found[-5:]) + 7 * number) % 100_000:05d}".encode()) if found else None

    return edit
