"""The IFA term alone, beside the authors' loop over samples: time, and memory beyond the maps themselves."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.preprocess_timing import Candidates, heading, row, turns
from benchmarks.pretrain_peers import similarity_loop, similarity_torch
from benchmarks.pretrain_timing import clock, spread
from components.pretrain.losses import similarity_map

MAPS = {"layer1": (256, 128), "layer4": (2048, 16)}
"""Channels and side after the stages of a ResNet-50, of 512 px images."""
LAYOUTS = {"channels_last, as in our step": torch.channels_last, "contiguous, as in the authors'": torch.contiguous_format}
WAYS = {"a loop over samples": similarity_loop, "F.cosine_similarity": similarity_torch, "ours": similarity_map}


def terms(rounds: int, batch: int, device: torch.device) -> None:
    """Forward and backward of both stages' terms."""
    for layout, memory_format in LAYOUTS.items():
        pairs = [_maps(batch, *shape, device, memory_format) for shape in MAPS.values()]
        candidates: Candidates = {name: _term(way, pairs) for name, way in WAYS.items()}
        times = turns(candidates, rounds, clock(device))
        memory = {name: _extra(candidate, device) for name, candidate in candidates.items()}
        heading(f"IFA term at 512 px, batch {batch}, {layout}", "ms", "loop's time over it", "extra memory, MB", "of the loop's")
        loop = next(iter(times))
        for name, values in times.items():
            milliseconds = f"{1000 * sorted(values)[len(values) // 2]:.0f}"
            row(name, milliseconds, spread(times[loop], values), f"{memory[name] / 1e6:.0f}", f"{memory[name] / memory[loop]:.2f}")


def _maps(batch: int, channels: int, side: int, device: torch.device, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    query, key = (torch.randn(batch, channels, side, side, device=device).relu().contiguous(memory_format=memory_format) for _ in "qk")
    return query, key


def _term(way: Callable[[Tensor, Tensor], Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    def run() -> None:
        for query, key in pairs:
            query = query.detach().requires_grad_()
            (1 - way(query, key)).abs().mean().backward()

    return run


def _extra(candidate: Callable[[], object], device: torch.device) -> int:
    """Bytes allocated at most at a time, the gradient included."""
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
