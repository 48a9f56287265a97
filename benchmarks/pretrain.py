"""A pretraining step beside its floor and its peers, and the IFA term beside a loop over samples.

    python -m benchmarks.pretrain [--arch resnet18] [--size 128] [--batch 32] [--rounds 7]

Candidates take turns in every round, so that a drifting machine hits them alike; the ratio of a round is to the floor of
the same round, and the table gives the median over rounds.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from components.common import backbone, loop
from components.pretrain.losses import ifa, info_nce
from components.pretrain.moco import IFA_TARGETS, MoCo

DIM, QUEUE, TEMPERATURE = 128, 4096, 0.2


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18", choices=["resnet18", "resnet50"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    device = loop.set_up("auto", 0)
    print(f"{options.arch}, {options.size} px, batch {options.batch}, {device}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    steps(options.arch, options.size, options.batch, options.rounds, device)
    terms(options.rounds, device)


def steps(arch: str, size: int, batch: int, rounds: int, device: torch.device) -> None:
    """A whole step on ready views: encoders, loss, backward, optimizer, momentum update, queue."""
    views = [torch.randn(batch, 1, size, size, device=device).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    floor = Floor(arch, device)
    candidates: dict[str, Callable[[], None]] = {
        "floor: query forward and backward, key forward": lambda: floor.step(*views),
        "moco": ours(arch, "moco", views, device),
        "moco + ifa": ours(arch, "ifa", views, device),
        "moco + ifa as a loop over samples": ours(arch, "ifa", views, device, term=ifa_loop),
        "lightly's MoCo v2": lightly(arch, views, device),
    }
    report("step", candidates, rounds, device)


def terms(rounds: int, device: torch.device) -> None:
    """The IFA term alone, forward and backward, at the map sizes of ResNet-50 on 512 px images, 4 of them."""
    maps = {"layer1": (256, 128), "layer4": (2048, 16)}
    pairs = [[torch.randn(4, channels, side, side, device=device).relu() for _ in range(2)] for channels, side in maps.values()]

    def candidate(term: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for query, key in pairs:
                query = query.detach().requires_grad_()
                term(query, key, 1.0).backward()  # type: ignore[no-untyped-call]

        return run

    report("IFA term alone", {"vectorised": candidate(ifa), "loop over samples": candidate(ifa_loop)}, rounds, device)


class Floor:
    """The arithmetic that no implementation can avoid."""

    def __init__(self, arch: str, device: torch.device):
        self.query = backbone.build(arch).to(device).to(memory_format=torch.channels_last)
        self.key = copy.deepcopy(self.query).requires_grad_(False)

    def step(self, query: Tensor, key: Tensor) -> None:
        """Query forward and backward, key forward."""
        with torch.no_grad():
            self.key(key)
        self.query.zero_grad(set_to_none=True)
        self.query(query).sum().backward()


def ours(
    arch: str, preset: str, views: list[Tensor], device: torch.device, term: Callable[[Tensor, Tensor, float], Tensor] = ifa
) -> Callable[[], None]:
    """The step of components.pretrain."""
    model = MoCo(arch, DIM, QUEUE, 0.999).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)

    order = torch.arange(len(views[0]), device=device)

    def step() -> None:
        model.move_key_encoder()
        out = model(*views, order)
        loss = info_nce(out.q, out.k, model.queue, TEMPERATURE)
        for stage, target in IFA_TARGETS[preset].items():
            loss = loss + term(out.query_maps[stage], out.key_maps[stage], target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        model.enqueue(out.k)

    return step


def ifa_loop(query_map: Tensor, key_map: Tensor, target: float) -> Tensor:
    """The same number, a sample at a time, with normalised copies of the maps."""
    total = query_map.new_zeros(())
    for query, key in zip(query_map, key_map.detach(), strict=True):
        similarity = (F.normalize(query, dim=0) * F.normalize(key, dim=0)).sum(0)
        total = total + (target - similarity).abs().mean()
    return total / len(query_map)


def lightly(arch: str, views: list[Tensor], device: torch.device) -> Callable[[], None]:
    """MoCo v2 as lightly's documentation puts its parts together, on the same backbone."""
    resnet = backbone.build(arch)
    width = backbone.width(resnet)
    query = nn.Sequential(resnet, MoCoProjectionHead(width, width, DIM)).to(device).to(memory_format=torch.channels_last)
    key = copy.deepcopy(query).requires_grad_(False)
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(QUEUE, DIM)).to(device)
    optimizer = torch.optim.SGD(query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        update_momentum(query, key, m=0.999)
        q = query(views[0])
        with torch.no_grad():
            k = key(views[1])
        loss = criterion(q, k)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def report(title: str, candidates: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> None:
    """Times the candidates in turns and prints milliseconds and the ratio to the first."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 2):
        for name, candidate in candidates.items():
            seconds = timed(candidate, device)
            if number >= 2:  # the first rounds warm up
                times[name].append(seconds)
    first = next(iter(times.values()))
    print(f"\n{title:<50} {'ms':>8} {'ratio':>7}")
    for name, values in times.items():
        ratio = statistics.median(value / reference for value, reference in zip(values, first, strict=True))
        print(f"{name:<50} {1000 * statistics.median(values):8.1f} {ratio:7.3f}")


def timed(candidate: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, the device's queue included."""
    started = time.perf_counter()
    candidate()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
