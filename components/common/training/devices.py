"""The device that trains: its set-up, mixed precision, and how batches of stored pixels reach it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from components.common.errors import UserError
from components.common.formats.shards import Pixels
from components.common.runs.cores import threads
from components.common.training.reader import Batch, prefetch


def set_up(device: str, seed: int) -> torch.device:
    """Chooses the device (auto: a GPU if there is one; cpu; cuda), seeds torch's global generator, and makes runs repeatable."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but torch sees no GPU; set device to auto or cpu")
    torch.set_num_threads(threads())
    # Denormals appear as weights decay, and CPUs are several times slower on them.
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    return torch.device("cuda", torch.cuda.current_device()) if device != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Returns the context of the forward pass: bf16 (the range of fp32: no loss scaler), fp32, or auto: bf16 on a GPU, fp32 on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and device.type == "cuda"))


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
