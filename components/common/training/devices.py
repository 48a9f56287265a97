"""The device that trains: its set-up, mixed precision, and how batches of stored pixels reach it."""

import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from components.common.errors import RepeatingError, TemporaryError, UserError
from components.common.formats.shards import Pixels
from components.common.runs.cores import GPUS_VARIABLE, threads
from components.common.runs.provenance import KFP_VARIABLE
from components.common.training.reader import Batch, prefetch

FOREIGN_MEMORY = 0.1  # fraction of a GPU's memory; what CUDA itself takes for this process is below
DRIVER = Path("/proc/driver/nvidia/version")
OLDEST_DRIVERS = {"12": 525, "13": 580}
"""Oldest NVIDIA driver by major version of CUDA: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html."""

log = logging.getLogger(__name__)


def set_up(device: str, seed: int) -> torch.device:
    """Chooses the device (auto: a GPU if there is one; cpu; cuda), seeds torch's global generator, and makes runs repeatable.

    Raises:
        UserError: torch sees no GPU, although the parameter is cuda, or it is auto and the step of a pipeline asked for GPUs.
    """
    found = device != "cpu" and torch.cuda.is_available()
    in_pod = os.environ.get(KFP_VARIABLE) and os.environ.get(GPUS_VARIABLE, "0") != "0"
    asked = device == "cuda" or (device == "auto" and in_pod)
    if asked and not found:
        raise UserError(
            f"device: a GPU is asked for, but {_versions()} sees none with {_driver()}; "
            "install a newer driver, choose another node, or set device to cpu"
        )
    if found:
        log.info(description())
    torch.set_num_threads(threads())
    # Denormals appear as weights decay, and CPUs are several times slower on them.
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    return torch.device("cuda", torch.cuda.current_device()) if found else torch.device("cpu")


def description() -> str:
    """Describes the GPU and its driver."""
    return f"{torch.cuda.get_device_name()} with {_driver()}, {_versions()}"


def _versions() -> str:
    """Returns the version of torch, and the driver that its CUDA needs."""
    cuda = torch.version.cuda or "none"
    oldest = OLDEST_DRIVERS.get(cuda.partition(".")[0])
    return f"torch {torch.__version__} (CUDA {cuda}{f', which needs driver {oldest} or newer' if oldest else ''})"


def _driver() -> str:
    """Returns the version of the NVIDIA driver, as the kernel module states it."""
    if not DRIVER.exists():
        return "no NVIDIA driver"
    numbers = re.search(r"\d+(\.\d+)+", DRIVER.read_text())
    return f"driver {numbers[0] if numbers else 'of an unknown version'}"


def gpu_in_use() -> bool:
    """Whether this process computes on a GPU."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def peak_gib() -> float:
    """Returns the peak of the memory of tensors on this process's GPU since the epoch began, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30


def utilisation() -> float:
    """Returns the fraction of the last moments (up to a second) in which this process's GPU computed; NaN where the driver cannot say."""
    import pynvml  # type: ignore[import-untyped]

    try:
        return torch.cuda.utilization() / 100
    except (RuntimeError, pynvml.NVMLError):  # such as a part of a GPU (MIG)
        return math.nan


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turns an allocation that fails on a GPU into a RepeatingError with the advice, or a TemporaryError if others use that GPU, too."""
    try:
        yield
    except torch.OutOfMemoryError:
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
        foreign = total - free - torch.cuda.memory_reserved() / 2**30
        if foreign > FOREIGN_MEMORY * total:
            who = f"other processes hold {foreign:.0f} of the GPU's {total:.0f} GiB of memory"
            raise TemporaryError(f"{who}; end them, choose another node, or {advice}") from None
        raise RepeatingError(f"the GPU's {total:.0f} GiB of memory do not suffice; {advice}") from None


def require_compiler(device: torch.device) -> None:
    """Raises UserError if there is no compiler that torch.compile finds: of C for the kernels of a GPU, of C++ for those of a CPU."""
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    wanted = [os.environ[variable]] if os.environ.get(variable) else names
    if not any(map(shutil.which, wanted)):
        raise UserError(f"runtime.compile: {' or '.join(wanted)} is not installed; install it or set runtime.compile to false")


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Returns the context of the forward pass: bf16 (the range of fp32: no loss scaler), fp32, or auto: bf16 on a GPU, fp32 on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and device.type == "cuda"))


@contextmanager
def exact() -> Iterator[None]:
    """Keeps convolutions on a GPU in fp32, where cuDNN would use TF32: scores then agree between devices up to rounding."""
    earlier, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = earlier


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copies images and draws of batches to a GPU from pinned memory, ahead of the computation; on a CPU it changes nothing."""
    return prefetch(_copied(batches, device)) if device.type == "cuda" else batches


def _copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Runs in the prefetching thread, on a stream of its own. The current device belongs to a thread: a new one starts on GPU 0."""
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            copies = {name: _to(batch, name, device) for name in ("images", "draws") if getattr(batch, name) is not None}
        stream.synchronize()
        for tensor in copies.values():
            # Allocated on this thread's stream but read on the main one: the allocator must not reuse the memory before that.
            tensor.record_stream(torch.cuda.default_stream(device))
        yield batch._replace(**copies)  # type: ignore[arg-type]


def _to(batch: Batch, name: str, device: torch.device) -> Tensor:
    return torch.from_numpy(getattr(batch, name)).pin_memory().to(device, non_blocking=True)


def to_unit(images: Pixels | Tensor, device: torch.device) -> Tensor:
    """Scales stored pixels, uint8 or uint16 (B, H, W), to fractions of their full range: (B, 1, H, W), float32 in [0, 1]."""
    tensor = images if isinstance(images, Tensor) else torch.from_numpy(images)
    return tensor.to(device, torch.float32).div_(torch.iinfo(tensor.dtype).max).unsqueeze(1)
