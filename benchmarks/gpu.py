"""Check and time training on one GPU in at most ten minutes; prints a table of Markdown after each part.

    python -m benchmarks.gpu [--parts NAME ...] [--device cpu --tiny]

Every part runs in a process of its own: one that fails or takes too long costs one line, the next goes on, and the command ends with 1.
`--device cpu --tiny` tries out the command itself, in sizes whose times mean nothing.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_speed import Bench

TOTAL = 600.0
"""Seconds."""


def main() -> int:
    """Run the parts, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="default: all, in this order")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # the part runs here, in this process
    options = parser.parse_args()
    bench = Bench(options.device, options.tiny, Path(options.folder or "."))
    if options.folder:
        return run(bench, options.parts[0])
    ends = time.monotonic() + (TOTAL if options.device == "cuda" else 1e9)
    with tempfile.TemporaryDirectory() as folder:
        failed = [name for name in options.parts if not start(bench, name, folder, ends)]
    return 1 if failed else 0


def run(bench: Bench, name: str) -> int:
    """Run one part in this process; its error becomes the last line of stderr."""
    try:
        PARTS[name].run(bench)
    except Exception as error:  # whatever it is, the other parts go on
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        print(f"{type(error).__name__}: {lines[0]}", file=sys.stderr)
        return 1
    return 0


def start(bench: Bench, name: str, folder: str, ends: float) -> bool:
    """Run one part in a process of its own, which is killed when its time is over; return whether it succeeded."""
    seconds = min(PARTS[name].seconds if bench.device == "cuda" else 1e9, ends - time.monotonic())
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", bench.device, "--parts", name, "--folder", folder]
    log, began = Path(folder, f"{name}.log"), time.monotonic()
    print(f"\n### {name}", flush=True)
    with log.open("w") as stderr:
        process = subprocess.Popen(command + ["--tiny"] * bench.tiny, stderr=stderr, start_new_session=True)
        try:
            process.wait(max(seconds, 0.1))
            problem = log.read_text().strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        except subprocess.TimeoutExpired:
            problem = [f"stopped after {seconds:.0f} s"]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    print(f"\n{name} failed: {problem[0]}" if process.returncode else f"\n{time.monotonic() - began:.0f} s", flush=True)
    return process.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
