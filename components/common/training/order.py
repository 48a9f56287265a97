"""The order of the images of an epoch: a function of the data, the batch size, the seed and the epoch, for any number of processes.

The row groups are shuffled and dealt to STREAMS, of which each batch takes an equal share. A process needs the streams of its slice of
the batch only, so that two processes, or nodes, do not read the same row groups if their number divides that of the streams. Within a
stream, each row moves by up to a span of rows: this bounds the memory, and a row group is read once per epoch. Data of a few row groups
are one stream, and are shuffled as a whole.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

STREAMS = 16


def epoch_order(groups: Sequence[Indices], batch_size: int, span: int, rng: np.random.Generator) -> Indices:
    """Shuffles the rows of an epoch.

    Args:
        groups: the rows of each row group.
        batch_size: B, over all processes.
        span: number of rows by which a row moves at most within its stream.
        rng: generator of the epoch.

    Returns:
        (steps, B): the rows of each full batch; the rest, fewer than B, is left out at random.
    """
    rows = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
    steps, rest = divmod(len(rows), batch_size)
    if len(groups) <= STREAMS:
        return rows[rng.permutation(len(rows))][: steps * batch_size].reshape(steps, batch_size)
    rows = np.delete(rows, rng.choice(len(rows), rest, replace=False))
    ends = np.arange(1, STREAMS + 1) * batch_size // STREAMS
    streams = np.split(rows, steps * ends[:-1])
    shares = np.diff(ends, prepend=0)
    mixed = [stream[_mix(len(stream), span, rng)].reshape(steps, share) for stream, share in zip(streams, shares, strict=True)]
    return np.concatenate(mixed, axis=1)


def _mix(count: int, span: int, rng: np.random.Generator) -> Indices:
    """Returns a permutation that moves positions by up to `span`; any permutation, if there are no more than that."""
    return rng.permutation(count) if count <= span else np.argsort(np.arange(count) + span * rng.random(count))
