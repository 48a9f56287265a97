"""Peak memory of preprocess at two numbers of rows: python -m benchmarks.preprocess_memory [--rows 1000 100000] [--workers 2].

The listing is simulated: a few phantom files without ids of their own stand under many names (symbolic links), so that each name is
an image of its own, with a row in labels.csv. Printed is the peak of the largest process, and the ratio of the last to the first.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from pydicom import dcmread

from components.params import Params
from components.simulate.params import Simulate
from components.simulate.run import run as simulate

FINDINGS = 14
PER_FOLDER = 1000


def main() -> None:
    """Prints a line a number of rows, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        originals = make_originals(Path(scratch, "originals"))
        peaks = [measure(Path(scratch), originals, rows, options.workers) for rows in options.rows]
    print(f"ratio {peaks[-1] / peaks[0]:.3f}")


def make_originals(folder: Path) -> list[Path]:
    """Phantoms without SOPInstanceUID and PatientID."""
    simulate(out=str(folder), **Params(simulate=Simulate(patients=8, size=96)).arguments("simulate"))
    found = sorted(folder.rglob("*.dcm"))
    for path in found:
        made = dcmread(path)
        del made.SOPInstanceUID, made.PatientID, made.StudyInstanceUID
        made.save_as(path, enforce_file_format=False)
    return found


def measure(scratch: Path, originals: list[Path], rows: int, workers: int) -> float:
    """Runs the stage on a simulated listing; returns the peak of its largest process, in MiB."""
    raw = scratch / f"raw-{rows}"
    write_listing(raw, originals, rows)
    options = {"preprocess.size": 64, "preprocess.parts": 4, "runtime.workers": workers, "runtime.max_quarantined": 0.9}
    overrides = [item for name, value in options.items() for item in ("--set", f"{name}={value}")]
    command = ["-m", "components", "preprocess", "--raw", str(raw), "--out", str(scratch / f"out-{rows}"), *overrides]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{scratch / 'mlflow.db'}"}
    child = os.posix_spawn(sys.executable, [sys.executable, *command], environment)
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"preprocess ended with status {status}")
    peak = usage.ru_maxrss / 1024
    print(f"{rows:>9,} rows: {peak:7.1f} MiB, {usage.ru_utime + usage.ru_stime:.0f} s of CPU time", flush=True)
    return peak


def write_listing(raw: Path, originals: list[Path], rows: int) -> None:
    """Makes the links and labels.csv."""
    raw.mkdir()
    with (raw / "labels.csv").open("w") as labels:
        labels.write(",".join(["image", "patient", *(f"finding {number}" for number in range(FINDINGS))]) + "\n")
        for row in range(rows):
            folder, name = f"{row // PER_FOLDER:04d}", f"{row:07d}.dcm"
            (raw / folder).mkdir(exist_ok=True)
            (raw / folder / name).symlink_to(originals[row % len(originals)])
            labels.write(",".join([f"{folder}/{name}", f"patient {row // 3}", *("01"[(row >> n) & 1] for n in range(FINDINGS))]) + "\n")


if __name__ == "__main__":
    main()
