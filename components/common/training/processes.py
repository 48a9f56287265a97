"""Several processes that train one model: the process group of torchrun, collectives, and errors raised in all processes.

Without torchrun there is one process and everything here is the identity. Every process must call these functions at the same
point, in the same order.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from components.common.errors import SharedError, UserError, disk_errors, temporary_folder
from components.common.runs import signals

T = TypeVar("T")


@dataclass
class Node:
    """The processes on one machine, which exchange images and feature maps; between machines only gradients travel."""

    size: int = 1  # number of processes
    rank: int = 0  # of this process among them
    number: int = 0  # of the node
    group: dist.ProcessGroup | None = None  # None: all processes are on this node


_node = Node()

log = logging.getLogger(__name__)


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Joins the processes that torchrun started, by nccl between GPUs and gloo between CPUs; raises UserError if that fails."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(_local_gpu())
    try:
        # CPU tensors use gloo on GPU nodes too: flags and messages do not wait for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot connect ({str(error).splitlines()[0]}); start them with torchrun") from None
    _find_node()
    if not is_main():  # log progress once
        logging.getLogger("components").setLevel(logging.WARNING)
    try:
        yield
        dist.barrier()
    except SharedError:
        dist.barrier()  # torchrun kills the others as soon as one has ended, and rank 0 must print the error first
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        # The process that failed first has printed why; tracebacks of the others would bury that.
        log.error("rank %d lost a peer (%s)", rank(), str(error).splitlines()[0])
        signals.ignore()  # torchrun ends the other processes with a signal, which must not interrupt the exit
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


def _find_node() -> None:
    size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if world_size() % size:
        raise UserError(
            f"the nodes have different numbers of processes ({world_size()} in all, {size} here); give all the same --nproc-per-node"
        )
    group = dist.new_subgroups(size)[0] if size < world_size() else None
    _node.size, _node.rank, _node.number, _node.group = size, rank() % size, rank() // size, group


def node() -> Node:
    """Returns the node of this process."""
    return _node


def _local_gpu() -> int:
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise UserError(f"torchrun starts more processes on this node than it has GPUs ({count}); set --nproc-per-node to {count}")
    return local


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def raise_everywhere(error: UserError | None) -> None:
    """Raises UserError of any process in all of them; if several have one, that of the lowest rank."""
    if world_size() == 1:
        if error is not None:
            raise error
        return
    if not any_rank(error is not None)[0]:
        return
    found = gather_objects(None if error is None else (str(error), error.temporary, error.repeats))
    raise SharedError(*next(each for each in found if each is not None))


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raises UserError and errors of the disk of this block in all processes, at the end of the block."""
    caught = None
    try:
        with disk_errors(Path.cwd(), temporary_folder()):
            yield
    except UserError as error:
        caught = error
    raise_everywhere(caught)


def on_main(work: Callable[[], T]) -> T | None:
    """Runs `work` in the main process and returns its result there, None elsewhere; a UserError is raised in all processes."""
    result = None
    with shared_errors():
        if is_main():
            result = work()
    return result


def in_lockstep(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items; an error of one process in getting its next item is raised in all processes."""
    while True:
        item = None
        with shared_errors():
            item = next(items, None)
        if item is None:
            return
        yield item


def any_rank(*flags: bool) -> list[bool]:
    """Returns for each flag whether any process has it set."""
    if world_size() == 1:
        return list(flags)
    numbers = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return [bool(number) for number in numbers]


def gather(local: Tensor) -> Tensor:
    """Concatenates the rows of all processes in the order of their ranks: (b, ...) to (R b, ...). No gradient flows through."""
    if world_size() == 1:
        return local
    local = local.detach().contiguous()
    out = local.new_empty((world_size() * len(local), *local.shape[1:]))
    dist.all_gather_into_tensor(out, local)
    return out


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Replaces a tensor by its sum over the processes, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def add_over_ranks(tensors: Sequence[Tensor], divisor: int = 1) -> None:
    """Replaces each tensor by its sum over the processes, divided by `divisor`, in place and in one message.

    The order of the summation depends only on an element's place in the message, so that a resumed run gives the same bits.
    DistributedDataParallel reorders its messages after the first step, and does not.
    """
    if world_size() == 1:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    pieces = torch.split(flat.div_(divisor), [tensor.numel() for tensor in tensors])
    torch._foreach_copy_([tensor.detach() for tensor in tensors], [p.view(t.shape) for p, t in zip(pieces, tensors, strict=True)])


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, as `add_over_ranks` does."""
    add_over_ranks(tensors, world_size())


def assemble(parts: Tensor, rows: npt.NDArray[np.int64], count: int) -> Tensor:
    """Puts what each process has computed, (n, ...), at its rows of the whole, (count, ...), in all processes."""
    whole = parts.new_zeros((count, *parts.shape[1:]))
    whole[on_device(torch.from_numpy(rows), parts.device)] = parts
    return sum_over_ranks(whole)


def gather_objects(value: T) -> list[T]:
    """Returns the values of all processes, which can be pickled, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def check_batch(name: str, batch_size: int) -> None:
    """Raises UserError if a batch, whose size is the parameter `name`, has no image for some process."""
    if batch_size < world_size():
        raise UserError(f"{name}: {batch_size} images on {world_size()} processes; raise it, add patients, or lower --nproc-per-node")


def share(count: int, of: int | None = None, ranks: int | None = None) -> slice:
    """Returns a process's part of `count` items in order: by default this one's, or that of rank `of` among `ranks`."""
    one, several = rank() if of is None else of, ranks or world_size()
    return slice(one * count // several, (one + 1) * count // several)


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by that of the main process, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def broadcast_object(value: T) -> T:
    """Returns the main process's value, which can be pickled, in all processes."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
    return values[0]


def permute(local: Tensor, order: Tensor) -> Tensor:
    """Permutes the rows of a node's batch over its processes; none holds more than its share at any time.

    From this process's rows (b, ...) and a permutation (N b,), int64 on the CPU and the same in all N processes of the node, to rows
    `rank * b` to `(rank + 1) * b` of `batch[order]`, with the rank in the node, without gradient.
    """
    # Maps in channels_last are moved as (B, H, W, C), where each row is contiguous: several times faster.
    channels_last = local.dim() == 4
    rows = local.permute(0, 2, 3, 1) if channels_last else local
    result = rows[on_device(order, local.device)] if _node.size == 1 else _exchange(rows.detach(), order)
    return result.permute(0, 3, 1, 2) if channels_last else result


def _exchange(local: Tensor, order: Tensor) -> Tensor:
    share, me = len(local), _node.rank
    wanted = order.numpy().reshape(_node.size, share)
    outgoing = [np.flatnonzero(rows // share == me) for rows in wanted]
    mine = np.concatenate([rows[at] % share for rows, at in zip(wanted, outgoing, strict=True)])
    sources = wanted[me] // share
    send = local[on_device(torch.from_numpy(mine), local.device)].contiguous()
    received = torch.empty_like(send)
    counts = np.bincount(sources, minlength=_node.size).tolist()
    dist.all_to_all_single(received, send, counts, [len(at) for at in outgoing], group=_node.group)
    # Rows arrive by source, and within a source in the order in which they are wanted.
    places = torch.from_numpy(np.argsort(np.argsort(sources, kind="stable")))
    return received[on_device(places, local.device)]


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the CPU to a device; the host does not wait for a GPU, since the copy is made from pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
