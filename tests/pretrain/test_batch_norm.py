import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from components.pretrain.batch_norm import GroupedBatchNorm2d, update_statistics


def layer(groups: int = 1, sync: bool = False) -> GroupedBatchNorm2d:
    torch.manual_seed(1)
    norm = GroupedBatchNorm2d(6)
    norm.groups, norm.sync = groups, sync
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Returns an input and the gradient of its output."""
    torch.manual_seed(2)
    x, dy = (3 * torch.randn(12, 6, 5, 7) + 1 for _ in range(2))
    return tuple(each.to(dtype).contiguous(memory_format=torch.channels_last) for each in (x, dy))  # type: ignore[return-value]


def gradients(norm: GroupedBatchNorm2d, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Returns output and gradients."""
    x = x.detach().requires_grad_()
    out = norm(x)
    out.backward(dy)
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return [out.detach(), x.grad, norm.weight.grad, norm.bias.grad]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_equal_torchs_batch_norm_of_each_bit_for_bit(groups: int, dtype: torch.dtype) -> None:
    x, dy = images(dtype)
    norm = layer(groups)
    found = gradients(norm, x, dy)
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in (norm.weight, norm.bias))
    x = x.detach().requires_grad_()
    expected = torch.cat([F.batch_norm(part, None, None, weight, bias, True) for part in x.chunk(groups)])
    expected.backward(dy)
    for ours, theirs in zip(found, [expected.detach(), x.grad, weight.grad, bias.grad], strict=True):
        assert torch.equal(ours, theirs)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_one_process_synchronises_with_itself() -> None:
    x, dy = images()
    for ours, theirs in zip(gradients(layer(sync=True), x, dy), gradients(layer(), x, dy), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_running_statistics_are_the_mean_over_the_groups_of_a_step() -> None:
    x, _ = images()
    parts = x.chunk(4)
    mean = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variance = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    for calls in (1, 2, 4):  # parts of a batch, or processes, each with its share of the groups
        norm = layer(4 // calls)
        for part in x.chunk(calls):
            norm(part)
        assert torch.equal(norm.running_mean, torch.zeros(6))
        update_statistics(norm, 4)
        torch.testing.assert_close(norm.running_mean, 0.1 * mean)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance)
        assert norm.num_batches_tracked == 1
    update_statistics(norm, 4)
    torch.testing.assert_close(norm.running_mean, 0.09 * mean)  # no step in between has left anything behind


def test_statistics_stay_as_they_are_in_evaluation_mode() -> None:
    x, _ = images()
    norm = layer(4)
    norm(x)
    update_statistics(norm, 4)
    frozen = copy.deepcopy(norm).eval()
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    assert torch.equal(frozen(x), expected)
    update_statistics(frozen, 1)
    for ours, theirs in zip(frozen.buffers(), norm.buffers(), strict=True):
        assert torch.equal(ours, theirs)
