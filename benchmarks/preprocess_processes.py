"""Time the whole stage with one process and with two, on so many copies of the files that its start hardly counts."""

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pydicom

from benchmarks import stages
from benchmarks.timing import heading, row

FILES = 5_000


def processes(originals: list[Path], scratch: Path, size: int, floor: Callable[[int], float]) -> None:
    """Print wall-clock and CPU time of the command, and how much faster two processes are, with and without its start.

    Args:
        originals: files to copy.
        scratch: folder for copies and outputs.
        size: longer side of the images in pixels.
        floor: returns the seconds in which each of N processes decodes the same files: the limit that the machine sets.
    """
    one, many = scratch / "one", scratch / "many"
    copies(originals, one, 1)
    count = copies(originals, many, max(len(originals), FILES))
    stage(one, scratch, size, 1)  # creates MLflow's database
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


def stage(raw: Path, scratch: Path, size: int, workers: int) -> stages.Usage:
    """Run preprocess."""
    settings = [f"preprocess.size={size}", f"runtime.workers={workers}", "runtime.max_quarantined=0.9"]
    command = ["preprocess", "--raw", str(raw), "--out", str(scratch / f"out-{raw.name}-{workers}"), *stages.overrides(settings)]
    return stages.run(command, mlflow=scratch / "mlflow.db", log=scratch / "log")


def copies(originals: list[Path], folder: Path, count: int) -> int:
    """Write at least `count` files, each with a SOPInstanceUID of its own of the same length; return how many.

    Deflated files, in which the UID cannot be replaced, are written once.
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
    """Return a function that numbers the SOPInstanceUID of a file, or returns None if it cannot."""
    content = path.read_bytes()
    uid = str(pydicom.dcmread(path, stop_before_pixels=True).get("SOPInstanceUID", "")).encode()
    found = uid if uid[-5:].isdigit() and content.count(uid) > 1 else b""

    def edit(number: int) -> bytes | None:
        if not number:
            return content
        return content.replace(found, found[:-5] + f"{(int(found[-5:]) + 7 * number) % 100_000:05d}".encode()) if found else None

    return edit
