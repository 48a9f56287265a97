"""Reads the images of one split in batches, in an order that depends on the seed and the epoch alone.

An epoch permutes the row groups, takes them in windows of a few, and permutes the rows of a window: memory is bounded by
a window of packed rows, and any batch can be found without reading those before it. With several ranks each takes its
slice of every global batch, so that the global batches do not depend on their number.
"""

import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.formats.shards import Pixels, decode, square
from components.common.runs.shards import Part, Shards

WINDOW = 16
"""Row groups that are shuffled together: about 1,600 images."""
PACKED = ["image_id", "pixels", "codec", "height", "width", "bits"]
T = TypeVar("T")
Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Images of one step."""

    images: Pixels
    """(B, S, S), uint8 or uint16, each centred on zeros."""
    rows: Indices
    """(B,), their positions in `Reader.table`."""


@dataclass(frozen=True)
class _Group:
    part: Part
    number: int
    offsets: Indices
    """Wanted rows within the row group."""
    rows: Indices
    """Their positions in the reader's table."""


class Reader:
    """The images of a split."""

    def __init__(self, shards: Shards, split: str, columns: tuple[str, ...] = (), rank: int = 0, ranks: int = 1):
        """Reads the small columns; pixels are read batch by batch.

        Args:
            shards: where the images are.
            split: train, val or test.
            columns: columns of `table` beside image_id, patient_id and labels.
            rank: which slice of each global batch is taken.
            ranks: how many slices there are.

        Raises:
            UserError: the split has no images.
        """
        self._rank, self._ranks = rank, ranks
        self.size = shards.size
        table = shards.table(["split", "image_id", "patient_id", "labels", *columns])
        wanted = pc.equal(table["split"], split).to_numpy()
        self.table: pa.Table = table.filter(pa.array(wanted)).drop_columns(["split"])
        if not len(self.table):
            raise UserError(f"{', '.join(shards.folders)}: no images in the {split} split")
        self._groups = _groups(shards.parts(), wanted)

    def __len__(self) -> int:
        return len(self.table)

    def labels(self) -> npt.NDArray[np.float32]:
        """(N, findings): 1, 0 or NaN for unknown, in the order of `table`."""
        return np.array(self.table["labels"].to_pylist(), np.float32).reshape(len(self), -1)

    def keep(self, rows: Indices) -> None:
        """Leaves only these rows of `table`; their numbers stay."""
        wanted = np.isin(np.arange(len(self)), rows)
        self._groups = [_Group(g.part, g.number, g.offsets[wanted[g.rows]], g.rows[wanted[g.rows]]) for g in self._groups]

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All images once, in the order of `table`; the last batch may be smaller."""
        return prefetch(self._load([self._groups[i : i + WINDOW] for i in range(0, len(self._groups), WINDOW)], None, batch_size, 0))

    def shuffled(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """An epoch of whole global batches, this rank's slice of each.

        Args:
            batch_size: images of a global batch; a multiple of the number of ranks.
            seed: with `epoch` it determines the order.
            epoch: counts from 0.
            start: the first batch to return, to continue a stopped epoch.
        """
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self._groups))
        windows = [[self._groups[i] for i in order[at : at + WINDOW]] for at in range(0, len(order), WINDOW)]
        return prefetch(self._load(windows, rng, batch_size, start))

    def _load(self, windows: list[list[_Group]], rng: np.random.Generator | None, batch_size: int, start: int) -> Iterator[Batch]:
        """Batches of the rows of `windows`, shuffled within a window if there is a generator."""
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
                yield self._batch(rest[:batch_size])
                rest = rest[batch_size:]
        if rng is None and self._mine(rest):
            yield self._batch(rest)

    def _mine(self, rows: list[T]) -> list[T]:
        """This rank's slice."""
        return rows[self._rank * len(rows) // self._ranks : (self._rank + 1) * len(rows) // self._ranks]

    def _batch(self, rows: list[tuple[int, dict[str, Any]]]) -> Batch:
        mine = self._mine(rows)
        images: Pixels = np.stack(list(_decoders().map(lambda entry: square(decode(entry[1]), self.size), mine)))  # type: ignore[assignment]
        return Batch(images, np.array([index for index, _ in mine]))


@cache
def _decoders() -> ThreadPoolExecutor:
    """One thread a core, as long as the process lives. Decoding releases the interpreter's lock, and threads copy no pixels."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")


def prefetch(batches: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, made by a thread that stays up to `depth` ahead. Decoding releases the interpreter's lock."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> None:
        while not closed.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in batches:
                put(item)
                if closed.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again in the consumer's thread
            put(None, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        closed.set()
        thread.join()


def _groups(parts: list[Part], wanted: npt.NDArray[np.bool_]) -> list[_Group]:
    """The row groups that hold wanted rows."""
    groups = []
    numbers = np.cumsum(wanted) - 1
    at = 0
    for part in parts:
        metadata = pq.read_metadata(part.open())
        for number in range(metadata.num_row_groups):
            count = metadata.row_group(number).num_rows
            offsets = np.flatnonzero(wanted[at : at + count])
            if len(offsets):
                groups.append(_Group(part, number, offsets, numbers[at + offsets]))
            at += count
    return groups


def _read(group: _Group) -> list[dict[str, Any]]:
    if not len(group.offsets):
        return []
    table = pq.ParquetFile(group.part.open()).read_row_group(group.number, columns=PACKED)
    rows: list[dict[str, Any]] = table.take(pa.array(group.offsets)).to_pylist()
    return rows
