"""Time the reader as one of 1, 2, 4 and 8 processes, and count what each process reads and decodes.

    python -m benchmarks.reader [--images 3200] [--size 512] [--rounds 3]

Only one of the processes is run at a time. CPU time includes all threads and is per image that the process decodes; `images/s` of all
assumes that each process has as many cores as this machine.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.pretrain import make_shards
from benchmarks.timing import heading, milliseconds, row, turns
from components.common.runs.shards import open_shards
from components.common.training.reader import Reader

BATCH = 64
RANKS = (1, 2, 4, 8)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        shards = open_shards(make_shards(Path(scratch, "shards"), options.size, options.images))
        readers = {ranks: Reader(shards, "train", rank=ranks // 2, ranks=ranks) for ranks in RANKS}
        decoded = {ranks: read_epoch(reader) for ranks, reader in readers.items()}
        read = {ranks: bytes_read(reader) for ranks, reader in readers.items()}
        work = {str(ranks): partial(read_epoch, reader) for ranks, reader in readers.items()}
        cpu, wall = (turns(work, options.rounds, clock) for clock in (time.process_time, time.perf_counter))
    heading("processes", "images of one", "MB read by one", "CPU ms per image", "images/s of all")
    for ranks in RANKS:
        speed = ranks * 1000 / milliseconds(wall[str(ranks)], decoded[ranks])
        cells = (f"{read[ranks] / 1e6:.0f}", f"{milliseconds(cpu[str(ranks)], decoded[ranks]):.3f}", f"{speed:.0f}")
        row(str(ranks), str(decoded[ranks]), *cells)


def read_epoch(reader: Reader) -> int:
    """Read an epoch, and return the number of images."""
    return sum(len(batch.images) for batch in reader.shuffled(BATCH, 0, 0))


def bytes_read(reader: Reader) -> int:
    """Return the bytes that the kernel gives to this process for an epoch."""
    before, _ = characters(), read_epoch(reader)
    return characters() - before


def characters() -> int:
    """Return the number of bytes that this process has read."""
    return int(Path("/proc/self/io").read_text().split()[1])


if __name__ == "__main__":
    main()
