"""Images per second of pretraining, beside what the device can compute and move."""

import itertools
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pretrain import make_shards
from benchmarks.timing import elapsed, heading, row, wall_clock
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.training import devices, loop
from components.pretrain.params import Pretrain
from components.pretrain.training import Pretraining

DRAWN, STUBBED, IN_MEMORY = "views drawn", "views drawn once", "batch in memory"


@dataclass(frozen=True)
class Bench:
    """Where and in which sizes to measure; shards are made once, in `folder`."""

    device: str
    tiny: bool
    folder: Path

    def shards(self, size: int, images: int) -> str:
        """Return shards of square images in the train split."""
        folder = self.folder / f"shards-{size}-{images}"
        if not folder.exists():
            begun = folder.with_suffix(f".{os.getpid()}")  # a part that is stopped leaves no half of them to the others
            make_shards(begun, size, images)
            begun.rename(folder)
        return str(folder)

    @property
    def large(self) -> str:
        """Shards in the size of the paper."""
        return self.shards(*((32, 64) if self.tiny else (512, 1024)))

    @cached_property
    def where(self) -> torch.device:
        """The device."""
        return devices.set_up(self.device, 0)

    def task(self, shards: str, **changes: object) -> Pretraining:
        """Return the training task of pretraining: ResNet-50 and batches of 256, or the toy size."""
        toy = {"arch": "resnet18", "batch_size": 16, "queue_size": 32, "shuffle_groups": 4}
        given = {"device": self.device, "probe_epochs": 0, **(toy if self.tiny else {}), **changes}
        made = Pretraining(Pretrain.model_validate(given), Runtime(), open_shards([shards]))
        made.start()
        return made


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes that the operations of a step read and write; views move none."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and adds its tensors."""
        result = function(*args, **(kwargs or {}))
        if not all(each.alias_info and not each.alias_info.is_write for each in function._schema.returns):
            self.total += sum(each.nbytes for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor))
        return result


def speed(bench: Bench) -> None:
    """Time pretraining in the size of the paper, beside what the device can compute and move."""
    arch, size = ("resnet18", 32) if bench.tiny else ("resnet50", 512)
    compute = matmul_speed(bench.where, *((64, 2) if bench.tiny else ()))
    bandwidth = copy_speed(bench.where, 2**20 if bench.tiny else 2**30)
    columns = ("images/s", "wait for data", "share of the bf16 bound", "share of the bandwidth bound", "peak, GiB")
    heading(f"{arch} at {size} px; {compute / 1e12:.0f} TFLOP/s, {bandwidth / 1e9:.0f} GB/s", *columns)
    most = 4 if bench.tiny else 8
    cases = [(most, 1, DRAWN), (most, 1, STUBBED), (most, 1, IN_MEMORY), (1, 1, DRAWN), (most, 2, DRAWN), (most, 4, DRAWN)]
    for groups, accumulate, views in cases:
        name = f"groups {groups}, accumulate {accumulate}, {views}"
        try:
            row(name, *_speed(bench, groups, accumulate, views, compute, bandwidth))
        except torch.OutOfMemoryError:
            row(name, "out of memory", "-", "-", "-", "-")
            torch.cuda.empty_cache()


def _speed(bench: Bench, groups: int, accumulate: int, views: str, compute: float, bandwidth: float) -> list[str]:
    task = bench.task(bench.large, shuffle_groups=groups, accumulate=accumulate)
    batch = next(task.batches(0, 0))
    with Traffic() as traffic, FlopCounterMode(display=False) as flops:  # type: ignore[no-untyped-call]
        task.train_step(batch, 0, 0.0)
    if bench.where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if views == STUBBED:
        host = next(task.reader.shuffled(task.batch_size, 0, 0))
        drawn = task._with_draws(host, 0).draws
        task._with_draws = lambda batch, epoch: batch._replace(draws=drawn)  # type: ignore[method-assign]
    elif views == IN_MEMORY:
        task.batches = lambda epoch, start: iter([batch])  # type: ignore[method-assign]
    images, waited = throughput(task, 2 if bench.tiny else 10, bench.where, warm=1 if bench.tiny else 4)
    steps = images / task.batch_size
    peak = f"{devices.peak_gib():.1f}" if bench.where.type == "cuda" else "-"
    shares = (flops.get_total_flops() * steps / compute, traffic.total * steps / bandwidth)
    return [f"{images:.0f}", f"{waited:.2f}", *(f"{share:.2f}" for share in shares), peak]


def copy_speed(device: torch.device, size: int, repeats: int = 10) -> float:
    """Return the bytes that a copy within the device's memory reads and writes a second."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, now = torch.empty_like(source), wall_clock(device)
    target.copy_(source)
    return 2 * size * repeats / elapsed(lambda: [target.copy_(source) for _ in range(repeats)], now)


def throughput(task: loop.Trainable, count: int, device: torch.device, warm: int = 5) -> tuple[float, float]:
    """Return images per second over `count` steps after `warm` steps to warm up, and the share of the time spent waiting for data."""
    now = wall_clock(device)
    batches = (batch for epoch in itertools.count() for batch in task.batches(epoch, 0))
    for batch in itertools.islice(batches, warm):
        task.train_step(batch, 0, 0.0)
    waited, started = 0.0, now()
    for _ in range(count):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        task.train_step(batch, 0, 0.0)
    elapsed = now() - started
    return count * task.batch_size / elapsed, waited / elapsed


def matmul_speed(device: torch.device, side: int = 8192, repeats: int = 20) -> float:
    """Return the floating-point operations per second of a large bf16 matrix product on this device."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    now = wall_clock(device)
    one @ other
    started = now()
    for _ in range(repeats):
        one @ other
    return 2 * side**3 * repeats / (now() - started)
