"""Simulate how well an epoch is shuffled, and what a node fetches for it from S3, for several orders of a million images.

    python -m benchmarks.order [--images 1000000]

The images lie in 64 parts and in row groups of 100. Two nodes of 8 processes read batches of 256, half a batch each. Nothing is read.
"""

import argparse
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from benchmarks.timing import heading, row
from components.common.training.order import STREAMS, Indices, epoch_order
from components.common.training.reader import SPAN

PARTS, GROUP, BATCH, NODES, RANKS = 64, 100, 256, 2, 8
IMAGE_BYTES = 121_000  # packed, at 512 px
CACHES = (0.0, 0.05, 0.15, 0.5)
Order = Callable[[int, np.random.Generator], Indices]


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    images = parser.parse_args().images
    span = SPAN // IMAGE_BYTES
    orders: dict[str, Order] = {
        "full shuffling": full,
        "ours": lambda count, rng: epoch_order(row_groups(count), BATCH, span, rng),
        "windows of 16 row groups": lambda count, rng: windows(count, 16 * GROUP, rng),
        "py1e, block of 2,000,000, its default": lambda count, rng: py1e(count, 2_000_000, rng),
        f"py1e, block of {STREAMS * span // NODES:,}, as ours": lambda count, rng: py1e(count, STREAMS * span // NODES, rng),
    }
    epochs = {name: [order(images, np.random.default_rng((0, epoch))) for epoch in (0, 1)] for name, order in orders.items()}
    heading("order", "batches between neighbours, 5 %", "50 %", "parts in a batch", "row groups in a batch", "together again, over chance")
    for name, (first, second) in epochs.items():
        low, middle = np.quantile(distances(first), (0.05, 0.5))
        groups, parts = (np.mean([len(np.unique(batch)) for batch in first // size]) for size in (GROUP, -(-images // PARTS)))
        row(name, f"{low:.0f}", f"{middle:.0f}", f"{parts:.1f}", f"{groups:.1f}", f"{together_again(first, second):.2f}")
    heading("shards fetched per node and epoch, cache of", *(f"{share:.0%}" for share in CACHES))
    for name, both in epochs.items():
        fetch = fetched_by_ours if name == "ours" else fetched_by_row
        row(name, *(f"{fetch(both, int(share * images / GROUP)) / (images / GROUP):.2f}" for share in CACHES))


def row_groups(images: int) -> list[Indices]:
    """Return the rows of each row group."""
    return np.split(np.arange(images), np.arange(GROUP, images, GROUP))


def batches(rows: Indices) -> Indices:
    """Cut a sequence into full batches."""
    return rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)


def full(images: int, rng: np.random.Generator) -> Indices:
    """Shuffle all images."""
    return batches(rng.permutation(images))


def windows(images: int, size: int, rng: np.random.Generator) -> Indices:
    """Shuffle the row groups, and the rows within windows: the order of this project until version 0.2.0."""
    groups = row_groups(images)
    rows = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
    return batches(np.concatenate([rng.permutation(rows[at : at + size]) for at in range(0, images, size)]))


def py1e(images: int, block: int, rng: np.random.Generator) -> Indices:
    """Shuffle as mosaicml-streaming documents `py1e`, with a canonical node per node and our row groups as its shards.

    Shards are shuffled and dealt to the canonical nodes once per run, and shuffled within each node in every epoch. A sample is moved by
    a uniform number such that the samples of a shard spread over at most a block, of 0.75 to 1.25 times the size that was asked for, and
    stay on the node. Each node takes half of a batch. https://docs.mosaicml.com/projects/streaming, "Shuffling"; the default block has
    4,000,000 samples divided by the number of canonical nodes.
    """
    groups = row_groups(images)
    halves = np.array_split(np.random.default_rng(0).permutation(len(groups)), NODES)
    nodes = []
    for half in halves:
        shards = [rng.permutation(groups[i]) for i in rng.permutation(half)]
        sizes = np.array([len(shard) for shard in shards])
        count, begins = sizes.sum(), np.cumsum(sizes) - sizes
        reach = np.maximum((rng.uniform(0.75, 1.25, len(sizes)) * block - sizes) / 2, 0)
        low, high = np.maximum(-reach, -begins), np.minimum(reach, count - begins - sizes)
        shifts = rng.uniform(np.repeat(low, sizes), np.repeat(high, sizes))
        nodes.append(np.concatenate(shards)[np.argsort(np.arange(count) + shifts)])
    share = BATCH // NODES
    steps = min(len(node) for node in nodes) // share
    return np.concatenate([node[: steps * share].reshape(steps, share) for node in nodes], axis=1)


def batch_of(order: Indices) -> npt.NDArray[np.float64]:
    """Return the number of the batch of each image; NaN for those that are left out."""
    found = np.full(order.max() + 1, np.nan)
    found[order] = np.arange(len(order))[:, None]
    return found


def distances(order: Indices) -> npt.NDArray[np.float64]:
    """Return the number of batches between images that are neighbours in a row group."""
    apart = np.abs(np.diff(batch_of(order)))
    apart[GROUP - 1 :: GROUP] = np.nan
    return apart[~np.isnan(apart)]


def together_again(first: Indices, second: Indices) -> float:
    """Return how many pairs of a batch are in one batch of the next epoch, divided by the expected number for independent orders."""
    found = np.full(max(first.max(), second.max()) + 1, -1)
    found[second] = np.arange(len(second))[:, None]
    next_batch = found[first]
    keys = (np.arange(len(first))[:, None] * (len(second) + 1) + next_batch)[next_batch >= 0]
    counts = np.unique(keys, return_counts=True)[1].astype(float)
    chance = (BATCH - 1) / (len(found) - 1)
    return float((counts * (counts - 1)).sum() / (first.size * (BATCH - 1)) / chance)


def fetched_by_ours(epochs: list[Indices], room: int) -> int:
    """Count the row groups that the first node fetches in the second epoch: each process once, unless the cache has kept it.

    The cache keeps the first row groups that it gets.
    """
    kept: set[int] = set()
    for order in epochs:
        fetched = 0
        for part in np.split(order[:, : BATCH // NODES], RANKS, axis=1):
            wanted = dict.fromkeys((part // GROUP).ravel().tolist())
            missing = [group for group in wanted if group not in kept]
            kept.update(missing[: max(room - len(kept), 0)])
            fetched += len(missing)
    return fetched


def fetched_by_row(epochs: list[Indices], room: int) -> int:
    """Count the row groups that the first node fetches in the second epoch if it opens one for each image, with a cache of the latest.

    A row group that the images of one batch share is fetched once.
    """
    kept: OrderedDict[int, None] = OrderedDict()
    for order in epochs:
        fetched = 0
        for batch in order[:, : BATCH // NODES] // GROUP:
            fetched += touch(kept, np.unique(batch).tolist(), room)
    return fetched


def touch(kept: OrderedDict[int, None], groups: Iterable[int], room: int) -> int:
    """Use some row groups of a cache, and return how many were not in it; the least recently used are evicted."""
    missing = 0
    for group in groups:
        missing += group not in kept
        kept[group] = None
        kept.move_to_end(group)
    while len(kept) > room:
        kept.popitem(last=False)
    return missing


if __name__ == "__main__":
    main()
