"""Several processes that train one model: the group that torchrun describes, collectives, and errors that all processes share.

Without torchrun there is one process and everything here is the identity. All of it must be called by every process at the
same point, in the same order.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from components.common.errors import SharedError, UserError

T = TypeVar("T")

log = logging.getLogger(__name__)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within this block the processes that torchrun started are one group: nccl between GPUs, gloo between CPUs.

    Args:
        device: auto, cpu or cuda, as in the parameters.

    Raises:
        UserError: the group does not come about, or there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(_local_gpu())
    try:
        # CPU tensors travel by gloo on GPU nodes too: flags and messages do not wait for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot be joined ({str(error).splitlines()[0]}); start them with torchrun") from None
    if not is_main():  # progress is told once
        logging.getLogger("components").setLevel(logging.WARNING)
    try:
        yield
        dist.barrier()
    except SharedError:
        dist.barrier()  # the launcher stops all others as soon as one has ended, and rank 0 has something to say
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        # The one that ended first has said why; a traceback of each of the others would bury it.
        log.error("process %d has lost another one (%s)", rank(), str(error).splitlines()[0])
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


def _local_gpu() -> int:
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise UserError(f"torchrun starts more processes on this node than it has GPUs ({count}); set --nproc-per-node to {count}")
    return local


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def agree(error: UserError | None) -> None:
    """Makes an error of one process everyone's.

    Raises:
        UserError: that of the first process which has one, in all of them.
    """
    if ranks() == 1:
        if error is not None:
            raise error
        return
    if not any_of(error is not None)[0]:
        return
    messages: list[str | None] = [None] * ranks()
    dist.all_gather_object(messages, None if error is None else str(error))
    raise SharedError(next(message for message in messages if message is not None))


@contextmanager
def together() -> Iterator[None]:
    """A UserError in this block is raised at its end, in all processes."""
    caught = None
    try:
        yield
    except UserError as error:
        caught = error
    agree(caught)


def on_main(work: Callable[[], T]) -> T | None:
    """What `work` returns in the main process, None in the others; its UserError is everyone's."""
    result = None
    with together():
        if is_main():
            result = work()
    return result


def in_step(items: Iterator[T]) -> Iterator[T]:
    """The same items; where one process cannot get its next one, all stop with its error."""
    while True:
        item = None
        with together():
            item = next(items, None)
        if item is None:
            return
        yield item


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether any process has it set."""
    if ranks() == 1:
        return list(flags)
    numbers = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return [bool(number) for number in numbers]


def gather(local: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks: (b, ...) each, (R b, ...) in all. No gradient flows through."""
    if ranks() == 1:
        return local
    local = local.detach().contiguous()
    out = local.new_empty((ranks() * len(local), *local.shape[1:]))
    dist.all_gather_into_tensor(out, local)
    return out


def add_up(tensor: Tensor) -> Tensor:
    """Replaces a tensor by its sum over the processes, in place, and returns it."""
    if ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def average(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, in place and in one message.

    Which process adds what first depends on an element's place in the message alone, so that a continued run gives the same
    bits. DistributedDataParallel orders its messages anew after the first step, and does not.
    """
    if ranks() == 1:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    pieces = torch.split(flat.div_(ranks()), [tensor.numel() for tensor in tensors])
    torch._foreach_copy_([tensor.detach() for tensor in tensors], [p.view(t.shape) for p, t in zip(pieces, tensors, strict=True)])


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by the main process's, in place."""
    if ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def bytes_from_main(content: bytes | None) -> bytes | None:
    """The main process's bytes, or None, in all processes."""
    if ranks() == 1:
        return content
    length = torch.tensor([-1 if content is None else len(content)])
    dist.broadcast(length, 0)
    if int(length) < 0:
        return None
    data = torch.frombuffer(bytearray(content or bytes(int(length))), dtype=torch.uint8)
    dist.broadcast(data, 0)
    return data.numpy().tobytes()


def permute(local: Tensor, order: Tensor) -> Tensor:
    """This process's rows of a global batch whose rows are permuted over the processes; no process holds more than its share.

    Args:
        local: (b, ...), this process's rows of the global batch.
        order: (R b,) int64, a permutation, the same in all processes, on the CPU.

    Returns:
        (b, ...), rows `rank * b` to `(rank + 1) * b` of `batch[order]`, without gradient.
    """
    if ranks() == 1:
        return _taken(local, order)
    share, me = len(local), rank()
    wanted = order.numpy().reshape(ranks(), share)
    outgoing = [np.flatnonzero(rows // share == me) for rows in wanted]
    mine = np.concatenate([rows[at] % share for rows, at in zip(wanted, outgoing, strict=True)])
    sources = wanted[me] // share
    channels_last = local.dim() == 4
    packed = local.detach().permute(0, 2, 3, 1) if channels_last else local.detach()
    send = packed[torch.from_numpy(mine).to(local.device)].contiguous()
    received = torch.empty_like(send)
    counts = np.bincount(sources, minlength=ranks()).tolist()
    dist.all_to_all_single(received, send, counts, [len(at) for at in outgoing])
    # They arrive by source; within a source in the order in which they are wanted.
    places = torch.from_numpy(np.argsort(np.argsort(sources, kind="stable"))).to(local.device)
    result = received[places]
    return result.permute(0, 3, 1, 2) if channels_last else result


def _taken(local: Tensor, order: Tensor) -> Tensor:
    """Rows in another order. Those of maps in channels_last are taken as (B, H, W, C): in one piece each, several times faster."""
    order = order.to(local.device)
    return local.permute(0, 2, 3, 1)[order].permute(0, 3, 1, 2) if local.dim() == 4 else local[order]
