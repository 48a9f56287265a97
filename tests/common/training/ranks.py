"""Checks that run in two processes; started by test_processes.py through torchrun."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from components.common.errors import SharedError, UserError
from components.common.training import processes


def check_permute() -> None:
    """Compares `permute` with indexing of the global batch."""
    shape, order = (8, 3, 2, 5), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    mine = slice(4 * processes.rank(), 4 * processes.rank() + 4)
    for whole in (batch, batch.to(memory_format=torch.channels_last), batch.bfloat16(), batch[:, 0, 0]):
        moved = processes.permute(whole[mine], order)
        assert torch.equal(moved, whole[order][mine])
        assert torch.equal(processes.permute(moved, order.argsort()), whole[mine])


def check_bytes_between_nodes() -> None:
    """Counts the bytes of a step of pretraining on two nodes of one process: the gradients and at most 2 % more."""
    from components.common.runs.shards import open_shards
    from components.params import Params
    from components.pretrain.training import Pretraining

    given = Params.model_validate_json(os.environ["PARAMS"])
    sent, node = [0], processes.node()
    node.size, node.rank, node.number = 1, 0, processes.rank()
    with pytest.MonkeyPatch.context() as patch:

        def counting(function: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                sent[0] += max(each.nbytes for each in arguments if isinstance(each, torch.Tensor))
                return function(*arguments, **options)

            return counted

        for name in ("all_reduce", "all_to_all_single", "all_gather_into_tensor"):
            patch.setattr(dist, name, counting(getattr(dist, name)))
        training = Pretraining(given.pretrain, given.runtime, open_shards(os.environ["SHARDS"]))
        training.start()
        training.train_step(next(training.batches(0, 0)), 0, 0.0)
    gradients = sum(weight.nbytes for weight in training.model.query.parameters())
    assert gradients <= sent[0] <= 1.02 * gradients
    node.size, node.rank, node.number = processes.world_size(), processes.rank(), 0


def check_average() -> None:
    """Compares averaged gradients with those of DistributedDataParallel."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).to(memory_format=torch.channels_last)
    theirs = DistributedDataParallel(nn.Sequential(*ours).requires_grad_())
    image = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(processes.rank()))
    theirs(image).square().mean().backward()
    expected = [weight.grad.clone() for weight in ours.parameters() if weight.grad is not None]
    ours.zero_grad()
    ours(image).square().mean().backward()
    gradients = [weight.grad for weight in ours.parameters() if weight.grad is not None]
    processes.average_over_ranks(gradients)
    torch.testing.assert_close(gradients, expected)


def check_synchronised_batch_norm() -> None:
    """Compares batch norm over both processes with that of one on the whole batch: outputs, gradients and statistics."""
    from components.pretrain.batch_norm import GroupedBatchNorm2d, update_statistics

    torch.manual_seed(0)
    x, dy = torch.randn(2, 8, 5, 6, 4).unbind()
    alone, together = GroupedBatchNorm2d(5), GroupedBatchNorm2d(5)
    together.sync = True
    mine = slice(4 * processes.rank(), 4 * processes.rank() + 4)
    whole, part = x.clone().requires_grad_(), x[mine].clone().requires_grad_()
    alone(whole).backward(dy)
    out = together(part)
    out.backward(dy[mine])
    assert whole.grad is not None
    torch.testing.assert_close(part.grad, whole.grad[mine], atol=1e-5, rtol=1e-4)
    for ours, theirs in ((together.weight.grad, alone.weight.grad), (together.bias.grad, alone.bias.grad)):
        assert ours is not None
        torch.testing.assert_close(processes.sum_over_ranks(ours), theirs, atol=1e-4, rtol=1e-4)
    for norm in (alone, together):
        update_statistics(norm, 1)
    torch.testing.assert_close(together.running_mean, alone.running_mean)
    torch.testing.assert_close(together.running_var, alone.running_var)


def check_exchange() -> None:
    """Checks gather, sum, flags and broadcasts."""
    rank = processes.rank()
    assert processes.gather(torch.full((2, 1), rank)).tolist() == [[0], [0], [1], [1]]
    assert processes.sum_over_ranks(torch.tensor([rank, 1.0])).tolist() == [1.0, 2.0]
    assert processes.any_rank(rank == 1, False, rank == 0) == [True, False, True]
    assert processes.broadcast_object({"step": 1} if rank == 0 else None) == {"step": 1}
    assert processes.broadcast_object(None) is None
    weights = torch.full((3,), float(rank))
    processes.broadcast([weights])
    assert weights.tolist() == [0.0] * 3


def check_errors() -> None:
    """Checks that an error of one process is raised in all."""
    with pytest.raises(SharedError, match=r"part-1\.parquet: gone"), processes.shared_errors():
        if processes.rank() == 1:
            raise UserError("part-1.parquet: gone")
    items = processes.in_lockstep(iter([1, 2]) if processes.rank() == 0 else broken())
    assert next(items) == 1
    with pytest.raises(SharedError, match="cannot be read"):
        next(items)
    assert processes.on_main(lambda: "written") == ("written" if processes.is_main() else None)


def broken() -> Iterator[int]:
    yield 1
    raise UserError("cannot be read")


def check_momentum_contrast() -> None:
    """Runs steps of pretraining; all state must be identical in both processes."""
    from components.common.runs.shards import open_shards
    from components.params import Params
    from components.pretrain.training import Pretraining

    given = Params.model_validate_json(os.environ["PARAMS"])
    params = given.pretrain
    training = Pretraining(params, given.runtime, open_shards(os.environ["SHARDS"]))
    with torch.no_grad():
        training.model.query.head[0].bias.add_(processes.rank())  # as if the hardware differed
    training.start()
    before = training.model.queue.clone()
    for step, batch in enumerate(training.batches(0, 0)):
        assert len(batch.rows) == params.batch_size // 2
        training.train_step(batch, 0, step / 4)
    assert not torch.equal(training.model.queue, before)
    tensors = [*training.model.state_dict().values(), *(state["momentum_buffer"] for state in training.optimizer.state.values())]
    for tensor in tensors:
        first = tensor.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, tensor)


if __name__ == "__main__":
    with processes.process_group("cpu"):
        for check in sys.argv[1:]:
            globals()[check]()
