"""Batch norm over the batch of all processes, so that their number does not change what a training computes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from components.common.training import processes

_backward = torch.ops.aten.native_batch_norm_backward


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes, which may have different numbers of images."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalises a batch and updates the running statistics."""
        if not self.training:
            return super().forward(x_BCHW)
        out, mean, variance, count = all_processes(x_BCHW, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum or 0.0)
            self.num_batches_tracked.add_(1)
        return out


def synchronise(module: nn.Module) -> None:
    """Lets all batch norm of a module use the statistics of all processes, if there are several."""
    for norm in module.modules() if processes.world_size() > 1 else ():
        if type(norm) is nn.BatchNorm2d:
            norm.__class__ = SyncedBatchNorm2d  # keeps parameters, buffers and their names


def all_processes(x_BCHW: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalises by the statistics of all processes; returns also mean and biased variance (C,), and the count of values per channel."""
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _AllProcesses.apply(x_BCHW, weight, bias, eps)
    return result


class _AllProcesses(torch.autograd.Function):
    """Normalises by the statistics of all processes, which exchange two numbers per channel in each direction.

    nn.SyncBatchNorm makes the host wait for the GPU in every layer, and needs GPUs.
    """

    @staticmethod
    def forward(context: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims, channels = (0, 2, 3), len(weight)
        norm = torch.linalg.vector_norm(x_BCHW, dim=dims, dtype=weight.dtype)
        count = weight.new_full((1,), x_BCHW.numel() // channels)
        sums = processes.sum_over_ranks(torch.cat([x_BCHW.sum(dims, dtype=weight.dtype), norm.square(), count]))
        count = sums[-1]
        mean, square = (sums[:-1] / count).view(2, channels).unbind()
        variance = (square - mean.square()).clamp_min(0)
        context.save_for_backward(x_BCHW, weight, mean, variance, count)
        context.eps = eps
        context.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x_BCHW, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight, mean, variance, count = context.saved_tensors
        inverse = (variance + context.eps).rsqrt()
        # With given statistics, the gradients of weight and bias are sum(dy x_hat) and sum(dy) of this process.
        _, *local = _backward(gradient, x_BCHW, weight, mean, variance, mean, inverse, False, context.eps, [False, True, True])
        along, total = (processes.sum_over_ranks(torch.stack(local)) / count).unbind()
        # dx = weight inverse (dy - mean(dy) - x_hat mean(dy x_hat)), with x_hat = (x - mean) inverse
        slope = -along * inverse
        to_x = torch.addcmul((-total - slope * mean)[:, None, None], x_BCHW, slope[:, None, None]).add_(gradient)
        return (to_x * (weight * inverse)[:, None, None]).to(x_BCHW.dtype), *local, None
