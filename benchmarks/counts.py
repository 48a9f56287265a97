"""Count what a pretraining step costs besides arithmetic: synchronisations, time of the host, copies, and bytes between processes.

    python -m benchmarks.counts [--arch resnet50] [--size 512] [--batch 256] [--groups 8]

Needs no GPU: the steps run on tensors that claim to be on one, and collectives are counted instead of made. `before` is the state that a
review found in November 2026, at the sizes that are the default here.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fake_cuda import AHEAD, BETWEEN, WAITING, WITHIN, Counts, collectives, each_step, fake_cuda
from benchmarks.pretrain import make_shards
from benchmarks.timing import elapsed, heading, row
from components.common.runs.params import Runtime
from components.common.runs.shards import Shards, open_shards
from components.pretrain.params import Pretrain
from components.pretrain.training import Pretraining

BEFORE = {
    "synchronisations": "22",
    "seconds of the host to draw both views": "1.9",
    "MB to the device that the host waits for": "536",
    "calls of batch norm": "848",
    "concatenations": "161",
}
PRESETS = ("moco", "ifa", "aligned", "mse")
PLACES = ((1, 8), (2, 8))
"""Nodes, and processes of each."""


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50", choices=["resnet18", "resnet50"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--groups", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = open_shards([make_shards(Path(folder, "shards"), options.size, options.batch)])
        given = {"arch": options.arch, "batch_size": options.batch, "queue_size": 16 * options.batch, "shuffle_groups": options.groups}
        title = f"{options.arch}, {options.size} px, batch {options.batch}"
        one_process(shards, given, title)
        between_processes(shards, given, title)


def one_process(shards: Shards, given: dict[str, Any], title: str) -> None:
    """Print the counts of a step of each preset."""
    task = pretraining(shards, given)
    batch = next(task.reader.shuffled(task.batch_size, 0, 0))
    host = statistics.median(elapsed(lambda: task._with_draws(batch, 0), time.thread_time) for _ in range(3))
    found = {preset: count_step(shards, {**given, "preset": preset}) for preset in PRESETS}
    heading(f"a step on one GPU, {title}", "before, ifa", *PRESETS)
    rows: dict[str, Callable[[Counts], str]] = {
        "synchronisations": lambda counts: str(counts.waits.total()),
        "seconds of the host to draw both views": lambda _: f"{host:.2f}",
        "MB to the device that the host waits for": lambda counts: f"{counts.bytes[WAITING] / 1e6:.1f}",
        "MB to the device, copied ahead": lambda counts: f"{counts.bytes[AHEAD] / 1e6:.1f}",
        "calls of batch norm": lambda counts: str(counts.operations["native_batch_norm"]),
        "concatenations": lambda counts: str(counts.operations["cat"]),
        "all operations, views of tensors included": lambda counts: str(counts.operations.total()),
    }
    for name, of in rows.items():
        row(name, BEFORE.get(name, "-"), *(of(counts) for counts in found.values()))


def between_processes(shards: Shards, given: dict[str, Any], title: str) -> None:
    """Print the bytes that a process hands to collectives in a step."""
    heading(f"MB a step and process, {title}", "gradients", "within the node", "between nodes", "over the gradients")
    for nodes, size in PLACES:
        for preset in PRESETS:
            params = {**given, "preset": preset, "shuffle_groups": max(given["shuffle_groups"], nodes * size)}
            sent = count_step(shards, params, nodes, size).bytes
            gradients = sum(weight.nbytes for weight in pretraining(shards, params).model.query.parameters())
            cells = (f"{value / 1e6:.2f}" for value in (gradients, sent[WITHIN], sent[BETWEEN]))
            row(f"{preset}, {nodes} x {size} processes", *cells, f"{sent[BETWEEN] / gradients:.3f}" if nodes > 1 else "-")


def count_step(shards: Shards, params: dict[str, Any], nodes: int = 1, size: int = 1) -> Counts:
    """Return the counts of the second step, in the first of `size` processes on each of `nodes` nodes."""
    with fake_cuda() as counts, collectives(counts, nodes, size):
        task = pretraining(shards, params)
        task.start()
        return each_step(task, counts, 2)[-1]


def pretraining(shards: Shards, params: dict[str, Any]) -> Pretraining:
    """Return the training task of the stage."""
    return Pretraining(Pretrain.model_validate({"probe_epochs": 0, **params}), Runtime(), shards)


if __name__ == "__main__":
    main()
