"""Measure the peak memory of preprocess at two numbers of rows.

    python -m benchmarks.preprocess_memory [--rows 1000 100000] [--workers 2]

The listing is simulated: symbolic links give a few phantom files many names. The phantoms have no ids of their own, so that every name
counts as an image, with a row in labels.csv. Printed are the peak of the largest process and the ratio of the last to the first.
"""

import argparse
import tempfile
from pathlib import Path

from pydicom import dcmread

from benchmarks import stages
from components.params import Params
from components.simulate.params import Simulate
from components.simulate.run import run as simulate

FINDINGS = 14
PER_FOLDER = 1000


def main() -> None:
    """Print a line for each number of rows, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        originals = make_originals(Path(scratch, "originals"))
        peaks = [measure(Path(scratch), originals, rows, options.workers) for rows in options.rows]
    print(f"ratio {peaks[-1] / peaks[0]:.3f}")


def make_originals(folder: Path) -> list[Path]:
    """Make phantoms without SOPInstanceUID, PatientID and StudyInstanceUID."""
    simulate(out=str(folder), **Params(simulate=Simulate(patients=8, size=96)).arguments("simulate"))
    found = sorted(folder.rglob("*.dcm"))
    for path in found:
        made = dcmread(path)
        del made.SOPInstanceUID, made.PatientID, made.StudyInstanceUID
        made.save_as(path, enforce_file_format=False)
    return found


def measure(scratch: Path, originals: list[Path], rows: int, workers: int) -> float:
    """Run the stage on a simulated listing, and return the peak of its largest process in MiB."""
    raw = scratch / f"raw-{rows}"
    write_listing(raw, originals, rows)
    settings = ["preprocess.size=64", "preprocess.parts=4", f"runtime.workers={workers}", "runtime.max_quarantined=0.9"]
    command = ["preprocess", "--raw", str(raw), "--out", str(scratch / f"out-{rows}"), *stages.overrides(settings)]
    usage = stages.run(command, mlflow=scratch / "mlflow.db")
    print(f"{rows:>9,} rows: {usage.peak:7.1f} MiB, {usage.cpu:.0f} s of CPU time", flush=True)
    return usage.peak


def write_listing(raw: Path, originals: list[Path], rows: int) -> None:
    """Write the links and labels.csv."""
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
