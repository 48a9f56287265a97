"""Time the IFA term alone against the authors' loop over samples, and measure its memory beyond the feature maps."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.pretrain_peers import similarity_loop, similarity_torch
from benchmarks.timing import heading, milliseconds, row, spread, turns, wall_clock
from components.pretrain.losses import similarity_map

MAPS = {"layer1": (256, 128), "layer4": (2048, 16)}
"""Channels and side of the feature maps of a ResNet-50 on images of 512 px."""
LAYOUTS = {"channels_last, as in our step": torch.channels_last, "contiguous, as in the authors'": torch.contiguous_format}
WAYS = {"a loop over samples": similarity_loop, "F.cosine_similarity": similarity_torch, "ours": similarity_map}


def terms(rounds: int, batch: int, device: torch.device) -> None:
    """Time the forward and backward pass of the terms of both stages."""
    for layout, memory_format in LAYOUTS.items():
        pairs = [_maps(batch, *shape, device, memory_format) for shape in MAPS.values()]
        candidates = {name: _term(way, pairs) for name, way in WAYS.items()}
        times = turns(candidates, rounds, wall_clock(device))
        memory = {name: _extra(candidate, device) for name, candidate in candidates.items()}
        heading(f"IFA term at 512 px, batch {batch}, {layout}", "ms", "loop's time over it", "extra memory, MB", "of the loop's")
        loop = next(iter(times))
        for name, values in times.items():
            extra = (f"{memory[name] / 1e6:.0f}", f"{memory[name] / memory[loop]:.2f}")
            row(name, f"{milliseconds(values):.0f}", spread(times[loop], values), *extra)


def _maps(batch: int, channels: int, side: int, device: torch.device, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    query, key = (torch.randn(batch, channels, side, side, device=device).relu().contiguous(memory_format=memory_format) for _ in "qk")
    return query, key


def _term(way: Callable[[Tensor, Tensor], Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    def run() -> None:
        for query, key in pairs:
            query = query.detach().requires_grad_()
            (1 - way(query, key)).abs().mean().backward()  # type: ignore[no-untyped-call]

    return run


def _extra(candidate: Callable[[], object], device: torch.device) -> int:
    """Return the peak of the allocated bytes, gradients included."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        candidate()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        candidate()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    used = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    return peak
