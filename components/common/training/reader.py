"""Reads the images of one split in batches, in an order that depends only on the data, the batch size, the seed and the epoch.

Row groups are read ahead of the batch that needs them first, each of them once; of each, the rows of this process are held until their
batches. With several ranks each takes its slice of every global batch, so the global batches do not depend on the number of ranks.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.common.errors import UserError
from components.common.formats.shards import SPLITS, Pixels, centre, decode
from components.common.runs.cores import cores
from components.common.runs.shards import Shards
from components.common.training import processes
from components.common.training.order import Indices, epoch_order
from components.common.training.seeds import generator_for

OWNER = ("split", "patient_id")
SPAN = 128 * 2**20  # bytes of packed rows by which a row moves at most within its stream, so that half as much waits in memory
AHEAD = 4  # row groups that are read ahead
T = TypeVar("T")
Item = TypeVar("Item")


class Batch(NamedTuple):
    """Images of one step."""

    images: Pixels  # (B, S, S), uint8 or uint16, each centred on zeros
    rows: Indices  # (B,), their positions in `Reader.table`
    draws: npt.NDArray[np.float64] | None = None  # random numbers for the augmentation, if the stage has drawn them ahead


class Reader:
    """The images of one split; of each global batch the slice `rank` of `ranks`, by default that of this process.

    Small columns, image_id, patient_id, labels and `columns`, are read at once into `table`, pixels batch by batch. Raises
    UserError if the split is empty.
    """

    def __init__(self, shards: Shards, split: str, columns: tuple[str, ...] = (), rank: int | None = None, ranks: int | None = None):
        self._rank = processes.rank() if rank is None else rank
        self._ranks = processes.world_size() if ranks is None else ranks
        self.size = shards.size
        table = shards.table([*OWNER, "image_id", "labels", *columns])
        selected = pc.equal(table["split"], split).to_numpy()
        self.table: pa.Table = table.filter(pa.array(selected)).drop_columns(["split"])
        if not len(self.table):
            raise UserError(_empty(shards, split, table))
        groups = shards.row_groups()
        sizes = [group.rows for group in groups]
        numbers = np.repeat(np.arange(len(sizes)), sizes)[selected]
        self._offset = np.concatenate([np.arange(size) for size in sizes])[selected]  # of each row of the table within its row group
        present, self._group = np.unique(numbers, return_inverse=True)
        self._groups = [groups[number] for number in present]
        self._kept = np.arange(len(self))
        self._span = SPAN * sum(sizes) // max(sum(group.bytes for group in groups), 1)
        self._dtype = np.dtype(f"uint{shards.bits}")

    def __len__(self) -> int:
        return len(self.table)

    def labels(self) -> npt.NDArray[np.float32]:
        """Returns (N, findings): 1, 0 or NaN for unknown, in the order of `table`."""
        return np.array(self.table["labels"].to_pylist(), np.float32).reshape(len(self), -1)

    def keep(self, rows: Indices) -> None:
        """Restricts the batches to these rows of `table`; row numbers do not change."""
        self._kept = np.unique(rows)

    def thin_out(self, rows: Indices, most: int) -> Indices:
        """Returns at most so many of these ascending rows: those of evenly spaced row groups, so that the others need not be read."""
        groups = np.unique(self._group[rows])
        count = min(-(-len(groups) * most // len(rows)), len(groups)) if len(rows) else 0
        chosen = groups[np.linspace(0, len(groups) - 1, count).astype(int)]
        return rows[np.isin(self._group[rows], chosen)][:most]

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yields every image once, in the order of `table`; the last batch may be smaller."""
        return self._batches([self._kept[at : at + batch_size] for at in range(0, len(self._kept), batch_size)])

    def shuffled(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields this rank's slice of each full global batch of an epoch, from number `start` on, in an order determined by the seed."""
        ends = np.searchsorted(self._group[self._kept], np.arange(len(self._groups)), side="right")
        groups = np.split(self._kept, ends[:-1])
        return self._batches(epoch_order(groups, batch_size, self._span, generator_for(seed, epoch))[start:])

    def _batches(self, batches: Iterable[Indices]) -> Iterator[Batch]:
        slices = [rows[processes.share(len(rows), self._rank, self._ranks)] for rows in batches]
        return prefetch(self._load([rows for rows in slices if len(rows)]))

    def _load(self, batches: list[Indices]) -> Iterator[Batch]:
        """Yields the images of these rows."""
        held: dict[int, dict[str, Any]] = {}  # packed rows that were read and wait for their batch
        with closing(_ahead(self._read, self._by_group(batches), AHEAD)) as read:
            for rows in batches:
                while any(row not in held for row in rows.tolist()):
                    held.update(next(read))
                yield self._decode(rows, [held.pop(row) for row in rows.tolist()])

    def _by_group(self, batches: list[Indices]) -> list[Indices]:
        """Divides rows by row group, in the order in which the row groups are first needed."""
        rows = np.concatenate([*batches, np.empty(0, np.int64)])
        groups, first, group = np.unique(self._group[rows], return_index=True, return_inverse=True)
        divided = np.split(rows[np.argsort(group, kind="stable")], np.cumsum(np.bincount(group, minlength=len(groups)))[:-1])
        return [divided[i] for i in np.argsort(first)]

    def _read(self, rows: Indices) -> dict[int, dict[str, Any]]:
        """Reads rows of one row group."""
        rows = np.sort(rows)
        table = self._groups[self._group[rows[0]]].read()
        if len(rows) < len(table):
            table = table.take(pa.array(self._offset[rows]))
        return dict(zip(rows.tolist(), table.to_pylist(), strict=True))

    def _decode(self, rows: Indices, packed: list[dict[str, Any]]) -> Batch:
        images: Pixels = np.zeros((len(rows), self.size, self.size), self._dtype)
        list(_decoders().map(lambda row, image: centre(decode(row), image), packed, images))
        return Batch(images, rows)


@cache
def _decoders() -> ThreadPoolExecutor:
    """One thread per core: decoding releases the interpreter's lock, and threads need not copy pixels between processes."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="decode")


def prefetch(items: Iterator[T], depth: int = 3) -> Iterator[T]:
    """Yields the same items, which a thread computes up to `depth` ahead; None is not allowed among them."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        ahead = deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


def _ahead(work: Callable[[Item], T], items: Iterable[Item], depth: int) -> Generator[T, None, None]:
    """Yields the results of `work` for each item in turn, which threads compute up to `depth` ahead."""
    remaining = iter(items)
    with ThreadPoolExecutor(depth, thread_name_prefix="read") as threads:
        ahead = deque(threads.submit(work, item) for item in islice(remaining, depth))
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(threads.submit(work, item) for item in islice(remaining, 1))
                yield result
        finally:
            threads.shutdown(cancel_futures=True)


def require_splits(shards: Shards) -> None:
    """Raises UserError if a split is empty; a head finds out before it trains, though it reads the test split only afterwards."""
    table = shards.table([*OWNER])
    for split in SPLITS:
        if not pc.any(pc.equal(table["split"], split)).as_py():
            raise UserError(_empty(shards, split, table))


def _empty(shards: Shards, split: str, table: pa.Table) -> str:
    """Says that a split is empty, how many patients the others have, and what to do."""
    patients = Counter(row["split"] for row in table.select([*OWNER]).group_by([*OWNER]).aggregate([]).to_pylist())
    others = ", ".join(f"{name} {patients[name]}" for name in SPLITS if patients[name]) or "none"
    change = "lower preprocess.val_fraction and preprocess.test_fraction" if split == "train" else f"raise preprocess.{split}_fraction"
    folders = ", ".join(shards.folders)
    return f"{folders}: the {split} split is empty (patients: {others}); add patients or {change}, and run preprocess again"
