"""Batch norm whose statistics belong to groups of images, or to the batch of all processes, instead of to one call."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from components.common.training.batch_norm import all_processes

_native = torch.ops.aten.native_batch_norm
_native_backward = torch.ops.aten.native_batch_norm_backward


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with separate statistics for each of `groups` parts of a batch, as if each were in a process of its own.

    With `sync`, a batch has the statistics of all processes together. The convolutions still see the whole batch, which on a CPU takes a
    quarter less time than batches of a few images. The running statistics change once per step, in `update_statistics`.
    """

    groups = 1
    sync = False
    pending: Tensor  # (2, C), sums over the groups of this step of mean and unbiased variance

    def __init__(self, features: int):
        super().__init__(features)
        self.register_buffer("pending", torch.zeros(2, features), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalises each group."""
        if not self.training:
            return super().forward(x_BCHW)
        if self.sync:
            out, mean, variance, total = all_processes(x_BCHW, self.weight, self.bias, self.eps)
            spread = variance * (total / (total - 1))
        else:
            out, means, inverse = _by_group(x_BCHW, self.weight, self.bias, self.groups, self.eps)
            count = x_BCHW.numel() // (self.num_features * self.groups)
            mean, spread = means.sum(0), (inverse**-2 - self.eps).sum(0) * (count / (count - 1))
        with torch.no_grad():
            self.pending += torch.stack([mean, spread])
        return out


@torch.no_grad()
def update_statistics(module: nn.Module, groups: int) -> None:
    """Updates the running statistics by the mean of the `groups` groups since the last call, wherever each was computed."""
    norms = [norm for norm in module.modules() if isinstance(norm, GroupedBatchNorm2d) and norm.training]
    if not norms:
        return
    pending = [norm.pending for norm in norms]
    torch._foreach_div_(pending, groups)
    for number, name in enumerate(("running_mean", "running_var")):
        torch._foreach_lerp_([getattr(norm, name) for norm in norms], [each[number] for each in pending], norms[0].momentum or 0.0)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None], 1)
    torch._foreach_zero_(pending)


def _by_group(x_BCHW: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the normalised batch, and per group (G, C) mean and inverse of the standard deviation."""
    if groups == 1:  # nothing to write into one tensor: the function below copies each gradient
        out, mean, inverse = torch.native_batch_norm(x_BCHW, weight, bias, None, None, True, 0.0, eps)
        return out, mean[None], inverse[None]
    if torch.compiler.is_compiling():  # the compiler joins the parts without a copy by itself, and cannot follow the function below
        parts = [torch.native_batch_norm(part, weight, bias, None, None, True, 0.0, eps) for part in x_BCHW.chunk(groups)]
        outs, means, inverses = zip(*parts, strict=True)
        return torch.cat(outs), torch.stack(means), torch.stack(inverses)
    result: tuple[Tensor, Tensor, Tensor] = _Groups.apply(x_BCHW, weight, bias, groups, eps)
    return result


class _Groups(torch.autograd.Function):
    """Normalises the groups of a batch into one tensor. Autograd would concatenate the outputs, and the gradients, by further copies."""

    @staticmethod
    def forward(context: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        out = torch.empty_like(x_BCHW)
        mean, inverse = weight.new_empty((2, groups, len(weight))).unbind()
        for number, (part, into) in enumerate(zip(x_BCHW.chunk(groups), out.chunk(groups), strict=True)):
            into_statistics = {"save_mean": mean[number], "save_invstd": inverse[number]}
            _native.out(part, weight, bias, None, None, True, 0.0, eps, out=into, **into_statistics)
        context.save_for_backward(x_BCHW, weight, mean, inverse)
        context.eps = eps
        context.mark_non_differentiable(mean, inverse)
        return out, mean, inverse

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight, mean, inverse = context.saved_tensors
        groups = len(mean)
        to_x, to_affine = torch.empty_like(x_BCHW), torch.zeros_like(mean[:2].expand(2, -1))
        parts = list(zip(gradient.chunk(groups), x_BCHW.chunk(groups), mean, inverse, to_x.chunk(groups), strict=True))
        for dy, x, group_mean, group_inverse, into in reversed(parts):  # the order in which autograd would add them
            dx, *sums = _native_backward(dy, x, weight, None, None, group_mean, group_inverse, True, context.eps, [True, True, True])
            into.copy_(dx)
            to_affine += torch.stack(sums)
        return to_x, to_affine[0], to_affine[1], None, None
