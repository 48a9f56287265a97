"""Reads the images of one split in batches, in an order that depends only on the seed and the epoch.

An epoch permutes the row groups, takes them a window at a time, and permutes the rows within each window: memory is bounded by
one window of packed rows, and any batch can be found without reading those before it. With several ranks each takes its slice
of every global batch, so the global batches do not depend on the number of ranks.
"""

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.common.errors import UserError
from components.common.formats.shards import PACKED, SPLITS, Pixels, decode, square
from components.common.runs.cores import cores
from components.common.runs.shards import Part, Shards
from components.common.training import processes
from components.common.training.seeds import generator_for

OWNER = ("split", "patient_id")
WINDOW = 16  # row groups that are shuffled together: about 1,600 images
T = TypeVar("T")
Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Images of one step."""

    images: Pixels  # (B, S, S), uint8 or uint16, each centred on zeros
    rows: Indices  # (B,), their positions in `Reader.table`
    draws: npt.NDArray[np.float64] | None = None  # random numbers for the augmentation, if the stage has drawn them ahead


@dataclass(frozen=True)
class _RowGroup:
    part: Part
    number: int
    offsets: Indices  # selected rows within the row group
    rows: Indices  # their positions in the reader's table


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
        self._groups = _row_groups(shards.parts(), selected)

    def __len__(self) -> int:
        return len(self.table)

    def labels(self) -> npt.NDArray[np.float32]:
        """Returns (N, findings): 1, 0 or NaN for unknown, in the order of `table`."""
        return np.array(self.table["labels"].to_pylist(), np.float32).reshape(len(self), -1)

    def keep(self, rows: Indices) -> None:
        """Restricts the batches to these rows of `table`; row numbers do not change."""
        kept = np.isin(np.arange(len(self)), rows)
        self._groups = [_RowGroup(g.part, g.number, g.offsets[kept[g.rows]], g.rows[kept[g.rows]]) for g in self._groups]

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yields every image once, in the order of `table`; the last batch may be smaller."""
        return prefetch(self._load(_windows(self._groups), None, batch_size, 0))

    def shuffled(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields this rank's slice of each full global batch of an epoch, from number `start` on, in an order determined by the seed."""
        rng = generator_for(seed, epoch)
        order = rng.permutation(len(self._groups))
        return prefetch(self._load(_windows([self._groups[i] for i in order]), rng, batch_size, start))

    def _load(self, windows: list[list[_RowGroup]], rng: np.random.Generator | None, batch_size: int, start: int) -> Iterator[Batch]:
        """Yields batches of the rows of `windows`, shuffled within each window if there is a generator."""
        rest: list[tuple[int, dict[str, Any]]] = []
        skip = start * batch_size
        for window in windows:
            rows = np.concatenate([group.rows for group in window])
            order = np.arange(len(rows)) if rng is None else rng.permutation(len(rows))
            if skip >= len(rows):
                skip -= len(rows)
                continue
            packed = [row for group in window for row in _read(group)]
            rest += [(int(rows[i]), packed[i]) for i in order[skip:]]
            skip = 0
            while len(rest) >= batch_size:
                yield self._decode(self._slice(rest[:batch_size]))
                rest = rest[batch_size:]
        if rng is None and self._slice(rest):
            yield self._decode(self._slice(rest))

    def _slice(self, rows: list[T]) -> list[T]:
        return rows[self._rank * len(rows) // self._ranks : (self._rank + 1) * len(rows) // self._ranks]

    def _decode(self, rows: list[tuple[int, dict[str, Any]]]) -> Batch:
        images: Pixels = np.stack(list(_decoders().map(lambda entry: square(decode(entry[1]), self.size), rows)))  # type: ignore[assignment]
        return Batch(images, np.array([index for index, _ in rows]))


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


def _windows(groups: list[_RowGroup]) -> list[list[_RowGroup]]:
    return [groups[i : i + WINDOW] for i in range(0, len(groups), WINDOW)]


def _row_groups(parts: list[Part], selected: npt.NDArray[np.bool_]) -> list[_RowGroup]:
    groups = []
    numbers = np.cumsum(selected) - 1
    at = 0
    for part in parts:
        with part.open() as file:
            counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        for number, count in enumerate(counts):
            offsets = np.flatnonzero(selected[at : at + count])
            if len(offsets):
                groups.append(_RowGroup(part, number, offsets, numbers[at + offsets]))
            at += count
    return groups


def _read(group: _RowGroup) -> list[dict[str, Any]]:
    if not len(group.offsets):
        return []
    with group.part.open() as file:
        table = file.read_row_group(group.number, columns=PACKED)
        rows: list[dict[str, Any]] = table.take(pa.array(group.offsets)).to_pylist()
    return rows
