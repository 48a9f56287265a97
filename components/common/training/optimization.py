"""Optimizer steps and the learning-rate schedule that the stages share."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from components.common.training import processes

WARMUP = 0.1  # fraction of a fine-tuning's steps with a rising learning rate


def cosine(progress: float, warmup: float = 0.0) -> float:
    """Returns the learning rate's factor at a `progress` in [0, 1]: a linear rise over the fraction `warmup`, then half a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, progress: float, warmup: float = WARMUP) -> None:
    """Sets the rate of each parameter group to `lr` times the group's `scale` (1 if it has none) times `cosine`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0) * cosine(progress, warmup)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Takes one optimizer step down the gradient of a loss."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


def step_together(optimizer: torch.optim.Optimizer, share: Tensor, terms: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Takes one optimizer step down the gradient of a loss, of which each process has a share; the shares add up to the loss.

    Returns the sums of the shares of the loss, `loss`, and of its terms, scalars without gradient.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(share)
    numbers = {name: value.detach() for name, value in {"loss": share, **(terms or {})}.items()}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    processes.add_over_ranks([*(weight.grad for weight in weights if weight.grad is not None), *numbers.values()])
    optimizer.step()
    return numbers
