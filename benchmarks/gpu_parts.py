"""The parts of `python -m benchmarks.gpu`: what is checked or timed on a GPU, in this order."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_heads import heads
from benchmarks.gpu_speed import Bench, speed, throughput
from benchmarks.timing import elapsed, heading, row, wall_clock
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.training import devices, loop
from components.common.training.reader import Reader

COSINE = {"fp32": 0.999, "TF32": 0.99, "bf16": 0.8}
"""Smallest cosine of the gradients to those of the CPU in fp32; bf16 on a CPU reaches 0.90 at 128 px, and 0.94 at 64 px."""
SYNCHRONISATIONS = 1
"""Most synchronisations a step."""


class Part(NamedTuple):
    """One part."""

    run: Callable[[Bench], None]
    seconds: float
    """After which it is stopped."""


def environment(bench: Bench) -> None:
    """Tell what the GPU, its driver and the compiler are."""
    heading("environment", "")
    row("torch, CUDA, cuDNN", f"{torch.__version__}, {torch.version.cuda}, {torch.backends.cudnn.version()}")  # type: ignore[no-untyped-call]
    row("driver", devices._driver())
    row("C compiler, needed by torch.compile", str(next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "none")))
    row("cores", str(os.cpu_count()))
    if bench.where.type == "cuda":
        found = torch.cuda.get_device_properties(bench.where)
        row("GPU", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability {found.major}.{found.minor}")
        row("bf16", str(torch.cuda.is_bf16_supported()))
        row("utilisation that the driver reports", f"{devices.utilisation():.0%}")


def tests(bench: Bench) -> None:
    """Run the tests that need a GPU."""
    if _needs_gpu(bench):
        return
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"], text=True, stdout=subprocess.PIPE)
    lines = done.stdout.strip().splitlines()
    heading("pytest -m gpu", "")
    for line in [line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:]:
        row(*line.partition(" - ")[::2])
    if done.returncode:
        raise RuntimeError("tests failed")


def precision(bench: Bench) -> None:
    """Compare losses and gradients of a step with those on a CPU in fp32, which has the same weights and views."""
    shards = bench.shards(64 if bench.tiny else 128, 16)
    ways = {"fp32": ("fp32", False), "TF32": ("fp32", True), "bf16": ("bf16", True)}
    expected: Tensor | None = None
    heading("a step of ResNet-18", "loss", "InfoNCE", "layer1", "layer4", "cosine of the gradients")
    for device, name in [("cpu", "fp32"), *((bench.device, name) for name in ways)]:
        how, tf32 = ways[name]
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        given = {"arch": "resnet18", "batch_size": 16, "queue_size": 1024, "shuffle_groups": 4}
        task = bench.task(shards, **given, device=device, precision=how)
        numbers = task.train_step(next(task.batches(0, 0)), 0, 0.0)
        gradient = torch.cat([weight.grad.double().cpu().flatten() for weight in task.model.query.parameters() if weight.grad is not None])
        expected = gradient if expected is None else expected
        cosine = float(torch.nn.functional.cosine_similarity(expected, gradient, dim=0))
        shown = (f"{float(numbers[key]):.5f}" for key in ("loss", "loss_nce", "loss_ifa_layer1", "loss_ifa_layer4"))
        row(f"{device} {name}", *shown, f"{cosine:.5f}")
        if cosine < COSINE[name]:
            raise RuntimeError(f"{device} {name}: the cosine of the gradients is {cosine:.5f}, below {COSINE[name]}")


def synchronisations(bench: Bench) -> None:
    """Count how often the host waits for the device in a step, in the loop of the stage."""
    if _needs_gpu(bench):
        return
    shards, worst = bench.shards(64, 64), 0
    heading(f"synchronisations a step, at most {SYNCHRONISATIONS}", "per step")
    for preset in ("moco", "ifa", "aligned", "mse"):
        task = bench.task(shards, arch="resnet18", batch_size=16, queue_size=64, preset=preset)
        counts: list[int] = []
        step = task.train_step
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")

            def counted(*args: Any, caught: list[Any] = caught, step: Any = step, counts: list[int] = counts) -> loop.Numbers:
                torch.cuda.set_sync_debug_mode("warn")
                counts.append(sum("synchronizing" in str(each.message) for each in caught))
                result: loop.Numbers = step(*args)
                return result

            task.train_step = counted  # type: ignore[assignment, method-assign]
            loop.Trainer(task, "bench", None, 2, Runtime()).run()
            torch.cuda.set_sync_debug_mode("default")
        found = [later - earlier for earlier, later in itertools.pairwise(counts[1:4])]  # within the first epoch, without its first step
        row(preset, str(max(found)))
        worst = max(worst, *found)
    if worst > SYNCHRONISATIONS:
        raise RuntimeError(f"{worst} synchronisations a step")


def reader(bench: Bench) -> None:
    """Time reading and decoding of a process of pretraining, without a GPU."""
    heading("reader, batches of 256", "images/s of this process")
    opened = open_shards([bench.large])
    for rank, ranks in ((0, 1), (3, 8)):
        read = Reader(opened, "train", rank=rank, ranks=ranks)
        began, count = time.perf_counter(), 0
        for epoch in range(1 if bench.tiny else 3):
            count += sum(len(batch.images) for batch in read.shuffled(16 if bench.tiny else 256, 0, epoch))
        row(f"rank {rank} of {ranks}", f"{count / (time.perf_counter() - began):.0f}")


def compiled(bench: Bench) -> None:
    """Time steps of compiled encoders."""
    if _needs_gpu(bench):
        return
    heading("torch.compile, batch in memory", "images/s", "first step, s")
    for compile in (False, True):
        task = bench.task(bench.large)
        for encoder in (task.model.query, task.model.key) if compile else ():
            encoder.compile()
        batch = next(task.batches(0, 0))
        task.batches = lambda epoch, start, batch=batch: iter([batch])  # type: ignore[method-assign, misc]
        first = elapsed(lambda task=task, batch=batch: task.train_step(batch, 0, 0.0), wall_clock(bench.where))  # type: ignore[misc]
        row("compiled" if compile else "not compiled", f"{throughput(task, 10, bench.where, warm=3)[0]:.0f}", f"{first:.1f}")


def two_processes(bench: Bench) -> None:
    """Compare the losses of one process with those of two that share the device, connected by gloo."""
    bench.shards(32, 64)
    losses = {}
    for count in (1, 2):
        module = ["-m", "benchmarks.gpu_ranks", bench.device, str(bench.folder / "shards-32-64")]
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *module]
        done = subprocess.run(start, text=True, stdout=subprocess.PIPE, check=True)
        losses[count] = json.loads(done.stdout.strip().splitlines()[-1])
    heading("loss of ResNet-18", "1 process", "2 processes")
    for step, pair in enumerate(zip(*losses.values(), strict=True)):
        row(f"step {step}", *(f"{value:.5f}" for value in pair))
    if max(abs(one - two) for one, two in zip(*losses.values(), strict=True)) > 0.01:
        raise RuntimeError("the losses differ")


def stop(bench: Bench) -> None:
    """Stop the stage by SIGTERM, resume it, and compare its result with that of a run that was not stopped."""
    shards, out = bench.shards(32, 64), bench.folder / "stopped"
    given = {"arch": "resnet18", "epochs": 2, "batch_size": 16, "queue_size": 64, "shuffle_groups": 4, "device": bench.device}
    sets = [f"--set=pretrain.{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "components", "pretrain", "--shards", shards, "--params", os.devnull, *sets]
    place = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{bench.folder}/mlflow.db"}
    subprocess.run([*command, "--out", str(bench.folder / "whole")], env=place, check=True)
    stopped = [*command, "--out", str(out), "--set=runtime.checkpoint_minutes=0"]
    with subprocess.Popen(stopped, env=place) as process:
        while process.poll() is None and not any(Path(f"{out}.partial").glob("*/checkpoints/*.pt")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        seconds = elapsed(process.wait, time.perf_counter)
    subprocess.run(stopped, env=place, check=True)
    losses = [json.loads((bench.folder / name / "metrics.json").read_text())["loss"] for name in ("whole", "stopped")]
    heading("SIGTERM after the first checkpoint", "")
    row("exit code", str(process.returncode))
    row("seconds until it ended", f"{seconds:.1f}")
    row("last loss without and with the stop", " and ".join(f"{loss:.5f}" for loss in losses))
    if process.returncode != 75 or abs(losses[0] - losses[1]) > 0.01:
        raise RuntimeError("the run did not stop and resume as it should")


def _needs_gpu(bench: Bench) -> bool:
    if bench.where.type == "cpu":
        print("\nneeds a GPU", flush=True)
    return bench.where.type == "cpu"


PARTS = {
    "environment": Part(environment, 30),
    "tests": Part(tests, 150),
    "precision": Part(precision, 60),
    "synchronisations": Part(synchronisations, 60),
    "speed": Part(speed, 150),
    "reader": Part(reader, 40),
    "compile": Part(compiled, 120),
    "two processes": Part(two_processes, 60),
    "stop": Part(stop, 90),
    "heads": Part(lambda bench: heads(bench.device, bench.folder, bench.tiny), 90),
}
